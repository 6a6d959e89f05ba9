//! Where this machine gets Debian from, read out of its own apt sources.
//!
//! Nothing here names a host: a pinned package is asked for at the mirror the machine already uses,
//! signed by the keys it already trusts, only in another suite.

use std::path::{Path, PathBuf};

use crate::{FileError, list, read};

/// The main archive of Debian as this machine reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The URI up to, not including, `dists`.
    pub(crate) uri: String,
    /// The `Signed-By` of the source as it is written there: a path, a fingerprint or a whole key.
    signed_by: Option<String>,
}

/// Why no mirror is known.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// The sources could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing of use in them.
    #[error(
        "no source for Debian's main archive was found in {0}/sources.list and \
         {0}/sources.list.d/*.list, *.sources; add the line \"deb MIRROR/debian bookworm main\" with \
         your mirror to {0}/sources.list"
    )]
    NoDebian(PathBuf),
}

impl Origin {
    /// The first source of the main archive in an `/etc/apt`.
    pub(crate) fn of_machine(etc_apt: &Path) -> Result<Self, SourcesError> {
        let mut found = Vec::new();
        for path in source_files(etc_apt)? {
            let text = String::from_utf8_lossy(&read(&path)?).into_owned();
            if path.extension().is_some_and(|extension| extension == "sources") {
                found.extend(parse_stanzas(&text));
            } else {
                found.extend(text.lines().filter_map(parse_line));
            }
        }
        // Others use Debian's suite names too, but hardly "main" at a path that ends in "debian".
        let named =
            found.iter().position(|origin| origin.uri.trim_end_matches('/').ends_with("/debian"));
        let first = named.or(if found.is_empty() { None } else { Some(0) });
        first.map(|at| found.swap_remove(at)).ok_or_else(|| SourcesError::NoDebian(etc_apt.into()))
    }

    /// An apt source (deb822 style) of another suite at the same place.
    pub(crate) fn source_of(&self, suite: &str) -> String {
        let Self { uri, signed_by } = self;
        let key = signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{key}")
    }
}

fn source_files(etc_apt: &Path) -> Result<Vec<PathBuf>, FileError> {
    let main = etc_apt.join("sources.list");
    let parts = etc_apt.join("sources.list.d");
    let mut files = Vec::new();
    if parts.is_dir() {
        let is_source = |path: &PathBuf| {
            path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
        };
        files.extend(list(&parts)?.into_iter().filter(is_source));
    }
    if main.is_file() {
        files.insert(0, main);
    }
    Ok(files)
}

/// Whether a suite is a release of Debian itself: not its updates, its backports or a third party's.
fn is_release(suite: &str) -> bool {
    const RELEASES: [&str; 8] =
        ["bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"];
    RELEASES.contains(&suite)
}

/// `deb [option=value ...] URI SUITE COMPONENT...` (sources.list(5)).
fn parse_line(line: &str) -> Option<Origin> {
    let line = line.split('#').next()?.trim().strip_prefix("deb")?;
    let mut rest = line.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some((options, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let wanted = is_release(suite) && words.any(|component| component == "main");
    let fetched = !uri.starts_with("cdrom:");
    (wanted && fetched)
        .then(|| Origin { uri: uri.to_owned(), signed_by: signed_by.map(Into::into) })
}

/// Stanzas of `Key: value` fields with continuation lines (sources.list(5), deb822 style).
fn parse_stanzas(text: &str) -> Vec<Origin> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = lines.split(|line| line.trim().is_empty());
    stanzas.filter_map(parse_stanza).collect()
}

fn parse_stanza(lines: &[&str]) -> Option<Origin> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (key, value) = line.split_once(':')?;
            fields.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |key: &str| fields.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    let has = |key: &str, wanted: &dyn Fn(&str) -> bool| {
        field(key).is_some_and(|value| value.split_whitespace().any(wanted))
    };
    let enabled = field("enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
    let wanted = enabled
        && has("types", &|kind| kind == "deb")
        && has("suites", &is_release)
        && has("components", &|component| component == "main");
    let uri = field("uris")?.split_whitespace().find(|uri| !uri.starts_with("cdrom:"))?;
    let signed_by = field("signed-by").map(str::to_owned);
    wanted.then(|| Origin { uri: uri.to_owned(), signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn origin(files: &[(&str, &str)]) -> Result<Origin, SourcesError> {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        Origin::of_machine(etc.path())
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://commented.example/debian bookworm main\n\
                    deb cdrom:[Debian]/ bookworm main\n\
                    deb-src http://source.example/debian bookworm main\n\
                    deb http://security.example/debian-security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main # x\n";
        let found = origin(&[("sources.list", text)]).unwrap();
        assert_eq!(found.uri, "http://mirror.example/debian");
        assert_eq!(
            found.source_of("sid"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n\
             Signed-By: /k.gpg\n"
        );
    }

    #[test]
    fn stanzas_with_a_key_inside() {
        let text = "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\n\
                    Components: main\nEnabled: no\n\n\
                    # a comment\nTypes: deb deb-src\nURIs: mirror+file:/etc/apt/mirrors/debian.list\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        let found = origin(&[("sources.list.d/debian.sources", text)]).unwrap();
        assert_eq!(found.uri, "mirror+file:/etc/apt/mirrors/debian.list");
        let source = found.source_of("trixie");
        assert!(source.contains("Suites: trixie\n"), "{source}");
        assert!(source.ends_with("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"));
    }

    #[test]
    fn a_third_party_with_debians_suite_names_is_not_taken_for_debian() {
        let other = "deb https://apt.vendor.example bookworm main\n";
        let debian = "deb http://mirror.example/debian/ bookworm main\n";
        let files = [("sources.list.d/a.list", other), ("sources.list.d/b.list", debian)];
        assert_eq!(origin(&files).unwrap().uri, "http://mirror.example/debian/");
    }

    #[test]
    fn without_a_source_the_error_says_what_to_add() {
        let error = origin(&[("sources.list", "garbage [\n\ndeb\n")]).unwrap_err().to_string();
        assert!(error.contains("deb MIRROR/debian bookworm main"), "{error}");
    }
}
