//! Which devices a pod's machine has. The host chooses what it plugs in; the guest chooses what it takes.
//!
//! Everything on the PCI bus must stand in [`MACHINE`], before the agent loads a driver; what does not
//! ends the boot. A driver parses what its device says, with the kernel's rights: each one that cannot be
//! reached is one that cannot be attacked. Devices on other buses (ACPI names them) are judged by whether
//! a driver took them.
//!
//! The kernel's own drivers, virtio's transport and console among them, have met their devices before
//! the first program runs. The command line leaves out those that no pod's machine needs; what is left
//! refuses here, a moment later. A PCI device that appears later may meet virtio's transport, and no driver
//! beyond it: Linux 6.12 lets drivers have late PCI devices whatever `drivers_autoprobe` says
//! (`pci_bus_add_device`), while virtio's bus and the others heed it. So all is looked at once more, after
//! the last driver is loaded and probing is off.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A kind of device that the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Part of the machine: bridges to nowhere, without a driver.
    Board,
    /// The virtio device with console, agent's channel and further ports.
    Console,
    /// A network interface.
    Network,
    /// A disk.
    Disk,
    /// The socket between host and guest.
    Vsock,
}

/// What is allowed.
struct Known {
    vendor: u32,
    device: u32,
    /// Class, subclass and interface: drivers may choose by it.
    class: u32,
    kind: Kind,
    /// More of them are refused.
    most: usize,
}

/// The machine, whoever emulates it: QEMU's q35, and virtio devices in their modern form only (virtio 1.2,
/// 4.1.2: 0x1040 and the type). Counts are those of the shim's configuration.
const MACHINE: [Known; 6] = [
    // Intel's 82G33 host bridge and ICH9 LPC bridge. The kernel has no driver for them.
    Known { vendor: 0x8086, device: 0x29c0, class: 0x06_00_00, kind: Kind::Board, most: 1 },
    Known { vendor: 0x8086, device: 0x2918, class: 0x06_01_00, kind: Kind::Board, most: 1 },
    Known { vendor: VIRTIO, device: 0x1041, class: 0x02_00_00, kind: Kind::Network, most: 8 },
    Known { vendor: VIRTIO, device: 0x1042, class: 0x01_00_00, kind: Kind::Disk, most: 10 },
    Known { vendor: VIRTIO, device: 0x1043, class: 0x07_80_00, kind: Kind::Console, most: 1 },
    Known { vendor: VIRTIO, device: 0x1053, class: 0x07_80_00, kind: Kind::Vsock, most: 1 },
];

const VIRTIO: u32 = 0x1af4;

/// Drivers of the kernel's own that may hold devices: bus, driver. Later, those of the modules that the agent
/// has loaded may, too: virtio's network, disk and socket, `sev-guest`, and what an image's owner has added.
const BOUND: [(&str, &str); 4] = [
    ("pci", "virtio-pci"),
    ("virtio", "virtio_console"),
    // Notes which ports and addresses ACPI reserves.
    ("pnp", "system"),
    // The kernel's own clock.
    ("platform", "alarmtimer"),
];

/// Where Xen tells what it is (Documentation/ABI/stable/sysfs-hypervisor-xen), beneath `/sys`. No other
/// hypervisor has this file.
const XEN: &str = "hypervisor/type";

/// A device that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    address: String,
    vendor: u32,
    device: u32,
    class: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, vendor, device, class } = self;
        write!(f, "{address} ({vendor:04x}:{device:04x}, class {class:06x})")
    }
}

