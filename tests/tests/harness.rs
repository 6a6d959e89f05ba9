//! The harness itself, with runc in Nacre's place: if these fail, so does everything else, and for
//! a reason that is not Nacre's. No VM is started.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Image, Runtime, World, container};

#[tokio::test]
async fn a_pod_of_plain_runc_runs_and_leaves_nothing() {
    let world = World::builder().runtime(Runtime::Runc).start().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let app = container("app", &image).script("echo hello; exit 3");
    let pod = world.pod("plain").with(app).await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(app.wait_exit().await.unwrap().code, 3);
    assert_eq!(app.stdout().unwrap(), "hello\n");
    assert!(!world.leftovers_now().unwrap().is_empty(), "a running pod is something");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
    assert!(!world.host_layers().unwrap().is_empty(), "runc needs its layers on the host");
}

#[tokio::test]
async fn exec_names_and_addresses_work() {
    let world = World::builder().runtime(Runtime::Runc).start().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("plain").with(container("app", &image).idle()).await.unwrap();
    let app = pod.start("app").await.unwrap();
    let answer = app.exec(["sh", "-c", "echo out; echo err >&2; exit 7"]).await.unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.stderr.as_slice(), answer.code),
        ("out", &b"err\n"[..], 7)
    );
    assert_eq!(app.sh("hostname").await.unwrap(), "plain");
    assert!(app.sh("nslookup registry.world.test").await.unwrap().contains("10.88.0.1"));
    assert!(app.sh("wget -q -O- http://registry:5000/v2/").await.unwrap().contains("{}"));
    let addresses = pod.addresses().await.unwrap();
    assert!(addresses[0].starts_with("10.88.") && addresses[1].starts_with("fd00:88::"));
    assert!(app.sh("ping -6 -c 1 fd00:88::1").await.unwrap().contains("1 packets received"));
}

#[tokio::test]
async fn two_worlds_do_not_meet() {
    let one = World::builder().runtime(Runtime::Runc).start().await.unwrap();
    let two = World::builder().runtime(Runtime::Runc).start().await.unwrap();
    let image = one.push(&Image::busybox("only-in-one")).unwrap();
    one.pull(&image).await.unwrap();
    let error = two.pull(&image).await.unwrap_err().to_string();
    assert!(error.contains("not found"), "{error}");
    let init = two.init();
    drop(two);
    assert!(!std::path::Path::new(&format!("/proc/{init}")).exists());
    one.pull(&image).await.unwrap();
}
