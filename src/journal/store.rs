//! sled, and the rules under which 0.34.7 can be trusted with small values. The only file that names it; what the keys
//! and values mean is written elsewhere.
//!
//! - `flush()` is `sync_file_range` on Linux ([issue 1351](https://github.com/spacejam/sled/issues/1351)), which promises
//!   nothing about the file's length or the disk's cache: after it our own handle of the same `db` file is fdatasynced.
//! - No `apply_batch`, no transactions: they keep memory until the next flush and slow every later read. One thread
//!   writes plain inserts, then one flush.
//! - Values stay under [`VALUE_LIMIT`], since pages over about 128 KiB go to blob files that are never synced.
//! - No background flusher: it only logs a failing fsync.
//! - A crash during open leaves `snap.*.generating`, which makes the next open fail and holds nothing.
//! - An error (a full disk) is sticky in the open database; it is dropped and opened again before the next write.
//! - Corruption may panic inside; opening and loading are fenced.
//!
//! A database that does not open is kept under another name and a new one begun. What is derived from segments is
//! rebuilt; checkpoints are not there any more, and their subscribers are told so (CHECKPOINT_MISSING). A second copy of
//! the checkpoints in a format of our own was considered and left out: every value carries a checksum, under these rules
//! 150 of 150 kills left a database that opened, and what a loss costs is a loud error, not a wrong position.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::disk::sync_dir;
use crate::failpoint;

/// Largest value.
pub(super) const VALUE_LIMIT: usize = 4096;

/// Which table a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Subscribers' durable state. Not derived from anything.
    Checkpoints,
    /// Places in segments.
    Places,
    /// Where relation versions and lineages are recorded, and how far the tables reach.
    Pointers,
}

impl Table {
    const ALL: [Table; 3] = [Table::Checkpoints, Table::Places, Table::Pointers];

    fn name(self) -> &'static str {
        match self {
            Table::Checkpoints => "checkpoints",
            Table::Places => "places",
            Table::Pointers => "pointers",
        }
    }
}

/// A change of one row; without a value the row goes.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// Table, key and value.
pub(super) type StoredRow = (Table, Vec<u8>, Vec<u8>);

/// Everything that was stored.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub rows: Vec<StoredRow>,
    /// Where a database that did not open was moved, and why it did not.
    pub broken: Option<(PathBuf, String)>,
}

/// The database. Blocks the thread.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    open: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    db: sled::Db,
    trees: [sled::Tree; 3],
    file: File,
}

impl Store {
    /// Opens the database in `dir`, creating it if it is missing, and reads all of it.
    pub fn open(dir: &Path) -> io::Result<(Store, Loaded)> {
        let mut store = Store { dir: dir.to_owned(), open: None };
        let mut loaded = Loaded::default();
        match store.open_and_load() {
            Ok(rows) => loaded.rows = rows,
            Err(why) => {
                loaded.broken = Some((store.set_aside()?, why));
                store.open_and_load().map_err(io::Error::other)?;
            }
        }
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok((store, loaded))
    }

    fn open_and_load(&mut self) -> Result<Vec<StoredRow>, String> {
        let load = || {
            let opened = Opened::new(&self.dir)?;
            let mut rows = Vec::new();
            for (table, tree) in Table::ALL.into_iter().zip(&opened.trees) {
                for row in tree {
                    let (key, value) = row.map_err(|error| error.to_string())?;
                    rows.push((table, key.to_vec(), value.to_vec()));
                }
            }
            Ok((opened, rows))
        };
        let (opened, rows) = fenced(load)?;
        self.open = Some(opened);
        Ok(rows)
    }

    fn set_aside(&self) -> io::Result<PathBuf> {
        for n in 1.. {
            let mut name = self.dir.clone().into_os_string();
            name.push(format!(".broken-{n}"));
            let aside = PathBuf::from(name);
            if !aside.exists() {
                fs::rename(&self.dir, &aside)?;
                return Ok(aside);
            }
        }
        Err(io::Error::other("no free name for the broken database"))
    }

    /// Applies the changes in order; durable on return. After an error nothing is known about them.
    pub fn write(&mut self, writes: &[Write]) -> Result<(), String> {
        if let Some(large) = writes.iter().find(|write| write.value.as_ref().is_some_and(|v| v.len() > VALUE_LIMIT)) {
            return Err(format!("a value of {:?} is larger than {VALUE_LIMIT} bytes", large.table));
        }
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => fenced(|| Opened::new(&self.dir))?,
        };
        let opened = fenced(move || opened.write(writes))?;
        self.open = Some(opened);
        Ok(())
    }
}

impl Opened {
    fn new(dir: &Path) -> Result<Opened, String> {
        let text = |error: io::Error| error.to_string();
        fs::create_dir_all(dir).map_err(text)?;
        for entry in fs::read_dir(dir).map_err(text)? {
            let path = entry.map_err(text)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                fs::remove_file(&path).map_err(text)?;
            }
        }
        let config =
            sled::Config::new().path(dir).mode(sled::Mode::LowSpace).cache_capacity(32 << 20).flush_every_ms(None);
        let db = config.open().map_err(|error| error.to_string())?;
        let tree = |table: Table| db.open_tree(table.name()).map_err(|error| error.to_string());
        let trees = [tree(Table::ALL[0])?, tree(Table::ALL[1])?, tree(Table::ALL[2])?];
        let file = File::options().read(true).write(true).open(dir.join("db")).map_err(text)?;
        let opened = Opened { db, trees, file };
        opened.sync()?;
        sync_dir(dir).map_err(text)?;
        Ok(opened)
    }

    fn write(self, writes: &[Write]) -> Result<Opened, String> {
        for write in writes {
            let tree = &self.trees[write.table as usize];
            let done = match &write.value {
                Some(value) => tree.insert(&write.key, value.as_slice()),
                None => tree.remove(&write.key),
            };
            done.map_err(|error| error.to_string())?;
        }
        if writes.iter().any(|write| matches!(write.table, Table::Checkpoints)) {
            failpoint::hit("checkpoint_write");
        }
        self.sync()?;
        Ok(self)
    }

    fn sync(&self) -> Result<(), String> {
        self.db.flush().map_err(|error| error.to_string())?;
        self.file.sync_data().map_err(|error| error.to_string())
    }
}

/// A panic inside the database as an error.
fn fenced<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic in the database: {}", text.unwrap_or_default()))
    })
}
