//! What must be known of a published table to read its rows: how it is stored, which rows and columns the publication
//! lets out, which key orders it, and whether it may be read at all.

use std::fmt::Write;

use tokio_postgres::types::Type;

use super::{
    error::{Error, Result},
    publication::{self, OWN_SCHEMA},
    replication::{identifier, literal},
    server,
    sql::{Sql, get, text},
};
use crate::{
    lsn::Lsn,
    model::{Column, Relation, Visibility},
};

/// A published table as it is in the present transaction's snapshot.
#[derive(Clone, Debug)]
pub struct Table {
    /// As the stream would describe it; `id` 0.
    pub relation: Relation,
    /// It has partitions, and the publication names it and not them.
    pub partitioned: bool,
    /// The role may read it.
    pub readable: bool,
    /// Row security would hide rows from the role.
    pub guarded: bool,
    /// Rows, by the last ANALYZE or else by the size.
    pub estimated_rows: i64,
    /// Bytes on disk, without TOAST and indexes; of a partitioned table those of all partitions.
    pub bytes: i64,
    /// The publication's row filter, as an SQL condition.
    pub row_filter: Option<String>,
    /// A condition that holds for every row that is wanted. Those for which it does not are not read.
    pub wanted: Option<String>,
    /// The database's encoding is UTF8.
    pub utf8: bool,
    /// Columns that identify a row in the changes too: of the replica identity's index or the primary key. Empty if there
    /// are none.
    pub key: Vec<String>,
    /// Columns, by their number, of which nobody wants the values: they read as NULL.
    pub unread: Vec<usize>,
    /// Where the rows are: the table itself, or its partitions, as quoted names with their number of pages. Empty where the role may
    /// not read partitions, although it may read their root.
    pub parts: Vec<(String, i64)>,
}

impl Table {
    /// `"schema"."table"`.
    pub fn quoted(&self) -> String {
        quoted(&self.relation.schema, &self.relation.table)
    }

    /// `SELECT` of the published columns in the relation's order. `part`: from one of [`Table::parts`]; `None`: all.
    pub fn select(&self, part: Option<&str>, conditions: &[String]) -> String {
        let column = |(number, column): (usize, &Column)| match self.unread.contains(&number) {
            true => "NULL".to_owned(),
            false => identifier(&column.name),
        };
        let columns: Vec<String> = self.relation.columns.iter().enumerate().map(column).collect();
        let mut query = format!("SELECT {} FROM ", columns.join(", "));
        let _ = match part {
            Some(part) => write!(query, "ONLY {part}"),
            None if self.partitioned => write!(query, "{}", self.quoted()),
            None => write!(query, "ONLY {}", self.quoted()),
        };
        let filters = self.row_filter.iter().chain(&self.wanted);
        let all = filters.chain(conditions).map(|condition| format!("({condition})"));
        let all: Vec<String> = all.collect();
        if !all.is_empty() {
            let _ = write!(query, " WHERE {}", all.join(" AND "));
        }
        query
    }

    /// Whether rows are left out when it is read. Then a number of rows that come says nothing of how many are looked at.
    pub fn filtered(&self) -> bool {
        self.row_filter.is_some() || self.wanted.is_some()
    }

    /// At most `limit` rows behind the key `after` (empty: from the beginning), in key order.
    pub fn select_chunk(&self, after: &[String], limit: usize) -> String {
        let conditions: Vec<String> = self.behind(after, ">").into_iter().collect();
        format!("{} ORDER BY {} LIMIT {limit}", self.select(None, &conditions), self.key_list())
    }

    /// The key at which a chunk of `limit` rows behind `after` ends, rows counted that are left out; no row if the table ends
    /// before it.
    pub fn select_boundary(&self, after: &[String], limit: usize) -> String {
        let (key, only) = (self.key_list(), if self.partitioned { "" } else { "ONLY " });
        let condition = self.behind(after, ">").map_or_else(String::new, |condition| format!(" WHERE {condition}"));
        let offset = limit.saturating_sub(1);
        format!("SELECT {key} FROM {only}{}{condition} ORDER BY {key} OFFSET {offset} LIMIT 1", self.quoted())
    }

