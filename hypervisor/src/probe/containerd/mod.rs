//! containerd: whether its configuration leads pods to Nacre.

mod config;

use std::path::{Path, PathBuf};

use config::{Config, Problem, Runtime};

use super::finding::{Finding, Tee};
use super::host::{Host, Kind, Missing, Part};
use super::programs::{Containerd, containerd_finding, find_program, is_program};

/// The shim, as containerd looks for it.
const SHIM: &str = "containerd-shim-nacre-v2";
/// What names it in a handler.
const RUNTIME_TYPE: &str = "io.containerd.nacre.v2";
/// Annotations that bring a pod's policy and its wishes for the VM.
const ANNOTATIONS: [&str; 2] = ["io.katacontainers.*", "io.nacre.*"];
/// CRI's plugin in configurations of version 2.
const CRI: &str = "io.containerd.grpc.v1.cri";
/// Its parts in configurations of version 3.
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// Lines to add, for each release.
const EXAMPLES: &str = "deploy/containerd/";

/// What is known of containerd.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setup {
    containerd: Containerd,
    config: Result<Config, Problem>,
    handlers: Result<Vec<Handler>, String>,
}

/// A handler whose pods are Nacre's.
#[derive(Debug, Clone, PartialEq)]
struct Handler {
    name: String,
    runtime: Runtime,
    /// The shim's configuration, and what it says vouches for guests.
    config: (PathBuf, Result<Tee, Missing>),
    /// The shim's program.
    shim: Option<PathBuf>,
    /// The snapshotter that its images are unpacked with, and what is at its socket if it is a service.
    snapshotter: String,
    socket: Option<(PathBuf, Result<Kind, Missing>)>,
}

/// Where containerd's parts are.
#[derive(Debug, Clone)]
pub struct ContainerdPaths {
    /// Its configuration.
    pub config: PathBuf,
    /// Directories in which programs are looked for.
    pub program_dirs: Vec<PathBuf>,
    /// The configuration that the shim reads unless its handler names another.
    pub default_shim_config: PathBuf,
    /// The one that the question is about, if it is about one in particular.
    pub shim_config: Option<PathBuf>,
    /// Reads what vouches for guests from a configuration of the shim, or says what is wrong with it.
    pub read: fn(&[u8]) -> Result<Tee, String>,
}

impl Setup {
    pub(crate) fn gather(host: &dyn Host, paths: &ContainerdPaths) -> Setup {
        let containerd = Containerd::gather(host, &paths.program_dirs);
        let by_key = containerd.version.as_ref().is_ok_and(|version| version.numbers.0 >= 2);
        let config = Config::read(host, &paths.config, by_key);
        let handlers = match &config {
            Ok(config) => handlers(host, config, paths),
            Err(_) => Ok(Vec::new()),
        };
        Setup { containerd, config, handlers }
    }

    /// Names of the handlers.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &str> {
        self.handlers.iter().flatten().map(|handler| handler.name.as_str())
    }
}

/// The plugin that has the handlers in a configuration of this version.
fn plugin(version: i64) -> &'static str {
    if version >= 3 { CRI_RUNTIME } else { CRI }
}

fn handlers(
    host: &dyn Host,
    config: &Config,
    paths: &ContainerdPaths,
) -> Result<Vec<Handler>, String> {
    let all = config.runtimes(plugin(config.version))?;
    let own = all.into_iter().filter(|(_, runtime)| is_own(runtime));
    Ok(own.map(|(name, runtime)| handler(host, config, paths, name, runtime)).collect())
}

fn is_own(runtime: &Runtime) -> bool {
    let is_shim = |path: &str| Path::new(path).file_name().is_some_and(|name| name == SHIM);
    runtime.runtime_type == RUNTIME_TYPE
        || is_shim(&runtime.runtime_type)
        || is_shim(&runtime.runtime_path)
}

fn handler(
    host: &dyn Host,
    config: &Config,
    paths: &ContainerdPaths,
    name: String,
    runtime: Runtime,
) -> Handler {
    let named = [&runtime.runtime_path, &runtime.runtime_type];
    let named = named.into_iter().map(Path::new).find(|path| path.is_absolute());
    let shim = match named {
        Some(path) => Some(path.to_owned()).filter(|path| is_program(host, path)),
        None => find_program(host, &paths.program_dirs, SHIM),
    };
    // Of the handler itself, of its platform (2.x), or of all of CRI.
    let of_images = ["runtime_platforms", name.as_str(), "snapshotter"];
    let of_all = config.text(plugin(config.version), &["containerd", "snapshotter"]);
    let snapshotter = [
        config.text(CRI_IMAGES, &of_images),
        runtime.snapshotter.as_str(),
        config.text(CRI_IMAGES, &["snapshotter"]),
        of_all,
    ];
    let snapshotter = snapshotter.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let service = config.proxy_plugin(snapshotter).filter(|service| service.kind == "snapshot");
    let socket = service.map(|service| {
        let path = PathBuf::from(service.address);
        let kind = host.look(&path).map(|entry| entry.kind);
        (path, kind.map_err(|error| Missing::of(&error)))
    });
    let config = shim_config(host, paths, &runtime);
    Handler { snapshotter: snapshotter.to_owned(), name, runtime, config, shim, socket }
}

