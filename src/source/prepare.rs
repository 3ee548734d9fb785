//! Everything that is compared before the first byte is streamed: history, publication, slot, in this order. The journal
//! follows the server's history before it looks at the slot, so that everything after is about one history.

use std::time::Duration;

use super::{
    Carried, Error, Options, SourceState, Untrusted,
    course::{self, Step},
    orphan::{self, Unended},
    reach::{Reached, reached_at},
    refused,
    slots::{self, Broken, Decision, Mending},
    unless_locked,
};
use crate::{
    failpoint,
    feed::Feed,
    ingest::{self, Ingest, restart_lsn},
    journal::Journal,
    lsn::Lsn,
    postgres::{
        self,
        database::Database,
        decoding,
        logtables::blockers,
        preflight,
        publication::{self, IdentityGap},
        replication::{Consistency, ReplicationStream},
        server,
        slot::{self, SlotState},
        sql::Sql,
    },
    reason::{Classified, Reason},
    shutdown::Drain,
};

/// Status updates come at least this often, and three times per wal_sender_timeout.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How to stream.
pub(super) struct Prepared {
    pub start: Lsn,
    pub status_interval: Duration,
    pub publication_oid: u32,
    /// The slot, where it came to this server from another one.
    pub came_along: Option<SlotState>,
}

/// How often a stream that is not consistent yet is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server process that was told to end may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Prepared {
    /// Takes nothing from a stream that would leave something out. The slot is free again when this fails.
    pub async fn examined(
        &self,
        mut stream: ReplicationStream,
        sql: &Sql,
        slot: &str,
    ) -> Result<ReplicationStream, Error> {
        let found = loop {
            match stream.consistency(self.start, LOOK).await? {
                // While a transaction is waited for, the consistent point can only lie behind everything written so far.
                Consistency::Searching if blockers::read(sql, slot).await?.is_empty() => {}
                found => break found,
            }
        };
        match decoding::judge(found, self.start, self.came_along.as_ref()) {
            Ok(()) => Ok(stream),
            Err(why) => {
                // One that waits for a transaction does not hear that the stream is to end.
                let own = slot::state(sql, slot).await?.and_then(|slot| slot.active_pid);
                stream.stop().await?;
                let after = slot::state(sql, slot).await?.and_then(|slot| slot.active_pid);
                if let Some(pid) = after.filter(|_| after == own) {
                    slot::release(sql, slot, pid, PATIENCE).await?;
                }
                Err(Error::Untrusted(why))
            }
        }
    }
}