    /// The rows behind the key `after` (empty: from the beginning) up to and including `to` (empty: to the end), in key order.
    pub fn select_between(&self, after: &[String], to: &[String]) -> String {
        let conditions: Vec<String> = self.behind(after, ">").into_iter().chain(self.behind(to, "<=")).collect();
        format!("{} ORDER BY {}", self.select(None, &conditions), self.key_list())
    }

    fn key_list(&self) -> String {
        let key: Vec<String> = self.key.iter().map(|column| identifier(column)).collect();
        key.join(", ")
    }

    fn behind(&self, key: &[String], operator: &str) -> Option<String> {
        let values: Vec<String> = key.iter().map(|value| literal(value)).collect();
        (!key.is_empty()).then(|| format!("({}) {operator} ({})", self.key_list(), values.join(", ")))
    }
}

/// `"schema"."table"`.
pub fn quoted(schema: &str, table: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(table))
}

/// A prepared statement of this name whose answer is another one whenever [`tables`] would say something else of a table that
/// matters to how its rows are read and understood. It is asked with every chunk, so it looks up rows of catalogues by
/// key instead of listing what is published, and takes no lock on the table. See [`execute_likeness`].
pub fn prepare_likeness(name: &str, version: u32) -> String {
    let schemas = match version {
        150_000.. => {
            "(SELECT string_agg(s.pnnspid::text, ',' ORDER BY s.pnnspid) FROM pg_publication_namespace s
              WHERE s.pnpubid = p.oid)"
        }
        _ => "''",
    };
    format!(
        "PREPARE {name} (oid, text) AS
         SELECT concat_ws(';', has_table_privilege($1, 'SELECT'),
             (SELECT string_agg((c.oid, c.relname, n.nspname, c.relkind, c.relreplident)::text, ',' ORDER BY c.oid)
              FROM (SELECT $1 AS oid UNION SELECT a.relid FROM pg_partition_ancestors($1) a) x
              JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace),
             (SELECT string_agg((a.attnum, a.attname, a.atttypid, y.typname, n.nspname, a.atttypmod, a.attgenerated)::text, ','
                                ORDER BY a.attnum)
              FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid JOIN pg_namespace n ON n.oid = y.typnamespace
              WHERE a.attrelid = $1 AND a.attnum > 0),
             (SELECT string_agg(i::text, ',' ORDER BY i.indexrelid) FROM pg_index i WHERE i.indrelid = $1),
             (SELECT concat_ws(';', p::text, {schemas},
                  (SELECT string_agg(r::text, ',' ORDER BY r.oid) FROM pg_publication_rel r
                   WHERE r.prpubid = p.oid
                     AND r.prrelid IN (SELECT $1 UNION SELECT a.relid FROM pg_partition_ancestors($1) a)))
              FROM pg_publication p WHERE p.pubname = $2))"
    )
}

/// Runs what [`prepare_likeness`] has prepared, for one table.
pub fn execute_likeness(name: &str, publication: &str, oid: u32) -> String {
    format!("EXECUTE {name} ({oid}, {})", literal(publication))
}

