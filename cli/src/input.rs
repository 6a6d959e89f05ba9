//! Files that commands read and write.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use nacre_policy_author::kubernetes::{SourceFile, read as read_yaml};
use nacre_protocol::initdata::{ANNOTATION, Initdata, POLICY};

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
    if !is_initdata(&text) {
        return Ok(text);
    }
    let initdata = Initdata::parse(&text).with_context(|| path.display().to_string())?;
    match initdata.policy() {
        Some(policy) => Ok(policy.to_owned()),
        None => bail!("{}: there is no {POLICY} under [data]", path.display()),
    }
}

/// Reads initdata: the TOML document, an annotation's text, or the annotation in the YAML of one pod.
pub(crate) fn read_initdata(path: &Path) -> anyhow::Result<Initdata> {
    let text = read_text(path)?;
    let name = || path.display().to_string();
    if is_initdata(&text) {
        return Initdata::parse(&text).with_context(name);
    }
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\r\n".contains(&byte);
    if text.bytes().all(base64) {
        return Initdata::from_annotation(text.trim()).with_context(name);
    }
    let file = SourceFile { name: name(), content: text.into_bytes() };
    let reading = read_yaml(std::slice::from_ref(&file))
        .context("neither initdata, nor an annotation's text, nor the YAML of a pod")?;
    let pods = reading.workloads.iter().map(|workload| &workload.pod);
    let mut annotations = pods.filter_map(|pod| pod.annotations.get(ANNOTATION));
    match (annotations.next(), annotations.next()) {
        (Some(text), None) => Initdata::from_annotation(text).with_context(name),
        (None, _) => bail!("{}: no pod in it has the annotation {ANNOTATION}", path.display()),
        (Some(_), Some(_)) => bail!("{}: more than one pod has the annotation", path.display()),
    }
}

fn is_initdata(text: &str) -> bool {
    let lines = text.lines().map(str::trim_start);
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let begins = |line: &str, key: &str| {
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    lines.next().is_some_and(|line| begins(line, "version") || begins(line, "algorithm"))
}

/// Writes a result to a file, or prints it.
pub(crate) fn write_or_print(to: Option<&Path>, text: &str) -> anyhow::Result<()> {
    match to {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("failed to write {}", path.display())),
        None => print(text),
    }
}

/// Prints a result.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints bytes as they are. A reader that has seen enough is no mistake.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write the result")
        }
        _ => Ok(()),
    }
}
