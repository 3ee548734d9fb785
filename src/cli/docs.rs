//! README's table of errors is held to [`Reason::ALL`].

use super::args::Cli;
use crate::reason::{Code, Reason};

const README: &str = include_str!("../../README.md");

fn code(code: Code) -> String {
    format!("{code:?}").chars().enumerate().fold(String::new(), |mut name, (index, c)| {
        if index > 0 && c.is_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
        name
    })
}

fn table() -> String {
    let mut table = "| reason | code | retry | meaning | what to do |\n|---|---|---|---|---|\n".to_owned();
    for reason in Reason::ALL {
        let retry = reason.retry_after().map_or_else(String::new, |seconds| format!("{seconds} s"));
        let (name, code) = (reason.as_str(), code(reason.code()));
        table += &format!("| `{name}` | {code} | {retry} | {} | {} |\n", reason.meaning(), reason.action());
    }
    table
}

#[test]
fn the_readme_has_the_table_of_errors() {
    let start = README.find("| reason |").expect("README has the table");
    let rows = README[start..].lines().take_while(|line| line.starts_with('|'));
    let found: String = rows.map(|line| format!("{line}\n")).collect();
    assert!(found == table(), "README's table of errors should be:\n\n{}", table());
}

/// The words of an indented example line as a shell would split it, up to a pipe or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut quoted = false;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, quoted) = (Some(c), true),
            (None, '|' | '#') => break,
            (None, c) if c.is_whitespace() => {
                if quoted || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                quoted = false;
            }
            (None, c) => word.push(c),
        }
    }
    if quoted || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn every_command_line_of_the_documents_is_understood() {
    let filters = include_str!("../../docs/filters.md");
    let examples =
        README.lines().chain(filters.lines()).filter_map(|line| line.strip_prefix("    ").or(line.strip_prefix("$ ")));
    let examples = examples.filter(|line| line.starts_with("walcast "));
    let mut seen = 0;
    for line in examples {
        let parsed = <Cli as clap::Parser>::try_parse_from(words(line));
        assert!(parsed.is_ok(), "{line}\n{}", parsed.err().map(|error| error.to_string()).unwrap_or_default());
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} examples were found");
}
