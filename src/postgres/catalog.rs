//! Whether tables changed while a slot was made.
//!
//! A slot must be made without them changing. PostgreSQL reads WAL from the first record of running transactions on, and
//! ignores what commits before all of those have ended; afterwards it takes such a transaction for unfinished, if one that
//! began earlier was still running then ([snapbuild.c](https://doxygen.postgresql.org/snapbuild_8c_source.html),
//! `SNAPBUILD_BUILDING_SNAPSHOT`). What is decoded next is then read with the old catalogue: a row of a new table is an error,
//! and of a new **column or publication nothing comes, without a word**. All versions up to 18 do so.

use super::{
    error::Result,
    sql::{Sql, get},
};
use crate::failpoint;

/// How often a slot is made anew because tables changed meanwhile.
const ATTEMPTS: u32 = 5;

/// The making of a slot.
pub struct Making<'a> {
    sql: &'a Sql,
    before: String,
    left: u32,
}

impl<'a> Making<'a> {
    /// To be called before the slot is made.
    pub async fn new(sql: &'a Sql) -> Result<Making<'a>> {
        Ok(Making { sql, before: digest(sql).await?, left: ATTEMPTS - 1 })
    }

    /// What tables were like, to compare with it later by [`unchanged`].
    pub fn before(&self) -> &str {
        &self.before
    }

    /// Whether the slot that was made since the last call can be kept. If not it is to be dropped and made again.
    pub async fn may_keep(&mut self, slot: &str) -> Result<bool> {
        failpoint::hit("slot_unexamined");
        let now = digest(self.sql).await?;
        let same = now == self.before;
        self.before = now;
        if same || failpoint::planted("overlook_ddl") {
            return Ok(true);
        }
        let Some(left) = self.left.checked_sub(1) else {
            tracing::error!(
                slot,
                "each time the slot was made DDL committed: what it changed may be decoded as it was before"
            );
            return Ok(true);
        };
        self.left = left;
        tracing::warn!(slot, "DDL committed while the slot was made, which PostgreSQL may overlook: it is made again");
        Ok(false)
    }
}

/// Whether tables are as [`Making::before`] said.
pub async fn unchanged(sql: &Sql, before: &str) -> Result<bool> {
    Ok(digest(sql).await? == before)
}

/// What decoding depends on, as committed now: equal texts mean that nothing of it changed in between. Temporary tables, which
/// are not decoded, are left out.
async fn digest(sql: &Sql) -> Result<String> {
    let schemas = match sql.version() {
        150_000.. => "UNION ALL SELECT 8, s.xmin, s.ctid FROM pg_catalog.pg_publication_namespace s",
        _ => "",
    };
    let statement = format!(
        "WITH t AS (SELECT c.oid, c.xmin, c.ctid FROM pg_catalog.pg_class c
                    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'),
              n AS (SELECT n.oid, n.xmin, n.ctid FROM pg_catalog.pg_namespace n
                    WHERE n.nspname !~ '^pg_(toast_)?temp_'),
              rows (of, x, at) AS (
                  SELECT 0, t.xmin, t.ctid FROM t
                  UNION ALL SELECT 1, n.xmin, n.ctid FROM n
                  UNION ALL SELECT 2, a.xmin, a.ctid FROM pg_catalog.pg_attribute a JOIN t ON t.oid = a.attrelid
                  UNION ALL SELECT 3, i.xmin, i.ctid FROM pg_catalog.pg_index i JOIN t ON t.oid = i.indrelid
                  UNION ALL SELECT 4, y.xmin, y.ctid FROM pg_catalog.pg_type y JOIN n ON n.oid = y.typnamespace
                  UNION ALL SELECT 5, e.xmin, e.ctid FROM pg_catalog.pg_enum e
                  UNION ALL SELECT 6, p.xmin, p.ctid FROM pg_catalog.pg_publication p
                  UNION ALL SELECT 7, r.xmin, r.ctid FROM pg_catalog.pg_publication_rel r {schemas}
                  UNION ALL SELECT 9, h.xmin, h.ctid FROM pg_catalog.pg_inherits h JOIN t ON t.oid = h.inhrelid)
         SELECT pg_catalog.concat_ws(' ', count(*),
                    sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', of, x, at), 0)))
         FROM rows"
    );
    get(&sql.one(&statement, &[]).await?, 0)
}
