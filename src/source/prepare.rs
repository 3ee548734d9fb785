//! Everything that is compared before the first byte is streamed: server, history, publication, slot.

use std::time::Duration;

use super::{Error, Options, SourceState, refused};
use crate::{
    feed::Feed,
    ingest::{Ingest, restart_lsn},
    journal::Journal,
    lsn::Lsn,
    model::Lineage,
    postgres::{preflight, publication, replication::Replication, server, slot, sql::Sql},
    reason::Reason,
};

/// Status updates come at least this often, and three times per wal_sender_timeout.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How to stream.
pub(super) struct Prepared {
    pub start: Lsn,
    pub status_interval: Duration,
    pub publication_oid: u32,
}

pub(super) async fn prepare(
    options: &Options,
    journal: &Journal,
    ingest: &mut Ingest,
    fresh: &mut bool,
    sql: &Sql,
    replication: &mut Replication,
    state: &SourceState,
) -> Result<Prepared, Error> {
    let identity = replication.identify_system().await?;
    let history = match identity.timeline {
        1 => String::new(),
        timeline => replication.timeline_history(timeline).await?,
    };
    let lineage = Lineage {
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        history,
        epoch: 0,
        switch_lsn: Lsn::ZERO,
    };
    compare_history(journal, &lineage)?;
    let publication = match publication::find(sql, &options.publication).await? {
        Some(found) => found,
        None if options.create_publication => {
            let said = publication::create(sql, &options.publication, &options.schemas).await?;
            tracing::info!("{said}");
            publication::find(sql, &options.publication).await?.ok_or_else(|| missing(options))?
        }
        None => return Err(missing(options)),
    };
    state.publishes(publication::published_tables(sql, &options.publication).await?);
    state.update(|status| {
        status.system_identifier = identity.system_identifier;
        status.timeline = identity.timeline;
    });
    ingest.widen_near(server::current_xid8(sql).await?);
    let found = slot::state(sql, &options.slot).await?;
    let start = match found {
        Some(slot) => existing_slot(options, ingest, fresh, lineage, &slot).await?,
        None if *fresh => {
            let consistent_point = match replication.create_slot(&options.slot, false).await {
                Ok(created) => created.consistent_point,
                Err(error) => return Err(explain(options, sql, error.into()).await),
            };
            tracing::info!(slot = options.slot, %consistent_point, "created the slot");
            ingest.found(lineage, consistent_point).await?;
            *fresh = false;
            consistent_point
        }
        None => {
            let (from, to) = (restart_lsn(ingest.complete()), server::wal_positions(sql).await?.insert);
            return Err(refused(
                Reason::SlotLost,
                format!(
                    "slot {:?} does not exist, and the journal ends at {from}: a new slot would miss what was committed \
                     from {from} to {to}. Restore the slot, or start over with a new --data-dir",
                    options.slot
                ),
            ));
        }
    };
    journal.bound_xids(server::next_xid8(sql).await?);
    let end = server::wal_positions(sql).await?.insert;
    if start > end {
        let message = format!("the journal ends at {start}, the server's WAL at {end}: it has lost WAL");
        return Err(refused(Reason::SourceStalePrimary, message));
    }
    let timeout = server::wal_sender_timeout(sql).await?;
    let status_interval = timeout.map_or(STATUS_INTERVAL, |timeout| STATUS_INTERVAL.min(timeout / 3));
    Ok(Prepared { start, status_interval, publication_oid: publication.oid })
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

fn compare_history(journal: &Journal, server: &Lineage) -> Result<(), Error> {
    let Some(known) = journal.lineage() else { return Ok(()) };
    if known.system_identifier != server.system_identifier {
        return Err(refused(
            Reason::SourceChanged,
            format!(
                "the journal belongs to system {}, the server is {}",
                known.system_identifier, server.system_identifier
            ),
        ));
    }
    if known.timeline > server.timeline {
        return Err(refused(
            Reason::SourceStalePrimary,
            format!("the journal has seen timeline {}, the server is on {}", known.timeline, server.timeline),
        ));
    }
    if (known.timeline, known.history.as_str()) != (server.timeline, server.history.as_str()) {
        return Err(refused(
            Reason::SourceChanged,
            format!(
                "the server is on timeline {} and the journal on {}: following a promoted standby is not offered by \
                 this version. Start over with a new --data-dir",
                server.timeline, known.timeline
            ),
        ));
    }
    Ok(())
}

/// Where to start on a slot that is already there.
async fn existing_slot(
    options: &Options,
    ingest: &mut Ingest,
    fresh: &mut bool,
    lineage: Lineage,
    slot: &slot::SlotState,
) -> Result<Lsn, Error> {
    if slot.plugin.as_deref() != Some("pgoutput") {
        let plugin =
            slot.plugin.as_deref().map_or("is physical".to_owned(), |plugin| format!("uses the plugin {plugin:?}"));
        let message = format!("slot {:?} {plugin}; give another name with --slot", options.slot);
        return Err(refused(Reason::PreflightFailed, message));
    }
    if let Some(pid) = slot.active_pid {
        let message = format!("slot {:?} is in use by the server process {pid}", options.slot);
        return Err(refused(Reason::SlotInUse, message));
    }
    if slot.is_lost() {
        let message = format!(
            "slot {:?} was invalidated{}: what came after {} is gone. Drop it (walcast slot drop) and start over with a \
             new --data-dir",
            options.slot,
            slot.invalidation_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
            restart_lsn(ingest.complete()),
        );
        return Err(refused(Reason::SlotLost, message));
    }
    let Some(confirmed_flush) = slot.confirmed_flush else {
        let message = format!("slot {:?} is still being created", options.slot);
        return Err(refused(Reason::SlotInUse, message));
    };
    if *fresh {
        tracing::info!(slot = options.slot, %confirmed_flush, "found the slot; the journal is new");
        ingest.found(lineage, confirmed_flush).await?;
        *fresh = false;
    }
    let complete = restart_lsn(ingest.complete());
    if confirmed_flush > complete {
        let message = format!(
            "slot {:?} was acknowledged up to {} elsewhere, and the journal ends at {complete}: what lies between would be \
             missing. Start over with a new --data-dir",
            options.slot, confirmed_flush
        );
        return Err(refused(Reason::SlotLost, message));
    }
    Ok(complete)
}

/// Creating the slot failed: the preflight knows why more often than the message says.
async fn explain(options: &Options, sql: &Sql, error: Error) -> Error {
    let checks = preflight::checks(sql, &options.connect, &options.slot, &options.publication).await;
    let failed: Vec<String> = checks
        .unwrap_or_default()
        .into_iter()
        .filter(|check| check.outcome == preflight::Outcome::Failed)
        .map(|check| match check.fix {
            Some(fix) => format!("{}: {} — {fix}", check.name, check.detail),
            None => format!("{}: {}", check.name, check.detail),
        })
        .collect();
    if failed.is_empty() {
        return error;
    }
    refused(Reason::PreflightFailed, format!("{error}; {}", failed.join("; ")))
}
