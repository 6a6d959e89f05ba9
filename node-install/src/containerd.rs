//! containerd on a node: which, where its configuration is, and how that is changed and changed back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use toml_edit::{Array, DocumentMut, Item};

use crate::NodeError;
use crate::dump::Dump;
use crate::edit;
use crate::files::{Root, hash, read_text, remove, replace};
use crate::handlers::{Release, Schema, lines};
use crate::receipt::ContainerdReceipt;
use crate::services::Services;

/// Where containerd is looked for, beside K3s' and RKE2's places.
const PROGRAMS: [&str; 4] = [
    "/usr/local/bin/containerd",
    "/usr/bin/containerd",
    "/usr/local/sbin/containerd",
    "/usr/sbin/containerd",
];
const CONFIG: &str = "/etc/containerd/config.toml";
/// Nacre's lines beside a configuration that imports them, and how it names them.
const DROP_IN: &str = "conf.d/nacre.toml";
const BEGIN: &str = "# BEGIN nacre (nacre install; nacre uninstall takes it away)";
const END: &str = "# END nacre";
/// How long containerd may take to come back.
const PATIENCE: Duration = Duration::from_secs(30);

/// K3s and RKE2 write containerd's configuration themselves, from a template.
const ENGINES: [Engine; 2] = [
    Engine {
        directory: "/var/lib/rancher/k3s/agent/etc/containerd",
        program: "/var/lib/rancher/k3s/data/current/bin/containerd",
        units: ["k3s.service", "k3s-agent.service"],
    },
    Engine {
        directory: "/var/lib/rancher/rke2/agent/etc/containerd",
        program: "/var/lib/rancher/rke2/bin/containerd",
        units: ["rke2-server.service", "rke2-agent.service"],
    },
];

struct Engine {
    directory: &'static str,
    program: &'static str,
    units: [&'static str; 2],
}

/// containerd as it was found.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Its program.
    pub program: PathBuf,
    /// Its release.
    pub release: Release,
    /// Its configuration.
    pub place: Place,
}

/// Where its configuration is, on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file, which need not exist.
    File(PathBuf),
    /// K3s' and RKE2's way.
    Template {
        /// What is changed.
        template: PathBuf,
        /// What they make of it at each start.
        generated: PathBuf,
        /// What starts it: on servers, on agents.
        units: [&'static str; 2],
    },
}

/// A change that containerd has been asked about.
#[derive(Debug)]
pub(crate) struct Change {
    /// Files on the node, what they have and what they get, in the order in which they are written.
    files: Vec<(PathBuf, Option<String>, Option<String>)>,
    /// `None` when taken back.
    pub(crate) receipt: Option<ContainerdReceipt>,
    units: Vec<&'static str>,
    /// Its socket.
    address: Option<PathBuf>,
}

impl Containerd {
    /// Finds it; `program` and `config` name what is elsewhere.
    pub fn find(
        root: &Root,
        program: Option<&Path>,
        config: Option<&Path>,
    ) -> Result<Containerd, NodeError> {
        let engine =
            ENGINES.iter().find(|engine| config.is_none() && root.at(engine.directory).is_dir());
        let own = engine.map(|engine| engine.program);
        let looked: Vec<&str> = own.into_iter().chain(PROGRAMS).collect();
        let program = match program {
            Some(program) => program.to_owned(),
            None => looked
                .iter()
                .map(|path| root.at(path))
                .find(|path| path.is_file())
                .ok_or_else(|| NodeError::NoContainerd { looked: looked.join(", ") })?,
        };
        let command = format!("{} --version", program.display());
        let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
        let output =
            output.map_err(|error| NodeError::Program { command, problem: error.to_string() })?;
        let release = Release::of_version(&String::from_utf8_lossy(&output.stdout))?;
        let place = match engine {
            None => Place::File(config.unwrap_or(Path::new(CONFIG)).to_owned()),
            Some(engine) => {
                let directory = Path::new(engine.directory);
                let name =
                    if release == Release::V2 { "config-v3.toml.tmpl" } else { "config.toml.tmpl" };
                Place::Template {
                    template: directory.join(name),
                    generated: directory.join("config.toml"),
                    units: engine.units,
                }
            }
        };
        Ok(Containerd { program, release, place })
    }

