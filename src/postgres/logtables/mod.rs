//! Log tables: row triggers write every change of a published table into tables of the hub's own, in the same
//! transaction, so that what the slot can no longer give is still there. `schema.sql` is all that runs in the database.
//!
//! What decided their form: a [trigger](https://www.postgresql.org/docs/current/trigger-definition.html) on a
//! partitioned table is cloned to its partitions, and then ATTACH PARTITION of a table that has a trigger of this name
//! fails, so each leaf has triggers of its own; statement triggers do not fire in logical apply workers, and ordinary
//! ones not under `session_replication_role = replica`, so they are row triggers, ENABLE ALWAYS; rows are kept as
//! text under the settings that the stream has, because a column of the row's own type would make ALTER TABLE fail.

mod all_tables;
pub mod audit;
pub mod blockers;
mod check;
pub mod filter;
pub mod order;
pub mod read;
mod row;

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::{
    contents,
    error::Result,
    publication::OWN_SCHEMA,
    replication::{identifier, literal},
    sql::{Sql, get, text},
};
use crate::failpoint;

pub use check::check;
pub use row::{Field, fields};

/// Everything that runs in the database, apart from the tables' names.
pub const SCHEMA: &str = include_str!("schema.sql");

const EVENT_TRIGGER: &str = "
CREATE EVENT TRIGGER walcast_ddl ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'ALTER SCHEMA', 'ALTER TYPE',
                 'CREATE PUBLICATION', 'ALTER PUBLICATION')
    EXECUTE FUNCTION walcast.on_ddl();
ALTER EVENT TRIGGER walcast_ddl ENABLE ALWAYS;
";

/// Whether log tables are installed in the connection's database.
pub async fn installed(sql: &Sql) -> Result<bool> {
    // By the catalogue, since to_regclass() is an error to whom the schema is closed.
    let statement =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                    WHERE n.nspname = 'walcast' AND c.relname = 'shapes')";
    get(&sql.one(statement, &[]).await?, 0)
}

/// What is installed, without the tables' triggers.
fn base(publication: &str, hub_role: Option<&str>) -> String {
    let grants = hub_role.map_or_else(String::new, |role| {
        let role = identifier(role);
        format!(
            "GRANT USAGE ON SCHEMA walcast TO {role};\nGRANT SELECT ON ALL TABLES IN SCHEMA walcast TO {role};\n\
             GRANT EXECUTE ON FUNCTION walcast.prune(pg_snapshot), walcast.published(), walcast.is_captured(oid), \
             walcast.filter_of(oid), walcast.ways(oid), walcast.shape_of(oid) TO {role};\n"
        )
    });
    format!(
        "{SCHEMA}\nINSERT INTO walcast.settings (publication) VALUES ({name})\n    \
         ON CONFLICT (only_row) DO UPDATE SET publication = excluded.publication;\n\
         DO $$ BEGIN\n    IF to_regproc('walcast.capture') IS NULL THEN\n        PERFORM walcast.write_to(0::int2);\n    \
         END IF;\nEND $$;\n{grants}",
        name = literal(publication),
    )
}

/// The whole installation as a script for psql, for somebody who reads it before it runs. May be run again.
pub fn script(publication: &str, hub_role: Option<&str>) -> String {
    format!(
        "\\set ON_ERROR_STOP on\nSET client_min_messages = warning;\nBEGIN;\n\n{}\nCOMMIT;\n\n\
         -- Every published table, each in a transaction of its own: it takes SHARE ROW EXCLUSIVE.\n\
         SELECT format('SELECT walcast.protect(%s)', p.oid) FROM walcast.published() p(oid) \\gexec\n\n\
         -- Those that are not published any more.\n\
         SELECT format('SELECT walcast.note(%s, false)', c.oid) FROM pg_class c\n\
         WHERE c.oid IN (SELECT s.relid FROM walcast.shapes s) AND c.oid NOT IN (SELECT walcast.published()) \\gexec\n\n\
         -- Later DDL is followed by an event trigger, which takes a superuser.\n\
         SELECT current_setting('is_superuser')::bool AS is_superuser \\gset\n\\if :is_superuser\n\
         DROP EVENT TRIGGER IF EXISTS walcast_ddl;{EVENT_TRIGGER}\\else\n\
         \\warn Later DDL is not followed: run this again after each CREATE, ALTER or ATTACH of a published table.\n\
         \\endif\n\nSET client_min_messages = notice;\n{}",
        base(publication, hub_role),
        all_tables::IN_SCRIPT
    )
}

