//! Whether QEMU can make the machine that a [`VmConfig`] describes. Each refusal names the field.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FileType;

use super::pod_machine::{COUNTER_PARAMETER, agent_socket};
use crate::{
    AGENT_SERIAL_PORT, Confidential, DiskImage, IdBlock, LEAST_CONFIDENTIAL_MIB, LaunchError,
    QuoteService, SnpLaunch, TdxLaunch, VmConfig,
};

const VCPUS_MAX: u32 = 255;
const MEMORY_MIB_MIN: u32 = 128;
const MEMORY_MIB_MAX: u32 = 4 * 1024 * 1024;
/// Initdata, scratch disk and volumes; the guest's agent counts them, too.
const DISKS_MAX: usize = 10;
const NICS_MAX: usize = 8;
const MTU_MIN: u16 = 68;
const ID_MAX: usize = 128;
/// The console and the agent take two of a virtio-serial device's 31 ports.
const SERIAL_PORTS_MAX: usize = 8;
const PORT_NAME_MAX: usize = 64;
/// VIRTIO 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID` answers with 20 bytes.
const SERIAL_MAX: usize = 20;
const SECTOR: u64 = 512;
/// `sockaddr_un.sun_path` has 108 bytes with its end (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// `COMMAND_LINE_SIZE` of x86 Linux is 2048 with its end; what is longer is cut.
const KERNEL_COMMAND_LINE_MAX: usize = 2047;
/// What OVMF and TDVF put before it (edk2, `QemuLoadKernelImage`).
const FIRMWARE_WORD: &str = "initrd=initrd ";
/// Firmware fills the end of the first 4 GiB: whole pieces of 64 KiB, 16 MiB at most.
const FIRMWARE_UNIT: u64 = 64 * 1024;
const FIRMWARE_MAX: u64 = 16 * 1024 * 1024;

/// Checks all of `config` but its network namespace; an error names the field and what to do.
pub(super) fn check(config: &VmConfig) -> Result<(), LaunchError> {
    check_id(&config.id)?;
    check_run_dir(&config.run_dir)?;
    check_range("vcpus", config.vcpus, 1, VCPUS_MAX, "")?;
    let least = match config.confidential {
        None => MEMORY_MIB_MIN,
        Some(_) => LEAST_CONFIDENTIAL_MIB,
    };
    check_range("memory_mib", config.memory_mib, least, MEMORY_MIB_MAX, " MiB")?;
    check_file("kernel", &config.kernel)?;
    let initrd = check_file("initrd", &config.initrd)?;
    let memory = u64::from(config.memory_mib) * 1024 * 1024;
    if initrd > memory / 2 {
        return refuse(
            "memory_mib",
            format!(
                "is {}, too little for an initrd of {} MiB; give at least {}",
                config.memory_mib,
                initrd.div_ceil(1024 * 1024),
                (2 * initrd).div_ceil(1024 * 1024),
            ),
        );
    }
    check_disks(config)?;
    check_nics(config)?;
    check_serial_ports(config)?;
    check_command_line(&config.command_line, longest_command_line(config.confidential.is_some()))?;
    match &config.confidential {
        None => Ok(()),
        Some(confidential) => {
            check_bzimage(&config.kernel)?;
            match confidential {
                Confidential::Snp(snp) => check_snp(snp),
                Confidential::Tdx(tdx) => check_tdx(tdx),
            }
        }
    }
}

fn check_snp(snp: &SnpLaunch) -> Result<(), LaunchError> {
    check_firmware("confidential.snp.firmware", &snp.firmware)?;
    let signed = snp.id_block.as_ref().map(IdBlock::policy);
    match signed.filter(|&signed| signed != snp.policy.bits()) {
        None => Ok(()),
        Some(signed) => refuse(
            "confidential.snp.id_block",
            format!(
                "was signed for the guest policy {signed:#x}, but the guest would be launched under \
                 {:#x}: sign anew, or change the policy",
                snp.policy.bits()
            ),
        ),
    }
}

