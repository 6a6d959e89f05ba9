//! The pod's interfaces, routes and neighbours, which are the VM's own.
//!
//! The host says what they are; [`parse`] decides whether that can be true before the kernel is told.

mod parse;

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use nacre_protocol::agent::{Interfaces, NetworkStats, Routes};
use nacre_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use self::parse::{Mac, NeighbourWanted, RouteWanted};
use crate::boot::RESOLV_CONF;
use crate::error::RpcError;

/// A network device may appear a little after the agent has started.
const DEVICE_DEADLINE: Duration = Duration::from_secs(5);
const DEVICE_POLL: Duration = Duration::from_millis(10);

/// The kernel's main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u8 = 254;

/// The VM's network, through one netlink socket.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    handle: Handle,
}

impl Network {
    /// Opens the netlink socket and brings the loopback interface up.
    pub(crate) async fn open() -> Result<Self, RpcError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| RpcError::internal("failed to open a netlink socket", e))?;
        tokio::spawn(connection);
        let network = Self { handle };
        let loopback = LinkUnspec::new_with_name("lo").up().build();
        let raised = network.handle.link().set(loopback).execute().await;
        raised.map_err(|e| RpcError::internal("failed to bring lo up", e))?;
        Ok(network)
    }

    /// Names the device with the given hardware address, gives it MTU and addresses, and brings it up.
    pub(crate) async fn update_interface(&self, wanted: &Interface) -> Result<Interface, RpcError> {
        let wanted_parsed = parse::interface(wanted)?;
        let doing = format!("failed to configure the interface {}", wanted_parsed.name);
        let fail = |e: rtnetlink::Error| RpcError::internal(&doing, e);
        let link = self.wait_for_device(wanted_parsed.mac).await?;
        let index = link.header.index;
        let set = |change: rtnetlink::LinkMessageBuilder<LinkUnspec>| {
            self.handle.link().set(change.build()).execute()
        };
        if name_of(&link) != wanted_parsed.name {
            // A device that is up cannot be renamed.
            set(LinkUnspec::new_with_index(index).down()).await.map_err(fail)?;
            set(LinkUnspec::new_with_index(index).name(&wanted_parsed.name)).await.map_err(fail)?;
        }
        if let Some(mtu) = wanted_parsed.mtu {
            set(LinkUnspec::new_with_index(index).mtu(mtu)).await.map_err(fail)?;
        }
        set(LinkUnspec::new_with_index(index).up()).await.map_err(fail)?;
        self.replace_addresses(index, &wanted_parsed.addresses).await.map_err(fail)?;
        Ok(wanted.clone())
    }

    /// Makes the given routes the only ones beside those that the kernel derives from addresses.
    pub(crate) async fn update_routes(&self, wanted: &[Route]) -> Result<Routes, RpcError> {
        let mut wanted = parse::routes(wanted)?;
        // A gateway is accepted only once a route to it exists.
        wanted.sort_by_key(|route| route.gateway.is_some());
        let mut messages = Vec::with_capacity(wanted.len());
        for route in &wanted {
            let index = self.index_of("routes.Routes.device", &route.device).await?;
            messages.push(route_message(route, index)?);
        }
        self.flush_routes()
            .await
            .map_err(|e| RpcError::internal("failed to remove the old routes", e))?;
        for (route, message) in wanted.iter().zip(messages) {
            let added = self.handle.route().add(message).replace().execute().await;
            added.map_err(|e| RpcError::internal(format!("failed to add the route {route}"), e))?;
        }
        self.list_routes().await
    }

    /// Adds fixed entries to the neighbour table.
    pub(crate) async fn add_neighbours(&self, wanted: &[ARPNeighbor]) -> Result<(), RpcError> {
        for neighbour in parse::neighbours(wanted)? {
            let NeighbourWanted { address, device, mac, state, flags } = neighbour;
            let index = self.index_of("neighbors.ARPNeighbors.device", &device).await?;
            let request = self.handle.neighbours().add(index, address).replace();
            let request = request
                .link_layer_address(&mac)
                .state(NeighbourState::from(state))
                .flags(NeighbourFlags::from_bits_retain(flags));
            let added = request.execute().await;
            added.map_err(|e| {
                RpcError::internal(format!("failed to add the neighbour {address}"), e)
            })?;
        }
        Ok(())
    }

    /// All interfaces but loopback, with their addresses.
    pub(crate) async fn list_interfaces(&self) -> Result<Interfaces, RpcError> {
        let fail = |e| RpcError::internal("failed to list the interfaces", e);
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(fail)?;
        let addresses: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(fail)?;
        let interfaces = links.iter().filter(|link| name_of(link) != "lo").map(|link| Interface {
            device: name_of(link).to_owned(),
            name: name_of(link).to_owned(),
            hwAddr: mac_of(link).map(|mac| parse::format_mac(&mac)).unwrap_or_default(),
            mtu: mtu_of(link),
            IPAddresses: addresses
                .iter()
                .filter(|address| address.header.index == link.header.index)
                .filter_map(protocol_address)
                .collect(),
            ..Default::default()
        });
        Ok(Interfaces { Interfaces: interfaces.collect(), ..Default::default() })
    }

    /// The routes of the main table, both families.
    pub(crate) async fn list_routes(&self) -> Result<Routes, RpcError> {
        let fail = |e| RpcError::internal("failed to list the routes", e);
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(fail)?;
        let mut routes = Vec::new();
        for message in self.main_routes().await.map_err(fail)? {
            routes.push(protocol_route(&message, &links));
        }
        Ok(Routes { Routes: routes, ..Default::default() })
    }

    async fn wait_for_device(&self, mac: Mac) -> Result<LinkMessage, RpcError> {
        let search = async {
            loop {
                let mut links = self.handle.link().get().execute();
                while let Some(link) = links
                    .try_next()
                    .await
                    .map_err(|e| RpcError::internal("failed to list the interfaces", e))?
                {
                    if mac_of(&link) == Some(mac) && name_of(&link) != "lo" {
                        return Ok(link);
                    }
                }
                tokio::time::sleep(DEVICE_POLL).await;
            }
        };
        tokio::time::timeout(DEVICE_DEADLINE, search).await.unwrap_or_else(|_| {
            let address = parse::format_mac(&mac);
            Err(RpcError::not_found(format!("network device with the address {address}")))
        })
    }

    async fn index_of(&self, field: &str, device: &str) -> Result<u32, RpcError> {
        let mut links = self.handle.link().get().match_name(device).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            _ => Err(RpcError::invalid(field, format!("there is no interface named {device:?}"))),
        }
    }

    async fn replace_addresses(
        &self,
        index: u32,
        wanted: &[(IpAddr, u8)],
    ) -> Result<(), rtnetlink::Error> {
        let present = self.handle.address().get().set_link_index_filter(index).execute();
        let present: Vec<AddressMessage> = present.try_collect().await?;
        for message in present {
            let is_kept = address_of(&message)
                .is_none_or(|found| wanted.contains(&found) || is_link_local(found.0));
            if !is_kept {
                self.handle.address().del(message).execute().await?;
            }
        }
        for &(address, prefix) in wanted {
            let mut request = self.handle.address().add(index, address, prefix).replace();
            if address.is_ipv6() {
                // The cluster's address management has made it unique; do not wait to find out.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute().await?;
        }
        Ok(())
    }

    async fn flush_routes(&self) -> Result<(), rtnetlink::Error> {
        for message in self.main_routes().await? {
            if message.header.protocol != RouteProtocol::Kernel {
                self.handle.route().del(message).execute().await?;
            }
        }
        Ok(())
    }

    async fn main_routes(&self) -> Result<Vec<RouteMessage>, rtnetlink::Error> {
        let mut routes = Vec::new();
        let queries = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for query in queries {
            let mut found = self.handle.route().get(query).execute();
            while let Some(route) = found.try_next().await? {
                if route.header.table == MAIN_TABLE {
                    routes.push(route);
                }
            }
        }
        Ok(routes)
    }
}

