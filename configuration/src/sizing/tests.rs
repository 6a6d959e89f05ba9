use std::collections::HashMap;

use super::annotation::{IMAGES_MIB, MEMORY_MIB, SCRATCH_DISK_MIB, VCPUS};
use super::*;

fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Values as containerd writes them: period, quota, shares, memory.
fn cri(values: [&str; 4]) -> HashMap<String, String> {
    let keys = ["sandbox-cpu-period", "sandbox-cpu-quota", "sandbox-cpu-shares", "sandbox-memory"];
    let pairs = keys.iter().zip(values);
    pairs.map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned())).collect()
}

fn size(all: &HashMap<String, String>, config: &Config) -> Result<Machine, SizingError> {
    Machine::of(&Wishes::read(all, config)?, &PodShare::from_cri(all)?, config)
}

#[test]
fn limits_make_the_machine() {
    let config = Config::default();
    for (values, vcpus, memory_mib) in [
        // A pod without limits and requests, and one that no kubelet made.
        (["100000", "0", "2", "0"], 1, 512),
        (["0", "0", "0", "0"], 1, 512),
        (["100000", "-1", "2", "-1"], 1, 512),
        // 256 + 128 + 96 + 48 + 2 + 11 = 541
        (["100000", "100000", "1024", "268435456"], 1, 544),
        (["100000", "100001", "1024", "268435456"], 2, 544),
        (["100000", "50000", "512", "268435457"], 1, 544),
        (["1000", "3500", "2", "0"], 4, 512),
        (["100000", "1600000", "2", "0"], 16, 512),
        // Requests without a limit.
        (["100000", "0", "1024", "0"], 1, 512),
        (["100000", "0", "1025", "0"], 2, 512),
        (["100000", "0", "16384", "0"], 16, 512),
        // One byte; 8 GiB with bounce buffers: 8192 + 128 + 96 + 56 + 174 + 64 = 8710.
        (["100000", "0", "2", "1"], 1, 320),
        (["100000", "400000", "2", "8589934592"], 4, 8720),
    ] {
        let machine = size(&cri(values), &config).unwrap();
        assert_eq!((machine.vcpus, machine.memory_mib), (vcpus, memory_mib), "{values:?}");
    }
}

#[test]
fn the_owner_s_word_comes_first() {
    let mut config = Config::default();
    let mut all = cri(["100000", "200000", "2048", "1073741824"]);
    assert_eq!(size(&all, &config).unwrap().memory_mib, 1328);
    all.extend(annotations(&[(VCPUS, "4"), (MEMORY_MIB, "1024"), (SCRATCH_DISK_MIB, "2048")]));
    all.extend(annotations(&[("other.io/x", "y")]));
    let machine = size(&all, &config).unwrap();
    assert_eq!((machine.vcpus, machine.memory_mib, machine.scratch_disk_mib), (4, 1024, 2048));

    // Images count where they are kept.
    let memory = |pairs: &[(&str, &str)]| {
        let mut all = cri(["100000", "0", "2", "268435456"]);
        all.extend(annotations(pairs));
        size(&all, &Config::default()).unwrap().memory_mib
    };
    assert_eq!(memory(&[(IMAGES_MIB, "0")]), 416);
    assert_eq!(memory(&[(IMAGES_MIB, "628")]), 1056);
    // A quarter more than the images is more than images and limit: 1500 + 146 + 34.
    assert_eq!(memory(&[(IMAGES_MIB, "1200")]), 1680);
    assert_eq!(memory(&[(IMAGES_MIB, "1000"), (SCRATCH_DISK_MIB, "1280")]), 416);

    // And without a limit, where they do not fit beside anything.
    let images = |mib: &str| size(&annotations(&[(IMAGES_MIB, mib)]), &Config::default());
    assert_eq!(images("128").unwrap().memory_mib, 512);
    assert_eq!(images("400").unwrap().memory_mib, 672);

    config.storage.scratch_disk_mib = 100;
    let none = annotations(&[(SCRATCH_DISK_MIB, "0")]);
    assert_eq!(size(&none, &config).unwrap().scratch_disk_mib, 0);
    assert_eq!(size(&annotations(&[]), &config).unwrap().scratch_disk_mib, 100);
}

