//! Files that commands read and write.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use nacre_protocol::initdata::{Initdata, POLICY};

/// Largest file, in bytes.
const LARGEST: u64 = 256 << 20;

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let doing = || format!("failed to read {}", path.display());
    let read = if path == Path::new("-") {
        io::stdin().take(LARGEST + 1).read_to_end(&mut content)
    } else {
        File::open(path).with_context(doing)?.take(LARGEST + 1).read_to_end(&mut content)
    };
    read.with_context(doing)?;
    if content.len() as u64 > LARGEST {
        bail!("{} has more than {LARGEST} bytes", path.display());
    }
    Ok(content)
}

/// Reads a file of text.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let content = read(path)?;
    String::from_utf8(content).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// Reads a policy: a document of its own, or the one in an initdata document.
pub(crate) fn read_policy(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path)?;
    let begin = text.trim_start();
    if !begin.starts_with("version") && !begin.starts_with("algorithm") {
        return Ok(text);
    }
    let initdata = Initdata::parse(&text).with_context(|| path.display().to_string())?;
    match initdata.policy() {
        Some(policy) => Ok(policy.to_owned()),
        None => bail!("{}: there is no {POLICY} under [data]", path.display()),
    }
}

/// Prints a result. A reader that has seen enough is no mistake.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write the result")
        }
        _ => Ok(()),
    }
}
