//! Puts the initdata annotation and pinned images into the owner's YAML text. Everything else, comments and
//! order included, stays byte for byte as it was.

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

use crate::workload::Workload;

/// Mappings and sequences within each other.
const DEPTH_LIMIT: usize = 100;

/// Why a text cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct EditError {
    /// The file.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// What is in the way and what to do.
    pub problem: String,
}

/// An image of the YAML and the digest it has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// As written.
    pub written: String,
    /// `name:tag@digest`.
    pub pinned: String,
}

/// What is to be put into one workload.
#[derive(Debug, Clone)]
pub struct Insertion<'a> {
    /// The workload, read from the same text.
    pub workload: &'a Workload,
    /// Name of the annotation.
    pub annotation: &'a str,
    /// Its value: no quotes, backslashes or control characters.
    pub value: &'a str,
    /// Images to pin.
    pub pinned: &'a [Pinned],
}

/// The text of `file` with everything in `insertions` put into it.
///
/// # Errors
/// [`EditError`] where the text is written in a way that only a whole rewrite could change.
pub fn insert(file: &str, text: &str, insertions: &[Insertion<'_>]) -> Result<String, EditError> {
    // Positions are counted behind a byte order mark.
    if let Some(text) = text.strip_prefix('\u{feff}') {
        return insert(file, text, insertions).map(|text| format!("\u{feff}{text}"));
    }
    let documents = documents(file, text)?;
    let editor = Editor { file, text };
    let mut edits = Vec::new();
    for insertion in insertions {
        let workload = insertion.workload;
        let object = documents
            .get(workload.document)
            .and_then(|root| editor.object(root, workload.line))
            .ok_or_else(|| editor.error(workload.line, "the object was not found again".into()))?;
        editor.insertion(object, insertion, &mut edits)?;
    }
    edits.sort_by_key(|edit: &Edit| edit.at.start);
    let mut result = String::with_capacity(text.len());
    let mut done = 0;
    for edit in edits {
        result.push_str(&text[done..edit.at.start]);
        result.push_str(&edit.text);
        done = edit.at.end;
    }
    result.push_str(&text[done..]);
    Ok(result)
}

/// New text for a range of bytes.
struct Edit {
    at: Range<usize>,
    text: String,
}

/// A value and where it stands.
struct Node {
    line: u32,
    column: usize,
    at: Range<usize>,
    anchored: bool,
    kind: Kind,
}

enum Kind {
    Scalar { text: String, style: ScalarStyle },
    Mapping { flow: bool, entries: Vec<(Node, Node)> },
    Sequence(Vec<Node>),
    Alias,
}

impl Node {
    fn entry(&self, name: &str) -> Option<&(Node, Node)> {
        let Kind::Mapping { entries, .. } = &self.kind else { return None };
        entries
            .iter()
            .find(|(key, _)| matches!(&key.kind, Kind::Scalar { text, .. } if text == name))
    }

    fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, value)| value)
    }

    /// Nothing is written there, or `null`.
    fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, style: ScalarStyle::Plain }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

struct Editor<'a> {
    file: &'a str,
    text: &'a str,
}

