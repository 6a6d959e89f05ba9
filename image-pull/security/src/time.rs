//! Times, in seconds since 1970.

use std::str::FromStr as _;

use x509_cert::der::DateTime;

/// When something is valid; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) from: i64,
    pub(crate) to: i64,
}

impl Period {
    pub(crate) const ALWAYS: Self = Self { from: i64::MIN, to: i64::MAX };

    pub(crate) fn contains(&self, time: i64) -> bool {
        (self.from..=self.to).contains(&time)
    }
}

pub(crate) fn seconds(time: DateTime) -> i64 {
    i64::try_from(time.unix_duration().as_secs()).unwrap_or(i64::MAX)
}

/// `2021-12-18T13:59:59.999Z` (RFC 3339, in UTC); what is below a second is dropped.
pub(crate) fn rfc3339(text: &str) -> Result<i64, String> {
    let problem = || format!("{text:?} is not a time in UTC as RFC 3339 writes it");
    let utc = text.strip_suffix('Z').ok_or_else(problem)?;
    let whole = match utc.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b.is_ascii_digit()) => whole,
        Some(_) => return Err(problem()),
        None => utc,
    };
    DateTime::from_str(&format!("{whole}Z")).map(seconds).map_err(|_| problem())
}

/// `20211218135959.999Z` (`GeneralizedTime` as RFC 3161 has it).
pub(crate) fn generalized(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if whole.len() != 14 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let two = |at: usize| whole.get(at..at + 2)?.parse::<u8>().ok();
    let year = whole.get(..4)?.parse().ok()?;
    DateTime::new(year, two(4)?, two(6)?, two(8)?, two(10)?, two(12)?).ok().map(seconds)
}

#[cfg(test)]
mod tests {
    use super::{generalized, rfc3339};

    #[test]
    fn both_notations_mean_the_same() {
        for (rfc, asn1) in [
            ("2021-12-18T13:59:59.999Z", "20211218135959.999Z"),
            ("2026-01-01T00:00:00Z", "20260101000000Z"),
        ] {
            assert_eq!(rfc3339(rfc).ok(), generalized(asn1.as_bytes()));
        }
        assert_eq!(rfc3339("1970-01-01T00:01:00Z"), Ok(60));
        for bad in ["2021-12-18T13:59:59+01:00", "2021-12-18", "2021-12-18T13:59:59.-Z", ""] {
            assert!(rfc3339(bad).is_err(), "{bad}");
        }
        for bad in ["20211218135959", "2021121813595Z", "20211318135959Z", "20211218135959.Z"] {
            assert_eq!(generalized(bad.as_bytes()), None, "{bad}");
        }
    }
}
