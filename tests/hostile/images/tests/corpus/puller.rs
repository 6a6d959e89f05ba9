//! The process that pulls one case, and looks at what came of it.

use std::ffi::CString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nacre_hostile_images::case::{Case, Check, Expect, Hosts, Mode};
use nacre_hostile_images::tree::Tree;
use nacre_hostile_images::{CERTIFICATE, PASSWORD, STORE, WORLD, corpus};
use nacre_image_pull::{Image, PullConfig, PullError, Puller};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::outside::{Snapshot, leftovers, peak_kib, plant};

/// First argument of a process that pulls: then the case, the reference and both servers.
pub(crate) const COMMAND: &str = "--pull-one";
/// First argument of a process that pulls until it is killed.
const VICTIM: &str = "--pull-until-killed";
/// What is freed may be freed a little later.
const FREED_WITHIN: Duration = Duration::from_secs(15);

/// What a pull came to.
#[derive(Debug)]
pub(crate) struct Report {
    /// Why it was refused; none if it was not.
    error: Option<String>,
    /// Most memory that the process had, in KiB.
    pub(crate) peak_kib: u64,
    /// What was wrong with the tree, with what is outside or with what is left.
    complaints: Vec<String>,
}

impl Report {
    /// Whether this is what the case wants.
    pub(crate) fn check(&self, case: &Case) -> anyhow::Result<()> {
        match (case.expect, &self.error) {
            (Expect::Accept(_) | Expect::Contain(_), None) => {}
            (Expect::Accept(_) | Expect::Contain(_), Some(error)) => {
                bail!("it must be taken, but: {error}");
            }
            (Expect::Reject(words), None) => bail!("it must be refused ({words:?}), but was taken"),
            (Expect::Reject(words), Some(error)) => {
                for word in words {
                    ensure!(error.contains(word), "refused, but not with {word:?}: {error}");
                }
                let secret = PASSWORD.iter().any(|form| error.contains(form));
                ensure!(!secret, "the error tells a password: {error}");
                ensure!(
                    !error.chars().any(char::is_control) && error.len() < 2000,
                    "the error is not fit to print: {error:?}"
                );
            }
        }
        ensure!(self.complaints.is_empty(), "{}", self.complaints.join("\n"));
        let peak = self.peak_kib / 1024;
        ensure!(peak <= case.peak_mib, "it took {peak} MiB; at most {} are fine", case.peak_mib);
        Ok(())
    }
}

impl FromStr for Report {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(text).with_context(|| format!("{text:?}"))?;
        let complaints = value["complaints"].as_array().context("no complaints")?;
        Ok(Self {
            error: value["error"].as_str().map(str::to_owned),
            peak_kib: value["peak_kib"].as_u64().context("no peak")?,
            complaints: complaints.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    }
}

/// Does the work of a puller if the arguments say that this is one.
pub(crate) fn serve(arguments: &[String]) -> Option<ExitCode> {
    let [command, name, reference, registry, other, certificate] = arguments else { return None };
    let work = match &**command {
        COMMAND => report,
        VICTIM => victim,
        _ => return None,
    };
    let hosts = Hosts { registry: registry.clone(), other: other.clone() };
    let case = corpus().into_iter().find(|case| case.name == name);
    let done = case
        .context("no such case")
        .and_then(|case| work(&Pull { case, reference, hosts, certificate }));
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

struct Pull<'a> {
    case: Case,
    reference: &'a str,
    hosts: Hosts,
    /// PEM; empty if the servers speak no TLS.
    certificate: &'a str,
}

fn report(pull: &Pull<'_>) -> anyhow::Result<()> {
    let options = CString::new(pull.case.tmpfs)?;
    mount("tmpfs", WORLD, "tmpfs", MountFlags::empty(), &*options)
        .context("failed to mount a tmpfs")?;
    plant()?;
    std::fs::create_dir(STORE)?;
    std::fs::write(CERTIFICATE, pull.certificate)?;
    let before = Snapshot::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull.run())?;
    let peak_kib = peak_kib()?;
    let mut complaints = Vec::new();
    let error = match pulled {
        Err(error) => Some(error),
        Ok(image) => {
            if let Expect::Accept(check) | Expect::Contain(check) = pull.case.expect
                && let Err(problem) = look(&image, check)
            {
                complaints.push(format!("{problem:#}"));
            }
            None
        }
    };
    // The image is gone by now: nothing has a use for its layers.
    complaints.extend(wait_for_nothing()?);
    complaints.extend(before.changes(&Snapshot::take()?));
    println!("{}", json!({ "error": error, "peak_kib": peak_kib, "complaints": complaints }));
    Ok(())
}

