//! `--from`: where a stream begins, as people say it.

use std::time::Duration;

use jiff::Timestamp;

use crate::{config::units::parse_duration, lsn::Lsn, wire::pb};

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The oldest that the journal has.
    Earliest,
    /// What commits from now on.
    Latest,
    /// The rows that are there, then what commits.
    Snapshot,
    /// The subscriber's checkpoint, strictly.
    Checkpoint,
    /// Transactions whose commit record ends after it.
    Lsn(Lsn),
    /// Commits at or after this time.
    At(Timestamp),
    /// Commits of this last while, counted back from when the stream opens.
    Ago(Duration),
}

/// Reads `--from`; the message says what is understood.
pub fn parse(text: &str) -> Result<From, String> {
    match text.trim() {
        "earliest" => return Ok(From::Earliest),
        "latest" | "now" => return Ok(From::Latest),
        "snapshot" => return Ok(From::Snapshot),
        "checkpoint" => return Ok(From::Checkpoint),
        _ => {}
    }
    if text.contains('/') {
        return text.trim().parse().map(From::Lsn).map_err(|error: crate::lsn::ParseLsnError| error.to_string());
    }
    let ago = text.trim().trim_end_matches("ago").trim_end();
    if let Ok(duration) = parse_duration(ago) {
        return Ok(From::Ago(duration));
    }
    text.trim().parse().map(From::At).map_err(|_| {
        format!(
            "{text:?} is none of earliest, latest, snapshot, checkpoint, an LSN such as 0/16B3748, a time such as \
             2026-01-31T12:00:00Z, or how long ago such as 5m"
        )
    })
}

/// Reads `--to` of `walcast subscribers reset`: a checkpoint is moved to a place, and the rows that are there are none.
pub fn parse_reset(text: &str) -> Result<From, String> {
    match parse(text) {
        Ok(From::Snapshot | From::Checkpoint) | Err(_) if !text.contains('/') => Err(format!(
            "{text:?} is none of earliest, latest, an LSN such as 0/16B3748, a time such as 2026-01-31T12:00:00Z, or how \
             long ago such as 5m"
        )),
        parsed => parsed,
    }
}

impl From {
    /// For the request; `now` is what "ago" counts back from.
    pub fn to_pb(self, now: Timestamp) -> pb::Start {
        use pb::start::At;
        let at = match self {
            From::Earliest => At::Earliest(()),
            From::Latest => At::Latest(()),
            From::Snapshot => At::Snapshot(pb::SnapshotOptions::default()),
            From::Checkpoint => At::Checkpoint(()),
            From::Lsn(lsn) => At::AfterLsn(lsn.to_string()),
            From::At(time) => At::Since(timestamp(time)),
            From::Ago(duration) => At::Since(timestamp(now.checked_sub(duration).unwrap_or(Timestamp::MIN))),
        };
        pb::Start { at: Some(at) }
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.as_nanosecond();
    let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    prost_types::Timestamp { seconds: seconds as i64, nanos: nanos as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_it() {
        for (text, from) in [
            ("earliest", From::Earliest),
            ("latest", From::Latest),
            ("now", From::Latest),
            ("checkpoint", From::Checkpoint),
            ("16/B374D848", From::Lsn(Lsn(0x16_B374_D848))),
            ("5m", From::Ago(Duration::from_secs(300))),
            ("5m ago", From::Ago(Duration::from_secs(300))),
            ("1h30m", From::Ago(Duration::from_secs(5400))),
        ] {
            assert_eq!(parse(text), Ok(from), "{text}");
        }
        let Ok(From::At(time)) = parse("2026-01-31T12:00:00+01:00") else { panic!("a time") };
        assert_eq!(time.to_string(), "2026-01-31T11:00:00Z");
    }

    #[test]
    fn what_is_not_a_start_is_refused() {
        for text in ["", "soon", "0/", "0/G", "16", "2026-01-31", "ago", "yesterday"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        for text in ["snapshot", "checkpoint", "foo", "0/G"] {
            let refused = parse_reset(text).expect_err("no place");
            assert!(!refused.contains("snapshot,"), "{refused}");
        }
        assert_eq!(parse_reset("5m"), Ok(From::Ago(Duration::from_secs(300))));
    }

    #[test]
    fn ago_counts_back_from_the_opening() {
        let now: Timestamp = "2026-01-31T12:00:00.5Z".parse().expect("a time");
        let start = From::Ago(Duration::from_secs(60)).to_pb(now);
        let expected = prost_types::Timestamp { seconds: now.as_second() - 60, nanos: 500_000_000 };
        assert_eq!(start.at, Some(pb::start::At::Since(expected)));
    }
}
