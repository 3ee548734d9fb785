//! What the rest of the hub may know of the source, and ask of it, while the loop connects and reconnects.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    feed::{BoxFuture, Lost, Source, SourceAway, SourceStatus, WalPositions},
    lsn::Lsn,
    metrics,
    model::{Described, Printed, Spelled},
    postgres::{printed, publication, server, sql::Sql},
    reason::Reason,
};

/// Shared between the source's loop and everybody who asks. Cheap to clone.
#[derive(Clone)]
pub struct SourceState(Arc<Inner>);

struct Inner {
    publication: String,
    connected: AtomicBool,
    /// Since when the journal has had no room.
    journal_full: Mutex<Option<Timestamp>>,
    begun: AtomicU64,
    streamed: watch::Sender<bool>,
    sql: ArcSwapOption<Sql>,
    published: ArcSwapOption<Vec<(String, String)>>,
    /// Of which partitions carry less than they say themselves.
    uneven: ArcSwapOption<Vec<(String, String)>>,
    lately: tokio::sync::Mutex<Lately>,
    status: Mutex<SourceStatus>,
    nudge: Notify,
    lost: Mutex<Option<Lost>>,
}

/// Descriptions of tables that are told to everybody who asks within a few seconds. Who waits for the lock waits for the
/// answer that others asked for.
#[derive(Default)]
struct Lately {
    /// `None`: not published.
    tables: HashMap<(String, String), Option<Arc<Described>>>,
    /// When the first of them was asked for.
    since: Option<Instant>,
    /// What asking has taken since then.
    took: Duration,
}

impl Lately {
    /// As fresh as the list of what is published; older where asking takes long.
    fn forget_old(&mut self) {
        let lasts = super::watch::INTERVAL.max(20 * self.took);
        if self.since.is_some_and(|since| since.elapsed() > lasts) {
            *self = Lately::default();
        }
    }
}

impl SourceState {
    /// Away, and never seen.
    pub fn new(slot: &str, publication: &str) -> Self {
        let status = SourceStatus { slot: slot.to_owned(), ..SourceStatus::default() };
        SourceState(Arc::new(Inner {
            publication: publication.to_owned(),
            connected: AtomicBool::new(false),
            journal_full: Mutex::new(None),
            begun: AtomicU64::new(0),
            streamed: watch::channel(false).0,
            sql: ArcSwapOption::empty(),
            published: ArcSwapOption::empty(),
            uneven: ArcSwapOption::empty(),
            lately: tokio::sync::Mutex::default(),
            status: Mutex::new(status),
            nudge: Notify::new(),
            lost: Mutex::new(None),
        }))
    }

    /// Becomes true when the slot first streams and stays so.
    pub fn streamed(&self) -> watch::Receiver<bool> {
        self.0.streamed.subscribe()
    }

    /// Whether reading waits for the journal to have room.
    pub fn journal_full(&self, full: bool) {
        let mut since = self.0.journal_full.lock();
        *since = full.then(|| since.unwrap_or_else(Timestamp::now));
    }

    pub(super) fn nudged(&self) -> &Notify {
        &self.0.nudge
    }

    pub(super) fn reached(&self, sql: Arc<Sql>) {
        self.0.sql.store(Some(sql));
    }

    /// How often streaming has begun.
    pub(super) fn streams_begun(&self) -> u64 {
        self.0.begun.load(Ordering::Acquire)
    }

    pub(super) fn streams(&self) {
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        self.0.connected.store(true, Ordering::Release);
        self.0.streamed.send_replace(true);
        *self.0.lost.lock() = None;
        self.update(|status| {
            status.connected = true;
            status.last_error.clear();
        });
        metrics::set(metrics::SOURCE_CONNECTED, 1.0);
    }

    pub(super) fn away(&self, why: &str) {
        self.0.connected.store(false, Ordering::Release);
        self.0.sql.store(None);
        self.update(|status| {
            status.connected = false;
            status.last_error = why.to_owned();
        });
        metrics::set(metrics::SOURCE_CONNECTED, 0.0);
    }

    /// What the source knows to be in the journal, as last read.
    pub(super) fn confirmed(&self) -> Option<Lsn> {
        Some(self.0.status.lock().confirmed_flush).filter(|confirmed| *confirmed != Lsn::ZERO)
    }

    /// The slot does not have what lies between, and the hub does not go on without it.
    pub(super) fn lost(&self, from: Lsn, to: Lsn, detail: &str) {
        *self.0.lost.lock() = Some(Lost { from, to, detail: detail.to_owned() });
    }

