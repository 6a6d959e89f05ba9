//! Secrets in containers of a real guest, in a VM with an emulated secure processor: sealed variables and
//! files, credentials, the endpoint for containers, and what is said when there is no secret.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/broker.rs"]
mod broker;
#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use broker::Broker;
use guest::{
    Guest, HOST_FROM_GUEST, Launch, Stream, command_line, container, context, measured_files,
    message, mount, shell_process,
};
use nacre_emulated::{Launch as Measured, Processor, Root, RsaBits};
use nacre_jose::Es256Key;
use nacre_kbs_client::seal::{Signer, seal_envelope, seal_vault};
use nacre_policy::REQUESTS;
use nacre_protocol::agent::CreateContainerRequest;
use nacre_protocol::channel::COPY_ROOT;
use nacre_protocol::initdata::{Algorithm, Initdata, POLICY};
use nacre_protocol::kbs::ResourceUri;

/// Of the database, in each test that has one.
const PASSWORD: &str = "correct horse battery staple";
const CREDENTIAL: &str = "/run/confidential-containers/cdh/kbs/db/token";

static KEY: LazyLock<Es256Key> = LazyLock::new(|| Es256Key::generate().unwrap());
static ROOT: LazyLock<Root> =
    LazyLock::new(|| Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap());

fn at(text: &str) -> ResourceUri {
    text.parse().unwrap()
}

fn vault(uri: &str) -> String {
    seal_vault(&at(uri), &Signer { key: &KEY, public_key: &at("kbs:///default/seal/key") }).unwrap()
}

fn envelope(secret: &str) -> String {
    let signer = Signer { key: &KEY, public_key: &at("kbs:///default/seal/key") };
    seal_envelope(secret.as_bytes(), &[7; 32], &at("kbs:///default/web/wrapping"), &signer).unwrap()
}

/// A broker with what the tests ask for.
fn broker() -> Broker {
    let broker = Broker::default();
    let key = serde_json::to_vec(&KEY.public()).unwrap();
    let secrets = [
        ("default/seal/key", key),
        ("default/web/password", PASSWORD.into()),
        ("default/web/wrapping", vec![7; 32]),
        ("default/web/binary", vec![0, 255, 10]),
        ("default/db/token", b"token".to_vec()),
    ];
    broker.lock().unwrap().secrets =
        secrets.into_iter().map(|(path, secret)| (path.to_owned(), secret)).collect();
    broker
}

/// The host may do anything; of the guest's API `app` gets resources beneath `default/`, and the rest.
fn policy() -> String {
    let open = REQUESTS.iter().filter(|request| **request != "GuestApiRequest");
    let open: String = open.map(|request| format!("default {request} := true\n")).collect();
    format!(
        "package agent_policy\n\n{open}\ndefault GuestApiRequest := false\n\n\
         GuestApiRequest if {{\n\tinput.container_id == \"app\"\n\tinput.api != \"resource\"\n}}\n\n\
         GuestApiRequest if {{\n\tinput.container_id == \"app\"\n\tstartswith(input.resource, \"default/\")\n}}\n"
    )
}

fn initdata(port: u16) -> Initdata {
    let aa = format!("[token_configs.kbs]\nurl = \"http://{HOST_FROM_GUEST}:{port}\"\n");
    let cdh = format!(
        "[kbc]\nname = \"cc_kbc\"\nurl = \"http://{HOST_FROM_GUEST}:{port}\"\n\n\
         [[credentials]]\npath = \"{CREDENTIAL}\"\nresource_uri = \"kbs:///default/db/token\"\n"
    );
    let files = [(POLICY, policy()), ("aa.toml", aa), ("cdh.toml", cdh)];
    let files = files.map(|(name, text)| (name.to_owned(), text));
    Initdata::new(Algorithm::Sha256, files.into()).unwrap()
}

/// A guest of a broker, in which the pod's own container runs, and an image for others.
struct Pod {
    guest: Guest,
    image: String,
}

impl Pod {
    async fn start(broker: &Broker, with_tee: bool) -> Self {
        let (broker, registry) = (broker::serve(broker).await, registry::serve().await);
        let initdata = initdata(broker);
        let plain = format!("nacre.danger_plain_http={HOST_FROM_GUEST}:{registry}");
        let parameters = if with_tee { format!("{plain} nacre.tee=emulated-snp") } else { plain };
        let processor = with_tee.then(|| {
            let [firmware, kernel, initrd] = measured_files();
            let line = command_line(&parameters);
            let launch = Measured::of_files(&firmware, &kernel, &initrd, &line, 1).unwrap();
            Processor::launch(&ROOT, &launch, initdata.digest().host_data()).unwrap()
        });
        let disk = initdata.to_disk().unwrap();
        let launch = Launch {
            kernel_parameters: &parameters,
            initdata: Some(&disk),
            processor,
            ..Default::default()
        };
        let guest = Guest::boot(launch).await;
        guest.create_sandbox().await;
        guest.run(&container("pod", "pause", &["/pause"])).await;
        Self { guest, image: format!("{HOST_FROM_GUEST}:{registry}/busybox:latest") }
    }

