//! What the agent writes on the console, which is all that a guest tells its host unasked.
//!
//! Without a TEE the host sees the guest's memory anyway: the whole log goes there. In any other guest only lines
//! with the target [`HOST_VISIBLE`] do, whatever filter the command line has: those that tell how the guest comes
//! up and why it ends. Such a line has no field of a request or of a container. The kernel is quiet there as well:
//! its errors name processes of containers. Two things are beyond that: a panic of the agent tells the place in its
//! source, and one of the kernel prints registers and the name of the process that ran.

use std::fs;
use std::io;
use std::panic::Location;

use anyhow::Context;
use nacre_protocol::start_report::HOST_VISIBLE;
use tracing_subscriber::EnvFilter;

use crate::boot::Parameters;

/// What is logged unless the command line says otherwise.
const DEFAULT_LOG: &str = "info";

/// The console's level of the kernel's messages, first of four numbers (`proc_sys_kernel(5)`).
const PRINTK: &str = "/proc/sys/kernel/printk";
/// Only emergencies, such as a panic.
const ONLY_EMERGENCIES: &str = "1";

/// Begins to log. The parameters are measured: a host that changes them has another guest.
pub(crate) fn log_to_console(parameters: &Parameters) -> anyhow::Result<()> {
    let filter = filter(parameters)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_writer(io::stderr)
        .init();
    if parameters.tee.is_some() {
        fs::write(PRINTK, ONLY_EMERGENCIES)
            .with_context(|| format!("failed to quiet the kernel by {PRINTK}"))?;
        // The usual hook prints the message, which may hold what the agent was working at.
        std::panic::set_hook(Box::new(|panic| eprintln!("{}", place_of(panic.location()))));
    }
    Ok(())
}

fn place_of(location: Option<&Location<'_>>) -> String {
    let place = location.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!("the agent panicked at {place}; its message is not for the console")
}

fn filter(parameters: &Parameters) -> anyhow::Result<EnvFilter> {
    let asked = parameters.log.as_deref().unwrap_or(DEFAULT_LOG);
    let asked =
        EnvFilter::try_new(asked).context("the kernel parameter nacre.log is not a log filter")?;
    match parameters.tee {
        None => Ok(asked),
        Some(_) => Ok(EnvFilter::try_new(format!("{HOST_VISIBLE}=info"))?),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[test]
    fn a_panic_tells_its_place_only() {
        let told = place_of(Some(Location::caller()));
        assert!(told.contains("host_visible.rs:"), "{told}");
    }

    #[derive(Clone, Default)]
    struct Console(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Console {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Console {
        type Writer = Console;

        fn make_writer(&'a self) -> Console {
            self.clone()
        }
    }

    fn console_of(tee: Option<&str>, log: Option<&str>) -> String {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let parameters = Parameters { tee: owned(tee), log: owned(log), ..Default::default() };
        let console = Console::default();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(&parameters).unwrap())
            .with_writer(console.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!(target: HOST_VISIBLE, "marked");
            tracing::error!(container = "c", "of a container");
            tracing::info!(image = "i", "of a request");
            tracing::trace!(target: HOST_VISIBLE, "detail");
        });
        let bytes = console.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_guest_that_is_vouched_for_writes_marked_lines_alone() {
        let open = console_of(None, None);
        assert!(
            ["marked", "of a container", "of a request"].iter().all(|line| open.contains(line))
        );
        for tee in ["emulated-snp", "snp", "tdx"] {
            for log in [None, Some("trace"), Some("nacre_agent=debug"), Some("off")] {
                let console = console_of(Some(tee), log);
                assert!(console.contains("marked"), "{console}");
                assert_eq!(console.lines().count(), 1, "{console}");
            }
        }
    }

    #[test]
    fn a_filter_that_is_none_ends_the_boot() {
        let log = Some("nacre_agent=loud".to_owned());
        let parameters = Parameters { log, ..Default::default() };
        assert!(filter(&parameters).unwrap_err().to_string().contains("nacre.log"));
    }
}
