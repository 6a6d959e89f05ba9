//! What the host says of the network, checked before use.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nacre_protocol::agent::NetworkStats;
use nacre_protocol::types::{ARPNeighbor, IPFamily, Interface, Route};

use crate::error::RpcError;

/// Bounds on the lists of one request: a pod has a handful of each.
const MOST_ADDRESSES: usize = 64;
const MOST_ROUTES: usize = 256;
const MOST_NEIGHBOURS: usize = 256;
/// Longest interface name, without the closing NUL (linux/if.h, `IFNAMSIZ`).
const LONGEST_NAME: usize = 15;
/// Smallest MTU of IPv4 (RFC 791) and largest of a virtio device.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65535;
/// `RTNH_F_ONLINK` (linux/rtnetlink.h).
const ON_LINK: u32 = 4;
/// `NUD_PERMANENT` (linux/neighbour.h): what an entry without a state gets.
const NUD_PERMANENT: u16 = 0x80;
const LARGEST_RESOLV_CONF: usize = 16 * 1024;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// An interface as it shall be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InterfaceWanted {
    pub(super) mac: Mac,
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    /// Address and prefix length.
    pub(super) addresses: Vec<(IpAddr, u8)>,
}

/// A route as it shall be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RouteWanted {
    pub(super) destination: IpAddr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) device: String,
    pub(super) scope: u8,
    pub(super) on_link: bool,
    /// Largest packet on the way, in bytes.
    pub(super) mtu: Option<u32>,
    /// Of several routes to one destination the lowest counts.
    pub(super) metric: Option<u32>,
}

/// A neighbour as it shall be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeighbourWanted {
    pub(super) address: IpAddr,
    pub(super) device: String,
    pub(super) mac: Mac,
    /// `NUD_*` (linux/neighbour.h).
    pub(super) state: u16,
    /// `NTF_*` (linux/neighbour.h).
    pub(super) flags: u8,
}

impl fmt::Display for RouteWanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", self.device)
    }
}

pub(super) fn interface(wanted: &Interface) -> Result<InterfaceWanted, RpcError> {
    let name = if wanted.name.is_empty() { &wanted.device } else { &wanted.name };
    let mtu = match wanted.mtu {
        0 => None,
        mtu if MTU_RANGE.contains(&mtu) => u32::try_from(mtu).ok(),
        mtu => {
            let why = format!("{mtu} is not within {} to {}", MTU_RANGE.start(), MTU_RANGE.end());
            return Err(RpcError::invalid("interface.mtu", why));
        }
    };
    bound("interface.IPAddresses", wanted.IPAddresses.len(), MOST_ADDRESSES)?;
    let mut addresses = Vec::with_capacity(wanted.IPAddresses.len());
    for given in &wanted.IPAddresses {
        let field = "interface.IPAddresses.address";
        let address = address(field, &given.address)?;
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            return Err(RpcError::invalid(field, format!("{address} cannot be a pod's address")));
        }
        addresses.push((address, prefix("interface.IPAddresses.mask", address, &given.mask)?));
    }
    Ok(InterfaceWanted {
        mac: mac("interface.hwAddr", &wanted.hwAddr)?,
        name: device("interface.name", name)?,
        mtu,
        addresses,
    })
}

pub(super) fn routes(wanted: &[Route]) -> Result<Vec<RouteWanted>, RpcError> {
    bound("routes.Routes", wanted.len(), MOST_ROUTES)?;
    wanted.iter().map(route).collect()
}

fn route(wanted: &Route) -> Result<RouteWanted, RpcError> {
    let optional = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => address(field, text).map(Some),
    };
    let gateway = optional("routes.Routes.gateway", &wanted.gateway)?;
    let is_v6 = gateway.is_some_and(|gateway| gateway.is_ipv6())
        || wanted.family.enum_value() == Ok(IPFamily::v6);
    let (destination, prefix) = destination(&wanted.dest, is_v6)?;
    let source = optional("routes.Routes.source", &wanted.source)?;
    for (field, other) in [("gateway", gateway), ("source", source)] {
        if other.is_some_and(|other| other.is_ipv6() != destination.is_ipv6()) {
            let field = format!("routes.Routes.{field}");
            return Err(RpcError::invalid(field, "is of another family than dest"));
        }
    }
    Ok(RouteWanted {
        destination,
        prefix,
        gateway,
        source,
        device: device("routes.Routes.device", &wanted.device)?,
        scope: u8::try_from(wanted.scope).map_err(|_| {
            RpcError::invalid("routes.Routes.scope", format!("{} is over 255", wanted.scope))
        })?,
        on_link: wanted.flags & ON_LINK != 0,
        mtu: match u64::from(wanted.mtu) {
            0 => None,
            mtu if MTU_RANGE.contains(&mtu) => Some(wanted.mtu),
            mtu => {
                let why =
                    format!("{mtu} is not within {} to {}", MTU_RANGE.start(), MTU_RANGE.end());
                return Err(RpcError::invalid("routes.Routes.mtu", why));
            }
        },
        metric: Some(wanted.metric).filter(|metric| *metric != 0),
    })
}

