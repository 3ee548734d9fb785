use std::time::{Duration, Instant};

use walcast::lsn::Lsn;

use super::super::{
    history::{History, order},
    parsed::Violation,
};

const ISOLATED: &str = "Isolated";

/// While one subscriber is stuck, each healthy one reached `goal` within `bound` of `committed`, and the WAL that the
/// primary held back for the slot (samples in bytes) stayed below `retained_limit`.
pub fn isolated(
    healthy: &[&History],
    goal: Lsn,
    committed: Instant,
    bound: Duration,
    retained: &[u64],
    retained_limit: u64,
) -> Result<(), Violation> {
    for history in healthy {
        let reached = history.streams.iter().flat_map(|stream| &stream.events).find(|record| {
            super::super::history::resume_point(&record.kind).is_some_and(|position| order(position).0 >= goal)
        });
        match reached {
            None => {
                let text = format!("{:?} never reached {goal}", history.subscriber);
                return Err(Violation::new(ISOLATED, text));
            }
            Some(record) if record.at.saturating_duration_since(committed) > bound => {
                let took = record.at - committed;
                let text = format!("{:?} took {took:?} to {goal}, allowed {bound:?}", history.subscriber);
                return Err(Violation::new(ISOLATED, text));
            }
            Some(_) => {}
        }
    }
    match retained.iter().max() {
        Some(most) if *most > retained_limit => {
            let text = format!("the primary held back {most} bytes of WAL, allowed {retained_limit}");
            Err(Violation::new(ISOLATED, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn a_neighbour_that_waits_is_caught() {
        let (fast, stuck) = (history([stream(0).all(1..=5)]), history([stream(0).all(1..=2)]));
        let now = Instant::now();
        let check = |healthy: &History, bound, retained| {
            isolated(&[healthy], end(5), now - Duration::from_secs(5), bound, &[retained], 100)
        };
        check(&fast, Duration::from_secs(60), 50).unwrap();
        assert_eq!(check(&stuck, Duration::from_secs(60), 50).unwrap_err().guarantee, ISOLATED);
        assert!(check(&fast, Duration::from_millis(1), 50).is_err(), "too late");
        assert!(check(&fast, Duration::from_secs(60), 101).is_err(), "the slot was held");
    }
}
