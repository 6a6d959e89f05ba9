//! Where policies come from, and recordings of requests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Image, World, container};

#[tokio::test]
async fn a_policy_comes_with_the_pod_or_nothing_is_allowed() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let bare = || world.pod("bare").with(container("app", &image).idle()).without_policy();
    let error = bare().await.unwrap_err().to_string();
    assert!(error.contains("policy"), "{error}");
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());

    // Where the administrator says so, and every guest's command line with them, the host sets it.
    world.danger_set_policy().unwrap();
    let pod = bare().await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(
        app.sh("cat /proc/cmdline").await.unwrap().matches("danger_set_policy=1").count(),
        1
    );
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}

#[tokio::test]
async fn what_a_development_image_records_has_the_same_verdicts_when_it_is_replayed() {
    let world = World::new().await.unwrap();
    let requests = world.danger_record().unwrap();
    // The node does not know who that is: the guest asks the policy about it.
    let image = world.push(&Image::busybox("app").user("tester")).unwrap();
    let script = ["sh", "-c", "id; exec sleep 1000"];
    let app = container("app", &image).args(script).image_user("tester");
    let pod = world.pod("recorded").with(app).with_policy().unwrap();
    let annotation = pod.annotation_text().to_owned();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("uid=1000(tester) gid=1000(tester)").await.unwrap();
    assert!(app.exec(["id"]).await.unwrap_err().to_string().contains("policy denies"));
    let requests = format!("{requests}/{}.jsonl", pod.id());
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    let table = world.replay(&annotation, &requests).unwrap();
    assert!(table.contains("CreateContainerRequest"), "{table}");
    assert!(table.contains("ImageUserRequest"), "{table}");

    // The same requests under another pod's policy: some were not allowed.
    let other = world.pod("recorded").with(container("app", &image).args(["sleep", "1"]));
    let other = other.with_policy().unwrap().annotation_text().to_owned();
    let error = world.replay(&other, &requests).unwrap_err().to_string();
    assert!(error.contains("policy test"), "{error}");
}

#[tokio::test]
async fn an_ordinary_image_cannot_be_made_to_record() {
    let world = World::new().await.unwrap();
    let record = |text: String| format!("{text}\n[agent]\ndanger_record = \"/run/world\"\n");
    world.configure_shim(record).unwrap();
    let error = world.pod("spied-on").await.unwrap_err().to_string();
    assert!(error.contains("development image"), "{error}");
}
