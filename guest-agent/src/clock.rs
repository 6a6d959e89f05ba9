//! The guest's clock. At the start it is what the host says; that is believed within bounds.
//!
//! It cannot be before the image was made, and once the key broker has answered with a token, over TLS with
//! the certificate that the initdata names, its time counts and not the host's: from the first secret on.
//! TLS vouches for it; the token's signature is not checked here. Between these the clock runs
//! on the processor's time stamp counter, which the host can still slow down or speed up where the TEE
//! does not protect it (docs/guest-hardening.md).

use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use nacre_protocol::start_report::HOST_VISIBLE;
use rustix::time::{ClockId, Timespec, clock_settime};

/// A file of the image: seconds since 1970 (UTC) before which the image cannot run.
const EPOCH: &str = "/etc/nacre/epoch";

/// A token's time has whole seconds, and the way takes some: less is no difference.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Why the clock cannot be trusted as far as that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClockError {
    /// The image does not say when it was made.
    #[error("failed to read {EPOCH} of the guest image: {0}")]
    Read(io::Error),
    /// It is no time.
    #[error("{EPOCH} of the guest image holds {0:?}, not seconds since 1970")]
    Epoch(String),
    /// The kernel does not take it.
    #[error("failed to set the clock: {0}")]
    Set(io::Error),
}

/// Sets a clock that is before the image's own date to that date. Whoever could choose the one could choose
/// the other, so a refusal would protect nobody; a node whose clock has lost its battery still has pods.
pub(crate) fn not_before_image() -> Result<(), ClockError> {
    let epoch = image_epoch()?;
    let behind = epoch.duration_since(SystemTime::now()).unwrap_or_default();
    if !behind.is_zero() {
        tracing::warn!(
            target: HOST_VISIBLE,
            seconds = behind.as_secs(),
            "the host's clock is before the date of this image: set to that date"
        );
        set(epoch)?;
    }
    Ok(())
}

fn image_epoch() -> Result<SystemTime, ClockError> {
    let text = fs::read_to_string(EPOCH).map_err(ClockError::Read)?;
    parse_epoch(&text).ok_or(ClockError::Epoch(text))
}

/// Takes the broker's time, `unix_seconds`, if the clock is far from it. Only for what nobody but the
/// broker can have said.
pub(crate) fn told_by_broker(unix_seconds: i64) {
    let epoch = match image_epoch() {
        Ok(epoch) => epoch,
        Err(error) => return tracing::error!("the key broker's time is not taken: {error}"),
    };
    let Some(time) = possible(unix_seconds, epoch) else {
        tracing::warn!(
            unix_seconds,
            "the key broker's time is not taken: it is before the date of this image, or no time"
        );
        return;
    };
    let Some(off) = difference(SystemTime::now(), time) else { return };
    match set(time) {
        Ok(()) => tracing::warn!(
            target: HOST_VISIBLE,
            seconds = off.as_secs(),
            "the clock was not the key broker's: corrected by that, as its token says"
        ),
        Err(error) => tracing::error!("{error}"),
    }
}

/// How far two times are apart, if that is more than nothing.
fn difference(one: SystemTime, other: SystemTime) -> Option<Duration> {
    let apart = one.duration_since(other).unwrap_or_else(|error| error.duration());
    (apart > TOLERANCE).then_some(apart)
}

/// The time `unix_seconds`, if it can be one at which an image of date `epoch` runs.
fn possible(unix_seconds: i64, epoch: SystemTime) -> Option<SystemTime> {
    from_unix(unix_seconds).filter(|time| *time >= epoch)
}

/// Seconds since 1970 that a clock can show.
fn from_unix(seconds: i64) -> Option<SystemTime> {
    /// The end of the year 9999.
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LAST)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn parse_epoch(text: &str) -> Option<SystemTime> {
    from_unix(text.strip_suffix('\n')?.parse().ok()?)
}

fn set(time: SystemTime) -> Result<(), ClockError> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(since.subsec_nanos()) };
    clock_settime(ClockId::Realtime, time).map_err(|error| ClockError::Set(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_none() {
        let at = |seconds| from_unix(seconds).unwrap();
        assert_eq!(difference(at(1_000_000), at(1_000_060)), None);
        assert_eq!(difference(at(1_000_000), at(1_000_061)), Some(Duration::from_secs(61)));
        assert_eq!(difference(at(1_000_061), at(1_000_000)), Some(Duration::from_secs(61)));
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(parse_epoch("86400\n"), SystemTime::UNIX_EPOCH.checked_add(86_400 * SECOND));
        for other in ["", "\n", "86400", "-1\n", "1.5\n", "253402300800\n", "1 \n"] {
            assert_eq!(parse_epoch(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_broker_cannot_say_a_time_before_the_image() {
        let epoch = from_unix(1_000_000).unwrap();
        assert_eq!(possible(1_000_000, epoch), Some(epoch));
        assert_eq!(possible(1_000_001, epoch), from_unix(1_000_001));
        for other in [999_999, 0, -1, 253_402_300_800, i64::MIN, i64::MAX] {
            assert_eq!(possible(other, epoch), None, "{other}");
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
}
