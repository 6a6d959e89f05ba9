//! The pod's network against the real kernel: namespaces, a veth pair, taps and redirects. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nacre_pod_network::{self as network, Namespace, Network, NetworkError};

const POD_MAC: &str = "02:00:00:00:00:02";
const PEER_MAC: &str = "02:00:00:00:00:01";
/// For a frame or a program in a namespace: the machine may be full of emulated guests.
const PATIENCE: Duration = Duration::from_secs(30);
/// A `virtio_net_hdr` precedes each frame on a tap.
const VNET_HEADER: usize = 10;

/// Two namespaces with a veth pair between them: `eth0` in the pod's, `peer0` in the other.
struct World {
    pod: String,
    peer: String,
}

impl World {
    fn new(name: &str) -> World {
        let unique = format!("{name}{}", std::process::id());
        let world = World { pod: format!("nt-pod-{unique}"), peer: format!("nt-peer-{unique}") };
        run(&format!("ip netns add {}", world.pod));
        run(&format!("ip netns add {}", world.peer));
        run(&format!(
            "ip -n {} link add peer0 address {PEER_MAC} type veth peer name eth0 address {POD_MAC} netns {}",
            world.peer, world.pod
        ));
        world.in_peer("ip address add 10.9.0.1/24 dev peer0");
        world.in_peer("ip address add fd00:9::1/64 dev peer0 nodad");
        world.in_peer("ip link set peer0 up");
        world.in_pod("ip link set lo up");
        world.in_pod("ip address add 10.9.0.2/24 dev eth0");
        world.in_pod("ip address add fd00:9::2/64 dev eth0 nodad");
        world.in_pod("ip link set eth0 mtu 1400 up");
        world.in_pod("ip route add default via 10.9.0.1");
        world.in_pod("ip -6 route add default via fd00:9::1");
        world.in_pod("ip route add 192.0.2.0/24 via 203.0.113.1 dev eth0 onlink");
        world.in_pod("ip neighbour add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        world
    }

    fn pod_path(&self) -> PathBuf {
        format!("/run/netns/{}", self.pod).into()
    }

    fn in_pod(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.pod))
    }

    fn in_peer(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.peer))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn attach(world: &World) -> Network {
    Network::attach(Namespace::open(&world.pod_path()).unwrap()).await.unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

#[test]
fn the_guest_is_told_all_that_cni_configured() {
    if !is_root() {
        return;
    }
    let world = World::new("a");
    block_on(async {
        let network = attach(&world).await;
        let layout = &network.layout;
        assert_eq!(layout.interfaces.len(), 1);
        let eth0 = &layout.interfaces[0];
        assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 1400));
        assert_eq!(eth0.mac, [2, 0, 0, 0, 0, 2]);
        let expected: [(IpAddr, u8); 2] =
            [("10.9.0.2".parse().unwrap(), 24), ("fd00:9::2".parse().unwrap(), 64)];
        assert_eq!(eth0.addresses, expected);

        let gateways: Vec<_> =
            layout.routes.iter().map(|r| (r.destination, r.gateway.unwrap(), r.flags)).collect();
        assert_eq!(gateways.len(), 3, "{:?}", layout.routes);
        assert!(gateways.contains(&(None, "10.9.0.1".parse().unwrap(), 0)));
        assert!(gateways.contains(&(None, "fd00:9::1".parse().unwrap(), 0)));
        let onlink = (Some(("192.0.2.0".parse().unwrap(), 24)), "203.0.113.1".parse().unwrap(), 4);
        assert!(gateways.contains(&onlink));

        assert_eq!(layout.neighbours.len(), 1);
        assert_eq!(layout.neighbours[0].mac, [2, 0, 0, 0, 0, 9]);
    });
}