fn shim_config(
    host: &dyn Host,
    paths: &ContainerdPaths,
    runtime: &Runtime,
) -> (PathBuf, Result<Tee, Missing>) {
    const MOST_BYTES: usize = 256 * 1024;
    let named = Some(PathBuf::from(&runtime.options.config_path)).filter(|p| p.is_absolute());
    let path = named.clone().unwrap_or_else(|| paths.default_shim_config.clone());
    let tee = match host.read(&path, Part::Whole(MOST_BYTES)) {
        Ok(bytes) => (paths.read)(&bytes).map_err(Missing::Broken),
        Err(error) => match Missing::of(&error) {
            // Then the shim takes its defaults.
            Missing::Absent if named.is_none() => Ok(Tee::None),
            missing => Err(missing),
        },
    };
    (path, tee)
}

const CONFIG: &str = "containerd.config";
const HANDLER: &str = "containerd.handler";
const SNAPSHOTTER: &str = "containerd.snapshotter";
const SHIM_PROGRAM: &str = "containerd.shim";

pub(crate) fn findings(setup: &Setup, paths: &ContainerdPaths, tee: Tee) -> [Finding; 5] {
    let version = containerd_finding(&setup.containerd);
    let follow = |id| Finding::skip(id, format!("see {CONFIG}"));
    let (config, handlers) = match (&setup.config, &setup.handlers) {
        (Ok(config), Ok(handlers)) => (config, handlers),
        (Err(Problem::First(Missing::Denied)), _) => {
            let unseen = Finding::unseen(CONFIG, paths.config.display().to_string());
            return [version, unseen, follow(HANDLER), follow(SNAPSHOTTER), follow(SHIM_PROGRAM)];
        }
        (broken, handlers) => {
            let shown = paths.config.display();
            let (found, advice) = match (broken, handlers) {
                (Err(Problem::First(missing)), _) => (
                    format!("{shown} {missing}"),
                    format!(
                        "write it with the lines of {EXAMPLES}, or name another with --containerd-config"
                    ),
                ),
                (Err(Problem::Inside(problem)), _) => (problem.clone(), "correct it".to_owned()),
                (Ok(_), Err(problem)) => (format!("{shown}: {problem}"), "correct it".to_owned()),
                (Ok(_), Ok(_)) => unreachable!("both are there in the first arm"),
            };
            let config = Finding::fail(CONFIG, found, advice);
            return [version, config, follow(HANDLER), follow(SNAPSHOTTER), follow(SHIM_PROGRAM)];
        }
    };
    let all = handlers;
    let serving: Vec<&Handler> = all.iter().filter(|handler| handler.config.1 == Ok(tee)).collect();
    [
        version,
        file(config, &setup.containerd, paths),
        handler_finding(config, all, &serving, paths, tee),
        snapshotter(config, &setup.containerd, &serving),
        shim(&serving),
    ]
}

fn file(config: &Config, containerd: &Containerd, paths: &ContainerdPaths) -> Finding {
    let imported = config.files.len() - 1;
    let found =
        format!("{}, version {}, {imported} imported", paths.config.display(), config.version);
    let major = containerd.version.as_ref().ok().map(|version| version.numbers.0);
    match (config.version, major) {
        (..=1, _) => Finding::fail(
            CONFIG,
            found,
            "make it version 2 (containerd config migrate): version 1 has other names for plugins",
        ),
        (3.., Some(1)) => Finding::fail(
            CONFIG,
            found,
            "make it version 2: containerd 1.x does not start with later ones",
        ),
        (2, Some(1)) if imported > 0 && config.files.len() > 1 => Finding::pass(
            CONFIG,
            format!(
                "{found}; containerd 1.x takes each plugin's section from the last file that has it"
            ),
        ),
        _ => Finding::pass(CONFIG, found),
    }
}