fn check_tdx(tdx: &TdxLaunch) -> Result<(), LaunchError> {
    check_firmware("confidential.tdx.firmware", &tdx.firmware)?;
    if let Some(QuoteService::Unix(path)) = &tdx.quote_generation {
        let length = path.as_os_str().as_bytes().len();
        if !path.is_absolute() || length > SOCKET_PATH_MAX || path.to_str().is_none() {
            let form =
                format!("must be an absolute path in UTF-8 of {SOCKET_PATH_MAX} bytes at most");
            return refuse("confidential.tdx.quote_generation", form);
        }
    }
    Ok(())
}

fn check_firmware(field: &'static str, path: &Path) -> Result<(), LaunchError> {
    let size = check_file(field, path)?;
    if size > FIRMWARE_MAX || !size.is_multiple_of(FIRMWARE_UNIT) {
        let problem = format!(
            "{} has {size} bytes; firmware has a multiple of {FIRMWARE_UNIT}, {FIRMWARE_MAX} at most",
            path.display()
        );
        return refuse(field, problem);
    }
    Ok(())
}

/// UEFI firmware starts nothing else: it would stop there, and nobody would see why.
fn check_bzimage(path: &Path) -> Result<(), LaunchError> {
    // Linux, Documentation/arch/x86/boot.rst: "header".
    const MAGIC_AT: usize = 0x202;
    let mut beginning = [0; MAGIC_AT + 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut beginning));
    if read.is_ok() && beginning[MAGIC_AT..] == *b"HdrS" {
        return Ok(());
    }
    let problem = format!(
        "{} is no bzImage (vmlinuz), and the firmware of confidential guests starts only those",
        path.display()
    );
    refuse("kernel", problem)
}

pub(super) fn open_netns(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|error| LaunchError::Config {
        field: "netns",
        problem: format!("{} cannot be opened: {error}", path.display()),
    })
}

fn refuse<T>(field: &'static str, problem: impl Into<String>) -> Result<T, LaunchError> {
    Err(LaunchError::Config { field, problem: problem.into() })
}

fn is_name(text: &str, longest: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= longest && text.bytes().all(fits)
}

fn check_id(id: &str) -> Result<(), LaunchError> {
    if !is_name(id, ID_MAX) {
        return refuse("id", format!("must be 1 to {ID_MAX} characters of A-Z a-z 0-9 . _ -"));
    }
    Ok(())
}

/// Most bytes of a command line that a guest's kernel takes whole: the firmware of confidential guests puts a
/// word of its own before it, and emulated guests are told how fast their counter counts.
#[must_use]
pub const fn longest_command_line(confidential: bool) -> usize {
    if confidential {
        KERNEL_COMMAND_LINE_MAX - FIRMWARE_WORD.len()
    } else {
        KERNEL_COMMAND_LINE_MAX - COUNTER_PARAMETER.len() - "4294967295 ".len()
    }
}

fn check_command_line(line: &str, longest: usize) -> Result<(), LaunchError> {
    const FIELD: &str = "command_line";
    if !line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return refuse(FIELD, format!("is {line:?}; give words of printable ASCII"));
    }
    if line.len() > longest {
        let surplus = line.len() - longest;
        return refuse(FIELD, format!("has {surplus} bytes more than this guest's kernel takes"));
    }
    Ok(())
}

fn check_run_dir(dir: &Path) -> Result<(), LaunchError> {
    const OTHERS: u32 = 0o077;
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) => {
            return refuse("run_dir", format!("{} cannot be used: {error}", dir.display()));
        }
    };
    if !metadata.is_dir() || metadata.mode() & OTHERS != 0 {
        let problem = format!("{} must be a directory with mode 0700", dir.display());
        return refuse("run_dir", problem);
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("run_dir", format!("{} belongs to another user", dir.display()));
    }
    let length = agent_socket(dir).as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX {
        return refuse(
            "run_dir",
            format!(
                "{} is {} bytes too long for a Unix socket in it; choose a shorter path",
                dir.display(),
                length - SOCKET_PATH_MAX
            ),
        );
    }
    Ok(())
}

fn check_range(
    field: &'static str,
    value: u32,
    least: u32,
    most: u32,
    unit: &str,
) -> Result<(), LaunchError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    refuse(field, format!("is {value}{unit}; give {least} to {most}{unit}"))
}

