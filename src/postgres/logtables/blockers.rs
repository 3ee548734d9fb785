//! Whom the creation of a slot waits for: [every transaction that runs
//! then](https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS), a
//! prepared one that nobody ends included.

use std::fmt;

use crate::postgres::{
    error::Result,
    sql::{Sql, get, text},
};

/// A transaction that a slot waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocker {
    /// Transaction id, 32 bits.
    pub xid: String,
    /// Its server process; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Name of a prepared transaction.
    pub gid: Option<String>,
    /// Since it began or was prepared, in seconds.
    pub age: f64,
    /// What its process waits for, if anything.
    pub waits_for: Option<String>,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {}", self.xid)?;
        if let Some(gid) = &self.gid {
            write!(f, ", prepared as {gid:?}")?;
        }
        if let Some(pid) = self.pid {
            write!(f, ", server process {pid}")?;
        }
        if let Some(event) = &self.waits_for {
            write!(f, ", waiting for {event}")?;
        }
        write!(f, ", {:.0} s old", self.age)
    }
}

/// Whom this slot's creation waits for now.
pub async fn read(sql: &Sql, slot: &str) -> Result<Vec<Blocker>> {
    let awaited = "SELECT l.transactionid FROM pg_catalog.pg_replication_slots s
                   JOIN pg_catalog.pg_locks l ON l.pid = s.active_pid AND l.locktype = 'transactionid' AND NOT l.granted
                   WHERE s.slot_name = $1";
    select(sql, awaited, slot).await
}

/// Who these transactions are, by 64-bit id.
pub async fn of(sql: &Sql, xids: &[u64]) -> Result<Vec<Blocker>> {
    let xids: Vec<String> = xids.iter().map(|xid| (*xid as u32).to_string()).collect();
    let awaited = "SELECT x.id::xid FROM pg_catalog.regexp_split_to_table($1, ',') x(id)";
    select(sql, awaited, &xids.join(",")).await
}

async fn select(sql: &Sql, awaited: &str, by: &str) -> Result<Vec<Blocker>> {
    let statement = format!(
        "SELECT w.transactionid::text, h.pid, p.gid,
                coalesce(extract(epoch FROM clock_timestamp() - coalesce(p.prepared, a.xact_start)), 0)::float8,
                a.wait_event::text
         FROM ({awaited}) w(transactionid)
         LEFT JOIN pg_catalog.pg_locks h ON h.locktype = 'transactionid' AND h.granted
                                        AND h.transactionid = w.transactionid
         LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = w.transactionid
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = h.pid"
    );
    let rows = sql.query(&statement, &[text(&by)]).await?;
    let blocker = |row| {
        Ok(Blocker {
            xid: get(row, 0)?,
            pid: get(row, 1)?,
            gid: get(row, 2)?,
            age: get(row, 3)?,
            waits_for: get(row, 4)?,
        })
    };
    rows.iter().map(blocker).collect()
}