impl Editor<'_> {
    fn error(&self, line: u32, problem: String) -> EditError {
        EditError { file: self.file.to_owned(), line, problem }
    }

    /// The document itself, or the item of a List that starts at that line.
    fn object<'n>(&self, root: &'n Node, line: u32) -> Option<&'n Node> {
        let is_list = match root.get("kind").map(|kind| &kind.kind) {
            Some(Kind::Scalar { text, .. }) => text.ends_with("List"),
            _ => false,
        };
        if !is_list {
            return Some(root);
        }
        let Some(Node { kind: Kind::Sequence(items), .. }) = root.get("items") else { return None };
        // An item of a List may be a List.
        items.iter().rev().find(|item| item.line <= line).and_then(|item| self.object(item, line))
    }

    fn insertion(
        &self,
        object: &Node,
        insertion: &Insertion<'_>,
        edits: &mut Vec<Edit>,
    ) -> Result<(), EditError> {
        let path: &[&str] = match insertion.workload.kind.as_str() {
            "Pod" => &[],
            "CronJob" => &["spec", "jobTemplate", "spec", "template"],
            "PodTemplate" => &["template"],
            _ => &["spec", "template"],
        };
        let mut template = object;
        for name in path {
            template = template.get(name).ok_or_else(|| {
                let problem = format!("{name} is an alias or merged from one: write it out here");
                self.error(template.line, problem)
            })?;
        }
        self.annotate(template, insertion, edits)?;
        let Some(spec) = template.get("spec") else { return Ok(()) };
        for list in ["initContainers", "containers"] {
            let Some(Kind::Sequence(items)) = spec.get(list).map(|list| &list.kind) else {
                continue;
            };
            for image in items.iter().filter_map(|item| item.get("image")) {
                self.pin(image, insertion.pinned, edits)?;
            }
        }
        Ok(())
    }

    /// Walks `metadata`, `annotations`, the annotation; inserts from where it does not exist.
    fn annotate(
        &self,
        template: &Node,
        insertion: &Insertion<'_>,
        edits: &mut Vec<Edit>,
    ) -> Result<(), EditError> {
        let names = ["metadata", "annotations", insertion.annotation];
        let mut node = template;
        for (depth, name) in names.iter().enumerate() {
            if node.anchored && depth > 0 {
                let problem = format!(
                    "{} has an anchor, so its aliases would change, too: write it out",
                    names[depth - 1]
                );
                return Err(self.error(node.line, problem));
            }
            let Kind::Mapping { flow, entries } = &node.kind else {
                let problem = format!("{} is an alias: write it out", names[depth.max(1) - 1]);
                return Err(self.error(node.line, problem));
            };
            let ahead = &names[depth + 1..];
            match node.entry(name) {
                None => {
                    edits.push(self.new_entry(
                        node,
                        *flow,
                        entries.first(),
                        &names[depth..],
                        insertion.value,
                    ));
                    return Ok(());
                }
                Some((key, value)) if value.is_null() => {
                    edits.push(self.instead_of_nothing(key, value, ahead, insertion.value));
                    return Ok(());
                }
                Some((key, value)) if ahead.is_empty() => {
                    return self.replace(key, value, insertion, edits);
                }
                Some((_, value)) => node = value,
            }
        }
        Ok(())
    }

    /// Another value of the annotation, whatever the style of the old one.
    fn replace(
        &self,
        key: &Node,
        old: &Node,
        insertion: &Insertion<'_>,
        edits: &mut Vec<Edit>,
    ) -> Result<(), EditError> {
        let Kind::Scalar { style, .. } = &old.kind else {
            return Err(self.error(old.line, format!("{} is not text", insertion.annotation)));
        };
        let end = match style {
            // The line break behind a block belongs to it.
            ScalarStyle::Literal | ScalarStyle::Folded => self.text[..old.at.end].trim_end().len(),
            ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                old.at.end
            }
        };
        let at = self.behind_colon(key)..end;
        edits.push(Edit { at, text: format!(" {}", quoted(insertion.value)) });
        Ok(())
    }

    fn behind_colon(&self, key: &Node) -> usize {
        self.text[key.at.end..].find(':').map_or(key.at.end, |colon| key.at.end + colon + 1)
    }

    /// A first entry of a mapping.
    fn new_entry(
        &self,
        mapping: &Node,
        flow: bool,
        first: Option<&(Node, Node)>,
        names: &[&str],
        value: &str,
    ) -> Edit {
        if flow {
            let at = mapping.at.start + 1;
            let comma = if first.is_some() { ", " } else { "" };
            return Edit { at: at..at, text: format!("{}{comma}", in_flow(names, value)) };
        }
        let (at, column) =
            first.map_or((mapping.at.start, mapping.column), |(key, _)| (key.at.start, key.column));
        let newline = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let mut text = String::new();
        for (depth, name) in names.iter().enumerate() {
            if depth > 0 {
                text.push_str(&format!("{newline}{}", " ".repeat(column + 2 * depth)));
            }
            text.push_str(&format!("{name}:"));
        }
        text.push_str(&format!(" {}{newline}{}", quoted(value), " ".repeat(column)));
        Edit { at: at..at, text }
    }

    /// `annotations:` with nothing behind it.
    fn instead_of_nothing(&self, key: &Node, nothing: &Node, names: &[&str], value: &str) -> Edit {
        let text =
            if names.is_empty() { quoted(value) } else { format!("{{{}}}", in_flow(names, value)) };
        if !nothing.at.is_empty() {
            return Edit { at: nothing.at.clone(), text };
        }
        let colon = self.behind_colon(key);
        Edit { at: colon..colon, text: format!(" {text}") }
    }

    fn pin(&self, image: &Node, pinned: &[Pinned], edits: &mut Vec<Edit>) -> Result<(), EditError> {
        let Kind::Scalar { text, style } = &image.kind else {
            let problem = "the image is an alias: write it out to have it pinned";
            return Err(self.error(image.line, problem.into()));
        };
        let Some(pin) = pinned.iter().find(|pin| pin.written == *text) else { return Ok(()) };
        if image.anchored {
            let problem = "the image has an anchor, so its aliases would change, too: write it out";
            return Err(self.error(image.line, problem.into()));
        }
        let text = match style {
            ScalarStyle::Plain => pin.pinned.clone(),
            ScalarStyle::SingleQuoted => format!("'{}'", pin.pinned),
            ScalarStyle::DoubleQuoted => quoted(&pin.pinned),
            ScalarStyle::Literal | ScalarStyle::Folded => {
                let problem = "the image is written as a block: write it in one line";
                return Err(self.error(image.line, problem.into()));
            }
        };
        edits.push(Edit { at: image.at.clone(), text });
        Ok(())
    }
}

fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}

/// `"a": {"b": "value"}`, which is JSON as well.
fn in_flow(names: &[&str], value: &str) -> String {
    let mut text = quoted(value);
    for (depth, name) in names.iter().rev().enumerate() {
        let name = quoted(name);
        text = if depth == 0 { format!("{name}: {text}") } else { format!("{name}: {{{text}}}") };
    }
    text
}

/// A collection whose end has not come yet: its node, and a key that waits for its value.
struct Open {
    node: Node,
    key: Option<Node>,
}

fn documents(file: &str, text: &str) -> Result<Vec<Node>, EditError> {
    let options = granit_parser::options! {
        flow_nesting_limit: DEPTH_LIMIT,
        block_nesting_limit: DEPTH_LIMIT,
        emit_comments: false,
    };
    let mut documents = Vec::new();
    let mut root = None;
    let mut open: Vec<Open> = Vec::new();
    let fail = |line: usize, problem: String| EditError {
        file: file.to_owned(),
        line: u32::try_from(line).unwrap_or(u32::MAX),
        problem,
    };
    for item in Parser::new_from_str_with_options(text, options) {
        let (event, span) = item.map_err(|error| fail(error.marker().line(), error.info()))?;
        let node = |kind, anchor: usize| node(&span, kind, anchor != 0);
        let finished = match event {
            Event::DocumentStart(..) => {
                root = None;
                None
            }
            Event::DocumentEnd => {
                // Empty documents keep their number.
                let empty = Kind::Scalar { text: String::new(), style: ScalarStyle::Plain };
                documents.push(root.take().unwrap_or_else(|| node(empty, 0)));
                None
            }
            Event::Scalar(text, style, anchor, _) => {
                Some(node(Kind::Scalar { text: text.into_owned(), style }, anchor))
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => Some(node(Kind::Alias, 0)),
            Event::MappingStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                let node = node(Kind::Mapping { flow, entries: Vec::new() }, anchor);
                open.push(Open { node, key: None });
                None
            }
            Event::SequenceStart(_, anchor, _) => {
                open.push(Open { node: node(Kind::Sequence(Vec::new()), anchor), key: None });
                None
            }
            Event::MappingEnd | Event::SequenceEnd => open.pop().map(|open| open.node),
            _ => None,
        };
        let Some(finished) = finished else { continue };
        match open.last_mut() {
            None => root = Some(finished),
            Some(Open { node: Node { kind: Kind::Sequence(items), .. }, .. }) => {
                items.push(finished);
            }
            Some(Open { node: Node { kind: Kind::Mapping { entries, .. }, .. }, key }) => {
                match key.take() {
                    None => *key = Some(finished),
                    Some(key) => entries.push((key, finished)),
                }
            }
            Some(_) => {}
        }
    }
    Ok(documents)
}