/// Why this machine is none for a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// No such device is in the list.
    #[error(
        "unexpected PCI device {0}: no pod's machine has one, so the host or somebody on it has added it; \
         this guest does not start"
    )]
    Unexpected(Device),
    /// One too many.
    #[error("unexpected PCI device {device}: a pod's machine has at most {most} of its kind")]
    TooMany {
        /// The first one beyond the bound.
        device: Device,
        /// The bound.
        most: usize,
    },
    /// A driver that should not run.
    #[error(
        "unexpected device {device} on the {bus} bus: the kernel's driver {driver:?} has taken it, and no \
         pod's machine has one; this guest does not start"
    )]
    Driver {
        /// The device's name.
        device: String,
        /// Its bus.
        bus: String,
        /// Its driver.
        driver: String,
    },
    /// The kernel's list of devices cannot be read.
    #[error("failed to read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Not what the kernel writes.
    #[error("{path} holds {text:?}, not a number")]
    Number {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// The processor's identification, which is the host's, has started the kernel's code for Xen.
    #[error(
        "this machine says that it is one of {0:?}: the kernel takes pages, events and time from such a \
         host, and no pod's machine is one; this guest does not start"
    )]
    Hypervisor(String),
    /// Drivers would go on looking for devices.
    #[error("failed to keep drivers from further devices: {0}")]
    Probing(io::Error),
}

/// A machine with expected devices only.
#[derive(Debug)]
pub(crate) struct Machine {
    kinds: Vec<Kind>,
}

impl Machine {
    /// Looks at every device. To be asked before any driver is loaded.
    pub(crate) fn inspect() -> Result<Self, DeviceError> {
        Self::inspect_at(Path::new("/sys"), &HashSet::new())
    }

    fn inspect_at(system: &Path, loaded: &HashSet<String>) -> Result<Self, DeviceError> {
        check_hypervisor(system)?;
        let buses = system.join("bus");
        // Drivers of modules that are loaded later do not look for PCI devices that are there.
        fs::write(buses.join("pci/drivers_autoprobe"), "0").map_err(DeviceError::Probing)?;
        let kinds = check_pci(&pci_devices(&buses.join("pci/devices"))?)?;
        check_drivers(&buses, loaded)?;
        Ok(Self { kinds })
    }

    /// True if there is a device of that kind.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

/// Keeps drivers of every bus but PCI's from devices that appear from now on, and looks once more at what is
/// there: drivers of the modules in `loaded` may hold devices now.
pub(crate) fn stop_probing(loaded: &HashSet<String>) -> Result<(), DeviceError> {
    for bus in entries(Path::new("/sys/bus"))? {
        fs::write(bus.join("drivers_autoprobe"), "0").map_err(DeviceError::Probing)?;
    }
    Machine::inspect_at(Path::new("/sys"), loaded).map(drop)
}

/// The host chooses what CPUID says; this kernel can run on Xen, too, and then trusts it with much.
fn check_hypervisor(system: &Path) -> Result<(), DeviceError> {
    let path = system.join(XEN);
    match fs::read_to_string(&path) {
        Ok(kind) => Err(DeviceError::Hypervisor(kind.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DeviceError::Read { path, source }),
    }
}

fn check_pci(devices: &[Device]) -> Result<Vec<Kind>, DeviceError> {
    let mut counts = [0; MACHINE.len()];
    let mut kinds = Vec::new();
    for device in devices {
        let known = MACHINE.iter().zip(&mut counts).find(|(known, _)| {
            (known.vendor, known.device, known.class)
                == (device.vendor, device.device, device.class)
        });
        let Some((known, count)) = known else {
            return Err(DeviceError::Unexpected(device.clone()));
        };
        *count += 1;
        if *count > known.most {
            return Err(DeviceError::TooMany { device: device.clone(), most: known.most });
        }
        kinds.push(known.kind);
    }
    Ok(kinds)
}

fn pci_devices(directory: &Path) -> Result<Vec<Device>, DeviceError> {
    let device = |path: PathBuf| {
        let number = |file: &str| number(&path.join(file));
        Ok(Device {
            address: name_of(&path),
            vendor: number("vendor")?,
            device: number("device")?,
            class: number("class")?,
        })
    };
    entries(directory)?.into_iter().map(device).collect()
}

/// A number as sysfs writes it: `0x1af4`.
fn number(path: &Path) -> Result<u32, DeviceError> {
    let text = fs::read_to_string(path)
        .map_err(|source| DeviceError::Read { path: path.to_owned(), source })?;
    let digits = text.trim_end().strip_prefix("0x");
    digits
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| DeviceError::Number { path: path.to_owned(), text: text.clone() })
}

/// Looks for drivers that hold devices, on every bus. They are the kernel's own, or of a module in `loaded`.
fn check_drivers(buses: &Path, loaded: &HashSet<String>) -> Result<(), DeviceError> {
    for bus in entries(buses)? {
        for device in entries(&bus.join("devices"))? {
            let link = match fs::read_link(device.join("driver")) {
                Ok(link) => link,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(DeviceError::Read { path: device, source }),
            };
            let (bus, driver) = (name_of(&bus), name_of(&link));
            // Built-in drivers may have that link, too, but never the name of a module that was loaded.
            let module = fs::read_link(device.join("driver/module")).map(|link| name_of(&link));
            let of_module = module.is_ok_and(|module| loaded.contains(&module));
            if !BOUND.contains(&(&bus, &driver)) && !of_module {
                return Err(DeviceError::Driver { device: name_of(&device), bus, driver });
            }
        }
    }
    Ok(())
}

/// The paths in a directory, sorted: what is refused does not depend on chance.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, DeviceError> {
    let read = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths =
        read.map_err(|source| DeviceError::Read { path: directory.to_owned(), source })?;
    paths.sort_unstable();
    Ok(paths)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn device(address: &str, vendor: u32, device: u32, class: u32) -> Device {
        Device { address: address.into(), vendor, device, class }
    }

