//! containerd on a node: which, where its configuration is, and how that is changed and changed back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml_edit::{DocumentMut, Item};

use crate::NodeError;
use crate::candidate::{self, DropIn};
use crate::change::{Change, Kept, Promise};
use crate::dump::Dump;
use crate::edit;
use crate::files::{Root, hash, read_text};
use crate::handlers::{CRI, Release, Schema, default_runtimes, lines};
use crate::receipt::ContainerdReceipt;

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
/// The template where there is none.
const BASE: &str = "{{ template \"base\" . }}\n";

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

impl Place {
    /// What an installation changes.
    pub(crate) fn changed(&self) -> &Path {
        let (Place::File(path) | Place::Template { template: path, .. }) = self;
        path
    }

    /// Units by which containerd can run.
    pub(crate) fn units(&self) -> Vec<&'static str> {
        match self {
            Place::File(_) => vec!["containerd.service"],
            Place::Template { units, .. } => units.to_vec(),
        }
    }
}

impl Containerd {
    /// Finds it; `program` and `config` name what is elsewhere.
    pub fn find(
        root: &Root,
        program: Option<&Path>,
        config: Option<&Path>,
    ) -> Result<Containerd, NodeError> {
        let mut engine = None;
        for candidate in ENGINES.iter().filter(|_| config.is_none()) {
            if engine.is_none() && root.at(candidate.directory)?.is_dir() {
                engine = Some(candidate);
            }
        }
        let own = engine.map(|engine| engine.program);
        let looked: Vec<&str> = own.into_iter().chain(PROGRAMS).collect();
        let mut found = program.map(Path::to_owned);
        for path in &looked {
            let path = root.at(path)?;
            if found.is_none() && path.is_file() {
                found = Some(path);
            }
        }
        let program = found.ok_or_else(|| NodeError::NoContainerd { looked: looked.join(", ") })?;
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
        let path = root.at(config)?;
        let known = known.filter(|known| known.config == config);
        let text = read_text(&path)?;
        let mut document = parse(config, text.as_deref().unwrap_or_default())?;
        let drop_in = (self.release == Release::V2).then(|| config.with_file_name(DROP_IN));
        let there = match &drop_in {
            Some(drop_in) => read_text(&root.at(drop_in)?)?,
            None => None,
        };
        let ask = |document: &DocumentMut, text: Option<&str>| {
            let drop_in = drop_in.as_deref().map(|path| DropIn { path, text });
            candidate::dump(&self.program, root, config, document, drop_in.as_ref())
        };
        let before = match &text {
            Some(_) => ask(&document, there.as_deref())?,
            None => Dump::without_file(&self.program)?,
        };
        if before.has_no_cri() {
            let problem =
                "switches CRI off (disabled_plugins), so no pod comes to it; take that line out";
            return Err(NodeError::config(config, problem));
        }
        let (schema, is_stated) = self.schema(config, &document)?;
        // What Nacre's lines for another release left, which would stay for ever.
        let in_file = match self.release {
            Release::V2 => String::new(),
            _ => lines(self.release, schema, &[]),
        };
        let in_file = parse(config, &in_file)?;
        let mut edits = known.map(|known| known.edits.clone()).unwrap_or_default();
        edits.retain(|edit| edit.stands(&mut document));
        let outdated: Vec<_> =
            edits.iter().filter(|edit| edit.is_outdated(&in_file)).cloned().collect();
        let as_it_was = document.to_string();
        edit::undo(&mut document, &outdated);
        let is_outdated = document.to_string() != as_it_was;
        edits.retain(|edit| edit.stands(&mut document));
        // Without Nacre's lines: what they say of other pods' snapshotters is not the administrator's word.
        let without = match there.is_some() || is_outdated {
            true => ask(&document, None)?,
            false => before.clone(),
        };
        let mut wanted = if is_stated { String::new() } else { format!("{}\n", schema.line()) };
        let ours = lines(self.release, schema, &without.other_snapshotters());
        match &drop_in {
            Some(drop_in) => {
                if let Some(line) = import_line(&document, config, drop_in) {
                    wanted.push_str(&line);
                }
            }
            None => wanted.push_str(&(default_runtimes_of(&before, &document) + &ours)),
        }
        let set = edit::set(&mut document, &parse(config, &wanted)?);
        let set = set.map_err(|problem| NodeError::config(config, problem))?;
        let is_same = set.is_empty() && !is_outdated;
        let changed = if is_same { text.clone() } else { Some(document.to_string()) };
        edits.extend(set);

        let mut files = Vec::new();
        let mut drop_in_text = None;
        if let Some(drop_in) = &drop_in {
            let content = format!(
                "# Made by `nacre install`; `nacre uninstall` takes it away.\n{}\n{ours}",
                schema.line()
            );
            if there.as_deref() != Some(content.as_str()) {
                files.push((drop_in.clone(), there, Some(content.clone())));
            }
            drop_in_text = Some(content);
        }
        if changed != text {
            files.push((config.to_owned(), text.clone(), changed.clone()));
        }
        if files.is_empty() {
            return Ok(None);
        }
        if !dry {
            let after = ask(&document, drop_in_text.as_deref())?;
            after.check_added(&before, &without, self.release)?;
        }
        let before_nacre = match (&text, known) {
            (Some(text), Some(known)) if hash(text) == known.after => known.before.clone(),
            // What was written since must not be lost to what was before it.
            (Some(text), Some(known)) => without_ours(config, text, known)?,
            _ => text,
        };
        let receipt = ContainerdReceipt {
            config: config.to_owned(),
            before: before_nacre,
            after: hash(changed.as_deref().unwrap_or_default()),
            edits,
            drop_in,
        };
        let address = before.address().map(|address| root.at(address)).transpose()?;
        Ok(Some(Change {
            files,
            receipt: Some(receipt),
            units: self.place.units(),
            address,
            promise: Some(Promise {
                program: self.program.clone(),
                release: self.release,
                config: config.to_owned(),
                kept: Kept::Added { before, without },
            }),
        }))
    }

