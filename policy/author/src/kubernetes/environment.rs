//! A container's environment and command line, as the kubelet puts them together.
//!
//! `envFrom` comes first, in order; `env` follows, in order, and may replace what was there; a reference sees what stands
//! before it. Of two variables of one name the last one counts. The image's variables and those of services come from
//! elsewhere and cannot be referred to (the image's) or only become known in the cluster (the services').

use std::collections::BTreeMap;

use super::context::{Notes, PodContext};
use super::decode::Placed;
use super::error::{Place, Problem, ReadError};
use super::pod_spec::{Container, EnvFrom, EnvSource, EnvVar, EnvVarSource, KeySelector};
use super::store::Stored;
use crate::expand::{self, Expansion, Text};
use crate::workload::{self, ArgValue, PodFact};

/// Variables in the making: what `$(VAR)` in later ones and in the command line refers to.
pub(super) struct Environment {
    variables: BTreeMap<String, (Text, u32)>,
    /// Bytes of all texts so far.
    length: usize,
    service_links: bool,
}

/// Bytes of arguments and environment that Linux can pass to a program (three quarters of the default stack).
const LENGTH_LIMIT: usize = 6 << 20;

impl Environment {
    pub(super) fn of(
        container: &Container,
        pod: &PodContext<'_>,
        notes: &mut Notes,
    ) -> Result<Self, ReadError> {
        let mut all =
            Self { variables: BTreeMap::new(), length: 0, service_links: pod.service_links };
        for source in container.env_from.iter().flat_map(|list| &list.value) {
            all.take_source(source, pod, notes)?;
        }
        for variable in container.env.iter().flat_map(|list| &list.value) {
            all.take_variable(variable, &container.name.value, pod, notes)?;
        }
        if pod.indexed {
            all.variables
                .entry("JOB_COMPLETION_INDEX".to_owned())
                .or_insert((Text::fact(PodFact::Number), container.name.place.line));
        }
        Ok(all)
    }

    fn take_source(
        &mut self,
        source: &Placed<EnvFrom>,
        pod: &PodContext<'_>,
        notes: &mut Notes,
    ) -> Result<(), ReadError> {
        let (kind, reference) = match (&source.value.config_map, &source.value.secret) {
            (Some(reference), None) => (Kind::ConfigMap, reference),
            (None, Some(reference)) => (Kind::Secret, reference),
            _ => return Err(source.place.invalid("needs either configMapRef or secretRef")),
        };
        let EnvSource { name, optional } = &reference.value;
        let optional = optional.unwrap_or(false);
        let Some(stored) = find(kind, name.as_ref(), optional, &reference.place, pod, notes)?
        else {
            return Ok(());
        };
        let prefix = source.value.prefix.as_ref().map_or("", |prefix| &prefix.value);
        for key in stored.object.data.keys() {
            if stored.binary.contains(key) {
                continue;
            }
            let name = format!("{prefix}{key}");
            if !is_variable_name(&name) {
                return Err(source.place.invalid(format!(
                    "{name:?} of {kind} {:?} is no environment variable in every Kubernetes version: rename the key, \
                     or set a variable from it by valueFrom",
                    stored.object.name
                )));
            }
            let text = value(kind, stored, key, &source.place)?;
            self.insert(name, text, &source.place)?;
        }
        Ok(())
    }

    fn take_variable(
        &mut self,
        variable: &Placed<EnvVar>,
        container: &str,
        pod: &PodContext<'_>,
        notes: &mut Notes,
    ) -> Result<(), ReadError> {
        let EnvVar { name, value, value_from } = &variable.value;
        if name.value.is_empty() || name.value.contains(['=', '\0']) {
            return Err(name
                .place
                .invalid("is no name of an environment variable: it is empty or contains '='"));
        }
        let text = match (value, value_from) {
            (Some(value), Some(from)) if !value.value.is_empty() => {
                return Err(from.place.invalid("stands beside value: remove one of them"));
            }
            (_, Some(from)) => match sourced(from, container, pod, notes)? {
                Some(text) => text,
                None => return Ok(()),
            },
            (Some(value), None) => self.expand(&value.value, &value.place)?.text,
            (None, None) => Text::default(),
        };
        self.insert(name.value.clone(), text, &variable.place)
    }

    fn insert(&mut self, name: String, text: Text, place: &Place) -> Result<(), ReadError> {
        self.count(name.len() + text.length(), place)?;
        self.variables.insert(name, (text, place.line));
        Ok(())
    }

    fn count(&mut self, bytes: usize, place: &Place) -> Result<(), ReadError> {
        self.length = self.length.saturating_add(bytes);
        if self.length > LENGTH_LIMIT {
            return Err(place.error(Problem::Limit {
                what: "size of the container's environment and command line, in bytes",
                limit: LENGTH_LIMIT,
                fix: "no program can be given more; shorten it",
            }));
        }
        Ok(())
    }

    fn expand(&self, input: &str, place: &Place) -> Result<Expansion, ReadError> {
        let lookup = |name: &str| self.variables.get(name).map(|(text, _)| text);
        expand::expand(input, lookup, self.service_links)
            .map_err(|error| place.invalid(error.to_string()))
    }

