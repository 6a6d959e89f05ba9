//! The last steps of a container's process: finding its program, dropping privileges, `exec`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::Spec;
use rustix::fs::{Access, AtFlags, CWD, FileType};

use super::launcher_side::tell;
use super::{Confinement, Report};

/// What runc's users get when neither image nor pod sets one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program of a container's process.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Where a failure to `exec` is told.
    pub(super) control: Arc<OwnedFd>,
    /// For further processes of a container: what the runtime library leaves to us.
    pub(super) confinement: Option<Confinement>,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (name, _) = command(spec).ok_or_else(|| {
            ExecutorValidationError::ArgValidationError("no program to run".into())
        })?;
        find(name, path_variable(spec))
            .map(|_| ())
            .map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // Set on the command in `exec`, in the specification's order.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.run(spec).err().unwrap_or_else(|| "the program did not start".into());
        tell(&self.control, &Report::Failed(error.clone()));
        Err(ExecutorError::Other(error))
    }
}

impl Program {
    /// Returns only on failure.
    fn run(&self, spec: &Spec) -> Result<(), String> {
        let (name, arguments) = command(spec).ok_or("no program to run")?;
        let process = spec.process().as_ref().ok_or("no process to run")?;
        if let Some(confinement) = &self.confinement {
            confinement.apply(process.no_new_privileges() == Some(true))?;
        }
        let path = find(name, path_variable(spec))?;
        let environment = process.env().as_deref().unwrap_or_default();
        let variables = environment.iter().filter_map(|variable| variable.split_once('='));
        let mut command = Command::new(path);
        command.arg0(name).args(arguments).env_clear().envs(variables);
        if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
            command.env("PATH", DEFAULT_PATH);
        }
        if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
            command.env("HOME", home(process.user().uid()));
        }
        let error = command.exec();
        Err(format!("exec {name:?}: {}", describe(&error)))
    }
}

impl Confinement {
    /// The filter is loaded while the process may still do so without `no_new_privs`, as for a
    /// container's first process.
    fn apply(&self, no_new_privileges: bool) -> Result<(), String> {
        let load = || match &self.seccomp {
            Some(filter) => libcontainer::seccomp::initialize_seccomp(filter)
                .map(|_| ())
                .map_err(|e| format!("failed to load the system call filter: {e}")),
            None => Ok(()),
        };
        if !no_new_privileges {
            load()?;
        }
        let kept = self.capabilities.clone().unwrap_or_else(|| {
            crate::oci::capability_sets(|_| oci_spec::runtime::Capabilities::new())
        });
        libcontainer::capabilities::drop_privileges(&kept, create_syscall().as_ref())
            .map_err(|e| format!("failed to drop capabilities: {e}"))?;
        if no_new_privileges { load() } else { Ok(()) }
    }
}

fn command(spec: &Spec) -> Option<(&String, &[String])> {
    spec.process().as_ref()?.args().as_ref()?.split_first()
}

fn path_variable(spec: &Spec) -> &str {
    let environment = spec.process().as_ref().and_then(|process| process.env().as_ref());
    let set = environment.into_iter().flatten().find_map(|variable| variable.strip_prefix("PATH="));
    set.unwrap_or(DEFAULT_PATH)
}

/// Looks up a program as a shell does, with the rights of the process as it is now. The words of the
/// errors are runc's, which callers know.
fn find(name: &str, path_variable: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(error) => Err(format!("exec {name:?}: stat {name}: {}", describe(&error))),
        };
    }
    let mut denied = None;
    for directory in path_variable.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path = Path::new(directory).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(path),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some(path) => format!("exec {name:?}: {}: permission denied", path.display()),
        None => format!("exec {name:?}: executable file not found in $PATH"),
    })
}

fn executable(path: &Path) -> io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(())
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        None if error.kind() == io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

/// Home directory by the container's own user table; `/` if the user is not in it.
fn home(uid: u32) -> PathBuf {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    let entry = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let home = entry.filter(|fields| fields.get(2) == Some(&uid.as_str())).find_map(|fields| {
        fields.get(5).filter(|home| home.starts_with('/')).map(|home| (*home).to_owned())
    });
    PathBuf::from(OsStr::new(home.as_deref().unwrap_or("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find("sh", "/nowhere:/bin").unwrap(), PathBuf::from("/bin/sh"));
        assert_eq!(find("/bin/sh", "").unwrap(), PathBuf::from("/bin/sh"));
    }

    #[test]
    fn errors_say_what_runc_would_say() {
        let absent = find("/bin/nope", DEFAULT_PATH).unwrap_err();
        assert_eq!(absent, "exec \"/bin/nope\": stat /bin/nope: no such file or directory");
        let absent = find("nope", DEFAULT_PATH).unwrap_err();
        assert_eq!(absent, "exec \"nope\": executable file not found in $PATH");
        let plain = tempfile::NamedTempFile::new().unwrap();
        let plain = plain.path().to_str().unwrap();
        assert!(find(plain, DEFAULT_PATH).unwrap_err().contains("permission denied"));
        assert!(find("/etc", DEFAULT_PATH).unwrap_err().contains("permission denied"));
        assert!(find("etc", "/").unwrap_err().contains("permission denied"));
    }
}
