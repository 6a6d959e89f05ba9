//! YAML text as a tree that remembers lines, built within limits.
//!
//! Aliases share their target, and each counts as if it were a copy: a few lines that would unfold into millions of
//! nodes are an error before anything walks over them.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::error::{Place, Problem, ReadError, shortened};

/// Bytes of one file.
pub(super) const FILE_LIMIT: usize = 4 << 20;
/// YAML documents in one file.
const DOCUMENT_LIMIT: usize = 1000;
/// Nodes in one file, aliases unfolded.
const NODE_LIMIT: usize = 500_000;
/// Mappings and sequences within each other.
const DEPTH_LIMIT: usize = 100;

/// A value of the tree. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) kind: Rc<Kind>,
    /// Nodes in it, aliases unfolded.
    weight: usize,
    depth: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Text, and whether it was written plainly, so that it may be a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: u32,
    pub(super) value: Node,
}

/// One YAML document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// Its number among all documents of the file, from 0.
    pub(super) index: usize,
    pub(super) root: Node,
}

/// Reads all documents of a file; empty ones are left out.
pub(super) fn parse(file: &Rc<str>, bytes: &[u8]) -> Result<Vec<Document>, ReadError> {
    let at = |line| Place { file: file.clone(), path: String::new(), line };
    if bytes.len() > FILE_LIMIT {
        return Err(at(1).error(Problem::Limit {
            what: "size of the file in bytes",
            limit: FILE_LIMIT,
            fix: "split it",
        }));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        at(number(line))
            .error(Problem::Syntax("the text is not UTF-8: save the file in UTF-8".to_owned()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! {
        flow_nesting_limit: DEPTH_LIMIT,
        block_nesting_limit: DEPTH_LIMIT,
        emit_comments: false,
    };
    let mut builder = Builder {
        file: file.clone(),
        documents: Vec::new(),
        seen: 0,
        open: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        weight: 0,
    };
    for item in Parser::new_from_str_with_options(text, options) {
        let (event, span) = item.map_err(|error| {
            let line = error.marker().line();
            at(number(line)).error(Problem::Syntax(error.info() + template_advice(text, line)))
        })?;
        let line = span.start.line();
        builder.take(event, span).map_err(|mut error| {
            if let Problem::Syntax(message) = &mut error.problem {
                message.push_str(template_advice(text, line));
            }
            error
        })?;
    }
    Ok(builder.documents)
}

/// What to do where a line is no YAML yet.
fn template_advice(text: &str, line: usize) -> &'static str {
    match text.lines().nth(line.saturating_sub(1)) {
        Some(line) if line.contains("{{") => {
            " (this looks like a template: render it first, for instance by `helm template`)"
        }
        _ => "",
    }
}

fn number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// A collection whose end has not come yet.
struct Open {
    line: u32,
    anchor: usize,
    weight: usize,
    depth: usize,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>, Option<(String, u32)>),
}

struct Builder {
    file: Rc<str>,
    documents: Vec<Document>,
    seen: usize,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    weight: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ReadError> {
        let line = number(span.start.line());
        match event {
            Event::DocumentStart(..) => {
                if self.seen == DOCUMENT_LIMIT {
                    return Err(self.limit(line, "number of YAML documents", DOCUMENT_LIMIT));
                }
                self.anchors.clear();
                self.root = None;
            }
            Event::DocumentEnd => {
                let index = self.seen;
                self.seen += 1;
                if let Some(root) = self.root.take()
                    && !root.is_null()
                {
                    self.documents.push(Document { index, root });
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = self.plain(style == ScalarStyle::Plain, tag.as_deref(), line)?;
                let node = Node {
                    line,
                    kind: Rc::new(Kind::Scalar { text: text.into_owned(), plain }),
                    weight: 1,
                    depth: 0,
                };
                self.charge(1, line)?;
                self.place(node, anchor)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.start(Collection::Sequence(Vec::new()), anchor, tag.as_deref(), line)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                let collection = Collection::Mapping(Vec::new(), None);
                self.start(collection, anchor, tag.as_deref(), line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end()?,
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.syntax(line, "an alias stands within its own anchor"));
                };
                self.charge(node.weight, line)?;
                self.place(node, 0)?;
            }
            Event::StreamStart | Event::StreamEnd => {}
            _ => return Err(self.syntax(line, "unexpected element")),
        }
        Ok(())
    }

    /// Whether a scalar may be something else than text.
    fn plain(&self, plain: bool, tag: Option<&Tag>, line: u32) -> Result<bool, ReadError> {
        let Some(tag) = tag else { return Ok(plain) };
        if tag.is_yaml_core_schema() {
            match tag.suffix() {
                "str" => return Ok(false),
                "int" | "bool" | "float" | "null" => return Ok(true),
                _ => {}
            }
        }
        Err(self.syntax(line, &format!("the tag {tag} is not supported: remove it")))
    }

    fn start(
        &mut self,
        collection: Collection,
        anchor: usize,
        tag: Option<&Tag>,
        line: u32,
    ) -> Result<(), ReadError> {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && matches!(tag.suffix(), "map" | "seq"))
        {
            return Err(self.syntax(line, &format!("the tag {tag} is not supported: remove it")));
        }
        self.charge(1, line)?;
        self.open.push(Open { line, anchor, weight: 1, depth: 0, collection });
        Ok(())
    }

    fn end(&mut self) -> Result<(), ReadError> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let kind = match open.collection {
            Collection::Sequence(items) => Kind::Sequence(items),
            Collection::Mapping(entries, _) => Kind::Mapping(self.merge(entries)?),
        };
        let node = Node {
            line: open.line,
            kind: Rc::new(kind),
            weight: open.weight,
            depth: open.depth + 1,
        };
        self.place(node, open.anchor)
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node, anchor: usize) -> Result<(), ReadError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let enclosing = self.open.len();
        if enclosing + node.depth > DEPTH_LIMIT {
            return Err(self.limit(node.line, "depth of the YAML", DEPTH_LIMIT));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.weight = open.weight.saturating_add(node.weight);
        open.depth = open.depth.max(node.depth);
        match &mut open.collection {
            Collection::Sequence(items) => items.push(node),
            Collection::Mapping(entries, key) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, value: node }),
                None => {
                    let Some(text) = node.key() else {
                        let line = node.line;
                        return Err(self.syntax(
                            line,
                            "a key must be text: write it in quotes if it is meant to be",
                        ));
                    };
                    *key = Some((text, node.line));
                }
            },
        }
        Ok(())
    }

    /// Replaces `<<` by the entries that it names, and refuses keys that stand twice.
    fn merge(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, ReadError> {
        let mut merged: Vec<Entry> = Vec::with_capacity(entries.len());
        let mut lines: HashMap<String, u32> = HashMap::with_capacity(entries.len());
        let mut sources = Vec::new();
        for entry in entries {
            if let Some(&first) = lines.get(&entry.key) {
                let place = Place {
                    file: self.file.clone(),
                    path: shortened(&entry.key),
                    line: entry.line,
                };
                return Err(place.error(Problem::DuplicateKey(first)));
            }
            lines.insert(entry.key.clone(), entry.line);
            if entry.key == "<<" {
                sources.push(entry.value);
            } else {
                merged.push(entry);
            }
        }
        for source in sources {
            let maps = match &*source.kind {
                Kind::Sequence(items) => items.clone(),
                _ => vec![source],
            };
            for map in maps {
                let Kind::Mapping(inherited) = &*map.kind else {
                    return Err(self.syntax(map.line, "<< needs a mapping"));
                };
                self.charge(inherited.len(), map.line)?;
                for entry in inherited {
                    if !lines.contains_key(&entry.key) {
                        lines.insert(entry.key.clone(), entry.line);
                        merged.push(entry.clone());
                    }
                }
            }
        }
        Ok(merged)
    }

    fn charge(&mut self, weight: usize, line: u32) -> Result<(), ReadError> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > NODE_LIMIT {
            return Err(self.limit(line, "number of YAML values (aliases unfolded)", NODE_LIMIT));
        }
        Ok(())
    }

    fn limit(&self, line: u32, what: &'static str, limit: usize) -> ReadError {
        self.at(line).error(Problem::Limit { what, limit, fix: "split the file or simplify it" })
    }

    fn syntax(&self, line: u32, text: &str) -> ReadError {
        self.at(line).error(Problem::Syntax(text.to_owned()))
    }

    fn at(&self, line: u32) -> Place {
        Place { file: self.file.clone(), path: String::new(), line }
    }
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        match &*self.kind {
            Kind::Scalar { text, plain: true } => matches!(Plain::of(text), Plain::Null),
            _ => false,
        }
    }

    /// The text of a mapping's key. Whole numbers become text, as they do on the way to the API server.
    fn key(&self) -> Option<String> {
        let Kind::Scalar { text, plain } = &*self.kind else {
            return None;
        };
        if !plain {
            return Some(text.clone());
        }
        match Plain::of(text) {
            Plain::Text => Some(text.clone()),
            Plain::Integer(number) => Some(number.to_string()),
            Plain::Null | Plain::Bool(_) | Plain::Float => None,
        }
    }
}

