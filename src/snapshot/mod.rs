//! Rows that are already in the tables, for one subscriber's stream, without a slot of its own.
//!
//! The journal has the ids of all transactions. So a snapshot needs nothing of the replication machinery: whether a
//! transaction is in the rows is decided by [`Visibility`](crate::model::Visibility), and exactly those that are not are
//! delivered. A rule by LSN alone cannot be exact, since commits become visible in another order than their records are
//! written ([ProcArrayEndTransaction](https://github.com/postgres/postgres/blob/master/src/backend/access/transam/README)).
//! A temporary slot could give such an LSN, but waits for every transaction that is open at the time; where that very wait is what is
//! needed, one is made and dropped (`barrier`).
//!
//! - [`consistent`]: one exported snapshot, several connections, COPY by ranges of pages.
//! - [`incremental`]: chunks by key, each with a snapshot of its own, between marks in the journal.

mod ahead;
mod barrier;
mod consistent;
mod encoder;
mod incremental;
mod moved;
mod pacer;
mod pages;
mod scan;
mod stuck;
mod touched;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    failpoint,
    feed::{BoxFuture, Feed, MARK_PREFIX, Snapshot, SnapshotError, SnapshotMode, SnapshotRequest, Snapshots},
    lsn::Lsn,
    model::{Column, LineageId, Operation, Position, Relation, RelationId, Visibility},
    postgres::{
        self,
        conninfo::ConnectOptions,
        copier::Copier,
        copy,
        database::Database,
        publication, server,
        sql::Sql,
        table::{self, Table},
    },
    reason::{Classified, Reason},
    selection::Selection,
    wire::token::Handover,
};

/// Tables that together are larger than this are read incrementally if nobody asks for a mode.
const LARGE: i64 = 1 << 30;
/// How long the journal may take to reach a place in the WAL that has been flushed, where that is waited for.
const JOURNAL_LAG: Duration = Duration::from_secs(60);
/// Attempts at locking a set of tables that changes meanwhile.
const ATTEMPTS: usize = 5;
/// Numbers of relation versions that only a snapshot has seen; the journal's own stay far below.
static NEXT_LOCAL_ID: AtomicU32 = AtomicU32::new(0x4000_0000);

/// Reads rows of one source. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    connect: ConnectOptions,
    publication: String,
    database: PathBuf,
    feed: Arc<dyn Feed>,
    patience: Patience,
}

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a client to take more of a snapshot. A consistent one, which holds a transaction open, then ends; an incremental one rests.
    pub idle: Duration,
    /// For commits that nobody sees yet to be released.
    pub settle: Duration,
}

impl Exporter {
    /// `connect` and `publication`: those of the slot that fills `feed`. `database`: the file that says of which database it is.
    pub fn new(
        connect: ConnectOptions,
        publication: &str,
        database: PathBuf,
        feed: Arc<dyn Feed>,
        patience: Patience,
    ) -> Self {
        Exporter { connect, publication: publication.to_owned(), database, feed, patience }
    }

    /// A session on the primary whose changes are in the journal, whose snapshots miss nothing that the journal does not have.
    async fn session(&self) -> Result<Session, SnapshotError> {
        let mut session = self.connected().await?;
        session.needed = self.settled(&session).await?;
        Ok(session)
    }

    /// A session on the primary whose changes are in the journal. After a failover the old one may still answer, and be the
    /// first in the list.
    async fn connected(&self) -> Result<Session, SnapshotError> {
        let mut failed = away("the connection string names no server");
        for host in &self.connect.hosts {
            match self.session_at(&self.connect.only(host)).await {
                Err(error) if error.reason == Reason::SourceUnavailable => failed = error,
                outcome => return outcome,
            }
        }
        Err(failed)
    }

    async fn session_at(&self, connect: &ConnectOptions) -> Result<Session, SnapshotError> {
        let lineage = self.feed.lineage().ok_or_else(|| away("the hub has never been connected to its source"))?;
        let sql = copy::connect(connect).await.map_err(refused)?;
        let mut session = Session { sql, lineage: lineage.id(), place: Vec::new(), needed: Position::default() };
        let sql = &session.sql;
        if server::in_recovery(sql).await.map_err(refused)? {
            return Err(away("the server is a standby, whose snapshots do not list what runs on the primary"));
        }
        let (system_identifier, timeline) = table::identity(sql).await.map_err(refused)?;
        if system_identifier != lineage.system_identifier {
            return Err(away("the server is another cluster than the journal's"));
        }
        if let Some(noted) = Database::noted(&self.database) {
            let here = Database::of(sql, system_identifier).await.map_err(refused)?;
            if let Some(why) = here.refusal(&noted) {
                return Err(away(&why));
            }
        }
        if timeline != lineage.timeline {
            let journal = lineage.timeline;
            return Err(away(&format!("the server is on timeline {timeline}, and the journal on timeline {journal}")));
        }
        session.place = format!("{timeline:08X} {}", system_identifier as i64).into_bytes();
        Ok(session)
    }