    /// What is to be changed so that it has Nacre's handlers; `None` if nothing. Unless `dry`, containerd has read
    /// the result, and said that it does what it did before, and Nacre beside.
    pub(crate) fn plan(
        &self,
        root: &Root,
        known: Option<&ContainerdReceipt>,
        dry: bool,
    ) -> Result<Option<Change>, NodeError> {
        match &self.place {
            Place::File(config) => self.plan_file(root, config, known, dry),
            Place::Template { template, generated, units } => {
                self.plan_template(root, template, generated, *units, known, dry)
            }
        }
    }

    fn plan_file(
        &self,
        root: &Root,
        config: &Path,
        known: Option<&ContainerdReceipt>,
        dry: bool,
    ) -> Result<Option<Change>, NodeError> {
        let path = root.at(config);
        let known = known.filter(|known| known.config == config);
        let text = read_text(&path)?;
        let before = match &text {
            Some(_) => Dump::of(&self.program, &path)?,
            None => Dump::without_file(&self.program)?,
        };
        if before.has_no_cri() {
            let problem =
                "switches CRI off (disabled_plugins), so no pod comes to it; take that line out";
            return Err(NodeError::config(&path, problem));
        }
        let mut document = parse(&path, text.as_deref().unwrap_or_default())?;
        let (schema, is_stated) = self.schema(&path, &document)?;
        let mut wanted = if is_stated { String::new() } else { format!("{}\n", schema.line()) };
        let drop_in = (self.release == Release::V2).then(|| config.with_file_name(DROP_IN));
        let ours = lines(self.release, schema, &before.other_snapshotters());
        match &drop_in {
            Some(_) => {
                if let Some(line) = import_line(&document) {
                    wanted.push_str(&line);
                }
            }
            None => wanted.push_str(&ours),
        }
        let set = edit::set(&mut document, &parse(&path, &wanted)?);
        let edits = set.map_err(|problem| NodeError::config(&path, problem))?;
        let changed = if edits.is_empty() { text.clone() } else { Some(document.to_string()) };

        let mut files = Vec::new();
        if let Some(drop_in) = &drop_in {
            let content = format!(
                "# Made by `nacre install`; `nacre uninstall` takes it away.\n{}\n{ours}",
                schema.line()
            );
            let there = read_text(&root.at(drop_in))?;
            if there.as_deref() != Some(content.as_str()) {
                files.push((drop_in.clone(), there, Some(content)));
            }
        }
        if changed != text {
            files.push((config.to_owned(), text.clone(), changed.clone()));
        }
        if files.is_empty() {
            return Ok(None);
        }
        if !dry {
            let drop_in_text = drop_in.as_ref().map(|_| format!("{}\n{ours}", schema.line()));
            let candidate = Candidate::write(&path, document, drop_in_text.as_deref())?;
            let after = Dump::of(&self.program, &candidate.0[0])?;
            after.check_against(&before, self.release)?;
        }
        let earlier = known.map(|known| known.edits.clone()).unwrap_or_default();
        let receipt = ContainerdReceipt {
            config: config.to_owned(),
            before: known.map_or(text, |known| known.before.clone()),
            after: hash(changed.as_deref().unwrap_or_default()),
            edits: earlier.into_iter().chain(edits).collect(),
            drop_in,
        };
        let address = before.address().map(|address| root.at(address));
        Ok(Some(Change {
            files,
            receipt: Some(receipt),
            units: vec!["containerd.service"],
            address,
        }))
    }

    /// The version of a file, and whether it says so. One that says nothing is as old as 1, unless it says
    /// nothing that depends on it.
    fn schema(&self, path: &Path, document: &DocumentMut) -> Result<(Schema, bool), NodeError> {
        let stated = document.get("version").and_then(Item::as_integer);
        let depends = ["plugins", "disabled_plugins", "required_plugins", "imports"];
        match stated {
            None if !depends.iter().any(|key| document.contains_key(key)) => {
                Ok((self.release.schema(), false))
            }
            None | Some(1) => Err(NodeError::config(
                path,
                "has version 1; write it anew in version 2 (`containerd config migrate` of 1.7 or later does)",
            )),
            Some(number) => Schema::of_number(number)
                .filter(|schema| *schema == Schema::V2 || self.release == Release::V2)
                .map(|schema| (schema, true))
                .ok_or_else(|| {
                    NodeError::config(path, format!("has version {number}, which is not known"))
                }),
        }
    }

