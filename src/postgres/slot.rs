//! Replication slots as [`pg_replication_slots`](https://www.postgresql.org/docs/current/view-pg-replication-slots.html)
//! shows them. A slot is created over a replication connection:
//! [`Replication::create_slot`](super::replication::Replication::create_slot).

use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::{
    error::{Error, Result},
    server::lsn,
    sql::{Sql, get, text},
};
use crate::lsn::Lsn;

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Slot name.
    pub name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Dropped at the end of the session that made it.
    pub temporary: bool,
    /// Server process that streams from it now.
    pub active_pid: Option<i32>,
    /// Oldest WAL that it needs; `None` when invalidated or never used.
    pub restart_lsn: Option<Lsn>,
    /// What its consumer has confirmed: decoding goes on with transactions that commit after this.
    pub confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` while nothing is reserved.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before it can be lost; `None` without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
    /// Decodes prepared transactions at PREPARE.
    pub two_phase: bool,
    /// Kept in step on standbys; `None` before PostgreSQL 17.
    pub failover: Option<bool>,
    /// Kept in step with the primary's, or was until the server was promoted; `None` before PostgreSQL 17.
    pub synced: Option<bool>,
    /// Why it cannot be used any more; always `None` before PostgreSQL 17.
    pub invalidation_reason: Option<String>,
    /// WAL bytes that it holds back on this server.
    pub retained_bytes: u64,
}

#[cfg(test)]
impl SlotState {
    /// A good one of database shop that nobody reads, has WAL from 0/50 and has confirmed 0/64.
    pub(crate) fn example() -> SlotState {
        SlotState {
            name: "walcast".into(),
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            temporary: false,
            active_pid: None,
            restart_lsn: Some(Lsn(80)),
            confirmed_flush: Some(Lsn(100)),
            wal_status: Some("reserved".into()),
            safe_wal_size: None,
            two_phase: false,
            failover: None,
            synced: None,
            invalidation_reason: None,
            retained_bytes: 0,
        }
    }
}

impl SlotState {
    /// Whether it can never be streamed from again.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }
}

/// The slot of this name, if there is one.
pub async fn state(sql: &Sql, name: &str) -> Result<Option<SlotState>> {
    let found = read(sql, "WHERE s.slot_name = $1", &[text(&name)]).await?;
    Ok(found.into_iter().next())
}

/// Every slot of the server, physical ones too, by name.
pub async fn list(sql: &Sql) -> Result<Vec<SlotState>> {
    read(sql, "ORDER BY s.slot_name", &[]).await
}

/// A server process and when it began: pids are used again.
pub(super) const BACKEND: &str = "SELECT pg_catalog.concat_ws(' ', a.pid, extract(epoch FROM a.backend_start)::text)
                                  FROM pg_catalog.pg_stat_activity a WHERE a.backend_start IS NOT NULL AND a.pid =";

/// A server process and when it began; `None` when it is gone or not visible to this role.
pub async fn backend(sql: &Sql, pid: i32) -> Result<Option<String>> {
    let row = sql.optional(&format!("{BACKEND} $1"), &[(&pid, tokio_postgres::types::Type::INT4)]).await?;
    row.map(|row| get(&row, 0)).transpose()
}

/// Ends a server process of this role that holds a slot, and waits until the slot is free or `patience` is over.
pub async fn release(sql: &Sql, name: &str, pid: i32, patience: Duration) -> Result<()> {
    sql.query("SELECT pg_catalog.pg_terminate_backend($1)", &[(&pid, tokio_postgres::types::Type::INT4)]).await?;
    let begun = Instant::now();
    while begun.elapsed() < patience && state(sql, name).await?.is_some_and(|slot| slot.active_pid == Some(pid)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Drops a slot; whether there was one. One that streams is left alone ([`Error::SlotActive`]).
pub async fn drop(sql: &Sql, name: &str) -> Result<bool> {
    let Some(slot) = state(sql, name).await? else { return Ok(false) };
    if let Some(pid) = slot.active_pid {
        return Err(active(sql, name, pid).await);
    }
    match sql.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[text(&name)]).await {
        Ok(_) => Ok(true),
        Err(error) if error.is("42704") => Ok(false),
        Err(error) if error.is("55006") => match state(sql, name).await?.and_then(|slot| slot.active_pid) {
            Some(pid) => Err(active(sql, name, pid).await),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn active(sql: &Sql, slot: &str, pid: i32) -> Error {
    let client = client_of(sql, pid).await.ok().flatten().unwrap_or_else(|| "client not visible to this role".into());
    Error::SlotActive { slot: slot.to_owned(), pid, client }
}

/// Application name and address of a server process's client; `None` when it is gone or not visible to this role.
pub(super) async fn client_of(sql: &Sql, pid: i32) -> Result<Option<String>> {
    let statement = "SELECT pg_catalog.concat_ws(' from ', NULLIF(a.application_name, ''),
                                                 COALESCE(pg_catalog.host(a.client_addr), 'this machine'))
                     FROM pg_catalog.pg_stat_activity a
                     WHERE a.pid = $1 AND a.backend_start IS NOT NULL";
    let row = sql.optional(statement, &[(&pid, tokio_postgres::types::Type::INT4)]).await?;
    row.map(|row| get(&row, 0)).transpose()
}

async fn read(sql: &Sql, rest: &str, params: &[super::sql::Param<'_>]) -> Result<Vec<SlotState>> {
    let new_columns = match sql.version() {
        170_000.. => "s.failover, s.invalidation_reason::text, s.synced",
        _ => "NULL::bool, NULL::text, NULL::bool",
    };
    let statement = format!(
        "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.temporary, s.active_pid, s.restart_lsn::text,
                s.confirmed_flush_lsn::text, s.wal_status::text, s.safe_wal_size, s.two_phase,
                pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                                                THEN pg_catalog.pg_last_wal_replay_lsn()
                                                ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::int8,
                {new_columns}
         FROM pg_catalog.pg_replication_slots s {rest}"
    );
    sql.query(&statement, params).await?.iter().map(slot_of).collect()
}

fn slot_of(row: &Row) -> Result<SlotState> {
    let position = |column| get::<Option<&str>>(row, column)?.map(lsn).transpose();
    Ok(SlotState {
        name: get(row, 0)?,
        plugin: get(row, 1)?,
        database: get(row, 2)?,
        temporary: get(row, 3)?,
        active_pid: get(row, 4)?,
        restart_lsn: position(5)?,
        confirmed_flush: position(6)?,
        wal_status: get(row, 7)?,
        safe_wal_size: get(row, 8)?,
        two_phase: get(row, 9)?,
        retained_bytes: get::<Option<i64>>(row, 10)?.unwrap_or(0).max(0).unsigned_abs(),
        failover: get(row, 11)?,
        invalidation_reason: get(row, 12)?,
        synced: get(row, 13)?,
    })
}
