use walcast::lsn::Lsn;

use super::super::{
    history::lsn,
    parsed::{Parsed, Unit, Violation},
};

const ORDERED: &str = "Ordered";

/// Transactions and messages of one stream have strictly increasing resume points, and a transaction's commit record
/// lies at or after the end of what came before: the resume point, or one less for a message outside transactions,
/// whose position is its LSN + 1. A switch of the timeline starts anew at the last common position, which may lie before
/// the switch: the hub need not have come that far.
pub fn ordered(parsed: &Parsed<'_>) -> Result<(), Violation> {
    for (stream, units) in parsed.iter() {
        let mut floor = Lsn::ZERO;
        let mut last = stream.opened().and_then(|opened| opened.after.as_ref()).map(super::super::history::order);
        for unit in units {
            if let Unit::Timeline { changed, .. } = unit {
                let common = changed.position.as_ref();
                last = common.map(super::super::history::order);
                floor = common.map_or(Lsn::ZERO, |common| lsn(&common.lsn));
                continue;
            }
            let Some((after, event)) = unit.committed() else { continue };
            if let Some(before) = last
                && after <= before
            {
                let text = format!("{after:?} comes after {before:?}");
                return Err(Violation::at(ORDERED, stream, event, text));
            }
            floor = match unit {
                Unit::Transaction(span) => {
                    let commit_lsn = span.identity.1;
                    if commit_lsn >= after.0 || span.identity.2 == 0 && commit_lsn < floor {
                        let text = format!("the commit record at {commit_lsn} is not between {floor} and {}", after.0);
                        return Err(Violation::at(ORDERED, stream, event, text));
                    }
                    after.0
                }
                _ => Lsn(after.0.0 - 1),
            };
            last = Some(after);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn swapped_transactions_are_caught() {
        ordered(&Parsed::of(&history([stream(0).all(1..=4)])).unwrap()).unwrap();
        let swapped = history([stream(0).all([1, 3, 2, 4])]);
        let violation = ordered(&Parsed::of(&swapped).unwrap()).unwrap_err();
        assert_eq!(violation.guarantee, ORDERED);
        assert!(violation.context.contains(">>"), "{violation}");
    }

    #[test]
    fn the_same_lsn_with_rising_sequences_is_order() {
        let replayed = history([stream(0).replayed(1, 1).replayed(1, 2).all([2])]);
        ordered(&Parsed::of(&replayed).unwrap()).unwrap();
        let swapped = history([stream(0).replayed(1, 2).replayed(1, 1)]);
        assert!(ordered(&Parsed::of(&swapped).unwrap()).is_err());
    }
}