#[test]
fn what_cannot_be_had_is_refused_with_its_sum() {
    let config = Config::default();
    for (values, pairs, expected) in [
        (
            ["100000", "1600001", "2", "0"],
            &[][..],
            "CPU limit of 16001m needs 17 vCPUs, and vm.max_vcpus is 16",
        ),
        (["100000", "0", "16385", "0"], &[], "CPU request of 16001m needs 17 vCPUs"),
        (["1", "99999999999", "2", "0"], &[], "needs 99999999999 vCPUs"),
        (
            ["100000", "0", "2", "17179869184"],
            &[],
            "needs 17072 MiB of memory, and vm.max_memory_mib is 16384 in the configuration: 16384 (memory \
             limit) + 128 (images, pod.images_mib) + 96 (agent) + 50 (kernel, 1 vCPUs) + 342 (2 %) + 64 \
             (bounce buffers) + 8 (to a multiple of 16); lower the limits",
        ),
        (["100000", "0", "2", "9223372036854775807"], &[], "vm.max_memory_mib is 16384"),
        (
            ["100000", "0", "2", "0"],
            &[(IMAGES_MIB, "300"), (MEMORY_MIB, "400")],
            "images_mib is 300, but images can take 196 MiB of a machine with 400 MiB of memory",
        ),
        (
            ["100000", "0", "2", "0"],
            &[(IMAGES_MIB, "1000"), (SCRATCH_DISK_MIB, "1024")],
            "images can take 880 MiB of a scratch disk of 1024 MiB: give one of 1162 MiB",
        ),
    ] {
        let mut all = cri(values);
        all.extend(annotations(pairs));
        let error = size(&all, &config).unwrap_err().to_string();
        assert!(error.contains(expected), "{values:?}: {error}");
        assert!(error.len() < 800, "{error}");
    }
    // What is advised is enough.
    for (pairs, advised) in [
        (&[(IMAGES_MIB, "300"), (MEMORY_MIB, "544")][..], 544),
        (&[(IMAGES_MIB, "1000"), (SCRATCH_DISK_MIB, "1162")], 512),
    ] {
        assert_eq!(size(&annotations(pairs), &config).unwrap().memory_mib, advised);
    }
}

#[test]
fn annotations_are_taken_by_the_letter() {
    let config = Config::default();
    for (key, value) in [
        (VCPUS, "0"),
        (VCPUS, "17"),
        (VCPUS, "+1"),
        (VCPUS, " 1"),
        (VCPUS, "1.5"),
        (VCPUS, "99999999999999999999"),
        (MEMORY_MIB, "127"),
        (MEMORY_MIB, "16385"),
        (MEMORY_MIB, ""),
        (IMAGES_MIB, "-1"),
        (IMAGES_MIB, "16385"),
        (IMAGES_MIB, "1Gi"),
        (SCRATCH_DISK_MIB, "63"),
        (SCRATCH_DISK_MIB, "16385"),
        (SCRATCH_DISK_MIB, "-1"),
        ("io.nacre.vm.kernel", "/tmp/k"),
        ("io.nacre.vm.qemu", "/bin/sh"),
        ("io.nacre.", ""),
        ("io.kubernetes.cri.sandbox-cpu-quota", "-2"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "1e5"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "100000000001"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "9223372036854775808"),
        ("io.kubernetes.cri.sandbox-cpu-period", ""),
        ("io.kubernetes.cri.sandbox-cpu-period", " 1"),
        ("io.kubernetes.cri.sandbox-cpu-shares", "262145"),
        ("io.kubernetes.cri.sandbox-memory", "+1"),
        ("io.kubernetes.cri.sandbox-memory", "-9223372036854775808"),
        ("io.kubernetes.cri.sandbox-memory", "9223372036854775808"),
        ("io.kubernetes.cri.sandbox-memory", "256Mi"),
    ] {
        let error = size(&annotations(&[(key, value)]), &config).unwrap_err().to_string();
        assert!(error.contains(key), "{key}={value}: {error}");
        assert!(error.len() < 400, "{error}");
    }
    // A quota of no period.
    let error = size(&cri(["0", "100000", "2", "0"]), &config).unwrap_err().to_string();
    assert!(error.contains("sandbox-cpu-period"), "{error}");
    let mut config = config;
    config.storage.max_scratch_disk_mib = 0;
    let error = size(&annotations(&[(SCRATCH_DISK_MIB, "64")]), &config).unwrap_err().to_string();
    assert!(error.contains("\"64\", but storage.max_scratch_disk_mib is 0"), "{error}");
}