fn node(span: &Span, kind: Kind, anchored: bool) -> Node {
    Node {
        line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        column: span.start.col(),
        // Positions in bytes are there for text in memory.
        at: span.byte_range().unwrap_or_default(),
        anchored,
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_finds_its_place() {
        for (kind, line, before, after) in [
            (
                "Pod",
                1,
                "kind: Pod # one\nmetadata:\n  name: web # two\nspec: {}\n",
                "kind: Pod # one\nmetadata:\n  annotations:\n    a/b: \"V\"\n  name: web # two\nspec: {}\n",
            ),
            (
                "Pod",
                1,
                "metadata:\n    annotations:\n        # mine\n        x: y\n",
                "metadata:\n    annotations:\n        # mine\n        a/b: \"V\"\n        x: y\n",
            ),
            (
                "Pod",
                1,
                "metadata:\n  annotations:\n    a/b: old # old one\n    x: y\n",
                "metadata:\n  annotations:\n    a/b: \"V\" # old one\n    x: y\n",
            ),
            (
                "Pod",
                1,
                "metadata:\n  annotations:\n    a/b: >-\n      old\n      old\n    x: y\n",
                "metadata:\n  annotations:\n    a/b: \"V\"\n    x: y\n",
            ),
            (
                "Pod",
                1,
                "metadata:\n  annotations:\n  name: web\n",
                "metadata:\n  annotations: {\"a/b\": \"V\"}\n  name: web\n",
            ),
            (
                "Pod",
                1,
                "metadata:\n  annotations: {}\n",
                "metadata:\n  annotations: {\"a/b\": \"V\"}\n",
            ),
            (
                "Pod",
                1,
                "metadata: {annotations: {x: y}}\n",
                "metadata: {annotations: {\"a/b\": \"V\", x: y}}\n",
            ),
            ("Pod", 1, "metadata: ~\n", "metadata: {\"annotations\": {\"a/b\": \"V\"}}\n"),
            (
                "Pod",
                1,
                "{\"kind\": \"Pod\"}",
                "{\"metadata\": {\"annotations\": {\"a/b\": \"V\"}}, \"kind\": \"Pod\"}",
            ),
            (
                "Deployment",
                1,
                "metadata:\r\n  name: web\r\nspec:\r\n  template:\r\n    spec: {}\r\n",
                "metadata:\r\n  name: web\r\nspec:\r\n  template:\r\n    metadata:\r\n      annotations:\r\n        \
                 a/b: \"V\"\r\n    spec: {}\r\n",
            ),
            (
                "CronJob",
                1,
                "spec:\n  jobTemplate:\n    spec:\n      template: {metadata: {}}\n",
                "spec:\n  jobTemplate:\n    spec:\n      template: {metadata: {\"annotations\": {\"a/b\": \"V\"}}}\n",
            ),
            (
                "Pod",
                4,
                "kind: List\nitems:\n- metadata:\n- metadata: # second\n    name: ö\n",
                "kind: List\nitems:\n- metadata:\n- metadata: # second\n    annotations:\n      a/b: \"V\"\n    name: ö\n",
            ),
        ] {
            let workload = workload(kind, line);
            let insertion =
                Insertion { workload: &workload, annotation: "a/b", value: "V", pinned: &[] };
            let result = insert("f.yaml", before, std::slice::from_ref(&insertion)).unwrap();
            assert_eq!(result, after);
            // A second time it is replaced.
            assert_eq!(insert("f.yaml", &result, &[insertion]).unwrap(), after);
        }
    }

    #[test]
    fn images_are_pinned_where_they_stand() {
        let before = "spec:\n  initContainers:\n  - image: 'a:1' # init\n  containers:\n  - name: x\n    \
                      image: a:1\n  - {image: \"b\"}\n  - image: c@sha256:0\n";
        let after = "metadata:\n  annotations:\n    a/b: \"V\"\nspec:\n  initContainers:\n  - image: 'a:1@sha256:1' # init\n  \
                     containers:\n  - name: x\n    image: a:1@sha256:1\n  - {image: \"b@sha256:2\"}\n  - image: c@sha256:0\n";
        let pin =
            |written: &str, pinned: &str| Pinned { written: written.into(), pinned: pinned.into() };
        let pinned = [pin("a:1", "a:1@sha256:1"), pin("b", "b@sha256:2")];
        let workload = workload("Pod", 1);
        let insertion =
            Insertion { workload: &workload, annotation: "a/b", value: "V", pinned: &pinned };
        assert_eq!(insert("f.yaml", before, &[insertion]).unwrap(), after);
    }

    #[test]
    fn several_documents_are_edited_at_once() {
        let before = "# nothing\n---\nmetadata:\n  name: a\n---\nmetadata:\n  name: b\n...\n";
        let mut first = workload("Pod", 3);
        let mut second = workload("Pod", 6);
        (first.document, second.document) = (0, 1);
        let numbers = documents("f", before).unwrap().len();
        assert!(numbers == 2 || numbers == 3);
        (first.document, second.document) = (numbers - 2, numbers - 1);
        let insertion = |workload| Insertion { workload, annotation: "x", value: "V", pinned: &[] };
        let after = insert("f", before, &[insertion(&second), insertion(&first)]).unwrap();
        assert_eq!(after.replace("  annotations:\n    x: \"V\"\n", ""), before);
        assert_eq!(after.matches("x: \"V\"").count(), 2);
    }

    #[test]
    fn shared_parts_are_refused() {
        for (text, says) in [
            ("metadata: &m\n  name: x\nother: *m\n", "f:2: metadata has an anchor"),
            ("x: &m {}\nmetadata: *m\n", "f:2: metadata is an alias"),
            (
                "metadata: {}\nspec:\n  containers:\n  - image: &i a:1\n",
                "f:4: the image has an anchor",
            ),
            (
                "x: &i a:1\nmetadata: {}\nspec:\n  containers:\n  - image: *i\n",
                "f:5: the image is an alias",
            ),
        ] {
            let pinned = [Pinned { written: "a:1".into(), pinned: "a:1@sha256:1".into() }];
            let workload = workload("Pod", 1);
            let insertion =
                Insertion { workload: &workload, annotation: "a/b", value: "V", pinned: &pinned };
            let error = insert("f", text, &[insertion]).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }

    fn workload(kind: &str, line: u32) -> Workload {
        crate::generate::tests::workload(kind, line)
    }
}
