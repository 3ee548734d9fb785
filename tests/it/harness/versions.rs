//! Where the server binaries of each major version are.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

use super::process::{self, Account};

/// The version that scenarios run on unless they say otherwise: `WALCAST_TEST_PG`, else 15.
pub fn default_major() -> u32 {
    std::env::var("WALCAST_TEST_PG").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// Versions beside the default one that the matrix scenarios run on: `WALCAST_TEST_PG_VERSIONS="14 16 17 18"`.
pub fn matrix() -> Vec<u32> {
    let text = std::env::var("WALCAST_TEST_PG_VERSIONS").unwrap_or_default();
    text.split([' ', ',']).filter_map(|part| part.parse().ok()).filter(|major| *major != default_major()).collect()
}

/// The directory with `postgres` and `initdb`: `WALCAST_TEST_PG_<major>` (an installation prefix or its `bin`), the
/// distribution's place, what `scripts/fetch-postgres.sh` left in the cache, or PATH.
pub fn bin_dir(major: u32) -> PathBuf {
    static FOUND: OnceLock<Mutex<HashMap<u32, PathBuf>>> = OnceLock::new();
    let mut found = FOUND.get_or_init(Mutex::default).lock().expect("versions");
    found.entry(major).or_insert_with(|| usable_by_server(find(major), major)).clone()
}

fn find(major: u32) -> PathBuf {
    let mut candidates = Vec::new();
    if let Some(dir) = std::env::var_os(format!("WALCAST_TEST_PG_{major}")) {
        candidates.push(PathBuf::from(dir));
    }
    candidates.push(PathBuf::from(format!("/usr/lib/postgresql/{major}")));
    candidates.push(PathBuf::from(format!("/usr/pgsql-{major}")));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    candidates.extend(cache.map(|cache| cache.join(format!("walcast/postgres/{major}"))));
    candidates.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    for candidate in &candidates {
        for dir in [candidate.join("bin"), candidate.clone()] {
            if dir.join("postgres").is_file() && dir.join("initdb").is_file() && major_of(&dir) == Some(major) {
                return dir;
            }
        }
    }
    panic!(
        "PostgreSQL {major} is not installed; looked in {candidates:?}. scripts/fetch-postgres.sh {major} fetches it"
    )
}

fn major_of(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A cache below root's home cannot be read by the account that the server runs under: then a copy serves.
fn usable_by_server(bin: PathBuf, major: u32) -> PathBuf {
    let mut probe = process::command(&bin.join("postgres"), Account::Server, "KILL");
    probe.arg("--version");
    if probe.output().is_ok_and(|output| output.status.success()) {
        return bin;
    }
    let prefix = bin.parent().expect("a bin directory has a parent");
    let copy = process::fresh_dir(&format!("pg{major}"));
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto", "--no-preserve=ownership"]).arg(prefix.join(".")).arg(&copy);
    process::run(cp);
    copy.join("bin")
}
