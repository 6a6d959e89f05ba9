//! The record: lines of JSON, and a file of bytes that lines refer to.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};

use super::Errno;

/// Names the file of the record.
pub(crate) const VARIABLE: &str = "NACRE_LAUNCH_RECORD";

pub(crate) struct Journal {
    lines: File,
    contents: File,
    /// Bytes in `contents` so far.
    written: u64,
}

impl Journal {
    pub(crate) fn create(path: OsString) -> io::Result<Journal> {
        let mut beside = path.clone();
        beside.push(".contents");
        let create = |path: OsString| {
            File::create_new(&path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        Ok(Journal { lines: create(path)?, contents: create(beside)?, written: 0 })
    }

    /// Writes one line. A launch whose record cannot be written fails.
    pub(crate) fn write(&mut self, entry: Entry) -> Result<(), Errno> {
        let Entry { mut line, bytes } = entry;
        if let Some(bytes) = bytes {
            let (offset, length) = (self.written, bytes.len());
            self.contents.write_all(&bytes).map_err(|_| Errno::Io)?;
            self.written += length as u64;
            let _ = write!(line, r#","contents":{{"offset":{offset},"length":{length}}}"#);
        }
        line.push_str("}\n");
        self.lines.write_all(line.as_bytes()).map_err(|_| Errno::Io)
    }
}

/// One line in the making. Names are words of this library's own, so nothing needs an escape.
pub(crate) struct Entry {
    line: String,
    bytes: Option<Vec<u8>>,
}

impl Entry {
    pub(crate) fn of(call: &'static str) -> Entry {
        Entry { line: format!(r#"{{"call":"{call}""#), bytes: None }
    }

    pub(crate) fn number(mut self, name: &'static str, value: impl Into<u64>) -> Entry {
        let _ = write!(self.line, r#","{name}":{}"#, value.into());
        self
    }

    pub(crate) fn flag(mut self, name: &'static str, value: bool) -> Entry {
        let _ = write!(self.line, r#","{name}":{value}"#);
        self
    }

    pub(crate) fn hex(mut self, name: &'static str, bytes: &[u8]) -> Entry {
        let _ = write!(self.line, r#","{name}":""#);
        for byte in bytes {
            let _ = write!(self.line, "{byte:02x}");
        }
        self.line.push('"');
        self
    }

    /// Bytes for the other file.
    pub(crate) fn contents(mut self, bytes: Vec<u8>) -> Entry {
        self.bytes = Some(bytes);
        self
    }
}