/// What an installation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Tables whose changes are logged from now on.
    pub tables: u64,
    /// Whether later DDL is followed; needs a superuser.
    pub follows_ddl: bool,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Installs, or completes an installation. Each table is locked against writes for a moment, one after another.
pub async fn install(sql: &Sql, publication: &str, hub_role: Option<&str>) -> Result<Installed> {
    let mut done = Installed::default();
    sql.batch(&format!("BEGIN; SET LOCAL client_min_messages = warning; {}; COMMIT", base(publication, hub_role)))
        .await?;
    let superuser: bool = get(&sql.one("SELECT pg_catalog.current_setting('is_superuser')::bool", &[]).await?, 0)?;
    if superuser {
        sql.batch(&format!(
            "SET client_min_messages = warning; DROP EVENT TRIGGER IF EXISTS walcast_ddl; {EVENT_TRIGGER}"
        ))
        .await?;
        done.follows_ddl = true;
    } else {
        done.notes.push(
            "Later DDL is not followed, which needs an event trigger and so a superuser: run install again after each \
             CREATE, ALTER or ATTACH of a published table."
                .into(),
        );
    }
    for row in sql.query("SELECT p.oid FROM walcast.published() p(oid) ORDER BY 1", &[]).await? {
        let oid: u32 = get(&row, 0)?;
        sql.query("SELECT walcast.protect($1)::text", &[(&oid, Type::OID)]).await?;
        done.tables += 1;
    }
    let left = "SELECT walcast.note(c.oid, false)::text FROM pg_catalog.pg_class c
                WHERE c.oid IN (SELECT s.relid FROM walcast.shapes s) AND c.oid NOT IN (SELECT walcast.published())";
    sql.query(left, &[]).await?;
    done.notes.extend(all_tables::notes(sql, publication).await?);
    Ok(done)
}

/// Why a table is not protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unprotected {
    /// `schema.table`, quoted where needed.
    pub table: String,
    /// What is wrong.
    pub problem: String,
}

/// How closely [`unprotected`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look<'a> {
    /// At the triggers: cheap with any number of tables.
    Triggers,
    /// At the definition of every column too.
    Definitions,
    /// Also at what has been since this snapshot.
    Since(&'a str),
}

/// Published tables whose changes are not all logged.
///
/// Some of it (a partition's root, the text of a filter) PostgreSQL says as of now, and everything else as of the statement's
/// beginning, so a table that changes meanwhile seems not to be as noted. Only a table of which two looks say so is not
/// protected.
pub async fn unprotected(sql: &Sql, publication: &str, look: Look<'_>) -> Result<Vec<Unprotected>> {
    let found = unprotected_at_once(sql, publication, look).await?;
    if found.is_empty() {
        return Ok(found);
    }
    Ok(in_both(&found, unprotected_at_once(sql, publication, look).await?))
}

/// The same for the definitions, and whether they could be looked at: the text of a row filter is not to be had while somebody holds
/// its table, longer than the session waits for locks. Then it is the triggers alone.
pub async fn unprotected_unless_locked(sql: &Sql, publication: &str) -> Result<(Vec<Unprotected>, bool)> {
    match unprotected(sql, publication, Look::Definitions).await {
        Err(error) if error.is_locked() => Ok((unprotected(sql, publication, Look::Triggers).await?, false)),
        found => Ok((found?, true)),
    }
}

/// What the second look says of tables that the first one found. It may say something else: a trigger that was disabled then
/// and is enabled now has missed changes all the same.
fn in_both(found: &[Unprotected], mut again: Vec<Unprotected>) -> Vec<Unprotected> {
    let tables: HashSet<&str> = found.iter().map(|found| found.table.as_str()).collect();
    again.retain(|again| tables.contains(again.table.as_str()));
    again
}

