//! The phases of a start.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Who measures a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measurer {
    Host,
    Guest,
}

macro_rules! phases {
    ($($variant:ident = $number:literal, $name:literal, $measurer:ident, $within:expr, $about:literal;)*) => {
        /// A phase of a pod's start, or of a container's. Some are parts of others ([`Phase::within`]).
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(rename_all = "kebab-case")]
        pub enum Phase {
            $(#[doc = $about] $variant,)*
        }

        impl Phase {
            /// All, in the order of their numbers.
            pub const ALL: &[Phase] = &[$(Phase::$variant),*];

            /// The first two digits of its code and of the codes of its failures.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Phase::$variant => $number,)* }
            }

            /// Its name in logs, files, metrics and spans.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Phase::$variant => $name,)* }
            }

            /// What happens in it.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Phase::$variant => $about,)* }
            }

            /// The phase that it is a part of: their times are not to be added.
            #[must_use]
            pub const fn within(self) -> Option<Phase> {
                match self { $(Phase::$variant => $within,)* }
            }

            const fn measurer(self) -> Measurer {
                match self { $(Phase::$variant => Measurer::$measurer,)* }
            }
        }
    };
}

phases! {
    Request = 10, "request", Host, None, "what the pod and the node's configuration ask for is read and checked";
    Network = 11, "network", Host, None, "the pod's interfaces are tied to the machine's";
    Vmm = 12, "vmm", Host, None, "the virtual machine monitor makes the machine";
    Firmware = 13, "firmware", Host, Some(Phase::Boot), "the machine runs, but not yet the guest's kernel";
    Kernel = 14, "kernel", Guest, Some(Phase::Boot), "the guest's kernel starts";
    Agent = 15, "agent", Guest, Some(Phase::Boot), "the guest's agent prepares the guest and begins to serve";
    Attestation = 16, "attestation", Guest, Some(Phase::Agent), "the guest finds what vouches for it and what it is bound to";
    Policy = 17, "policy", Guest, Some(Phase::Agent), "the guest reads the policy that it is bound to";
    Sandbox = 18, "sandbox", Host, None, "the pod is set up in the guest";
    GuestNetwork = 19, "guest-network", Host, None, "addresses and routes are set in the guest";
    Copy = 20, "copy", Host, None, "files of volumes are copied into the guest";
    Pull = 21, "pull", Guest, Some(Phase::Create), "the guest pulls, verifies and unpacks an image";
    Create = 22, "create", Host, None, "a container is made in the guest";
    Start = 23, "start", Host, None, "a container's program is started";
    Boot = 24, "boot", Host, None, "from the running machine to the agent's first answer";
    Measure = 25, "measure", Host, None, "the emulated secure processor measures what is booted";
    Unseal = 26, "unseal", Guest, Some(Phase::Create), "the guest opens the secrets of a container";
}

impl Phase {
    /// Its code, such as `NACRE-1200`.
    #[must_use]
    pub fn code(self) -> String {
        format!("{}{}", super::failure::PREFIX, self.number() * 100)
    }

    /// Whether only the guest can tell how long it took and why it failed.
    #[must_use]
    pub fn is_the_guests(self) -> bool {
        self.measurer() == Measurer::Guest
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no phase of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no phase of that name")]
pub struct UnknownPhase;

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Phase, UnknownPhase> {
        Phase::ALL.iter().copied().find(|phase| phase.name() == name).ok_or(UnknownPhase)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_numbers_are_each_phases_own_and_the_same_everywhere() {
        let numbers: BTreeSet<_> = Phase::ALL.iter().map(|phase| phase.number()).collect();
        assert_eq!(numbers.len(), Phase::ALL.len());
        for phase in Phase::ALL.iter().copied() {
            assert_eq!(phase.name().parse(), Ok(phase));
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("{:?}", phase.name()));
        }
        assert_eq!(Phase::Vmm.code(), "NACRE-1200");
        assert_eq!("none".parse::<Phase>(), Err(UnknownPhase));
    }
}
