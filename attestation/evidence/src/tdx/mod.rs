//! Intel TDX: quotes and the event log.

pub mod eventlog;
mod quote;

pub use eventlog::{EVENT_LOG_LIMIT, Event, EventLog};
pub use quote::{
    Body, CertificationData, Header, QUOTE_LIMIT, Quote, QuoteVersion, SignatureData, TdAttributes,
};
