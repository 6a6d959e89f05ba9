//! Reading a log: to verify it, to list it, to find an entry.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::chain::{Head, parse};
use super::{AuditError, Entry, LINE_LIMIT, LineError};

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

/// A log that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many files.
    pub files: usize,
    /// How many entries.
    pub entries: u64,
    /// Number of the first entry. Above 1 if older files were put away.
    pub first: u64,
    /// Number of the last entry; 0 if there is none.
    pub last: u64,
    /// Hash of the last entry: whoever notes it can tell later whether everything up to it is
    /// unchanged.
    pub hash: String,
    /// Bytes behind the last entry that are no whole line: a broker was killed while it wrote, or is
    /// writing. It cuts them off when it is started.
    pub torn: u64,
}

/// Verifies the log in a directory, or one file of it.
///
/// # Errors
/// The first line that is not what was written.
pub fn verify(path: &Path) -> Result<Verified, AuditError> {
    let files = if path.is_dir() { files(path)? } else { vec![path.to_owned()] };
    let (scan, last) = (files.len(), files.last().cloned());
    let mut head = Head::default();
    let mut verified =
        Verified { files: scan, entries: 0, first: 0, last: 0, hash: String::new(), torn: 0 };
    for path in files {
        let whole = read_lines(&path, |number, line| {
            let followed = head.follow(line, verified.entries == 0);
            let entry = followed.map_err(|error| AuditError::Line {
                path: path.clone(),
                line: number,
                error,
            })?;
            if verified.entries == 0 {
                verified.first = entry.seq;
            }
            verified.entries += 1;
            Ok(true)
        })?;
        verified.torn = whole.torn;
        if whole.torn > 0 && Some(&path) != last.as_ref() {
            return Err(AuditError::Line { path, line: whole.lines + 1, error: LineError::Form });
        }
    }
    verified.last = head.seq;
    verified.hash = head.hash;
    Ok(verified)
}

/// Entries after number `after`, at most `limit`.
pub(crate) fn list(directory: &Path, after: u64, limit: usize) -> Result<Vec<Entry>, AuditError> {
    let files = files(directory)?;
    // The last file that begins at or before the entry that is asked for.
    let start =
        files.iter().rposition(|path| first_of(path).is_some_and(|first| first <= after + 1));
    let mut entries = Vec::new();
    for path in &files[start.unwrap_or(0)..] {
        read_lines(path, |number, line| {
            let entry = parse(line).map_err(|error| AuditError::Line {
                path: path.clone(),
                line: number,
                error,
            })?;
            if entry.seq > after && entries.len() < limit {
                entries.push(entry);
            }
            Ok(entries.len() < limit)
        })?;
        if entries.len() >= limit {
            break;
        }
    }
    Ok(entries)
}

/// The entries of a request, newest file first, in at most `most_files` files.
pub(crate) fn find(
    directory: &Path,
    request: &str,
    most_files: usize,
) -> Result<Vec<Entry>, AuditError> {
    let needle = format!("\"request\":\"{request}\"");
    for path in files(directory)?.iter().rev().take(most_files) {
        let mut found = Vec::new();
        read_lines(path, |number, line| {
            if line.contains(&needle) {
                let entry = parse(line).map_err(|error| AuditError::Line {
                    path: path.clone(),
                    line: number,
                    error,
                })?;
                if entry.event.request.as_deref() == Some(request) {
                    found.push(entry);
                }
            }
            Ok(true)
        })?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Name of the file whose first entry has this number.
pub(super) fn file_name(first: u64) -> String {
    format!("{PREFIX}{first:012}{SUFFIX}")
}

/// The files of a log in the order of their entries.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let at = |error| AuditError::File { path: directory.to_owned(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(at)? {
        let path = entry.map_err(at)?.path();
        if first_of(&path).is_some() {
            files.push(path);
        }
    }
    files.sort_by_key(|path| first_of(path));
    Ok(files)
}

fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// What a file holds besides its lines.
pub(super) struct Whole {
    pub(super) lines: u64,
    /// Bytes of whole lines.
    pub(super) bytes: u64,
    /// Bytes behind the last line break.
    pub(super) torn: u64,
}

/// Calls `visit` with number and text of each whole line until it says `false`.
pub(super) fn read_lines(
    path: &Path,
    mut visit: impl FnMut(u64, &str) -> Result<bool, AuditError>,
) -> Result<Whole, AuditError> {
    let at = |error| AuditError::File { path: path.to_owned(), error };
    let mut reader = BufReader::with_capacity(64 * 1024, File::open(path).map_err(at)?);
    let mut whole = Whole { lines: 0, bytes: 0, torn: 0 };
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_LIMIT as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(at)?;
        let number = whole.lines + 1;
        let form =
            || AuditError::Line { path: path.to_owned(), line: number, error: LineError::Form };
        match line.strip_suffix(b"\n") {
            Some(line) => {
                let text = std::str::from_utf8(line).map_err(|_| form())?;
                whole.lines = number;
                whole.bytes += read as u64;
                if !visit(number, text)? {
                    return Ok(whole);
                }
            }
            None if read > LINE_LIMIT => return Err(form()),
            None => {
                whole.torn = read as u64;
                return Ok(whole);
            }
        }
    }
}