    /// A container with more variables.
    fn busybox(&self, id: &str, script: &str, env: &[String]) -> CreateContainerRequest {
        let mut request = container(id, &self.image, &["/bin/sh", "-c", script]);
        let process = request.OCI.mut_or_insert_default().Process.mut_or_insert_default();
        process.Env.extend_from_slice(env);
        request
    }
}

async fn refused(guest: &Guest, request: &CreateContainerRequest) -> String {
    let begun = Instant::now();
    let text = message(guest.agent.create_container(context(120), request).await);
    eprintln!("after {:?}: {text}", begun.elapsed());
    assert!(text.len() <= 1024, "{text}");
    text
}

/// Head and body of an answer of the endpoint.
async fn ask(guest: &Guest, container: &str, request: &str) -> String {
    let script = format!("printf '{request} HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8006");
    guest.shell(container, &script).await.1
}

async fn ask_for(guest: &Guest, container: &str, path: &str) -> String {
    ask(guest, container, &format!("GET {path}")).await
}

/// One after the other: two emulated processors are busy with one boot.
#[tokio::test]
async fn stories() {
    if let Some(missing) = guest::missing() {
        eprintln!("skipped: {} is absent; run `cargo xtask image`", missing.display());
        return;
    }
    secrets_reach_the_containers_that_may_have_them().await;
    without_a_tee_nothing_is_unsealed().await;
}

async fn secrets_reach_the_containers_that_may_have_them() {
    let broker = broker();
    let pod = Pod::start(&broker, true).await;
    let guest = &pod.guest;

    // Before anything was proved: the broker does not believe this guest, and says why.
    let env = |name: &str, value: String| [format!("{name}={value}")];
    let password = env("PASSWORD", vault("kbs:///default/web/password"));
    let why = "snp-measurement: found 00, which is none of 1 reference value";
    broker.lock().unwrap().refusal = Some(why.into());
    let text = refused(guest, &pod.busybox("app", "true", &password)).await;
    assert!(text.contains("failed to unseal the variable PASSWORD"), "{text}");
    assert!(text.contains(why) && text.contains("nacre kbs explain request-7"), "{text}");
    broker.lock().unwrap().refusal = None;

    // What nobody signed, what is not granted, what is no text.
    let fake = env("FAKE", "sealed.fakejwsheader.e30.fakesignature".into());
    let text = refused(guest, &pod.busybox("app", "true", &fake)).await;
    assert!(text.contains("not signed") && text.contains("nacre seal"), "{text}");
    let other = env("OTHER", vault("kbs:///default/other/1"));
    let text = refused(guest, &pod.busybox("app", "true", &other)).await;
    assert!(text.contains("kbs:///default/other/1") && text.contains("no grant"), "{text}");
    let binary = env("BINARY", vault("kbs:///default/web/binary"));
    let text = refused(guest, &pod.busybox("app", "true", &binary)).await;
    assert!(text.contains("is not text"), "{text}");

    // A broker that is away for a moment, and a volume as the kubelet lays it out.
    broker.lock().unwrap().failures = 2;
    let volume = format!("{COPY_ROOT}/app-volume");
    guest
        .copy(&format!("{volume}/..1/password"), format!("{}\n", envelope(PASSWORD)).as_bytes())
        .await;
    guest
        .copy(&format!("{volume}/..1/binary"), vault("kbs:///default/web/binary").as_bytes())
        .await;
    guest.copy(&format!("{volume}/..1/user"), b"app").await;
    let script = "echo \"$PASSWORD\"; cat /volume/..1/password; echo; cat /volume/..1/user; echo; \
                  od -An -tx1 /volume/..1/binary; \
                  cat /run/confidential-containers/cdh/kbs/db/token; echo; \
                  stat -c %a:%u /run/confidential-containers/cdh/kbs/db/token; \
                  echo x > /run/confidential-containers/cdh/kbs/db/token || echo read-only; sleep 1000";
    let mut request = pod.busybox("app", script, &password);
    let spec = request.OCI.mut_or_insert_default();
    spec.Mounts.push(mount("bind", &volume, "/volume", &["rbind", "rprivate", "ro"]));
    let begun = Instant::now();
    guest.run(&request).await;
    eprintln!("a container with secrets after {:?}", begun.elapsed());
    let mut output = String::new();
    while !output.contains("read-only\n") {
        let piece = guest.read("app", "", Stream::Stdout).await.unwrap();
        output.push_str(&String::from_utf8(piece).unwrap());
    }
    let expected = [PASSWORD, PASSWORD, "app", " 00 ff 0a", "token", "400:0", "read-only"];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);

    // A command comes with the variables as the host knows them.
    let mut process = shell_process("echo $PASSWORD");
    process.Env.extend_from_slice(&password);
    guest.exec("app", "env", process).await.unwrap();
    let printed = guest.read_all("app", "env", Stream::Stdout).await;
    assert_eq!(String::from_utf8(printed).unwrap().trim(), PASSWORD);

    // Another container mounts the same volume: it gets a copy of its own, and no credential.
    let mut other = pod.busybox("other", "sleep 1000", &[]);
    let spec = other.OCI.mut_or_insert_default();
    spec.Mounts.push(mount("bind", &volume, "/volume", &["rbind", "rprivate", "ro"]));
    guest.run(&other).await;
    let (_, seen, _) =
        guest.shell("other", &format!("cat /volume/..1/password; ls {CREDENTIAL}")).await;
    assert_eq!(seen, PASSWORD);

    endpoint(guest, &broker).await;
    let console = guest.console();
    assert!(!console.contains(PASSWORD), "{console}");
}

