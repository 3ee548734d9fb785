use std::collections::BTreeSet;

use super::super::{
    history::{lsn, order},
    parsed::{Identity, Parsed, Unit, Violation},
};

const LINEAGE: &str = "Lineage";

/// A stream stays on the lineage of its start until `timeline_changed`; after it, nothing of the old lineage comes.
/// `lost`: identities that the failover took back, where the scenario knows them; then all of them that were delivered
/// before the switch must have been retracted, and nothing that was not lost.
pub fn lineage(parsed: &Parsed<'_>, lost: Option<&BTreeSet<Identity>>) -> Result<(), Violation> {
    let mut delivered: BTreeSet<Identity> = BTreeSet::new();
    let mut retracted: BTreeSet<Identity> = BTreeSet::new();
    let mut switched = false;
    for (stream, units) in parsed.iter() {
        let mut current = stream.opened().and_then(|opened| opened.after.as_ref()).map(|after| after.lineage.clone());
        for unit in units {
            match unit {
                Unit::Timeline { changed, event } => {
                    switched = true;
                    if current
                        .as_ref()
                        .is_some_and(|current| *current != changed.old_lineage && *current != changed.new_lineage)
                    {
                        let text = format!("the switch leaves {}, the stream is on {current:?}", changed.old_lineage);
                        return Err(Violation::at(LINEAGE, stream, *event, text));
                    }
                    current = Some(changed.new_lineage.clone());
                    for begin in changed.retracted.iter().filter_map(|retracted| retracted.begin.as_ref()) {
                        retracted.insert((begin.lineage.clone(), lsn(&begin.commit_lsn), begin.sequence));
                    }
                }
                Unit::Transaction(span) => {
                    if current.as_ref().is_some_and(|current| *current != span.identity.0) {
                        let text =
                            format!("a transaction of lineage {}, the stream is on {current:?}", span.identity.0);
                        return Err(Violation::at(LINEAGE, stream, span.events.0, text));
                    }
                    if span.committed().is_some() && !switched {
                        delivered.insert(span.identity.clone());
                    }
                }
                Unit::Message { lineage, event, .. } => {
                    if current.as_ref().is_some_and(|current| current != lineage) {
                        let text = format!("a message of lineage {lineage}, the stream is on {current:?}");
                        return Err(Violation::at(LINEAGE, stream, *event, text));
                    }
                }
                Unit::Progress { progress, event } => {
                    if let (Some(position), Some(current)) = (&progress.position, &current)
                        && position.lineage != *current
                    {
                        let text = format!("progress {:?} of another lineage than {current}", order(position));
                        return Err(Violation::at(LINEAGE, stream, *event, text));
                    }
                }
                Unit::Gap { gap, .. } => {
                    current = gap.up_to.as_ref().map(|up_to| up_to.lineage.clone()).or(current);
                }
                Unit::Read { .. } => {}
            }
        }
    }
    match lost {
        Some(lost) => {
            let owed: BTreeSet<_> = delivered.intersection(lost).cloned().collect();
            if owed.is_subset(&retracted) && retracted.is_subset(lost) {
                return Ok(());
            }
            Err(Violation::new(LINEAGE, format!("delivered and lost {owed:?}, retracted {retracted:?}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn a_lost_timeline_passed_off_as_current_is_caught() {
        let good = history([stream(0).all([1, 2]).switch(2, &[]).on("new").all([3])]);
        lineage(&Parsed::of(&good).unwrap(), None).unwrap();
        let unannounced = history([stream(0).all([1]).on("new").all([2])]);
        assert_eq!(lineage(&Parsed::of(&unannounced).unwrap(), None).unwrap_err().guarantee, LINEAGE);
        let stale = history([stream(0).all([1]).switch(1, &[]).all([2])]);
        assert!(lineage(&Parsed::of(&stale).unwrap(), None).is_err());
    }

    #[test]
    fn a_missing_retraction_is_caught() {
        let lost = BTreeSet::from([identity(2), identity(7)]);
        let told = history([stream(0).all([1, 2]).switch(1, &[2])]);
        lineage(&Parsed::of(&told).unwrap(), Some(&lost)).unwrap();
        let silent = history([stream(0).all([1, 2]).switch(1, &[])]);
        assert!(lineage(&Parsed::of(&silent).unwrap(), Some(&lost)).is_err());
        let wrong = history([stream(0).all([1, 2]).switch(1, &[1, 2])]);
        assert!(lineage(&Parsed::of(&wrong).unwrap(), Some(&lost)).is_err(), "1 was not lost");
    }
}
