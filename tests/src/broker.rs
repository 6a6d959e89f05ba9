//! A key broker in a world, and its administrator: everything goes through the `nacre` program, as
//! people do it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::world::{SHIM_CONFIG, World};

/// What `nacre kbs init` made, inside.
const DIRECTORY: &str = "/run/world/kbs";
/// The initdata that pods begin with, inside: where the broker is.
const BASE: &str = "/run/world/kbs-base.toml";
/// Host part of its address, as pods reach it.
const HOST: &str = "10.88.0.1";
const PORT: u16 = 8080;

/// The administrator of a world's broker.
#[derive(Debug)]
pub struct Broker<'w> {
    world: &'w World,
}

impl World {
    /// Pods that start afterwards have the emulated secure processor; its root is made once for all
    /// worlds of this installation.
    pub fn danger_emulate_tee(&self) -> anyhow::Result<()> {
        let root = self.products().emulated_root();
        self.configure_shim(|text| {
            let text = text.replacen("[vm]\n", "[vm]\ntee = \"emulated-snp\"\n", 1);
            format!("{text}\n[emulated]\ndirectory = {root:?}\n")
        })
    }

    /// Pods that start afterwards have the emulated secure processor, and a broker expects them.
    pub async fn start_broker_for_guests(&self) -> anyhow::Result<Broker<'_>> {
        self.danger_emulate_tee()?;
        let broker = self.start_broker().await?;
        broker.expect_these_guests("these-guests")?;
        Ok(broker)
    }

    /// Starts a broker that accepts this installation's emulated processors, over https.
    pub async fn start_broker(&self) -> anyhow::Result<Broker<'_>> {
        let root = self.products().emulated_root().display().to_string();
        let listen = format!("0.0.0.0:{PORT}");
        self.nacre(&[
            "kbs",
            "init",
            DIRECTORY,
            "--name",
            HOST,
            "--listen",
            &listen,
            "--danger-emulated",
            &root,
        ])?;
        let broker = Broker { world: self };
        broker.write_initdata(&[])?;
        broker.start().await?;
        Ok(broker)
    }

    /// Runs `nacre`, inside.
    pub fn nacre(&self, words: &[&str]) -> anyhow::Result<String> {
        let program = self.products().nacre().display().to_string();
        self.run(&[&[program.as_str()], words].concat())
    }
}