fn destination(text: &str, is_v6: bool) -> Result<(IpAddr, u8), RpcError> {
    let field = "routes.Routes.dest";
    if text.is_empty() || text == "default" {
        let any: IpAddr =
            if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        return Ok((any, 0));
    }
    let (ip, mask) = text.split_once('/').unwrap_or((text, ""));
    let ip = address(field, ip)?;
    let longest = if ip.is_ipv6() { "128" } else { "32" };
    Ok((ip, prefix(field, ip, if mask.is_empty() { longest } else { mask })?))
}

pub(super) fn neighbours(wanted: &[ARPNeighbor]) -> Result<Vec<NeighbourWanted>, RpcError> {
    bound("neighbors.ARPNeighbors", wanted.len(), MOST_NEIGHBOURS)?;
    wanted.iter().map(neighbour).collect()
}

fn neighbour(wanted: &ARPNeighbor) -> Result<NeighbourWanted, RpcError> {
    let number = |field: &str, value: i32| {
        u16::try_from(value)
            .map_err(|_| RpcError::invalid(field, format!("{value} is no flag set")))
    };
    let state = match number("neighbors.ARPNeighbors.state", wanted.state)? {
        0 => NUD_PERMANENT,
        state => state,
    };
    let flags_field = "neighbors.ARPNeighbors.flags";
    let flags = number(flags_field, wanted.flags)?;
    Ok(NeighbourWanted {
        address: address(
            "neighbors.ARPNeighbors.toIPAddress.address",
            &wanted.toIPAddress.address,
        )?,
        device: device("neighbors.ARPNeighbors.device", &wanted.device)?,
        mac: mac("neighbors.ARPNeighbors.lladdr", &wanted.lladdr)?,
        state,
        flags: u8::try_from(flags)
            .map_err(|_| RpcError::invalid(flags_field, format!("{flags} is over 255")))?,
    })
}

/// One line of `/proc/net/dev` (proc(5)); its two heading lines have no counters.
pub(super) fn device_counters(line: &str) -> Option<NetworkStats> {
    let (name, counters) = line.split_once(':')?;
    let numbers: Vec<u64> =
        counters.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    let &[
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers.as_slice()
    else {
        return None;
    };
    Some(NetworkStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..Default::default()
    })
}

/// Lines of resolv.conf(5): the directives that a pod can need, and comments.
pub(super) fn resolv_conf(lines: &[String]) -> Result<String, RpcError> {
    const DIRECTIVES: [&str; 5] = ["nameserver", "search", "domain", "options", "sortlist"];
    let mut text = String::new();
    for line in lines {
        let word = line.split_ascii_whitespace().next().unwrap_or("#");
        let is_known = DIRECTIVES.contains(&word) || word.starts_with(['#', ';']);
        if !is_known || line.chars().any(|c| c.is_control() && c != '\t') {
            let why = format!("{line:?} is not a line of resolv.conf");
            return Err(RpcError::invalid("dns", why));
        }
        text.push_str(line);
        text.push('\n');
    }
    bound("dns", text.len(), LARGEST_RESOLV_CONF)?;
    Ok(text)
}

pub(super) fn format_mac(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn mac(field: &str, text: &str) -> Result<Mac, RpcError> {
    let wrong = || {
        RpcError::invalid(
            field,
            format!("{text:?} is not a unicast address such as 02:42:0a:58:00:02"),
        )
    };
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok()).flatten())
        .collect();
    let mac: Mac = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
    // The lowest bit of the first byte marks a group address (IEEE 802).
    if mac == [0; 6] || mac[0] & 1 == 1 { Err(wrong()) } else { Ok(mac) }
}

fn device(field: &str, name: &str) -> Result<String, RpcError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let is_named = !matches!(name, "" | "." | ".." | "lo");
    if is_named && name.len() <= LONGEST_NAME && name.chars().all(is_plain) {
        return Ok(name.to_owned());
    }
    let why = format!(
        "{name:?} is not the name of a pod's interface (up to {LONGEST_NAME} characters, not lo)"
    );
    Err(RpcError::invalid(field, why))
}