async fn unprotected_at_once(sql: &Sql, publication: &str, look: Look<'_>) -> Result<Vec<Unprotected>> {
    let captured = contents::captured(sql.version());
    let statement = format!("WITH published(oid) AS ({captured})
         SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
                CASE WHEN NOT p.published THEN
                         'it has left the publication unnoticed: walcast logtables install'
                     WHEN NOT walcast.is_captured(p.oid) THEN
                         'its triggers are missing or disabled: walcast logtables install'
                     WHEN NOT newest.shape ? 'filter' THEN
                         'its row filter is not noted, or that it has none: walcast logtables install'
                     WHEN CASE WHEN $3 THEN newest.shape IS DISTINCT FROM walcast.shape_of(p.oid) END THEN
                         'its definition has changed unnoticed: walcast logtables install'
                     WHEN EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(newest.shape -> 'columns') a
                                  WHERE a ->> 'generated' = 'v'
                                    AND pg_catalog.strpos(newest.shape ->> 'filter', a ->> 'name') > 0) THEN
                         'its row filter has a virtual generated column, which is not in the log'
                     WHEN $2 <> '' AND NOT coalesce(before.captured, first.created, false) THEN
                         'its changes were not logged from the beginning of the gap'
                     WHEN $2 <> '' AND EXISTS (SELECT FROM walcast.shapes s WHERE s.relid = p.oid AND NOT s.captured
                             AND NOT pg_catalog.pg_visible_in_snapshot(s.xid, NULLIF($2, '')::pg_snapshot)) THEN
                         'its triggers were disabled for a while within the gap, or its definition changed unnoticed' END
         FROM (SELECT p.oid, true FROM published p
               UNION
               SELECT s.relid, false FROM (SELECT DISTINCT ON (h.relid) h.relid, h.shape FROM walcast.shapes h
                                           ORDER BY h.relid, h.id DESC) s
               WHERE (s.shape ->> 'published')::bool AND s.relid NOT IN (SELECT p.oid FROM published p)
                 AND EXISTS (SELECT FROM pg_catalog.pg_publication b WHERE b.pubname = $1)) p(oid, published)
         JOIN pg_catalog.pg_class c ON c.oid = p.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN LATERAL (SELECT s.shape FROM walcast.shapes s WHERE s.relid = p.oid
                            ORDER BY s.id DESC LIMIT 1) newest ON true
         LEFT JOIN LATERAL (SELECT s.created FROM walcast.shapes s WHERE s.relid = p.oid
                            ORDER BY s.id LIMIT 1) first ON true
         LEFT JOIN LATERAL (SELECT s.captured FROM walcast.shapes s WHERE s.relid = p.oid AND $2 <> ''
                            AND pg_catalog.pg_visible_in_snapshot(s.xid, NULLIF($2, '')::pg_snapshot)
                            ORDER BY s.id DESC LIMIT 1) before ON true
         WHERE $1 <> '' ORDER BY 1");
    let since = if let Look::Since(snapshot) = look { snapshot } else { "" };
    let definitions = look != Look::Triggers;
    let mut found = Vec::new();
    for row in sql.query(&statement, &[text(&publication), text(&since), (&definitions, Type::BOOL)]).await? {
        if let Some(problem) = get::<Option<String>>(&row, 1)? {
            found.push(Unprotected { table: get(&row, 0)?, problem });
        }
    }
    let row = sql.optional("SELECT s.publication::text FROM walcast.settings s", &[]).await?;
    let of: Option<String> = row.map(|row| get(&row, 0)).transpose()?;
    if of.as_deref() != Some(publication) {
        found.push(Unprotected {
            table: "every table".into(),
            problem: format!("the log tables are those of publication {:?}", of.unwrap_or_default()),
        });
    }
    Ok(found)
}

