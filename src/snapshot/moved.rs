//! Rows whose key changes from where the chunks have not been to where they will not be again.
//!
//! The stream has such an UPDATE, and that is enough unless it leaves a TOASTed value alone: then a
//! [new row comes without it](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html#PROTOCOL-LOGICALREP-MESSAGE-FORMATS-TUPLEDATA),
//! whoever has not got the old row cannot make the new one, and no chunk will have it. Whether one key lies behind another is
//! PostgreSQL's to say, and so are collations; so nothing is compared here. Every UPDATE of the table that is being read which changes
//! the key and leaves a value out makes a row that is *owed*, and owed rows are read by their new keys as soon as a snapshot sees the
//! UPDATE, in chunks like the others: with a snapshot and a mark of their own, and without what the snapshot does not see. That more is
//! owed than is missing costs a row that is sent again in its newest state.
//!
//! Nothing is missed:
//!
//! - Who has the row's old state before the UPDATE comes has it all. That is everybody once a chunk has the old key, unless a
//!   transaction that the chunk does not see left it out; that one is in front of the chunk's mark and is looked at as well.
//! - Otherwise the UPDATE lies behind the mark of the last chunk and in front of the next one's, or in front of it and not seen by
//!   its snapshot. These are the transactions that are looked at with every chunk.
//! - Read by its new key, the row is there, and then it is sent or left out for a transaction that brings it, or owes it again; or it
//!   is not there, and then whoever took it away is seen, and so in the stream: a DELETE, an UPDATE with all values, or one that owes the
//!   next key.
//! - A table ends only when nothing is owed. Once its last chunk is sent, at that chunk's mark, clients have every row but those that
//!   are owed, and it stays so: behind the mark, whoever has a row has it after an UPDATE, a row that is inserted comes whole, wherever
//!   its key is, and only an UPDATE of a row that is owed owes the next key. What an UPDATE in front of the mark owes was added when
//!   that chunk was placed, or before; if chunks behind do not see it yet, it is still owed, since none of them has asked for it. So it
//!   does not matter what the snapshots of later chunks see, and the end comes, however many rows move: every row that is owed has only
//!   to stay at one key for as long as a chunk takes.
//!
//! A client that resumes has seen the stream up to somewhere between two marks. So the search begins at the last mark again, or
//! where that of the oldest owed row began ([`Progress::owed_after`]), and if the journal has left that place behind, the table is read
//! from its beginning. So it is if more is owed than is remembered, which is what a transaction that moves
//! a whole table does; once such a transaction is seen, every row is at its new place. What it moves is counted while it is read,
//! and forgotten as soon as it is too much: a transaction may have any size.

use std::collections::HashMap;

use super::scan::unreadable;
use crate::{
    failpoint,
    feed::{Feed, SnapshotError, Start},
    lsn::Lsn,
    model::{Position, Visibility},
    reason::{Classified, Reason},
    wire::token::Progress,
};

/// Rows that may be owed.
const MOST: usize = 65_536;
/// Rows that are asked for at a time.
const AT_ONCE: usize = 1024;

fn most() -> usize {
    if failpoint::planted("remember_few_moves") { 1024 } else { MOST }
}

/// What a transaction that may yet be discarded owes, if it commits: rows whose key it changes by UPDATEs that do not bring them
/// whole.
#[derive(Default)]
pub(super) struct Moves {
    /// By the encoded new keys, these as literals that PostgreSQL reads as the same values.
    by_new: HashMap<Vec<u8>, Vec<String>>,
    /// More than are remembered; they are forgotten.
    too_many: bool,
}

struct Owed {
    /// The transaction that a snapshot must see to have the row there; 0: every snapshot does.
    xid: u64,
    literals: Vec<String>,
}

/// What is owed of one table.
pub(super) struct Moved {
    oid: u32,
    key: Vec<String>,
    /// Behind this place nobody has looked; `None`: no row of the table has been sent.
    since: Option<Position>,
    /// In front of this place nothing is owed.
    owed_after: Lsn,
    owed: HashMap<Vec<u8>, Owed>,
    /// Being read.
    asked: HashMap<Vec<u8>, Owed>,
    at_once: usize,
    /// Every row was sent but those that are owed.
    sent: bool,
    /// More were owed than are remembered; they are forgotten.
    too_much: bool,
}