    /// The version of a file, and whether it says so. One that says nothing is as old as 1, unless it says
    /// nothing that depends on it.
    fn schema(&self, path: &Path, document: &DocumentMut) -> Result<(Schema, bool), NodeError> {
        let stated = document.get("version").and_then(Item::as_integer);
        match stated {
            None if !edit::VERSIONED.iter().any(|key| document.contains_key(key)) => {
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
        let Some(made) = read_text(&root.at(generated)?)? else {
            return Err(NodeError::config(generated, "is not there yet: start K3s or RKE2 once"));
        };
        if self.release != Release::V2 {
            let problem = "comes from a K3s or RKE2 with containerd 1.x, whose template cannot be added to in the \
                           way that Nacre needs; take one with containerd 2 (1.31.6, 1.32.2 and later)";
            return Err(NodeError::config(generated, problem));
        }
        let ask = |document: &DocumentMut| {
            candidate::dump(&self.program, root, generated, document, None)
        };
        let made = parse(generated, &made)?;
        let without_text = without_block(&made.to_string());
        let (before, without) = (ask(&made)?, ask(&parse(generated, &without_text)?)?);
        let (schema, _) = self.schema(generated, &made)?;
        let block = format!(
            "{BEGIN}\n{}{END}\n",
            lines(self.release, schema, &without.other_snapshotters())
        );
        let there = read_text(&root.at(template)?)?;
        let base = there.as_deref().map_or_else(|| BASE.to_owned(), without_block);
        let wanted = format!("{}\n\n{block}", base.trim_end_matches('\n'));
        if there.as_deref() == Some(wanted.as_str()) {
            return Ok(None);
        }
        if !dry {
            // What the template will give.
            let document = parse(generated, &format!("{without_text}\n{block}"))?;
            ask(&document)?.check_added(&before, &without, self.release)?;
        }
        let known = known.filter(|known| known.config == template);
        let before_nacre = match (&there, known) {
            (Some(text), Some(known)) if hash(text) == known.after => known.before.clone(),
            (Some(text), Some(known)) => without_ours_of_template(text, known),
            _ => there.clone(),
        };
        let receipt = ContainerdReceipt {
            config: template.to_owned(),
            before: before_nacre,
            after: hash(&wanted),
            edits: Vec::new(),
            drop_in: None,
        };
        let files = vec![(template.to_owned(), there, Some(wanted))];
        let units = units.to_vec();
        Ok(Some(Change { files, receipt: Some(receipt), units, address: None, promise: None }))
    }
}

/// What is to be changed so that nothing of Nacre is left, and why containerd could not be asked about it, if so: it is
/// started anew then only if it understands what is left. `found` is containerd, which may be gone, or not understand its configuration any more: it must be
/// possible to take Nacre off that node, too.
pub(crate) fn plan_removal(
    found: Result<Containerd, NodeError>,
    root: &Root,
    known: &ContainerdReceipt,
    dry: bool,
) -> Result<(Change, Option<String>), NodeError> {
    let config = &known.config;
    let engine = ENGINES.iter().find(|engine| config.starts_with(engine.directory));
    let text = read_text(&root.at(config)?)?;
    let restored = match &text {
        None => None,
        Some(text) if hash(text) == known.after => known.before.clone(),
        Some(text) if engine.is_some() => without_ours_of_template(text, known),
        Some(text) => without_ours(config, text, known)?,
    };
    let there = match &known.drop_in {
        Some(drop_in) => read_text(&root.at(drop_in)?)?,
        None => None,
    };
    let units = engine.map_or_else(|| vec!["containerd.service"], |engine| engine.units.to_vec());
    let mut change = Change::of_nothing(units);
    let mut unasked = None;
    if let (None, Some(text), false) = (engine, &text, dry) {
        let address_of = |dump: &Dump| dump.address().map(|address| root.at(address)).transpose();
        let ask = |containerd: &Containerd, text: &str, drop_in_text| {
            let drop_in = known.drop_in.as_deref();
            let drop_in = drop_in.map(|path| DropIn { path, text: drop_in_text });
            let document = parse(config, text)?;
            candidate::dump(&containerd.program, root, config, &document, drop_in.as_ref())
        };
        let asked = found.map(|containerd| {
            let with = ask(&containerd, text, there.as_deref());
            let without = match &restored {
                Some(restored) => ask(&containerd, restored, None),
                None => Dump::without_file(&containerd.program),
            };
            (containerd, with, without)
        });
        match asked {
            // It may well run, by what it read at its start, and would not come back.
            Err(error) | Ok((_, Err(error), Err(_))) => {
                unasked = Some(format!(
                    "{error}; it was not started anew: do that once it understands its configuration"
                ));
                change.units = Vec::new();
            }
            Ok((_, Err(error), Ok(without))) => {
                unasked = Some(format!("{error}; it understands what it has now"));
                change.address = address_of(&without)?;
            }
            Ok((containerd, Ok(with), without)) => {
                let without = without?;
                without.check_removed(&with, containerd.release)?;
                change.address = address_of(&without)?;
                change.promise = Some(Promise {
                    program: containerd.program,
                    release: containerd.release,
                    config: config.clone(),
                    kept: Kept::Removed { with },
                });
            }
        }
    }
    if restored != text {
        change.files.push((config.clone(), text, restored));
    }
    // Last: a file that imports it by name would not be readable without it.
    if let (Some(drop_in), Some(_)) = (&known.drop_in, &there) {
        change.files.push((drop_in.clone(), there, None));
    }
    Ok((change, unasked))
}

/// Lines for the runtimes that containerd 1.x has and the file does not name.
fn default_runtimes_of(dump: &Dump, document: &DocumentMut) -> String {
    const PATH: [&str; 4] = ["plugins", CRI, "containerd", "runtimes"];
    let Some(known) = dump.get(&PATH).and_then(toml::Value::as_table) else { return String::new() };
    let mut named = document.get(PATH[0]);
    for key in &PATH[1..] {
        named = named.and_then(|item| item.get(key));
    }
    default_runtimes(known, |name| named.is_some_and(|item| item.get(name).is_some()))
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, NodeError> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        NodeError::config(path, format!("is not TOML: {}", error.message()))
    })
}

