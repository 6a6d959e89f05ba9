//! The other containerds that Nacre supports, and pods side by side.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{ContainerdVersion, Image, World, container};

async fn a_pod_runs_with(version: ContainerdVersion) {
    let world = World::builder().containerd(version).start().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let second = container("second", &image).script("exit 4");
    let pod = world.pod("pod").with(container("app", &image).idle()).with(second).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(app.sh("uname -r").await.unwrap(), host.trim());
    let second = pod.start("second").await.unwrap();
    assert_eq!(second.wait_exit().await.unwrap().code, 4);
    assert_eq!(world.host_layers().unwrap(), Vec::<String>::new());
    world.restart_containerd().await.unwrap();
    assert_eq!(app.sh("echo still here").await.unwrap(), "still here");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn containerd_1_7_runs_a_pod() {
    a_pod_runs_with(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn containerd_2_1_runs_a_pod() {
    a_pod_runs_with(ContainerdVersion::V2_1).await;
}

#[tokio::test]
async fn two_pods_run_side_by_side_and_reach_each_other() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let script = "mkdir /www; echo one > /www/index.html; httpd -f -p 80 -h /www";
    let one = world.pod("one").with(container("server", &image).script(script));
    let two = world.pod("two").with(container("client", &image).idle()).exec_allowed();
    let (one, two) = tokio::join!(one, two);
    let (one, two) = (one.unwrap(), two.unwrap());
    let _server = one.start("server").await.unwrap();
    let client = two.start("client").await.unwrap();
    let address = one.addresses().await.unwrap()[0].clone();
    let fetch = format!("until wget -q -O- http://{address}/; do sleep 0.1; done");
    assert_eq!(client.sh(&fetch).await.unwrap(), "one");
    one.stop().await.unwrap();
    assert_eq!(client.sh("echo alone").await.unwrap(), "alone");
    assert_eq!(world.virtual_machines().unwrap().len(), 1);
}
