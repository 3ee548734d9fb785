use walcast::lsn::Lsn;

use super::{
    super::{
        history::order,
        parsed::{Parsed, Unit, Violation},
        truth::Truth,
    },
    complete::lower_bound,
};

const PROGRESS_SAFE: &str = "Progress-safe";

/// When `progress(p)` comes, every selected change at or before p has been sent in this stream, nothing at or before p
/// comes later, and p never goes back. That it stands between transactions is part of the grammar.
pub fn progress_safe(parsed: &Parsed<'_>, truth: &Truth) -> Result<(), Violation> {
    let expected = truth.selected(parsed.history.filter.as_ref());
    for (stream, units) in parsed.iter() {
        let mut sent = lower_bound(stream);
        let mut promised: Option<(Lsn, u32)> = None;
        for unit in units {
            match unit {
                Unit::Progress { progress, event } => {
                    let wrong = |text: String| Err(Violation::at(PROGRESS_SAFE, stream, *event, text));
                    let Some(position) = progress.position.as_ref().map(order) else {
                        return wrong("progress without a position".into());
                    };
                    if promised.is_some_and(|before| position < before) {
                        return wrong(format!("goes back from {promised:?} to {position:?}"));
                    }
                    if let Some(entry) = expected.successor(sent)
                        && entry.end_lsn <= position.0
                    {
                        return wrong(format!("promises {}, but {} was not sent", position.0, entry.end_lsn));
                    }
                    promised = Some(position);
                }
                Unit::Timeline { .. } | Unit::Gap { .. } => {
                    promised = None;
                    sent = Lsn(u64::MAX);
                }
                unit => {
                    let Some((after, event)) = unit.committed() else { continue };
                    if promised.is_some_and(|promised| after <= promised) {
                        let text = format!("{after:?} comes after progress {promised:?}");
                        return Err(Violation::at(PROGRESS_SAFE, stream, event, text));
                    }
                    sent = sent.max(after.0);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    fn check(streams: [Script; 1], truth: &Truth) -> Result<(), Violation> {
        progress_safe(&Parsed::of(&history(streams))?, truth)
    }

    #[test]
    fn progress_that_comes_too_early_is_caught() {
        check([stream(0).all([1, 2]).progress(2).all([3]).progress(3)], &truth(1..=3)).unwrap();
        let early = check([stream(0).all([1]).progress(2).all([2])], &truth([])).unwrap_err();
        assert_eq!(early.guarantee, PROGRESS_SAFE, "caught without the truth");
        assert!(check([stream(0).all([1]).progress(2)], &truth(1..=3)).is_err(), "and by the truth alone");
    }

    #[test]
    fn progress_that_goes_back_is_caught() {
        assert!(check([stream(0).all([1, 2]).progress(2).progress(1)], &truth(1..=2)).is_err());
    }

    #[test]
    fn progress_inside_a_transaction_is_caught() {
        assert!(check([stream(0).open(1).progress(0)], &truth([])).is_err());
    }
}