pub(super) async fn prepare(
    options: &Options,
    journal: &Journal,
    ingest: &mut Ingest,
    carried: &mut Carried,
    reached: &mut Reached,
    state: &SourceState,
    leave: &Drain,
) -> Result<Prepared, Error> {
    let Reached { sql, replication, identity, step, timeline_begins } = reached;
    // A hub that was killed while it founded its journal has segments and no lineage.
    let journal_is_new = journal.lineage().is_none();
    carried.fresh |= journal_is_new;
    let sql = &**sql;
    let database = Database::of(sql, identity.system_identifier).await?;
    let noted = Database::noted(&options.database);
    if let Some(noted) = noted.as_ref().filter(|_| !journal_is_new)
        && let Some(why) = database.refusal(noted)
    {
        return Err(refused(Reason::SourceChanged, why));
    }
    if ingest.replaying() && !matches!(step, Step::Stay) {
        return Err(ingest::Error::HalfReplayed.into());
    }
    let mut left = Lsn::ZERO;
    if let Step::Follow(lineage) = step {
        left = restart_lsn(ingest.complete());
        if failpoint::planted("skip_cut") {
            lineage.switch_lsn = left;
        }
        let (from, switch) = (ingest.complete(), lineage.switch_lsn);
        failpoint::hit("before_lineage");
        let to = lineage.id();
        ingest.follow(lineage.clone()).await?;
        failpoint::hit("after_lineage");
        let (timeline, ends) = (lineage.timeline, ingest.complete());
        tracing::warn!(timeline, %switch, %from, %ends, lineage = %to, "the source's history forked: following it");
    }
    let publication = match publication::find(sql, &options.publication).await? {
        Some(found) => found,
        None if options.create_publication => {
            let (said, gaps) = publication::create(sql, &options.publication, &options.schemas).await?;
            tracing::info!("{said}");
            fail_from_now_on(&gaps);
            publication::find(sql, &options.publication).await?.ok_or_else(|| missing(options))?
        }
        None => return Err(missing(options)),
    };
    if let Some(tables) = unless_locked(publication::published_tables(sql, &options.publication).await)? {
        state.publishes(tables);
    }
    if let Some(tables) = unless_locked(publication::uneven(sql, &publication).await)? {
        state.uneven(tables);
    }
    ingest.widen_near(server::current_xid8(sql).await?);
    let found = orphan::end(options, sql, slot::state(sql, &options.slot).await?).await?;
    let ends = restart_lsn(ingest.complete());
    let mut decision = slots::decide(&options.slot, database.name(), found.as_ref(), carried.fresh, ends)?;
    let rebase = match step {
        Step::Rebase(lineage) => Some(lineage.clone()),
        _ => None,
    };
    if rebase.is_some() {
        // LSNs of two systems say nothing about each other: whatever the slot says, the gap is stated.
        decision = match found.as_ref().filter(|slot| !slot.is_lost()).and_then(|slot| slot.confirmed_flush) {
            Some(confirmed) => Decision::Broken(Broken::Ahead(confirmed)),
            None if found.is_some() => Decision::Broken(Broken::Invalidated("lost".into())),
            None => Decision::Broken(Broken::Missing),
        };
    }
    if let Some(unended) = orphan::unended(options, sql, found.as_ref()).await? {
        decision = match (decision, unended) {
            (Decision::Adopt(confirmed), Unended::Doubtful) => {
                let slot = &options.slot;
                tracing::warn!(slot, %confirmed, "DDL has committed since the slot was begun: it is made again");
                slot::drop(sql, slot).await?;
                Decision::Create
            }
            (Decision::Broken(Broken::Ahead(begins)), Unended::Whole) => Decision::Broken(Broken::Unended(begins)),
            (Decision::Broken(Broken::Ahead(_)), Unended::Doubtful) => {
                let why = "was made for a recovery that did not end, and DDL has committed since it was begun";
                Decision::Broken(Broken::Untrusted(why.into()))
            }
            (used, _) => used,
        };
    }
    if let Decision::Stream(_) = decision {
        orphan::examined(options); // whoever has streamed from it had examined it
    }
    let came_along = found.clone().filter(|slot| decoding::came_along(slot, *timeline_begins));
    let untrusted = carried.untrusted.take().filter(|found| found.at == reached_at(sql, identity));
    if let Decision::Stream(_) | Decision::Broken(Broken::Ahead(_)) = decision
        && let Some(Untrusted { why, .. }) = untrusted
    {
        decision = Decision::Broken(Broken::Untrusted(why));
    }
    if let Decision::Stream(start) = decision
        && let Some(broken) = carried.failures.verdict(start)
    {
        decision = Decision::Broken(broken);
    }
    if let Decision::Stream(_) = decision
        && ingest.polled()
    {
        decision = Decision::Broken(Broken::Polled);
    }
    if let Decision::Stream(start) = decision
        && ingest.replaying()
    {
        decision = Decision::Broken(Broken::Skips { start, given_up: false });
    }
    // Before the journal has anything of it.
    if noted.as_ref() != Some(&database)
        && let Err(error) = database.note(&options.database)
    {
        tracing::warn!(file = %options.database.display(), %error, "it cannot be noted which database the journal is of");
    }
    let is_kept = matches!(decision, Decision::Stream(_) | Decision::Adopt(_));
    let start = match (decision, &*step) {
        (Decision::Stream(start), _) => {
            slots::set_failover(options, replication, found.as_ref()).await;
            start
        }
        (Decision::Broken(broken), _) => {
            let lineage = rebase.clone().or_else(|| journal.lineage().map(|lineage| (*lineage).clone()));
            let lineage = lineage.ok_or_else(|| refused(Reason::SlotLost, "the journal has no lineage"))?;
            let rebase = rebase.is_some();
            let publication = &publication;
            let mending =
                Mending { options, journal, ingest, sql, replication, state, publication, lineage, rebase, leave };
            slots::mend(mending, &broken).await?
        }
        (Decision::Create, Step::Begin(lineage)) => {
            let consistent_point = slots::create(options, sql, replication, leave).await?;
            ingest.found(lineage.clone(), consistent_point).await?;
            carried.fresh = false;
            consistent_point
        }
        (Decision::Adopt(confirmed_flush), Step::Begin(lineage)) => {
            tracing::info!(slot = options.slot, %confirmed_flush, "found the slot; the journal is new");
            ingest.found(lineage.clone(), confirmed_flush).await?;
            slots::set_failover(options, replication, found.as_ref()).await;
            carried.fresh = false;
            confirmed_flush
        }
        (Decision::Create | Decision::Adopt(_), _) => {
            return Err(refused(Reason::Internal, "a journal that is new has a lineage"));
        }
    };
    // The word is spent also where it was not needed, or named a fork: left there, it would let a stale primary in later.
    if course::rebase_asked(&options.rebase) == Some(identity.system_identifier)
        && let Err(error) = std::fs::remove_file(&options.rebase)
    {
        tracing::warn!(file = %options.rebase.display(), %error, "the rebase was done, its file cannot be removed");
    }
    let start = if failpoint::planted("start_past_switch") { start.max(left) } else { start };
    journal.bound_xids(server::assign_xid(sql).await?);
    let end = server::wal_positions(sql).await?.insert;
    if start > end {
        let message = format!("the journal ends at {start}, the server's WAL at {end}: it has lost WAL");
        return Err(refused(Reason::SourceStalePrimary, message));
    }
    let timeout = server::wal_sender_timeout(sql).await?;
    let status_interval = timeout.map_or(STATUS_INTERVAL, |timeout| STATUS_INTERVAL.min(timeout / 3));
    let came_along = match is_kept {
        true => came_along,
        false => slot::state(sql, &options.slot).await?.filter(|slot| decoding::came_along(slot, *timeline_begins)),
    };
    Ok(Prepared { start, status_interval, publication_oid: publication.oid, came_along })
}

