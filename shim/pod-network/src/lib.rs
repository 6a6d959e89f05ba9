//! The pod's network: from the namespace that CNI prepared to the guest's own interfaces.
//!
//! Each Ethernet interface of the namespace gets a tap beside it. A `tc` redirect moves every frame
//! that arrives at the one to the other, before the host's own stack sees it, so the addresses that
//! CNI put on the host's interface live in the guest alone. The guest gets the same MAC address,
//! name, MTU, addresses, routes and neighbours.
//!
//! It runs on the host, for the shim and for what cleans up after one. It distrusts the path it is given:
//! the host's own namespace is refused. It never adds or removes an address, a route or an interface of
//! the namespace: these stay CNI's.
//!
//! What somebody on the node asks of the pod's localhost within the namespace can be caught as well
//! ([`Network::catch_loopback`]): TCP connections to the loopback interface, where nobody else listens.
//!
//! Nothing here is persistent: a tap and what catches connections disappear with their descriptors, a redirect
//! with [`detach`] or with the namespace.

#[allow(unsafe_code)]
mod bpf;
mod collect;
mod loopback;
mod namespace;
#[allow(unsafe_code)]
mod sys;
mod tap;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use loopback::{Attachment, CatchError, Loopback};
pub use namespace::Namespace;

/// Why a pod's network could not be connected to its virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be opened or entered.
    #[error(
        "cannot enter the network namespace {path}: {cause}; it must be a network namespace made \
         for this pod, as CNI plugins do"
    )]
    Namespace {
        /// Path as the OCI spec gives it.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The spec points to the namespace the host itself uses.
    #[error(
        "the network namespace {path} is the host's own: a pod with its own kernel cannot share it; \
         run it without hostNetwork"
    )]
    HostNamespace {
        /// Path as the OCI spec gives it.
        path: PathBuf,
    },
    /// No tap could be made.
    #[error(
        "cannot make a tap device: {cause}; is /dev/net/tun present and the tun driver loaded?"
    )]
    Tap {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A netlink request was refused.
    #[error("cannot {what}: {cause}{hint}")]
    Netlink {
        /// What was asked of the kernel.
        what: String,
        /// The kernel's answer.
        cause: String,
        /// What to do about it, or nothing.
        hint: &'static str,
    },
    /// Connections to the loopback interface are not caught.
    #[error(transparent)]
    Loopback(#[from] CatchError),
    /// The namespace holds something that cannot be given to a guest.
    #[error("{0}")]
    Unsupported(String),
}

/// One of the pod's interfaces, as the guest is to have it.
#[derive(Debug)]
pub struct Interface {
    /// Name in the namespace and in the guest.
    pub name: String,
    /// Hardware address in the namespace and in the guest.
    pub mac: [u8; 6],
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Addresses with their prefix lengths; IPv6 link-local ones are left to the guest.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Index in the namespace.
    pub(crate) index: u32,
}

/// A route of the pod's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Network and prefix length; nothing for the default route.
    pub destination: Option<(IpAddr, u8)>,
    /// Next hop; nothing for a network on the link.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Interface it leads out of.
    pub device: String,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTNH_F_*`, such as "onlink".
    pub flags: u32,
    /// MTU metric in bytes; 0 for none.
    pub mtu: u32,
    /// Which of several routes to the same destination counts: the lowest. 0 for the kernel's default.
    pub metric: u32,
    /// IPv6 route.
    pub v6: bool,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Protocol address.
    pub address: IpAddr,
    /// Interface it is reached by.
    pub device: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// `NUD_*`.
    pub state: u16,
}

/// What the guest is told about the pod's network.
#[derive(Debug, Default)]
pub struct Layout {
    /// Interfaces in the order of their index.
    pub interfaces: Vec<Interface>,
    /// Routes, those without a gateway first.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// A namespace whose interfaces are connected to taps.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    /// What the guest is told.
    pub layout: Layout,
    /// Taps, one an interface, in the same order.
    pub taps: Vec<OwnedFd>,
}

impl Network {
    /// Connects every Ethernet interface that has an address. If one fails, the others are undone.
    pub async fn attach(namespace: Namespace) -> Result<Network, NetworkError> {
        let (layout, taps) = namespace.run(tap::connect_all).await?;
        Ok(Network { namespace, layout, taps })
    }

    /// Path by which another process may enter the namespace, while this value lives.
    #[must_use]
    pub fn namespace_path(&self) -> PathBuf {
        self.namespace.path()
    }

    /// Path of the namespace that outlives this process. Without one the namespace, and with it the redirects, end
    /// with who else holds it; a path by way of this process would name something else in a later one.
    #[must_use]
    pub fn lasting_path(&self) -> Option<&Path> {
        self.namespace.own_path()
    }

    /// Removes the redirects. The taps are gone as soon as their last descriptor is closed.
    pub async fn detach(&self) -> Result<(), NetworkError> {
        let names = self.interface_names();
        self.namespace.run(move || tap::disconnect(names)).await
    }

    /// Catches every TCP connection that is made to 127.0.0.1 or `::1` within the namespace.
    pub async fn catch_loopback(&self) -> Result<Loopback, NetworkError> {
        self.namespace.catch_loopback().await
    }

    /// Names of the connected interfaces.
    #[must_use]
    pub fn interface_names(&self) -> Vec<String> {
        self.layout.interfaces.iter().map(|i| i.name.clone()).collect()
    }
}

/// Removes the redirects of a shim that has died. A namespace that is gone needs nothing.
pub async fn detach(namespace: &Path, interfaces: Vec<String>) -> Result<(), NetworkError> {
    if interfaces.is_empty() || !namespace.exists() {
        return Ok(());
    }
    Namespace::open(namespace)?.run(move || tap::disconnect(interfaces)).await
}