/// `imports` with Nacre's file; `None` if it is named already. A pattern that covers it does not count: containerd
/// reads a file that is imported twice once.
fn import_line(document: &DocumentMut, config: &Path, drop_in: &Path) -> Option<String> {
    let mut imports = document.get("imports").and_then(Item::as_array).cloned().unwrap_or_default();
    let is_ours = |import: &str| candidate::names(import, config, drop_in);
    if imports.iter().filter_map(toml_edit::Value::as_str).any(is_ours) {
        return None;
    }
    imports.push(DROP_IN);
    Some(format!("imports = {}\n", imports.to_string().trim()))
}

/// A configuration without what was set in it; none if nothing else is in it and there was none before.
fn without_ours(
    path: &Path,
    text: &str,
    known: &ContainerdReceipt,
) -> Result<Option<String>, NodeError> {
    let mut document = parse(path, text)?;
    edit::undo(&mut document, &known.edits);
    if let Some(drop_in) = &known.drop_in
        && let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut)
    {
        // Whatever else was done to the list: it must not name a file that goes.
        imports.retain(|import| {
            !import.as_str().is_some_and(|import| candidate::names(import, &known.config, drop_in))
        });
        if imports.is_empty() && known.edits.iter().any(|edit| edit.made("imports")) {
            document.remove("imports");
            edit::undo(&mut document, &known.edits);
        }
    }
    Ok((known.before.is_some() || !document.is_empty()).then(|| document.to_string()))
}

/// A template without Nacre's part; none if there was none before and nothing was added.
fn without_ours_of_template(text: &str, known: &ContainerdReceipt) -> Option<String> {
    let rest = without_block(text);
    (known.before.is_some() || rest.trim() != BASE.trim()).then_some(rest)
}

fn without_block(text: &str) -> String {
    let line = |mark: &str| format!("{mark}\n");
    let block = text
        .split_once(&line(BEGIN))
        .and_then(|(before, rest)| rest.split_once(&line(END)).map(|(_, after)| (before, after)));
    block.map_or_else(|| text.to_owned(), |(before, after)| format!("{before}{after}"))
}

#[cfg(test)]
mod real;
#[cfg(test)]
pub(crate) mod tests;
