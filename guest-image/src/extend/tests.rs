//! Images of a few bytes, extended.

use std::collections::BTreeMap;

use nacre_image_manifest::{FORMAT, Origin, Sha256Hex, development_archive};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use super::*;
use crate::elf::tests::elf_file;
use crate::modules::Module;

const SILENT: Progress = &|_| {};
const RELEASE: &str = "6.12-test";
const VERMAGIC: &str = "6.12-test SMP mod_unload ";

/// A module as the kernel's build makes it, as far as anybody looks at it.
fn module(name: &str, depends: &str) -> Vec<u8> {
    module_for(name, depends, VERMAGIC)
}

fn module_for(name: &str, depends: &str, vermagic: &str) -> Vec<u8> {
    let modinfo = format!("author=\u{e9}\0depends={depends}\0name={name}\0vermagic={vermagic}\0");
    let mut file = elf_file(1, b"", modinfo.as_bytes());
    file[16] = 1; // ET_REL
    file
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    Authority::read(pem.as_bytes()).unwrap().remove(0)
}

fn given(name: &str, depends: &str) -> ModuleFile {
    ModuleFile::read(&format!("{name}.ko"), &module(name, depends)).unwrap()
}

/// A directory with a base image, and room for others.
struct World(tempfile::TempDir);

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        let mut archive = Archive::default();
        put(&mut archive, BUNDLE, authorities::append(b"", &[authority("Public")]).unwrap().0)
            .unwrap();
        put(&mut archive, "init", b"agent".to_vec()).unwrap();
        let modules = ["failover", "net_failover"].map(|name| Module {
            name: name.into(),
            dependencies: Vec::new(),
            content: module(name, ""),
        });
        put(&mut archive, ORDER, order_file(&modules).into_bytes()).unwrap();
        for Module { name, content, .. } in modules {
            put(&mut archive, &path_of(&name), content).unwrap();
        }
        world.write("base", &archive);
        world
    }

    /// An image with this initrd.
    fn write(&self, name: &str, archive: &Archive) {
        let origin = |name: &str| Origin {
            package: name.into(),
            version: "1".into(),
            sha256: Sha256Hex::of(b"package"),
        };
        let packed = pack(archive, None);
        let manifest = Manifest {
            format: FORMAT,
            kernel: Kernel {
                release: RELEASE.into(),
                package: origin("linux-image"),
                vmlinux: Artifact::new("vmlinux", b"kernel"),
                bzimage: Artifact::new("vmlinuz", b"compressed"),
            },
            initrd: packed.described.clone(),
            command_line: "quiet".into(),
            certificates: origin("ca-certificates"),
            extensions: Vec::new(),
            files: Entry::list(archive),
        };
        fs::create_dir(self.path(name)).unwrap();
        write(&self.path(name), &manifest, [b"kernel", b"compressed"], &packed).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> VerifiedImage {
        GuestImage::open(&self.path(name)).unwrap().verify().unwrap()
    }

    fn extend(&self, additions: &Additions, out: &str) -> Result<VerifiedImage, ExtendError> {
        extend(&self.open("base"), additions, &self.path(out), SILENT)
    }

    /// Why it cannot be done; nothing is left behind.
    fn refused(&self, additions: &Additions) -> String {
        let error = self.extend(additions, "refused").unwrap_err().to_string();
        let left = fs::read_dir(self.0.path()).unwrap().count();
        assert_eq!(left, 1, "something was left behind");
        error
    }

    fn files(&self, name: &str) -> BTreeMap<String, (u32, Vec<u8>)> {
        let entry = |entry: Result<fs::DirEntry, _>| {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            (entry.file_name().into_string().unwrap(), (mode, fs::read(entry.path()).unwrap()))
        };
        fs::read_dir(self.path(name)).unwrap().map(entry).collect()
    }
}

fn text<'a>(image: &'a VerifiedImage, path: &str) -> &'a str {
    std::str::from_utf8(image.archive().file(path).unwrap()).unwrap()
}

