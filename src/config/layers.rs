//! Step one of two: what was typed, where. Built-in defaults, then the file, then the environment, then flags; a
//! later layer replaces single keys of an earlier one. Nothing is interpreted here but the file's TOML.

use std::{collections::BTreeMap, fmt, path::Path};

use super::settings::{SETTINGS, find};

/// Where a value was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the built-in default.
    Default,
    /// The file given by `--config`, by its name.
    File(String),
    /// An environment variable.
    Env(&'static str),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(name) => f.write_str(name),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

impl Origin {
    /// Greater for a later layer.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File(_) => 1,
            Origin::Env(_) => 2,
            Origin::Flag(_) => 3,
        }
    }
}

/// One wrong place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key path, such as `grpc.listen`.
    pub key: String,
    /// What is wrong there, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// The value of a flag, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The setting's key.
    pub key: String,
    /// As typed.
    pub value: String,
    /// The flag's name, for messages.
    pub flag: String,
}

/// The topmost value of every setting.
#[derive(Clone, Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, (toml::Value, Origin)>,
    /// Whether libpq's variables say which server is meant.
    pub(super) libpq: bool,
}

/// Any of [libpq's variables](https://www.postgresql.org/docs/current/libpq-envars.html) that says where to connect.
const LIBPQ: [&str; 6] = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"];

impl Layers {
    /// The built-in defaults.
    pub fn defaults() -> Self {
        let parse = |text: &str| {
            let table: Result<toml::Table, _> = toml::from_str(&format!("v = {text}"));
            table.ok().and_then(|mut table| table.remove("v"))
        };
        let values = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.key, (parse(setting.default)?, Origin::Default))))
            .collect();
        Layers { values, libpq: false }
    }

    /// Lays a file over it. Every unknown key is a problem.
    pub fn file(&mut self, path: &Path, problems: &mut Vec<Problem>) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.toml(&text, &path.display().to_string(), problems),
            Err(error) => problems.push(Problem { key: path.display().to_string(), message: error.to_string() }),
        }
    }

    /// Lays the TOML text of a file of this name over it.
    pub fn toml(&mut self, text: &str, file: &str, problems: &mut Vec<Problem>) {
        match toml::from_str::<toml::Table>(text) {
            Ok(table) => self.table("", table, file, problems),
            Err(error) => {
                problems.push(Problem { key: file.to_owned(), message: error.to_string().trim_end().to_owned() })
            }
        }
    }

    fn table(&mut self, prefix: &str, table: toml::Table, file: &str, problems: &mut Vec<Problem>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match (find(&key), value) {
                (Some(setting), value) => {
                    self.values.insert(setting.key, (value, Origin::File(file.to_owned())));
                }
                (None, toml::Value::Table(inner)) if is_section(&key) => self.table(&key, inner, file, problems),
                (None, _) => problems.push(Problem { message: unknown(&key), key }),
            }
        }
    }

    /// Lays environment variables over it; empty ones count as unset.
    pub fn env(&mut self, get: impl Fn(&str) -> Option<String>) {
        self.libpq |= LIBPQ.iter().any(|name| get(name).is_some_and(|text| !text.is_empty()));
        for setting in SETTINGS {
            if let Some(text) = get(setting.env).filter(|text| !text.is_empty()) {
                self.values.insert(setting.key, (toml::Value::String(text), Origin::Env(setting.env)));
            }
        }
    }

    /// Lays flags over it.
    pub fn flags(&mut self, flags: &[Override], problems: &mut Vec<Problem>) {
        for flag in flags {
            match find(&flag.key) {
                Some(setting) => {
                    let value = (toml::Value::String(flag.value.clone()), Origin::Flag(flag.flag.clone()));
                    self.values.insert(setting.key, value);
                }
                None => problems.push(Problem { key: flag.key.clone(), message: unknown(&flag.key) }),
            }
        }
    }

    /// The topmost value and where it was typed.
    pub fn get(&self, key: &str) -> Option<&(toml::Value, Origin)> {
        self.values.get(key)
    }
}

fn is_section(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.split_once('.').is_some_and(|(section, _)| section == key))
}

fn unknown(key: &str) -> String {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    let siblings: Vec<&str> =
        SETTINGS.iter().filter_map(|setting| setting.key.strip_prefix(section)?.strip_prefix('.')).collect();
    if siblings.is_empty() || section.is_empty() {
        let mut sections: Vec<&str> = SETTINGS.iter().filter_map(|s| Some(s.key.split_once('.')?.0)).collect();
        sections.dedup();
        return format!("no such section; there are {}", sections.join(", "));
    }
    format!("no such key; [{section}] has {}", siblings.join(", "))
}