fn look(image: &Image, check: Check) -> anyhow::Result<()> {
    let world = Path::new(WORLD);
    let (scratch, rootfs) = (world.join("scratch"), world.join("rootfs"));
    image.mount(&scratch, &rootfs, false)?;
    let checked = Tree::open(&rootfs).and_then(|tree| check(&tree));
    unmount(&rootfs, UnmountFlags::DETACH)?;
    std::fs::remove_dir(&rootfs)?;
    std::fs::remove_dir_all(&scratch)?;
    checked
}

fn wait_for_nothing() -> anyhow::Result<Option<String>> {
    let started = Instant::now();
    loop {
        let left = leftovers()?;
        if left.is_empty() {
            return Ok(None);
        }
        if started.elapsed() > FREED_WITHIN {
            return Ok(Some(format!("left behind: {left:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Pull<'_> {
    fn puller(&self) -> Result<Puller, PullError> {
        let mut config = PullConfig::new(STORE);
        config.limits.connect = Duration::from_secs(2);
        config.limits.stall = Duration::from_secs(2);
        if self.certificate.is_empty() {
            let both = [&self.hosts.registry, &self.hosts.other];
            config.registries.danger_plain_http = both.map(Clone::clone).into();
        } else {
            config.registries.ca_file = Some(CERTIFICATE.into());
        }
        (self.case.configure)(&mut config, &self.hosts);
        Puller::new(config)
    }

    /// The image, or the words in which it was refused.
    async fn run(&self) -> anyhow::Result<Result<Image, String>> {
        if self.case.mode == Mode::Killed {
            self.kill_one().await?;
            self.puller()?;
            return Ok(Err("killed".to_owned()));
        }
        let puller = self.puller()?;
        let words = |error: PullError| error.to_string();
        Ok(match self.case.mode {
            Mode::Once | Mode::Killed => puller.pull(self.reference, |_| {}).await.map_err(words),
            Mode::Twice => {
                let first = puller.pull(self.reference, |_| {}).await;
                let second = puller.pull(self.reference, |_| {}).await.map_err(words);
                drop(first);
                second
            }
            Mode::Together => {
                let (one, other) = tokio::join!(
                    puller.pull(self.reference, |_| {}),
                    puller.pull(self.reference, |_| {})
                );
                ensure!(one.is_ok() == other.is_ok(), "{one:?} is not {other:?}");
                one.map_err(words)
            }
            Mode::GivenUp => tokio::select! {
                pulled = puller.pull(self.reference, |_| {}) => {
                    bail!("it ended before it was given up: {pulled:?}")
                }
                arrived = self.something_in_the_store() => arrived.map(|()| Err("abandoned".to_owned()))?,
            },
        })
    }

    /// Waits until a part of a layer is unpacked.
    async fn something_in_the_store(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while leftovers()?.is_empty() {
            ensure!(started.elapsed() < self.case.time / 2, "nothing came into the store");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    /// Lets another process pull, and kills it when something is in the store.
    async fn kill_one(&self) -> anyhow::Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([VICTIM, self.case.name, self.reference])
            .args([&*self.hosts.registry, &self.hosts.other, self.certificate])
            .stdout(Stdio::null())
            .spawn()?;
        self.something_in_the_store().await?;
        child.kill()?;
        child.wait()?;
        ensure!(!leftovers()?.is_empty(), "it cleaned up after all");
        Ok(())
    }
}

fn victim(pull: &Pull<'_>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let puller = pull.puller()?;
    let pulled = runtime.block_on(puller.pull(pull.reference, |_| {}));
    bail!("it ended before it was killed: {pulled:?}")
}
