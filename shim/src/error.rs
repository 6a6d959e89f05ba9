//! The form of every error that reaches containerd, and from there a person.
//!
//! `nacre: <doing what> <object>: <cause>`, with the code that containerd decides by. It must fit a
//! Kubernetes event, so it is cut, visibly, where it is too long.

use std::fmt::Display;

pub(crate) use ttrpc::Code;

/// Longest cause in bytes; with what was being done the whole stays below 2 KiB.
const MOST_CAUSE: usize = 1500;

/// An error with the code that containerd is to see.
pub(crate) trait Coded: std::error::Error {
    fn code(&self) -> Code;
}

/// What containerd is answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("nacre: {doing}: {cause}")]
pub(crate) struct TaskError {
    pub(crate) code: Code,
    doing: String,
    cause: String,
}

impl TaskError {
    pub(crate) fn new(code: Code, doing: impl Display, cause: impl Display) -> TaskError {
        TaskError {
            code,
            doing: doing.to_string(),
            cause: printable(&cause.to_string(), MOST_CAUSE),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.to_string()))
    }
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Display) -> Result<T, TaskError>;
}

impl<T, E: Coded> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, TaskError> {
        self.map_err(|error| TaskError::new(error.code(), what, &error))
    }
}

impl Coded for nacre_pod_network::NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::HostNamespace { .. } | Self::Unsupported(_) => Code::INVALID_ARGUMENT,
            Self::Namespace { .. } | Self::Tap { .. } | Self::Netlink { .. } => {
                Code::FAILED_PRECONDITION
            }
        }
    }
}

impl Coded for nacre_run_directory::RecordError {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) => Code::INVALID_ARGUMENT,
            Self::InUse { .. } => Code::ALREADY_EXISTS,
            Self::Io { .. } => Code::UNAVAILABLE,
        }
    }
}

impl Coded for nacre_configuration::GuestError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }
}

impl Coded for nacre_configuration::SignedLaunchError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }
}

impl Coded for nacre_hypervisor::QemuError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }
}

impl Coded for nacre_hypervisor::LaunchError {
    fn code(&self) -> Code {
        match self {
            Self::Config { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported { .. } => Code::FAILED_PRECONDITION,
            Self::Host { .. } | Self::Ended { .. } | Self::Control(_) => Code::UNAVAILABLE,
        }
    }
}

/// Text from elsewhere (the guest, a file) without control characters and of bounded length.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let clean = text.trim().chars().map(|c| match c {
        '\n' => ' ',
        c if c.is_control() => '?',
        c => c,
    });
    let mut cut = String::new();
    for c in clean {
        if cut.len() + c.len_utf8() > most {
            cut.push_str("...");
            break;
        }
        cut.push(c);
    }
    cut
}

/// The end of a text, at most `most` bytes, cut at a character.
pub(crate) fn tail(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_of_the_longest_kind_reaches_containerd_whole() {
        let denial = "d".repeat(1024);
        let error = TaskError::new(Code::PERMISSION_DENIED, "create container a", &denial);
        assert_eq!(error.to_string(), format!("nacre: create container a: {denial}"));
    }

    #[test]
    fn what_the_guest_says_is_cut_and_cleaned() {
        let error = TaskError::new(Code::INTERNAL, "create container a", "x\x1b[1m\ny".repeat(900));
        let text = error.to_string();
        assert!(text.starts_with("nacre: create container a: x?[1m y"));
        assert!(text.ends_with("...") && text.len() < 1600);
        assert_eq!(tail("äöü", 3), "ü");
        assert_eq!(printable("äöü", 3), "ä...");
    }
}
