//! A pod proves what it is before it gets a secret; what is not as the owner expects gets none and is told
//! why. The hardware is emulated, everything else is what runs in production.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Broker, Declaration, Image, PodBuilder, World, container};

const SECRET: &str = "kbs:///default/web/password";
const CONTENT: &str = "correct horse battery staple";
/// Asks the guest for the secret, as a program in the pod does.
const ASK: &str = "wget -q -O- http://127.0.0.1:8006/cdh/resource/default/web/password";

/// A world with emulated processors, and a broker that expects the guests of its shim and holds the secret.
async fn prepared(world: &World) -> Broker<'_> {
    let broker = world.start_broker_for_guests().await.unwrap();
    broker.set_secret(SECRET, CONTENT).unwrap();
    broker
}

fn asks(image: &str) -> Declaration {
    container("app", image).script(&format!("{ASK}; echo; sleep 1000"))
}

/// A pod that may ask, and whose initdata is granted the secret.
fn granted<'w>(world: &'w World, broker: &Broker<'_>, declared: Declaration) -> PodBuilder<'w> {
    let pod = world.pod("web").with(declared).exec_allowed().secrets_of(broker);
    let pod = pod.with_policy().unwrap();
    broker.grant("web", pod.annotation_text(), ["default/web/*"]).unwrap();
    pod
}

/// What the container is told when it asks: the answer's body, whatever its status.
const TOLD: &str =
    "printf 'GET /cdh/resource/default/web/password HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8006";

#[tokio::test]
async fn a_pod_that_is_what_the_owner_expects_gets_its_secret() {
    let world = World::new().await.unwrap();
    let broker = prepared(&world).await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = granted(&world, &broker, asks(&image)).await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for(CONTENT).await.unwrap();
    let audit = broker.audit().unwrap();
    assert!(audit.contains("default/web/password") && audit.contains("emulated"), "{audit}");

    // What is not granted, and what is not there.
    let other = app.sh(&TOLD.replace("web/password", "db/password")).await.unwrap();
    assert!(other.contains("403") && other.contains("grant"), "{other}");
    // The broker is killed: the pod waits for it, and needs no new attestation by a new pod.
    broker.kill().unwrap();
    broker.start().await.unwrap();
    assert_eq!(app.sh(ASK).await.unwrap(), CONTENT);
    broker.verify_audit().unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}

/// Everybody on a host may read the command lines of its processes, and many tools write them down.
fn nothing_on_command_lines(world: &World, texts: &[&str]) {
    /// Of a long text some of its middle: beginnings are alike.
    const QUOTED: usize = 48;
    let machines = world.virtual_machines().unwrap();
    let shims = world.shims().unwrap();
    assert!(!machines.is_empty() && !shims.is_empty(), "there is a pod");
    let read = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    for process in machines.iter().chain(&shims) {
        let seen = read(process.pid, "cmdline") + &read(process.pid, "environ");
        for text in texts {
            let middle = text.len().saturating_sub(QUOTED) / 2;
            let part = &text[middle..text.len().min(middle + QUOTED)];
            assert!(!part.is_empty() && !seen.contains(part), "{part:?} in {seen:?}");
        }
        for word in ["kbs://", "PRIVATE KEY", "package agent_policy", "sealed."] {
            assert!(!seen.contains(word), "{word:?} in {seen:?}");
        }
    }
    for machine in &machines {
        assert_eq!(read(machine.pid, "environ"), "", "QEMU gets no variables");
    }
}

#[tokio::test]
async fn containers_find_secrets_in_variables_and_files() {
    const FILE: &str = "/run/confidential-containers/password";
    let world = World::new().await.unwrap();
    let broker = prepared(&world).await;
    let sealed = broker.seal(SECRET).unwrap();
    broker.give_as_file(FILE, SECRET).unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let app = container("app", &image)
        .env("PASSWORD", &sealed)
        .files("settings", "/etc/app", [("password", &sealed), ("plain", "as it is")])
        .script(&format!(
            "cat /etc/app/password {FILE}; echo; cat /etc/app/plain; echo; sleep 1000"
        ));
    let pod = world.pod("web").with(app).exec_allowed().secrets_of(&broker).with_policy().unwrap();
    broker.grant("web", pod.annotation_text(), ["default/web/*", "default/seal/*"]).unwrap();
    let initdata = pod.annotation_text().to_owned();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("as it is").await.unwrap();
    nothing_on_command_lines(&world, &[&initdata, &sealed, &broker.url(), CONTENT.trim(), SECRET]);
    assert_eq!(app.stdout().unwrap(), format!("{CONTENT}{CONTENT}\nas it is\n"));
    assert_eq!(app.sh("echo $PASSWORD").await.unwrap(), CONTENT);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();

    // Without a grant the container is not created, and the event says why.
    broker.admin(&["grant", "remove", "web"]).unwrap();
    let again = container("app", &image).env("PASSWORD", &sealed).idle();
    let pod = world.pod("web").with(again).secrets_of(&broker).await.unwrap();
    let error = format!("{:#}", pod.start("app").await.unwrap_err());
    eprintln!("refused: {error}");
    assert!(error.contains("PolicyDeny") && error.contains("grant"), "{error}");
    let explained = broker.explain(&error).unwrap();
    assert!(explained.contains("get-resource refused"), "{explained}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn another_initrd_byte_another_policy_or_a_debug_launch_gets_nothing() {
    let world = World::new().await.unwrap();
    let broker = prepared(&world).await;
    let image = world.push(&Image::busybox("app")).unwrap();

    // One more byte in the initrd, behind what the kernel unpacks.
    world.change_image("initrd.img", |bytes| [bytes.as_slice(), &[0]].concat()).unwrap();
    let told = refusal(&world, granted(&world, &broker, asks(&image))).await;
    assert!(told.contains("snp-measurement"), "{told}");
    let explained = broker.explain(&told).unwrap();
    assert!(explained.contains("snp-measurement") && explained.contains("found"), "{explained}");
    world.restore_image().unwrap();

    // The host brings another policy: the guest is genuine, but not the one that was granted.
    let lax = world.pod("web").with(asks(&image)).exec_allowed().secrets_of(&broker);
    let lax = lax.settings("allow.set_time = true");
    let told = refusal(&world, lax).await;
    assert!(told.contains("grant"), "{told}");

    // A guest whose memory the host may read.
    let debug = |text: String| text.replace("[emulated]\n", "[emulated]\ndanger_debug = true\n");
    world.configure_shim(debug).unwrap();
    let told = refusal(&world, granted(&world, &broker, asks(&image))).await;
    assert!(told.contains("debug"), "{told}");
    broker.verify_audit().unwrap();
}

/// Starts a pod, asks in it for the secret, and returns what it is told.
async fn refusal(world: &World, pod: PodBuilder<'_>) -> String {
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let told = app.sh(TOLD).await.unwrap();
    assert!(!told.contains(CONTENT), "{told}");
    eprintln!("refused: {told}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
    told
}

#[tokio::test]
async fn without_a_tee_there_is_no_secret() {
    let world = World::new().await.unwrap();
    let broker = prepared(&world).await;
    world.configure_shim(|text| text.replace("tee = \"emulated-snp\"\n", "")).unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = granted(&world, &broker, asks(&image)).await.unwrap();
    let app = pod.start("app").await.unwrap();
    let told = app.sh(TOLD).await.unwrap();
    assert!(!told.contains(CONTENT) && told.contains("TEE"), "{told}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}
