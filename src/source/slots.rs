//! Does the slot cover what the journal lacks? If it does, streaming starts where the journal ends. If it does not, that is
//! a [`Broken`] slot, and [`mend`] is the one place that says what happens then.

use super::{
    Error, OnSlotLost, Options, SourceState, orphan,
    recover::{self, Recovered},
    refused, unless_left,
};
use crate::{
    ingest::{self, Ingest, restart_lsn},
    journal::Journal,
    lsn::Lsn,
    model::Lineage,
    postgres::{
        catalog::Making,
        publication::Publication,
        replication::Replication,
        server,
        slot::{self, SlotState},
        sql::Sql,
    },
    reason::Reason,
    shutdown::Drain,
};

/// What a slot comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It has everything from here on.
    Stream(Lsn),
    /// The journal is new and so is the slot: it is to be made.
    Create,
    /// The journal is new; the slot was there and begins here.
    Adopt(Lsn),
    /// It does not have what the journal lacks.
    Broken(Broken),
}

/// How a slot is of no use for what the journal lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// There is none of this name: it was dropped, or did not come along to a promoted standby.
    Missing,
    /// It is there and was invalidated, or was never complete; the server's word for it.
    Invalidated(String),
    /// It was acknowledged up to here by somebody else.
    Ahead(Lsn),
    /// It was made for a recovery that did not end, and begins here.
    Unended(Lsn),
    /// The server fails to decode it from here on, again and again; how.
    Undecodable {
        /// Where the journal ends.
        from: Lsn,
        /// What the server says.
        error: String,
    },
    /// Its stream would leave something out; why.
    Untrusted(String),
    /// The journal ends with transactions that were polled from the log tables: others may have committed before.
    Polled,
    /// For a part of the WAL behind here the publication does not exist.
    Skips {
        /// Where the journal ends.
        start: Lsn,
        /// It was tried often enough.
        given_up: bool,
    },
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Missing => f.write_str("does not exist"),
            Broken::Invalidated(why) => write!(f, "was invalidated ({why})"),
            Broken::Ahead(confirmed) => write!(f, "was acknowledged up to {confirmed} elsewhere"),
            Broken::Unended(begins) => write!(f, "was made for a recovery that did not end, and begins at {begins}"),
            Broken::Undecodable { from, error } => write!(f, "cannot be decoded from {from} on ({error})"),
            Broken::Untrusted(why) => f.write_str(why),
            Broken::Polled => f.write_str("was replaced while the log tables were polled, and that has not ended"),
            Broken::Skips { .. } => f.write_str(
                "covers WAL in which the publication does not exist (it was dropped, or is younger than the slot), which \
                 PostgreSQL does not decode",
            ),
        }
    }
}

/// Decides. `database`: the connection's; `complete`: where the journal ends on the server's history.
pub(super) fn decide(
    name: &str,
    database: &str,
    found: Option<&SlotState>,
    fresh: bool,
    complete: Lsn,
) -> Result<Decision, Error> {
    let Some(slot) = found else {
        return Ok(if fresh { Decision::Create } else { Decision::Broken(Broken::Missing) });
    };
    if slot.plugin.as_deref() != Some("pgoutput") {
        let plugin =
            slot.plugin.as_deref().map_or("is physical".to_owned(), |plugin| format!("uses the plugin {plugin:?}"));
        let message = format!("slot {name:?} {plugin}; give another name with --slot");
        return Err(refused(Reason::PreflightFailed, message));
    }
    // Names of slots are the whole cluster's. START_REPLICATION refuses one of another database, pg_drop_replication_slot()
    // and ALTER_REPLICATION_SLOT do not.
    if slot.database.as_deref() != Some(database) {
        let theirs = slot.database.as_deref().unwrap_or_default();
        let message =
            format!("slot {name:?} belongs to database {theirs:?}, not {database:?}; give another name with --slot");
        return Err(refused(Reason::PreflightFailed, message));
    }
    if let Some(pid) = slot.active_pid {
        let message = format!("slot {name:?} is in use by the server process {pid}");
        return Err(refused(Reason::SlotInUse, message));
    }
    if slot.is_lost() {
        let why = slot.invalidation_reason.clone().or(slot.wal_status.clone()).unwrap_or_default();
        if fresh {
            let message = format!("slot {name:?} was invalidated ({why}). Drop it (walcast slot drop) and start again");
            return Err(refused(Reason::SlotLost, message));
        }
        return Ok(Decision::Broken(Broken::Invalidated(why)));
    }
    let Some(confirmed) = slot.confirmed_flush else {
        let message = format!("slot {name:?} is still being created");
        return Err(refused(Reason::SlotInUse, message));
    };
    Ok(match (fresh, confirmed > complete) {
        (true, _) => Decision::Adopt(confirmed),
        (false, false) => Decision::Stream(complete),
        (false, true) => Decision::Broken(Broken::Ahead(confirmed)),
    })
}

/// What [`mend`] works with.
pub(super) struct Mending<'a> {
    pub options: &'a Options,
    pub journal: &'a Journal,
    pub ingest: &'a mut Ingest,
    pub sql: &'a Sql,
    pub replication: &'a mut Replication,
    pub state: &'a SourceState,
    /// As it is now.
    pub publication: &'a Publication,
    /// The server's history as the journal follows it.
    pub lineage: Lineage,
    /// The gap was announced: the journal goes on at another system.
    pub rebase: bool,
    /// The server is to be left: nothing is waited for any more.
    pub leave: &'a Drain,
}

