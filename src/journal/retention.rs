//! Retention: whole segments go, oldest first, never the active one, never one that the open transaction needs.
//!
//! A segment goes when the journal is larger than `retain_bytes`, whoever needs it, or when it is older than
//! `retain_age` and neither a subscriber nor a running snapshot needs it. A subscriber counts while it was seen within `retain_age` and has a position.

use std::{
    collections::VecDeque,
    fs,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Shared,
    disk::{now, sync_dir},
    keeper::Desk,
    map::{Map, Segment},
    read::find_earliest,
    rows,
};
use crate::{lsn::Lsn, metrics, model::Position};

/// How fast WAL leaves the journal.
#[derive(Debug)]
pub(super) struct Expiry {
    started: Instant,
    removals: Mutex<VecDeque<(Instant, u64)>>,
}

impl Expiry {
    /// Removals that the rate is taken over.
    const WINDOW: Duration = Duration::from_secs(15 * 60);

    pub fn new() -> Self {
        Expiry { started: Instant::now(), removals: Mutex::default() }
    }

    fn add(&self, wal_bytes: u64) {
        let now = Instant::now();
        let mut removals = self.removals.lock();
        removals.push_back((now, wal_bytes));
        while removals.front().is_some_and(|(at, _)| now.duration_since(*at) > Self::WINDOW) {
            removals.pop_front();
        }
    }

    /// Bytes of WAL per second, over the last 15 minutes or since the journal was opened.
    pub fn rate(&self) -> u64 {
        let span = self.started.elapsed().min(Self::WINDOW);
        let recent = |removal: &&(Instant, u64)| removal.0.elapsed() <= Self::WINDOW;
        let bytes: u64 = self.removals.lock().iter().filter(recent).map(|(_, bytes)| bytes).sum();
        (bytes as f64 / span.as_secs_f64().max(1.0)) as u64
    }
}

/// Removes what may go.
pub(super) fn run(shared: &Shared, desk: &Desk) {
    let needed: Vec<Position> = {
        let oldest = now().saturating_sub(micros(shared.options.retain_age));
        let seen = desk.checkpoints().into_iter().filter(|(_, checkpoint)| checkpoint.last_seen >= oldest);
        let reserved = shared.reserved.lock();
        seen.filter_map(|(_, checkpoint)| checkpoint.position).chain(reserved.values().copied()).collect()
    };
    let count = {
        let map = shared.map.read();
        removable(&map, &needed, shared.options.retain_bytes, shared.options.retain_age, now())
    };
    if count == 0 {
        return;
    }
    let mut kept = desk.checkpoints();
    {
        let map = shared.map.read();
        kept.retain(|(_, checkpoint)| checkpoint.goes_on_behind().is_some_and(|at| !map.has_expired(at)));
    }
    if let Err(error) = remove(shared, desk, count) {
        tracing::error!(%error, "retention cannot remove segments");
    }
    let map = shared.map.read();
    for (key, checkpoint) in kept {
        if let Some(at) = checkpoint.goes_on_behind().filter(|at| map.has_expired(*at)) {
            tracing::warn!(
                subscriber = key.name,
                principal = (!key.principal.is_empty()).then_some(&*key.principal),
                checkpoint = %at.lsn,
                earliest = %map.earliest().lsn,
                "retention has removed what a subscriber has not acknowledged: its next stream ends with POSITION_EXPIRED"
            );
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// How many segments may go from the front.
fn removable(map: &Map, needed: &[Position], retain_bytes: u64, retain_age: Duration, now: i64) -> usize {
    let mut bytes = map.bytes();
    let mut count = 0;
    for pair in map.segments.windows(2) {
        let [segment, next] = pair else { break };
        let held = map.held_from.is_some_and(|from| segment.number >= from);
        if held || map.open_since.is_some_and(|block| block < next.first_block) {
            break;
        }
        let over = bytes > retain_bytes;
        let old = next.created < now.saturating_sub(micros(retain_age));
        let unneeded = || needed.iter().all(|position| !needs(map, *position, next));
        if !over && (!old || !unneeded()) {
            break;
        }
        bytes -= segment.len;
        count += 1;
    }
    count
}

/// Whether someone at this position reads something in front of `next`.
fn needs(map: &Map, position: Position, next: &Segment) -> bool {
    if map.history.rank(position.lineage).is_none() {
        return false;
    }
    let (at, start) = (map.key(map.history.floor(position)), map.key(next.after));
    at < start || (at == start && next.may_begin_open())
}

fn remove(shared: &Shared, desk: &Desk, count: usize) -> std::io::Result<()> {
    let mut after = shared.map.read().clone();
    let gone: Vec<Segment> = after.segments.drain(..count).collect();
    let Some(first) = after.segments.first().map(|segment| segment.number) else { return Ok(()) };
    let earliest = find_earliest(&after)?;
    let mut dropped = Vec::new();
    let bytes = {
        let mut map = shared.map.write();
        map.segments.drain(..count);
        map.relations.retain(|id, entry| {
            let keep = entry.at.segment >= first;
            if !keep {
                dropped.push(*id);
            }
            keep
        });
        map.earliest = earliest.map(|(position, block, _)| (position, block));
        map.earliest_commit_time = earliest.and_then(|(_, _, time)| time);
        map.bytes()
    };
    for segment in &gone {
        tracing::info!(segment = segment.number, bytes = segment.len, "retention removes a segment");
        fs::remove_file(&segment.path)?;
    }
    sync_dir(&shared.segments_dir)?;
    let next = after.segments.first().map_or(Position::default(), |segment| segment.after);
    if let Some(oldest) = gone.iter().find(|segment| segment.after.lsn > Lsn::ZERO) {
        shared.expiry.add(next.lsn.since(oldest.after.lsn));
    }
    metrics::set(metrics::JOURNAL_BYTES, bytes as f64);
    let places = gone.iter().flat_map(|segment| segment.places.iter().map(|place| (segment.number, place.offset)));
    desk.catalogue(places.map(|(segment, offset)| rows::drop_place(segment, offset)));
    desk.catalogue(dropped.into_iter().map(rows::drop_relation));
    Ok(())
}
