//! `nacre exec-vm` in a world.

use std::process::Stdio;

use anyhow::Context as _;

use crate::ctr::Output;
use crate::world::World;

impl World {
    /// Runs a command in a pod's guest, beside its containers, without input and without a terminal.
    pub fn exec_vm(&self, pod: &str, command: &[&str]) -> anyhow::Result<Output> {
        let output = self
            .namespaces
            .command("timeout")
            .arg("180")
            .arg(self.products().nacre())
            .args(["exec-vm", pod, "--"])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .context("failed to run nacre exec-vm")?;
        let code = output.status.code().unwrap_or(-1);
        Ok(Output { stdout: output.stdout, stderr: output.stderr, code })
    }
}
