//! A pod's life with Nacre: what a user of Kubernetes expects, now in a VM.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Compression, Image, Layer, World, container};

async fn nothing_left(world: &World) {
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_runs_in_its_own_kernel_and_leaves_nothing() {
    let world = World::new().await.unwrap();
    let top = Layer::new(Compression::Zstd).file("greeting", 0o644, b"hello from a layer\n");
    let image = world.push(&Image::busybox("app").layer(top)).unwrap();
    let app = container("app", &image).script("uname -r; cat /greeting");
    let pod = world.pod("first").with(app).await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(app.wait_exit().await.unwrap().code, 0);
    let said = app.stdout().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(!said.starts_with(host.trim()), "the guest's kernel is the host's");
    assert!(said.ends_with("hello from a layer\n"), "{said}");
    assert_eq!(world.host_layers().unwrap(), Vec::<String>::new());
    assert_eq!((world.virtual_machines().unwrap().len(), world.shims().unwrap().len()), (1, 1));
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}

#[tokio::test]
async fn exit_codes_and_both_outputs_arrive() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let mut pod = world.pod("codes").with(container("killed", &image).idle());
    pod = pod.with(container("absent", &image).command(["/no/such/program"]));
    for code in [0, 1, 7, 255] {
        let script = format!("echo out {code}; echo err {code} >&2; exit {code}");
        pod = pod.with(container(&format!("exit-{code}"), &image).script(&script));
    }
    let pod = pod.await.unwrap();
    for code in [0, 1, 7, 255] {
        let app = pod.start(&format!("exit-{code}")).await.unwrap();
        assert_eq!(app.wait_exit().await.unwrap().code, code);
        assert_eq!(app.stdout().unwrap(), format!("out {code}\n"));
        assert_eq!(app.stderr().unwrap(), format!("err {code}\n"));
        app.remove().await.unwrap();
    }
    // From outside: the first process of a pid namespace is deaf to SIGKILL from inside.
    let killed = pod.start("killed").await.unwrap();
    world.ctr().in_pods().check(&["task", "kill", "--signal", "SIGKILL", killed.id()]).unwrap();
    assert_eq!(killed.wait_exit().await.unwrap().code, 137);
    let error = pod.start("absent").await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
}

#[tokio::test]
async fn exec_answers_with_output_and_code() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("exec").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let answer = app.exec(["sh", "-c", "echo out; echo err >&2; exit 7"]).await.unwrap();
    assert_eq!((answer.text().as_str(), answer.stderr.as_slice()), ("out", &b"err\n"[..]));
    assert_eq!(answer.code, 7);
    let error = app.exec(["/no/such/program"]).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
    assert_eq!(app.sh("echo still here").await.unwrap(), "still here");
}

#[tokio::test]
async fn a_stop_is_polite_first_and_then_firm() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let polite = container("polite", &image).script(script);
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let deaf = container("deaf", &image).script(script);
    let pod = world.pod("stop").with(polite).with(deaf).await.unwrap();
    let polite = pod.start("polite").await.unwrap();
    polite.wait_for("up").await.unwrap();
    polite.stop(30).await.unwrap();
    assert_eq!(polite.wait_exit().await.unwrap().code, 3);
    assert_eq!(polite.stdout().unwrap(), "up\nbye\n");
    let deaf = pod.start("deaf").await.unwrap();
    deaf.wait_for("up").await.unwrap();
    deaf.stop(1).await.unwrap();
    assert_eq!(deaf.wait_exit().await.unwrap().code, 137);
}

#[tokio::test]
async fn two_containers_share_localhost_and_hostname_but_not_files() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let script =
        "mkdir /www; echo served > /www/index.html; echo up; httpd -f -p 127.0.0.1:80 -h /www";
    let server = container("server", &image).script(script);
    let pod = world.pod("pair").with(server).with(container("client", &image).idle());
    let pod = pod.exec_allowed().await.unwrap();
    pod.start("server").await.unwrap().wait_for("up").await.unwrap();
    let client = pod.start("client").await.unwrap();
    let fetch = "until wget -q -O- http://127.0.0.1/; do sleep 0.1; done";
    assert_eq!(client.sh(fetch).await.unwrap(), "served");
    assert_eq!(client.sh("hostname").await.unwrap(), "pair");
    assert_ne!(client.exec(["test", "-e", "/www"]).await.unwrap().code, 0);
    let count = "ps | grep -c '[h]ttpd -f' || true";
    assert_eq!(client.sh(count).await.unwrap(), "0", "it sees the other's processes");
    assert_eq!(world.virtual_machines().unwrap().len(), 1);
}