#[test]
fn additions_are_put_in_and_listed_and_all_else_stays() {
    let world = World::new();
    let base = world.open("base");
    let company = authority("Company");
    let additions = Additions {
        authorities: vec![company.clone()],
        modules: vec![given("sensor", "bus,net-failover"), given("bus", "")],
        ..Additions::default()
    };
    let built = world.extend(&additions, "own").unwrap();

    let bundle = text(&built, BUNDLE);
    assert!(bundle.starts_with(text(&base, BUNDLE)));
    let authorities = Authority::read(bundle.as_bytes()).unwrap();
    assert_eq!(authorities[1], company);
    assert_eq!(text(&built, ORDER), "failover\nnet_failover\nbus\nsensor bus net_failover\n");
    assert_eq!(text(&built, LOAD), "bus\nsensor\n");
    assert_eq!(built.archive().file(&path_of("bus")).unwrap(), module("bus", ""));

    let [extension] = &built.manifest().extensions[..] else { panic!("one step") };
    assert_eq!(extension.base, base.image().manifest_file().sha256);
    assert_eq!(extension.certificates[0].subject, "CN=Company");
    assert_eq!(&extension.certificates[0].sha256, company.sha256());
    let modules: Vec<_> = extension.modules.iter().map(|m| (m.name.as_str(), m.loaded)).collect();
    assert_eq!(modules, [("bus", true), ("sensor", true)]);
    assert_eq!(extension.modules[0].sha256, Sha256Hex::of(&module("bus", "")));

    assert_eq!(built.archive().file("init"), base.archive().file("init"));
    assert_eq!((built.vmlinux(), built.bzimage()), (base.vmlinux(), base.bzimage()));
    assert_eq!(built.manifest().command_line, "quiet");
    let development = &world.files("own")["initrd-development.img"].1;
    assert!(development.ends_with(&development_archive(None)));
}

#[test]
fn the_order_in_which_things_are_given_does_not_matter() {
    let world = World::new();
    let [one, two] = ["One", "Two"].map(authority);
    let [a, b] = [given("a", "b"), given("b", "")];
    let additions = |authorities: &[&Authority], modules: &[&ModuleFile]| Additions {
        authorities: authorities.iter().copied().cloned().collect(),
        modules: modules.iter().copied().cloned().collect(),
        ..Additions::default()
    };
    world.extend(&additions(&[&one, &two], &[&a, &b]), "first").unwrap();
    world.extend(&additions(&[&two, &one, &two], &[&b, &a, &b]), "second").unwrap();
    assert_eq!(world.files("first"), world.files("second"));
    assert!(world.files("first").values().all(|(mode, _)| mode & 0o777 == 0o644));
    let first = fs::metadata(world.path("first")).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o755);
}

#[test]
fn an_image_of_ones_own_can_be_the_base_of_another() {
    let world = World::new();
    let additions =
        |name: &str| Additions { modules: vec![given(name, "")], ..Additions::default() };
    let first = world.extend(&additions("b"), "first").unwrap();
    let second = extend(&first, &additions("a"), &world.path("second"), SILENT).unwrap();
    assert_eq!(text(&second, LOAD), "b\na\n");
    let bases: Vec<_> = second.manifest().extensions.iter().map(|step| &step.base).collect();
    let expected = [world.open("base"), first].map(|i| i.image().manifest_file().sha256.clone());
    assert_eq!(bases, expected.each_ref());
}

#[test]
fn what_is_there_already_is_not_added_and_nothing_is_written_over() {
    let world = World::new();
    let public = Authority::read(text(&world.open("base"), BUNDLE).as_bytes()).unwrap();
    let known = || Additions { authorities: public.clone(), ..Additions::default() };
    assert!(world.refused(&known()).contains("nothing is to be added"));
    assert!(world.refused(&Additions::default()).contains("nothing is to be added"));
    let mut more = known();
    more.authorities.push(authority("Company"));
    let built = world.extend(&more, "own").unwrap();
    assert_eq!(built.manifest().extensions[0].certificates.len(), 1);
    for taken in ["own", "base"] {
        let before = world.files(taken);
        let error = world.extend(&more, taken).unwrap_err();
        assert!(matches!(error, ExtendError::There(_)), "{error}");
        assert_eq!(world.files(taken), before);
    }
}

