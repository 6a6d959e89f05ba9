//! The lines that lead containerd's pods to Nacre, for each release: the only place that has them.
//! `deploy/containerd` is printed from here.

use std::fmt::Write as _;

use crate::NodeError;

/// A release of containerd, as far as its configuration differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Release {
    /// 1.6: one snapshotter for all of CRI.
    #[serde(rename = "1.6")]
    V1_6,
    /// 1.7: a snapshotter for each handler.
    #[serde(rename = "1.7")]
    V1_7,
    /// 2.x: CRI in two plugins, and files that are imported are merged key by key.
    #[serde(rename = "2")]
    V2,
}

/// `version` of a configuration file. containerd 2.x reads version 2 too, but of files with different versions it
/// silently ignores what the older ones say of CRI: what is added must have the version of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Schema {
    /// `version = 2`
    V2,
    /// `version = 3`
    V3,
}

/// A runtime handler.
#[derive(Debug, Clone, Copy)]
pub struct Handler {
    /// Its name, and that of the `RuntimeClass`.
    pub name: &'static str,
    /// The shim's configuration for it.
    pub config: &'static str,
    /// `vm.tee` in it.
    pub tee: &'static str,
}

/// The handlers that are shipped.
pub const HANDLERS: [Handler; 3] = [
    Handler { name: "nacre", config: "/etc/nacre/config.toml", tee: "none" },
    Handler { name: "nacre-snp", config: "/etc/nacre/snp.toml", tee: "snp" },
    Handler { name: "nacre-tdx", config: "/etc/nacre/tdx.toml", tee: "tdx" },
];

/// CRI's plugin in files of version 2.
pub(crate) const CRI: &str = "io.containerd.grpc.v1.cri";
/// Its two parts in files of version 3.
pub(crate) const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
pub(crate) const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// What pulls images from 2.x on.
pub(crate) const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// The only platform of Nacre's guests.
const PLATFORM: &str = "linux/amd64";
const NEEDS_ANNOTATION: &str = "\
# Pods need the annotation \"io.containerd.cri.runtime-handler: nacre\", by which containerd finds the
# snapshotter when it pulls their images. Other pods of the node keep theirs.";
const FORGETS_RUNC: &str = "\
#
# A file that names no runtime has runc by default, and forgets it with these lines. Name it then, too:
#   [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
#   runtime_type = \"io.containerd.runc.v2\"
";
const NEEDS_IMPORT: &str = "\
#
# In a file of their own, such as conf.d/nacre.toml, they must be imported (imports = [\"conf.d/nacre.toml\"]) by a
# file of the same version: of files with different versions containerd silently ignores what the older says of CRI.
";
const ONE_FOR_ALL: &str = "\
# This release has one snapshotter for all of CRI, and containers that run without Nacre find no files in
# Nacre's: take it for a node whose pods are all Nacre's.";

impl Release {
    /// All of them.
    pub const ALL: [Release; 3] = [Release::V1_6, Release::V1_7, Release::V2];

    /// Reads what `containerd --version` prints.
    pub fn of_version(answer: &str) -> Result<Release, NodeError> {
        let unknown = || NodeError::Release(answer.lines().next().unwrap_or_default().to_owned());
        let number = |word: &str| -> Option<(u32, u32)> {
            let (major, rest) = word.strip_prefix('v').unwrap_or(word).split_once('.')?;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            Some((major.parse().ok()?, rest[..end].parse().ok()?))
        };
        // The first word that is a number: the one before it is a path, which ends in "v2".
        match answer.split_whitespace().find_map(number).ok_or_else(unknown)? {
            (1, 6) => Ok(Release::V1_6),
            (1, 7) => Ok(Release::V1_7),
            (2.., _) => Ok(Release::V2),
            _ => Err(unknown()),
        }
    }

    /// The version that its own example has, for a node without any configuration.
    pub fn schema(self) -> Schema {
        if self == Release::V2 { Schema::V3 } else { Schema::V2 }
    }

    /// The file in `deploy/containerd`.
    pub fn shipped(self) -> String {
        let (name, note, warning) = match self {
            Release::V1_6 => ("1.6", ONE_FOR_ALL, FORGETS_RUNC),
            Release::V1_7 => ("1.7", NEEDS_ANNOTATION, FORGETS_RUNC),
            Release::V2 => ("2.x", NEEDS_ANNOTATION, NEEDS_IMPORT),
        };
        let schema = self.schema();
        format!(
            "# Nacre for containerd {name}: lines for /etc/containerd/config.toml ({}), by\n\
             # `nacre containerd-config`. `nacre install` puts them there.\n#\n{note}\n{warning}\n{}\n{}",
            schema.line(),
            schema.line(),
            lines(self, schema, &["overlayfs".to_owned()]),
        )
    }
}

impl Schema {
    /// By `version` of a file.
    pub(crate) fn of_number(number: i64) -> Option<Schema> {
        match number {
            2 => Some(Schema::V2),
            3 => Some(Schema::V3),
            _ => None,
        }
    }

    /// The line that says so.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Schema::V2 => "version = 2",
            Schema::V3 => "version = 3",
        }
    }
}

