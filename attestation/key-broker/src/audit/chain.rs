//! One line after another.

use ring::digest::{SHA256, digest};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{AuditError, Entry, Event, LINE_LIMIT};

/// Between a line's content and its hash.
const BEFORE_HASH: &str = ",\"hash\":\"";
/// Hexadecimal digits of a hash.
const DIGITS: usize = 64;
/// Behind it.
const AFTER_HASH: &str = "\"}";

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is no line of an audit log.
    #[error("it is no entry of an audit log")]
    Form,
    /// Its content does not have its hash.
    #[error("its content was changed: it does not have the hash that it ends with")]
    Hash,
    /// It does not continue the line before.
    #[error("it does not follow the entry before it: entries were removed, added or reordered")]
    Chain,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Of the last entry; 0 if there is none.
    pub(crate) seq: u64,
    /// Of the last entry.
    pub(crate) hash: String,
}

impl Default for Head {
    fn default() -> Head {
        Head { seq: 0, hash: "0".repeat(DIGITS) }
    }
}

impl Head {
    /// The next line, with its line break, and the head that it makes.
    pub(crate) fn line(
        &self,
        event: Event,
        time: OffsetDateTime,
    ) -> Result<(String, Head), AuditError> {
        let entry =
            Entry { seq: self.seq + 1, time, prev: self.hash.clone(), event, hash: String::new() };
        let text = serde_json::to_string(&entry).map_err(|_| AuditError::TooLong)?;
        // The empty hash is the last member.
        let content = &text[..text.len() - BEFORE_HASH.len() - AFTER_HASH.len()];
        let hash = hash(content);
        let line = format!("{content}{BEFORE_HASH}{hash}{AFTER_HASH}\n");
        if line.len() > LINE_LIMIT {
            return Err(AuditError::TooLong);
        }
        Ok((line, Head { seq: entry.seq, hash }))
    }

    /// Checks that `line` (without its line break) follows, and moves there. Without a line before,
    /// a log may begin anywhere: older files may have been put away.
    pub(crate) fn follow(&mut self, line: &str, first: bool) -> Result<Entry, LineError> {
        let entry = parse(line)?;
        let follows = entry.prev == self.hash && entry.seq == self.seq + 1;
        let begins = first && entry.seq > 1;
        if !follows && !begins {
            return Err(LineError::Chain);
        }
        *self = Head { seq: entry.seq, hash: entry.hash.clone() };
        Ok(entry)
    }
}

/// A line whose content has its hash.
pub(crate) fn parse(line: &str) -> Result<Entry, LineError> {
    let tail = BEFORE_HASH.len() + DIGITS + AFTER_HASH.len();
    let cut = line.len().checked_sub(tail).ok_or(LineError::Form)?;
    let (content, end) = line.split_at_checked(cut).ok_or(LineError::Form)?;
    let end = end.strip_prefix(BEFORE_HASH).and_then(|end| end.strip_suffix(AFTER_HASH));
    if end.ok_or(LineError::Form)? != hash(content) {
        return Err(LineError::Hash);
    }
    serde_json::from_str(line).map_err(|_| LineError::Form)
}

fn hash(content: &str) -> String {
    hex::encode(digest(&SHA256, content.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Action, Outcome};

    fn lines(count: usize) -> Vec<String> {
        let mut head = Head::default();
        (0..count)
            .map(|number| {
                let mut event = Event::new(Action::GetResource, Outcome::Done);
                event.subject = Some(format!("kbs:///a/b/{number}\n\"hash\":\""));
                let (line, next) = head.line(event, OffsetDateTime::UNIX_EPOCH).unwrap();
                head = next;
                line
            })
            .collect()
    }

    fn follow(lines: &[String]) -> Result<Head, (usize, LineError)> {
        let mut head = Head::default();
        for (number, line) in lines.iter().enumerate() {
            let line = line.strip_suffix('\n').unwrap();
            head.follow(line, number == 0).map_err(|error| (number, error))?;
        }
        Ok(head)
    }

    #[test]
    fn lines_follow_each_other() {
        let lines = lines(5);
        assert_eq!(follow(&lines).unwrap().seq, 5);
        assert_eq!(follow(&lines[2..]).unwrap().seq, 5, "older files may be away");
        assert!(lines.iter().all(|line| line.matches('\n').count() == 1));
    }

    #[test]
    fn every_change_shows() {
        let good = lines(4);
        let mut removed = good.clone();
        removed.remove(1);
        assert_eq!(follow(&removed), Err((1, LineError::Chain)));
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        assert_eq!(follow(&swapped), Err((1, LineError::Chain)));
        let mut first = lines(4);
        first[0] = good[1].clone();
        assert_eq!(follow(&first), Err((1, LineError::Chain)));
        for place in 0..good[1].len() - 1 {
            let mut changed = good.clone();
            let mut bytes = changed[1].clone().into_bytes();
            bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' };
            changed[1] = String::from_utf8(bytes).unwrap();
            let (line, _) = follow(&changed).unwrap_err();
            assert_eq!(line, 1, "{place}");
        }
    }

    #[test]
    fn an_entry_of_any_size_is_bounded() {
        let mut event = Event::new(Action::Attest, Outcome::Refused);
        event.reason = "x".repeat(LINE_LIMIT);
        assert!(matches!(
            Head::default().line(event, OffsetDateTime::UNIX_EPOCH),
            Err(AuditError::TooLong)
        ));
    }
}
