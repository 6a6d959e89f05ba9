//! What can go wrong in each phase, and what to do then.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Phase;

/// Before the number of a code.
pub(super) const PREFIX: &str = "NACRE-";

macro_rules! failures {
    ($($variant:ident = $number:literal, $about:literal, $next:literal;)*) => {
        /// Why a start failed. The first two digits of its code are its phase's.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(try_from = "String", into = "String")]
        pub enum Failure {
            $(#[doc = $about] $variant,)*
        }

        impl Failure {
            /// All, in the order of their codes.
            pub const ALL: &[Failure] = &[$(Failure::$variant),*];

            /// The number in its code.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Failure::$variant => $number,)* }
            }

            /// What it means.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Failure::$variant => $about,)* }
            }

            /// What to do next. POD stands for the pod's name or its sandbox's id.
            #[must_use]
            pub const fn next_step(self) -> &'static str {
                match self { $(Failure::$variant => $next,)* }
            }
        }
    };
}

failures! {
    Request = 1001, "what is asked for cannot be done", "change what the error names";
    Configuration = 1002, "the node's configuration cannot be used", "correct the key it names in the handler's configuration, by default /etc/nacre/config.toml";
    Unsupported = 1003, "the pod asks for something that a guest does not have", "leave out the field it names, or give the pod another RuntimeClass";
    Size = 1004, "the machine that the pod asks for cannot be made on this node", "correct the annotation or the limit it names, or raise vm.max_* in the node's configuration";
    GuestImage = 1005, "the guest image cannot be used", "install the guest image at vm.image; `nacre check` looks at it";
    Initdata = 1006, "the pod's initdata cannot be used", "make the annotation anew with `nacre initdata create` or `nacre policy generate`";
    Monitor = 1007, "QEMU is absent, too old or does not run", "install QEMU 9.1 or newer at vm.qemu; `nacre check` looks at it";
    Storage = 1008, "the node has no room for the sandbox", "make room where it says, or ask for a smaller scratch disk";
    Leftover = 1009, "the sandbox's place on the node is taken", "look at what is left with `nacre gc --dry-run`, then remove it with `nacre gc`";
    Image = 1010, "the image's name does not reach the guest, or cannot be pulled by it", "name the image as REGISTRY/NAME:TAG or by digest, not by an id of the node's store";
    Network = 1101, "the pod's network cannot be tied to the machine", "look at the pod's network plugin (CNI): it makes what the machine is tied to";
    Machine = 1201, "the machine was not made", "look at `nacre logs POD --vmm` and `nacre check`";
    HostLacks = 1202, "this node cannot run such guests", "`nacre check` says what the node lacks; give the pod a RuntimeClass that it has";
    MonitorEnded = 1203, "QEMU ended while it made the machine", "QEMU's words say why; `nacre check` looks at what it needs";
    HostRefused = 1204, "the node refused something that the machine needs", "free on the node what it names, memory above all, or give the pod less";
    ShimGone = 1205, "the pod's shim was killed or has crashed", "containerd's log and the node's may say by whom: look for its process, and for memory running out";
    Silent = 1301, "neither firmware nor kernel said anything in time", "if the node is slow, raise vm.boot_timeout_seconds; else run `nacre check`";
    KernelPanic = 1401, "the guest's kernel panicked, or reset the machine", "look at `nacre logs POD --console`; check the image with `nacre image verify`";
    KernelStuck = 1402, "the kernel started, but the agent did not answer in time", "if the node is slow, raise vm.boot_timeout_seconds; else look at `nacre logs POD --console`";
    AgentRefused = 1501, "the guest's agent ended the guest", "its last words on the console say why: `nacre logs POD --console`";
    AgentSilent = 1502, "the guest's agent does not answer", "look at `nacre logs POD`; if the node is slow, give the pod more processors";
    MachineGone = 1503, "the virtual machine is gone", "the reason says who ended it; look at `nacre logs POD` and at the node's memory";
    AgentBroken = 1504, "the guest's agent broke the protocol", "check that node and guest image are of the same release: `nacre image verify`";
    NoTee = 1601, "the guest does not find the hardware that is to vouch for it", "run `nacre check`; look at vm.tee of the pod's RuntimeClass";
    OtherInitdata = 1602, "the hardware vouches for other initdata than the guest was given", "the node changed it on its way: look at what it runs before giving the pod anything";
    Broker = 1603, "the guest got no answer from its key broker", "look whether the pod reaches the broker that its initdata names";
    Attestation = 1604, "the guest could not be attested", "the broker's owner asks for the reason: `nacre kbs explain`";
    Denied = 1701, "the pod's policy does not allow the request", "the pod's owner compares policy and pod: `nacre policy diff`, or generates it anew";
    NoPolicy = 1702, "the pod has no policy: its guest does nothing", "give the pod one: `nacre policy generate --output yaml POD.yaml`";
    BadPolicy = 1703, "the pod's policy cannot be used", "the pod's owner checks it: `nacre policy lint`";
    Sandbox = 1801, "the pod could not be set up in the guest", "look at `nacre logs POD`";
    GuestNetwork = 1901, "the network could not be set up in the guest", "look at the addresses and routes of the pod's network plugin (CNI), and at `nacre logs POD`";
    Copy = 2001, "a volume's files could not be copied into the guest", "change the volume that it names; docs/volumes.md has what can be copied";
    Pull = 2101, "the guest could not pull an image", "the error says which part failed; the guest asks the registry itself, from the pod's network";
    Registry = 2102, "the registry cannot be reached from the pod", "look at the pod's network, DNS and proxy: the guest asks the registry itself";
    NoImage = 2103, "the registry has no such image", "correct the image's name, tag or digest in the pod";
    Login = 2104, "the registry wants credentials, or better ones", "give the guest the registry's credentials (docs/images.md); those of the node do not reach it";
    Tampered = 2105, "content is not what its digest names", "push the image again; if it comes back, somebody changes it on its way";
    ImagePolicy = 2106, "the image policy does not admit the image", "sign the image (`nacre image sign`), or correct the image policy of the initdata";
    Decryption = 2107, "a layer cannot be decrypted", "give the guest the layer's key at its key broker: `nacre kbs secret`";
    TooLarge = 2108, "the image does not fit into the pod", "raise io.nacre.vm.images_mib or io.nacre.vm.scratch_disk_mib (docs/sizing.md)";
    Create = 2201, "the container could not be made in the guest", "change what the error names in the pod; else look at `nacre logs POD`";
    Start = 2301, "the container's program could not be started", "correct command and arguments in the pod";
    Measure = 2501, "the emulated secure processor could not be started", "look at emulated.directory on the node; it is for development only";
    Unseal = 2601, "a secret of the container could not be opened", "the broker's owner asks for the reason (`nacre kbs explain`); look at the sealed secret (`nacre seal`)";
}

