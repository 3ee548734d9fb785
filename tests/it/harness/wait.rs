//! Waiting for something to become true. The only place that sleeps, and only between two looks.

use std::{
    fmt::Debug,
    future::Future,
    panic::Location,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(15);

/// Looks until `probe` answers `Ok`, and returns what it found. Panics at the caller's line with the last mismatch
/// when `deadline` is over.
#[track_caller]
pub fn eventually<T, E, F, Fut>(deadline: Duration, mut probe: F) -> impl Future<Output = T>
where
    E: Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let caller = Location::caller();
    async move {
        let started = Instant::now();
        let mut last: Option<E> = None;
        loop {
            let left = deadline.saturating_sub(started.elapsed());
            match tokio::time::timeout(left.max(POLL), probe()).await {
                Ok(Ok(found)) => return found,
                Ok(Err(mismatch)) => last = Some(mismatch),
                Err(_) => {}
            }
            if started.elapsed() >= deadline {
                match last {
                    Some(mismatch) => panic!("{caller}: not within {deadline:?}; last seen: {mismatch:?}"),
                    None => panic!("{caller}: not within {deadline:?}; the probe never answered"),
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The same for probes without `await`; blocks the thread.
#[track_caller]
pub fn eventually_blocking<T, E: Debug>(deadline: Duration, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(found) => return found,
            Err(mismatch) if started.elapsed() >= deadline => {
                panic!("not within {deadline:?}; last seen: {mismatch:?}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// For probes: `Ok(())` when the condition holds, else the text of what was seen.
pub fn expect(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}
