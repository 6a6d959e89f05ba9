//! A world whose Nacre comes by `nacre install`, as on a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::registry;
use crate::world::{Runtime, World};

/// containerd's configuration, inside.
pub const CONTAINERD_CONFIG: &str = "/run/world/containerd.toml";
/// Directories that an installation writes to: the world gets its own view of them.
const WRITTEN: [&str; 3] = ["/etc", "/opt", "/usr/local"];

impl World {
    /// Lets installations write in this world and nowhere else.
    pub fn may_be_installed_on(&self) -> anyhow::Result<()> {
        // Versions are large: on the disk, not in memory.
        let layers = self.logs().join("node");
        for (at, directory) in WRITTEN.iter().enumerate() {
            let (upper, work) =
                (layers.join(format!("{at}/upper")), layers.join(format!("{at}/work")));
            fs::create_dir_all(&upper)?;
            fs::create_dir_all(&work)?;
            let options = format!(
                "lowerdir={directory},upperdir={},workdir={}",
                upper.display(),
                work.display()
            );
            self.run(&["mount", "-t", "overlay", "nacre-node", "-o", &options, directory])?;
        }
        // What is there of an installation in earnest is not this world's.
        self.run(&["sh", "-c", "rm -rf /etc/nacre /opt/nacre; mkdir -p /run/world/lib"])?;
        if Path::new("/var/lib/nacre").is_dir() {
            self.run(&["mkdir", "/run/world/state"])?;
            self.run(&["mount", "--bind", "/run/world/state", "/var/lib/nacre"])?;
        } else {
            let (upper, work) = ("/run/world/lib/upper", "/run/world/lib/work");
            let options = format!("lowerdir=/var/lib,upperdir={upper},workdir={work}");
            self.run(&["mkdir", "-p", upper, work])?;
            self.run(&["mount", "-t", "overlay", "nacre-node", "-o", &options, "/var/lib"])?;
        }
        Ok(())
    }

    /// A directory that `nacre install` takes, made of what is under test; `mark` makes it another version.
    pub fn bundle(&self, mark: &str) -> anyhow::Result<PathBuf> {
        let bundle = self.logs().join(format!("bundle-{mark}"));
        let products = self.products();
        let programs =
            [products.nacre(), products.shim(), products.snapshotter(), products.node_cache()];
        let image = fs::read_dir(products.image())?.map(|entry| Ok(entry?.path()));
        let image: anyhow::Result<Vec<PathBuf>> = image.collect();
        let programs = programs.into_iter().map(|path| ("bin", path));
        for (part, path) in programs.chain(image?.into_iter().map(|path| ("share/nacre", path))) {
            let to = bundle.join(part).join(path.file_name().context("a file has a name")?);
            fs::create_dir_all(bundle.join(part))?;
            // No second copy of some hundred megabytes, where that is possible.
            if fs::hard_link(&path, &to).is_err() {
                fs::copy(&path, &to)?;
            }
        }
        fs::create_dir_all(bundle.join("share/doc"))?;
        fs::write(bundle.join("share/doc/mark"), mark)?;
        Ok(bundle)
    }

    /// `nacre` with these words: exit status, standard output, standard error.
    pub fn ask_nacre(&self, words: &[&str]) -> anyhow::Result<(i32, String, String)> {
        let mut command = self.namespaces.command(self.products().nacre());
        let output = command.args(words).stdin(Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().context("nacre was killed")?;
        Ok((code, text(&output.stdout), text(&output.stderr)))
    }

    /// Starts the program of an installed unit, as systemd would.
    pub async fn start_unit(&self, unit: &str, socket: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.path(&format!("/etc/systemd/system/{unit}")))?;
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let words: Vec<&str> = line.context("a service starts something")?.split(' ').collect();
        let program = Path::new(words[0]);
        self.start_daemon(program, &words[1..])?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let started = Instant::now();
        while tokio::net::UnixStream::connect(self.path(socket)).await.is_err() {
            self.check_started(&name, started)?;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The administrator's changes of the installed configuration, without which guests could not pull here.
    pub fn configure_node(&self) -> anyhow::Result<()> {
        let path = self.path("/etc/nacre/config.toml");
        let text = fs::read_to_string(&path)?;
        let changed = text
            .replace(
                "danger_plain_http = []",
                &format!("danger_plain_http = [{:?}]", registry::ADDRESS),
            )
            .replace("boot_timeout_seconds = 60", "boot_timeout_seconds = 120");
        ensure!(changed != text, "the installed configuration is not the shipped one");
        Ok(fs::write(path, changed)?)
    }

    /// Ends the snapshotter.
    pub fn stop_snapshotter(&self) -> anyhow::Result<()> {
        self.end_daemon("nacre-snapshott", rustix::process::Signal::TERM)
    }

    /// What runs the pods that start afterwards.
    pub fn run_pods_by(&mut self, runtime: Runtime) {
        self.runtime = runtime;
    }
}
