//! From the kernel's first user process to an environment in which the agent can serve.
//!
//! Everything here runs once, on one thread, before the asynchronous runtime starts.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nacre_protocol::channel::kernel_parameter;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit};

/// Where the network's name servers are written; `/etc/resolv.conf` points there, since the root cannot be
/// written to later.
pub(crate) const RESOLV_CONF: &str = "/run/nacre/resolv.conf";

/// Directory on which the initrd's root is bound before it becomes the root.
const NEW_ROOT: &str = "/sysroot";

/// What booting found out.
#[derive(Debug)]
pub(crate) struct Boot {
    /// What the measured kernel command line says.
    pub(crate) parameters: Parameters,
    /// Time from the kernel's start to the agent's first instruction.
    pub(crate) kernel: Duration,
}

/// The agent's settings. They come from the kernel command line, which is measured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Filter of the agent's log, in `tracing`'s directives.
    pub(crate) log: Option<String>,
    /// Registries (`host[:port]`) that may be asked over plain HTTP.
    pub(crate) plain_http: Vec<String>,
    /// The TEE that the VM is launched in; checked against what is found.
    pub(crate) tee: Option<String>,
    /// Whether the host may set the pod's policy once if no initdata brings one.
    pub(crate) danger_set_policy: bool,
    /// Whether requests are recorded; development images only.
    pub(crate) danger_record: bool,
}

/// Why the guest cannot start. It is printed on the console, then the VM powers off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A step of the set-up failed.
    #[error("failed to {step}: {source}")]
    Step {
        /// What was tried.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The command line holds a parameter of ours that this agent does not know.
    #[error(
        "unknown kernel parameter {0:?}: this agent reads nacre.log, nacre.tee, \
         nacre.danger_plain_http, nacre.danger_set_policy=1 and nacre.danger_record=1"
    )]
    UnknownParameter(String),
}

/// Prepares file systems, limits and the console.
pub(crate) fn early() -> Result<Boot, BootError> {
    let kernel = since_boot();
    leave_initial_root()?;
    mount_file_systems()?;
    open_console()?;
    point_at_resolv_conf()?;
    raise_limits()?;
    keep_few_pages_free()?;
    let line = fs::read_to_string("/proc/cmdline").map_err(|e| step("read /proc/cmdline", e))?;
    Ok(Boot { parameters: Parameters::parse(&line)?, kernel })
}

/// Time since the kernel started.
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// Turns the VM off. Nothing is written back before: volumes were closed with the sandbox, and no other disk of a
/// guest's is read again. Returns only if the kernel refuses.
pub(crate) fn power_off() {
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        tracing::error!("failed to power off: {error}");
    }
}

/// `pivot_root` refuses to leave the kernel's initial root, and each container must: bind the same
/// tree on a directory and move that mount over the root.
fn leave_initial_root() -> Result<(), BootError> {
    make_dir(NEW_ROOT)?;
    let name = "leave the initial root";
    mount_bind("/", NEW_ROOT).map_err(|e| step(name, e))?;
    rustix::process::chdir(NEW_ROOT).map_err(|e| step(name, e))?;
    mount_move(".", "/").map_err(|e| step(name, e))?;
    rustix::process::chroot(".").map_err(|e| step(name, e))?;
    rustix::process::chdir("/").map_err(|e| step(name, e))
}

/// A file system that every guest mounts.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
}

fn mount_file_systems() -> Result<(), BootError> {
    let strict = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
    let table = [
        FileSystem { kind: "proc", target: "/proc", flags: strict, options: None },
        FileSystem { kind: "sysfs", target: "/sys", flags: strict, options: None },
        FileSystem {
            kind: "devtmpfs",
            target: "/dev",
            flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
            options: Some(c"mode=0755"),
        },
        FileSystem {
            kind: "devpts",
            target: "/dev/pts",
            flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
            options: Some(c"mode=0620,ptmxmode=0666,gid=5"),
        },
        FileSystem {
            kind: "tmpfs",
            target: "/run",
            flags: MountFlags::NOSUID.union(MountFlags::NODEV),
            options: Some(c"mode=0755"),
        },
        FileSystem {
            kind: "tmpfs",
            target: "/tmp",
            flags: MountFlags::NOSUID.union(MountFlags::NODEV),
            options: Some(c"mode=1777"),
        },
        FileSystem {
            kind: "securityfs",
            target: "/sys/kernel/security",
            flags: strict,
            options: None,
        },
        FileSystem {
            kind: "cgroup2",
            target: "/sys/fs/cgroup",
            flags: strict,
            options: Some(c"nsdelegate"),
        },
    ];
    for fs in table {
        make_dir(fs.target)?;
        mount(fs.kind, fs.target, fs.kind, fs.flags, fs.options)
            .map_err(|e| step(format!("mount {} on {}", fs.kind, fs.target), e))?;
    }
    Ok(())
}

