//! Reads from the kernel what CNI configured: interfaces, addresses, routes, neighbours.

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, route::RouteVia};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::tap::refused;
use crate::{Interface, Layout, Neighbour, NetworkError, Route};

/// What a pod may have at most; more is a mistake or an attack on the guest.
const MOST_INTERFACES: usize = 16;
const MOST_ROUTES: usize = 256;
const MOST_NEIGHBOURS: usize = 256;

/// Reads the whole layout of the namespace that the handle belongs to.
pub(crate) async fn layout(handle: &Handle) -> Result<Layout, NetworkError> {
    let mut addresses = addresses(handle).await?;
    let mut interfaces = Vec::new();
    for link in links(handle).await? {
        if link.header.flags.contains(LinkFlags::Loopback) {
            continue;
        }
        let Some(addresses) = addresses.remove(&link.header.index) else { continue };
        interfaces.push(interface(&link, addresses)?);
    }
    interfaces.sort_by_key(|interface| interface.index);
    within("interfaces", interfaces.len(), MOST_INTERFACES)?;

    let names: HashMap<u32, String> =
        interfaces.iter().map(|interface| (interface.index, interface.name.clone())).collect();
    let mut routes = Vec::new();
    for message in route_messages(handle).await? {
        routes.extend(route(&message, &names)?);
    }
    within("routes", routes.len(), MOST_ROUTES)?;
    // A gateway can be set only once the network it lies in is there.
    routes.sort_by_key(|route| route.gateway.is_some());

    let neighbours: Vec<Neighbour> = neighbour_messages(handle)
        .await?
        .iter()
        .filter_map(|message| neighbour(message, &names))
        .collect();
    within("neighbours", neighbours.len(), MOST_NEIGHBOURS)?;
    Ok(Layout { interfaces, routes, neighbours })
}

/// Index of the interface of that name.
pub(crate) async fn find_link(handle: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    let links = links(handle).await?;
    Ok(links
        .iter()
        .find(|link| link_name(link).is_some_and(|found| found == name))
        .map(|link| link.header.index))
}

fn within(what: &str, count: usize, most: usize) -> Result<(), NetworkError> {
    if count > most {
        return Err(NetworkError::Unsupported(format!(
            "the network namespace has {count} {what}, a pod may have {most} at most"
        )));
    }
    Ok(())
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let links = handle.link().get().execute();
    links.try_collect().await.map_err(|cause| refused("list interfaces".to_owned(), &cause, ""))
}

async fn route_messages(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut all = Vec::new();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        // An empty request: the kernel then lists every table and protocol.
        let mut request = RouteMessage::default();
        request.header.address_family = family.header.address_family;
        let found: Vec<RouteMessage> = handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(|cause| refused("list routes".to_owned(), &cause, ""))?;
        all.extend(found);
    }
    Ok(all)
}

async fn neighbour_messages(handle: &Handle) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let found = handle.neighbours().get().execute();
    found.try_collect().await.map_err(|cause| refused("list neighbours".to_owned(), &cause, ""))
}

async fn addresses(handle: &Handle) -> Result<HashMap<u32, Vec<(IpAddr, u8)>>, NetworkError> {
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|cause| refused("list addresses".to_owned(), &cause, ""))?;
    let mut found: HashMap<u32, Vec<(IpAddr, u8)>> = HashMap::new();
    for message in messages {
        let mut local = None;
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link "address" is the peer's.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        let Some(ip) = local.or(address) else { continue };
        if !is_link_local_v6(&ip) {
            found.entry(message.header.index).or_default().push((ip, message.header.prefix_len));
        }
    }
    Ok(found)
}

/// The guest makes these by itself from its hardware address.
fn is_link_local_v6(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn interface(link: &LinkMessage, addresses: Vec<(IpAddr, u8)>) -> Result<Interface, NetworkError> {
    let name = link_name(link).unwrap_or_default().to_owned();
    if link.header.link_layer_type != LinkLayerType::Ether {
        return Err(NetworkError::Unsupported(format!(
            "interface {name} has an address but is not an Ethernet interface ({:?}): only those \
             can be connected to a virtual machine",
            link.header.link_layer_type
        )));
    }
    let mut mac = None;
    let mut mtu = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            _ => {}
        }
    }
    let (Some(mac), Some(mtu @ 68..=65535)) = (mac, mtu) else {
        return Err(NetworkError::Unsupported(format!(
            "interface {name} has no usable hardware address or MTU"
        )));
    };
    Ok(Interface { name, mac, mtu, addresses, index: link.header.index })
}

/// A route the guest needs; those that the guest's kernel makes by itself are left out.
fn route(
    message: &RouteMessage,
    names: &HashMap<u32, String>,
) -> Result<Option<Route>, NetworkError> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut route = Route {
        destination: None,
        gateway: None,
        source: None,
        device: String::new(),
        scope: u8::from(header.scope),
        flags: header.flags.bits() & ONLINK,
        mtu: 0,
        metric: 0,
        v6: header.address_family == AddressFamily::Inet6,
    };
    let mut through = None;
    let mut several_hops = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => through = Some(*index),
            RouteAttribute::Destination(address) => {
                route.destination = ip(address).map(|ip| (ip, header.destination_prefix_length));
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => {
                route.gateway = Some(IpAddr::V6(*address));
            }
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_) => several_hops = true,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    })
                    .unwrap_or(0);
            }
            _ => {}
        }
    }
    let made_by_kernel = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    let in_main_table = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    if !in_main_table || header.kind != RouteType::Unicast || made_by_kernel {
        return Ok(None);
    }
    if several_hops {
        return Err(NetworkError::Unsupported(
            "the pod's main routing table has a route with several next hops: give it a single one"
                .to_owned(),
        ));
    }
    let Some(device) = through.and_then(|index| names.get(&index)) else { return Ok(None) };
    route.device.clone_from(device);
    Ok(Some(route))
}

/// `RTNH_F_ONLINK`: the gateway is reachable although no route leads to it.
const ONLINK: u32 = 4;

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// Entries that somebody set by hand; the others are the kernel's own knowledge.
fn neighbour(message: &NeighbourMessage, names: &HashMap<u32, String>) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let device = names.get(&message.header.ifindex)?.clone();
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    Some(Neighbour { address: address?, device, mac: mac?, state: u16::from(message.header.state) })
}
