use std::collections::HashMap;

use walcast::{lsn::Lsn, wire::pb};

use super::super::{
    history::order,
    parsed::{Identity, Item, Parsed, Violation},
};

const DURABLE: &str = "Durable";

/// What was delivered before a crash is in the journal after it, the same: `later` is a subscriber with the same
/// filter that read everything from the beginning.
pub fn durable(before: &Parsed<'_>, later: &Parsed<'_>) -> Result<(), Violation> {
    let journal: HashMap<Identity, &[Item]> =
        later.streams.iter().flatten().filter_map(|unit| unit.content()).collect();
    for (stream, units) in before.iter() {
        for unit in units {
            let (Some((identity, items)), Some((_, event))) = (unit.content(), unit.committed()) else { continue };
            match journal.get(&identity) {
                Some(kept) if *kept == items => {}
                Some(_) => {
                    return Err(Violation::at(
                        DURABLE,
                        stream,
                        event,
                        format!("{identity:?} is another after the crash"),
                    ));
                }
                None => {
                    let text = format!("{identity:?} was delivered and is not in the journal");
                    return Err(Violation::at(DURABLE, stream, event, text));
                }
            }
        }
    }
    Ok(())
}

/// Acknowledged is remembered: the checkpoint after a crash is at or after every acknowledgement that was answered.
pub fn acknowledgements_survive(answered: &[pb::Position], checkpoint: Option<&pb::Position>) -> Result<(), Violation> {
    let Some(greatest) = answered.iter().max_by_key(|position| order(position)) else { return Ok(()) };
    match checkpoint {
        Some(checkpoint) if order(checkpoint) >= order(greatest) => Ok(()),
        other => {
            let text = format!("{greatest:?} was acknowledged, the checkpoint is {other:?}");
            Err(Violation::new(DURABLE, text))
        }
    }
}

/// PostgreSQL is told only what is journaled: `confirmed` are samples of confirmed_flush_lsn taken before a kill -9,
/// `tail` is the journal's tail when it is open again and before the slot streams.
pub fn server_was_told_less_than_journaled(confirmed: &[Lsn], tail: Lsn) -> Result<(), Violation> {
    match confirmed.iter().max() {
        Some(greatest) if *greatest > tail => {
            let text = format!("PostgreSQL was told {greatest}, the journal ends at {tail}");
            Err(Violation::new(DURABLE, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn a_delivered_transaction_that_the_journal_lost_is_caught() {
        let (before, kept, lost) =
            (history([stream(0).all(1..=3)]), history([stream(0).all(1..=4)]), history([stream(0).all([1, 2])]));
        let before = Parsed::of(&before).unwrap();
        durable(&before, &Parsed::of(&kept).unwrap()).unwrap();
        assert_eq!(durable(&before, &Parsed::of(&lost).unwrap()).unwrap_err().guarantee, DURABLE);
        let other = history([stream(0).all([1, 2]).altered(3)]);
        assert!(durable(&before, &Parsed::of(&other).unwrap()).is_err());
    }

    #[test]
    fn a_lost_acknowledgement_is_caught() {
        let answered = [position(2), position(3)];
        acknowledgements_survive(&answered, Some(&position(3))).unwrap();
        acknowledgements_survive(&[], None).unwrap();
        assert!(acknowledgements_survive(&answered, Some(&position(2))).is_err());
        assert!(acknowledgements_survive(&answered, None).is_err());
    }

    #[test]
    fn an_acknowledgement_before_the_fsync_is_caught() {
        server_was_told_less_than_journaled(&[Lsn(5), Lsn(9)], Lsn(9)).unwrap();
        assert!(server_was_told_less_than_journaled(&[Lsn(5), Lsn(9)], Lsn(8)).is_err());
    }
}