/// These published tables, as the connection's present snapshot shows them. Those that are not published are left out.
pub async fn tables(sql: &Sql, publication: &str, names: &[(String, String)]) -> Result<Vec<Table>> {
    let relations = publication::relations(sql, publication, names).await?;
    let row_filter = if sql.version() >= 150_000 { "t.rowfilter" } else { "NULL::text" };
    let statement = format!(
        "SELECT c.oid, c.relkind = 'p', pg_catalog.has_table_privilege(c.oid, 'SELECT'), {row_filter},
                (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
                 FROM pg_catalog.pg_index i
                 CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 WHERE i.indrelid = c.oid AND i.indisvalid AND k.place <= i.indnkeyatts
                   AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
                p.names, p.pages, p.bytes, p.tuples, pg_catalog.current_setting('server_encoding') = 'UTF8',
                pg_catalog.row_security_active(c.oid), p.open
         FROM pg_catalog.pg_publication_tables t
         JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
         CROSS JOIN LATERAL (
             SELECT pg_catalog.array_agg(pg_catalog.format('%I.%I', ln.nspname, l.relname) ORDER BY l.oid) AS names,
                    pg_catalog.array_agg(pg_catalog.pg_relation_size(l.oid)
                                         / pg_catalog.current_setting('block_size')::int8 ORDER BY l.oid) AS pages,
                    coalesce(sum(pg_catalog.pg_relation_size(l.oid)), 0)::int8 AS bytes,
                    coalesce(sum(CASE WHEN l.reltuples > 0 THEN l.reltuples::float8
                                      ELSE pg_catalog.pg_relation_size(l.oid) / 100 END), 0)::int8 AS tuples,
                    bool_and(pg_catalog.has_table_privilege(l.oid, 'SELECT')
                             AND NOT pg_catalog.row_security_active(l.oid)) AS open
             FROM pg_catalog.pg_class l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
             WHERE l.oid = c.oid AND c.relkind = 'r'
                OR c.relkind = 'p' AND l.oid IN (SELECT x.relid FROM pg_catalog.pg_partition_tree(c.oid) x WHERE x.isleaf)
                   AND l.relkind = 'r') p
         WHERE t.pubname = $1 AND t.schemaname <> $2 AND (t.schemaname::text, t.tablename::text) IN
               (SELECT * FROM unnest($3::text[], $4::text[]))"
    );
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().map(|(s, t)| (s.as_str(), t.as_str())).unzip();
    let params = [text(&publication), text(&OWN_SCHEMA), (&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY)];
    let mut rows = std::collections::HashMap::new();
    for row in sql.query(&statement, &params).await? {
        rows.insert(get::<u32>(&row, 0)?, row);
    }
    let mut found = Vec::new();
    for relation in relations {
        let Some(row) = rows.get(&relation.oid) else { continue };
        let mut key: Vec<String> = get::<Option<Vec<String>>>(row, 4)?.unwrap_or_default();
        if !key.iter().all(|name| relation.columns.iter().any(|column| column.name == *name)) {
            key.clear();
        }
        let open = get::<Option<bool>>(row, 11)?.unwrap_or(false);
        let parts: Vec<String> = get::<Option<Vec<String>>>(row, 5)?.filter(|_| open).unwrap_or_default();
        let pages: Vec<i64> = get::<Option<Vec<i64>>>(row, 6)?.unwrap_or_default();
        found.push(Table {
            relation,
            partitioned: get(row, 1)?,
            readable: get::<Option<bool>>(row, 2)?.unwrap_or(false),
            guarded: get::<Option<bool>>(row, 10)?.unwrap_or(false),
            row_filter: get(row, 3)?,
            wanted: None,
            utf8: get(row, 9)?,
            key,
            unread: Vec::new(),
            parts: parts.into_iter().zip(pages).collect(),
            bytes: get(row, 7)?,
            estimated_rows: get(row, 8)?,
        });
    }
    found.sort_by_cached_key(|table| table.relation.qualified_name());
    Ok(found)
}

/// What kind of relation this is, when it is one: `view`, `materialized view`, `foreign table`, ...
pub async fn kind(sql: &Sql, schema: &str, name: &str) -> Result<Option<String>> {
    let statement =
        "SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                            WHEN 'p' THEN 'partitioned table' WHEN 'r' THEN 'table' ELSE 'relation' END
                     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = $1 AND c.relname = $2";
    let row = sql.optional(statement, &[text(&schema), text(&name)]).await?;
    row.map(|row| get(&row, 0)).transpose()
}

/// Begins a transaction whose snapshot is taken by its first query, after these tables (quoted) are locked against
/// `TRUNCATE` and rewrites: both make an older snapshot read nothing, silently.
pub async fn begin_locked(sql: &Sql, tables: &[String]) -> Result<()> {
    sql.batch(&begin_locked_statements(tables)).await
}

/// What [`begin_locked`] runs.
pub fn begin_locked_statements(tables: &[String]) -> String {
    let mut statements = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;".to_owned();
    if !tables.is_empty() {
        let _ = write!(statements, "LOCK TABLE {} IN ACCESS SHARE MODE;", tables.join(", "));
    }
    statements
}

/// The snapshot of the present transaction, and where the WAL ended after it was taken.
pub async fn snapshot(sql: &Sql) -> Result<(Visibility, Lsn)> {
    Ok((server::current_snapshot(sql).await?, server::wal_positions(sql).await?.insert))
}

/// Lets other transactions see what this one sees
/// ([snapshot synchronization](https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION)).
pub async fn export_snapshot(sql: &Sql) -> Result<String> {
    get(&sql.one("SELECT pg_catalog.pg_export_snapshot()", &[]).await?, 0)
}

/// Begins a transaction that sees what the exporting one sees, with the same locks, or an error instead of waiting for them.
pub fn begin_with_statements(exported: &str, tables: &[String]) -> String {
    let exported = literal(exported);
    let mut statements =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {exported};");
    if !tables.is_empty() {
        let _ = write!(statements, "LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT;", tables.join(", "));
    }
    statements
}

/// Writes a logical message between transactions, and has it flushed: it would otherwise come when something else is. Before
/// PostgreSQL 17 a message cannot ask for that, but the commit of a transaction with another message does.
pub async fn emit_mark(sql: &Sql, prefix: &str, content: &str) -> Result<()> {
    let (prefix, content) = (literal(prefix), literal(content));
    let statement = match sql.version() {
        170_000.. => format!("SELECT pg_catalog.pg_logical_emit_message(false, {prefix}, {content}, true)"),
        _ => format!(
            "BEGIN; SET LOCAL synchronous_commit = local;
             SELECT pg_catalog.pg_logical_emit_message(false, {prefix}, {content});
             SELECT pg_catalog.pg_logical_emit_message(true, {}, '');
             COMMIT",
            literal("walcast.flush")
        ),
    };
    sql.batch(&statement).await
}

/// `pg_control_system().system_identifier`, and the timeline to which a primary writes. On a standby the server refuses (55000).
pub async fn identity(sql: &Sql) -> Result<(u64, u32)> {
    let statement = "SELECT system_identifier, pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())
                     FROM pg_catalog.pg_control_system()";
    let row = sql.one(statement, &[]).await?;
    let file: &str = get(&row, 1)?;
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let timeline = timeline.ok_or_else(|| Error::Protocol(format!("{file:?} as the name of a WAL file")))?;
    Ok((get::<i64>(&row, 0)? as u64, timeline))
}

/// The timeline and the system identifier of a primary as one text; no row on a standby.
pub const PLACE: &str = "SELECT pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
                                || ' ' || system_identifier
                         FROM pg_catalog.pg_control_system() WHERE NOT pg_catalog.pg_is_in_recovery()";

/// A commit that waits for a synchronous standby, or a session of which that cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingCommit {
    /// Of its process.
    pub pid: i32,
    /// Its transaction, without the epoch; `None` of a COMMIT PREPARED.
    pub xid: Option<u32>,
    /// The role may not see what the session does.
    pub hidden: bool,
}

