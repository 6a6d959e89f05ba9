//! Whatever the owner's file contains: it is read or refused with a place, and nothing panics.

use nacre_policy_author::kubernetes::{SourceFile, read};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const SEEDS: [&str; 5] = [
    include_str!("yaml/everything.yaml"),
    include_str!("../fuzz/corpus/kubernetes/job.yaml"),
    include_str!("../fuzz/corpus/kubernetes/list.json"),
    include_str!("../fuzz/corpus/kubernetes/set.yaml"),
    include_str!("../fuzz/corpus/kubernetes/laughs.yaml"),
];

/// Reads `content`; a mistake must be within the file and its message one line.
fn take(content: &[u8]) -> bool {
    let lines = 1 + content.iter().filter(|&&byte| matches!(byte, b'\n' | b'\r')).count();
    let file = SourceFile { name: "f".to_owned(), content: content.to_vec() };
    match read(&[file]) {
        Ok(_) => true,
        Err(error) => {
            let line = error.line as usize;
            assert!(line >= 1 && line <= lines + 1, "{error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("f:{line}: ")), "{text}");
            false
        }
    }
}

/// One change of a line: taken out, doubled, indented or given another's content.
fn change(lines: &mut Vec<String>, at: usize, other: usize, how: u8) {
    let at = at % lines.len();
    let other = other % lines.len();
    match how % 6 {
        0 if lines.len() > 1 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other].clone()),
        2 => lines[at].insert_str(0, "  "),
        3 => lines[at] = lines[at].trim_start_matches("  ").to_owned(),
        4 => {
            let end = lines[at].find(':').map_or(lines[at].len(), |colon| colon + 1);
            let value = lines[other].split_once(':').map_or("x", |(_, value)| value).to_owned();
            lines[at].truncate(end);
            lines[at].push_str(&value);
        }
        _ => lines.swap(at, other),
    }
}

#[test]
fn seeds_are_what_they_should_be() {
    let read: Vec<_> = SEEDS.iter().map(|seed| take(seed.as_bytes())).collect();
    assert_eq!(read, [true, true, true, true, false]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes(content in proptest::collection::vec(any::<u8>(), 0..2000)) {
        take(&content);
    }

    #[test]
    fn any_text_of_yaml(content in "([a-z]{1,3}|: |- |\\n|\\n {1,4}|[\\[\\]{}&*!|>?,#%\"'@`~$()0-9]|<<: |---\n|\\t){0,200}") {
        take(content.as_bytes());
    }

    #[test]
    fn changed_lines(
        seed in 0..SEEDS.len(),
        changes in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut lines: Vec<String> = SEEDS[seed].lines().map(str::to_owned).collect();
        for (at, other, how) in changes {
            change(&mut lines, at, other, how);
        }
        take(lines.join("\n").as_bytes());
    }

    #[test]
    fn changed_bytes(
        seed in 0..SEEDS.len(),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = SEEDS[seed].as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        take(&bytes);
    }
}