/// The lines, without `version`. `others` are the snapshotters that other pods' images are unpacked with:
/// from 2.x on a list that names Nacre's has to name theirs, too.
pub(crate) fn lines(release: Release, schema: Schema, others: &[String]) -> String {
    let mut text = String::from(
        "\n[proxy_plugins.nacre]\ntype = \"snapshot\"\naddress = \"/run/nacre/snapshotter.sock\"\n",
    );
    if release == Release::V2 {
        let _ = writeln!(
            text,
            "# containerd 2 leaves out a snapshotter that does not say what it is for.\n\
             platform = \"{PLATFORM}\""
        );
    }
    let (plugin, quote) = match schema {
        Schema::V2 => (CRI, '"'),
        Schema::V3 => (CRI_RUNTIME, '\''),
    };
    let cri = format!("plugins.{quote}{plugin}{quote}.containerd");
    match release {
        Release::V1_6 => {
            let _ = writeln!(
                text,
                "\n[{cri}]\nsnapshotter = \"nacre\"\n\
                 # The snapshotter learns from them which image a layer is of.\n\
                 disable_snapshot_annotations = false"
            );
        }
        Release::V1_7 => {
            let _ = writeln!(text, "\n[{cri}]\ndisable_snapshot_annotations = false");
        }
        Release::V2 => {}
    }
    for (at, handler) in HANDLERS.iter().enumerate() {
        if at == 1 {
            let _ = writeln!(
                text,
                "\n# The same on nodes with SEV-SNP or TDX: copies of config.toml that differ in `tee`. \
                 A node without needs neither."
            );
        } else {
            text.push('\n');
        }
        let name = handler.name;
        let _ =
            writeln!(text, "[{cri}.runtimes.{name}]\nruntime_type = \"io.containerd.nacre.v2\"");
        if release != Release::V1_6 {
            let _ = writeln!(text, "snapshotter = \"nacre\"");
        }
        if at == 0 {
            let _ =
                writeln!(text, "# How a pod's policy and its wishes for the VM reach the shim.");
        }
        let _ = writeln!(
            text,
            "pod_annotations = [\"io.katacontainers.*\", \"io.nacre.*\"]\n\n\
             [{cri}.runtimes.{name}.options]\nConfigPath = \"{}\"",
            handler.config
        );
    }
    if release == Release::V2 {
        for handler in &HANDLERS {
            let _ = writeln!(
                text,
                "\n[plugins.'{CRI_IMAGES}'.runtime_platforms.{}]\nplatform = \"{PLATFORM}\"\n\
                 snapshotter = \"nacre\"",
                handler.name
            );
        }
        for snapshotter in ["nacre"].into_iter().chain(others.iter().map(String::as_str)) {
            let _ = writeln!(
                text,
                "\n[[plugins.'{TRANSFER}'.unpack_config]]\nplatform = \"{PLATFORM}\"\n\
                 snapshotter = \"{snapshotter}\""
            );
        }
    }
    text
}

/// The runtimes that containerd has and its file does not name, as lines. containerd 1.x has runc by default, and
/// forgets it as soon as a file names any runtime.
pub(crate) fn default_runtimes(known: &toml::Table, named: impl Fn(&str) -> bool) -> String {
    let mut runtimes = known.clone();
    runtimes.retain(|name, _| !HANDLERS.iter().any(|handler| handler.name == name) && !named(name));
    if runtimes.is_empty() {
        return String::new();
    }
    let mut table = runtimes;
    for key in ["runtimes", "containerd", CRI, "plugins"] {
        table = toml::Table::from_iter([(key.to_owned(), table.into())]);
    }
    format!(
        "\n# containerd's default, which it forgets when a file names other runtimes.\n{table}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_what_is_printed() {
        for (release, shipped) in [
            (Release::V1_6, include_str!("../../deploy/containerd/1.6.toml")),
            (Release::V1_7, include_str!("../../deploy/containerd/1.7.toml")),
            (Release::V2, include_str!("../../deploy/containerd/2.1.toml")),
        ] {
            assert_eq!(release.shipped(), shipped, "nacre containerd-config writes it anew");
            let parsed: toml::Table = shipped.parse().expect("TOML");
            assert!(parsed.contains_key("proxy_plugins"));
        }
    }

    #[test]
    fn releases_are_told_by_what_they_say() {
        let of = |answer| Release::of_version(answer).ok();
        assert_eq!(
            of("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1"),
            Some(Release::V1_6)
        );
        assert_eq!(
            of("containerd github.com/containerd/containerd v1.7.24 88bf19b2"),
            Some(Release::V1_7)
        );
        assert_eq!(
            of("containerd github.com/containerd/containerd/v2 2.1.9+unknown"),
            Some(Release::V2)
        );
        assert_eq!(of("containerd github.com/k3s-io/containerd v2.0.5-k3s1.32"), Some(Release::V2));
        for answer in
            ["", "containerd", "containerd 1.5.9", "containerd 99999999999.1", "1.", "v.1"]
        {
            assert_eq!(of(answer), None, "{answer}");
        }
    }
}
