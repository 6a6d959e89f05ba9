//! Records of PAX extended headers (POSIX.1-2017, pax, "pax Header Block").

use crate::archive::{ArchiveError, refused};

/// Records `LENGTH KEY=VALUE\n` of a PAX header. The value is taken by its length: it may hold anything.
pub(crate) struct PaxRecords<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((key, value, rest)) = pax_record(self.0) else {
            self.0 = &[];
            return Some(refused("a PAX header is malformed"));
        };
        self.0 = rest;
        Some(Ok((key, value)))
    }
}

fn pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(9).position(|b| *b == b' ')?;
    let length = usize::try_from(digits(&records[..space])?).ok()?;
    if length > records.len() {
        return None;
    }
    let (record, rest) = records.split_at(length);
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A field that holds a number.
pub(crate) fn decimal(text: &[u8], field: &str) -> Result<u64, ArchiveError> {
    digits(text)
        .ok_or_else(|| ArchiveError::Refused(format!("the PAX field {field} is not a number")))
}

/// `[-]seconds[.fraction]`, to nanoseconds; before 1970 the fraction counts backwards.
pub(crate) fn pax_time(text: &[u8]) -> Result<(i64, u32), ArchiveError> {
    let invalid = || ArchiveError::Refused("the PAX field mtime is not a time".into());
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = parts.next().and_then(digits).ok_or_else(invalid)?;
    let seconds = i64::try_from(seconds).map_err(|_| invalid())?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(invalid());
    }
    let nanos = (0..9).fold(0, |nanos, i| {
        nanos * 10 + fraction.get(i).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::printable;

    #[test]
    fn times_before_1970_and_fractions() {
        assert_eq!(pax_time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(pax_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(pax_time(b"-7").unwrap(), (-7, 0));
        assert_eq!(pax_time(b"1.1234567891").unwrap(), (1, 123_456_789));
        for bad in [&b""[..], b".5", b"1e9", b"99999999999999999999", b"-", b"1.x"] {
            assert!(pax_time(bad).is_err());
        }
    }

    #[test]
    fn a_pax_value_may_hold_newlines_and_equals_signs() {
        let record = b"13 key=a\n=b\0\n";
        let (key, value, rest) = pax_record(record).unwrap();
        assert_eq!((key, value, rest), (&b"key"[..], &b"a\n=b\0"[..], &b""[..]));
        for bad in [&b"5 a=b\n"[..], b"99 a=b\n", b"6 ab\n", b" a=b\n", b"0 a=b\n", b"6 a=bX"] {
            assert!(pax_record(bad).is_none(), "{}", printable(bad));
        }
    }
}
