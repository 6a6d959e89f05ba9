//! The kernel's parameters: part of what is measured of a guest, so the same for every pod and every TEE.
//!
//! What each is against is told in docs/guest-hardening.md; all are in the kernel's
//! Documentation/admin-guide/kernel-parameters.txt, of the pinned release.

const PARAMETERS: &[&str] = &[
    // The only console: virtio. No serial port of a PC is looked for.
    "console=hvc0",
    "8250.nr_uarts=0",
    "quiet",
    // A guest that panics ends at once, by a reset, which ends its VM; and one that is in disorder panics.
    "panic=-1",
    "oops=panic",
    "reboot=t",
    // The machine has no HPET to check the time stamp counter against; unchecked it is good, while
    // against jiffies it would be found unstable on a busy host. No clock that answers at a port is taken
    // instead. Under KVM its frequency, the time at boot and the scheduler's clock still come from the
    // host's page (kvm-clock), whatever the line says of clock sources.
    "tsc=reliable",
    "clocksource=tsc",
    "hpet=disable",
    "no_timer_check",
    // Seeds of random numbers: the processor's, and none that the firmware was given.
    "random.trust_cpu=on",
    "random.trust_bootloader=off",
    // No device, memory or table of instructions that comes after the start, or beside the main tables.
    "acpiphp.disable=1",
    "acpi_no_memhotplug",
    "acpi_no_static_ssdt",
    "bert_disable",
    "erst_disable",
    "hest_disable",
    "intel_iommu=off",
    "efi=noruntime",
    // What helps an attacker in the guest: one kind of object in another's place, and windows into the kernel.
    "slab_nomerge",
    "debugfs=off",
    // The others have no policy here, and cost time with every file.
    "lsm=lockdown,landlock,yama",
    // Known-answer tests of every cipher, a third of the boot: the kernel is a pinned, measured build.
    "cryptomgr.notests",
    // With one processor the kernel would rewrite each lock prefix, which is slow to emulate.
    "noreplace-smp",
];

/// Functions that a kernel calls as it starts, left out of this one.
const LEFT_OUT: &[&str] = &[
    // Translates names in the formats of trace events, which nobody reads here; a tenth of the boot.
    "trace_eval_init",
    // A generator of random numbers that measures jitter for 0.2 s. The kernel's own needs none.
    "jent_mod_init",
    // Drivers that are built in, for what no pod's machine has: serial ports,
    "serial8250_init",
    "dw8250_platform_driver_init",
    "serial_pci_driver_init",
    "pericom8250_pci_driver_init",
    // NVMe disks,
    "nvme_keyring_init",
    "nvme_core_init",
    "nvme_init",
    // TPMs,
    "init_tis",
    "crb_acpi_driver_init",
    // keyboards and loudspeakers,
    "i8042_init",
    "atkbd_init",
    "input_leds_init",
    "add_pcspkr",
    // file systems of the host's,
    "virtio_fs_init",
    // screens,
    "fbmem_init",
    "sysfb_init",
    "efifb_driver_init",
    // clocks of the host's,
    "cmos_init",
    "add_rtc_cmos",
    "hpet_init",
    "init_acpi_pm_clocksource",
    // ports to plug devices into, memory beside the memory,
    "pcie_portdrv_init",
    "cxl_core_init",
    "cxl_port_init",
    "hmem_init",
    "register_e820_pmem",
    // devices that ACPI alone describes: events, errors, heat, power states, the host's copying of VMs.
    "ged_driver_init",
    "acpi_hed_driver_init",
    "acpi_thermal_init",
    "acpi_processor_driver_init",
    "vmgenid_plaform_driver_init",
    "hmat_init",
    "erst_init",
    "bert_init",
    // Model-specific registers, hibernation and measuring of files, none of which a guest uses.
    "msr_init",
    "snapshot_device_init",
    "software_resume_initcall",
    "init_ima",
    "init_evm",
];

/// The whole line.
pub(crate) fn command_line() -> String {
    format!("{} initcall_blacklist={}", PARAMETERS.join(" "), LEFT_OUT.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_can_add_to_the_line() {
        /// `COMMAND_LINE_SIZE` of x86 Linux, without its end.
        const MOST: usize = 2047;
        let line = command_line();
        assert!(line.len() < MOST / 2 + 256, "{} bytes", line.len());
        assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
    }

    #[test]
    fn nothing_is_said_twice() {
        let mut names: Vec<_> =
            PARAMETERS.iter().map(|word| word.split('=').next().unwrap_or(word)).collect();
        names.extend(LEFT_OUT);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
