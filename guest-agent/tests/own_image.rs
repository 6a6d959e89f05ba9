//! A guest image of an owner's (`nacre image build`), booted: its certificate authority is trusted, its
//! modules are loaded, and the image that it was made from has neither.
//!
//! It needs what `cargo xtask image` makes and is skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
#[allow(dead_code)] // for the tests of another file
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use guest::{Guest, HOST_FROM_GUEST, Launch, container, context, message};
use nacre_guest_image::authorities::Authority;
use nacre_guest_image::drivers::{KernelPackage, ModuleFile};
use nacre_guest_image::{Additions, extend};
use nacre_image_manifest::{GuestImage, Sha256Hex, VerifiedImage};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use tokio_rustls::TlsAcceptor;

/// Of the kernel's package, without dependencies and without hardware.
const DRIVER: &str = "dummy";
/// Finds nothing to drive in a guest.
const DRIVER_OF_ANOTHER_MACHINE: &str = "acpi_cpufreq";

/// A registry over https, and the authority (PEM) that signed its certificate.
async fn registry() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Company Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new([HOST_FROM_GUEST.to_owned()]).unwrap();
    let server = server.signed_by(&server_key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![server.der().clone()],
            server_key.serialize_der().try_into().unwrap(),
        );
    let port = registry::serve_tls(TlsAcceptor::from(Arc::new(config.unwrap()))).await;
    (format!("{HOST_FROM_GUEST}:{port}"), authority.pem())
}

/// The package that the image's kernel is from, where it was fetched.
fn kernel_package(image: &GuestImage) -> Option<KernelPackage> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre/debs");
    let expected = &image.manifest().kernel.package.sha256;
    let files = fs::read_dir(fetched).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files = files.filter(|path| {
        path.file_name().unwrap().to_string_lossy().starts_with("linux-image-")
            && &Sha256Hex::of(&fs::read(path).unwrap()) == expected
    });
    files.next().map(|path| KernelPackage::open(&path, image.manifest()).unwrap())
}

/// A module of the package, uncompressed.
fn module(package: &KernelPackage, release: &str, name: &str) -> Vec<u8> {
    let path = format!("lib/modules/{release}/kernel/drivers/net/{name}.ko.xz");
    let mut xz = Command::new("xz");
    let output = xz.args(["--decompress", "--stdout"]).arg(package.root().join(path)).output();
    output.unwrap().stdout
}

fn build(base: &VerifiedImage, additions: &Additions, out: &Path) -> PathBuf {
    extend(base, additions, out, &|_| {}).unwrap().image().initrd()
}

/// Boots with this initrd and tries to run a container from the registry: what came of it, and the console.
async fn run_from(registry: &str, initrd: &Path) -> (Result<String, String>, String) {
    let qemu = ["-initrd", initrd.to_str().unwrap()];
    let kernel_parameters = "nacre.danger_set_policy=1";
    let guest = Guest::boot(Launch { kernel_parameters, qemu: &qemu, ..Default::default() }).await;
    guest.allow_all().await;
    guest.create_sandbox().await;
    let image = format!("{registry}/busybox:latest");
    let request = container("app", &image, &["sleep", "1000"]);
    let created = guest.agent.create_container(context(120), &request).await;
    if created.is_err() {
        return (Err(message(created)), guest.console());
    }
    let start = nacre_protocol::agent::StartContainerRequest {
        container_id: "app".into(),
        ..Default::default()
    };
    guest.agent.start_container(context(60), &start).await.unwrap();
    let (status, modules, error) = guest.shell("app", "cat /proc/modules").await;
    assert_eq!(status, 0, "{error}");
    (Ok(modules), guest.console())
}

#[tokio::test]
async fn an_image_with_an_authority_and_modules_of_ones_own_boots() {
    if let Some(missing) = guest::missing() {
        eprintln!("SKIPPED: {} is absent; run `cargo xtask image`", missing.display());
        return;
    }
    let image = guest::image();
    let Some(package) = kernel_package(&image) else {
        eprintln!("SKIPPED: the kernel's package was not fetched; run `cargo xtask image`");
        return;
    };
    let base = image.verify().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (registry, authority) = registry().await;

    let (refused, console) = run_from(&registry, &image.initrd()).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("UnknownIssuer") || refused.contains("certificate"), "{refused}");
    assert!(!console.contains("the owner's module"), "{console}");

    let release = image.manifest().kernel.release.clone();
    let good = module(&package, &release, DRIVER);
    let additions = Additions {
        authorities: Authority::read(authority.as_bytes()).unwrap(),
        modules: vec![ModuleFile::read("dummy.ko", &good).unwrap()],
        drivers: vec![DRIVER_OF_ANOTHER_MACHINE.to_owned()],
        kernel_package: Some(package),
    };
    let own = build(&base, &additions, &directory.path().join("own"));
    let (modules, console) = run_from(&registry, &own).await;
    let modules = modules.unwrap();
    assert!(modules.lines().any(|line| line.starts_with("dummy ")), "{modules}");
    assert!(console.contains("loaded the owner's module dummy"), "{console}");
    assert!(console.contains("failed to load the kernel module \"acpi_cpufreq\""), "{console}");

    // What the kernel cannot load, and the owner wants loaded, ends the boot.
    let section = b".gnu.linkonce.this_module";
    let at = good.windows(section.len()).position(|window| window == section).unwrap();
    let mut bad = good.clone();
    bad[at + section.len() - 1] = b'x';
    let additions = Additions {
        modules: vec![ModuleFile::read("dummy.ko", &bad).unwrap()],
        ..Additions::default()
    };
    let broken = build(&base, &additions, &directory.path().join("broken"));
    let qemu = ["-initrd", broken.to_str().unwrap()];
    let console = Guest::refuses(Launch { qemu: &qemu, ..Default::default() }).await;
    assert!(console.contains("failed to load the kernel module \"dummy\""), "{console}");
    assert!(!console.contains("serving"), "{console}");
}