fn share(role: ContainerRole, cpu_limit: u64, cpu_request: u64, mib: u64) -> ContainerShare {
    ContainerShare { role, cpu_limit, cpu_request, memory_limit: mib << 20 }
}

#[test]
fn containers_are_summed_as_the_kubelet_does() {
    use ContainerRole::{App, Init, Sidecar};
    let of = PodShare::of_containers;
    assert_eq!(of(&[]), PodShare::NOTHING);
    let two = of(&[share(App, 500, 100, 64), share(App, 250, 100, 0)]);
    assert_eq!(two.cpu, CpuAsked::Limit { thousandths: 750 });
    assert_eq!(two.memory, MemoryLimit::Bytes(64 << 20));
    // An init container alone, then with the sidecar that was started before it.
    let init = of(&[share(Init, 0, 900, 300), share(App, 0, 100, 64)]);
    assert_eq!(init.cpu, CpuAsked::Request { thousandths: 900 });
    assert_eq!(init.memory, MemoryLimit::Bytes(300 << 20));
    let list = [share(Sidecar, 0, 0, 50), share(Init, 0, 0, 300), share(App, 0, 0, 100)];
    assert_eq!(of(&list).memory, MemoryLimit::Bytes(350 << 20));
    let list = [share(Init, 0, 0, 120), share(Sidecar, 0, 0, 50), share(App, 0, 0, 100)];
    assert_eq!(of(&list).memory, MemoryLimit::Bytes(150 << 20));
    let huge = [share(App, u64::MAX, u64::MAX, 1 << 43), share(App, 1, 1, 1 << 43)];
    assert_eq!(of(&huge).cpu, CpuAsked::Limit { thousandths: u64::MAX });
}

/// Numbers that a generator with this state yields: enough disorder to try many machines, and the same ones
/// in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn plan(&mut self) -> MemoryPlan {
        let most = 1 << (1 + self.below(36));
        MemoryPlan {
            containers: Containers::Limit(self.below(most)),
            images_mib: self.below(most) >> self.below(8),
            images_declared: true,
            vcpus: u32::try_from(1 + self.below(255)).unwrap(),
            confidential: self.below(2) == 1,
        }
    }
}

#[test]
fn a_machine_of_the_sum_has_room_for_all_of_it_and_is_the_least() {
    let mut numbers = Numbers(6);
    for _ in 0..20_000 {
        let plan = numbers.plan();
        let memory = plan.needed_mib();
        let left = left_by_kernel(memory, plan.vcpus, plan.confidential);
        let Containers::Limit(limit) = plan.containers else { unreachable!() };
        let reserved = u64::from(RESERVED_MIB);
        assert!(left >= limit + plan.images_mib + reserved, "{plan:?} in {memory}");
        let store = MemoryStore::of(left << 20);
        assert!(store.quota_bytes >> 20 >= plan.images_mib, "{plan:?} in {memory}: {store:?}");
        assert_eq!(memory % u64::from(GRANULE_MIB), 0);
        if plan.confidential && memory == u64::from(LEAST_CONFIDENTIAL_MIB) {
            continue;
        }
        // One granule less is too little.
        let less = left_by_kernel(memory - 16, plan.vcpus, plan.confidential);
        let enough = (limit + plan.images_mib).max(plan.room_for_images()) + reserved;
        let without = kernel_mib(memory - 16, plan.vcpus, plan.confidential);
        assert!(less < enough || memory - 16 < enough + without, "{plan:?} in {memory}");
    }
}

#[test]
fn more_is_never_less() {
    let mut numbers = Numbers(28);
    for _ in 0..20_000 {
        let plan = numbers.plan();
        let memory = plan.needed_mib();
        let Containers::Limit(limit) = plan.containers else { unreachable!() };
        let more = 1 + numbers.below(5000);
        for larger in [
            MemoryPlan { containers: Containers::Limit(limit + more), ..plan },
            MemoryPlan { images_mib: plan.images_mib + more, ..plan },
            MemoryPlan { vcpus: plan.vcpus + 1, ..plan },
            MemoryPlan { confidential: true, ..plan },
        ] {
            assert!(larger.needed_mib() >= memory, "{larger:?} after {plan:?}");
        }
    }
}

