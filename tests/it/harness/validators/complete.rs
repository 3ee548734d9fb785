use std::collections::BTreeMap;

use walcast::{lsn::Lsn, wire::pb};

use super::super::{
    history::{StreamLog, lsn, order},
    parsed::{Item, Parsed, Violation, What},
    truth::{Expected, Op, Truth},
};

const COMPLETE: &str = "Complete";

/// Between the first stream's start and the last position that any stream reached, exactly the truth's selected
/// transactions were delivered, each at least once, with exactly its selected changes under their ordinals.
pub fn complete(parsed: &Parsed<'_>, truth: &Truth) -> Result<(), Violation> {
    let Some(first) = parsed.history.streams.iter().find(|stream| stream.opened().is_some()) else {
        return Ok(());
    };
    let from = lower_bound(first);
    let expected = truth.selected(parsed.history.filter.as_ref());
    let up_to = parsed.history.streams.iter().filter_map(StreamLog::position).map(|p| order(&p).0).max();
    let up_to = up_to.unwrap_or(from);

    let mut delivered: BTreeMap<Lsn, &[Item]> = BTreeMap::new();
    for (stream, units) in parsed.iter() {
        for unit in units {
            let (Some((after, event)), Some((_, items))) = (unit.committed(), unit.content()) else { continue };
            delivered.insert(after.0, items);
            if after.0 <= from && stream.number == first.number {
                return Err(Violation::at(
                    COMPLETE,
                    stream,
                    event,
                    format!("{} lies before the start {from}", after.0),
                ));
            }
            if expected.entries.binary_search_by_key(&after.0, |entry| entry.end_lsn).is_err() {
                return Err(Violation::at(
                    COMPLETE,
                    stream,
                    event,
                    format!("{} is not in the source's history", after.0),
                ));
            }
        }
    }
    for entry in expected.entries.iter().filter(|entry| entry.end_lsn > from && entry.end_lsn <= up_to) {
        let Some(items) = delivered.get(&entry.end_lsn) else {
            let text = format!(
                "the transaction of xid {} that ends at {} was not delivered (start {from}, reached {up_to})",
                entry.xid, entry.end_lsn
            );
            return Err(Violation::new(COMPLETE, text));
        };
        if let Some(text) = difference(&entry.items, items) {
            return Err(Violation::new(COMPLETE, format!("xid {}, end {}: {text}", entry.xid, entry.end_lsn)));
        }
    }
    Ok(())
}

/// Where the subscriber asked to start; where it left that to the hub, what `opened` says.
pub fn lower_bound(stream: &StreamLog) -> Lsn {
    let opened = stream.opened().and_then(|opened| opened.after.as_ref()).map_or(Lsn::ZERO, |after| order(after).0);
    match stream.start.as_ref().and_then(|start| start.at.as_ref()) {
        Some(pb::start::At::AfterLsn(text)) => lsn(text),
        Some(pb::start::At::After(position)) => order(position).0,
        _ => stream.resumes_after.as_ref().map_or(opened, |position| order(position).0),
    }
}

fn difference(expected: &[Expected], items: &[Item]) -> Option<String> {
    if expected.len() != items.len() {
        return Some(format!("{} changes were delivered of {}", items.len(), expected.len()));
    }
    for (expected, item) in expected.iter().zip(items) {
        let same = expected.ordinal == item.ordinal
            && match (&expected.what, &item.what) {
                (Op::Row(operation, table), What::Row { operation: got, shape, .. }) => {
                    operation == got && *table == shape.table
                }
                (Op::Truncate(tables), What::Truncate { tables: got, .. }) => got.iter().all(|t| tables.contains(t)),
                (Op::Message(prefix, content), What::Message { prefix: p, content: c }) => prefix == p && content == c,
                _ => false,
            };
        if !same {
            return Some(format!("expected {expected:?}, delivered {item:?}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    fn check(numbers: impl IntoIterator<Item = u64>) -> Result<(), Violation> {
        complete(&Parsed::of(&history([stream(0).all(numbers)])).unwrap(), &truth(1..=5))
    }

    #[test]
    fn a_skipped_transaction_is_caught() {
        check(1..=5).unwrap();
        check(1..=3).unwrap(); // not yet there is not lost
        assert_eq!(check([1, 2, 4, 5]).unwrap_err().guarantee, COMPLETE);
        assert!(check([2, 3]).is_err(), "the first one was skipped");
    }

    #[test]
    fn a_skip_under_progress_is_caught() {
        let skipped = history([stream(0).all([1, 2]).progress(3)]);
        assert!(complete(&Parsed::of(&skipped).unwrap(), &truth(1..=5)).is_err());
    }

    #[test]
    fn a_transaction_that_never_was_is_caught() {
        assert!(check([1, 2, 6]).is_err());
    }

    #[test]
    fn a_transaction_with_a_change_less_is_caught() {
        let short = history([stream(0).all([1]).shortened(2)]);
        assert!(complete(&Parsed::of(&short).unwrap(), &truth(1..=5)).is_err());
    }

    #[test]
    fn what_a_filter_leaves_out_is_not_missed() {
        let mut filtered = history([stream(0).all([]).progress(5)]);
        assert!(complete(&Parsed::of(&filtered).unwrap(), &truth(1..=5)).is_err());
        filtered.filter = Some(pb::Filter { tables: vec!["public.other".into()], ..Default::default() });
        complete(&Parsed::of(&filtered).unwrap(), &truth(1..=5)).unwrap();
    }
}