#[test]
fn modules_that_could_not_be_loaded_are_refused() {
    let world = World::new();
    let one = |file| Additions { modules: vec![file], ..Additions::default() };
    let absent = world.refused(&one(given("a", "gone")));
    assert!(absent.contains("no module \"gone\"") && absent.contains("linux-image 1"), "{absent}");
    let present = world.refused(&one(given("net-failover", "")));
    assert!(present.contains("has the module \"net_failover\" already"), "{present}");
    let other = |vermagic| {
        world.refused(&one(ModuleFile::read("a.ko", &module_for("a", "", vermagic)).unwrap()))
    };
    for vermagic in ["6.12-test SMP preempt mod_unload ", "6.13 SMP mod_unload "] {
        let error = other(vermagic);
        assert!(error.contains("for another kernel") && error.contains(VERMAGIC.trim()), "{error}");
    }
    let circle =
        Additions { modules: vec![given("a", "b"), given("b", "a")], ..Additions::default() };
    assert!(world.refused(&circle).contains("depends on itself"));
    let twice =
        Additions { modules: vec![given("a", ""), given("a", "failover")], ..Additions::default() };
    assert!(world.refused(&twice).contains("two files of the module \"a\""));
    for name in ["", "../a", "a b", "a\n", &"a".repeat(56)] {
        let by_name = Additions { drivers: vec![name.to_owned()], ..Additions::default() };
        assert!(world.refused(&by_name).contains("no name of a kernel module"), "{name}");
    }
}

#[test]
fn files_that_are_no_modules_are_refused_with_the_reason() {
    let why = |bytes: &[u8]| ModuleFile::read("x.ko", bytes).unwrap_err().to_string();
    assert!(why(b"").contains("x.ko is no kernel module"));
    assert!(why(b"#!/bin/sh").contains("ELF"));
    assert!(why(&elf_file(1, b"", b"name=a\0")).contains("program or library"));
    let with_modinfo = |modinfo: &[u8]| {
        let mut file = elf_file(1, b"", modinfo);
        file[16] = 1;
        file
    };
    assert!(why(&with_modinfo(b"name=a\0vermagic=6\0")).contains("depends on"));
    assert!(why(&with_modinfo(b"depends=\0vermagic=6\0")).contains("its name"));
    assert!(why(&with_modinfo(b"depends=\0vermagic=6\0name=../a\0")).contains("no name"));
    let whole = module("a", "");
    for length in 0..whole.len() {
        why(&whole[..length]);
    }
    assert!(why(b"\xfd7zXZ\0 garbage").contains("xz"));
    assert!(why(b"\x28\xb5\x2f\xfd garbage").contains("zstd"));
}

#[test]
fn compressed_and_signed_modules_are_packed_alike() {
    let world = World::new();
    let plain = module("a", "");
    let signed =
        [plain.as_slice(), b"sig\0\0\x02\0\0\0\0\0\0\0\0\x03~Module signature appended~\n"]
            .concat();
    let zstd = zstd::bulk::compress(&signed, 1).unwrap();
    for (number, bytes) in [plain.clone(), signed, zstd].into_iter().enumerate() {
        let file = ModuleFile::read("a.ko", &bytes).unwrap();
        let additions = Additions { modules: vec![file], ..Additions::default() };
        let built = world.extend(&additions, &number.to_string()).unwrap();
        assert_eq!(built.archive().file(&path_of("a")).unwrap(), plain);
        assert_eq!(built.manifest().extensions[0].modules[0].sha256, Sha256Hex::of(&bytes));
    }
    // A few KiB that would fill the memory.
    let bomb = zstd::bulk::compress(&vec![0; 129 << 20], 1).unwrap();
    let error = ModuleFile::read("a.ko", &bomb).unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
}

#[test]
fn a_base_whose_list_of_modules_is_damaged_is_refused() {
    let world = World::new();
    let mut archive = world.open("base").archive().clone();
    for (number, order) in
        ["gone\n", "failover gone\n", "failover  net_failover\n", "\n"].iter().enumerate()
    {
        put(&mut archive, ORDER, order.as_bytes().to_vec()).unwrap();
        let name = format!("base{number}");
        world.write(&name, &archive);
        let additions = Additions { modules: vec![given("a", "")], ..Additions::default() };
        let error = extend(&world.open(&name), &additions, &world.path("out"), SILENT);
        assert!(error.unwrap_err().to_string().contains("modules.order is damaged"));
    }
}

#[test]
fn another_kernels_package_is_refused() {
    let world = World::new();
    let path = world.path("other.deb");
    fs::write(&path, b"another package").unwrap();
    let manifest = world.open("base").manifest().clone();
    let error = KernelPackage::open(&path, &manifest).unwrap_err().to_string();
    assert!(error.contains("linux-image 1 with the SHA-256"), "{error}");
    // Right by its hash, but nothing that dpkg-deb takes.
    fs::write(&path, b"package").unwrap();
    let error = KernelPackage::open(&path, &manifest).unwrap_err().to_string();
    assert!(error.contains("dpkg-deb"), "{error}");
}