fn handler_finding(
    config: &Config,
    all: &[Handler],
    serving: &[&Handler],
    paths: &ContainerdPaths,
    tee: Tee,
) -> Finding {
    if all.is_empty() {
        let found = format!("no runtime handler of plugin {} is Nacre's", plugin(config.version));
        let advice = format!("add the lines of {EXAMPLES} for this containerd, and restart it");
        return Finding::fail(HANDLER, found, advice);
    }
    if serving.is_empty() {
        let denied = |handler: &&Handler| handler.config.1 == Err(Missing::Denied);
        if let Some(handler) = all.iter().find(denied) {
            return Finding::unseen(HANDLER, handler.config.0.display().to_string());
        }
        let others: Vec<String> = all.iter().map(describe).collect();
        let advice = format!(
            "add a handler with ConfigPath to a configuration with vm.tee = \"{tee}\", or change the \
             configuration of one"
        );
        let found = format!("none runs pods with {tee}: {}", others.join("; "));
        return Finding::fail(HANDLER, found, advice);
    }
    let names: Vec<String> = serving.iter().map(|handler| describe(handler)).collect();
    let mut doubts = Vec::new();
    for Handler { name, runtime, .. } in serving {
        let handed = &runtime.pod_annotations;
        let missing = ANNOTATIONS.iter().filter(|&&pattern| !hands_on(handed, pattern));
        let missing: Vec<&str> = missing.copied().collect();
        if !missing.is_empty() {
            doubts.push(format!(
                "{name}: add {missing:?} to pod_annotations, or pods' policies do not reach the guest"
            ));
        }
    }
    if let Some(asked) = &paths.shim_config
        && !serving.iter().any(|handler| handler.config.0 == *asked)
    {
        let shown = asked.display();
        doubts.push(format!("none of them reads {shown}: check what they read with --config"));
    }
    if doubts.is_empty() {
        Finding::pass(HANDLER, names.join("; "))
    } else {
        Finding::warn(HANDLER, names.join("; "), doubts.join("; "))
    }
}

fn describe(handler: &Handler) -> String {
    let (path, tee) = &handler.config;
    let path = path.display();
    match tee {
        Ok(tee) => format!("{} by {path} ({tee})", handler.name),
        Err(missing) => format!("{} by {path}, which {missing}", handler.name),
    }
}

/// Whether patterns of annotations have all that `pattern` has.
fn hands_on(handed: &[String], pattern: &str) -> bool {
    let prefix = pattern.trim_end_matches('*');
    handed
        .iter()
        .any(|found| found.strip_suffix('*').is_some_and(|found| prefix.starts_with(found)))
}

/// Snapshotters that are part of containerd; the default has no name.
const OWN_SNAPSHOTTERS: [&str; 9] = [
    "",
    "overlayfs",
    "native",
    "btrfs",
    "zfs",
    "devmapper",
    "erofs",
    "blockfile",
    "fuse-overlayfs",
];

fn snapshotter(config: &Config, containerd: &Containerd, handlers: &[&Handler]) -> Finding {
    const ANNOTATED: [&str; 2] = ["containerd", "disable_snapshot_annotations"];
    let mut found = Vec::new();
    for handler in handlers {
        let Handler { name, snapshotter, socket, .. } = handler;
        match socket {
            Some((path, Ok(Kind::Socket))) => {
                found.push(format!("{name}: {snapshotter} at {}", path.display()));
            }
            Some((path, Err(Missing::Denied))) => {
                return Finding::unseen(SNAPSHOTTER, path.display().to_string());
            }
            Some((path, _)) => {
                let found = format!("{name}: nothing serves {snapshotter} at {}", path.display());
                return Finding::fail(SNAPSHOTTER, found, "start nacre-snapshotter");
            }
            None if !OWN_SNAPSHOTTERS.contains(&snapshotter.as_str()) => {
                let found = format!("{name}: no service {snapshotter} under proxy_plugins");
                let advice = format!("add the lines of {EXAMPLES} for this containerd");
                return Finding::fail(SNAPSHOTTER, found, advice);
            }
            None => {
                let used = if snapshotter.is_empty() { "containerd's own" } else { snapshotter };
                return Finding::warn(
                    SNAPSHOTTER,
                    format!("{name}: images are unpacked with {used}"),
                    format!(
                        "set nacre-snapshotter up as {EXAMPLES} does: without it images' layers are also \
                         pulled and unpacked on the host, and encrypted ones fail"
                    ),
                );
            }
        }
    }
    let before_2 = containerd.version.as_ref().is_ok_and(|version| version.numbers.0 < 2);
    match found.as_slice() {
        [] => Finding::skip(SNAPSHOTTER, format!("see {HANDLER}")),
        found if before_2 && config.switch(CRI, &ANNOTATED) != Some(false) => Finding::warn(
            SNAPSHOTTER,
            found.join("; "),
            "set disable_snapshot_annotations = false: the snapshotter learns by them which image a layer \
             is of",
        ),
        found => Finding::pass(SNAPSHOTTER, found.join("; ")),
    }
}

fn shim(handlers: &[&Handler]) -> Finding {
    let mut found = Vec::new();
    for Handler { name, runtime, shim, .. } in handlers {
        match shim {
            Some(path) => found.push(path.display().to_string()),
            None => {
                let place = [&runtime.runtime_path, &runtime.runtime_type];
                let place = place.into_iter().find(|path| path.starts_with('/'));
                let place = place.map_or("on the path of programs", String::as_str);
                return Finding::fail(
                    SHIM_PROGRAM,
                    format!("{name}: no executable {SHIM} {place}"),
                    "install it where containerd finds programs, such as /usr/local/bin",
                );
            }
        }
    }
    found.dedup();
    match found.as_slice() {
        [] => Finding::skip(SHIM_PROGRAM, format!("see {HANDLER}")),
        found => Finding::pass(SHIM_PROGRAM, found.join(", ")),
    }
}