/// The log tables as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// The publication that they protect.
    pub publication: String,
    /// Published tables, leaves instead of partitioned ones.
    pub tables: u64,
    /// Those whose changes are not all logged.
    pub unprotected: Vec<Unprotected>,
    /// Whether definitions were compared too: see [`unprotected_unless_locked`].
    pub compared: bool,
    /// Whether later DDL is followed.
    pub follows_ddl: bool,
    /// Bytes of the log on disk.
    pub bytes: u64,
    /// Bytes of each leaf; the one that is written is named by `leaf`.
    pub leaves: Vec<u64>,
    /// Which leaf is being written.
    pub leaf: u16,
    /// Age of the oldest logged change in seconds; `None` when the log is empty.
    pub oldest_seconds: Option<f64>,
}

/// Reads the state. Fails with 42P01 where nothing is installed.
pub async fn status(sql: &Sql) -> Result<Status> {
    let row = sql
        .one(
            "SELECT s.publication::text, s.leaf::int4, (SELECT count(*) FROM walcast.published()),
                    EXISTS (SELECT FROM pg_catalog.pg_event_trigger e
                            WHERE e.evtname = 'walcast_ddl' AND e.evtenabled = 'A'),
                    ARRAY(SELECT pg_catalog.pg_total_relation_size(pg_catalog.format('walcast.log_%s', n)::regclass)
                          FROM pg_catalog.generate_series(0, 2) n),
                    (SELECT extract(epoch FROM now() - min(l.at))::float8 FROM walcast.log l)
             FROM walcast.settings s",
            &[],
        )
        .await?;
    let publication: String = get(&row, 0)?;
    let leaves: Vec<i64> = get(&row, 4)?;
    let leaves: Vec<u64> = leaves.into_iter().map(i64::unsigned_abs).collect();
    let (unprotected, compared) = unprotected_unless_locked(sql, &publication).await?;
    Ok(Status {
        unprotected,
        compared,
        publication,
        leaf: get::<i32>(&row, 1)?.unsigned_abs() as u16,
        tables: get::<i64>(&row, 2)?.unsigned_abs(),
        follows_ddl: get(&row, 3)?,
        bytes: leaves.iter().sum(),
        leaves,
        oldest_seconds: get(&row, 5)?,
    })
}

/// Empties what the snapshot covers; how many leaves that were.
pub async fn prune(sql: &Sql, upto: &str) -> Result<u64> {
    let row = sql.one("SELECT walcast.prune($1::text::pg_snapshot)", &[text(&upto)]).await?;
    if failpoint::planted("prune_too_many") {
        let next = "SELECT 'TRUNCATE walcast.log_' || (leaf + 2) % 3 FROM walcast.settings";
        sql.batch(&get::<String>(&sql.one(next, &[]).await?, 0)?).await?;
    }
    Ok(get::<i32>(&row, 0)?.unsigned_abs().into())
}

/// Removes triggers and log; how many tables had triggers.
pub async fn uninstall(sql: &Sql) -> Result<u64> {
    let rows = sql
        .query(
            "SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, c.relname)
             FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE t.tgname IN ('!walcast', '!walcast_truncate') ORDER BY 1",
            &[],
        )
        .await?;
    let superuser: bool = get(&sql.one("SELECT pg_catalog.current_setting('is_superuser')::bool", &[]).await?, 0)?;
    sql.batch("SET client_min_messages = warning").await?;
    if superuser {
        sql.batch("DROP EVENT TRIGGER IF EXISTS walcast_ddl").await?;
    }
    for row in &rows {
        let table: &str = get(row, 0)?;
        sql.batch(&format!(
            "DROP TRIGGER IF EXISTS \"!walcast\" ON {table}; DROP TRIGGER IF EXISTS \"!walcast_truncate\" ON {table}"
        ))
        .await?;
    }
    sql.batch(&format!("DROP SCHEMA IF EXISTS {OWN_SCHEMA} CASCADE")).await?;
    Ok(rows.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_two_looks_find_is_unprotected_whatever_they_say_of_it() {
        let of = |table: &str, problem: &str| Unprotected { table: table.into(), problem: problem.into() };
        let first = [of("joined", "no trigger"), of("t", "its triggers are disabled"), of("u", "no filter")];
        let again = vec![of("later", "no trigger"), of("t", "they were disabled for a while"), of("u", "no filter")];
        assert_eq!(in_both(&first, again.clone()), again[1..]);
    }
}
