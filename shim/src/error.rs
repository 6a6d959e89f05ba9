//! The form of every error that reaches containerd, and from there a person.
//!
//! `nacre: <doing what> <object>: <cause>`, with the code that containerd decides by. Where a start failed,
//! the failure's own stable code is in front and what to do next at the end. It must fit a Kubernetes event,
//! which holds 1024 bytes with what containerd adds, so it is cut, visibly, where it is too long: the start
//! report has it whole. What the guest's policy says is not cut.

use std::fmt::{self, Display};

use nacre_protocol::start_report::Failure;

pub(crate) use ttrpc::Code;

/// Longest cause in bytes; with what was being done the whole stays below 2 KiB.
const MOST_CAUSE: usize = 1500;
/// The same for a failed start that is no denial: then the whole stays below 1 KiB with containerd's words.
const MOST_CAUSE_OF_A_START: usize = 600;
/// Longest description of what was being done, in bytes.
const MOST_DOING: usize = 180;

/// An error with the code that containerd is to see.
pub(crate) trait Coded: std::error::Error {
    fn code(&self) -> Code;

    /// Which failure of a start it is, where it alone can tell.
    fn failure(&self) -> Option<Failure> {
        None
    }
}

/// What containerd is answered.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) struct TaskError {
    pub(crate) code: Code,
    /// Which failure of a start it is, where that is known.
    pub(crate) failure: Option<Failure>,
    /// Whether it is in the start report.
    pub(crate) is_reported: bool,
    doing: String,
    cause: String,
}

impl TaskError {
    pub(crate) fn new(code: Code, doing: impl Display, cause: impl Display) -> TaskError {
        TaskError {
            code,
            failure: None,
            is_reported: false,
            doing: printable(&doing.to_string(), MOST_CAUSE),
            cause: printable(&cause.to_string(), MOST_CAUSE),
        }
    }

    /// The same error as that failure, unless it is known to be another.
    pub(crate) fn or_failure(mut self, failure: Option<Failure>) -> TaskError {
        self.failure = self.failure.or(failure);
        self
    }

    /// What was being done, and the cause, neither cut for an event.
    pub(crate) fn whole(&self) -> String {
        format!("{}: {}", self.doing, self.cause)
    }
}

impl Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskError { doing, cause, .. } = self;
        match self.failure.filter(|_| self.is_reported) {
            None => write!(f, "nacre: {doing}: {cause}"),
            // It says itself which field is to be what, and is as long as an event can be.
            Some(code @ Failure::Denied) => {
                write!(f, "nacre: {code}: {}: {cause}", printable(doing, MOST_DOING))
            }
            Some(code) => {
                let doing = printable(doing, MOST_DOING);
                let cause = printable(cause, MOST_CAUSE_OF_A_START);
                write!(f, "nacre: {code}: {doing}: {cause}; next: {}", code.next_step())
            }
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
        self.map_err(|error| TaskError::new(error.code(), what, &error).or_failure(error.failure()))
    }
}

impl Coded for nacre_pod_network::NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::HostNamespace { .. } | Self::Unsupported(_) => Code::INVALID_ARGUMENT,
            Self::Namespace { .. }
            | Self::Tap { .. }
            | Self::Netlink { .. }
            | Self::Loopback(_) => Code::FAILED_PRECONDITION,
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Network)
    }
}

impl Coded for nacre_run_directory::RecordError {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) => Code::INVALID_ARGUMENT,
            Self::InUse { .. } => Code::ALREADY_EXISTS,
            Self::Busy { .. } | Self::Remains { .. } | Self::Io { .. } => Code::UNAVAILABLE,
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(match self {
            Self::Id(_) => Failure::Request,
            Self::InUse { .. } | Self::Busy { .. } | Self::Remains { .. } => Failure::Leftover,
            Self::Io { .. } => Failure::Storage,
        })
    }
}

impl Coded for nacre_configuration::GuestError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }

    fn failure(&self) -> Option<Failure> {
        Some(match self {
            Self::Open(_) => Failure::GuestImage,
            Self::CommandLine { .. } => Failure::Configuration,
        })
    }
}

impl Coded for nacre_configuration::SignedLaunchError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Configuration)
    }
}

impl Coded for nacre_hypervisor::QemuError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Monitor)
    }
}

impl Coded for nacre_hypervisor::LaunchError {
    fn code(&self) -> Code {
        match self {
            Self::Config { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported { .. } | Self::User(_) => Code::FAILED_PRECONDITION,
            Self::Host { .. } | Self::Ended { .. } | Self::Control(_) => Code::UNAVAILABLE,
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(match self {
            Self::Config { .. } | Self::Control(_) => Failure::Machine,
            Self::Unsupported { .. } | Self::User(_) => Failure::HostLacks,
            Self::Host { .. } => Failure::HostRefused,
            Self::Ended { .. } => Failure::MonitorEnded,
        })
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
    fn a_failed_start_has_its_code_and_the_next_step_in_the_room_of_an_event() {
        let doing = format!("create container {} from image {}", "c".repeat(64), "i".repeat(1024));
        let error = TaskError::new(Code::INTERNAL, doing, "x".repeat(3000));
        let mut error = error.or_failure(Some(Failure::TooLarge)).or_failure(Some(Failure::Pull));
        assert!(!error.to_string().contains("NACRE"), "nobody has reported it");
        error.is_reported = true;
        let text = error.to_string();
        assert!(text.starts_with("nacre: NACRE-2108: create container c"), "{text}");
        assert!(text.ends_with(Failure::TooLarge.next_step()), "{text}");
        assert!(text.len() < 950, "{}", text.len());
        assert!(error.whole().len() > 2500, "the report has all of it");
        let denial = "d".repeat(1024);
        let mut error = TaskError::new(Code::PERMISSION_DENIED, "create container a", &denial);
        (error.failure, error.is_reported) = (Some(Failure::Denied), true);
        let expected = format!("nacre: NACRE-1701: create container a: {denial}");
        assert_eq!(error.to_string(), expected);
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