    fn plan_template(
        &self,
        root: &Root,
        template: &Path,
        generated: &Path,
        units: [&'static str; 2],
        known: Option<&ContainerdReceipt>,
        dry: bool,
    ) -> Result<Option<Change>, NodeError> {
        let path = root.at(generated);
        let Some(made) = read_text(&path)? else {
            return Err(NodeError::config(&path, "is not there yet: start K3s or RKE2 once"));
        };
        if self.release != Release::V2 {
            let problem = "comes from a K3s or RKE2 with containerd 1.x, whose template cannot be added to in the \
                           way that Nacre needs; take one with containerd 2 (1.31.6, 1.32.2 and later)";
            return Err(NodeError::config(&path, problem));
        }
        let before = Dump::of(&self.program, &path)?;
        let (schema, _) = self.schema(&path, &parse(&path, &made)?)?;
        let block = format!(
            "{BEGIN}\n{}{END}\n",
            lines(self.release, schema, &before.other_snapshotters())
        );
        let there = read_text(&root.at(template))?;
        let base = there
            .as_deref()
            .map_or_else(|| "{{ template \"base\" . }}\n".to_owned(), without_block);
        let wanted = format!("{}\n{block}", base.trim_end_matches('\n').to_owned() + "\n");
        if there.as_deref() == Some(wanted.as_str()) {
            return Ok(None);
        }
        if !dry {
            // What the template will give.
            let document = parse(&path, &format!("{}\n{block}", without_block(&made)))?;
            let candidate = Candidate::write(&path, document, None)?;
            Dump::of(&self.program, &candidate.0[0])?.check_against(&before, self.release)?;
        }
        let known = known.filter(|known| known.config == template);
        let receipt = ContainerdReceipt {
            config: template.to_owned(),
            before: known.map_or_else(|| there.clone(), |known| known.before.clone()),
            after: hash(&wanted),
            edits: Vec::new(),
            drop_in: None,
        };
        let files = vec![(template.to_owned(), there, Some(wanted))];
        Ok(Some(Change { files, receipt: Some(receipt), units: units.to_vec(), address: None }))
    }

    /// What is to be changed so that nothing of Nacre is left.
    pub(crate) fn plan_removal(
        &self,
        root: &Root,
        known: &ContainerdReceipt,
        dry: bool,
    ) -> Result<Change, NodeError> {
        let path = root.at(&known.config);
        let text = read_text(&path)?;
        let restored = match &text {
            None => None,
            Some(text) if hash(text) == known.after => known.before.clone(),
            Some(text) if matches!(self.place, Place::Template { .. }) => Some(without_block(text)),
            Some(text) => {
                let mut document = parse(&path, text)?;
                edit::undo(&mut document, &known.edits);
                Some(document.to_string())
            }
        };
        let mut files = Vec::new();
        if restored != text {
            files.push((known.config.clone(), text, restored.clone()));
        }
        let mut address = None;
        if let (Place::File(_), Some(restored)) = (&self.place, &restored)
            && !dry
        {
            let candidate = Candidate::write(&path, parse(&path, restored)?, None)?;
            let dump = Dump::of(&self.program, &candidate.0[0])?;
            address = dump.address().map(|address| root.at(address));
        }
        // Last: a file that imports it by name would not be readable without it.
        if let Some(drop_in) = &known.drop_in {
            let there = read_text(&root.at(drop_in))?;
            if there.is_some() {
                files.push((drop_in.clone(), there, None));
            }
        }
        let units = match &self.place {
            Place::File(_) => vec!["containerd.service"],
            Place::Template { units, .. } => units.to_vec(),
        };
        Ok(Change { files, receipt: None, units, address })
    }
}

impl Change {
    /// Files that are written or removed.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let what = |after: &Option<String>| if after.is_some() { "write" } else { "remove" };
        self.files.iter().map(move |(path, _, after)| (what(after), path.as_path()))
    }

