//! Work that gives way. A nice value orders the threads of one scheduling group only, and a hub has a group of its own
//! ([autogroups](https://man7.org/linux/man-pages/man7/sched.7.html), a systemd unit's or a container's cgroup): against the
//! walsender on the same machine the least important thread of the hub weighs as much as the most important one. So a
//! thread that is to come last looks at how long it had to wait for a core
//! ([schedstat](https://docs.kernel.org/scheduler/sched-stats.html)), and where it had to, it works only for a share of
//! the time.

use std::{fs, thread, time::Duration};

/// Looked at after so much work.
const STRETCH: Duration = Duration::from_millis(5);
/// Cores are wanted by others when a thread waits this share of the time that it runs.
const CONTENDED: f64 = 0.125;
/// Longest rest.
const REST: Duration = Duration::from_secs(2);

/// Time of this thread on a core, and in the queue for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    running: Duration,
    waiting: Duration,
}

impl Spent {
    /// `None` where the kernel does not say.
    fn now() -> Option<Spent> {
        Spent::parse(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
    }

    fn parse(text: &str) -> Option<Spent> {
        let mut nanos = text.split_whitespace().map(|number| number.parse().map(Duration::from_nanos));
        Some(Spent { running: nanos.next()?.ok()?, waiting: nanos.next()?.ok()? })
    }

    /// How long to rest after the work since `before`, to work only for this share of the time.
    fn rest(self, before: Spent, share: f64) -> Duration {
        let running = self.running.saturating_sub(before.running);
        let waiting = self.waiting.saturating_sub(before.waiting);
        if waiting < running.mul_f64(CONTENDED) { Duration::ZERO } else { running.mul_f64(1.0 / share - 1.0).min(REST) }
    }
}

/// Of one thread.
pub(super) struct Patience {
    /// Of the time, while others want the cores; above 0, at most 1.
    share: f64,
    before: Option<Spent>,
    worked: Duration,
}

impl Patience {
    pub fn new(share: f64) -> Self {
        Patience { share, before: Spent::now(), worked: Duration::ZERO }
    }

    /// Behind a piece of work that took so long.
    pub fn give_way(&mut self, took: Duration) {
        self.worked += took;
        if self.worked < STRETCH {
            return;
        }
        self.worked = Duration::ZERO;
        let now = Spent::now();
        if let (Some(now), Some(before)) = (now, self.before) {
            thread::sleep(now.rest(before, self.share));
        }
        self.before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(text: &str) -> Spent {
        Spent::parse(text).expect("three numbers")
    }

    #[test]
    fn who_need_not_wait_does_not_rest() {
        let before = spent("1000000 500 7\n");
        assert_eq!(spent("11000000 600 9\n").rest(before, 0.1), Duration::ZERO);
    }

    #[test]
    fn who_waits_works_for_its_share() {
        let before = spent("1000000 500 7\n");
        assert_eq!(spent("11000000 5000500 9\n").rest(before, 0.25), Duration::from_millis(30));
        assert_eq!(spent("9000000000 9000000000 9\n").rest(before, 0.05), REST);
    }

    #[test]
    fn a_kernel_that_says_something_else_is_not_believed() {
        assert_eq!(Spent::parse("x 1 2"), None);
        assert_eq!(Spent::parse("1"), None);
    }
}
