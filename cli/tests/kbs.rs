//! Runs a broker and administers it with `nacre kbs`, as its users do.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A broker of its own directory, killed with the test.
struct Broker {
    directory: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl Broker {
    fn start() -> Broker {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let made = directory.path().join("kbs");
        let listen = format!("127.0.0.1:{port}");
        let (code, out, error) = run(nacre(directory.path())
            .args(["kbs", "init"])
            .arg(&made)
            .args(["--listen", &listen]));
        assert_eq!(code, 0, "{error}");
        assert!(out.contains("export NACRE_KBS_ADMIN_KEY="), "{out}");
        let config = made.join("config.toml");
        let server = nacre(directory.path())
            .args(["kbs", "serve", "--config"])
            .arg(config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let broker = Broker { directory, port, server };
        let started = Instant::now();
        while broker.kbs(&["secret", "list"]).0 != 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "the broker does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        broker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn kbs(&self, words: &[&str]) -> (i32, String, String) {
        let made = self.path("kbs");
        run(nacre(self.directory.path())
            .arg("kbs")
            .args(words)
            .env("NACRE_KBS_URL", format!("https://localhost:{}", self.port))
            .env("NACRE_KBS_CA", made.join("tls.crt"))
            .env("NACRE_KBS_ADMIN_KEY", made.join("admin.key")))
    }

    fn good(&self, words: &[&str]) -> String {
        let (code, out, error) = self.kbs(words);
        assert_eq!(code, 0, "{words:?}: {error}{out}");
        out
    }

    fn fails(&self, words: &[&str], expected: &str) {
        let (code, out, error) = self.kbs(words);
        assert!(code == 2 && error.contains(expected), "{words:?}: {code} {error}{out}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn nacre(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
    command.current_dir(directory).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn secrets_grants_and_values_are_administered_and_remembered() {
    let broker = Broker::start();
    std::fs::write(broker.path("password"), "hunter2").unwrap();
    let uri = "kbs:///default/web/password";
    broker.good(&["secret", "set", uri, "--from", "password"]);
    assert_eq!(broker.good(&["secret", "get", uri]), "hunter2");
    let listed = broker.good(&["secret", "list"]);
    assert!(listed.contains(uri) && !listed.contains("hunter2"), "{listed}");

    let digest = format!("sha256:{}", "ab".repeat(32));
    let grant = ["grant", "add", "web", "--digest", &digest, "--resource", "default/web/*"];
    broker.good(&grant);
    let listed = broker.good(&["grant", "list"]);
    assert!(listed.contains(&digest) && listed.contains("default/web/*"), "{listed}");
    broker.good(&["grant", "remove", "web"]);
    assert!(!broker.good(&["grant", "list"]).contains(&digest));

    let values = serde_json::json!({
        "version": 1, "id": "guest", "tee": "snp", "measurements": ["00".repeat(48)],
        "tcb_minimum": "any", "expires": "2020-01-01T00:00:00Z",
    });
    std::fs::write(broker.path("guest.json"), values.to_string()).unwrap();
    broker.good(&["reference-value", "add", "guest.json"]);
    let listed = broker.good(&["reference-value", "list"]);
    assert!(listed.contains("guest") && listed.contains("(over)"), "{listed}");
    broker.good(&["reference-value", "remove", "guest"]);

    std::fs::write(broker.path("policy.rego"), "package policy\ndefault allow := false\n").unwrap();
    assert!(broker.good(&["policy", "show"]).contains("the grants decide"));
    broker.good(&["policy", "set", "policy.rego"]);
    assert!(broker.good(&["policy", "show"]).contains("package policy"));
    broker.good(&["policy", "reset"]);
    broker.good(&["secret", "delete", uri]);

    let audit = broker.good(&["audit", "list"]);
    for action in ["set-resource", "read-resource", "add-grant", "set-resource-policy"] {
        assert!(audit.contains(action), "no {action} in {audit}");
    }
    assert!(!audit.contains("hunter2"));
    assert_eq!(broker.good(&["audit", "list", "--last", "1"]).lines().count(), 1);
    let log = "kbs/audit";
    assert!(broker.good(&["audit", "verify", log]).starts_with("whole: "));
    let file = std::fs::read_dir(broker.path(log)).unwrap().flatten().map(|entry| entry.path());
    let file =
        file.into_iter().find(|path| path.extension().is_some_and(|e| e == "jsonl")).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("set-resource", "get-resource", 1)).unwrap();
    let (code, said, _) = broker.kbs(&["audit", "verify", log]);
    assert!(code == 1 && said.starts_with("NOT whole"), "{said}");
}

#[test]
fn mistakes_are_told() {
    let broker = Broker::start();
    std::fs::write(broker.path("empty"), "").unwrap();
    std::fs::write(broker.path("text"), "text").unwrap();
    broker.fails(&["init", "kbs"], "nothing was changed");
    broker.fails(&["secret", "set", "kbs:///a/b/c", "--from", "empty"], "is empty");
    broker.fails(&["secret", "set", "kbs:///a/b", "--from", "text"], "kbs:///");
    broker.fails(&["secret", "get", "kbs:///a/b/c"], "404");
    broker
        .fails(&["grant", "add", "web", "--digest", "x", "--resource", "a/b/c"], "initdata digest");
    broker.fails(&["grant", "add", "web", "--resource", "a/b/c"], "--initdata");
    broker.fails(&["grant", "remove", "web"], "404");
    broker.fails(&["policy", "set", "text"], "Rego");
    broker.fails(&["reference-value", "add", "text"], "reference values");
    broker.fails(&["explain", "no-such-request"], "400");
    broker.fails(&["explain", "0123456789abcdef"], "404");
    broker.fails(&["secret", "list", "--url", "https://localhost:1"], "does not answer");
    // Another administrator's key.
    let (code, _, error) = run(nacre(broker.directory.path()).args(["kbs", "init", "other"]));
    assert_eq!(code, 0, "{error}");
    broker.fails(&["secret", "list", "--admin-key", "other/admin.key"], "401");
    broker.fails(&["secret", "list", "--ca", "other/tls.crt"], "does not answer");
}
