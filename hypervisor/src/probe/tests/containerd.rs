//! Configurations of containerd.

use super::hosts::{CONTAINERD_CONFIG, SHIM, SNAPSHOTTER, install_containerd, server};
use super::{FakeHost, Status, Tee, finding, question};
use crate::probe::{Facts, Kind};

const V1_6: &str = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n";
const V1_7: &str = "containerd containerd.io 1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182\n";
const V2_1: &str = "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4e490e9fbdc\n";

fn with(version: &'static str, config: &str) -> FakeHost {
    let mut host = server();
    install_containerd(&mut host, version);
    host.write(CONTAINERD_CONFIG, config);
    host
}

fn status(host: &FakeHost, id: &str) -> Status {
    finding(host, Tee::None, id).status
}

const IDS: [&str; 5] = [
    "containerd.version",
    "containerd.config",
    "containerd.handler",
    "containerd.snapshotter",
    "containerd.shim",
];

#[test]
fn the_lines_that_are_shipped_pass() {
    for (version, text, config) in [
        (V1_6, "1.6.20", include_str!("../../../../deploy/containerd/1.6.toml")),
        (V1_7, "1.7.24", include_str!("../../../../deploy/containerd/1.7.toml")),
        (V2_1, "2.1.4", include_str!("../../../../deploy/containerd/2.1.toml")),
    ] {
        let host = with(version, config);
        for id in IDS {
            let finding = finding(&host, Tee::None, id);
            assert_eq!(finding.status, Status::Pass, "{text}: {finding:?}");
        }
        assert!(finding(&host, Tee::None, "containerd.version").found.starts_with(text));
    }
}

#[test]
fn lines_may_be_in_files_that_are_imported() {
    let shipped = include_str!("../../../../deploy/containerd/2.1.toml");
    let mut host = with(V2_1, "version = 3\nimports = [\"conf.d/*.toml\"]\n");
    host.write("/etc/containerd/conf.d/nacre.toml", shipped);
    host.write("/etc/containerd/conf.d/notes.txt", "no TOML");
    for id in IDS {
        assert_eq!(status(&host, id), Status::Pass, "{id}");
    }
    let config = finding(&host, Tee::None, "containerd.config");
    assert!(config.found.ends_with("version 3, 1 imported"), "{config:?}");
    // Circles end, and a directory that is not there is no mistake.
    host.write(
        "/etc/containerd/conf.d/again.toml",
        "imports = [\"/etc/containerd/config.toml\", \"again.toml\", \"/nowhere/*.toml\"]",
    );
    assert_eq!(status(&host, "containerd.config"), Status::Pass);
}

#[test]
fn before_2_0_a_later_file_replaces_the_section_of_cri() {
    let shipped = include_str!("../../../../deploy/containerd/1.7.toml");
    let other = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\n";
    let main = "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    let mut host = with(V1_7, main);
    host.write("/etc/containerd/conf.d/10-nacre.toml", shipped);
    assert_eq!(status(&host, "containerd.handler"), Status::Pass);
    host.write("/etc/containerd/conf.d/20-cni.toml", other);
    assert_eq!(status(&host, "containerd.handler"), Status::Fail);
    install_containerd(&mut host, V2_1);
    assert_eq!(status(&host, "containerd.handler"), Status::Pass);
}

#[test]
fn what_is_wrong_is_named() {
    let shipped = include_str!("../../../../deploy/containerd/2.1.toml");
    for (version, config, id, expected, text) in [
        (V2_1, "", "containerd.config", Status::Fail, "version 1"),
        (V2_1, "version = 3", "containerd.handler", Status::Fail, "cri.v1.runtime is Nacre's"),
        (V2_1, "version = [", "containerd.config", Status::Fail, "config.toml is not valid"),
        (V2_1, "imports = [\"a.toml\"]", "containerd.config", Status::Fail, "a.toml is absent"),
        (V2_1, "imports = [\"*/a.toml\"]", "containerd.config", Status::Fail, "of directories"),
        (V2_1, "\u{0}", "containerd.config", Status::Fail, "is not valid"),
        (V1_7, shipped, "containerd.config", Status::Fail, "version 3"),
        (
            V2_1,
            &shipped.replace("pod_annotations = [\"io.katacontainers.*\", \"io.nacre.*\"]", ""),
            "containerd.handler",
            Status::Warn,
            "nacre",
        ),
        (
            V2_1,
            &shipped.replace("/etc/nacre/config.toml", "/etc/nacre/other.toml"),
            "containerd.handler",
            Status::Fail,
            "nacre by /etc/nacre/other.toml, which is absent",
        ),
        (
            V2_1,
            &shipped.replace("pod_annotations = [", "pod_annotations = [1, "),
            "containerd.config",
            Status::Fail,
            "runtime nacre",
        ),
        (
            V2_1,
            &shipped.replace("snapshotter = \"nacre\"", ""),
            "containerd.snapshotter",
            Status::Warn,
            "containerd's own",
        ),
        (
            V2_1,
            &shipped.replace("[proxy_plugins.nacre]", "[proxy_plugins.other]"),
            "containerd.snapshotter",
            Status::Fail,
            "no service",
        ),
    ] {
        let found = finding(&with(version, config), Tee::None, id);
        assert_eq!(found.status, expected, "{config}: {found:?}");
        assert!(found.found.contains(text), "{text}: {found:?}");
    }
    let annotated = include_str!("../../../../deploy/containerd/1.7.toml");
    let annotated = annotated.replace("disable_snapshot_annotations = false", "");
    assert_eq!(status(&with(V1_7, &annotated), "containerd.snapshotter"), Status::Warn);
    let wide = shipped.replace("\"io.katacontainers.*\", \"io.nacre.*\"", "\"io.*\"");
    assert_eq!(status(&with(V2_1, &wide), "containerd.handler"), Status::Pass);
}

