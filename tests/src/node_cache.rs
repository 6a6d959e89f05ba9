//! The node's cache in a world, and how much the registry had to serve.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::world::World;

const SOCKET: &str = "/run/world/cache/cache.sock";
const STORE: &str = "/run/world/cache/store";
const CONFIG: &str = "/run/world/cache.toml";

impl World {
    /// Starts `nacre-cache`; pods that start afterwards have it.
    pub fn start_node_cache(&self) -> anyhow::Result<()> {
        let text = format!(
            "socket = {SOCKET:?}\ndirectory = {STORE:?}\nmax_bytes = 1073741824\n\
             containerd_content = []\n"
        );
        fs::write(self.path(CONFIG), text)?;
        self.configure_shim(|text| format!("{text}\n[cache]\nsocket = {SOCKET:?}\n"))?;
        let program = self.products().node_cache();
        self.start_daemon(&program, &["--config", CONFIG])?;
        let started = Instant::now();
        while !self.path(SOCKET).exists() {
            self.check_started("nacre-cache", started)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it.
    pub fn stop_node_cache(&self) -> anyhow::Result<()> {
        self.end_daemon("nacre-cache", Signal::TERM)
    }

    /// Changes a byte of every blob that the cache has of its own; returns how many those are.
    pub fn danger_corrupt_node_cache(&self) -> anyhow::Result<usize> {
        let mut changed = 0;
        let mut directories = vec![self.path(STORE)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.metadata()?.len() > 0 {
                    let mut bytes = fs::read(&path)?;
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, bytes)?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }
}
