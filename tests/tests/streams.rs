//! Big and interactive streams, with `ctr`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Image, World, container};

const SIZE: usize = 64 << 20;
/// What the guest makes and sums itself, which an emulated processor takes seconds for.
const GUESTS_SIZE: usize = 16 << 20;

/// Bytes that look random and are the same every time (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[tokio::test]
async fn big_streams_arrive_intact_in_both_directions() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("streams").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let ctr = world.ctr().in_pods();

    let sent = noise(SIZE);
    let echo =
        ctr.run_with_input(&["task", "exec", "--exec-id", "echo", app.id(), "cat"], sent.clone());
    let echo = echo.unwrap();
    assert_eq!(
        (echo.code, echo.stdout.len()),
        (0, SIZE),
        "{}",
        String::from_utf8_lossy(&echo.stderr)
    );
    assert!(echo.stdout == sent, "the echo differs from what was sent");

    let script =
        format!("head -c {GUESTS_SIZE} /dev/urandom > /tmp/x; sha256sum < /tmp/x >&2; cat /tmp/x");
    let words = ["task", "exec", "--exec-id", "out", app.id(), "sh", "-c", &script];
    let out = ctr.run(&words).unwrap();
    assert_eq!((out.code, out.stdout.len()), (0, GUESTS_SIZE));
    let sum = nacre_tests::sha256(&out.stdout);
    assert!(String::from_utf8_lossy(&out.stderr).starts_with(&sum), "stdout was altered");
}

#[tokio::test]
async fn a_terminal_has_a_size_that_follows() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("terminal").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let script = "while read line; do stty size; [ \"$line\" = end ] && exit 9; done";
    let words = ["task", "exec", "--tty", "--exec-id", "tty", app.id(), "sh", "-c", script];
    let mut terminal = world.ctr().in_pods().in_terminal(&words).unwrap();
    terminal.type_until("", "24 80").unwrap();
    terminal.resize(50, 132).unwrap();
    terminal.type_until("", "50 132").unwrap();
    terminal.type_line("end").unwrap();
    assert_eq!(terminal.wait_exit().unwrap(), 9);
}

#[tokio::test]
async fn a_container_without_a_pod_takes_what_the_image_says() {
    let world = World::new().await.unwrap();
    // Nobody made a policy for it: the administrator lets everything through.
    world.danger_allow_all_by_default().unwrap();
    let image = Image::busybox("app").entrypoint(["sh", "-c"]).command(["id -u; pwd; echo $COLOR"]);
    let image = world.push(&image.env("COLOR", "nacre").user("1000").directory("/tmp")).unwrap();
    world.pull(&image).await.unwrap();
    let network = world.network("alone").unwrap();
    let ctr = world.ctr().in_pods();
    let words = ctr.run_words(&network, &image);
    let words: Vec<&str> =
        words.iter().map(String::as_str).chain([image.as_str(), "alone"]).collect();
    let output = ctr.run(&words).unwrap();
    assert_eq!(output.text(), "1000\n/tmp\nnacre", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.code, 0);
    world.remove_network("alone").unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