    /// A session that only copies rows, on the server that the other one is on.
    async fn copier(&self, session: &Session) -> Result<Copier, SnapshotError> {
        failpoint::hit("snapshot_copier");
        let mut copier = Copier::beside(&session.sql, &self.connect).await.map_err(refused)?;
        let place = copier.run(table::PLACE).await.map_err(refused)?;
        if place.first().and_then(|row| row.first()) != Some(&Some(session.place.clone())) {
            return Err(away("the server has failed over while a session was opened"));
        }
        Ok(copier)
    }

    /// The published tables of which the selection wants rows, by name, as the session sees them now.
    async fn selected(&self, sql: &Sql, selection: &Selection) -> Result<Vec<Table>, SnapshotError> {
        let names = publication::published_tables(sql, &self.publication).await.map_err(refused)?;
        let described = table::tables(sql, &self.publication, &names).await.map_err(refused)?;
        let mut selected = Vec::new();
        for table in described {
            selected.extend(wanted(table, selection)?);
        }
        Ok(selected)
    }

    /// Tables that are locked, the snapshot that is taken then, and everything that follows from it. `wanted`: the tables as they
    /// were just now.
    async fn lock(
        &self,
        session: Session,
        mut wanted: Vec<Table>,
        selection: &Selection,
    ) -> Result<Locked, SnapshotError> {
        let sql = &session.sql;
        for _ in 0..ATTEMPTS {
            readable(&wanted, sql).await?;
            let names: Vec<String> = wanted.iter().map(Table::quoted).collect();
            match table::begin_locked(sql, &names).await {
                Ok(()) => {}
                // Dropped or renamed since it was listed.
                Err(error) if error.sqlstate() == Some("42P01") => {
                    sql.batch("ROLLBACK").await.map_err(refused)?;
                    wanted = self.selected(sql, selection).await?;
                    continue;
                }
                Err(error) => return Err(refused(error)),
            }
            let (seen, until) = table::snapshot(sql).await.map_err(refused)?;
            let found = self.selected(sql, selection).await?;
            if found.iter().map(Table::quoted).eq(names) {
                return Ok(Locked { session, tables: found, seen, until });
            }
            sql.batch("ROLLBACK").await.map_err(refused)?;
            wanted = found;
        }
        Err(SnapshotError::new(
            Reason::SnapshotInterrupted,
            "tables are created or dropped faster than they can be locked",
        ))
    }

    /// Waits until the journal holds everything that was written before `until`.
    async fn journaled(&self, until: Lsn) -> Result<(), SnapshotError> {
        match self.reaches(|tail| tail.lsn >= until).await {
            true => Ok(()),
            false => Err(away(&format!("the journal has not reached {until} within {} s", JOURNAL_LAG.as_secs()))),
        }
    }

    /// Waits until the journal's tail is on this lineage. How far it is behind the source does not matter: it needs not hold
    /// what the snapshot sees, only what it does not see, and that comes when the stream gets there.
    async fn follows(&self, lineage: LineageId) -> Result<(), SnapshotError> {
        match self.reaches(|tail| tail.lineage == lineage).await {
            true => Ok(()),
            false => Err(away("what comes from before the failover has not been recovered yet")),
        }
    }

    async fn reaches(&self, place: impl Fn(Position) -> bool) -> bool {
        let mut marks = self.feed.marks();
        let reached = tokio::time::timeout(JOURNAL_LAG, marks.wait_for(|marks| place(marks.tail))).await;
        matches!(reached, Ok(Ok(_)))
    }

    /// A session that has written a mark. A commit is seen before it is flushed, if its session does not wait for that. Flushed, it is
    /// lost with the server only, which is a failover for the stream.
    async fn marked(&self, lineage: LineageId) -> Result<Session, SnapshotError> {
        failpoint::hit("snapshot_seen");
        let marker = self.connected().await?;
        table::emit_mark(&marker.sql, MARK_PREFIX, "begin").await.map_err(refused)?;
        self.follows(lineage).await?;
        Ok(marker)
    }

