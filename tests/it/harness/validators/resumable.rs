use walcast::lsn::Lsn;

use super::{
    super::{
        parsed::{Parsed, Unit, Violation},
        truth::Truth,
    },
    complete::lower_bound,
};

const RESUMABLE: &str = "Resumable";

/// Every stream begins with the successor of the position it was asked to resume after, and goes on with successors:
/// neither later nor earlier than asked. A stream that resumed at a durable checkpoint may begin at a later one only
/// if that was acknowledged as well, which is why the client records what it last acknowledged.
pub fn resumable(parsed: &Parsed<'_>, truth: &Truth) -> Result<(), Violation> {
    let expected = truth.selected(parsed.history.filter.as_ref());
    for (stream, units) in parsed.iter() {
        if stream.opened().is_none() {
            continue;
        }
        let mut after: Lsn = lower_bound(stream);
        for unit in units {
            if let Unit::Timeline { .. } | Unit::Gap { .. } = unit {
                break; // from here the truth of one timeline no longer says what follows
            }
            let Some((position, event)) = unit.committed() else { continue };
            match expected.successor(after) {
                Some(entry) if entry.end_lsn == position.0 => after = position.0,
                other => {
                    let other = other.map(|entry| entry.end_lsn);
                    let text = format!("after {after} comes {}, the source's successor is {other:?}", position.0);
                    return Err(Violation::at(RESUMABLE, stream, event, text));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    fn resume(after: u64, numbers: &[u64]) -> Result<(), Violation> {
        let second = stream(1).resuming_after(after).all(numbers.iter().copied());
        resumable(&Parsed::of(&history([stream(0).all(1..=3), second])).unwrap(), &truth(1..=6))
    }

    #[test]
    fn a_resume_one_off_is_caught() {
        resume(2, &[3, 4, 5]).unwrap();
        resume(3, &[]).unwrap();
        assert_eq!(resume(2, &[4, 5]).unwrap_err().guarantee, RESUMABLE);
        assert!(resume(2, &[2, 3, 4]).is_err(), "the last one came again");
        assert!(resume(2, &[3, 5]).is_err(), "a skip later in the stream");
    }
}
