//! When a stream says `progress`: every second while something moves, every ten when nothing does, at once when the
//! stream has caught up for the first time, and at the next [`beat`] when the source has come or gone.
//!
//! A hub with very many streams says it less often, unless the client named an interval: each is a write of its own, about 40
//! µs of CPU time, and ten thousand of them in every second took a tenth of the intake beside them.

use std::time::Duration;

use tokio::time::Instant;

use super::lag;
use crate::{
    feed::{Marks, Resume, Window, resume_to_pb},
    model::Position,
    wire::{pb, position_to_pb, timestamp},
};

const MOVING: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_secs(10);
/// Of one stream among the streams of a hub: together they say a thousand per second, as long as that is within [`SILENT`].
const SHARE: Duration = Duration::from_millis(1);
const SHORTEST: Duration = Duration::from_millis(10);

/// What makes a progress worth sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub position: Resume,
    pub checkpoint: Option<Resume>,
    pub connected: bool,
}

/// How often each of so many streams looks at what no event wakes it for, and tells it.
pub(super) fn beat(streams: usize) -> Duration {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    SHARE.saturating_mul(streams).clamp(MOVING, SILENT)
}

#[derive(Debug)]
pub(super) struct Pace {
    /// As the client wants it.
    interval: Option<Duration>,
    last: Instant,
    reported: Standing,
    at_once: bool,
    told: Option<Position>,
}

impl Pace {
    /// A stream that has just told `standing`. An interval of the client's holds for both cases, from 10 ms, however many
    /// streams there are.
    pub fn new(interval: Option<Duration>, now: Instant, standing: Standing) -> Self {
        let interval = interval.map(|interval| interval.max(SHORTEST));
        Pace { interval, last: now, reported: standing, at_once: false, told: None }
    }

    /// The next progress is due now.
    pub fn at_once(&mut self) {
        self.at_once = true;
    }

    /// Whether asking [`Pace::due`] is worth it while blocks are flowing, in a hub with this [`beat`].
    pub fn may_be_due(&self, now: Instant, beat: Duration) -> bool {
        self.at_once || now >= self.last + self.interval.unwrap_or(beat)
    }

    pub fn due(&self, now: Instant, beat: Duration, standing: &Standing) -> bool {
        self.at_once || standing.connected != self.reported.connected || now >= self.deadline(beat, standing)
    }

    pub fn deadline(&self, beat: Duration, standing: &Standing) -> Instant {
        let unasked = if *standing == self.reported { SILENT } else { beat };
        self.last + self.interval.unwrap_or(unasked)
    }

    pub fn told(&mut self, now: Instant, standing: Standing) {
        self.last = now;
        self.at_once = false;
        self.told = Some(standing.position.position);
        self.reported = standing;
    }

    /// What was told does not count any more, and the next progress is due now.
    pub fn again(&mut self) {
        self.at_once = true;
        self.told = None;
    }

    /// The position of the last progress.
    pub fn last_told(&self) -> Option<Position> {
        self.told
    }
}

/// The event.
pub(super) fn event(
    standing: &Standing,
    marks: Marks,
    window: Window,
    caught_up: bool,
    credit: Option<(u64, u64)>,
) -> pb::Progress {
    pb::Progress {
        position: Some(resume_to_pb(&standing.position)),
        tail: Some(position_to_pb(marks.tail)),
        caught_up,
        source_connected: standing.connected,
        time: Some(timestamp(lag::now())),
        checkpoint: standing.checkpoint.as_ref().map(resume_to_pb),
        credit: credit.map(|(events, bytes)| pb::Credit { events, bytes }),
        expires_in: expires_in(standing.position.position, window).filter(|_| !caught_up),
    }
}

/// How long the position will be retained at the present rate, once that is less than an hour or the position lies in the
/// oldest fifth of what is retained. Streams that have caught up are not warned.
fn expires_in(position: Position, window: Window) -> Option<prost_types::Duration> {
    if window.expiry_bytes_per_second == 0 || position.lineage != window.earliest.lineage {
        return None;
    }
    let left = position.lsn.since(window.earliest.lsn);
    let retained = window.tail.lsn.since(window.earliest.lsn);
    let seconds = left / window.expiry_bytes_per_second;
    (seconds < 3600 || left < retained / 5)
        .then(|| prost_types::Duration { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::LineageId};

    fn at(lsn: u64) -> Position {
        Position::new(LineageId(1), Lsn(lsn))
    }

    fn standing(lsn: u64) -> Standing {
        Standing { position: at(lsn).into(), checkpoint: None, connected: true }
    }

    #[test]
    fn every_second_while_moving_every_ten_when_silent() {
        let now = Instant::now();
        let pace = Pace::new(None, now, standing(1));
        let due = |after, standing: &Standing| pace.due(now + after, beat(1000), standing);
        assert!(!due(SILENT - SHORTEST, &standing(1)) && due(SILENT, &standing(1)));
        assert!(!due(MOVING - SHORTEST, &standing(2)) && due(MOVING, &standing(2)));
        assert!(due(MOVING, &Standing { checkpoint: Some(at(1).into()), ..standing(1) }));
        assert!(due(Duration::ZERO, &Standing { connected: false, ..standing(1) }));
    }

    #[test]
    fn ten_thousand_streams_say_a_thousand_per_second_and_never_less_often_than_when_silent() {
        assert_eq!([0, 1000, 4000, 10_000, usize::MAX].map(|streams| beat(streams).as_secs()), [1, 1, 4, 10, 10]);
        let now = Instant::now();
        let asked = Some(Duration::from_millis(500));
        for (interval, expected) in [(None, Duration::from_secs(4)), (asked, Duration::from_millis(500))] {
            let pace = Pace::new(interval, now, standing(1));
            let due = |after| pace.due(now + after, beat(4000), &standing(2));
            assert!(!due(expected - SHORTEST) && due(expected), "{interval:?}");
            let may_be = |after| pace.may_be_due(now + after, beat(4000));
            assert!(!may_be(expected - SHORTEST) && may_be(expected), "{interval:?}");
        }
    }

    #[test]
    fn a_warning_comes_near_the_end_of_retention() {
        let window =
            |rate| Window { earliest: at(1000), tail: at(101_000), expiry_bytes_per_second: rate, ..Window::default() };
        let seconds = |lsn, rate| expires_in(at(lsn), window(rate)).map(|duration| duration.seconds);
        assert_eq!(seconds(50_000, 0), None);
        assert_eq!(seconds(50_000, 1), None);
        assert_eq!(seconds(50_000, 49), Some(1000), "less than an hour");
        assert_eq!(seconds(11_000, 1), Some(10_000), "the oldest fifth");
        assert_eq!(seconds(500, 1), Some(0));
    }
}