/// Returns the size of the file in bytes.
fn check_file(field: &'static str, path: &Path) -> Result<u64, LaunchError> {
    let opened = File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(metadata.len()),
        Ok(_) => refuse(field, format!("{} is not a file, or empty", path.display())),
        Err(error) => refuse(
            field,
            format!(
                "{} cannot be read: {error}; {} or correct the path",
                path.display(),
                match field {
                    "kernel" | "initrd" => "build the guest image",
                    _ => "put there what it names",
                }
            ),
        ),
    }
}

fn check_disks(config: &VmConfig) -> Result<(), LaunchError> {
    const FIELD: &str = "disks";
    if config.disks.len() > DISKS_MAX {
        let count = config.disks.len();
        return refuse(FIELD, format!("has {count} disks; give {DISKS_MAX} at most"));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        if !is_name(&disk.serial, SERIAL_MAX) {
            let form = format!("1 to {SERIAL_MAX} characters of A-Z a-z 0-9 . _ -");
            return refuse(FIELD, format!("[{index}].serial must be {form}"));
        }
        if config.disks[..index].iter().any(|other| other.serial == disk.serial) {
            return refuse(FIELD, format!("[{index}].serial is another disk's: give each its own"));
        }
        let size = match &disk.image {
            DiskImage::Empty => continue,
            DiskImage::ReadOnly(path) => check_file(FIELD, path)?,
            DiskImage::Scratch(file) => match rustix::fs::fstat(file) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                    u64::try_from(stat.st_size).unwrap_or(0)
                }
                _ => return refuse(FIELD, format!("[{index}].image is not a file")),
            },
        };
        if size == 0 {
            return refuse(FIELD, format!("[{index}].image is empty"));
        }
        if !size.is_multiple_of(SECTOR) {
            let problem = format!("[{index}].image has {size} bytes, no multiple of {SECTOR}");
            return refuse(FIELD, problem);
        }
    }
    Ok(())
}

fn check_nics(config: &VmConfig) -> Result<(), LaunchError> {
    const GROUP_ADDRESS: u8 = 1;
    if config.nics.len() > NICS_MAX {
        let count = config.nics.len();
        return refuse("nics", format!("has {count} interfaces; give {NICS_MAX} at most"));
    }
    for (index, nic) in config.nics.iter().enumerate() {
        if nic.mac[0] & GROUP_ADDRESS != 0 || nic.mac == [0; 6] {
            return refuse("nics", format!("[{index}].mac must be a unicast hardware address"));
        }
        if nic.mtu < MTU_MIN {
            let problem = format!("[{index}].mtu is {}; give at least {MTU_MIN}", nic.mtu);
            return refuse("nics", problem);
        }
        let character_device = rustix::fs::fstat(&nic.tap)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_char_device());
        if !character_device {
            let problem = format!("[{index}].tap (fd {}) is no tap device", nic.tap.as_raw_fd());
            return refuse("nics", problem);
        }
    }
    Ok(())
}

fn check_serial_ports(config: &VmConfig) -> Result<(), LaunchError> {
    const FIELD: &str = "serial_ports";
    let ports = &config.serial_ports;
    if ports.len() > SERIAL_PORTS_MAX {
        let count = ports.len();
        return refuse(FIELD, format!("has {count} ports; give {SERIAL_PORTS_MAX} at most"));
    }
    for (index, port) in ports.iter().enumerate() {
        if !is_name(&port.name, PORT_NAME_MAX) {
            let form = format!("1 to {PORT_NAME_MAX} characters of A-Z a-z 0-9 . _ -");
            return refuse(FIELD, format!("[{index}].name must be {form}"));
        }
        let taken = ports[..index].iter().any(|other| other.name == port.name);
        if taken || port.name == AGENT_SERIAL_PORT {
            return refuse(FIELD, format!("[{index}].name is another port's: give each its own"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_leaves_less_of_the_command_line() {
        for (confidential, most) in [(false, 2022), (true, 2033)] {
            let longest = longest_command_line(confidential);
            check_command_line(&"a".repeat(most), longest).unwrap();
            let error = check_command_line(&"a".repeat(most + 1), longest).unwrap_err();
            assert!(error.to_string().contains("has 1 bytes more than this guest's"), "{error}");
        }
        assert!(check_command_line("a\nb", longest_command_line(false)).is_err());
    }
}