impl Failure {
    /// The phase that failed.
    #[must_use]
    pub fn phase(self) -> Phase {
        let number = self.number() / 100;
        let phase = Phase::ALL.iter().copied().find(|phase| phase.number() == number);
        phase.expect("each failure's number begins with a phase's, as a test shows")
    }

    /// What is said of a phase's failure where nothing more is known.
    #[must_use]
    pub fn of(phase: Phase) -> Failure {
        match phase {
            Phase::Request => Failure::Request,
            Phase::Network => Failure::Network,
            Phase::Vmm => Failure::Machine,
            Phase::Firmware => Failure::Silent,
            Phase::Kernel => Failure::KernelStuck,
            Phase::Agent | Phase::Boot => Failure::AgentSilent,
            Phase::Attestation => Failure::Attestation,
            Phase::Policy => Failure::BadPolicy,
            Phase::Sandbox => Failure::Sandbox,
            Phase::GuestNetwork => Failure::GuestNetwork,
            Phase::Copy => Failure::Copy,
            Phase::Pull => Failure::Pull,
            Phase::Create => Failure::Create,
            Phase::Start => Failure::Start,
            Phase::Measure => Failure::Measure,
            Phase::Unseal => Failure::Unseal,
        }
    }

    /// An error's text with this failure's code in front, as a guest sends it.
    #[must_use]
    pub fn mark(self, text: &str) -> String {
        format!("{self}: {text}")
    }