/// The kernel opens the console before `/dev` is there; open it anew so that logs go to the real one.
fn open_console() -> Result<(), BootError> {
    let name = "open /dev/console";
    let console = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
        .map_err(|e| step(name, e))?;
    rustix::stdio::dup2_stdin(&console).map_err(|e| step(name, e))?;
    rustix::stdio::dup2_stdout(&console).map_err(|e| step(name, e))?;
    rustix::stdio::dup2_stderr(&console).map_err(|e| step(name, e))
}

fn point_at_resolv_conf() -> Result<(), BootError> {
    let link = Path::new("/etc/resolv.conf");
    fs::create_dir_all("/run/nacre")
        .and_then(|()| std::os::unix::fs::symlink(RESOLV_CONF, link))
        .map_err(|e| step(format!("link {} to {RESOLV_CONF}", link.display()), e))
}

/// Containers inherit these as their upper bounds.
fn raise_limits() -> Result<(), BootError> {
    const OPEN_FILES: u64 = 1 << 20;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    rustix::process::setrlimit(Resource::Nofile, limit)
        .map_err(|e| step("raise the limit of open files", e))
}

/// Pages that the kernel keeps from ordinary allocations. With huge pages it would keep 45 to 67 MiB, so that
/// there are some for later; a machine is made for what its pod needs, and has none to spare.
fn keep_few_pages_free() -> Result<(), BootError> {
    const SETTING: &str = "/proc/sys/vm/min_free_kbytes";
    let information = rustix::system::sysinfo();
    let memory = information.totalram.saturating_mul(information.mem_unit.into());
    fs::write(SETTING, least_free_kib(memory >> 10).to_string())
        .map_err(|e| step(format!("write to {SETTING}"), e))
}

/// The kernel's own rule without huge pages: four times the square root, within bounds
/// (`calculate_min_free_kbytes` in `mm/page_alloc.c`).
fn least_free_kib(memory_kib: u64) -> u64 {
    memory_kib.saturating_mul(16).isqrt().clamp(128, 262_144)
}

fn make_dir(path: &str) -> Result<(), BootError> {
    match fs::create_dir(Path::new(path)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(step(format!("make the directory {path}"), e))
        }
        _ => Ok(()),
    }
}

fn step(step: impl Into<String>, source: impl Into<io::Error>) -> BootError {
    BootError::Step { step: step.into(), source: source.into() }
}

impl Parameters {
    /// Reads the `nacre.` parameters of a kernel command line; the others are the kernel's.
    fn parse(line: &str) -> Result<Self, BootError> {
        let mut parameters = Self::default();
        for word in line.split_ascii_whitespace().filter(|word| word.starts_with("nacre.")) {
            match word.split_once('=') {
                Some((kernel_parameter::LOG, filter)) => parameters.log = Some(filter.to_owned()),
                Some((kernel_parameter::DANGER_PLAIN_HTTP, hosts)) => {
                    let hosts = hosts.split(',').filter(|host| !host.is_empty());
                    parameters.plain_http.extend(hosts.map(str::to_owned));
                }
                Some((kernel_parameter::TEE, name)) => parameters.tee = Some(name.to_owned()),
                Some((kernel_parameter::DANGER_SET_POLICY, "1")) => {
                    parameters.danger_set_policy = true;
                }
                Some((kernel_parameter::DANGER_RECORD, "1")) => parameters.danger_record = true,
                _ => return Err(BootError::UnknownParameter(word.to_owned())),
            }
        }
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_free_grows_slowly() {
        for (memory_mib, kept_kib) in [(0, 128), (512, 2896), (1024, 4096), (16384, 16384)] {
            assert_eq!(least_free_kib(memory_mib << 10), kept_kib);
        }
        assert_eq!(least_free_kib(u64::MAX), 262_144);
    }

    #[test]
    fn parameters_of_the_agent_are_read_and_the_kernels_left_alone() {
        let line = "console=hvc0 quiet nacre.log=debug nacre.danger_plain_http=a:5000,b \
                    nacre.tee=snp\n";
        let expected = Parameters {
            log: Some("debug".into()),
            plain_http: vec!["a:5000".into(), "b".into()],
            tee: Some("snp".into()),
            ..Default::default()
        };
        assert_eq!(Parameters::parse(line).unwrap(), expected);
        assert_eq!(Parameters::parse("quiet").unwrap(), Parameters::default());
    }

    #[test]
    fn a_parameter_that_nobody_reads_stops_the_boot() {
        let error = Parameters::parse("nacre.danger_plain_htpp=a").unwrap_err();
        assert!(error.to_string().contains("danger_plain_htpp"), "{error}");
        assert!(Parameters::parse("nacre.log").is_err());
        assert!(Parameters::parse("nacre.danger_set_policy=0").is_err());
        let parameters = Parameters::parse("nacre.danger_set_policy=1").unwrap();
        assert!(parameters.danger_set_policy && !parameters.danger_record);
    }
}