impl Moved {
    /// Of a table that begins.
    pub fn of(oid: u32, key: &[String]) -> Self {
        Moved {
            oid,
            key: key.to_vec(),
            since: None,
            owed_after: Lsn::ZERO,
            owed: HashMap::new(),
            asked: HashMap::new(),
            at_once: AT_ONCE,
            sent: false,
            too_much: false,
        }
    }

    /// Of the table that rows have come to; `None`: where the search would have to begin has left the journal.
    pub async fn resumed(feed: &dyn Feed, progress: &Progress) -> Result<Option<Self>, SnapshotError> {
        let mut moved = Moved::of(progress.oid, &progress.key_columns);
        if progress.key.is_empty() {
            return Ok(Some(moved));
        }
        moved.owed_after = progress.owed_after;
        let after = if progress.owed_after > Lsn::ZERO { progress.owed_after } else { progress.at };
        match feed.locate(Start::AfterLsn(after)).await {
            Ok(cursor) => moved.since = Some(cursor.after),
            Err(error) if error.reason() == Reason::PositionExpired => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        }
        Ok(Some(moved))
    }

    /// Whether it is about this table, with this key.
    pub fn is_of(&self, oid: u32, key: &[String]) -> bool {
        self.oid == oid && self.key == key
    }

    /// Where the search for a chunk begins, which has to look at everything behind `floor`.
    pub fn begins(&self, floor: Position) -> Position {
        match self.since {
            Some(since) if since.lineage != floor.lineage || since.order() < floor.order() => since,
            _ => floor,
        }
    }

    /// Whether a transaction that ends here counts although it is seen; `None`: it goes on.
    pub fn is_news(&self, ending: Option<Position>) -> bool {
        let behind = |since: Position| {
            ending.is_none_or(|ending| ending.lineage != since.lineage || ending.order() > since.order())
        };
        self.since.is_some_and(behind)
    }

    pub fn is_owed(&self, key: &[u8]) -> bool {
        self.owed.contains_key(key) || self.asked.contains_key(key)
    }

    /// A transaction changes a key; both are encoded. `literals`: those of the new key.
    ///
    /// # Errors
    /// Those of `literals`.
    pub fn collect<E>(
        &self,
        moves: &mut Moves,
        old: &[u8],
        new: &[u8],
        literals: impl FnOnce() -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        if self.too_much || moves.too_many {
            return Ok(());
        }
        if !self.sent || self.is_owed(old) || moves.by_new.contains_key(old) {
            moves.by_new.insert(new.to_vec(), literals()?);
        }
        if self.owed.len() + moves.by_new.len() > most() {
            *moves = Moves { too_many: true, ..Moves::default() };
        }
        Ok(())
    }

    /// The transaction of these has committed.
    pub fn add(&mut self, moves: Moves, xid: u64, seen: bool) {
        if moves.too_many {
            self.too_much = true;
            self.owed = HashMap::new();
        }
        let xid = if seen { 0 } else { xid };
        self.owed.extend(moves.by_new.into_iter().map(|(new, literals)| (new, Owed { xid, literals })));
    }

    /// Everything from `began` up to the mark was looked at.
    pub fn looked(&mut self, began: Position, mark: Position) {
        self.since = Some(mark);
        if self.is_empty() {
            self.owed_after = Lsn::ZERO;
        } else if self.owed_after == Lsn::ZERO {
            self.owed_after = began.lsn;
        }
    }

    /// The keys of rows to be read now, which this snapshot and those behind it see.
    pub fn ask(&mut self, seen: &Visibility) -> Vec<Vec<String>> {
        for (key, owed) in self.asked.drain() {
            self.owed.entry(key).or_insert(owed);
        }
        let due = self.owed.iter().filter(|(_, owed)| seen.sees(owed.xid)).map(|(key, _)| key.clone());
        for key in due.take(self.at_once).collect::<Vec<_>>() {
            if let Some(owed) = self.owed.remove(&key) {
                self.asked.insert(key, owed);
            }
        }
        self.asked.values().map(|owed| owed.literals.clone()).collect()
    }