/// Commits that wait for a synchronous standby at this time. Sessions of which that cannot be told are among them where synchronous
/// replication is on, or `was`: when it is turned off, sessions hear of it before those that wait are let go, by the
/// [checkpointer](https://github.com/postgres/postgres/blob/master/src/backend/replication/syncrep.c), which may be busy.
pub async fn waiting_commits(sql: &Sql, was: bool) -> Result<Vec<WaitingCommit>> {
    let statement = "SELECT a.pid, a.backend_xid::text, a.query = '<insufficient privilege>'
                     FROM pg_catalog.pg_stat_activity a
                     WHERE a.pid <> pg_catalog.pg_backend_pid()
                       AND (a.wait_event = 'SyncRep'
                            OR a.query = '<insufficient privilege>'
                               AND ($1 OR pg_catalog.current_setting('synchronous_standby_names') <> ''))";
    let rows = sql.query(statement, &[(&was, Type::BOOL)]).await?;
    let commit = |row: &tokio_postgres::Row| {
        let xid = get::<Option<&str>>(row, 1)?.and_then(|xid| xid.parse().ok());
        Ok(WaitingCommit { pid: get(row, 0)?, xid, hidden: get::<Option<bool>>(row, 2)?.unwrap_or(false) })
    };
    rows.iter().map(commit).collect()
}
