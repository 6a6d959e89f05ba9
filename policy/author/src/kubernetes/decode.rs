//! From the YAML tree to typed structures: every field is known, has the type Kubernetes gives it, and knows its place.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::error::{Place, Problem, ReadError, shortened};
use super::tree::{Entry, Kind, Node, Plain};
use crate::workload::Located;

/// Entries of one list of a pod, such as its volumes: they are compared with each other.
const LIST_LIMIT: usize = 10_000;

/// A node together with the way to it.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    node: &'a Node,
    place: Place,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(file: &Rc<str>, node: &'a Node) -> Self {
        Self { node, place: Place { file: file.clone(), path: String::new(), line: node.line } }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn child(&self, entry: &'a Entry) -> Self {
        let key = shortened(&entry.key);
        let plain =
            key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let path = match (self.place.path.is_empty(), plain) {
            (true, true) => key,
            (false, true) => format!("{}.{key}", self.place.path),
            (_, false) => format!("{}[{key:?}]", self.place.path),
        };
        Self {
            node: &entry.value,
            place: Place { file: self.place.file.clone(), path, line: entry.line },
        }
    }

    fn entries(&self) -> Result<&'a [Entry], ReadError> {
        match &*self.node.kind {
            Kind::Mapping(entries) => Ok(entries),
            _ => Err(self.wrong("a mapping")),
        }
    }

    pub(super) fn items(&self) -> Result<Vec<Cursor<'a>>, ReadError> {
        match &*self.node.kind {
            Kind::Sequence(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Cursor {
                    node,
                    place: Place {
                        file: self.place.file.clone(),
                        path: format!("{}[{index}]", self.place.path),
                        line: node.line,
                    },
                })
                .collect()),
            _ => Err(self.wrong("a list")),
        }
    }

    /// The value of a field, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Result<Option<Cursor<'a>>, ReadError> {
        Ok(self
            .entries()?
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| self.child(entry))
            .filter(|child| !child.node.is_null()))
    }

    pub(super) fn field<T: Decode>(&self, key: &str) -> Result<T, ReadError> {
        match self.get(key)? {
            Some(child) => T::decode(&child),
            None => T::absent().ok_or_else(|| {
                let path = if self.place.path.is_empty() {
                    key.to_owned()
                } else {
                    format!("{}.{key}", self.place.path)
                };
                Place { path, ..self.place.clone() }.error(Problem::Missing)
            }),
        }
    }

    /// Refuses fields that are in neither list, and accepted ones of the wrong shape.
    pub(super) fn allow(
        &self,
        used: &[&str],
        accepted: &[(&str, &Shape)],
    ) -> Result<(), ReadError> {
        for entry in self.entries()? {
            let key = entry.key.as_str();
            if used.contains(&key) {
                continue;
            }
            let child = self.child(entry);
            let Some((_, shape)) = accepted.iter().find(|(name, _)| *name == key) else {
                let known = used.iter().chain(accepted.iter().map(|(name, _)| name));
                return Err(child.place.error(Problem::UnknownField(nearest(key, known))));
            };
            shape.check(&child)?;
        }
        Ok(())
    }

    fn scalar(&self, expected: &'static str) -> Result<(&'a str, Option<Plain>), ReadError> {
        match &*self.node.kind {
            Kind::Scalar { text, plain: true } => Ok((text, Some(Plain::of(text)))),
            Kind::Scalar { text, plain: false } => Ok((text, None)),
            _ => Err(self.wrong(expected)),
        }
    }

    fn wrong(&self, expected: &'static str) -> ReadError {
        let (found, fix) = match &*self.node.kind {
            Kind::Mapping(_) => ("a mapping", ""),
            Kind::Sequence(_) => ("a list", ""),
            Kind::Scalar { text, plain } => match plain.then(|| Plain::of(text)) {
                None => ("text", ": remove the quotes"),
                Some(Plain::Text) => ("text", ""),
                Some(Plain::Null) => ("empty", ""),
                Some(Plain::Bool(_)) => ("a boolean", ": write it in quotes"),
                Some(Plain::Integer(_) | Plain::Float) => ("a number", ": write it in quotes"),
            },
        };
        let quotes_matter = match fix {
            ": write it in quotes" => expected == "text",
            ": remove the quotes" => {
                matches!(expected, "a boolean" | "a whole number" | "a number")
            }
            _ => false,
        };
        self.place.error(Problem::WrongType {
            expected,
            found,
            fix: if quotes_matter { fix } else { "" },
        })
    }
}

