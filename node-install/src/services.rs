//! What starts and stops programs on the node.

use std::process::{Command, Stdio};

use crate::NodeError;

/// When what is installed starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// By the installation.
    Now,
    /// When the node boots, whose image is made.
    AtBoot,
    /// When the administrator, or a later installation, starts it.
    ByHand,
}

/// systemd, or who stands for it.
pub trait Services {
    /// Reads units anew.
    fn reload(&self) -> Result<(), NodeError>;
    /// Stops a unit, now and for ever.
    fn disable(&self, unit: &str) -> Result<(), NodeError>;
    /// Starts a unit, anew if it runs, and waits until it is up.
    fn restart(&self, unit: &str) -> Result<(), NodeError>;
    /// Makes the users of a file (sysusers.d(5)) that are not there, and tells whether it does such things: in an image of
    /// a node nobody does, and its first boot makes them.
    fn make_users(&self, file: &str) -> Result<bool, NodeError>;
    /// Whether it runs.
    fn is_active(&self, unit: &str) -> bool;
    /// When what is installed starts.
    fn start(&self) -> Start;
}

/// systemd, by `systemctl`.
#[derive(Debug, Clone, Copy)]
pub struct Systemd;

impl Services for Systemd {
    fn reload(&self) -> Result<(), NodeError> {
        systemctl(&["daemon-reload"])
    }

    fn disable(&self, unit: &str) -> Result<(), NodeError> {
        systemctl(&["disable", "--quiet", "--now", unit])
    }

    fn restart(&self, unit: &str) -> Result<(), NodeError> {
        systemctl(&["restart", unit])
    }

    fn make_users(&self, file: &str) -> Result<bool, NodeError> {
        make_users(file).map(|()| true)
    }

    fn is_active(&self, unit: &str) -> bool {
        systemctl(&["is-active", "--quiet", unit]).is_ok()
    }

    fn start(&self) -> Start {
        Start::Now
    }
}

fn make_users(file: &str) -> Result<(), NodeError> {
    run("systemd-sysusers", &[file])
}

fn systemctl(arguments: &[&str]) -> Result<(), NodeError> {
    run("systemctl", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), NodeError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let problem = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.is_empty() { output.status.to_string() } else { said }
        }
        Err(error) => error.to_string(),
    };
    Err(NodeError::Program { command: format!("{program} {}", arguments.join(" ")), problem })
}

/// Nobody: the administrator starts things, or the file system is an image.
#[derive(Debug, Clone, Copy)]
pub struct Unmanaged {
    /// Whether it is an image, in which nothing runs yet.
    pub at_boot: bool,
}

impl Services for Unmanaged {
    fn reload(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn disable(&self, _: &str) -> Result<(), NodeError> {
        Ok(())
    }

    fn restart(&self, _: &str) -> Result<(), NodeError> {
        Ok(())
    }

    /// On a node pods get the configurations that name them at once, whoever starts what is installed.
    fn make_users(&self, file: &str) -> Result<bool, NodeError> {
        if self.at_boot { Ok(false) } else { make_users(file).map(|()| true) }
    }

    fn is_active(&self, _: &str) -> bool {
        false
    }

    fn start(&self) -> Start {
        if self.at_boot { Start::AtBoot } else { Start::ByHand }
    }
}