/// Traffic counters of each interface but loopback.
pub(crate) fn statistics() -> Vec<NetworkStats> {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    text.lines().filter_map(parse::device_counters).filter(|stats| stats.name != "lo").collect()
}

/// Writes what the guest's own `/etc/resolv.conf` points at, by which the agent finds registries.
pub(crate) fn write_resolv_conf(lines: &[String]) -> Result<(), RpcError> {
    let text = parse::resolv_conf(lines)?;
    fs::write(RESOLV_CONF, text)
        .map_err(|e| RpcError::internal(format!("failed to write {RESOLV_CONF}"), e))
}

fn route_message(route: &RouteWanted, index: u32) -> Result<RouteMessage, RpcError> {
    let refused = |e| RpcError::invalid("routes.Routes", format!("{route}: {e}"));
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .scope(RouteScope::from(route.scope))
        .destination_prefix(route.destination, route.prefix)
        .map_err(refused)?;
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway).map_err(refused)?;
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(refused)?;
    }
    if route.on_link {
        builder = builder.onlink();
    }
    if let Some(metric) = route.metric {
        builder = builder.priority(metric);
    }
    let mut message = builder.build();
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    Ok(message)
}

fn name_of(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn mac_of(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => address.as_slice().try_into().ok(),
        _ => None,
    })
}

fn mtu_of(link: &LinkMessage) -> u64 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(u64::from(*mtu)),
        _ => None,
    });
    mtu.unwrap_or_default()
}

fn address_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // IFA_LOCAL is the interface's own address; IFA_ADDRESS may be the peer's.
    let find = |local: bool| {
        message.attributes.iter().find_map(move |attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    Some((find(true).or_else(|| find(false))?, message.header.prefix_len))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn protocol_address(message: &AddressMessage) -> Option<IPAddress> {
    let (address, prefix) = address_of(message)?;
    Some(IPAddress {
        family: family_of(address).into(),
        address: address.to_string(),
        mask: prefix.to_string(),
        ..Default::default()
    })
}

fn protocol_route(message: &RouteMessage, links: &[LinkMessage]) -> Route {
    let mut route = Route {
        scope: u32::from(u8::from(message.header.scope)),
        flags: message.header.flags.bits(),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let prefix = message.header.destination_prefix_length;
                route.dest = format!("{}/{prefix}", text_of(address));
            }
            RouteAttribute::Gateway(address) => route.gateway = text_of(address),
            RouteAttribute::PrefSource(address) => route.source = text_of(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu = mtu.unwrap_or_default();
            }
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|link| link.header.index == *index);
                route.device = link.map(name_of).unwrap_or_default().to_owned();
            }
            _ => {}
        }
    }
    let is_v6 = message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6;
    route.family = if is_v6 { IPFamily::v6 } else { IPFamily::v4 }.into();
    route
}

fn text_of(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    }
}

fn family_of(address: IpAddr) -> IPFamily {
    if address.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 }
}