#[tokio::test]
async fn containers_see_each_others_processes_if_their_pod_says_so() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let watched = container("watched", &image).script("sleep 54321");
    let pod = world.pod("open").with(watched).with(container("watcher", &image).idle());
    let pod = pod.shared_processes().exec_allowed().await.unwrap();
    pod.start("watched").await.unwrap();
    let watcher = pod.start("watcher").await.unwrap();
    assert!(watcher.sh("ps").await.unwrap().contains("sleep 54321"));
}

#[tokio::test]
async fn names_and_both_kinds_of_addresses_work() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("net").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let addresses = pod.addresses().await.unwrap();
    let shown = app.sh("ip addr").await.unwrap();
    assert!(addresses.len() == 2 && addresses.iter().all(|a| shown.contains(a)), "{shown}");
    assert!(app.sh("nslookup registry.world.test").await.unwrap().contains("10.88.0.1"));
    assert!(app.sh("wget -q -O- http://registry:5000/v2/").await.unwrap().contains("{}"));
    assert!(app.sh("wget -q -O- http://[fd00:88::1]:5000/v2/").await.unwrap().contains("{}"));
    let reached = world.run(&["ping", "-c", "1", &addresses[1]]);
    assert!(reached.is_ok() || world.run(&["busybox", "ping6", "-c", "1", &addresses[1]]).is_ok());
}

#[tokio::test]
async fn the_container_is_what_its_spec_says() {
    let world = World::new().await.unwrap();
    let image = Image::busybox("app").env("FROM_IMAGE", "one").directory("/tmp").user("1000");
    let image = world.push(&image).unwrap();
    let report = "id -u; id -G; pwd; echo $FROM_IMAGE $FROM_POD; cat /shown/file; hostname";
    let app = container("app", &image).env("FROM_POD", "two").script(report);
    let app = app.files("shown", "/shown", [("file", "from a ConfigMap\n")]);
    let other = container("other", &image).user(1234).directory("/etc").script("id -u; pwd");
    let pod = world.pod("spec").with(app).with(other).await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(app.wait_exit().await.unwrap().code, 0);
    let said = app.stdout().unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("1000", "/tmp", "one two"), "{said}");
    assert_eq!(lines[4..], ["from a ConfigMap", "spec"]);
    let other = pod.start("other").await.unwrap();
    other.wait_exit().await.unwrap();
    assert_eq!(other.stdout().unwrap(), "1234\n/etc\n");
}

#[tokio::test]
async fn limits_statistics_and_the_freezer_work() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
    let app = container("app", &image).memory_mib(64).script(count);
    let pod = world.pod("limits").with(app).exec_allowed();
    let pod = pod.settings("allow.pause = true\nallow.update_container = true").await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("3").await.unwrap();
    let (cpu, memory) = app.stats().await.unwrap();
    assert!(cpu > 0 && memory > 0 && memory < 64 << 20, "{cpu} ns, {memory} bytes");
    let ctr = world.ctr().in_pods();
    ctr.check(&["task", "pause", app.id()]).unwrap();
    assert!(ctr.check(&["task", "ls"]).unwrap().contains("PAUSED"));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = app.stdout().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(app.stdout().unwrap(), before, "a paused container does nothing");
    ctr.check(&["task", "resume", app.id()]).unwrap();
    app.wait_for(&format!("\n{}\n", before.lines().count() + 2)).await.unwrap();
    app.set_memory_mib(24).await.unwrap();
    let eat =
        app.exec(["sh", "-c", "head -c 100000000 /dev/zero | tail -c 90000000 | wc -c"]).await;
    assert!(eat.is_err() || eat.unwrap().text() != "90000000", "the new limit does not hold");
}

#[tokio::test]
async fn a_container_that_eats_its_memory_is_oom_killed_and_said_to_be() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let app = container("app", &image).memory_mib(32).args(["tail", "/dev/zero"]);
    let next = container("next", &image).script("echo fine");
    let pod = world.pod("oom").with(app).with(next).await.unwrap();
    let exit = pod.start("app").await.unwrap().wait_exit().await.unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    let next = pod.start("next").await.unwrap();
    assert_eq!(next.wait_exit().await.unwrap().code, 0);
}

#[tokio::test]
async fn a_pod_outlives_a_restart_of_containerd() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
    let pod = world.pod("survivor").with(container("app", &image).script(count)).exec_allowed();
    let pod = pod.with(container("next", &image).script("exit 5")).await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("3").await.unwrap();
    world.restart_containerd().await.unwrap();
    assert!(pod.ready().await.unwrap() && app.runs().await.unwrap());
    assert_eq!(app.sh("echo still here").await.unwrap(), "still here");
    let next = pod.start("next").await.unwrap();
    assert_eq!(next.wait_exit().await.unwrap().code, 5);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}