    /// The number of this relation version: the journal's, if it has seen it.
    fn numbered(&self, relation: &Relation) -> Arc<Relation> {
        match self.feed.relations().into_iter().rev().find(|known| known.same_version(relation)) {
            Some(known) => known,
            None => {
                let id = RelationId(NEXT_LOCAL_ID.fetch_add(1, Ordering::Relaxed));
                Arc::new(Relation { id, ..relation.clone() })
            }
        }
    }

    async fn run(&self, request: SnapshotRequest) -> Result<Snapshot, SnapshotError> {
        let session = self.session().await?;
        let Session { lineage, needed, .. } = session;
        // Whatever takes long is done before a transaction is open. What this snapshot sees, a later one sees too, so rows that come of
        // that one can begin at the same place.
        self.follows(lineage).await?;
        let (seen, until) = table::snapshot(&session.sql).await.map_err(refused)?;
        let start = scan::before(&*self.feed, &seen, until).await?;
        let reservation = self.feed.reserve(start);
        let found = self.selected(&session.sql, &request.selection).await?;
        let resumed = request.resume.as_ref().is_some_and(|progress| progress.incremental);
        let mode = match request.mode {
            _ if resumed => SnapshotMode::Incremental,
            Some(mode) => mode,
            None => default_mode(&found),
        };
        let begun = match mode {
            SnapshotMode::Consistent => {
                let locked = self.lock(session, found, &request.selection).await?;
                let marked = tokio::time::timeout(self.patience.idle, self.marked(lineage)).await;
                let late = |_| interrupted("a consistent snapshot could not begin within limits.snapshot_idle");
                (locked.seen.clone(), locked.until, listed(&locked.tables), marked.map_err(late)??, Some(locked))
            }
            // Chunks have snapshots and locks of their own.
            SnapshotMode::Incremental => {
                readable(&found, &session.sql).await?;
                if let Some(table) = found.iter().find(|table| table.key.is_empty()) {
                    return Err(no_key(table));
                }
                let mut tables: Vec<Table> = found;
                tables.sort_unstable_by_key(|table| table.relation.oid);
                (seen, until, listed(&tables), self.marked(lineage).await?, None)
            }
        };
        let (seen, until, tables, marker, locked) = begun;
        if self.feed.window().is_behind(needed) || self.feed.window().is_behind(start) {
            return Err(interrupted("the journal has left behind what the rows may lack while the snapshot began"));
        }
        let tail = self.feed.marks().borrow().tail;
        if [start.lineage, marker.lineage, tail.lineage] != [lineage; 3] {
            return Err(interrupted("the source has failed over while the snapshot began"));
        }
        let mut progress = request.resume.clone().unwrap_or_default();
        let restarted = request.resume.as_ref().is_some_and(|progress| progress.id != 0) && !resumed;
        if !resumed {
            let (tables, predicate) = (std::mem::take(&mut progress.tables), std::mem::take(&mut progress.predicate));
            progress = crate::wire::token::Progress {
                id: fastrand::u64(1..),
                incremental: mode == SnapshotMode::Incremental,
                max_rows_per_second: request.max_rows_per_second,
                tables,
                predicate,
                ..Default::default()
            };
        }
        let run = fastrand::u64(1..);
        tracing::info!(
            id = format!("{:016x}", progress.id), ?mode, tables = tables.len(), resumed, restarted,
            %seen, %until, %start, "snapshot begins"
        );
        let rows: Box<dyn crate::feed::Rows> = match locked {
            Some(locked) => {
                drop(marker);
                let held = consistent::Held { reservation, permit: request.permit };
                Box::new(consistent::start(self, locked, held, progress.max_rows_per_second).await?)
            }
            None => {
                let order = ahead::Order { exporter: self.clone(), selection: request.selection, pause: request.pause };
                let (place, marker) = (incremental::Place::new(request.permit), Some((marker, start)));
                Box::new(incremental::start(order, place, marker, run, progress.clone(), reservation))
            }
        };
        let handover = Handover { lineage, until, seen };
        Ok(Snapshot { id: progress.id, mode, tables, restarted, start, handover, progress, run, rows })
    }
}

impl Snapshots for Exporter {
    fn begin(&self, request: SnapshotRequest) -> BoxFuture<'_, Result<Snapshot, SnapshotError>> {
        Box::pin(self.run(request))
    }

    fn refusal<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Option<SnapshotError>> {
        Box::pin(async move {
            let (schema, name) = table.split_once('.')?;
            let kind = table::kind(&self.connected().await.ok()?.sql, schema, name).await.ok()??;
            if matches!(kind.as_str(), "table" | "partitioned table") {
                return None;
            }
            let message = format!("{table} is a {kind}: it has no changes of its own; name the tables behind it");
            Some(SnapshotError::new(Reason::SnapshotImpossible, message).with("table", table))
        })
    }
}