    /// A command line's elements.
    pub(super) fn command_line(
        &mut self,
        words: &[Placed<String>],
    ) -> Result<Vec<ArgValue>, ReadError> {
        words
            .iter()
            .map(|word| {
                let text = self.expand(&word.value, &word.place)?.text;
                self.count(text.length(), &word.place)?;
                Ok(text.into_value())
            })
            .collect()
    }

    /// A `subPathExpr`, in which every reference must be defined.
    pub(super) fn sub_path(&mut self, expression: &Placed<String>) -> Result<Text, ReadError> {
        let expansion = self.expand(&expression.value, &expression.place)?;
        self.count(expansion.text.length(), &expression.place)?;
        match expansion.undefined.first() {
            Some(name) => Err(expression.place.invalid(format!(
                "refers to the variable {name:?}, which the container does not define: add it to env"
            ))),
            None => Ok(expansion.text),
        }
    }

    pub(super) fn into_variables(self) -> Vec<workload::EnvVar> {
        self.variables
            .into_iter()
            .map(|(name, (text, line))| workload::EnvVar { name, value: text.into_value(), line })
            .collect()
    }
}

/// The value of a `valueFrom`; none if it is optional and not there.
fn sourced(
    from: &Placed<EnvVarSource>,
    container: &str,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<Option<Text>, ReadError> {
    let source = &from.value;
    if let Some(file) = &source.file_key {
        return Err(file.place.refused(
            "fileKeyRef",
            "its value comes from a file that is written while the pod runs, so no policy can know it; let the program \
             read the file",
        ));
    }
    match (&source.config_map_key, &source.secret_key, &source.field, &source.resource_field) {
        (Some(selector), None, None, None) => keyed(Kind::ConfigMap, selector, pod, notes),
        (None, Some(selector), None, None) => keyed(Kind::Secret, selector, pod, notes),
        (None, None, Some(field), None) => pod.field(&field.value, notes).map(Some),
        (None, None, None, Some(resource)) => {
            pod.resource(&resource.value, Some(container)).map(Some)
        }
        _ => Err(from.place.invalid(
            "needs exactly one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef",
        )),
    }
}

fn keyed(
    kind: Kind,
    selector: &Placed<KeySelector>,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<Option<Text>, ReadError> {
    let KeySelector { name, key, optional } = &selector.value;
    let optional = optional.unwrap_or(false);
    let Some(stored) = find(kind, name.as_ref(), optional, &selector.place, pod, notes)? else {
        return Ok(None);
    };
    if !stored.object.data.contains_key(&key.value) {
        if optional {
            return Ok(None);
        }
        return Err(key.place.invalid(format!(
            "{kind} {:?} ({}:{}) has no key {:?}: add it there, or correct the key",
            stored.object.name, stored.object.file, stored.object.line, key.value
        )));
    }
    if stored.binary.contains(&key.value) {
        return Err(key.place.invalid(format!(
            "{:?} stands in the ConfigMap's binaryData, which cannot become a variable: move it to data",
            key.value
        )));
    }
    value(kind, stored, &key.value, &key.place).map(Some)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ConfigMap,
    Secret,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

impl Kind {
    pub(super) fn get<'a>(self, pod: &'a PodContext<'_>, name: &str) -> Option<&'a Stored> {
        match self {
            Self::ConfigMap => pod.store.config_map(pod.namespace(), name),
            Self::Secret => pod.store.secret(pod.namespace(), name),
        }
    }
}

/// The object that a variable refers to; none if it is optional and not in the files.
fn find<'a>(
    kind: Kind,
    name: Option<&Placed<String>>,
    optional: bool,
    place: &Place,
    pod: &'a PodContext<'_>,
    notes: &mut Notes,
) -> Result<Option<&'a Stored>, ReadError> {
    let Some(name) = name else {
        return Err(place.invalid(format!("needs the name of a {kind}")));
    };
    match kind.get(pod, &name.value) {
        Some(stored) => Ok(Some(stored)),
        None if optional => {
            notes.add(
                &name.place,
                format!(
                    "the optional {kind} {:?} is not in the given files: its variables are expected to be absent",
                    name.value
                ),
            );
            Ok(None)
        }
        None => Err(name.place.invalid(format!(
            "the {kind} {:?} is not in the given files: give its YAML too, so that its values can be in the policy",
            name.value
        ))),
    }
}

fn value(kind: Kind, stored: &Stored, key: &str, place: &Place) -> Result<Text, ReadError> {
    let bytes = stored.object.data.get(key).map_or(&[][..], |content| content.reveal());
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let Some(text) = text else {
        return Err(place.invalid(format!(
            "{key:?} of {kind} {:?} is not UTF-8 text without NUL and cannot become a variable: mount it as a file",
            stored.object.name
        )));
    };
    Ok(match kind {
        Kind::ConfigMap => Text::known(text),
        Kind::Secret => Text::secret(text),
    })
}

/// What every Kubernetes version takes as a variable of `envFrom`.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && !name.starts_with("..")
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
