//! Named places at which a test may kill the process, as `WALCAST_FAILPOINTS="segment_roll=abort@3"`: abort at the
//! third hit. Unset, a place costs one load.

use std::{
    collections::HashMap,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

struct Point {
    at: u64,
    hits: AtomicU64,
}

static POINTS: LazyLock<Option<HashMap<String, Point>>> = LazyLock::new(|| {
    let text = std::env::var("WALCAST_FAILPOINTS").ok()?;
    let points = text.split(',').filter_map(|point| {
        let (name, action) = point.split_once('=')?;
        let at = action.trim().strip_prefix("abort@")?.parse().ok()?;
        Some((name.trim().to_owned(), Point { at, hits: AtomicU64::new(0) }))
    });
    Some(points.collect())
});

/// Dies here when told to, as by SIGKILL: nothing is flushed, nothing is dropped.
pub fn hit(name: &str) {
    if let Some(point) = POINTS.as_ref().and_then(|points| points.get(name))
        && point.hits.fetch_add(1, Ordering::Relaxed) + 1 == point.at
    {
        std::process::abort();
    }
}