/// Names and estimated rows.
fn listed(tables: &[Table]) -> Vec<(String, i64)> {
    tables.iter().map(|table| (table.relation.qualified_name(), table.estimated_rows)).collect()
}

/// Which mode it is if nobody says.
fn default_mode(tables: &[Table]) -> SnapshotMode {
    match tables.iter().map(|table| table.bytes).sum::<i64>() > LARGE {
        true => SnapshotMode::Incremental,
        false => SnapshotMode::Consistent,
    }
}

/// A session that hangs up when it is no longer needed, whatever the server is sending.
struct Session {
    sql: Sql,
    /// The journal's that the server was found to be on.
    lineage: LineageId,
    /// What [`table::PLACE`] gave.
    place: Vec<u8>,
    /// What the journal must have for its snapshots to miss nothing: everything behind this ([`Exporter::settled`]).
    needed: Position,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sql.hang_up();
    }
}

/// An open transaction that holds its tables.
struct Locked {
    session: Session,
    tables: Vec<Table>,
    seen: Visibility,
    until: Lsn,
}

/// The table as the selection wants it, if it wants rows of it: without the values that nobody looks at, and without the
/// rows of which PostgreSQL can tell that nobody wants them.
fn wanted(mut table: Table, selection: &Selection) -> Result<Option<Table>, SnapshotError> {
    let plan = selection.relation(&table.relation).map_err(|error| SnapshotError {
        reason: error.reason(),
        message: error.to_string(),
        metadata: error.metadata(),
    })?;
    if !plan.passes(Operation::Read) {
        return Ok(None);
    }
    if let Some(columns) = &plan.columns {
        let read = plan.predicate.iter().flat_map(|predicate| predicate.compiled().columns()).collect::<Vec<_>>();
        let unread = |(number, column): &(usize, &Column)| {
            !columns[*number] && !read.contains(number) && !table.key.contains(&column.name)
        };
        let unread = table.relation.columns.iter().enumerate().filter(unread).map(|(number, _)| number);
        table.unread = unread.collect();
    }
    table.wanted = plan.predicate.as_ref().and_then(|predicate| predicate.compiled().to_sql(table.utf8));
    Ok(Some(table))
}

/// Every table can be read by the role, and all of its rows.
async fn readable(tables: &[Table], sql: &Sql) -> Result<(), SnapshotError> {
    let Some(table) = tables.iter().find(|table| !table.readable || table.guarded) else { return Ok(()) };
    let role = sql.one("SELECT pg_catalog.quote_ident(current_user)", &[]).await.map_err(refused)?;
    let role: String = role.try_get(0).map_err(|error| refused(error.into()))?;
    let name = table.relation.qualified_name();
    let (what, grant) = match table.readable {
        false => ("the hub's role may not read table", format!("GRANT SELECT ON {} TO {role}", table.quoted())),
        true => ("row security would hide rows from the hub's role in table", format!("ALTER ROLE {role} BYPASSRLS")),
    };
    let message = format!("{what} {name}: {grant}");
    Err(SnapshotError::new(Reason::PermissionDenied, message).with("table", name).with("grant", grant))
}

fn no_key(table: &Table) -> SnapshotError {
    let name = table.relation.qualified_name();
    let message = format!(
        "table {name} has neither a primary key nor a replica identity index whose columns are published (and in the replica \
         identity of each of its partitions): it cannot be read in chunks, ask for the consistent mode"
    );
    SnapshotError::new(Reason::SnapshotImpossible, message).with("table", name)
}

fn away(message: &str) -> SnapshotError {
    SnapshotError::new(Reason::SourceUnavailable, message)
}

fn interrupted(message: impl Into<String>) -> SnapshotError {
    SnapshotError::new(Reason::SnapshotInterrupted, message)
}

/// An error of PostgreSQL's while rows are read.
fn refused(error: postgres::Error) -> SnapshotError {
    let reason = match error.sqlstate() {
        Some("42501") => Reason::PermissionDenied,
        // Lock timeout, undefined table or column, deadlock, snapshot too old or lost; the statement cancelled, by its timeout too; the
        // session ended by an operator, by a shutdown or by a crash.
        Some("55P03" | "42P01" | "42703" | "40P01" | "72000" | "42704" | "22023" | "57014" | "57P01" | "57P02") => {
            Reason::SnapshotInterrupted
        }
        _ => error.reason(),
    };
    SnapshotError::new(reason, format!("reading rows: {error}"))
}