    /// What was asked for has come; `only`: no more than these, and there may be more.
    pub fn answered(&mut self, only: Option<&HashMap<Vec<u8>, usize>>) {
        match only {
            None => {
                self.at_once = (self.at_once * 2).min(AT_ONCE);
                self.asked.clear();
            }
            Some(came) => {
                self.at_once = (self.asked.len().min(came.len()) / 2).max(1);
                self.asked.retain(|key, _| !came.contains_key(key));
                for (key, owed) in self.asked.drain() {
                    self.owed.entry(key).or_insert(owed);
                }
            }
        }
        if self.owed.is_empty() {
            self.owed_after = Lsn::ZERO;
        }
    }

    /// Every row of the table was sent but those that are owed.
    pub fn is_sent(&mut self) {
        self.sent = true;
    }

    pub fn is_empty(&self) -> bool {
        self.owed.is_empty() && self.asked.is_empty()
    }

    /// Whether something can be asked for when this snapshot sees it.
    pub fn is_due(&self, seen: &Visibility) -> bool {
        self.owed.values().any(|owed| seen.sees(owed.xid))
    }

    /// Whether the table has to be read from its beginning.
    pub fn is_too_much(&self) -> bool {
        self.too_much
    }

    /// For [`Progress::owed_after`].
    pub fn owed_after(&self) -> Lsn {
        self.owed_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(moved: &Moved, moves: &mut Moves, old: usize, new: usize) {
        let literals = || Ok::<_, std::convert::Infallible>(vec![new.to_string()]);
        moved.collect(moves, &old.to_be_bytes(), &new.to_be_bytes(), literals).unwrap();
    }

    /// However many keys a transaction changes.
    #[test]
    fn what_is_owed_is_forgotten_when_it_is_too_much() {
        let mut table = Moved::of(1, &["id".to_owned()]);
        let mut few = Moves::default();
        moved(&table, &mut few, 1, 2);
        table.add(few, 7, true);
        let (mut discarded, mut many) = (Moves::default(), Moves::default());
        for row in 0..10 * MOST {
            moved(&table, &mut discarded, row, 1 << 40 | row);
            moved(&table, &mut many, row, 1 << 40 | row);
            assert!(table.owed.len() + many.by_new.len() <= MOST);
        }
        drop(discarded);
        assert!(!table.is_too_much() && table.is_owed(&2_usize.to_be_bytes()), "it may yet be discarded");
        table.add(many, 8, false);
        assert!(table.is_too_much() && table.is_empty());
        let mut more = Moves::default();
        moved(&table, &mut more, 3, 4);
        table.add(more, 9, true);
        assert!(table.is_too_much() && table.is_empty());
    }

    /// So do several that change few.
    #[test]
    fn transactions_owe_too_much_together() {
        let mut table = Moved::of(1, &["id".to_owned()]);
        for row in 0..=MOST {
            assert!(!table.is_too_much());
            let mut one = Moves::default();
            moved(&table, &mut one, row, 1 << 40 | row);
            table.add(one, 7, true);
        }
        assert!(table.is_too_much() && table.is_empty());
    }

    /// Those that others move meanwhile, whether snapshots see it or not, are no longer owed: their rows were sent.
    #[test]
    fn behind_the_last_chunk_only_what_is_owed_owes_more() {
        let mut table = Moved::of(1, &["id".to_owned()]);
        let mut first = Moves::default();
        moved(&table, &mut first, 1, 2);
        table.add(first, 7, false);
        table.is_sent();
        let mut other = Moves::default();
        moved(&table, &mut other, 10, 11);
        moved(&table, &mut other, 11, 12);
        table.add(other, 8, false);
        assert_eq!(table.owed.len(), 1);
        let mut on = Moves::default();
        moved(&table, &mut on, 2, 3);
        moved(&table, &mut on, 3, 4);
        table.add(on, 9, false);
        let all = Visibility { xmin: 10, xmax: 10, running: Vec::new() };
        assert_eq!(table.ask(&all).len(), 3);
        let mut asked = Moves::default();
        moved(&table, &mut asked, 4, 5);
        table.add(asked, 11, false);
        table.answered(None);
        assert!(!table.is_empty() && table.is_owed(&5_usize.to_be_bytes()) && !table.is_due(&all));
    }
}
