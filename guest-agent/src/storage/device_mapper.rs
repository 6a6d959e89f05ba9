//! The kernel's device mapper, by its own interface (linux/dm-ioctl.h, version 4).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use zeroize::Zeroizing;

use super::StorageError;
use crate::raw;

const CONTROL: &str = "/dev/mapper/control";

/// Version of the interface; the kernel refuses another major number.
const VERSION: [u32; 3] = [4, 0, 0];

/// `struct dm_ioctl`: its length, and where fields are in it.
const HEADER: usize = 312;
const HEADER_LENGTH: [u8; 4] = 312_u32.to_ne_bytes();
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_LENGTH: usize = 128;

/// `struct dm_target_spec`: its length, and where fields are in it.
const TARGET: usize = 40;
const LENGTH: usize = 8;
const NEXT: usize = 20;
const KIND: usize = 24;
const KIND_LENGTH: usize = 16;

/// Room for what the kernel answers after the header.
const ANSWER: usize = 1024;

const QUERY_INACTIVE_TABLE: u32 = 1 << 12;
/// The kernel wipes its copies of the request.
const SECURE_DATA: u32 = 1 << 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Create = 3,
    Remove = 4,
    /// Without the flag to suspend: makes the loaded table the active one.
    Resume = 6,
    Load = 9,
    Clear = 10,
    Status = 12,
}

/// The open device mapper.
#[derive(Debug)]
pub(super) struct DeviceMapper(File);

/// A mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    name: String,
    major: u32,
    minor: u32,
}

/// A table of one target that maps a whole device.
#[derive(Debug)]
pub(super) struct Table<'a> {
    /// Such as `crypt`.
    pub(super) kind: &'static str,
    /// Length in sectors of 512 bytes.
    pub(super) sectors: u64,
    /// In the form that the target documents. May hold keys.
    pub(super) parameters: &'a str,
}

impl DeviceMapper {
    /// Needs the module `dm_mod`.
    pub(super) fn open() -> Result<Self, StorageError> {
        let open = File::options().read(true).write(true).open(CONTROL);
        open.map(Self).map_err(StorageError::step(format!("open {CONTROL}")))
    }

    /// Makes a device without a table.
    pub(super) fn create(&self, name: &str) -> Result<Mapped, StorageError> {
        let mut request = Request::new(name, 0);
        self.ask(Command::Create, &mut request)
            .map_err(StorageError::step(format!("make the mapped device {name}")))?;
        let (major, minor) = request.device();
        Ok(Mapped { name: name.to_owned(), major, minor })
    }

    /// Loads a table beside the active one.
    pub(super) fn load(&self, device: &Mapped, table: &Table<'_>) -> Result<(), StorageError> {
        let Table { kind, sectors, .. } = table;
        let doing = format!(
            "map {} as {kind} of {sectors} sectors; the kernel's log says more",
            device.name
        );
        let mut request = Request::with_table(&device.name, table);
        self.ask(Command::Load, &mut request).map_err(StorageError::step(doing))
    }

    /// What the target of the loaded table says of itself.
    pub(super) fn status_of_loaded(&self, device: &Mapped) -> Result<String, StorageError> {
        let doing = || format!("ask for the state of {}", device.name);
        let mut request = Request::new(&device.name, QUERY_INACTIVE_TABLE);
        self.ask(Command::Status, &mut request).map_err(StorageError::step(doing()))?;
        request.status().ok_or_else(|| {
            StorageError::step(doing())(io::Error::other("the answer is not as documented"))
        })
    }

    /// Drops the loaded table.
    pub(super) fn clear(&self, device: &Mapped) -> Result<(), StorageError> {
        self.ask(Command::Clear, &mut Request::new(&device.name, 0))
            .map_err(StorageError::step(format!("clear the table of {}", device.name)))
    }

    /// Makes the loaded table the active one.
    pub(super) fn resume(&self, device: &Mapped) -> Result<(), StorageError> {
        self.ask(Command::Resume, &mut Request::new(&device.name, 0))
            .map_err(StorageError::step(format!("start the mapped device {}", device.name)))
    }

    /// Takes a device away that nobody uses any more; what its target still holds back is written first.
    pub(super) fn remove(&self, device: &Mapped) -> Result<(), StorageError> {
        self.ask(Command::Remove, &mut Request::new(&device.name, 0))
            .map_err(StorageError::step(format!("close the mapped device {}", device.name)))
    }

    fn ask(&self, command: Command, request: &mut Request) -> io::Result<()> {
        raw::device_mapper(self.0.as_fd(), command as u8, &mut request.0)
    }
}

impl Mapped {
    /// How tables of other devices name it.
    pub(super) fn number(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }

    /// The node that the kernel makes for it.
    pub(super) fn node(&self) -> String {
        format!("/dev/{}", self.kernel_name())
    }

    /// How the kernel's messages name it.
    pub(super) fn kernel_name(&self) -> String {
        format!("dm-{}", self.minor)
    }
}

/// A `struct dm_ioctl` with what follows it; wiped when dropped.
struct Request(Zeroizing<Vec<u8>>);

impl Request {
    /// With room for an answer.
    fn new(name: &str, flags: u32) -> Self {
        Self::sized(name, flags, HEADER + ANSWER)
    }

    fn sized(name: &str, flags: u32, size: usize) -> Self {
        let mut bytes = Zeroizing::new(vec![0_u8; size]);
        for (index, number) in VERSION.into_iter().enumerate() {
            put(&mut bytes, index * 4, &number.to_ne_bytes());
        }
        // The whole request's length, at 12, is written by whoever passes it to the kernel.
        put(&mut bytes, DATA_START, &HEADER_LENGTH);
        put(&mut bytes, FLAGS, &flags.to_ne_bytes());
        debug_assert!(name.len() < NAME_LENGTH);
        put(&mut bytes, NAME, name.as_bytes());
        Self(bytes)
    }

    fn with_table(name: &str, table: &Table<'_>) -> Self {
        // A NUL, and the next target's alignment.
        let target = (TARGET + table.parameters.len() + 1).next_multiple_of(8);
        let mut request = Self::sized(name, SECURE_DATA, HEADER + target);
        let bytes = &mut request.0;
        put(bytes, TARGET_COUNT, &1_u32.to_ne_bytes());
        put(bytes, HEADER + LENGTH, &table.sectors.to_ne_bytes());
        let next = u32::try_from(target).unwrap_or(u32::MAX);
        put(bytes, HEADER + NEXT, &next.to_ne_bytes());
        debug_assert!(table.kind.len() < KIND_LENGTH);
        put(bytes, HEADER + KIND, table.kind.as_bytes());
        put(bytes, HEADER + TARGET, table.parameters.as_bytes());
        request
    }

    /// Major and minor number (`huge_encode_dev` in the kernel's `kdev_t.h`).
    fn device(&self) -> (u32, u32) {
        let number = u64::from_ne_bytes(self.field(DEVICE));
        let major = (number >> 8) & 0xfff;
        let minor = (number & 0xff) | ((number >> 12) & 0xfff_ff00);
        (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0))
    }

    /// The text of the first target.
    fn status(&self) -> Option<String> {
        if u32::from_ne_bytes(self.field(TARGET_COUNT)) == 0 {
            return None;
        }
        let start = usize::try_from(u32::from_ne_bytes(self.field(DATA_START))).ok()?;
        let text = self.0.get(start.checked_add(TARGET)?..)?;
        let text = text.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    }

    /// `at` and the length are within the header.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_the_kernel_documents() {
        let table = Table { kind: "crypt", sectors: 0x1234, parameters: "cipher key 0 1:2 0" };
        let request = Request::with_table("nacre", &table);
        let bytes = &request.0;
        assert_eq!(bytes.len(), 312 + 64);
        assert_eq!(bytes[..12], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request.field::<4>(DATA_START), 312_u32.to_ne_bytes());
        assert_eq!(request.field::<4>(TARGET_COUNT), 1_u32.to_ne_bytes());
        assert_eq!(request.field::<4>(FLAGS), 0x8000_u32.to_ne_bytes());
        assert_eq!(&bytes[48..54], b"nacre\0");
        let target = &bytes[312..];
        assert_eq!(target[..8], [0; 8], "it begins at the device's start");
        assert_eq!(target[8..16], 0x1234_u64.to_ne_bytes());
        assert_eq!(target[20..24], 64_u32.to_ne_bytes());
        assert_eq!(&target[24..30], b"crypt\0");
        assert_eq!(&target[40..59], b"cipher key 0 1:2 0\0");
    }

    #[test]
    fn answers_are_read_within_their_bounds() {
        let mut request = Request::new("x", 0);
        assert_eq!(request.status(), None);
        put(&mut request.0, DEVICE, &0x0010_fd34_u64.to_ne_bytes());
        assert_eq!(request.device(), (0xfd, 0x134));
        put(&mut request.0, TARGET_COUNT, &1_u32.to_ne_bytes());
        put(&mut request.0, HEADER + TARGET, b"0 2064 -\0rest");
        assert_eq!(request.status().as_deref(), Some("0 2064 -"));
        put(&mut request.0, DATA_START, &u32::MAX.to_ne_bytes());
        assert_eq!(request.status(), None);
    }
}
