//! Named places at which a test may kill the process, as `WALCAST_FAILPOINTS="segment_roll=abort@3"`: abort at the
//! third hit. `stall@3` holds the thread there for good instead, and `hold@3` until the file exists that
//! `WALCAST_FAILPOINT_RELEASE` names; that it holds, a file with `.held` behind that name tells. Unset, a place costs one load.
//!
//! And named mistakes that a test may plant, as `WALCAST_FAILPOINTS="bare_xid=plant"`, to see that the tests' validators
//! catch them. A release build has none of them.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Clone, Copy)]
enum Action {
    Abort,
    Stall,
    Hold,
}

struct Point {
    action: Action,
    at: u64,
    hits: AtomicU64,
}

static POINTS: LazyLock<Option<HashMap<String, Point>>> = LazyLock::new(|| {
    let text = std::env::var("WALCAST_FAILPOINTS").ok()?;
    let points = text.split(',').filter_map(|point| {
        let (name, action) = point.split_once('=')?;
        let (action, at) = action.trim().split_once('@')?;
        let action = match action {
            "abort" => Action::Abort,
            "stall" => Action::Stall,
            "hold" => Action::Hold,
            _ => return None,
        };
        Some((name.trim().to_owned(), Point { action, at: at.parse().ok()?, hits: AtomicU64::new(0) }))
    });
    Some(points.collect())
});

/// Dies here when told to, as by SIGKILL: nothing is flushed, nothing is dropped. Or stays here, as in a call to a disk that
/// does not answer, or answers late.
pub fn hit(name: &str) {
    if let Some(point) = POINTS.as_ref().and_then(|points| points.get(name))
        && point.hits.fetch_add(1, Ordering::Relaxed) + 1 == point.at
    {
        match point.action {
            Action::Abort => std::process::abort(),
            Action::Stall => loop {
                std::thread::park();
            },
            Action::Hold => hold(),
        }
    }
}

fn hold() {
    let Some(release) = std::env::var_os("WALCAST_FAILPOINT_RELEASE").map(PathBuf::from) else { return };
    let mut held = release.clone().into_os_string();
    held.push(".held");
    while std::fs::write(&held, []).is_ok() && !release.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

static PLANTED: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let text = std::env::var("WALCAST_FAILPOINTS").unwrap_or_default();
    text.split(',').filter_map(|point| Some(point.strip_suffix("=plant")?.trim().to_owned())).collect()
});

/// Whether this mistake is to be made. Never in a release build.
pub fn planted(name: &str) -> bool {
    cfg!(debug_assertions) && PLANTED.contains(name)
}
