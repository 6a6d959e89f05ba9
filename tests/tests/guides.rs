//! The commands of the guides, run as they stand there. What is exchanged for the names of this world is
//! listed beside each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

use nacre_tests::{CONTAINERD_CONFIG, ContainerdVersion, Image, Runtime, World, container};

const DIRECTORY: &str = "/run/world/guide";
const VERSION: ContainerdVersion = ContainerdVersion::V1_7;
const SECRET: &str = "what the guide promises";

/// The commands of a page's `console` blocks beneath a heading, one a line.
fn commands(page: &str, heading: &str) -> String {
    let from = page.find(&format!("\n## {heading}\n")).expect("the heading is there") + 4;
    let section = page[from..].split("\n## ").next().unwrap_or_default();
    let mut lines = String::new();
    let blocks = section.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    for line in blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")) {
        lines.push_str(line);
        lines.push('\n');
    }
    assert!(!lines.is_empty(), "{heading} has no commands any more");
    lines
}

fn exchanged(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in {text}");
        text.replace(from, to)
    })
}

/// Runs lines of shell in the guide's directory, and stops at the first that fails.
fn run(world: &World, lines: &str) -> anyhow::Result<String> {
    let program = world.products().nacre();
    let directory = program.parent().unwrap().display().to_string();
    // There is no cluster here: what would be applied is kept, and started by the test through CRI.
    let kubectl = "kubectl() { [ \"$1 $2\" = \"apply -f\" ] && cp \"$3\" applied.yaml; }";
    let script = format!(
        "set -eu; mkdir -p {DIRECTORY}; cd {DIRECTORY}; PATH={directory}:$PATH\n{kubectl}\n{lines}"
    );
    world.run(&["bash", "-c", &script])
}

/// A node that `nacre install` set up, and that emulates as the guide says.
async fn trial_node(guide: &str) -> World {
    let mut world =
        World::builder().runtime(Runtime::Runc).containerd(VERSION).start().await.unwrap();
    world.may_be_installed_on().unwrap();
    let containerd = world.products().containerd(VERSION).join("containerd");
    let [bundle, containerd, qemu] =
        [world.bundle("guide").unwrap(), containerd, world.products().qemu()]
            .map(|path| path.display().to_string());
    let words = ["install", "--no-start", "--from", &bundle, "--qemu", &qemu];
    let place = ["--containerd", &containerd, "--containerd-config", CONTAINERD_CONFIG];
    let (code, _, said) = world.ask_nacre(&[&words[..], &place].concat()).unwrap();
    assert_eq!(code, 0, "{said}");
    world.configure_node().unwrap();
    let settings = commands(guide, "Trying it out");
    let (setting, measure) = settings.split_once('\n').unwrap();
    assert_eq!(measure, "nacre measure --tee emulated-snp -o guest.json\n");
    run(&world, setting).unwrap();
    // Its root is made once for all tests: that takes some seconds.
    let root = world.products().emulated_root().display().to_string();
    world.run(&["ln", "-s", &root, "/var/lib/nacre/emulated"]).unwrap();
    world.start_unit("nacre-snapshotter.service", "/run/nacre/snapshotter.sock").await.unwrap();
    world.restart_containerd().await.unwrap();
    world.run_pods_by(Runtime::Nacre);
    world
}

#[tokio::test]
async fn six_commands_lead_to_an_attested_secret() {
    let guide = include_str!("../../docs/guide/workload-owner.md");
    let world = trial_node(guide).await;
    let image = world.push(&Image::busybox("web")).unwrap();
    world.start_broker().await.unwrap();
    run(&world, &format!("cp ../kbs/tls.crt ../kbs/admin.key .; printf '{SECRET}' > password.txt"))
        .unwrap();
    let registry = image.split('/').next().unwrap();
    let settings = format!("[registry]\ndanger_plain_http = [{registry:?}]\n");
    fs::write(world.path(&format!("{DIRECTORY}/settings.toml")), settings).unwrap();
    let pod = guide.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let names = [
        ("registry.example/web:1", image.as_str()),
        ("  name: web\n", "  name: web\n  namespace: stories\n"),
        // What the guide says of trying it out.
        ("runtimeClassName: nacre-snp", "runtimeClassName: nacre-dev"),
        ("runtime-handler: nacre-snp", "runtime-handler: nacre"),
    ];
    fs::write(world.path(&format!("{DIRECTORY}/web.yaml")), exchanged(pod, &names)).unwrap();

    let before = guide.split("\n## ").next().unwrap();
    let export = commands(&format!("\n## Before\n{before}"), "Before");
    let six = commands(guide, "The six");
    assert!(six.lines().count() <= 6, "{six}");
    let lines = exchanged(
        &format!("{export}{six}"),
        &[
            ("kbs.example", "10.88.0.1"),
            (
                "nacre measure --tee snp --tcb-minimum tcb.json ",
                "nacre measure --danger-accept --tee emulated-snp ",
            ),
            ("nacre policy generate ", "nacre policy generate --settings settings.toml "),
        ],
    );
    run(&world, &lines).unwrap();

    let applied = fs::read_to_string(world.path(&format!("{DIRECTORY}/applied.yaml"))).unwrap();
    // The harness asks for the handler that the class leads to, with this annotation.
    let class = include_str!("../../deploy/kubernetes/runtimeclass-dev.yaml");
    assert!(class.contains("name: nacre-dev\nhandler: nacre\n"));
    assert!(applied.contains("runtimeClassName: nacre-dev"), "{applied}");
    assert!(applied.contains("io.containerd.cri.runtime-handler: nacre\n"), "{applied}");
    let annotation =
        applied.lines().find_map(|line| line.trim().split_once("cc_init_data: ")).unwrap().1;
    let script = "cat /run/confidential-containers/cdh/password; echo; sleep 1000";
    assert!(pod.contains(script));
    let app = container("app", &image).script(script);
    let pod = world.pod("web").with(app).with_initdata(annotation.trim_matches(['"', '\'']));
    let pod = pod.await.unwrap();
    pod.start("app").await.unwrap().wait_for(SECRET).await.unwrap();
}

#[tokio::test]
async fn five_commands_make_a_broker() {
    let page = include_str!("../../docs/attestation.md");
    let world = World::new().await.unwrap();
    let lines = exchanged(
        &commands(page, "A broker in five commands"),
        &[
            ("/var/lib/nacre-kbs", "/run/world/own-kbs"),
            ("kbs.example", "127.0.0.1"),
            // What is at once a person's next command must wait for the start here.
            (
                "config.toml &\n",
                "config.toml 2>log & trap \"kill $!\" EXIT; until grep -q serving log; do sleep 0.1; done\n",
            ),
        ],
    );
    let said = run(&world, &lines).unwrap();
    assert!(said.contains("BYTES") && said.contains("nacre kbs serve --config"), "{said}");
}
