//! How many pieces a second streams that catch up may take in, all together, and how fast the journal grows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Whatever happens: 32 MB/s.
const LEAST: f64 = 500.0;
/// Before anything is known.
const FIRST: f64 = 1000.0;
/// For each core: about a quarter of what it could do of them, with the readers on the same machine.
const MOST: f64 = 2500.0;
/// Between two times at which streams are let go on. More often than this costs more than it helps; more pieces a second
/// are let go on several at once.
const SHORTEST_GAP: Duration = Duration::from_micros(100);
/// What is judged together.
const WINDOW: Duration = Duration::from_millis(20);
const GRANTS: u64 = 16;
/// Mean time from being let go on to going on: too long, and short enough for more.
const LONG: Duration = Duration::from_micros(200);
const SHORT: Duration = Duration::from_micros(120);
const SLOWER: f64 = 0.7;
const FASTER: f64 = 1.05;
/// Faster only where so much of what there may be was taken. One stream alone takes no turn while it reads from disk.
const WANTED: f64 = 0.5;

/// How long streams took to go on once they were let, since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    nanos: AtomicU64,
    times: AtomicU64,
}

impl Lateness {
    pub fn add(&self, late: Duration) {
        self.nanos.fetch_add(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
    }

    fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    fn take_mean(&self) -> Duration {
        let times = self.times.swap(0, Ordering::Relaxed).max(1);
        Duration::from_nanos(self.nanos.swap(0, Ordering::Relaxed) / times)
    }
}

#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    most: f64,
    began: Instant,
    /// Pieces since then.
    taken: f64,
}

impl Rate {
    pub fn new(cores: usize, now: Instant) -> Self {
        Rate { per_second: FIRST, most: MOST * cores as f64, began: now, taken: 0.0 }
    }

    /// Between two times at which streams are let go on.
    pub fn gap(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second).max(SHORTEST_GAP)
    }

    /// How many may go on at each of them.
    pub fn at_once(&self) -> u32 {
        (self.per_second * self.gap().as_secs_f64()).round().max(1.0) as u32
    }

    /// One stream takes in a piece.
    pub fn take(&mut self) {
        self.taken += 1.0;
    }

    /// Behind a gap: the new rate, if it is time to judge.
    pub fn judge(&mut self, now: Instant, lateness: &Lateness) -> Option<f64> {
        let judged = now - self.began;
        if lateness.times() < GRANTS || judged < WINDOW {
            return None;
        }
        let wanted = self.taken >= WANTED * self.per_second * judged.as_secs_f64();
        let change = match lateness.take_mean() {
            mean if mean > LONG => SLOWER,
            mean if mean < SHORT && wanted => FASTER,
            _ => 1.0,
        };
        let per_second = (self.per_second * change).clamp(LEAST, self.most);
        *self = Rate { per_second, began: now, taken: 0.0, ..*self };
        Some(per_second)
    }
}

/// How fast the journal grows.
#[derive(Debug, Default)]
pub(super) struct Growth {
    last: Option<(Instant, u64)>,
    /// Bytes per second: what was seen last, and of what was more before it four fifths at each look.
    per_second: f64,
}

impl Growth {
    pub fn is_older_than(&self, age: Duration) -> bool {
        self.last.is_none_or(|(at, _)| at.elapsed() >= age)
    }

    /// The journal has so many bytes.
    pub fn look(&mut self, bytes: u64) {
        self.look_at(Instant::now(), bytes);
    }

    fn look_at(&mut self, now: Instant, bytes: u64) {
        // Less than before: retention has removed a segment, and this look says nothing.
        if let Some((at, before)) = self.last
            && let Some(grown) = bytes.checked_sub(before)
        {
            let seconds = (now - at).as_secs_f64().max(1e-3);
            self.per_second = (grown as f64 / seconds).max(self.per_second * 0.8);
        }
        self.last = Some((now, bytes));
    }

    #[cfg(test)]
    pub fn grows_by(&mut self, per_second: f64) {
        self.per_second = per_second;
    }