fn address(field: &str, text: &str) -> Result<IpAddr, RpcError> {
    text.parse().map_err(|_| RpcError::invalid(field, format!("{text:?} is not an IP address")))
}

fn prefix(field: &str, address: IpAddr, text: &str) -> Result<u8, RpcError> {
    let longest = if address.is_ipv6() { 128 } else { 32 };
    text.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(|| {
        RpcError::invalid(field, format!("{text:?} is not a prefix length from 0 to {longest}"))
    })
}

fn bound(field: &str, length: usize, most: usize) -> Result<(), RpcError> {
    if length <= most {
        return Ok(());
    }
    Err(RpcError::invalid(field, format!("{length} is more than the {most} that this agent takes")))
}

#[cfg(test)]
mod tests {
    use nacre_protocol::types::IPAddress;

    use super::*;

    fn eth0() -> Interface {
        Interface {
            device: "eth0".into(),
            name: "eth0".into(),
            hwAddr: "02:42:0a:58:00:02".into(),
            mtu: 1500,
            IPAddresses: vec![
                IPAddress { address: "10.88.0.2".into(), mask: "16".into(), ..Default::default() },
                IPAddress { address: "fd00::2".into(), mask: "64".into(), ..Default::default() },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn an_ordinary_interface_is_read() {
        let wanted = interface(&eth0()).unwrap();
        assert_eq!(wanted.mac, [2, 0x42, 0x0a, 0x58, 0, 2]);
        assert_eq!(wanted.mtu, Some(1500));
        assert_eq!(wanted.addresses.len(), 2);
        assert_eq!(format_mac(&wanted.mac), "02:42:0a:58:00:02");
    }

    #[test]
    fn impossible_interfaces_are_refused_by_field() {
        type Change = fn(&mut Interface);
        let cases: [(&str, Change); 9] = [
            ("interface.name", |i| i.name = "lo".into()),
            ("interface.name", |i| i.name = "../../etc".into()),
            ("interface.name", |i| i.name = "sixteen-letters-".into()),
            ("interface.hwAddr", |i| i.hwAddr = "00:00:00:00:00:00".into()),
            ("interface.hwAddr", |i| i.hwAddr = "ff:ff:ff:ff:ff:ff".into()),
            ("interface.mtu", |i| i.mtu = 1 << 40),
            ("interface.IPAddresses.address", |i| i.IPAddresses[0].address = "127.0.0.1".into()),
            ("interface.IPAddresses.mask", |i| i.IPAddresses[0].mask = "33".into()),
            ("interface.IPAddresses", |i| i.IPAddresses = vec![IPAddress::new(); 65]),
        ];
        for (field, change) in cases {
            let mut wanted = eth0();
            change(&mut wanted);
            let error = interface(&wanted).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{field}: {error}");
        }
    }

    #[test]
    fn default_routes_take_the_family_of_their_gateway() {
        let route = |dest: &str, gateway: &str| Route {
            dest: dest.into(),
            gateway: gateway.into(),
            device: "eth0".into(),
            ..Default::default()
        };
        let read = routes(&[
            route("", "fd00::1"),
            route("", "10.88.0.1"),
            route("10.0.0.0/8", ""),
            route("10.1.1.1", ""),
        ])
        .unwrap();
        let texts: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "::/0 via fd00::1 dev eth0",
                "0.0.0.0/0 via 10.88.0.1 dev eth0",
                "10.0.0.0/8 dev eth0",
                "10.1.1.1/32 dev eth0"
            ]
        );
        assert!(routes(&[route("10.0.0.0/8", "fd00::1")]).is_err());
        assert!(routes(&[route("10.0.0.0/99", "")]).is_err());
    }

    #[test]
    fn resolv_conf_takes_directives_and_nothing_else() {
        let lines = |lines: &[&str]| {
            resolv_conf(&lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            lines(&["nameserver 10.88.0.1", "", "# c"]).unwrap(),
            "nameserver 10.88.0.1\n\n# c\n"
        );
        assert!(lines(&["include /etc/shadow"]).is_err());
        assert!(lines(&["nameserver a\nnameserver b"]).is_err());
        assert!(lines(&[&"#".repeat(20_000)]).is_err());
    }

    #[test]
    fn counters_are_read_from_the_kernels_table() {
        let stats = device_counters("  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0").unwrap();
        assert_eq!((stats.name.as_str(), stats.rx_bytes, stats.tx_bytes), ("eth0", 100, 500));
        assert_eq!(stats.tx_dropped, 8);
        assert!(device_counters(" face |bytes    packets errs").is_none());
    }
}