impl Broker<'_> {
    /// Where pods reach it.
    pub fn url(&self) -> String {
        format!("https://{HOST}:{PORT}")
    }

    /// Pods declared from now on find this resource as a file at `path`.
    pub fn give_as_file(&self, path: &str, uri: &str) -> anyhow::Result<()> {
        self.write_initdata(&["--secret-file", &format!("{path}={uri}")])
    }

    /// Pods declared from now on begin with more: words for `nacre initdata create`.
    pub fn add_to_initdata(&self, more: &[&str]) -> anyhow::Result<()> {
        let words = ["initdata", "create", "--from", BASE, "-o", BASE];
        self.world.nacre(&[&words[..], more].concat()).map(drop)
    }

    fn write_initdata(&self, more: &[&str]) -> anyhow::Result<()> {
        let (url, ca) = (self.url(), format!("{DIRECTORY}/tls.crt"));
        let words = ["initdata", "create", "--kbs-url", &url, "--kbs-cert", &ca, "-o", BASE];
        self.world.nacre(&[&words[..], more].concat()).map(drop)
    }

    /// Makes a key that signs sealed secrets, gives its public half to the broker, and seals the name of
    /// `secret`.
    pub fn seal(&self, secret: &str) -> anyhow::Result<String> {
        const KEY: &str = "/run/world/seal.pem";
        const PUBLIC: &str = "kbs:///default/seal/key";
        if !self.world.path(KEY).exists() {
            let public = self.world.nacre(&["seal", "key", "-o", KEY])?;
            self.set_secret(PUBLIC, &public)?;
        }
        let sealed = ["seal", "vault", secret, "--key", KEY, "--public-key", PUBLIC];
        Ok(self.world.nacre(&sealed)?.trim().to_owned())
    }

    /// Initdata (a path inside) for `nacre policy generate --initdata`.
    pub fn initdata(&self) -> &'static str {
        BASE
    }

    /// An administrator's command: `nacre kbs` and these words.
    pub fn admin(&self, words: &[&str]) -> anyhow::Result<String> {
        let program = self.world.products().nacre().display().to_string();
        let settings = [
            format!("NACRE_KBS_URL={}", self.url()),
            format!("NACRE_KBS_CA={DIRECTORY}/tls.crt"),
            format!("NACRE_KBS_ADMIN_KEY={DIRECTORY}/admin.key"),
        ];
        let mut command = vec!["env"];
        command.extend(settings.iter().map(String::as_str));
        command.extend([program.as_str(), "kbs"]);
        command.extend(words);
        self.world.run(&command)
    }

    /// Stores a secret.
    pub fn set_secret(&self, uri: &str, content: &str) -> anyhow::Result<()> {
        const FILE: &str = "/run/world/secret";
        fs::write(self.world.path(FILE), content)?;
        self.set_secret_from(uri, FILE)?;
        Ok(fs::remove_file(self.world.path(FILE))?)
    }

    /// Stores what is in a file (a path inside).
    pub fn set_secret_from(&self, uri: &str, file: &str) -> anyhow::Result<()> {
        self.admin(&["secret", "set", uri, "--from", file]).map(drop)
    }

    /// Registers what a guest with the shim's present configuration measures.
    pub fn expect_these_guests(&self, id: &str) -> anyhow::Result<()> {
        const FILE: &str = "/run/world/reference.json";
        self.world.nacre(&[
            "measure",
            "--tee",
            "emulated-snp",
            "--config",
            SHIM_CONFIG,
            // The world's registry speaks plain HTTP.
            "--danger-accept",
            "--id",
            id,
            "-o",
            FILE,
        ])?;
        self.admin(&["reference-value", "add", FILE]).map(drop)
    }

    /// Grants resources to pods whose initdata is that of an annotation.
    pub fn grant<const N: usize>(
        &self,
        id: &str,
        annotation: &str,
        resources: [&str; N],
    ) -> anyhow::Result<()> {
        const FILE: &str = "/run/world/granted.txt";
        fs::write(self.world.path(FILE), annotation)?;
        let mut words = vec!["grant", "add", id, "--initdata", FILE];
        words.extend(resources.iter().flat_map(|resource| ["--resource", resource]));
        self.admin(&words).map(drop)
    }

    /// Kills it.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.world.end_daemon("nacre", Signal::KILL)
    }

    /// Starts it again.
    pub async fn start(&self) -> anyhow::Result<()> {
        let config = format!("{DIRECTORY}/config.toml");
        let program = self.world.products().nacre();
        self.world.start_daemon(&program, &["kbs", "serve", "--config", &config])?;
        let started = Instant::now();
        while self.admin(&["secret", "list"]).is_err() {
            self.world.check_started("nacre", started)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The last lines of the audit log, as `nacre kbs audit list` shows them.
    pub fn audit(&self) -> anyhow::Result<String> {
        self.admin(&["audit", "list"])
    }

    /// Whether the audit log is whole.
    pub fn verify_audit(&self) -> anyhow::Result<String> {
        self.admin(&["audit", "verify", &format!("{DIRECTORY}/audit")])
    }

    /// What an error of a pod's says the request was, explained by the broker.
    pub fn explain(&self, error: &str) -> anyhow::Result<String> {
        let (_, id) = error.rsplit_once("request ").context("the error names no request")?;
        let end = id.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(id.len());
        ensure!(end > 0, "the error names no request: {error}");
        self.admin(&["explain", &id[..end]])
    }
}
