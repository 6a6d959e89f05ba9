//! Intel TDX: quotes and the event log.

mod eventlog;
mod quote;

pub use eventlog::{EVENT_COUNT_LIMIT, EVENT_LOG_LIMIT, Event, EventLog};
pub use quote::{
    Body, CertificationData, Header, QUOTE_LIMIT, Quote, QuoteVersion, SignatureData, TdAttributes,
};