#[test]
fn frames_pass_both_ways_and_the_host_does_not_answer_for_the_guest() {
    if !is_root() {
        return;
    }
    let world = World::new("b");
    block_on(async {
        let mut network = attach(&world).await;
        assert!(world.in_pod("ip -o link show nacre0").contains("mtu 1400"));
        for (device, other) in [("eth0", "nacre0"), ("nacre0", "eth0")] {
            let filters = world.in_pod(&format!("tc filter show dev {device} parent ffff:"));
            assert!(filters.contains("protocol all"), "{filters}");
            assert!(filters.contains(&format!("Egress Redirect to device {other}")), "{filters}");
        }

        // Peer to guest: what is sent to the pod's address reaches the tap and nobody answers. The
        // host's stack would refuse the connection at once.
        let mut tap = File::from(network.taps.remove(0));
        let connection = Command::new("timeout")
            .args(["1", "ip", "netns", "exec", &world.peer])
            .args(["bash", "-c", "echo > /dev/tcp/10.9.0.2/9"])
            .status()
            .unwrap();
        assert_eq!(connection.code(), Some(124), "the host's stack answered for the guest");
        let arp = read_frame(&mut tap, |frame| frame[12..14] == [0x08, 0x06]);
        assert_eq!(arp[6..12], [2, 0, 0, 0, 0, 1], "the peer asks who has 10.9.0.2");

        // Guest to peer: a gratuitous ARP written to the tap becomes a neighbour of the peer.
        let mut reply = vec![0u8; VNET_HEADER];
        reply.extend(&arp[6..12]);
        reply.extend([2, 0, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
        reply.extend([2, 0, 0, 0, 0, 2, 10, 9, 0, 2]);
        reply.extend(&arp[6..12]);
        reply.extend([10, 9, 0, 1]);
        reply.resize(VNET_HEADER + 60, 0);
        world.in_peer("ip neighbour flush dev peer0");
        world.in_peer("ip neighbour add 10.9.0.2 dev peer0 nud incomplete");
        let deadline = Instant::now() + PATIENCE;
        loop {
            tap.write_all(&reply).unwrap();
            let known = world.in_peer("ip neighbour show dev peer0");
            if known.contains(&format!("10.9.0.2 lladdr {POD_MAC}")) {
                break;
            }
            assert!(Instant::now() < deadline, "{known}");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn nothing_is_left_after_detach() {
    if !is_root() {
        return;
    }
    let world = World::new("c");
    block_on(async {
        let network = attach(&world).await;
        let names = network.interface_names();
        assert_eq!(names, ["eth0"]);
        network.detach().await.unwrap();
        drop(network);
        assert!(!world.in_pod("ip -o link show").contains("nacre"));
        assert!(!world.in_pod("tc qdisc show dev eth0").contains("ingress"));

        // As after a crash of the shim: only path and names are known; twice is fine.
        let network = attach(&world).await;
        drop(network);
        network::detach(&world.pod_path(), names.clone()).await.unwrap();
        network::detach(&world.pod_path(), names.clone()).await.unwrap();
        assert!(!world.in_pod("tc qdisc show dev eth0").contains("ingress"));
        network::detach(&PathBuf::from("/run/netns/gone"), names).await.unwrap();
    });
}

#[test]
fn a_second_machine_in_the_same_namespace_is_refused_and_harms_nothing() {
    if !is_root() {
        return;
    }
    let world = World::new("d");
    block_on(async {
        let first = attach(&world).await;
        let error = Network::attach(Namespace::open(&world.pod_path()).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("already owns the ingress"), "{error}");
        assert!(world.in_pod("tc filter show dev eth0 parent ffff:").contains("nacre0"));
        assert!(!world.in_pod("ip -o link show").contains("nacre1"));
        drop(first);
    });
}

#[test]
fn mistaken_namespaces_are_refused_by_name() {
    if !is_root() {
        return;
    }
    let error = Namespace::open(&PathBuf::from("/proc/self/ns/net")).unwrap_err();
    assert!(matches!(error, NetworkError::HostNamespace { .. }), "{error}");
    let error = Namespace::open(&PathBuf::from("/run/netns/absent")).unwrap_err();
    assert!(error.to_string().contains("/run/netns/absent"), "{error}");
    block_on(async {
        let not_one = Namespace::open(&PathBuf::from("/proc/self/ns/uts")).unwrap();
        let error = Network::attach(not_one).await.unwrap_err();
        assert!(error.to_string().contains("/proc/self/ns/uts"), "{error}");
        let empty = Network::attach(Namespace::isolated().unwrap()).await.unwrap();
        assert!(empty.layout.interfaces.is_empty() && empty.taps.is_empty());
        empty.catch_loopback().await.unwrap();
    });
}

/// Connects to a port of the pod's localhost from within its namespace; what happens to the connection is
/// printed.
fn connect_in_pod(world: &World, address: &str) -> std::process::Child {
    Command::new("ip")
        .args(["netns", "exec", &world.pod, "bash", "-c"])
        .arg(format!("exec 3<>/dev/tcp/{address} && echo asked >&3 && cat <&3"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn every_connection_to_the_pods_localhost_is_caught_and_none_to_elsewhere() {
    if !is_root() {
        return;
    }
    let world = World::new("e");
    block_on(async {
        let network = attach(&world).await;
        let caught = network.catch_loopback().await.unwrap();
        let of = |v6| caught.listeners.iter().find(|l| l.local_addr().unwrap().is_ipv6() == v6);
        for (address, port) in [("127.0.0.1", 80), ("127.0.0.1", 54321), ("::1", 8099), ("::1", 1)]
        {
            let asking = connect_in_pod(&world, &format!("{address}/{port}"));
            let (mut stream, local) = accept(of(address.contains(':')).unwrap());
            assert_eq!(local, std::net::SocketAddr::new(address.parse().unwrap(), port));
            let mut asked = [0; 6];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"asked\n");
            stream.write_all(b"answered").unwrap();
            drop(stream);
            let output = asking.wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "answered");
        }
        // The pod's own address is the guest's, 127.0.0.2 nobody's, and the host's localhost is another one.
        for address in ["10.9.0.2/80", "127.0.0.2/80"] {
            let output = connect_in_pod(&world, address).wait_with_output().unwrap();
            assert!(!output.status.success(), "{address} is caught, too");
        }
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let _asked = std::net::TcpStream::connect(address).unwrap();
        accept(&taken);

        // Nothing is left.
        drop(caught);
        let output = connect_in_pod(&world, "127.0.0.1/80").wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Connection refused"), "{said}");
        // And it can be caught again, also where there is no IPv6.
        world.in_pod("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1");
        let again = network.catch_loopback().await.unwrap();
        assert_eq!(again.listeners.len(), 1);
        let asking = connect_in_pod(&world, "127.0.0.1/80");
        drop(accept(&again.listeners[0]));
        assert!(asking.wait_with_output().unwrap().stdout.is_empty());
    });
}

/// The next connection, with the address that it was made to.
fn accept(listener: &std::net::TcpListener) -> (std::net::TcpStream, std::net::SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let local = stream.local_addr().unwrap();
            return (stream, local);
        }
        assert!(Instant::now() < deadline, "no connection was caught");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_frame(tap: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let nonblocking: &OwnedFd = &tap.try_clone().unwrap().into();
    rustix::io::ioctl_fionbio(nonblocking, true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0u8; 2048];
    loop {
        if let Ok(read) = tap.read(&mut buffer)
            && read > VNET_HEADER + 14
            && wanted(&buffer[VNET_HEADER..read])
        {
            return buffer[VNET_HEADER..read].to_vec();
        }
        assert!(Instant::now() < deadline, "no such frame arrived");
        std::thread::sleep(Duration::from_millis(5));
    }
}