/// The known name that is so near that it may be meant.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a &'a str>) -> Option<String> {
    if wrong.len() > 64 {
        return None;
    }
    known
        .map(|name| (distance(&wrong.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Edits (Levenshtein) between two short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A type that a field may have.
pub(super) trait Decode: Sized {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError>;

    /// The value of a field that is absent; none if it is required.
    fn absent() -> Option<Self> {
        None
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        T::decode(at).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        let items = at.items()?;
        if items.len() > LIST_LIMIT {
            return Err(at.place.error(Problem::Limit {
                what: "length of the list",
                limit: LIST_LIMIT,
                fix: "shorten it",
            }));
        }
        items.iter().map(T::decode).collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

/// Null is empty text in a map, as in the API server.
impl Decode for BTreeMap<String, String> {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        at.entries()?
            .iter()
            .map(|entry| {
                let value = if entry.value.is_null() {
                    String::new()
                } else {
                    String::decode(&at.child(entry))?
                };
                Ok((entry.key.clone(), value))
            })
            .collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

impl<T: Decode> Decode for BTreeMap<String, Placed<T>> {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        at.entries()?
            .iter()
            .map(|entry| Ok((entry.key.clone(), Placed::decode(&at.child(entry))?)))
            .collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

impl Decode for String {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        match at.scalar("text")? {
            (text, None | Some(Plain::Text)) => Ok(text.to_owned()),
            _ => Err(at.wrong("text")),
        }
    }
}

impl Decode for bool {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        match at.scalar("a boolean")? {
            (_, Some(Plain::Bool(value))) => Ok(value),
            _ => Err(at.wrong("a boolean")),
        }
    }
}

impl Decode for i64 {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        match at.scalar("a whole number")? {
            (_, Some(Plain::Integer(value))) => Ok(value),
            _ => Err(at.wrong("a whole number")),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Placed<T> {
    pub(super) fn located(&self) -> Located<T>
    where
        T: Clone,
    {
        Located { value: self.value.clone(), line: self.place.line }
    }
}

impl<T: Decode> Decode for Placed<T> {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self { value: T::decode(at)?, place: at.place.clone() })
    }

    fn absent() -> Option<Self> {
        None
    }
}

/// A field, unless it is absent or empty, which is the same for names.
pub(super) fn present(field: &Option<Placed<String>>) -> Option<&Placed<String>> {
    field.as_ref().filter(|field| !field.value.is_empty())
}

/// A decimal or binary quantity as it is written: a number, or text such as `128Mi`.
#[derive(Debug, Clone)]
pub(super) struct QuantityText(pub(super) String);

impl Decode for QuantityText {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        match at.scalar("a quantity")? {
            (_, Some(Plain::Integer(number))) => Ok(Self(number.to_string())),
            (text, None | Some(Plain::Text | Plain::Float)) => Ok(Self(text.to_owned())),
            (_, Some(Plain::Null | Plain::Bool(_))) => Err(at.wrong("a quantity")),
        }
    }
}

/// Bytes in base64; null is none, as in the API server.
#[derive(Debug, Clone)]
pub(super) struct Encoded(pub(super) String);

impl Decode for Encoded {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        if at.node.is_null() {
            return Ok(Self(String::new()));
        }
        String::decode(at).map(Self)
    }
}

/// The form of a field that does not matter for a policy and is only checked.
#[derive(Debug)]
pub(super) enum Shape {
    /// Whatever: the field has no fixed form in Kubernetes either.
    Any,
    Text,
    Bool,
    Integer,
    /// A port number or name, a number or percentage.
    IntegerOrText,
    /// A map from text to text.
    Texts,
    Quantities,
    List(&'static Shape),
    Object(&'static [(&'static str, &'static Shape)]),
}

impl Shape {
    fn check(&self, at: &Cursor<'_>) -> Result<(), ReadError> {
        if at.node.is_null() {
            return Ok(());
        }
        match self {
            Self::Any => Ok(()),
            Self::Text => String::decode(at).map(drop),
            Self::Bool => bool::decode(at).map(drop),
            Self::Integer => i64::decode(at).map(drop),
            Self::IntegerOrText => match at.scalar("a number or text")? {
                (_, None | Some(Plain::Integer(_) | Plain::Text)) => Ok(()),
                _ => Err(at.wrong("a number or text")),
            },
            Self::Texts => BTreeMap::<String, String>::decode(at).map(drop),
            Self::Quantities => BTreeMap::<String, Placed<QuantityText>>::decode(at).map(drop),
            Self::List(shape) => at.items()?.iter().try_for_each(|item| shape.check(item)),
            Self::Object(fields) => at.allow(&[], fields),
        }
    }
}

/// Defines structures whose fields are Kubernetes' fields: those in the first braces are members, those behind `+` are only checked.
macro_rules! objects {
    ($(
        $(#[$meta:meta])*
        $name:ident {
            $($field:ident : $type:ty = $key:literal),* $(,)?
        } $(+ { $($accepted:literal : $shape:expr),* $(,)? })?
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        impl $crate::kubernetes::decode::Decode for $name {
            fn decode(
                at: &$crate::kubernetes::decode::Cursor<'_>,
            ) -> Result<Self, $crate::kubernetes::error::ReadError> {
                at.allow(&[$($key),*], &[$($(($accepted, $shape)),*)?])?;
                Ok(Self { $($field: at.field($key)?,)* })
            }
        }
    )*};
}
pub(super) use objects;

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    objects! {
        Thing {
            name: String = "name",
            size: Option<i64> = "size",
            on: Option<bool> = "enabled",
            words: Vec<String> = "words",
            labels: BTreeMap<String, String> = "labels",
        } + {
            "port": &Shape::IntegerOrText,
            "rules": &Shape::List(&Shape::Object(&[("key", &Shape::Text)])),
        }
    }

    fn thing(text: &str) -> Result<Thing, String> {
        let file = Rc::from("f.yaml");
        let documents = tree::parse(&file, text.as_bytes()).map_err(|error| error.to_string())?;
        Thing::decode(&Cursor::root(&file, &documents[0].root)).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_have_their_types() {
        let text = "name: '1'\nsize: 0x10\nenabled: on\nwords: [a, 'b c']\nlabels: {1: x, y1: }\nport: http\n";
        let thing = thing(text).unwrap();
        assert_eq!(thing.name, "1");
        assert_eq!(thing.size, Some(16));
        assert_eq!(thing.on, Some(true));
        assert_eq!(thing.words, ["a", "b c"]);
        assert_eq!(thing.labels["1"], "x");
        assert_eq!(thing.labels["y1"], "");
    }

    #[test]
    fn mistakes_have_path_line_and_remedy() {
        for (text, message) in [
            ("size: 1", "f.yaml:1: name: is missing"),
            ("name: 1", "f.yaml:1: name: must be text, but is a number: write it in quotes"),
            ("name: no", "f.yaml:1: name: must be text, but is a boolean: write it in quotes"),
            ("name: [a]", "f.yaml:1: name: must be text, but is a list"),
            (
                "name: a\nsize: '1'",
                "f.yaml:2: size: must be a whole number, but is text: remove the quotes",
            ),
            ("name: a\nsize: 1.5", "f.yaml:2: size: must be a whole number, but is a number"),
            (
                "name: a\nenabled: 'yes'",
                "f.yaml:2: enabled: must be a boolean, but is text: remove the quotes",
            ),
            ("name: a\nsiez: 1", "f.yaml:2: siez: unknown field; did you mean size?"),
            (
                "name: a\nfrobnicate: 1",
                "f.yaml:2: frobnicate: unknown field: remove it, or correct its name",
            ),
            (
                "name: a\nwords:\n- a\n- 3",
                "f.yaml:4: words[1]: must be text, but is a number: write it in quotes",
            ),
            (
                "name: a\nlabels:\n  a.b/c: 3",
                "f.yaml:3: labels[\"a.b/c\"]: must be text, but is a number: write it in quotes",
            ),
            (
                "name: a\nrules:\n- key: b\n- kye: c",
                "f.yaml:4: rules[1].kye: unknown field; did you mean key?",
            ),
            ("name: a\nport: 1.5", "f.yaml:2: port: must be a number or text, but is a number"),
            ("- name: a", "f.yaml:1: must be a mapping, but is a list"),
        ] {
            assert_eq!(thing(text).unwrap_err(), message, "{text}");
        }
    }
}
