use std::collections::{HashMap, HashSet};

use super::super::parsed::{Identity, Item, Parsed, Unit, Violation};

const UNIQUE: &str = "Unique";

/// No identity twice in one stream, and the same content wherever it comes again in another stream of the history.
pub fn unique(parsed: &Parsed<'_>) -> Result<(), Violation> {
    for (stream, units) in parsed.iter() {
        let mut seen = HashSet::new();
        for unit in units {
            let identity = match unit {
                // A discarded transaction may come again, whole.
                Unit::Transaction(span) if matches!(span.ending, super::super::parsed::Ending::Discard(_)) => continue,
                Unit::Transaction(span) => (span.identity.clone(), span.events.0),
                Unit::Message { lineage, after, event, .. } => ((lineage.clone(), after.0, after.1), *event),
                _ => continue,
            };
            if !seen.insert(identity.0.clone()) {
                return Err(Violation::at(
                    UNIQUE,
                    stream,
                    identity.1,
                    format!("{:?} comes twice in one stream", identity.0),
                ));
            }
        }
    }
    repeats_are_identical(&[parsed])
}

/// Whatever comes again, in whichever stream of whichever subscriber with the same filter, is the same.
pub fn repeats_are_identical(histories: &[&Parsed<'_>]) -> Result<(), Violation> {
    let mut known: HashMap<Identity, &[Item]> = HashMap::new();
    for parsed in histories {
        for (stream, units) in parsed.iter() {
            for unit in units {
                let (Some((identity, items)), Some((_, event))) = (unit.content(), unit.committed()) else { continue };
                let first = *known.entry(identity.clone()).or_insert(items);
                if first != items {
                    let differs = first.iter().zip(items).find(|(a, b)| a != b);
                    let text = format!(
                        "{identity:?} came again with other content: {} items then, {} now; first difference {differs:?}",
                        first.len(),
                        items.len()
                    );
                    return Err(Violation::at(UNIQUE, stream, event, text));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn a_duplicate_in_one_stream_is_caught() {
        unique(&Parsed::of(&history([stream(0).all(1..=3)])).unwrap()).unwrap();
        let twice = history([stream(0).all([1, 2, 2, 3])]);
        let violation = unique(&Parsed::of(&twice).unwrap()).unwrap_err();
        assert_eq!(violation.guarantee, UNIQUE);
    }

    #[test]
    fn repeats_in_another_stream_must_be_identical() {
        unique(&Parsed::of(&history([stream(0).all([1, 2]), stream(1).all([2, 3])])).unwrap()).unwrap();
        let changed = history([stream(0).all([1, 2]), stream(1).altered(2).all([3])]);
        assert!(unique(&Parsed::of(&changed).unwrap()).is_err());
    }

    #[test]
    fn a_discarded_part_may_be_followed_by_the_whole() {
        unique(&Parsed::of(&history([stream(0).all([1]).discarded(2).all([2])])).unwrap()).unwrap();
    }
}
