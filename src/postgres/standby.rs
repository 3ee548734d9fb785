//! Whether a standby could take over with the slot. Where the servers keep slots in step (17 and later) a slot on a standby
//! is of use once it is [`synced AND NOT temporary AND invalidation_reason IS
//! NULL`](https://www.postgresql.org/docs/current/logical-replication-failover.html); until then it vanishes at promotion.
//! That happens only when its restart_lsn on the primary has passed what the standby had reserved: on an idle primary
//! never, unless somebody calls `pg_log_standby_snapshot()`. Slots that came there by other means are looked at, not trusted.

use std::time::Duration;

use super::{
    conninfo::{ConnectOptions, HostSpec, TargetSessionAttrs},
    decoding,
    error::Result,
    preflight::{Check, Outcome},
    server,
    slot::{self, SlotState},
    sql::{Sql, get, text},
};
use crate::lsn::Lsn;

/// How long a standby may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a configured server is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A standby: whether the slot could be used after its promotion, and why not.
    Standby(Result<(), String>),
    /// It takes writes, as the server that is streamed from does.
    Primary,
    /// It does not answer; why.
    Away(String),
}

/// Looks at one server. `confirmed`: what the slot's consumer has; a slot that is further was used by somebody else.
pub async fn look(options: &ConnectOptions, spec: &HostSpec, slot: &str, confirmed: Option<Lsn>) -> Seen {
    let mut one = options.clone();
    one.hosts = vec![spec.clone()];
    one.target_session_attrs = TargetSessionAttrs::Any;
    let looking = async {
        let sql = Sql::connect(&one).await?;
        if !server::in_recovery(&sql).await? {
            return Ok(Seen::Primary);
        }
        let found = slot::state(&sql, slot).await?;
        let ready = ready(found.as_ref(), confirmed);
        Ok(Seen::Standby(match &found {
            Some(slot) if ready.is_ok() && slot.synced != Some(true) => decoding::came_whole(&sql, slot).await?,
            _ => ready,
        }))
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(Ok(seen)) => seen,
        Ok::<Result<_>, _>(Err(error)) => Seen::Away(error.to_string()),
        Err(_) => Seen::Away(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Whether a slot on a standby could be used after promotion.
fn ready(found: Option<&SlotState>, confirmed: Option<Lsn>) -> Result<(), String> {
    let Some(slot) = found else { return Err("the slot is not there".into()) };
    if slot.is_lost() {
        let why = slot.invalidation_reason.as_deref().unwrap_or("lost");
        return Err(format!("the slot is invalidated there ({why})"));
    }
    if slot.temporary {
        return Err("the slot is not synchronized yet: the primary has to move its restart_lsn first".into());
    }
    if slot.synced == Some(false) {
        return Err("a slot of the same name was made there by hand; the server does not keep it in step".into());
    }
    if slot.active_pid.is_some() {
        return Err("the slot is in use there".into());
    }
    match (slot.confirmed_flush, confirmed) {
        (None, _) => Err("the slot has no position yet".into()),
        (Some(theirs), Some(ours)) if theirs > ours => Err(format!("the slot is ahead there, at {theirs}")),
        _ => Ok(()),
    }
}

/// Has the primary write what a standby waits for. Fails without the right to (17 and later: grantable).
pub async fn log_snapshot(primary: &Sql) -> Result<()> {
    primary.query("SELECT pg_catalog.pg_log_standby_snapshot()", &[]).await.map(drop)
}

/// What a failover would do to the slot, for the list of preconditions.
pub(super) async fn checks(
    sql: &Sql,
    options: &ConnectOptions,
    name: &str,
    state: Option<&SlotState>,
) -> Result<Vec<Check>> {
    let check = |name, outcome, detail: String, fix: Option<String>| Check { name, outcome, detail, fix };
    let mut list = Vec::new();
    let confirmed = state.and_then(|slot| slot.confirmed_flush);
    for spec in options.hosts.iter().filter(|spec| **spec != sql.server().spec) {
        list.push(match look(options, spec, name, confirmed).await {
            Seen::Standby(Ok(())) => {
                check("standby", Outcome::Ok, format!("{spec} could take over with the slot"), None)
            }
            Seen::Standby(Err(why)) => {
                let fix = match sql.version() {
                    170_000.. => {
                        "On the standby: sync_replication_slots = on, hot_standby_feedback = on, \
                                  primary_slot_name, and dbname in primary_conninfo; its log says which is missing."
                    }
                    160_000.. => {
                        "walcast serve keeps a slot of its own there while it runs (source.failover_slot). On the standby: \
                         wal_level = logical, hot_standby_feedback = on, primary_slot_name."
                    }
                    _ => "Before PostgreSQL 16 the slot stays behind: docs/failover.md says what can be done.",
                };
                check("standby", Outcome::Warning, format!("{spec}: {why}"), Some(fix.into()))
            }
            Seen::Primary => {
                let detail = format!("{spec} takes writes too: one of both is stale");
                check("standby", Outcome::Warning, detail, None)
            }
            Seen::Away(why) => check("standby", Outcome::Warning, format!("{spec}: {why}"), None),
        });
    }
    list.push(match (sql.version(), state) {
        (160_000..170_000, _) => {
            let detail = "walcast serve keeps a slot of its own on each standby that --dsn names".to_owned();
            check("failover", Outcome::Ok, detail, None)
        }
        (..170_000, _) => {
            let detail = "before PostgreSQL 16 a promoted standby does not have the slot".to_owned();
            check("failover", Outcome::Ok, detail, None)
        }
        (_, Some(slot)) if slot.failover == Some(false) => {
            let fix = "walcast serve turns it on when it next connects (source.failover_slot)".to_owned();
            check("failover", Outcome::Warning, format!("{name:?} is not kept in step on standbys"), Some(fix))
        }
        _ => synchronized_standby_slots(sql).await?,
    });
    Ok(list)
}

/// Without it the hub may be ahead of every standby, and a failover takes back what it has shown.
async fn synchronized_standby_slots(sql: &Sql) -> Result<Check> {
    let name = "failover";
    let setting: Option<String> =
        get(&sql.one("SELECT pg_catalog.current_setting($1, true)", &[text(&"synchronized_standby_slots")]).await?, 0)?;
    let setting = setting.unwrap_or_default();
    if setting.trim().is_empty() {
        let detail =
            "synchronized_standby_slots is empty: the hub may be shown what no standby has, and a failover takes \
                      that back (timeline_changed)"
                .to_owned();
        let fix = "ALTER SYSTEM SET synchronized_standby_slots = '<physical slot of each candidate>'; SELECT \
                   pg_reload_conf(); on every server. While one of them is down nothing is streamed."
            .to_owned();
        return Ok(Check { name, outcome: Outcome::Warning, detail, fix: Some(fix) });
    }
    let missing: Vec<Option<String>> = sql
        .query(
            "SELECT pg_catalog.btrim(n) FROM pg_catalog.regexp_split_to_table($1, ',') n
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                               WHERE s.slot_name = pg_catalog.btrim(n, ' \"') AND s.active)",
            &[text(&setting.as_str())],
        )
        .await?
        .iter()
        .map(|row| get(row, 0))
        .collect::<Result<_>>()?;
    let missing: Vec<String> = missing.into_iter().flatten().collect();
    Ok(match missing.is_empty() {
        true => {
            let detail = format!("synchronized_standby_slots = {setting}: nothing is shown before these have it");
            Check { name, outcome: Outcome::Ok, detail, fix: None }
        }
        false => {
            let detail = format!(
                "synchronized_standby_slots names {}, which no standby uses now: the slot delivers nothing",
                missing.join(", ")
            );
            let fix = "Start the standby, or take its slot out of synchronized_standby_slots.".to_owned();
            Check { name, outcome: Outcome::Warning, detail, fix: Some(fix) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_on_a_standby_is_checked_not_trusted() {
        let good = SlotState { failover: Some(true), synced: Some(true), ..SlotState::example() };
        let at = Some(Lsn(100));
        assert_eq!(ready(Some(&good), at), Ok(()));
        assert_eq!(
            ready(Some(&SlotState { synced: None, failover: None, ..good.clone() }), at),
            Ok(()),
            "by other means"
        );
        let bad = [
            SlotState { temporary: true, ..good.clone() },
            SlotState { invalidation_reason: Some("wal_removed".into()), ..good.clone() },
            SlotState { synced: Some(false), ..good.clone() },
            SlotState { active_pid: Some(7), ..good.clone() },
            SlotState { confirmed_flush: None, ..good.clone() },
            SlotState { confirmed_flush: Some(Lsn(101)), ..good.clone() },
        ];
        for slot in bad {
            assert!(ready(Some(&slot), at).is_err(), "{slot:?}");
        }
        assert!(ready(None, at).is_err());
    }
}
