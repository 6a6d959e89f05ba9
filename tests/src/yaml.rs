//! YAML in the block style that people write, from plain data.

use std::fmt::Write as _;

use serde_json::Value;

/// Documents, with lines of `---` between them.
pub(crate) fn documents(documents: &[Value]) -> String {
    let texts: Vec<String> = documents.iter().map(document).collect();
    texts.join("---\n")
}

fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

/// Writes a non-empty map or list as lines that begin at `indent`.
fn block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(text, "{pad}{key}:");
                nested(text, value, indent + 2);
            }
        }
        Value::Array(list) => {
            for value in list {
                // The first line of the element follows the dash.
                let mut element = String::new();
                if is_block(value) {
                    block(&mut element, value, indent + 2);
                } else {
                    let _ = writeln!(element, "{pad}  {value}");
                }
                let _ = write!(text, "{pad}- {}", &element[indent + 2..]);
            }
        }
        scalar => {
            let _ = writeln!(text, "{pad}{scalar}");
        }
    }
}

fn nested(text: &mut String, value: &Value, indent: usize) {
    if is_block(value) {
        text.push('\n');
        block(text, value, indent);
    } else {
        // JSON's scalars, and its empty lists and maps, are YAML's.
        let _ = writeln!(text, " {value}");
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_lists_and_scalars() {
        let value = json!({"a": {"b": "x: y"}, "c": [{"d": 1, "e": []}, ["f"], "g\n"], "h": true});
        let expected =
            "a:\n  b: \"x: y\"\nc:\n  - d: 1\n    e: []\n  - - \"f\"\n  - \"g\\n\"\nh: true\n";
        assert_eq!(documents(&[value]), expected);
        assert_eq!(documents(&[json!({"a": 1}), json!({"b": 2})]), "a: 1\n---\nb: 2\n");
    }
}
