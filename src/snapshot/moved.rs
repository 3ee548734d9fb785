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
//! - A table ends only when nothing is owed. Once its last chunk is sent, clients have every row but those that are
//!   owed, and from then on only UPDATEs of these owe more; so the end comes, however many rows move.
//!
//! A client that resumes has seen the stream up to somewhere between two marks. So the search begins at the last mark again, or
//! where that of the oldest owed row began ([`Progress::owed_after`]), and if the journal has left that place behind, the table is read
//! from its beginning. So it is if more is owed than is remembered, which is what a transaction that moves
//! a whole table does; once such a transaction is seen, every row is at its new place.

use std::collections::HashMap;

use super::scan::unreadable;
use crate::{
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

/// A change of a key by an UPDATE that does not bring the whole row.
pub(super) struct Move {
    /// Encoded, as are all keys here.
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    /// The new one as literals that PostgreSQL reads as the same values.
    pub literals: Vec<String>,
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

    /// A transaction with these has committed. `seen`: by the snapshot of the chunk.
    pub fn add(&mut self, moves: Vec<Move>, xid: u64, seen: bool) {
        for Move { old, new, literals } in moves {
            if !seen || !self.sent || self.is_owed(&old) {
                self.owed.insert(new, Owed { xid: if seen { 0 } else { xid }, literals });
            }
        }
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

    pub fn is_too_much(&self) -> bool {
        self.owed.len() > MOST
    }

    /// For [`Progress::owed_after`].
    pub fn owed_after(&self) -> Lsn {
        self.owed_after
    }
}