    /// A q35 machine with a console.
    fn machine() -> Vec<Device> {
        vec![
            device("0000:00:00.0", 0x8086, 0x29c0, 0x06_00_00),
            device("0000:00:01.0", VIRTIO, 0x1043, 0x07_80_00),
            device("0000:00:1f.0", 0x8086, 0x2918, 0x06_01_00),
        ]
    }

    #[test]
    fn a_machine_of_ours_passes() {
        assert_eq!(check_pci(&machine()).unwrap(), [Kind::Board, Kind::Console, Kind::Board]);
        let mut full = machine();
        for slot in 12..14 {
            full.push(device(&format!("0000:00:{slot:02x}.0"), VIRTIO, 0x1042, 0x01_00_00));
        }
        for slot in 2..10 {
            full.push(device(&format!("0000:00:{slot:02x}.0"), VIRTIO, 0x1042, 0x01_00_00));
            full.push(device(&format!("0000:00:{slot:02x}.1"), VIRTIO, 0x1041, 0x02_00_00));
        }
        full.push(device("0000:00:0a.0", VIRTIO, 0x1053, 0x07_80_00));
        assert_eq!(check_pci(&full).unwrap().len(), 22);
        full.push(device("0000:00:0b.0", VIRTIO, 0x1042, 0x01_00_00));
        let error = check_pci(&full).unwrap_err().to_string();
        assert!(error.contains("0000:00:0b.0") && error.contains("at most 10"), "{error}");
    }

    #[test]
    fn other_devices_other_forms_and_other_classes_are_refused() {
        for (vendor, id, class) in [
            (0x8086, 0x100e, 0x02_00_00), // a network card
            (0x1b36, 0x0010, 0x01_08_02), // NVMe
            (0x1234, 0x11e8, 0x00_ff_00), // a device for teaching
            (VIRTIO, 0x1000, 0x02_00_00), // virtio's old form
            (VIRTIO, 0x1044, 0x00_ff_00), // random numbers
            (VIRTIO, 0x1045, 0x00_ff_00), // a balloon
            (VIRTIO, 0x1049, 0x00_02_00), // a file system of the host's over 9p
            (VIRTIO, 0x105a, 0x01_80_00), // the same over FUSE
            (VIRTIO, 0x1050, 0x03_80_00), // a screen
            (VIRTIO, 0x1042, 0x01_08_02), // says disk, and lets the driver of NVMe take it
            (0x1b36, 0x000c, 0x06_04_00), // a port to plug more into
        ] {
            let mut devices = machine();
            devices.push(device("0000:00:03.0", vendor, id, class));
            let error = check_pci(&devices).unwrap_err().to_string();
            let shown = format!("0000:00:03.0 ({vendor:04x}:{id:04x}, class {class:06x})");
            assert!(error.contains(&shown), "{error}");
        }
        let mut devices = machine();
        devices.push(device("0000:01:00.0", VIRTIO, 0x1043, 0x07_80_00));
        assert!(matches!(check_pci(&devices), Err(DeviceError::TooMany { most: 1, .. })));
    }