    pub(super) fn publishes(&self, tables: Vec<(String, String)>) {
        self.0.published.store(Some(Arc::new(tables)));
    }

    pub(super) fn uneven(&self, tables: Vec<(String, String)>) {
        self.0.uneven.store((!tables.is_empty()).then(|| Arc::new(tables)));
    }

    /// What does not stop the stream and must be seen all the same; empty: nothing of this kind any more.
    pub(super) fn alarm(&self, reason: Reason, what: &[String]) {
        let prefix = reason.as_str();
        self.update(|status| {
            status.alarms.retain(|alarm| !alarm.starts_with(prefix));
            status.alarms.extend(what.iter().map(|what| format!("{prefix}: {what}")));
        });
        metrics::set(metrics::SOURCE_ALARMS, self.0.status.lock().alarms.len() as f64);
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.0.status.lock());
    }
}

impl Source for SourceState {
    fn connected(&self) -> bool {
        self.0.connected.load(Ordering::Acquire)
    }

    fn wal(&self) -> BoxFuture<'_, Result<WalPositions, SourceAway>> {
        Box::pin(async {
            match self.0.sql.load_full() {
                Some(sql) => match server::wal_positions(&sql).await {
                    Ok(found) => Ok(WalPositions { flush: found.flush, insert: found.insert }),
                    Err(error) => Err(SourceAway(error.to_string())),
                },
                None => Err(SourceAway(self.0.status.lock().last_error.clone())),
            }
        })
    }

    fn published(&self) -> Option<Arc<Vec<(String, String)>>> {
        self.0.published.load_full()
    }

    fn is_uneven(&self, schema: &str, table: &str) -> bool {
        let uneven = self.0.uneven.load();
        uneven.iter().flat_map(|tables| tables.iter()).any(|name| name.0 == schema && name.1 == table)
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let Some(sql) = self.0.sql.load_full() else { return };
            match publication::published_tables(&sql, &self.0.publication).await {
                Ok(tables) => self.publishes(tables),
                Err(error) => tracing::debug!(%error, "published tables cannot be read"),
            }
        })
    }

    fn relations<'a>(&'a self, tables: &'a [(String, String)]) -> BoxFuture<'a, Vec<Described>> {
        Box::pin(async move {
            let Some(sql) = self.0.sql.load_full() else { return Vec::new() };
            publication::described(&sql, &self.0.publication, tables).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "tables cannot be described");
                Vec::new()
            })
        })
    }

    fn relations_lately<'a>(&'a self, tables: &'a [(String, String)]) -> BoxFuture<'a, Vec<Arc<Described>>> {
        Box::pin(async move {
            let mut lately = self.0.lately.lock().await;
            lately.forget_old();
            let unknown: Vec<_> = tables.iter().filter(|name| !lately.tables.contains_key(*name)).cloned().collect();
            if !unknown.is_empty() {
                let Some(sql) = self.0.sql.load_full() else { return Vec::new() };
                let began = Instant::now();
                lately.since.get_or_insert(began);
                match publication::described(&sql, &self.0.publication, &unknown).await {
                    Ok(found) => {
                        lately.tables.extend(unknown.into_iter().map(|name| (name, None)));
                        let name = |it: &Described| (it.relation.schema.clone(), it.relation.table.clone());
                        lately.tables.extend(found.into_iter().map(|it| (name(&it), Some(Arc::new(it)))));
                        lately.took += began.elapsed();
                    }
                    Err(error) => tracing::warn!(%error, "tables cannot be described"),
                }
            }
            tables.iter().filter_map(|name| lately.tables.get(name)?.clone()).collect()
        })
    }

    fn printed<'a>(&'a self, literals: &'a [Spelled]) -> BoxFuture<'a, Vec<Option<Printed>>> {
        Box::pin(async move {
            let Some(sql) = self.0.sql.load_full() else { return vec![None; literals.len()] };
            printed::printed(&sql, literals).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "literals cannot be checked");
                vec![None; literals.len()]
            })
        })
    }

    fn lost(&self) -> Option<Lost> {
        if self.connected() { None } else { self.0.lost.lock().clone() }
    }

    fn nudge(&self) {
        self.0.nudge.notify_one();
    }

    fn status(&self) -> SourceStatus {
        let mut status = self.0.status.lock().clone();
        if let Some(since) = *self.0.journal_full.lock()
            && status.last_error.is_empty()
        {
            let reason = Reason::DiskFull;
            let (name, meaning, action) = (reason.as_str(), reason.meaning(), reason.action());
            status.last_error = format!("{name}: {meaning} {action} (since {since:.0})");
        }
        status
    }
}