    /// Writes them and starts containerd anew, if it runs. If it does not come back it gets what it had.
    pub(crate) fn apply(
        &self,
        root: &Root,
        services: &dyn Services,
    ) -> Result<Option<&str>, NodeError> {
        for (done, (path, _, after)) in self.files.iter().enumerate() {
            if let Err(error) = put(root, path, after.as_deref()) {
                self.take_back(root, done);
                return Err(error);
            }
        }
        let Some(unit) = self.units.iter().copied().find(|unit| services.is_active(unit)) else {
            return Ok(None);
        };
        let Err(error) = self.restart(unit, services) else { return Ok(Some(unit)) };
        self.take_back(root, self.files.len());
        let restored = match self.restart(unit, services) {
            Ok(()) => String::new(),
            Err(error) => format!(", but it did not start with that either: {error}"),
        };
        Err(NodeError::Restart { unit: unit.to_owned(), problem: error.to_string(), restored })
    }

    fn restart(&self, unit: &str, services: &dyn Services) -> Result<(), NodeError> {
        services.restart(unit)?;
        let started = Instant::now();
        let answers = || match &self.address {
            Some(address) => std::os::unix::net::UnixStream::connect(address).is_ok(),
            None => true,
        };
        while !(services.is_active(unit) && answers()) {
            if started.elapsed() > PATIENCE {
                let problem = format!("nobody answers after {} s", PATIENCE.as_secs());
                return Err(NodeError::Program { command: unit.to_owned(), problem });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Best effort: the error that led here is the one to be told.
    fn take_back(&self, root: &Root, files: usize) {
        for (path, before, _) in self.files[..files].iter().rev() {
            let _ = put(root, path, before.as_deref());
        }
    }
}

fn put(root: &Root, path: &Path, text: Option<&str>) -> Result<(), NodeError> {
    match text {
        Some(text) => replace(&root.at(path), text, 0o644),
        None => remove(&root.at(path)).map(drop),
    }
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, NodeError> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        NodeError::config(path, format!("is not TOML: {}", error.message()))
    })
}

/// `imports` with Nacre's file; `None` if it is imported already.
fn import_line(document: &DocumentMut) -> Option<String> {
    let mut imports = document.get("imports").and_then(Item::as_array).cloned().unwrap_or_default();
    let names = |import: &str| {
        import == DROP_IN || import.ends_with("/conf.d/*.toml") || import == "conf.d/*.toml"
    };
    if imports.iter().filter_map(toml_edit::Value::as_str).any(names) {
        return None;
    }
    imports.push(DROP_IN);
    Some(format!("imports = {}\n", imports.to_string().trim()))
}

/// A template without Nacre's part.
fn without_block(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        match line {
            BEGIN => inside = true,
            END if inside => inside = false,
            line if !inside => {
                kept.push_str(line);
                kept.push('\n');
            }
            _ => {}
        }
    }
    kept
}

/// Files beside the real ones that containerd is asked to read; gone when it has.
struct Candidate(Vec<PathBuf>);

impl Candidate {
    fn write(
        config: &Path,
        mut main: DocumentMut,
        drop_in: Option<&str>,
    ) -> Result<Candidate, NodeError> {
        const SUFFIX: &str = ".nacre-candidate";
        let beside = |path: &Path| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(SUFFIX);
            path.with_file_name(name)
        };
        let mut candidate = Candidate(vec![beside(config)]);
        if let Some(text) = drop_in {
            let path = beside(&config.with_file_name(DROP_IN));
            let mut imports =
                main.get("imports").and_then(Item::as_array).cloned().unwrap_or_else(Array::new);
            imports.retain(|import| import.as_str() != Some(DROP_IN));
            imports.push(format!("{DROP_IN}{SUFFIX}"));
            main["imports"] = toml_edit::value(imports);
            candidate.0.push(path.clone());
            replace(&path, text, 0o644)?;
        }
        replace(&candidate.0[0], &main.to_string(), 0o644)?;
        Ok(candidate)
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = remove(path);
        }
    }
}

#[cfg(test)]
mod tests;