/// What a plain scalar is for Kubernetes' YAML reader, which follows YAML 1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Null,
    Bool(bool),
    Integer(i64),
    Float,
    Text,
}

impl Plain {
    pub(super) fn of(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                return Self::Bool(true);
            }
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off"
            | "OFF" => return Self::Bool(false),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
            | "-.INF" | ".nan" | ".NaN" | ".NAN" => return Self::Float,
            _ => {}
        }
        if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
            return Self::Text;
        }
        let bare = text.replace('_', "");
        if let Some(number) = integer(&bare) {
            return Self::Integer(number);
        }
        if is_float(&bare) {
            return Self::Float;
        }
        Self::Text
    }
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, &lower[..])
    };
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_is_number = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent_is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Document>, String> {
        parse(&Rc::from("f.yaml"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_scalars_are_what_kubernetes_takes_them_for() {
        for (text, expected) in [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("yes", Plain::Bool(true)),
            ("off", Plain::Bool(false)),
            ("0644", Plain::Integer(420)),
            ("0o644", Plain::Integer(420)),
            ("0x1F", Plain::Integer(31)),
            ("-0b11", Plain::Integer(-3)),
            ("1_000", Plain::Integer(1000)),
            ("0", Plain::Integer(0)),
            ("9223372036854775808", Plain::Float),
            ("089", Plain::Float),
            ("1.", Plain::Float),
            (".5", Plain::Float),
            ("1e3", Plain::Float),
            ("-.inf", Plain::Float),
            ("1.2.3", Plain::Text),
            ("2001-01-01", Plain::Text),
            ("1e", Plain::Text),
            ("0x", Plain::Text),
            ("-", Plain::Text),
            (".", Plain::Text),
            ("_1", Plain::Text),
            ("12:30", Plain::Text),
            ("--1", Plain::Text),
        ] {
            assert_eq!(Plain::of(text), expected, "{text}");
        }
    }

    #[test]
    fn documents_are_numbered_with_empty_ones_counted() {
        let documents = parsed("a: 1\n---\n---\n# nothing\n---\nb: 2\n").unwrap();
        let found: Vec<_> = documents.iter().map(|d| (d.index, d.root.line)).collect();
        assert_eq!(found, [(0, 1), (3, 6)]);
    }

    #[test]
    fn merges_let_the_nearer_value_win() {
        let documents = parsed("a: &a {p: 1, q: 2}\nb:\n  <<: *a\n  q: 3\n").unwrap();
        let Kind::Mapping(entries) = &*documents[0].root.kind else { panic!("a mapping") };
        let Kind::Mapping(merged) = &*entries[1].value.kind else { panic!("a mapping") };
        let found: Vec<_> = merged.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(found, [("q", 4), ("p", 1)]);
    }

    #[test]
    fn what_unfolds_without_end_is_refused() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = level - 1;
            let aliases = vec![format!("*a{before}"); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert_eq!(
            parsed(&laughs).unwrap_err(),
            "f.yaml:6: number of YAML values (aliases unfolded) exceeds the limit of 500000: \
             split the file or simplify it"
        );
        let mut chain = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(parsed(&chain).unwrap_err().contains("depth of the YAML"));
        assert!(parsed(&"[".repeat(1000)).is_err());
        assert!(parsed("a: &a [*a]").unwrap_err().contains("within its own"));
        assert!(parsed(&"---\na\n".repeat(1001)).unwrap_err().contains("1000"));
        assert!(parsed(&" ".repeat(FILE_LIMIT + 1)).unwrap_err().contains("4194304"));
    }

    #[test]
    fn mistakes_have_their_line() {
        for (text, message) in [
            (
                "a: 1\na: 2\n",
                "f.yaml:2: a: stands twice in the same mapping, first at line 1: remove one",
            ),
            (
                "a: 1\nb: !thing x\n",
                "f.yaml:2: not valid YAML: the tag !thing is not supported: remove it",
            ),
            (
                "a: 1\nyes: 2\n",
                "f.yaml:2: not valid YAML: a key must be text: write it in quotes if it is meant to be",
            ),
            (
                "a: 1\nb: {{ .Values.image }}\n",
                "f.yaml:2: not valid YAML: a key must be text: write it in quotes if it is meant to be (this looks like \
                 a template: render it first, for instance by `helm template`)",
            ),
            ("a:\n  <<: 3\n", "f.yaml:2: not valid YAML: << needs a mapping"),
        ] {
            assert_eq!(parsed(text).unwrap_err(), message);
        }
        let error = parse(&Rc::from("f.yaml"), b"a: 1\nb: \xff\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.yaml:2: not valid YAML: the text is not UTF-8: save the file in UTF-8"
        );
    }
}
