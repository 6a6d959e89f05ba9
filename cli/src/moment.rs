//! Points in time on the command line.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads a time as RFC 3339 writes it.
pub(crate) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("{error}; write it as 2027-01-31T00:00:00Z"))
}