    /// A bus directory: devices with their drivers.
    fn bus(buses: &Path, name: &str, devices: &[(&str, Option<&str>)]) {
        for (device, driver) in devices {
            let path = buses.join(name).join("devices").join(device);
            fs::create_dir_all(&path).unwrap();
            if let Some(driver) = driver {
                let target = format!("../../../../bus/{name}/drivers/{driver}");
                fs::create_dir_all(buses.join(name).join("drivers").join(driver)).unwrap();
                symlink(target, path.join("driver")).unwrap();
            }
        }
    }

    #[test]
    fn the_kernels_list_is_read_and_drivers_are_told() {
        let system = tempfile::tempdir().unwrap();
        let buses = system.path().join("bus");
        bus(&buses, "pci", &[("0000:00:01.0", Some("virtio-pci"))]);
        let slot = buses.join("pci/devices/0000:00:01.0");
        let inspect = || Machine::inspect_at(system.path(), &HashSet::new());
        assert!(matches!(inspect(), Err(DeviceError::Read { .. })));
        fs::write(slot.join("vendor"), "0x1af4\n").unwrap();
        fs::write(slot.join("device"), "0x1043\n").unwrap();
        fs::write(slot.join("class"), "078000\n").unwrap();
        assert!(inspect().unwrap_err().to_string().contains("\"078000\\n\", not a number"));
        fs::write(slot.join("class"), "0x078000\n").unwrap();
        let machine = inspect().unwrap();
        assert!(machine.has(Kind::Console) && !machine.has(Kind::Disk));
        let probing = fs::read_to_string(buses.join("pci/drivers_autoprobe")).unwrap();
        assert_eq!(probing, "0");

        bus(&buses, "platform", &[("alarmtimer.0.auto", Some("alarmtimer")), ("x", None)]);
        assert!(inspect().is_ok());
        // A module's driver, when the agent has loaded that module.
        bus(&buses, "virtio", &[("virtio1", Some("virtio_blk"))]);
        symlink("../../../../module/virtio_blk", buses.join("virtio/drivers/virtio_blk/module"))
            .unwrap();
        let again = |module: &str| {
            Machine::inspect_at(system.path(), &HashSet::from([module.to_owned()])).map(drop)
        };
        assert!(again("virtio_blk").is_ok());
        let error = again("virtio_net").unwrap_err().to_string();
        assert!(error.contains("\"virtio_blk\""), "{error}");
        fs::remove_dir_all(buses.join("virtio")).unwrap();

        bus(&buses, "acpi", &[("PNP0C09:00", Some("ec"))]);
        let error = inspect().unwrap_err().to_string();
        assert!(
            error.contains("PNP0C09:00 on the acpi bus") && error.contains("\"ec\""),
            "{error}"
        );
        fs::remove_dir_all(buses.join("acpi")).unwrap();

        // The directory is there on every machine.
        fs::create_dir(system.path().join("hypervisor")).unwrap();
        assert!(inspect().is_ok());
        fs::write(system.path().join(XEN), "xen\n").unwrap();
        let error = inspect().unwrap_err().to_string();
        assert!(error.contains("one of \"xen\""), "{error}");
    }
}
