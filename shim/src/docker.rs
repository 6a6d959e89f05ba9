//! Docker's one hook. Docker gives a container a network namespace without a path and asks, by a hook, where
//! it is: `libnetwork-setkey`, its own program again, tells its daemon (moby,
//! `libnetwork/sandbox_externalkey_unix.go`). The daemon then puts the container's interfaces there.
//!
//! The shim runs that hook, and none other, once it has made the namespace and before it looks at what is in it.
//! It runs as on hosts with runc: as root of the host, outside of every guest. Who writes the specification
//! has that right anyway.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nacre_pod_network::{Namespace, NetworkError};
use oci_spec::runtime::Spec;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// First argument of the hook: what Docker's program is to be.
const SET_KEY: &str = "libnetwork-setkey";
/// How long Docker may take to make a network.
const PATIENCE: Duration = Duration::from_secs(30);

/// The hook, with its program and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkHook {
    program: PathBuf,
    arguments: Vec<String>,
}

impl NetworkHook {
    /// The hook of Docker's, if the specification has it and no other of its kind.
    pub(crate) fn of(spec: &Spec) -> Option<NetworkHook> {
        let hooks = spec.hooks().as_ref()?.prestart().as_deref()?;
        let [hook] = hooks else { return None };
        let arguments = hook.args().clone()?;
        let is_dockers = arguments.first().is_some_and(|first| first == SET_KEY);
        (is_dockers && is_program_of_a_process(hook.path()))
            .then(|| NetworkHook { program: hook.path().clone(), arguments })
    }

    /// Tells Docker where the namespace is; when it returns, the interfaces are there.
    pub(crate) async fn run(self, namespace: &Namespace, id: &str) -> Result<(), NetworkError> {
        let id = id.to_owned();
        // On a thread that is in the namespace for as long as the hook runs, and is found by its number.
        namespace.run(move || async move { self.run_here(&id).await }).await
    }

    async fn run_here(self, id: &str) -> Result<(), NetworkError> {
        let bundle = std::env::current_dir().unwrap_or_default();
        // OCI Runtime Specification 1.0.2, "State".
        let state = serde_json::json!({
            "ociVersion": "1.0.2",
            "id": id,
            "status": "created",
            "pid": rustix::thread::gettid().as_raw_nonzero(),
            "bundle": bundle,
        });
        let told = timeout(PATIENCE, self.tell(state.to_string().into_bytes())).await;
        let problem = match told {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                format!("{}: {}", output.status, said.trim())
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it takes longer than {PATIENCE:?}"),
        };
        let hook = self.program.display();
        Err(NetworkError::Unsupported(format!("Docker's hook {hook} {SET_KEY} failed: {problem}")))
    }

    async fn tell(&self, state: Vec<u8>) -> std::io::Result<std::process::Output> {
        let mut child = Command::new(&self.program)
            .arg0(SET_KEY)
            .args(&self.arguments[1..])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&state).await?;
        }
        child.wait_with_output().await
    }
}

/// `/proc/NUMBER/exe`: the daemon's own program, whatever is installed by now.
fn is_program_of_a_process(path: &Path) -> bool {
    let text = path.to_str().and_then(|path| path.strip_prefix("/proc/")?.strip_suffix("/exe"));
    text.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hook_of(hooks: &serde_json::Value) -> Option<NetworkHook> {
        let spec = json!({"ociVersion": "1.0.2", "hooks": hooks});
        NetworkHook::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn dockers_hook_is_known_and_no_other() {
        let docker = json!({
            "path": "/proc/812/exe",
            "args": ["libnetwork-setkey", "-exec-root=/var/run/docker", "0a1b", "2c3d"],
        });
        let found = hook_of(&json!({"prestart": [docker]})).unwrap();
        assert_eq!(found.program, Path::new("/proc/812/exe"));
        assert_eq!(found.arguments[3], "2c3d");
        let shell = json!({"path": "/bin/sh", "args": ["libnetwork-setkey"]});
        let other = json!({"path": "/proc/812/exe", "args": ["sh", "libnetwork-setkey"]});
        let self_exe = json!({"path": "/proc/self/exe", "args": ["libnetwork-setkey"]});
        let bare = json!({"path": "/proc/812/exe"});
        for hooks in [json!([shell]), json!([other]), json!([self_exe]), json!([bare]), json!([])] {
            assert_eq!(hook_of(&json!({"prestart": hooks})), None, "{hooks}");
        }
        let more = json!({"path": "/bin/true", "args": ["true"]});
        assert_eq!(hook_of(&json!({"prestart": [docker, more]})), None);
        assert_eq!(hook_of(&json!({"createRuntime": [docker]})), None);
    }

    #[tokio::test]
    async fn a_hook_that_fails_is_named() {
        let hook = NetworkHook {
            program: "/bin/sh".into(),
            arguments: ["x", "-c", "read -r state; echo \"no $state\" >&2; exit 3"]
                .map(str::to_owned)
                .to_vec(),
        };
        let error = hook.run_here("box").await.unwrap_err().to_string();
        assert!(error.contains("status: 3") && error.contains("\"id\":\"box\""), "{error}");
        let absent = NetworkHook { program: "/absent".into(), arguments: vec!["x".into()] };
        let error = absent.run_here("box").await.unwrap_err().to_string();
        assert!(error.contains("/absent"), "{error}");
    }
}
