//! Which database of a cluster a journal is of. LSNs, timelines and the system identifier are the whole cluster's and do not
//! tell its databases apart, while a publication and a logical slot belong to [one of
//! them](https://www.postgresql.org/docs/current/view-pg-replication-slots.html). A hub that is pointed at another database finds
//! both there, and everything else as it was; it would acknowledge what it has not read. So the database is noted beside
//! the journal, by its OID, which standbys share and a renamed database keeps.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use super::{
    error::Result,
    sql::{Sql, get},
};

/// A database of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    system_identifier: u64,
    oid: u32,
    /// For people: it may have been renamed.
    name: String,
}

impl Database {
    /// The connection's.
    pub async fn of(sql: &Sql, system_identifier: u64) -> Result<Self> {
        let statement = "SELECT d.oid, d.datname::text FROM pg_catalog.pg_database d
                         WHERE d.datname = pg_catalog.current_database()";
        let row = sql.one(statement, &[]).await?;
        Ok(Database { system_identifier, oid: get(&row, 0)?, name: get(&row, 1)? })
    }

    /// Its name now.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a file says; `None` where there is none, as in a data directory from before it was noted.
    pub fn noted(file: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(file).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.splitn(3, ' ');
        let (system_identifier, oid, name) = (words.next()?, words.next()?, words.next()?);
        Some(Database { system_identifier: system_identifier.parse().ok()?, oid: oid.parse().ok()?, name: name.into() })
    }

    /// Writes it into a file, whole or not at all.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn note(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let mut out = fs::File::create(&new)?;
        writeln!(out, "{} {} {}", self.system_identifier, self.oid, self.name)?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        file.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
    }

    /// Why what follows another database of the same cluster must not follow this one. Another cluster has other OIDs, and is
    /// somebody else's question.
    pub fn refusal(&self, noted: &Database) -> Option<String> {
        if self.system_identifier != noted.system_identifier || self.oid == noted.oid {
            return None;
        }
        let Database { name, .. } = self;
        Some(match *name == noted.name {
            true => format!(
                "database {name} is not the one whose journal the data directory holds: it was dropped and made again, or has \
                 the name of one that was renamed. Give it a new data directory"
            ),
            false => format!(
                "the data directory holds the journal of database {} of this cluster, and the connection string names {name}: point \
                 the hub back, or give it a data directory of its own",
                noted.name
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("database");
        assert_eq!(Database::noted(&file), None);
        let shop = Database { system_identifier: u64::MAX, oid: 16_384, name: "my shop\n2".into() };
        shop.note(&file).unwrap();
        assert_eq!(Database::noted(&file), Some(shop.clone()));
        assert_eq!(shop.refusal(&Database { name: "renamed".into(), ..shop.clone() }), None);
        assert_eq!(shop.refusal(&Database { system_identifier: 1, oid: 5, ..shop.clone() }), None);
        let refusal = |name: &str| shop.refusal(&Database { oid: 5, name: name.into(), ..shop.clone() }).unwrap();
        assert!(refusal("my").contains("database my of this cluster") && refusal("my").contains("point the hub back"));
        let again = refusal(&shop.name);
        assert!(again.contains("made again") && !again.contains("back"), "{again}");
        for torn in ["", "7", "7 5", "7 5 sho", "7 x shop\n"] {
            assert_eq!(Database::parse(torn), None, "{torn:?}");
        }
    }
}
