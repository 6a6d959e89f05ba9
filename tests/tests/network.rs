//! Networks with more to them than one interface: what CNI plugins make, the guest has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nacre_tests::{Container, Image, World, container};

/// The bridge plugin, and behind it what a meta plugin such as Multus adds: a second interface.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0"); config=$(cat)
answer=$(echo "$config" | "$here/bridge"); status=$?
if [ "$CNI_COMMAND" = ADD ] && [ $status = 0 ]; then
    name=$(basename "$CNI_NETNS")
    host=h$(echo "$CNI_CONTAINERID" | cut -c 1-10)
    ip link add "$host" mtu 1300 type veth peer name net1 netns "$name" mtu 1300
    ip addr add 10.99.0.1/24 dev "$host"; ip -6 addr add fd00:99::1/64 dev "$host" nodad
    ip link set "$host" up
    ip -n "$name" addr add 10.99.0.2/24 dev net1
    ip -n "$name" -6 addr add fd00:99::2/64 dev net1 nodad
    ip -n "$name" link set net1 up
    ip -n "$name" route add 198.51.100.0/24 via 10.99.0.7 dev net1 metric 50
    ip -n "$name" route add default via 10.99.0.1 dev net1 metric 200
fi
echo "$answer"; exit $status
"#;

const NETWORK: &str = r#"{"cniVersion": "0.4.0", "name": "world", "plugins": [{"type": "several",
    "bridge": "cni0", "isGateway": true, "mtu": 1400, "ipam": {"type": "host-local",
    "dataDir": "/run/world/cni-addresses",
    "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
               [{"subnet": "fd00:88::/64", "gateway": "fd00:88::1"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24", "gw": "10.88.0.7"}]}}]}"#;

async fn world_with_two_networks() -> World {
    let world = World::new().await.unwrap();
    let plugins = "/run/world/plugins";
    world.run(&["mkdir", plugins]).unwrap();
    for plugin in ["bridge", "host-local", "loopback"] {
        world.run(&["cp", "-L", &format!("/usr/lib/cni/{plugin}"), plugins]).unwrap();
    }
    let several = world.path(&format!("{plugins}/several"));
    fs::write(&several, PLUGIN).unwrap();
    fs::set_permissions(&several, fs::Permissions::from_mode(0o755)).unwrap();
    world.run(&["mount", "--bind", plugins, "/usr/lib/cni"]).unwrap();
    fs::write(world.path("/run/world/cni/10-world.conflist"), NETWORK).unwrap();
    world.restart_containerd().await.unwrap();
    world
}

async fn reaches(container: &Container<'_>, address: &str) -> bool {
    let command = format!("timeout 60 wget -q -O- http://{address}:5000/v2/");
    container.sh(&command).await.is_ok_and(|said| said.contains("{}"))
}

#[tokio::test]
async fn two_interfaces_with_their_own_sizes_addresses_and_routes_reach_the_guest() {
    let world = world_with_two_networks().await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("two").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let links = app.sh("cat /sys/class/net/eth0/mtu /sys/class/net/net1/mtu").await.unwrap();
    assert_eq!(links, "1400\n1300");
    let addresses = app.sh("ip addr").await.unwrap();
    for address in ["10.99.0.2/24", "fd00:99::2/64"] {
        assert!(addresses.contains(address), "no {address} in {addresses}");
    }
    for address in pod.addresses().await.unwrap() {
        assert!(addresses.contains(&address), "no {address} in {addresses}");
    }
    let routes = app.sh("ip route; ip -6 route").await.unwrap();
    for route in [
        "default via 10.88.0.1 dev eth0",
        "192.0.2.0/24 via 10.88.0.7 dev eth0",
        "198.51.100.0/24 via 10.99.0.7 dev net1 metric 50",
        "default via 10.99.0.1 dev net1 metric 200",
        "default via fd00:88::1 dev eth0",
        "fd00:99::/64 dev net1",
    ] {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let wanted = words(route);
        let there = |line: &str| wanted.iter().all(|word| words(line).contains(word));
        assert!(routes.lines().any(there), "no {route} in {routes}");
    }
    for address in ["10.88.0.1", "[fd00:88::1]", "10.99.0.1", "[fd00:99::1]"] {
        assert!(reaches(&app, address).await, "{address} is not reached");
    }

    // What a CNI plugin or an administrator does to the interfaces of a running pod.
    let namespaces = world.run(&["ip", "netns", "list"]).unwrap();
    let namespace = namespaces.split_whitespace().next().unwrap();
    for change in [
        ["link", "set", "net1", "down"],
        ["link", "set", "net1", "up"],
        ["link", "set", "eth0", "mtu 1280"],
        ["link", "set", "eth0", "alias changed"],
    ] {
        let mut words = vec!["ip", "-n", namespace];
        words.extend(change.iter().flat_map(|words| words.split(' ')));
        world.run(&words).unwrap();
    }
    for address in ["10.99.0.1", "10.88.0.1"] {
        assert!(reaches(&app, address).await, "{address} is not reached after the changes");
    }

    let resolv = app.sh("cat /etc/resolv.conf").await.unwrap();
    assert!(
        resolv.contains("nameserver 10.88.0.1") && resolv.contains("search world.test"),
        "{resolv}"
    );
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    world.run(&["umount", "/usr/lib/cni"]).unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_without_a_network_is_told_why_it_cannot_pull() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.danger_allow_all_by_default().unwrap();
    let ctr = world.ctr();
    ctr.pull(&image).unwrap();
    let namespace = "none";
    world.run(&["ip", "netns", "add", namespace]).unwrap();
    let words = ctr.run_words(&format!("/run/netns/{namespace}"), &image);
    let more = [&image, "alone", "true"];
    // The node's pull is not the guest's: without a network it has nowhere to pull from.
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more).collect();
    let said = ctr.run(&words).unwrap();
    assert_ne!(said.code, 0);
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    let reason = "cannot be reached from the pod: Network is unreachable";
    assert!(error.contains(reason) && error.contains(&image), "{error}");
}
