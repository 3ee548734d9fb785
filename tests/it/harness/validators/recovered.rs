use std::collections::{BTreeMap, BTreeSet};

use walcast::{lsn::Lsn, wire::pb};

use super::super::{
    parsed::{Identity, Parsed, Span, Violation, What},
    truth::{Entry, Op, Truth},
};

const RECOVERED: &str = "Complete";

/// What the check counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions from the slot.
    pub streamed: usize,
    /// Transactions from log tables.
    pub replayed: usize,
}

/// Over a history that goes across one or more recoveries from log tables: every transaction of the source with at least
/// one row or truncate was delivered exactly once, with exactly its changes; those from the slot in commit order; and
/// replayed ones lie between what was journaled before them and what was streamed after them. (Their order among
/// themselves is checked by the replica, and exactly if the scenario has pg_walinspect.) Logical messages of the gap
/// are not in the log.
pub fn recovered(parsed: &Parsed<'_>, truth: &Truth, exact_order: bool) -> Result<Counts, Violation> {
    let truth = truth.selected(parsed.history.filter.as_ref());
    let wrong = |text: String| Err(Violation::new(RECOVERED, text));
    let by_xid: BTreeMap<u32, (usize, &Entry)> =
        truth.entries.iter().enumerate().filter(|(_, e)| e.xid != 0).map(|(at, e)| (e.xid, (at, e))).collect();
    let mut seen: BTreeMap<u64, Identity> = BTreeMap::new();
    let mut counts = Counts::default();
    let mut delivered: Vec<(usize, bool)> = Vec::new();
    for span in parsed.transactions() {
        let known = seen.entry(span.xid).or_insert_with(|| span.identity.clone());
        if *known != span.identity {
            return wrong(format!("xid {} was delivered as {known:?} and as {:?}", span.xid, span.identity));
        }
        if parsed.streams.len() > 1
            && delivered.iter().any(|(at, _)| by_xid.get(&(span.xid as u32)).is_some_and(|e| e.0 == *at))
        {
            continue; // a repetition after a reconnect; that it is the same is another check's
        }
        let Some((at, entry)) = by_xid.get(&(span.xid as u32)) else {
            return wrong(format!("xid {} is not in the source's history", span.xid));
        };
        let log = [pb::Provenance::LogReplay as i32, pb::Provenance::LogPoll as i32];
        let replayed = log.contains(&span.provenance);
        if replayed != (span.identity.2 > 0) {
            return wrong(format!("xid {}: sequence {} and provenance {}", span.xid, span.identity.2, span.provenance));
        }
        if content(entry, replayed) != carried(span) {
            let text =
                format!("xid {}: expected {:?}, delivered {:?}", span.xid, content(entry, replayed), carried(span));
            return wrong(text);
        }
        *if replayed { &mut counts.replayed } else { &mut counts.streamed } += 1;
        delivered.push((*at, replayed));
    }
    for entry in truth.entries.iter().filter(|entry| entry.xid != 0 && !content(entry, true).is_empty()) {
        if !seen.keys().any(|xid| *xid as u32 == entry.xid) {
            return wrong(format!("xid {}, which ends at {}, was not delivered", entry.xid, entry.end_lsn));
        }
    }
    let mut floor = 0;
    for run in delivered.chunk_by(|a, b| a.1 == b.1) {
        let places: Vec<usize> = run.iter().map(|(at, _)| *at).collect();
        let replayed = run[0].1;
        if (!replayed || exact_order) && !places.is_sorted() {
            return wrong(format!("not in commit order (replayed: {replayed}): {places:?}"));
        }
        let span: BTreeSet<usize> = places.iter().copied().collect();
        if span.first().is_some_and(|first| *first < floor) {
            return wrong(format!("a run (replayed: {replayed}) begins at {:?}, before {floor}", span.first()));
        }
        floor = span.last().copied().unwrap_or(floor);
    }
    Ok(counts)
}

/// With pg_walinspect replayed transactions have the LSNs of their commit records, in that order.
pub fn exact_lsns(parsed: &Parsed<'_>, truth: &Truth) -> Result<usize, Violation> {
    let commits: BTreeMap<u32, Lsn> = truth.entries.iter().map(|entry| (entry.xid, entry.commit_lsn)).collect();
    let mut last = Lsn::ZERO;
    let mut replayed = 0;
    for span in parsed.transactions().filter(|span| span.provenance == pb::Provenance::LogReplay as i32) {
        let (told, found) = (span.identity.1, commits.get(&(span.xid as u32)).copied());
        if found != Some(told) || span.identity.2 > 1 && told <= last {
            let text = format!("xid {} commits at {found:?}, not at {told}, and behind {last}", span.xid);
            return Err(Violation::new("Ordered", text));
        }
        last = told;
        replayed += 1;
    }
    Ok(replayed)
}

/// Operations by table, as counts; truncates one by one, since the log has them so.
fn content(entry: &Entry, replayed: bool) -> BTreeMap<(String, i32), usize> {
    let mut counts = BTreeMap::new();
    for item in &entry.items {
        match &item.what {
            Op::Row(operation, table) => *counts.entry((table.clone(), *operation as i32)).or_default() += 1,
            Op::Truncate(tables) => {
                for table in tables.iter().filter(|table| !table.starts_with("walcast.")) {
                    *counts.entry((table.clone(), pb::Operation::Truncate as i32)).or_default() += 1;
                }
            }
            Op::Message(..) if replayed => {}
            Op::Message(prefix, _) => *counts.entry((prefix.clone(), 0)).or_default() += 1,
        }
    }
    counts
}

fn carried(span: &Span) -> BTreeMap<(String, i32), usize> {
    let mut counts = BTreeMap::new();
    for item in &span.items {
        match &item.what {
            What::Row { operation, shape, .. } => {
                *counts.entry((shape.table.clone(), *operation as i32)).or_default() += 1;
            }
            What::Truncate { tables, .. } => {
                for table in tables {
                    *counts.entry((table.clone(), pb::Operation::Truncate as i32)).or_default() += 1;
                }
            }
            What::Message { prefix, .. } => *counts.entry((prefix.clone(), 0)).or_default() += 1,
        }
    }
    counts
}
