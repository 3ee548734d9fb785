//! A slot of the hub's own on a standby. PostgreSQL 16 lets a [standby decode by
//! itself](https://www.postgresql.org/docs/16/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS), and what
//! it made there outlives its promotion. (17 and later keep the primary's slot in step instead; before 16 a standby refuses.)
//! The slot is moved on behind what the journal has acknowledged, never past it, so that after a promotion it has what the
//! journal lacks.

use std::{sync::Arc, time::Duration};

use super::{
    catalog::Making,
    conninfo::{ConnectOptions, HostSpec, TargetSessionAttrs},
    error::Result,
    server, slot,
    sql::{Sql, text},
    standby::log_snapshot,
};
use crate::lsn::Lsn;

/// Between two records of running transactions that a creation is helped with.
const HELP: Duration = Duration::from_millis(200);
/// Of slots, in bytes (NAMEDATALEN - 1).
const LONGEST_NAME: usize = 63;

async fn connect(options: &ConnectOptions, spec: &HostSpec) -> Result<Sql> {
    let mut one = options.clone();
    one.hosts = vec![spec.clone()];
    one.target_session_attrs = TargetSessionAttrs::Any;
    Sql::connect(&one).await
}

/// Moves the slot on a standby on to `confirmed`; whether there is none, and it is to be made. One that the server has
/// invalidated is dropped. A server that is no standby is left alone, and so is a slot that somebody uses.
pub async fn keep(options: &ConnectOptions, spec: &HostSpec, name: &str, confirmed: Lsn) -> Result<bool> {
    let sql = connect(options, spec).await?;
    if !server::in_recovery(&sql).await? {
        return Ok(false);
    }
    match slot::state(&sql, name).await? {
        Some(slot) if slot.active_pid.is_some() => Ok(false),
        Some(slot) if slot.is_lost() => slot::drop(&sql, name).await,
        Some(slot) if slot.confirmed_flush < Some(confirmed) => {
            let to = confirmed.to_string();
            let statement = "SELECT pg_catalog.pg_replication_slot_advance($1, $2::text::pg_lsn)::text";
            sql.query(statement, &[text(&name), text(&to.as_str())]).await.map(|_| false)
        }
        Some(_) => Ok(false),
        None => Ok(true),
    }
}

/// The slot gets its name only when it is known that nothing was overlooked while it was made: a temporary one is made,
/// examined and copied. Takes as long as the transactions that are open on the primary do. When this ends early, or the hub
/// does, the server drops that one by itself.
pub async fn make(options: ConnectOptions, spec: HostSpec, name: String, primary: Arc<Sql>) -> Result<()> {
    let sql = &connect(&options, &spec).await?;
    let (name, primary) = (name.as_str(), &*primary);
    let temporary = format!("{}_making", name.get(..LONGEST_NAME - 7).unwrap_or(name));
    while slot::state(sql, &temporary).await?.is_some() {
        // Somebody who has gone has begun; it ends when it is made.
        let _ = log_snapshot(primary).await;
        tokio::time::sleep(HELP).await;
    }
    let mut making = Making::new(sql).await?;
    loop {
        create(sql, &temporary, primary).await?;
        if making.may_keep(name).await? {
            break;
        }
        sql.query("SELECT pg_catalog.pg_drop_replication_slot($1)", &[text(&temporary.as_str())]).await?;
    }
    let copy = "SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2, false)::text";
    sql.query(copy, &[text(&temporary.as_str()), text(&name)]).await.map(drop)
}

async fn create(sql: &Sql, name: &str, primary: &Sql) -> Result<()> {
    let statement = "SELECT pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', true)::text";
    let params = [text(&name)];
    let creating = sql.query(statement, &params);
    tokio::pin!(creating);
    loop {
        tokio::select! {
            created = &mut creating => return created.map(drop),
            () = tokio::time::sleep(HELP) => drop(log_snapshot(primary).await),
        }
    }
}
