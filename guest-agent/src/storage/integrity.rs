//! Ends the guest when its scratch disk gives back something else than was written.
//!
//! dm-crypt never hands such a sector on: the reader gets an I/O error, and that alone keeps the promise. But
//! a host that changes sectors is at work on this pod, and programs treat an I/O error as they like. So the
//! containers are killed and the guest ends, with all that it knows, and says why. The end is that of process
//! 1, upon which the kernel panics and resets: turning the power off would be a request to the host. The kernel tells of it in its log only, in a line that
//! a container cannot write: what comes from programs is marked as theirs. Where that log overflows before it
//! is read, the line may be lost, and with it the guest's end, not the I/O error.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use nacre_protocol::start_report::HOST_VISIBLE;
use rustix::io::Errno;

use super::device_mapper::Mapped;
use crate::cgroup;

/// Documentation/ABI/testing/dev-kmsg: each read is one record.
const LOG: &str = "/dev/kmsg";
/// Longer than any record (`PRINTKRB_RECORD_MAX`), in bytes.
const RECORD: usize = 8192;

/// Watches from now on, in a thread of its own, what the kernel says of these devices.
pub(super) fn watch(devices: [&Mapped; 2]) -> io::Result<()> {
    let devices = devices.map(Mapped::kernel_name);
    let mut log = File::open(LOG)?;
    log.seek(SeekFrom::End(0))?;
    std::thread::Builder::new().name("scratch-integrity".into()).spawn(move || {
        let seen = wait_for_change(&mut log, &devices);
        // First: it needs nobody but the kernel, while the console is the host's.
        let killed = cgroup::kill_all();
        match seen {
            Ok(record) => tracing::error!(
                target: HOST_VISIBLE,
                "the scratch disk holds something else than this guest has written, so its host or the \
                 disk cannot be trusted: the guest ends. The kernel says: {record}"
            ),
            Err(error) => tracing::error!("failed to watch the scratch disk: {LOG}: {error}"),
        }
        if let Err(error) = killed {
            tracing::error!("failed to kill the containers: {error}");
        }
        std::process::exit(1)
    })?;
    Ok(())
}

/// Returns what the kernel says about the first changed sector.
fn wait_for_change(log: &mut impl Read, devices: &[String]) -> io::Result<String> {
    let mut record = [0; RECORD];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some(message) = changed_sector(&text, devices) {
                    return Ok(message.to_owned());
                }
            }
            // Some records were overwritten before they were read: it goes on with the oldest there is.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {
                tracing::warn!(
                    "the kernel's log has overflowed: if it told of a changed sector of the scratch disk, \
                     that is lost"
                );
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The message of a record in which the kernel itself tells that dm-crypt or dm-integrity found a sector of
/// one of these devices whose tag does not fit. A record is `PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE`.
fn changed_sector<'a>(record: &'a str, devices: &[String]) -> Option<&'a str> {
    const FACILITY: u32 = !0b111;
    let (prefix, message) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    let message = message.lines().next()?;
    // dm-crypt says this first, of a header that it includes.
    let mapper = message.strip_prefix("trusted_key: ").unwrap_or(message);
    let mapper = mapper.strip_prefix("device-mapper: ")?;
    let told = [
        ("crypt: ", ": INTEGRITY AEAD ERROR, sector "),
        ("integrity: ", ": Checksum failed at sector "),
    ]
    .into_iter()
    .filter_map(|(target, what)| mapper.strip_prefix(target)?.split_once(what))
    .any(|(device, _)| devices.iter().any(|ours| ours == device));
    (priority & FACILITY == 0 && told).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.12 has it.
    const TOLD: &str = "trusted_key: device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 4711";
    const CHECKSUM: &str = "device-mapper: integrity: dm-0: Checksum failed at sector 0x80";

    fn devices() -> [String; 2] {
        ["dm-0".into(), "dm-1".into()]
    }

    #[test]
    fn the_kernels_own_words_count_and_nobody_elses() {
        let record = format!("3,812,5140900,-;{TOLD}\n SUBSYSTEM=block\n");
        assert_eq!(changed_sector(&record, &devices()), Some(TOLD));
        let record = format!("3,812,5140900,-;{CHECKSUM}\n");
        assert_eq!(changed_sector(&record, &devices()), Some(CHECKSUM));
        for other in [
            // Facility 1: a program wrote it.
            format!("11,812,5140900,-;{TOLD}\n"),
            format!("3,812,5140900,-;my words: {TOLD}\n"),
            "3,812,5140900,-;device-mapper: crypt: dm-1: I/O error\n".into(),
            // Another's device.
            format!("3,812,5140900,-;{}\n", TOLD.replace("dm-1", "dm-10")),
            format!("3,812,5140900,-;{}\n", TOLD.replace("dm-1", "x dm-1")),
            format!("x,812;{TOLD}"),
            TOLD.into(),
            String::new(),
        ] {
            assert_eq!(changed_sector(&other, &devices()), None, "{other}");
        }
    }

    /// Gives one record a read, as the kernel does.
    struct Records(Vec<Result<String, Errno>>);

    impl Read for Records {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.pop() {
                Some(Ok(record)) => record.as_bytes().read(buffer),
                Some(Err(error)) => Err(error.into()),
                None => Ok(0),
            }
        }
    }

    #[test]
    fn lost_records_do_not_end_the_watch() {
        let told = format!("3,3,1,-;{TOLD}\n");
        let mut records =
            Records(vec![Ok(told), Err(Errno::PIPE), Ok("6,1,1,-;EXT4-fs: mounted\n".into())]);
        assert_eq!(wait_for_change(&mut records, &devices()).unwrap(), TOLD);
        assert!(wait_for_change(&mut Records(vec![Err(Errno::IO)]), &devices()).is_err());
        assert!(wait_for_change(&mut Records(vec![]), &devices()).is_err());
    }
}