    /// In which the journal grows by so many bytes; `None`: it does not grow.
    pub fn time_for(&self, bytes: usize) -> Option<Duration> {
        let seconds = bytes as f64 / self.per_second;
        (seconds < 3600.0).then(|| Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets time pass in which everybody is so late, and one turn in so many is taken.
    fn pass(time: Duration, rate: &mut Rate, now: &mut Instant, late: Duration, one_in: u32) {
        let lateness = Lateness::default();
        let end = *now + time;
        for turn in 0.. {
            if *now >= end {
                break;
            }
            *now += rate.gap();
            for _ in 0..rate.at_once() {
                lateness.add(late);
                if turn % one_in == 0 {
                    rate.take();
                }
            }
            rate.judge(*now, &lateness);
        }
    }

    fn second(rate: &mut Rate, now: &mut Instant, late: Duration, one_in: u32) {
        pass(Duration::from_secs(1), rate, now, late, one_in);
    }

    #[test]
    fn nobody_is_late_and_it_grows_until_nobody_wants_more() {
        let mut now = Instant::now();
        let mut rate = Rate::new(64, now);
        second(&mut rate, &mut now, Duration::ZERO, 1);
        assert!(rate.per_second > 4.0 * FIRST, "{rate:?}");
        pass(2 * WINDOW, &mut rate, &mut now, Duration::ZERO, 3);
        let before = rate.per_second;
        second(&mut rate, &mut now, Duration::ZERO, 3);
        assert_eq!(rate.per_second, before);
        for _ in 0..20 {
            second(&mut rate, &mut now, Duration::ZERO, 1);
        }
        assert_eq!(rate.per_second, 64.0 * MOST);
        assert_eq!((rate.gap(), rate.at_once()), (SHORTEST_GAP, 16));
    }

    /// One stream, which is away now and then for as long as several turns.
    #[test]
    fn who_was_away_for_some_turns_is_no_reason_not_to_grow() {
        let mut now = Instant::now();
        let mut rate = Rate::new(2, now);
        let lateness = Lateness::default();
        for turn in 0..20_000 {
            now += rate.gap();
            if turn % 20 < 14 {
                rate.take();
                lateness.add(Duration::ZERO);
            }
            rate.judge(now, &lateness);
        }
        assert_eq!(rate.per_second, 2.0 * MOST);
    }

    #[test]
    fn who_is_late_is_given_way_but_never_everything() {
        let mut now = Instant::now();
        let mut rate = Rate::new(2, now);
        second(&mut rate, &mut now, LONG * 2, 1);
        assert_eq!(rate.per_second, LEAST);
        assert_eq!((rate.gap(), rate.at_once()), (Duration::from_millis(2), 1));
    }

    #[test]
    fn it_comes_to_rest_between_too_long_and_short() {
        let mut now = Instant::now();
        let mut rate = Rate::new(2, now);
        // The more pieces, the later everybody is.
        for _ in 0..500 {
            let late = LONG.mul_f64(rate.per_second / 3000.0);
            pass(WINDOW, &mut rate, &mut now, late, 1);
        }
        assert!((1500.0..3000.0).contains(&rate.per_second), "{rate:?}");
    }

    #[test]
    fn growth_follows_at_once_upwards_and_slowly_down() {
        let mut growth = Growth::default();
        let now = Instant::now();
        let at = |millis| now + Duration::from_millis(millis);
        growth.look_at(at(0), 1_000_000);
        assert_eq!(growth.time_for(1000), None, "nothing is known");
        growth.look_at(at(1000), 2_000_000);
        assert_eq!(growth.time_for(500_000), Some(Duration::from_millis(500)));
        growth.look_at(at(2000), 2_000_000);
        assert_eq!(growth.time_for(800_000), Some(Duration::from_secs(1)));
        growth.look_at(at(3000), 500_000);
        assert_eq!(growth.time_for(800_000), Some(Duration::from_secs(1)), "a segment was removed");
        growth.look_at(at(4000), 4_500_000);
        assert_eq!(growth.time_for(4_000_000), Some(Duration::from_secs(1)));
    }
}
