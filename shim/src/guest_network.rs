//! Tells the agent what the pod's network looks like.

use std::net::IpAddr;
use std::path::Path;

use nacre_protocol::agent as api;
use nacre_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use oci_spec::runtime::Spec;
use protobuf::MessageField;

use crate::agent::{Agent, AgentError};
use nacre_pod_network::Layout;

/// A resolver's configuration beyond this size is a mistake.
const MOST_RESOLV_CONF: u64 = 64 * 1024;

/// Gives the guest its interfaces, then its routes, then its neighbours.
pub(crate) async fn configure(agent: &Agent, layout: &Layout) -> Result<(), AgentError> {
    for interface in interfaces(layout) {
        let request = api::UpdateInterfaceRequest {
            interface: MessageField::some(interface),
            ..Default::default()
        };
        agent.update_interface(request).await?;
    }
    let routes = routes(layout);
    if !routes.is_empty() {
        let routes = api::Routes { Routes: routes, ..Default::default() };
        let request =
            api::UpdateRoutesRequest { routes: MessageField::some(routes), ..Default::default() };
        agent.update_routes(request).await?;
    }
    let neighbours = neighbours(layout);
    if !neighbours.is_empty() {
        let neighbors = api::ARPNeighbors { ARPNeighbors: neighbours, ..Default::default() };
        let request = api::AddARPNeighborsRequest {
            neighbors: MessageField::some(neighbors),
            ..Default::default()
        };
        agent.add_neighbours(request).await?;
    }
    Ok(())
}

/// The lines of the `resolv.conf` that containerd made for the pod.
pub(crate) fn name_servers(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let source = mounts
        .iter()
        .find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))
        .and_then(|mount| mount.source().clone());
    let Some(source) = source else { return Vec::new() };
    match crate::files::read_text(&source, MOST_RESOLV_CONF) {
        Ok(text) => {
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        Err(error) => {
            tracing::warn!("the pod has no name servers: {}: {error}", source.display());
            Vec::new()
        }
    }
}

fn interfaces(layout: &Layout) -> Vec<Interface> {
    let of = |interface: &nacre_pod_network::Interface| Interface {
        device: interface.name.clone(),
        name: interface.name.clone(),
        IPAddresses: interface
            .addresses
            .iter()
            .map(|(ip, prefix)| address(*ip, &prefix.to_string()))
            .collect(),
        mtu: interface.mtu.into(),
        hwAddr: mac(interface.mac),
        ..Default::default()
    };
    layout.interfaces.iter().map(of).collect()
}

fn routes(layout: &Layout) -> Vec<Route> {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    layout
        .routes
        .iter()
        .map(|route| Route {
            dest: route
                .destination
                .map(|(ip, prefix)| format!("{ip}/{prefix}"))
                .unwrap_or_default(),
            gateway: text(route.gateway),
            device: route.device.clone(),
            source: text(route.source),
            scope: route.scope.into(),
            family: (if route.v6 { IPFamily::v6 } else { IPFamily::v4 }).into(),
            flags: route.flags,
            mtu: route.mtu,
            metric: route.metric,
            ..Default::default()
        })
        .collect()
}

fn neighbours(layout: &Layout) -> Vec<ARPNeighbor> {
    layout
        .neighbours
        .iter()
        .map(|neighbour| ARPNeighbor {
            toIPAddress: MessageField::some(address(neighbour.address, "")),
            device: neighbour.device.clone(),
            lladdr: mac(neighbour.mac),
            state: neighbour.state.into(),
            ..Default::default()
        })
        .collect()
}

fn address(ip: IpAddr, mask: &str) -> IPAddress {
    IPAddress {
        family: (if ip.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 }).into(),
        address: ip.to_string(),
        mask: mask.to_owned(),
        ..Default::default()
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_told_in_the_words_of_the_api() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let layout = Layout {
            interfaces: Vec::new(),
            routes: vec![
                nacre_pod_network::Route {
                    destination: None,
                    gateway: Some(ip("169.254.1.1")),
                    source: None,
                    device: "eth0".into(),
                    scope: 0,
                    flags: 4,
                    mtu: 0,
                    metric: 0,
                    v6: false,
                },
                nacre_pod_network::Route {
                    destination: Some((ip("fd00::"), 64)),
                    gateway: None,
                    source: Some(ip("fd00::2")),
                    device: "eth0".into(),
                    scope: 253,
                    flags: 0,
                    mtu: 1400,
                    metric: 50,
                    v6: true,
                },
            ],
            neighbours: vec![nacre_pod_network::Neighbour {
                address: ip("169.254.1.1"),
                device: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 0xfe],
                state: 128,
            }],
        };
        let routes = routes(&layout);
        assert_eq!((routes[0].dest.as_str(), routes[0].gateway.as_str()), ("", "169.254.1.1"));
        assert_eq!((routes[1].dest.as_str(), routes[1].source.as_str()), ("fd00::/64", "fd00::2"));
        assert_eq!(routes[1].family.enum_value(), Ok(IPFamily::v6));
        let neighbour = &neighbours(&layout)[0];
        assert_eq!(neighbour.lladdr, "02:00:00:00:00:fe");
        assert_eq!(neighbour.toIPAddress.address, "169.254.1.1");
    }
}