/// By whom it is asked, the policy decides.
async fn endpoint(guest: &Guest, broker: &Broker) {
    let resource = "/cdh/resource/default/web/password";
    let (_, answer, _) =
        guest.shell("app", &format!("wget -q -O- http://127.0.0.1:8006{resource}")).await;
    assert_eq!(answer, PASSWORD);
    let answer = ask_for(guest, "other", resource).await;
    assert!(answer.contains(" 403 ") && answer.contains("policy denies GuestApi"), "{answer}");
    assert!(!answer.contains(PASSWORD), "{answer}");
    for (request, words) in [
        ("GET /cdh/resource/team/web/password", "policy denies GuestApi"),
        ("GET /cdh/resource/default/web/absent", "no grant covers it"),
        ("GET /cdh/resource/default/web", " 400 "),
        ("POST /cdh/resource/default/web/password", " 405 "),
        ("GET /nothing", " 404 "),
        ("GET /info", "\"tee\":\"emulated-snp\""),
        ("GET /aa/token?token_type=kbs", "BEGIN PRIVATE KEY"),
        ("GET /aa/evidence?runtime_data=hello", "attestation_report"),
        ("GET /aa/additional-evidence?runtime_data=hello", " 200 "),
    ] {
        let answer = ask(guest, "app", request).await;
        assert!(answer.contains(words), "{request}: {answer}");
    }
    let event = r#"{"domain":"a","operation":"b","content":"c"}"#;
    let post = format!("wget -q -O- --post-data='{event}' http://127.0.0.1:8006/aa/aael");
    let (_, answer, _) = guest.shell("app", &post).await;
    assert!(answer.contains("\"success\":\"false\"") && answer.contains("no runtime"), "{answer}");

    // The broker was restarted and has forgotten everybody: the same pod goes on.
    let before = broker.lock().unwrap().attestations;
    broker.lock().unwrap().oldest_token = before + 1;
    let (_, answer, _) =
        guest.shell("app", &format!("wget -q -O- http://127.0.0.1:8006{resource}")).await;
    assert_eq!(answer, PASSWORD);
    let told = broker.lock().unwrap();
    assert_eq!(told.attestations, before + 1);
    assert!(told.init_data.as_ref().unwrap().contains("cdh.toml"));
}

async fn without_a_tee_nothing_is_unsealed() {
    let broker = broker();
    let pod = Pod::start(&broker, false).await;
    let guest = &pod.guest;
    let env = [format!("PASSWORD={}", vault("kbs:///default/web/password"))];
    let text = refused(guest, &pod.busybox("web", "true", &env)).await;
    assert!(text.contains("without a TEE"), "{text}");
    guest.run(&pod.busybox("other", "sleep 1000", &[])).await;
    let answer = ask_for(guest, "other", "/info").await;
    assert!(answer.contains(" 403 "), "{answer}");
    assert_eq!(broker.lock().unwrap().attestations, 0);
}
