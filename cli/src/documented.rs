//! Every command that the documentation shows is one that this tool has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use crate::Arguments;

/// Decisions tell of what was only thought about; the changelog of what was.
const LEFT_OUT: [&str; 2] = ["docs/adr", "CHANGELOG.md"];

fn pages(root: &Path, directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let inside = path.strip_prefix(root).unwrap().to_owned();
        if LEFT_OUT.iter().any(|left_out| inside.starts_with(left_out)) {
            continue;
        }
        if path.is_dir() {
            pages(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The lines of code blocks that are typed, continued ones put together.
fn typed(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut in_code = false;
    let mut continued = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        let line = line.trim_start();
        let is_command =
            !continued.is_empty() || line.starts_with("$ ") || line.starts_with("nacre ");
        if !in_code || !is_command {
            continue;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        match line.strip_suffix('\\') {
            Some(begun) => continued.push_str(begun),
            None => lines.push(std::mem::take(&mut continued) + line),
        }
    }
    lines
}

/// The words of each `nacre` command in a line of shell: pipes, lists, substitutions and redirections end one.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, '#') if word.is_none() => break,
            (None, ' ' | '|' | ';' | '&' | '>' | '<' | '(' | ')' | '`') => {
                commands.last_mut().unwrap().extend(word.take());
                if letter != ' ' {
                    commands.push(Vec::new());
                }
            }
            (None, _) => word.get_or_insert_default().push(letter),
        }
    }
    commands.last_mut().unwrap().extend(word);
    let of_nacre = commands.into_iter().filter_map(|words| {
        let prefix = |word: &&String| *word == "sudo" || word.contains('=');
        let before = words.iter().take_while(prefix).count();
        (words.get(before).map(String::as_str) == Some("nacre")).then(|| words[before..].to_vec())
    });
    of_nacre.collect()
}

/// What is wrong with a whole command, as its parser sees it.
fn problem(mut words: Vec<String>) -> Option<String> {
    let is_administrative = words.get(1).is_some_and(|word| word == "kbs");
    let mut parsed = Arguments::try_parse_from(&words);
    // The environment names the administrator's key in most examples.
    if is_administrative
        && parsed.as_ref().err().is_some_and(|e| e.to_string().contains("--admin-key"))
    {
        words.extend(["--admin-key".to_owned(), "admin.key".to_owned()]);
        parsed = Arguments::try_parse_from(&words);
    }
    let error = parsed.err().filter(clap::Error::use_stderr)?;
    Some(error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// What is wrong with a command that text only mentions: its name, or its options.
fn problem_of_mention(words: &[String]) -> Option<String> {
    let mut command = Arguments::command();
    command.build();
    let mut rest = words[1..].iter();
    for word in rest.by_ref() {
        match command.find_subcommand(word) {
            Some(below) => command = below.clone(),
            None if command.has_subcommands() => return Some(format!("there is no {word}")),
            None => break,
        }
    }
    let known: BTreeSet<_> =
        command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let options = words.iter().filter_map(|word| word.strip_prefix("--"));
    let mut unknown = options.filter(|name| !known.contains(name.split('=').next().unwrap_or("")));
    unknown.next().map(|name| format!("it has no --{name}"))
}

#[test]
fn every_command_in_the_documentation_is_one_that_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut found = vec![root.join("README.md")];
    pages(&root, &root.join("docs"), &mut found);
    pages(&root, &root.join("deploy"), &mut found);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in &found {
        let text = fs::read_to_string(page).unwrap();
        let name = page.strip_prefix(&root).unwrap().display().to_string();
        for words in typed(&text).iter().flat_map(|line| commands(line)) {
            seen += 1;
            let line = words.join(" ");
            wrong.extend(problem(words).map(|problem| format!("{name}: {line}: {problem}")));
        }
        for mention in text.split('`').filter(|text| text.starts_with("nacre ") && text.len() < 200)
        {
            for words in commands(&mention.replace('\n', " ")) {
                let problem = problem_of_mention(&words);
                wrong.extend(problem.map(|problem| format!("{name}: {mention}: {problem}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "only {seen} commands found: are they still written as before?");
}

#[test]
fn shell_lines_are_taken_apart() {
    let found = commands("A=1 sudo nacre measure -o 'a b' | nacre x \"$(nacre y)\" > z # nacre w");
    let words: Vec<String> = found.iter().map(|words| words.join(",")).collect();
    assert_eq!(words, ["nacre,measure,-o,a b", "nacre,x,$(nacre y)"]);
    assert_eq!(typed("```\n$ nacre a \\\n   b\nsaid\n```\n$ nacre c\n"), ["nacre a b"]);
    assert!(problem(["nacre", "measure", "--no-such"].map(str::to_owned).to_vec()).is_some());
    assert!(problem_of_mention(&["nacre", "mesure"].map(str::to_owned)).is_some());
    assert!(problem_of_mention(&["nacre", "check", "--tea"].map(str::to_owned)).is_some());
}