/// Says that a new publication makes UPDATE and DELETE fail in the application, and what to run.
fn fail_from_now_on(gaps: &[IdentityGap]) {
    const NAMED: usize = 50;
    if gaps.is_empty() {
        return;
    }
    let list = |part: fn(&IdentityGap) -> &str, between: &str| {
        let mut list: Vec<&str> = gaps.iter().take(NAMED).map(part).collect();
        list.extend((gaps.len() > NAMED).then_some("…"));
        list.join(between)
    };
    let (names, fix) = (list(|gap| &gap.table, ", "), list(|gap| &gap.fix, " "));
    tracing::warn!(tables = gaps.len(), fix, "UPDATE and DELETE fail in the application from now on, in {names}");
}

fn missing(options: &Options) -> Error {
    refused(
        Reason::PublicationMissing,
        format!(
            "publication {:?} does not exist: CREATE PUBLICATION {} FOR ALL TABLES, or start with --create-publication",
            options.publication, options.publication
        ),
    )
}

/// Streaming could not begin for a reason that a person must remove: the preflight often knows better than the server's
/// message why, and what to run.
pub(super) async fn explain(options: &Options, sql: &Sql, error: Error) -> Error {
    let asks_for_a_person = |server: &postgres::Error| {
        // Also when there is no walsender left, which may pass by itself, but need not.
        server.reason() == Reason::PreflightFailed || server.sqlstate() == Some("53300")
    };
    if !matches!(&error, Error::Postgres(server) if asks_for_a_person(server)) {
        return error;
    }
    let checks = preflight::checks(sql, &options.connect, &options.slot, &options.publication).await;
    let failed: Vec<String> = checks
        .unwrap_or_default()
        .into_iter()
        .filter(|check| check.outcome == preflight::Outcome::Failed)
        .map(|check| match check.fix {
            Some(fix) => format!("{}: {} — {}", check.name, check.detail, fix.trim_end_matches(';')),
            None => format!("{}: {}", check.name, check.detail),
        })
        .collect();
    if failed.is_empty() {
        return error;
    }
    refused(Reason::PreflightFailed, format!("{error}. {}", failed.join("; ")))
}
