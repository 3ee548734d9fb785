//! The snapshot that a slot exports can be ahead of the server: a transaction whose commit record has been decoded
//! may not be marked as committed yet, and then its rows look as if it had been rolled back (fixed upstream in September
//! 2026: the server now waits). Whoever reads with the snapshot must first see these transactions end.

use std::time::{Duration, Instant};

use super::BLOCKED_AFTER;
use crate::{
    model::Visibility,
    postgres::{Result, logtables::blockers, server, sql::Sql},
};

/// Returns when every transaction that is visible in the exported snapshot has ended for everybody; says for which it waits.
pub(super) async fn wait(sql: &Sql, exported: &str, blocked: &(dyn Fn(&[String]) + Send + Sync)) -> Result<()> {
    let exported = server::parse_snapshot(exported)?;
    let mut told = Instant::now();
    loop {
        let left = running(&exported, &server::current_snapshot(sql).await?);
        if left.is_empty() {
            return Ok(());
        }
        if told.elapsed() >= BLOCKED_AFTER {
            told = Instant::now();
            let blockers = blockers::of(sql, &left).await?;
            blocked(&blockers.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the exported snapshot sees and still runs now.
fn running(exported: &Visibility, now: &Visibility) -> Vec<u64> {
    let running = now.running.iter().copied().chain(now.xmax..exported.xmax);
    running.filter(|xid| exported.sees(*xid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_decoded_and_still_runs_is_waited_for() {
        let parse = |text| server::parse_snapshot(text).unwrap();
        // Seen with a commit stuck in synchronous replication: the id is not even among those in progress.
        assert_eq!(running(&parse("12014:12015:"), &parse("12014:12014:")), [12014]);
        assert_eq!(running(&parse("12010:12020:12012"), &parse("12011:12020:12011,12012")), [12011]);
        assert!(running(&parse("12010:12020:12012,12011"), &parse("12011:12020:12011,12012")).is_empty());
        assert!(running(&parse("12014:12015:"), &parse("12015:12015:")).is_empty());
        assert!(running(&parse("12014:12016:12014,12015"), &parse("12014:12014:")).is_empty());
    }
}
