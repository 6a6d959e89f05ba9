//! The part of containerd's filter language that serves for snapshots.
//!
//! `kind==active`, `parent!="x"`, `labels."containerd.io/snapshot.ref"==sha256:...`, `labels.foo`
//! (present), joined by commas: all must hold. Regular expressions (`~=`) are refused, not ignored.

use crate::store::{Kind, Snapshot};

/// Longest filter, in bytes.
const MAX_FILTER: usize = 16 * 1024;

/// One filter: conditions that must all hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Condition>);

#[derive(Debug, PartialEq, Eq)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
}

/// What is wrong with a filter.
#[derive(Debug, thiserror::Error)]
#[error("filter {filter:.200?}: {reason} (at byte {position})")]
pub(crate) struct FilterError {
    filter: String,
    position: usize,
    reason: &'static str,
}

impl Filter {
    pub(crate) fn parse(text: &str) -> Result<Filter, FilterError> {
        let mut reader = Reader { text, position: 0 };
        reader.filter().map_err(|reason| FilterError {
            filter: text.to_owned(),
            position: reader.position,
            reason,
        })
    }

    /// Whether all conditions hold.
    pub(crate) fn matches(&self, snapshot: &Snapshot) -> bool {
        self.0.iter().all(|condition| {
            let value = condition.field.of(snapshot);
            match &condition.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value == Some(wanted),
                Test::NotEqual(unwanted) => value != Some(unwanted),
            }
        })
    }
}

impl Field {
    fn of<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a str> {
        match self {
            Field::Name => Some(&snapshot.name),
            Field::Parent => Some(snapshot.parent.as_deref().unwrap_or_default()),
            Field::Kind => Some(match snapshot.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Field::Label(name) => snapshot.labels.get(name).map(String::as_str),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    position: usize,
}

impl Reader<'_> {
    fn filter(&mut self) -> Result<Filter, &'static str> {
        if self.text.len() > MAX_FILTER {
            return Err("it is longer than 16 KiB");
        }
        let mut conditions = Vec::new();
        if self.text.is_empty() {
            return Ok(Filter(conditions));
        }
        loop {
            conditions.push(self.condition()?);
            match self.take() {
                None => return Ok(Filter(conditions)),
                Some(',') => {}
                Some(_) => return Err("expected a comma or the end"),
            }
        }
    }

    fn condition(&mut self) -> Result<Condition, &'static str> {
        let mut path = vec![self.path_part()?];
        while self.peek() == Some('.') {
            self.take();
            path.push(self.path_part()?);
        }
        let field = match (path[0].as_str(), path.len()) {
            ("name", 1) => Field::Name,
            ("parent", 1) => Field::Parent,
            ("kind", 1) => Field::Kind,
            ("labels", 2..) => Field::Label(path[1..].join(".")),
            _ => return Err("unknown field; there are name, parent, kind and labels.KEY"),
        };
        let test = if self.skip("==") {
            Test::Equal(self.value()?)
        } else if self.skip("!=") {
            Test::NotEqual(self.value()?)
        } else if self.skip("~=") {
            return Err("regular expressions are not supported; use == or !=");
        } else {
            Test::Present
        };
        Ok(Condition { field, test })
    }

    fn path_part(&mut self) -> Result<String, &'static str> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let part = self.while_(|c| c.is_alphanumeric() || c == '_' || c == '-' || c == '/');
        if part.is_empty() { Err("expected a field's name") } else { Ok(part) }
    }

    fn value(&mut self) -> Result<String, &'static str> {
        if self.peek() == Some('"') { self.quoted() } else { Ok(self.while_(|c| c != ',')) }
    }

    /// A string in Go's quotes.
    fn quoted(&mut self) -> Result<String, &'static str> {
        const UNFINISHED: &str = "the quotes are not closed";
        self.take();
        let mut value = String::new();
        loop {
            match self.take().ok_or(UNFINISHED)? {
                '"' => return Ok(value),
                '\\' => match self.take().ok_or(UNFINISHED)? {
                    c @ ('"' | '\\' | '\'') => value.push(c),
                    'a' => value.push('\x07'),
                    'b' => value.push('\x08'),
                    'f' => value.push('\x0c'),
                    'n' => value.push('\n'),
                    'r' => value.push('\r'),
                    't' => value.push('\t'),
                    'v' => value.push('\x0b'),
                    'x' => value.push(self.hex(2)?),
                    'u' => value.push(self.hex(4)?),
                    'U' => value.push(self.hex(8)?),
                    _ => return Err("unknown escape in quotes"),
                },
                c => value.push(c),
            }
        }
    }

    fn hex(&mut self, digits: usize) -> Result<char, &'static str> {
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.take().and_then(|c| c.to_digit(16)).ok_or("expected a hex digit")?;
            code = code << 4 | digit;
        }
        char::from_u32(code).ok_or("the escape is no character")
    }

    fn while_(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let start = self.position;
        while self.peek().is_some_and(&wanted) {
            self.take();
        }
        self.text[start..self.position].to_owned()
    }

    fn skip(&mut self, word: &str) -> bool {
        let found = self.text[self.position..].starts_with(word);
        if found {
            self.position += word.len();
        }
        found
    }

    fn peek(&self) -> Option<char> {
        self.text[self.position..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.position += c.len_utf8();
        Some(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Timestamp;

    fn layer() -> Snapshot {
        let at = Timestamp { seconds: 0, nanos: 0 };
        Snapshot {
            id: 1,
            name: "k8s.io/2/sha256:bb".into(),
            parent: Some("k8s.io/1/sha256:aa".into()),
            kind: Kind::Committed,
            created: at,
            updated: at,
            labels: [("containerd.io/snapshot.ref".to_owned(), "sha256:bb".to_owned())].into(),
        }
    }

    #[test]
    fn the_filter_that_containerd_sends_after_already_exists() {
        let text = r#"labels."containerd.io/snapshot.ref"==sha256:bb,parent=="k8s.io/1/sha256:aa""#;
        assert!(Filter::parse(text).unwrap().matches(&layer()));
        let other = text.replace("bb", "cc");
        assert!(!Filter::parse(&other).unwrap().matches(&layer()));
    }

    #[test]
    fn fields_and_operators() {
        for (text, expected) in [
            ("", true),
            ("kind==committed", true),
            ("kind!=committed", false),
            ("kind==active", false),
            ("name==k8s.io/2/sha256:bb,kind==committed", true),
            ("labels.absent", false),
            ("labels.absent!=x", true),
            (r#"name=="k8s.io\x2f2/sha256:\u0062b""#, true),
        ] {
            assert_eq!(Filter::parse(text).unwrap().matches(&layer()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "size==3",
            "name~=a",
            "name==\"open",
            "=",
            "labels",
            "name==\"a\"b",
            ",",
            "name==\"\\u12",
        ] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        let error = Filter::parse("name~=a").unwrap_err().to_string();
        assert!(error.contains("regular expressions") && error.contains("byte 6"), "{error}");
    }
}
