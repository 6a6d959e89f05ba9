//! A case: what is served, and what must come of it.

use std::fmt;
use std::time::Duration;

use nacre_image_pull::PullConfig;

use crate::registry::{Request, Served};
use crate::tree::Tree;

/// What a case attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Names and links that lead out of the root.
    Paths,
    /// Entries that hide what is below.
    Whiteouts,
    /// Devices, pipes, owners, attributes, times.
    Special,
    /// Archives and streams that two readers read differently.
    Smuggling,
    /// Little that becomes much.
    Bombs,
    /// Documents and digests that lie.
    Identity,
    /// Images that may not be used, whoever serves them.
    Policy,
    /// Registries that misbehave.
    Transport,
    /// Registries that want credentials which are not theirs.
    Credentials,
    /// Caches of the node that misbehave.
    Cache,
    /// Encrypted layers that were tampered with.
    Encryption,
    /// Pulls that fail late, are given up or killed.
    Leftovers,
}

impl Class {
    /// All, in the order they run.
    pub const ALL: [Self; 12] = [
        Self::Paths,
        Self::Whiteouts,
        Self::Special,
        Self::Smuggling,
        Self::Bombs,
        Self::Identity,
        Self::Policy,
        Self::Transport,
        Self::Credentials,
        Self::Cache,
        Self::Encryption,
        Self::Leftovers,
    ];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Paths => "paths",
            Self::Whiteouts => "whiteouts",
            Self::Special => "special",
            Self::Smuggling => "smuggling",
            Self::Bombs => "bombs",
            Self::Identity => "identity",
            Self::Policy => "policy",
            Self::Transport => "transport",
            Self::Credentials => "credentials",
            Self::Cache => "cache",
            Self::Encryption => "encryption",
            Self::Leftovers => "leftovers",
        })
    }
}

/// Looks at an unpacked image.
pub type Check = fn(&Tree) -> anyhow::Result<()>;

/// What must come of a pull.
#[derive(Clone, Copy)]
pub enum Expect {
    /// It is odd but right: the image must be there, as the check says.
    Accept(Check),
    /// It is hostile but has a harmless meaning: it unpacks, and nothing leaves the root.
    Contain(Check),
    /// It must be refused, with all of these words.
    Reject(&'static [&'static str]),
}

/// How the pull is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Once, to its end.
    Once,
    /// Two pulls of the same tag by the same puller, one after the other; the second one counts.
    Twice,
    /// Two pulls at the same time; both must end alike.
    Together,
    /// Given up by the caller when a part has come; counts as a refusal with the word "abandoned".
    GivenUp,
    /// The process is killed when a part has come, and another one opens the store; counts as a
    /// refusal with the word "killed".
    Killed,
}

/// The servers of a case, as `host:port`.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// The registry that the reference names.
    pub registry: String,
    /// Another one.
    pub other: String,
}

/// What both servers saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Requests to the registry.
    pub registry: Vec<Request>,
    /// Requests to the other server.
    pub other: Vec<Request>,
}

impl Seen {
    /// How many requests to the registry had `part` in their path.
    #[must_use]
    pub fn asked(&self, part: &str) -> usize {
        self.registry.iter().filter(|request| request.path.contains(part)).count()
    }
}

type Make = Box<dyn Fn(&Hosts) -> Served + Send + Sync>;

/// One hostile or odd image or registry.
pub struct Case {
    /// Unique, and short enough for a command line.
    pub name: &'static str,
    /// Which attack it belongs to.
    pub class: Class,
    /// What it attacks, in a sentence.
    pub attack: &'static str,
    /// What must come of it.
    pub expect: Expect,
    /// Makes what is served.
    pub make: Make,
    /// What the puller is configured with, beyond bounds that suit a test and plain HTTP to both
    /// servers.
    pub configure: fn(&mut PullConfig, &Hosts),
    /// Most memory the pulling process may have at any time, in MiB: an unoptimised one needs 12 to 16.
    pub peak_mib: u64,
    /// Options of the tmpfs that holds the store.
    pub tmpfs: &'static str,
    /// How the pull is made.
    pub mode: Mode,
    /// Longest time it may take. A guard against hanging, no measure of speed.
    pub time: Duration,
    /// Whether both servers speak TLS.
    pub tls: bool,
    /// What the servers must have seen, or not.
    pub audit: fn(&Seen) -> anyhow::Result<()>,
}

impl Case {
    /// A case with ordinary bounds.
    pub fn new<S: Into<Served>>(
        class: Class,
        name: &'static str,
        attack: &'static str,
        make: impl Fn(&Hosts) -> S + Send + Sync + 'static,
        expect: Expect,
    ) -> Self {
        Self {
            name,
            class,
            attack,
            expect,
            make: Box::new(move |hosts| make(hosts).into()),
            configure: |_, _| {},
            peak_mib: 32,
            tmpfs: "size=256m,mode=755",
            mode: Mode::Once,
            time: Duration::from_secs(40),
            tls: false,
            audit: |_| Ok(()),
        }
    }

    /// Changes the puller's configuration.
    #[must_use]
    pub fn configure(mut self, configure: fn(&mut PullConfig, &Hosts)) -> Self {
        self.configure = configure;
        self
    }

    /// Lets both servers speak TLS.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Allows more memory, in MiB.
    #[must_use]
    pub fn peak_mib(mut self, mebibytes: u64) -> Self {
        self.peak_mib = mebibytes;
        self
    }

    /// Other options for the store's tmpfs.
    #[must_use]
    pub fn tmpfs(mut self, options: &'static str) -> Self {
        self.tmpfs = options;
        self
    }

    /// Another way to pull.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Looks at what the servers saw.
    #[must_use]
    pub fn audit(mut self, audit: fn(&Seen) -> anyhow::Result<()>) -> Self {
        self.audit = audit;
        self
    }
}