/// A slot that does not have what the journal lacks. The journal has already followed the server's history, so that it ends
/// on this one at or before the switch.
///
/// Where log tables are healthy they bring the journal up to the consistent point of a new slot. For sources without them
/// the gap is stated, and policy says whether the hub goes on behind it.
pub(super) async fn mend(mut mending: Mending<'_>, broken: &Broken) -> Result<Lsn, Error> {
    let why = if mending.rebase {
        "another system has another log".to_owned()
    } else {
        match recover::from_log_tables(&mut mending, broken).await? {
            Recovered::To(point) => return Ok(point),
            Recovered::Not(why) => why,
        }
    };
    if mending.ingest.replaying() {
        return Err(ingest::Error::HalfReplayed.into());
    }
    if let Broken::Skips { start, given_up: false } = broken {
        tracing::debug!(slot = mending.options.slot, "the slot {broken}; the log tables cannot help: {why}");
        return Ok(*start); // the stream itself says what is wrong
    }
    skip(mending, broken, &why).await
}

/// States the gap. Under the policy to continue, makes a slot that has everything behind it.
async fn skip(mending: Mending<'_>, broken: &Broken, unrecovered: &str) -> Result<Lsn, Error> {
    let Mending { options, ingest, sql, replication, state, lineage, rebase, leave, .. } = mending;
    let from = restart_lsn(ingest.complete());
    // What an operator may repair is not dropped on the strength of an error message.
    let kept = matches!(broken, Broken::Undecodable { .. });
    if !rebase && (options.on_slot_lost == OnSlotLost::Stop || kept) {
        let to = match broken {
            Broken::Ahead(begins) | Broken::Unended(begins) => *begins,
            _ => server::wal_positions(sql).await?.insert,
        };
        // A data directory that is new takes the slot that it finds, and no word of what is wrong with it.
        let first = match broken {
            Broken::Undecodable { .. } => {
                "Repair what the server complains of: the slot is kept and tried again. Or drop it (walcast slot drop) and"
            }
            Broken::Skips { .. } => "Only a new slot gets past it: drop it (walcast slot drop) and",
            Broken::Untrusted(_) => "Restore the slot, or drop it (walcast slot drop) and",
            _ => "Restore the slot, or",
        };
        let message = format!(
            "slot {:?} {broken}, and the journal ends at {from}: what was committed from {from} to {to} would be missing. \
             {first} go on behind the gap with source.on_slot_lost = \"continue\", or start over with a new \
             --data-dir. The log tables cannot help: {unrecovered}",
            options.slot
        );
        state.lost(from, to, &message);
        return Err(refused(Reason::SlotLost, message));
    }
    let up_to = match broken {
        Broken::Ahead(begins) | Broken::Unended(begins) => *begins,
        _ => {
            if let Broken::Invalidated(_) | Broken::Untrusted(_) | Broken::Polled | Broken::Skips { .. } = broken {
                slot::drop(sql, &options.slot).await?;
            }
            create(options, sql, replication, leave).await?
        }
    };
    crate::failpoint::hit("slot_remade");
    let mut reason = format!("slot {:?} {broken}", options.slot);
    if ingest.polled() {
        reason += "; what was ending while the log tables were polled may be missing from before this point, too";
    }
    let lineage = Lineage { epoch: lineage.epoch + u32::from(!rebase), switch_lsn: from, ..lineage };
    tracing::error!(slot = options.slot, %from, to = %up_to, "changes are missing: {reason}; going on behind them");
    ingest.skip(lineage, up_to, reason).await?;
    Ok(restart_lsn(ingest.complete()))
}

/// Makes the slot; its consistent point.
pub(super) async fn create(
    options: &Options,
    sql: &Sql,
    replication: &mut Replication,
    leave: &Drain,
) -> Result<Lsn, Error> {
    let mut making = Making::new(sql).await?;
    orphan::note(options, &replication.backend().await?, making.before());
    loop {
        let creating = async { Ok(replication.create_slot(&options.slot, options.failover_slot).await?) };
        let point = unless_left(leave, creating).await?.consistent_point;
        if making.may_keep(&options.slot).await? {
            orphan::examined(options);
            let failover = options.failover_slot && sql.version() >= 170_000;
            tracing::info!(slot = options.slot, consistent_point = %point, failover, "created the slot");
            return Ok(point);
        }
        slot::drop(sql, &options.slot).await?;
    }
}

/// A slot from before this was asked for is kept in step on standbys from now on.
pub(super) async fn set_failover(options: &Options, replication: &mut Replication, found: Option<&SlotState>) {
    if !options.failover_slot || !found.is_some_and(|slot| slot.failover == Some(false) && !slot.is_lost()) {
        return;
    }
    match replication.set_failover(&options.slot).await {
        Ok(()) => tracing::info!(slot = options.slot, "the slot is kept in step on standbys from now on (FAILOVER)"),
        Err(error) => tracing::warn!(slot = options.slot, %error, "the slot cannot be made a failover slot"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Classified;

    #[test]
    fn a_slot_of_another_database_is_somebody_elses() {
        let slot = SlotState::example();
        let lost = SlotState { wal_status: Some("lost".into()), ..slot.clone() };
        let used = SlotState { active_pid: Some(7), ..slot.clone() };
        for (slot, fresh) in [(&slot, true), (&slot, false), (&lost, true), (&lost, false), (&used, false)] {
            let error = decide("walcast", "crm", Some(slot), fresh, Lsn(90)).expect_err("another database's");
            assert_eq!(error.reason(), Reason::PreflightFailed, "{error}");
            assert!(error.to_string().contains("\"shop\", not \"crm\"; give another name"), "{error}");
        }
        let decided = |fresh| decide("walcast", "shop", Some(&slot), fresh, Lsn(90)).expect("a decision");
        assert_eq!(decided(true), Decision::Adopt(Lsn(100)));
        assert_eq!(decided(false), Decision::Broken(Broken::Ahead(Lsn(100))));
    }
}
