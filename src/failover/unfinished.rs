//! The snapshot that a slot exports can be ahead of the server: a transaction whose commit record has been decoded
//! may not be marked as committed yet, and then its rows look as if it had been rolled back (fixed upstream in September
//! 2026: the server now waits). Whoever reads with the snapshot must first see these transactions end.

use std::time::Duration;

use crate::{
    model::Visibility,
    postgres::{Result, server, sql::Sql},
};

/// Returns when every transaction that is visible in the exported snapshot has ended for everybody.
pub(super) async fn wait(sql: &Sql, exported: &str) -> Result<()> {
    let exported = server::parse_snapshot(exported)?;
    loop {
        let now = server::current_snapshot(sql).await?;
        if ended(&exported, &now) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn ended(exported: &Visibility, now: &Visibility) -> bool {
    let running = now.running.iter().copied().chain(now.xmax..exported.xmax);
    running.into_iter().all(|xid| !exported.sees(xid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_decoded_and_still_runs_is_waited_for() {
        let parse = |text| server::parse_snapshot(text).unwrap();
        // Seen with a commit stuck in synchronous replication: the id is not even among those in progress.
        assert!(!ended(&parse("12014:12015:"), &parse("12014:12014:")));
        assert!(!ended(&parse("12010:12020:12012"), &parse("12011:12020:12011,12012")));
        assert!(ended(&parse("12010:12020:12012,12011"), &parse("12011:12020:12011,12012")));
        assert!(ended(&parse("12014:12015:"), &parse("12015:12015:")));
        assert!(ended(&parse("12014:12016:12014,12015"), &parse("12014:12014:")));
    }
}
