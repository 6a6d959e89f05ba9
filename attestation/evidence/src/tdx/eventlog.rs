//! Event logs of a measured boot: TCG's crypto-agile format (TCG PC Client Platform Firmware Profile,
//! "Event Logging"), with TDX's registers in place of PCRs (UEFI specification, "Confidential
//! Computing"; ACPI table CCEL).

use sha2::{Digest as _, Sha384};

use crate::EvidenceError;
use crate::reader::Reader;

/// Largest log, in bytes.
pub const EVENT_LOG_LIMIT: usize = 1024 * 1024;
/// Most events in a log.
pub const EVENT_COUNT_LIMIT: usize = 4096;

const WHAT: &str = "event log";
const EV_NO_ACTION: u32 = 3;
const ALG_SHA384: u16 = 0x000c;
const ALGORITHM_COUNT_LIMIT: usize = 8;
const DIGEST_LIMIT: usize = 64;
const SPECIFICATION_ID: &[u8; 16] = b"Spec ID Event03\0";

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Register that it extends: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3.
    pub register: u32,
    /// As the TCG specification numbers them.
    pub kind: u32,
    /// What the register is extended with.
    pub digest: [u8; 48],
    /// What was measured, or a description of it.
    pub data: Vec<u8>,
}

/// A log, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Event>,
    size: usize,
}

impl EventLog {
    /// Reads a log as the ACPI table's memory holds it: events, then zeros or ones up to the end.
    ///
    /// # Errors
    /// If it is too large, its first event does not say how digests are laid out, SHA-384 is not among
    /// them, or an event is cut short.
    pub fn parse(bytes: &[u8]) -> Result<EventLog, EvidenceError> {
        if bytes.len() > EVENT_LOG_LIMIT {
            return Err(EvidenceError::TooLarge {
                what: "event log in bytes",
                limit: EVENT_LOG_LIMIT,
            });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let algorithms = specification_id(&mut reader)?;
        let mut events = Vec::new();
        while !is_filling(reader.rest()) {
            if events.len() == EVENT_COUNT_LIMIT {
                return Err(EvidenceError::TooLarge {
                    what: "number of events",
                    limit: EVENT_COUNT_LIMIT,
                });
            }
            events.push(event(&mut reader, &algorithms)?);
        }
        Ok(EventLog { events, size: reader.position() })
    }

    /// The events in order, without the first, which describes the log.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Where the last event ends, in bytes from the log's beginning; further events may be added there.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// What RTMR0 to RTMR3 hold after these events. Events that no register is extended with
    /// (`EV_NO_ACTION`) and those of MRTD do not count.
    #[must_use]
    pub fn replay(&self) -> [[u8; 48]; 4] {
        let mut registers = [[0; 48]; 4];
        for event in self.events.iter().filter(|event| event.kind != EV_NO_ACTION) {
            let index = usize::try_from(event.register).ok().and_then(|index| index.checked_sub(1));
            if let Some(register) = index.and_then(|index| registers.get_mut(index)) {
                let hash = Sha384::new().chain_update(*register).chain_update(event.digest);
                *register = hash.finalize().into();
            }
        }
        registers
    }
}

/// Firmware leaves memory after the last event as zeros or ones.
fn is_filling(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xff)
}