#[test]
fn nothing_is_above_the_bounds_and_nothing_overflows() {
    let mut config = Config::default();
    let mut numbers = Numbers(2026);
    let (mut given, mut refused) = (0, 0);
    for _ in 0..20_000 {
        config.vm.max_vcpus = 1 + u32::try_from(numbers.below(255)).unwrap();
        config.vm.max_memory_mib = 512 + u32::try_from(numbers.below(1 << 22)).unwrap();
        let edge = |numbers: &mut Numbers| match numbers.below(4) {
            0 => u64::MAX - numbers.below(3),
            _ => numbers.below(1 << 40) >> numbers.below(38),
        };
        let cpu = match numbers.below(3) {
            0 => CpuAsked::Limit { thousandths: edge(&mut numbers) },
            1 => CpuAsked::Request { thousandths: edge(&mut numbers) },
            _ => CpuAsked::Nothing,
        };
        let memory = match numbers.below(2) {
            0 => MemoryLimit::None,
            _ => MemoryLimit::Bytes(1 + edge(&mut numbers) / 2),
        };
        let images = u32::try_from(numbers.below(1 << 32)).unwrap() >> numbers.below(30);
        let wishes = Wishes { images_mib: Some(images), ..Wishes::default() };
        match Machine::of(&wishes, &PodShare { cpu, memory }, &config) {
            Ok(machine) => {
                given += 1;
                assert!((1..=config.vm.max_vcpus).contains(&machine.vcpus));
                assert!((128..=config.vm.max_memory_mib).contains(&machine.memory_mib));
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() < 800, "{error}");
            }
        }
    }
    assert!(given > 1000 && refused > 1000, "{given}, {refused}");
}

#[test]
fn a_machine_must_fit_on_its_node() {
    let config = Config::default();
    let machine = size(&cri(["100000", "0", "2", "268435456"]), &config).unwrap();
    let confidential =
        Machine { plan: MemoryPlan { confidential: true, ..machine.plan }, ..machine };
    let node = NodeMemory { total_mib: 4096, available_mib: 4096, pod_limit_mib: None };
    assert_eq!(machine.on(node).unwrap().memory_mib(), 544);

    let whole = u64::from(machine.memory_mib + HOST_MIB);
    let small = NodeMemory { total_mib: whole - 1, ..node };
    let error = machine.on(small).unwrap_err().to_string();
    assert!(
        error.contains("544 MiB of memory") && error.contains(&(whole - 1).to_string()),
        "{error}"
    );

    // Of a plain machine what it touches, of a confidential one all.
    let busy = NodeMemory { available_mib: whole - 1, ..node };
    assert!(machine.on(busy).is_ok());
    let error = confidential.on(busy).unwrap_err().to_string();
    assert!(error.contains(&format!("takes {whole} MiB")) && error.contains("all of a"), "{error}");
    let full = NodeMemory { available_mib: 300, ..node };
    let error = machine.on(full).unwrap_err().to_string();
    assert!(error.contains("only 300 MiB are available"), "{error}");

    let limited = |limit| NodeMemory { pod_limit_mib: Some(limit), ..node };
    assert!(machine.on(limited(whole)).is_ok());
    // The machine runs in the pod's group, which would end it.
    let told = machine.on(limited(256 + 100)).unwrap_err().to_string();
    let missing = whole - 356;
    assert!(told.contains(&format!("raise the overhead by {missing} MiB")), "{told}");
    assert!(told.contains("limited to 356 MiB"), "{told}");
}

