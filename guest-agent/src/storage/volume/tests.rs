use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use nacre_policy::Gate;

const DECLARED: &str = "[[volume]]\nname = \"data\"\nmounts = [\"app:/data\", \"/shared\"]\n\
                        danger_plaintext = true\n\
                        [[volume]]\nname = \"raw\"\nmounts = [\"app:/dev/xvda\"]\nkey = \"kbs:///a/b/c\"\n\
                        read_only = true\n";

fn declared() -> DeclaredVolumes {
    DeclaredVolumes::parse(DECLARED).unwrap()
}

fn disk(path: &str) -> Wanted {
    Wanted {
        serial: "nacre-volume-0".into(),
        path: path.into(),
        kind: Kind::FileSystem,
        read_only: false,
    }
}

fn asked(disks: &[&str], others: &[&str]) -> Asked {
    Asked {
        wanted: disks.iter().map(|path| disk(path)).collect(),
        places: disks.iter().chain(others).map(|path| (*path).to_owned()).collect(),
        ..Asked::default()
    }
}

#[test]
fn a_declared_place_gets_its_disk_and_nothing_else() {
    let declared = declared();
    let problem = |container: &str, asked: &Asked| {
        checked(&declared, container, asked).map(|pairs| pairs.len()).map_err(|e| e.to_string())
    };
    assert_eq!(problem("other", &asked(&["/shared"], &["/proc"])), Ok(1));
    assert_eq!(problem("other", &asked(&[], &["/proc"])), Ok(0));
    for (container, asked, expected) in [
        // Copied files, a tmpfs, a device: the request mounts something there, and it is no disk.
        ("other", asked(&[], &["/shared"]), "the volume data is to be at /shared"),
        // A disk, and something above it.
        ("other", asked(&["/shared"], &["/shared"]), "the volume data is to be at /shared"),
        ("app", asked(&[], &[]), "the volume data is to be at /data"),
        ("app", asked(&["/data"], &[]), "the volume raw is to be at /dev/xvda"),
        ("app", asked(&["/data", "/dev/xvda"], &[]), "the volume raw is read_only"),
        ("other", asked(&["/data"], &[]), "declared no volume for other:/data"),
    ] {
        let error = problem(container, &asked).unwrap_err();
        assert!(error.contains(expected), "{asked:?}: {error}");
    }
}

#[test]
fn a_declared_place_is_not_among_files_that_the_host_copies() {
    let declared = declared();
    let mut asked = asked(&["/shared"], &["/", "/shared/x", "/share"]);
    asked.copied = vec!["/shared/x".into(), "/share".into()];
    assert_eq!(checked(&declared, "other", &asked).unwrap().len(), 1);
    asked.copied.push("/".into());
    let error = checked(&declared, "other", &asked).unwrap_err().to_string();
    assert!(error.contains("among files that the host copies to /:"), "{error}");
}

#[test]
fn a_key_is_one_whatever_query_it_is_asked_with() {
    let key = "key = \"kbs:///a/b/c\"";
    for declared in [DECLARED.to_owned(), DECLARED.replace(key, "key = \"kbs:///a/b/c?v=1\"")] {
        let declared = DeclaredVolumes::parse(&declared).unwrap();
        let volumes = Volumes::of(declared, Arc::new(Task::run));
        let has_key = |uri: &str| volumes.has_key(&uri.parse().unwrap());
        assert!(has_key("kbs:///a/b/c") && has_key("kbs:///a/b/c?v=2"));
        assert!(!has_key("kbs:///a/b/d"));
    }
}

#[tokio::test]
async fn a_key_that_does_not_come_keeps_nothing_open() {
    let (volumes, begun, _go_on) = slow();
    let (has_come, comes) = tokio::sync::oneshot::channel();
    let waiting = tokio::spawn({
        let volumes = Arc::clone(&volumes);
        async move {
            let declared = volumes.declared.at("app", "/dev/xvda").unwrap();
            let wanted = Wanted { kind: Kind::Device, ..disk("/dev/xvda") };
            let secret = async { Ok(Some(comes.await.unwrap())) };
            volumes.opened(declared, &wanted, "", secret).await.map(|_| ())
        }
    });
    tokio::task::yield_now().await;
    tokio::time::timeout(Duration::from_secs(60), volumes.close()).await.unwrap();
    has_come.send(Zeroizing::new(vec![1; 32])).unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, VolumeError::Cut), "{error}");
    assert!(begun.try_recv().is_err(), "it was opened after the pod's end");
}

/// Volumes whose opening says when it has begun, and waits to be let go on.
fn slow() -> (Arc<Volumes>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (has_begun, begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let may_go_on = Mutex::new(may_go_on);
    let open = move |task: &Task, _: &AtomicBool| {
        has_begun.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
        Ok(OpenVolume {
            name: task.declared.name.clone(),
            kind: task.kind,
            read_only: true,
            node: PathBuf::from("/dev/null"),
            numbers: (1, 3),
            mapped: Vec::new(),
            mount: None,
        })
    };
    (Arc::new(Volumes::of(declared(), Arc::new(open))), begun, go_on)
}

fn provide(volumes: &Arc<Volumes>) -> tokio::task::JoinHandle<Result<(), VolumeError>> {
    let volumes = Arc::clone(volumes);
    tokio::spawn(async move {
        let secrets = Secrets::new(None, None, Gate::without_policy()).unwrap();
        volumes.provide(&secrets, "other", &asked(&["/shared"], &[])).await.map(|_| ())
    })
}

async fn received(begun: mpsc::Receiver<()>) -> mpsc::Receiver<()> {
    let wait = move || {
        begun.recv_timeout(Duration::from_secs(60)).unwrap();
        begun
    };
    tokio::task::spawn_blocking(wait).await.unwrap()
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_one_open_volume_that_is_closed_with_the_others() {
    let (volumes, begun, go_on) = slow();
    let first = provide(&volumes);
    let begun = received(begun).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // The second waits for the first one's opening, and then has it.
    let second = provide(&volumes);
    tokio::task::yield_now().await;
    assert!(begun.try_recv().is_err(), "two make one volume");
    go_on.send(()).unwrap();
    second.await.unwrap().unwrap();
    assert!(begun.try_recv().is_err(), "it was opened twice");
    assert_eq!(volumes.shared.open().len(), 1);
    volumes.close().await;
    assert!(volumes.shared.open().is_empty());
    let error = provide(&volumes).await.unwrap().unwrap_err();
    assert!(matches!(error, VolumeError::Cut), "{error}");
}