    /// Takes the code off a guest's error. One that a guest cannot know of stays where it is.
    #[must_use]
    pub fn marked(text: &str) -> Option<(Failure, &str)> {
        let (code, rest) = text.split_once(": ")?;
        let failure: Failure = code.parse().ok()?;
        failure.phase().is_the_guests().then_some((failure, rest))
    }

    /// The last failure that a guest's console names.
    #[must_use]
    pub fn on_console(console: &str) -> Option<Failure> {
        let words = console.split_whitespace().rev();
        let mut codes = words.filter_map(|word| word.strip_suffix(':')?.parse::<Failure>().ok());
        codes.find(|failure| failure.phase().is_the_guests())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{PREFIX}{}", self.number()))
    }
}

/// There is no such failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such code")]
pub struct UnknownFailure;

impl FromStr for Failure {
    type Err = UnknownFailure;

    fn from_str(code: &str) -> Result<Failure, UnknownFailure> {
        let number = code.strip_prefix(PREFIX).filter(|digits| digits.len() == 4);
        let number: u16 = number.and_then(|digits| digits.parse().ok()).ok_or(UnknownFailure)?;
        let found = Failure::ALL.iter().copied().find(|failure| failure.number() == number);
        found.ok_or(UnknownFailure)
    }
}

impl TryFrom<String> for Failure {
    type Error = UnknownFailure;

    fn try_from(code: String) -> Result<Failure, UnknownFailure> {
        code.parse()
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        failure.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ordered_and_of_a_phase() {
        assert!(Failure::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for failure in Failure::ALL.iter().copied() {
            assert_eq!(failure.phase().number(), failure.number() / 100);
            assert_eq!(failure.to_string().parse(), Ok(failure));
            assert!(failure.next_step().len() <= 110, "{failure}: an event has little room");
        }
        for phase in Phase::ALL.iter().copied().filter(|phase| *phase != Phase::Boot) {
            assert_eq!(Failure::of(phase).phase(), phase);
        }
    }

    #[test]
    fn a_guest_names_only_failures_of_its_own() {
        let marked = Failure::Registry.mark("registry a: refused");
        assert_eq!(marked, "NACRE-2102: registry a: refused");
        assert_eq!(Failure::marked(&marked), Some((Failure::Registry, "registry a: refused")));
        for other in ["NACRE-1202: the host", "NACRE-9999: x", "NACRE-+210: x", "2102: x", "x", ""]
        {
            assert_eq!(Failure::marked(other), None, "{other}");
        }
        let console = "nacre-agent: NACRE-1601: no TEE\nNACRE-1602: x\nNACRE-1203: the host\nend";
        assert_eq!(Failure::on_console(console), Some(Failure::OtherInitdata));
        assert_eq!(Failure::on_console("NACRE-1602 NACRE-2: "), None);
    }

    #[test]
    fn the_documentation_has_every_code() {
        let page = include_str!("../../../docs/observability.md");
        for phase in Phase::ALL {
            let row = format!("| {} | `{}` | {} |", phase.code(), phase, phase.about());
            assert!(page.contains(&row), "docs/observability.md lacks:\n{row}");
        }
        for failure in Failure::ALL {
            let (about, next) = (failure.about(), failure.next_step());
            let row = format!("| {failure} | {about} | {next} |");
            assert!(page.contains(&row), "docs/observability.md lacks:\n{row}");
        }
    }
}
