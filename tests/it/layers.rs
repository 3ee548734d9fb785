//! ARCHITECTURE.md's layer table as a test: every `crate::` and `super::` path in `src/` (and `walcast::` in the
//! binary) must point to a lower layer or stay inside its own module. Comments, string literals and
//! `#[cfg(test)] mod` blocks are left out: tests may reach further.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Top-level modules from the bottom up. A module may use what lies below its own layer.
const LAYERS: &[&[&str]] = &[
    &["lsn", "model", "reason", "metrics", "shutdown", "failpoint"],
    &["pgoutput", "wire", "selection"],
    &["feed", "journal", "postgres"],
    &["ingest", "failover", "snapshot", "hub"],
    &["source", "rpc", "http"],
    &["cli", "config", "app", "main"],
];

/// The few arrows inside one layer, each from the user to the used, with its reason. No cycles: checked.
const WITHIN_A_LAYER: &[(&str, &str, &str)] = &[
    ("model", "lsn", "a position contains an LSN"),
    ("journal", "feed", "the journal implements the trait that sessions read from"),
    ("app", "config", "the composition root builds what the configuration describes"),
    ("cli", "app", "`walcast serve` runs it"),
    ("cli", "config", "flags overlay the file"),
    ("main", "app", "the entry point"),
    ("main", "cli", "the entry point"),
    ("main", "config", "the entry point"),
];

/// The one file that may name the embedded store.
const STORE: &str = "journal/store.rs";

const MAX_LINES: usize = 600;

#[test]
fn dependencies_point_down() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        let code = without_tests(&without_comments_and_strings(&read(&file)));
        let module = module_path(&file);
        let Some(user) = module.first().cloned() else {
            continue; // lib.rs declares the modules and nothing else
        };
        for used in references(&code, &module) {
            if !may_use(&user, &used) {
                wrong.push(format!("{}: {user} must not use {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_lists_every_module() {
    let mut unlisted = BTreeSet::new();
    for file in sources("src") {
        if let Some(module) = module_path(&file).first()
            && layer(module).is_none()
        {
            unlisted.insert(module.clone());
        }
    }
    assert!(unlisted.is_empty(), "modules without a layer: {unlisted:?}");
}

#[test]
fn exceptions_are_inside_one_layer_and_acyclic() {
    for (user, used, reason) in WITHIN_A_LAYER {
        assert_eq!(layer(user), layer(used), "{user} -> {used} needs no exception");
        assert!(!reason.is_empty());
        assert!(!reaches(used, user), "{user} and {used} use each other");
    }
}

#[test]
fn one_file_names_the_embedded_store() {
    let offenders: Vec<String> = sources("src")
        .into_iter()
        .filter(|file| !file.ends_with(STORE))
        .filter(|file| words(&without_comments_and_strings(&read(file))).any(|word| word == "sled"))
        .map(|file| file.display().to_string())
        .collect();
    assert!(offenders.is_empty(), "only {STORE} may name sled: {offenders:?}");
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = ["src", "tests"]
        .into_iter()
        .flat_map(sources)
        .map(|file| (read(&file).lines().count(), file))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, file)| format!("{}: {lines}", file.display()))
        .collect();
    assert!(long.is_empty(), "files of more than {MAX_LINES} lines: {long:?}");
}

#[test]
fn the_parser_finds_every_form_of_path() {
    let code = r#"
        use crate::{feed::{Feed, Start}, model::Lsn, self};
        use crate::wire::pb;
        pub(crate) use super::super::hub as h;
        fn f() -> crate::reason::Reason { super::sibling() }
        // crate::comment::x
        const S: &str = "crate::string::x"; const R: &str = r"crate::raw::x"; const C: char = '"';
        #[cfg(test)] mod tests { use crate::journal::X; mod inner {} }
        fn after() { crate::metrics::add() }
    "#;
    let clean = without_tests(&without_comments_and_strings(code));
    let found = references(&clean, &["rpc".into(), "status".into()]);
    let expected = ["feed", "hub", "metrics", "model", "reason", "wire"];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    assert!(!may_use("wire", "journal") && !may_use("pgoutput", "wire") && !may_use("feed", "journal"));
    assert!(may_use("hub", "feed") && may_use("journal", "feed") && may_use("hub", "hub"));
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn may_use(user: &str, used: &str) -> bool {
    user == used
        || layer(used) < layer(user) && layer(used).is_some()
        || WITHIN_A_LAYER.iter().any(|(a, b, _)| (*a, *b) == (user, used))
}

fn reaches(from: &str, to: &str) -> bool {
    WITHIN_A_LAYER.iter().any(|(a, b, _)| *a == from && (*b == to || reaches(b, to)))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("source folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a source file is UTF-8")
}

/// `src/wire/encode.rs` is `["wire", "encode"]`; `src/lib.rs` is empty.
fn module_path(file: &Path) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = file.strip_prefix(root).expect("below src").with_extension("");
    let mut parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] {
        parts.pop();
    }
    parts
}

/// Top-level modules that the code of `module` names.
fn references(code: &str, module: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (start, word) in word_starts(code) {
        let mut rest = &code[start + word.len()..];
        let mut depth = match word {
            "crate" | "walcast" => 0,
            "super" if !code[..start].trim_end().ends_with("::") => module.len().saturating_sub(1),
            _ => continue,
        };
        while let Some(next) = rest.trim_start().strip_prefix("::") {
            rest = next.trim_start();
            if let Some(next) = rest.strip_prefix("super") {
                depth = depth.saturating_sub(1);
                rest = next;
                continue;
            }
            if depth == 0 {
                found.extend(heads(rest));
            }
            break;
        }
    }
    found.remove("self");
    found
}

/// The first names of what follows `crate::`: one identifier, or those of a group.
fn heads(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return words(rest).next().map(str::to_owned).into_iter().collect();
    };
    let (mut depth, mut expects, mut found) = (0, true, Vec::new());
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects = true,
            c if depth == 0 && expects && (c.is_alphanumeric() || c == '_') => {
                found.extend(words(&group[index..]).next().map(str::to_owned));
                expects = false;
            }
            _ => {}
        }
    }
    found
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn word_starts(code: &str) -> impl Iterator<Item = (usize, &str)> {
    words(code).map(move |word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

fn without_comments_and_strings(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            quoted(rest)
        } else if c == 'r' && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            raw(rest).unwrap_or(0)
        } else {
            character(rest).unwrap_or(0)
        };
        if skip == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.push(' ');
            rest = &rest[skip..];
        }
    }
    out
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw(rest: &str) -> Option<usize> {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    rest[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

/// The length of a character literal such as `'"'`; lifetimes have no closing quote.
fn character(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        return inner[2..].find('\'').map(|end| end + 4);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..].starts_with('\'').then_some(2 + c.len_utf8())
}

fn without_tests(code: &str) -> String {
    let Some(start) = code.find("#[cfg(test)]") else {
        return code.to_owned();
    };
    let item = code[start + "#[cfg(test)]".len()..].trim_start();
    if !item.starts_with("mod ") {
        return format!("{}{}", &code[..start], without_tests(item));
    }
    let mut depth = 0;
    for (index, c) in item.char_indices() {
        match c {
            ';' if depth == 0 => return format!("{}{}", &code[..start], without_tests(&item[index + 1..])),
            '{' => depth += 1,
            '}' if depth == 1 => return format!("{}{}", &code[..start], without_tests(&item[index + 1..])),
            '}' => depth -= 1,
            _ => {}
        }
    }
    code[..start].to_owned()
}
