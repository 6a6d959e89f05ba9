//! What `nacre exec-vm` gives, and to whom not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Image, World, container};

#[tokio::test]
async fn a_shell_is_in_guests_of_the_development_image_only() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();

    let pod = world.pod("closed").with(container("app", &image).idle()).await.unwrap();
    let refused = world.exec_vm(&pod.id()[..12], &["true"]).unwrap();
    assert_eq!(refused.code, 2);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("has no shell") && text.contains("danger_development_image"), "{text}");
    assert!(!world.path("/run/nacre").join(pod.id()).join("shell.sock").exists());
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    let none = world.exec_vm("stories/closed", &["true"]).unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("no running pod is"), "{none:?}");

    world
        .configure_shim(|text| text.replace("[vm]\n", "[vm]\ndanger_development_image = true\n"))
        .unwrap();
    let pod = world.pod("open").with(container("app", &image).idle()).await.unwrap();
    let app = pod.start("app").await.unwrap();
    let script = "cat /proc/1/comm; pidof sleep; echo bad >&2; exit 7";
    let ran = world.exec_vm("stories/open", &["sh", "-c", script]).unwrap();
    assert_eq!(ran.code, 7, "{ran:?}");
    // The container's process is one among the guest's.
    assert!(ran.text().starts_with("init\n") && ran.text().lines().count() == 2, "{ran:?}");
    assert_eq!(ran.stderr, b"bad\n");

    // The guest's kernel dies, and the agent with it, in the middle of the answer.
    let script = "echo c > /proc/sysrq-trigger";
    let died = world.exec_vm("stories/open", &["sh", "-c", script]).unwrap();
    assert_ne!(died.code, 0, "{died:?}");
    assert_ne!(app.wait_exit().await.unwrap().code, 0);
    let log = world.containerd_log().unwrap();
    assert!(log.contains("the guest's kernel panicked: sysrq triggered crash"), "{log}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