#[test]
fn a_handler_runs_pods_with_what_its_own_configuration_says() {
    let shipped = include_str!("../../../../deploy/containerd/2.1.toml");
    let mut host = with(V2_1, shipped);
    let handler = |host: &FakeHost, tee| finding(host, tee, "containerd.handler");
    assert_eq!(handler(&host, Tee::None).found, "nacre by /etc/nacre/config.toml (none)");
    let other = handler(&host, Tee::Snp);
    assert_eq!(other.status, Status::Fail);
    assert!(other.advice.contains("vm.tee = \"snp\""), "{other:?}");
    assert_eq!(finding(&host, Tee::Snp, "containerd.shim").status, Status::NotApplicable);
    host.write("/etc/nacre/config.toml", "snp");
    assert_eq!(handler(&host, Tee::Snp).status, Status::Pass);
    assert_eq!(handler(&host, Tee::None).status, Status::Fail);
    host.write("/etc/nacre/config.toml", "sgx");
    assert!(handler(&host, Tee::Snp).found.contains("which is of no use: no tee"));
    host.denied = vec!["/etc/nacre/config.toml".into()];
    assert_eq!(handler(&host, Tee::Snp).status, Status::Unknown);
    // Without a file the shim has its defaults, but for one that a handler names.
    host.denied.clear();
    host.remove("/etc/nacre/config.toml");
    assert_eq!(handler(&host, Tee::None).status, Status::Fail);
    host.write(CONTAINERD_CONFIG, shipped.replace("ConfigPath", "Other"));
    assert_eq!(handler(&host, Tee::None).status, Status::Pass);
    // A question about a configuration that no handler reads.
    host.write("/etc/nacre/node.toml", "none");
    host.write(CONTAINERD_CONFIG, shipped.replace("nacre/config.toml", "nacre/node.toml"));
    assert_eq!(handler(&host, Tee::None).status, Status::Pass);
    let mut about = question();
    about.containerd.shim_config = Some("/etc/nacre/config.toml".into());
    let report = Facts::gather(&host, &about).report(&about, Tee::None);
    let mut doubts = report.of(Status::Warn).map(|finding| finding.advice.as_str());
    assert!(doubts.any(|advice| advice.contains("none of them reads /etc/nacre/config.toml")));
}

#[test]
fn the_shim_and_the_snapshotter_must_be_there() {
    let mut host = server();
    host.others.insert(SNAPSHOTTER.into(), Kind::Other);
    assert_eq!(status(&host, "containerd.snapshotter"), Status::Fail);
    host.programs.remove(std::path::Path::new(SHIM));
    assert_eq!(status(&host, "containerd.shim"), Status::Fail);
    // A handler may name its program.
    let shipped = include_str!("../../../../deploy/containerd/2.1.toml");
    let named =
        shipped.replace("io.containerd.nacre.v2", "/opt/nacre/bin/containerd-shim-nacre-v2");
    host.write(CONTAINERD_CONFIG, &named);
    let shim = finding(&host, Tee::None, "containerd.shim");
    assert!(shim.found.contains("/opt/nacre/bin/containerd-shim-nacre-v2"), "{shim:?}");
    host.programs.insert("/opt/nacre/bin/containerd-shim-nacre-v2".into(), Default::default());
    assert_eq!(status(&host, "containerd.shim"), Status::Pass);
}

#[test]
fn containerd_that_is_not_there_or_too_old_is_told() {
    let mut host = server();
    install_containerd(&mut host, "containerd github.com/containerd/containerd 1.5.9 x\n");
    assert_eq!(status(&host, "containerd.version"), Status::Fail);
    install_containerd(&mut host, "cannot run\n");
    assert_eq!(status(&host, "containerd.version"), Status::Warn);
    host.programs.remove(std::path::Path::new("/usr/bin/containerd"));
    assert_eq!(status(&host, "containerd.version"), Status::Warn);
}

#[test]
fn files_that_are_imported_are_bounded() {
    let mut host = with(V2_1, "version = 3\nimports = [\"conf.d/*.toml\"]\n");
    for number in 0..70 {
        host.write(&format!("/etc/containerd/conf.d/{number}.toml"), "");
    }
    let config = finding(&host, Tee::None, "containerd.config");
    assert!(config.found.contains("more than 64 files"), "{config:?}");
    for number in 0..2000 {
        host.write(&format!("/etc/containerd/conf.d/{number}.toml"), "");
    }
    assert_eq!(status(&host, "containerd.config"), Status::Fail);
    let host = with(V2_1, &format!("# {}\n", "x".repeat(2 << 20)));
    assert_eq!(status(&host, "containerd.config"), Status::Fail);
}