#[test]
fn no_confidential_machine_is_smaller_than_can_be_launched() {
    let least = LEAST_CONFIDENTIAL_MIB;
    let of = |limit: MemoryLimit, pairs: &[(&str, &str)], config: &Config| {
        let share = PodShare { cpu: CpuAsked::Nothing, memory: limit };
        Machine::of(&Wishes::read(&annotations(pairs), config)?, &share, config)
    };
    let mut config = Config::default();
    for (tee, expected) in
        [(Tee::Snp, 256), (Tee::Tdx, 256), (Tee::None, 160), (Tee::EmulatedSnp, 160)]
    {
        config.vm.tee = tee;
        config.vm.memory_mib = least_memory_mib(is_confidential(tee));
        for images in 0..=8 {
            config.pod.images_mib = images;
            for mib in 1..=64 {
                let machine = of(MemoryLimit::Bytes(mib << 20), &[], &config).unwrap();
                assert!(machine.memory_mib >= expected, "{tee:?}, {mib}, {images}: {machine}");
                assert_eq!(machine.memory_mib % GRANULE_MIB, 0, "{machine}");
            }
            assert!(of(MemoryLimit::None, &[], &config).unwrap().memory_mib >= expected);
        }
        // Nor one that the owner chooses, and what is advised can be had.
        let less = of(MemoryLimit::None, &[(MEMORY_MIB, "255")], &config);
        assert_eq!(less.is_err(), is_confidential(tee), "{less:?}");
        let same = of(MemoryLimit::None, &[(MEMORY_MIB, &least.to_string())], &config).unwrap();
        assert_eq!(same.memory_mib, least);
    }
    config.vm.tee = Tee::Snp;
    let error = of(MemoryLimit::None, &[(MEMORY_MIB, "255")], &config).unwrap_err().to_string();
    assert!(error.contains("is \"255\": give a number from 256 to 16384"), "{error}");
}

#[test]
fn what_is_logged_of_a_machine_adds_up_to_it() {
    let sum = |machine: &Machine| {
        let text = machine.to_string();
        let (size, parts) = text.split_once(" MiB: ").unwrap();
        let number = |text: &str| text.split(' ').next().unwrap().parse::<u64>().unwrap();
        assert!(size.ends_with(&format!(" vCPUs and {}", machine.memory_mib)), "{text}");
        parts.split(" + ").map(number).sum::<u64>()
    };
    let mut numbers = Numbers(11);
    let mut config = Config::default();
    config.vm.max_memory_mib = 64 << 20;
    for _ in 0..5000 {
        config.vm.tee = [Tee::None, Tee::Snp][usize::try_from(numbers.below(2)).unwrap()];
        config.vm.memory_mib = 256 + u32::try_from(numbers.below(1 << 11)).unwrap();
        config.pod.images_mib = u32::try_from(numbers.below(1 << 20) >> numbers.below(21)).unwrap();
        let memory = match numbers.below(2) {
            0 => MemoryLimit::None,
            _ => MemoryLimit::Bytes(1 + (numbers.below(1 << 40) >> numbers.below(40))),
        };
        let share = PodShare { cpu: CpuAsked::Nothing, memory };
        let machine = Machine::of(&Wishes::default(), &share, &config).unwrap();
        assert_eq!(sum(&machine), u64::from(machine.memory_mib), "{machine}");
    }

    let shown = |pairs: &[(&str, &str)], values: [&str; 4], config: &Config| {
        let mut all = cri(values);
        all.extend(annotations(pairs));
        size(&all, config).unwrap().to_string()
    };
    let (none, small) = (["100000", "0", "2", "0"], ["100000", "0", "2", "1048576"]);
    let mut config = Config::default();
    assert_eq!(
        shown(&[], none, &config),
        "1 vCPUs and 512 MiB: 512 (vm.memory_mib, no memory limit)"
    );
    assert_eq!(
        shown(&[(IMAGES_MIB, "400")], none, &config),
        "1 vCPUs and 672 MiB: 64 (no memory limit) + 400 (images, annotation io.nacre.vm.images_mib) + 36 \
         (their inodes) + 96 (agent) + 50 (kernel, 1 vCPUs) + 14 (2 %) + 12 (to a multiple of 16)"
    );
    assert_eq!(
        shown(&[(MEMORY_MIB, "1024")], none, &config),
        "1 vCPUs and 1024 MiB: chosen by annotation io.nacre.vm.memory_mib"
    );
    config.vm.tee = Tee::Tdx;
    assert_eq!(
        shown(&[(IMAGES_MIB, "0")], small, &config),
        "1 vCPUs and 256 MiB: 1 (memory limit) + 0 (images, annotation io.nacre.vm.images_mib) + 96 (agent) + \
         50 (kernel, 1 vCPUs) + 6 (2 %) + 64 (bounce buffers) + 39 (to 256, the least of such a machine)"
    );
}
