//! Event logs of a measured boot: TCG's crypto-agile format (TCG PC Client Platform Firmware Profile,
//! "Event Logging"), with TDX's registers in place of PCRs (UEFI specification, "Confidential
//! Computing"; ACPI table CCEL).

use sha2::{Digest as _, Sha384};

use crate::EvidenceError;
use crate::reader::Reader;

/// Largest log, in bytes.
pub const EVENT_LOG_LIMIT: usize = 1024 * 1024;
/// Most events in a log.
pub const EVENT_COUNT_LIMIT: usize = 16 * 1024;

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