/// The first event, in the older form, says which digests the others have, and their sizes.
fn specification_id(reader: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, EvidenceError> {
    let (_register, kind) = (reader.u32()?, reader.u32()?);
    reader.slice(20)?;
    let length = reader.length()?;
    let event = reader.slice(length)?;
    if kind != EV_NO_ACTION || !event.starts_with(SPECIFICATION_ID) {
        return Err(EvidenceError::malformed(WHAT, "the first event is no specification id event"));
    }
    let mut reader = Reader::new("event log's specification id event", event);
    reader.slice(SPECIFICATION_ID.len() + 8)?;
    let count = reader.length()?;
    if count > ALGORITHM_COUNT_LIMIT {
        return Err(EvidenceError::TooLarge {
            what: "number of an event log's digest algorithms",
            limit: ALGORITHM_COUNT_LIMIT,
        });
    }
    let mut algorithms = Vec::with_capacity(count);
    for _ in 0..count {
        let (algorithm, size) = (reader.u16()?, usize::from(reader.u16()?));
        if size > DIGEST_LIMIT || (algorithm == ALG_SHA384 && size != 48) {
            let problem = format!("digest algorithm {algorithm:#x} with {size} bytes");
            return Err(EvidenceError::malformed(WHAT, problem));
        }
        algorithms.push((algorithm, size));
    }
    Ok(algorithms)
}

fn event(reader: &mut Reader<'_>, algorithms: &[(u16, usize)]) -> Result<Event, EvidenceError> {
    let (register, kind) = (reader.u32()?, reader.u32()?);
    let count = reader.length()?;
    if count > ALGORITHM_COUNT_LIMIT {
        return Err(EvidenceError::TooLarge {
            what: "number of an event's digests",
            limit: ALGORITHM_COUNT_LIMIT,
        });
    }
    let mut digest = None;
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let size = algorithms
            .iter()
            .find_map(|(known, size)| (*known == algorithm).then_some(*size))
            .ok_or_else(|| {
                EvidenceError::malformed(WHAT, format!("digest algorithm {algorithm:#x} unknown"))
            })?;
        if algorithm == ALG_SHA384 {
            digest = Some(reader.array()?);
        } else {
            reader.slice(size)?;
        }
    }
    let digest =
        digest.ok_or_else(|| EvidenceError::malformed(WHAT, "an event has no SHA-384 digest"))?;
    let length = reader.length()?;
    let data = reader.slice(length)?.to_vec();
    Ok(Event { register, kind, digest, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(algorithms: &[(u16, u16)]) -> Vec<u8> {
        let mut event = SPECIFICATION_ID.to_vec();
        event.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
        event.extend_from_slice(&u32::try_from(algorithms.len()).unwrap().to_le_bytes());
        for (algorithm, size) in algorithms {
            event.extend_from_slice(&algorithm.to_le_bytes());
            event.extend_from_slice(&size.to_le_bytes());
        }
        event.push(0);
        let mut log = vec![0; 4];
        log.extend_from_slice(&EV_NO_ACTION.to_le_bytes());
        log.extend_from_slice(&[0; 20]);
        log.extend_from_slice(&u32::try_from(event.len()).unwrap().to_le_bytes());
        log.extend_from_slice(&event);
        log
    }

    fn add(log: &mut Vec<u8>, register: u32, kind: u32, digest: u8, data: &[u8]) {
        log.extend_from_slice(&register.to_le_bytes());
        log.extend_from_slice(&kind.to_le_bytes());
        log.extend_from_slice(&2_u32.to_le_bytes());
        log.extend_from_slice(&4_u16.to_le_bytes());
        log.extend_from_slice(&[0; 20]);
        log.extend_from_slice(&ALG_SHA384.to_le_bytes());
        log.extend_from_slice(&[digest; 48]);
        log.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        log.extend_from_slice(data);
    }

    fn extended(from: [u8; 48], digest: u8) -> [u8; 48] {
        Sha384::new().chain_update(from).chain_update([digest; 48]).finalize().into()
    }

    fn log() -> Vec<u8> {
        let mut log = first(&[(4, 20), (ALG_SHA384, 48)]);
        add(&mut log, 1, 1, 7, b"firmware");
        add(&mut log, 4, 1, 8, b"");
        add(&mut log, 1, EV_NO_ACTION, 9, b"nothing");
        add(&mut log, 1, 4, 10, b"separator");
        add(&mut log, 0, 1, 11, b"MRTD");
        add(&mut log, 5, 1, 12, b"no register");
        log
    }

    #[test]
    fn events_extend_their_registers() {
        for filling in [vec![], vec![0; 1000], vec![0xff; 1000]] {
            let parsed = EventLog::parse(&[log(), filling].concat()).unwrap();
            assert_eq!(parsed.events().len(), 6);
            assert_eq!(parsed.events()[0].data, b"firmware");
            let zero = [0; 48];
            let expected = [extended(extended(zero, 7), 10), zero, zero, extended(zero, 8)];
            assert_eq!(parsed.replay(), expected);
        }
    }

    #[test]
    fn hostile_logs_are_refused() {
        let good = log();
        let ends: Vec<usize> = {
            // Where a log may end: behind each event.
            let mut ends = vec![first(&[(4, 20), (ALG_SHA384, 48)]).len()];
            for data in [8, 0, 7, 9, 4, 11] {
                ends.push(ends.last().unwrap() + 12 + 2 + 20 + 2 + 48 + 4 + data);
            }
            ends
        };
        for cut in 0..good.len() {
            let parsed = EventLog::parse(&good[..cut]);
            // What is left of an event may look like filling, if it begins with zeros.
            let filling = cut > ends[0]
                && good[*ends.iter().rfind(|end| **end <= cut).unwrap()..cut]
                    .iter()
                    .all(|byte| *byte == 0);
            assert_eq!(parsed.is_ok(), ends.contains(&cut) || filling, "cut at {cut}");
        }
        assert!(EventLog::parse(&vec![0; EVENT_LOG_LIMIT + 1]).is_err());
        assert!(EventLog::parse(&first(&[(4, 20); 9])).is_err(), "algorithms");
        assert!(EventLog::parse(&first(&[(ALG_SHA384, 47)])).is_err(), "size of a digest");
        assert!(EventLog::parse(&first(&[(4, 65)])).is_err(), "size of a digest");
        let mut unknown = first(&[(ALG_SHA384, 48)]);
        add(&mut unknown, 1, 1, 7, b"");
        assert!(EventLog::parse(&unknown).is_err(), "SHA-1 was not announced");
        let mut without = first(&[(4, 20)]);
        without.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(EventLog::parse(&without).is_err(), "no digest");
        let mut many = first(&[(ALG_SHA384, 48)]);
        let mut event = vec![1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 12, 0];
        event.resize(event.len() + 48 + 4, 0);
        many.extend(event.repeat(EVENT_COUNT_LIMIT));
        assert!(EventLog::parse(&many).is_ok());
        many.extend(event);
        assert!(matches!(EventLog::parse(&many), Err(EvidenceError::TooLarge { .. })));
    }
}
