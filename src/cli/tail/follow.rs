//! What a client must remember to read a stream rightly: relation versions, the open transaction, where to resume,
//! and what has been printed already. Pure; the loop around it owns the connection.
//!
//! A stream that broke inside a transaction is resumed in front of it, and the transaction comes again from its
//! first change with the same identity (lineage, commit LSN, sequence, ordinal). What was printed before is dropped.

use std::collections::HashMap;

use crate::{
    cli::{
        error::Error,
        rows::{RowView, table_name},
    },
    wire::pb::{self, event::Kind},
};

/// The reading side of one subscription, over any number of streams.
#[derive(Debug, Default)]
pub struct Follower {
    relations: HashMap<u32, pb::Relation>,
    open: Option<Open>,
    /// What was open when the last stream broke.
    interrupted: Option<Open>,
    resume: Option<pb::Position>,
    progress: Option<pb::Progress>,
    session: u64,
    changes: u64,
}

#[derive(Debug)]
struct Open {
    begin: pb::Begin,
    /// Events up to this ordinal have been shown.
    shown: u64,
}

/// One event worth showing, with what is needed to understand it.
#[derive(Debug)]
pub enum Item<'a> {
    /// A transaction begins. `abandoned`: another one was shown in part and has not come again.
    Begin {
        /// What began.
        begin: &'a pb::Begin,
        /// What does not count.
        abandoned: Option<pb::Begin>,
    },
    /// One row.
    Change(RowChange<'a>),
    /// Tables emptied.
    Truncate {
        /// Its transaction.
        begin: Option<&'a pb::Begin>,
        /// `schema.table` of each.
        tables: Vec<String>,
        /// The event.
        truncate: pb::Truncate,
    },
    /// A logical message.
    Message {
        /// Its transaction; `None` outside of one.
        begin: Option<&'a pb::Begin>,
        /// The event.
        message: pb::LogicalMessage,
    },
    /// The open transaction is whole.
    Commit {
        /// What began it.
        begin: pb::Begin,
        /// The event.
        commit: pb::Commit,
    },
    /// The open transaction never happened.
    Discard {
        /// What began it.
        begin: pb::Begin,
        /// Why.
        reason: String,
    },
    /// Any other event.
    Other(Kind),
}

/// A change with its relation version and decoded images.
#[derive(Debug)]
pub struct RowChange<'a> {
    /// Its transaction; `None` for rows of a snapshot.
    pub begin: Option<&'a pb::Begin>,
    /// The version that its rows are positional against.
    pub relation: &'a pb::Relation,
    /// The event; rows in it are those that were checked.
    pub change: pb::Change,
}

impl RowChange<'_> {
    /// The old image.
    pub fn before(&self) -> Option<RowView<'_>> {
        self.change.before_row.as_ref().and_then(|row| RowView::new(self.relation, row).ok())
    }

    /// The new image.
    pub fn after(&self) -> Option<RowView<'_>> {
        self.change.after_row.as_ref().and_then(|row| RowView::new(self.relation, row).ok())
    }
}

impl Follower {
    /// The position to resume after: everything up to it has been shown.
    pub fn resume(&self) -> Option<&pb::Position> {
        self.resume.as_ref()
    }

    /// The last progress.
    pub fn progress(&self) -> Option<&pb::Progress> {
        self.progress.as_ref()
    }

    /// The fencing token of the stream; 0 for anonymous ones.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Changes, truncates and messages shown.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The stream has ended, wherever it was; relation numbers do not outlive it.
    pub fn disconnected(&mut self) {
        if self.open.is_some() {
            self.interrupted = self.open.take();
        }
        self.relations.clear();
    }

    /// Takes the next event. `None`: nothing to show, or shown before.
    pub fn accept(&mut self, event: pb::Event) -> Result<Option<Item<'_>>, Error> {
        let Some(kind) = event.kind else {
            return Err(Error::Protocol("an event of a kind that this version does not know".to_owned()));
        };
        match kind {
            Kind::Relation(relation) => {
                self.relations.insert(relation.relation_id, relation);
                Ok(None)
            }
            Kind::Begin(begin) => Ok(self.begin(begin)),
            Kind::Change(change) => self.change(change),
            Kind::Truncate(truncate) => self.truncate(truncate),
            Kind::Message(message) => self.message(message),
            Kind::Commit(commit) => {
                let begin = self.end("commit")?;
                self.resume.clone_from(&commit.position);
                Ok(Some(Item::Commit { begin, commit }))
            }
            Kind::Discard(discard) => {
                let begin = self.end("discard")?;
                Ok(Some(Item::Discard { begin, reason: discard.reason }))
            }
            Kind::Opened(opened) => {
                self.session = opened.session;
                if self.resume.is_none() {
                    self.resume.clone_from(&opened.after);
                }
                Ok(Some(Item::Other(Kind::Opened(opened))))
            }
            Kind::Progress(progress) => {
                self.resume.clone_from(&progress.position);
                self.progress = Some(progress.clone());
                Ok(Some(Item::Other(Kind::Progress(progress))))
            }
            Kind::TimelineChanged(changed) => {
                if changed.position.is_some() {
                    self.resume.clone_from(&changed.position);
                }
                Ok(Some(Item::Other(Kind::TimelineChanged(changed))))
            }
            Kind::SnapshotEnd(end) => {
                self.resume.clone_from(&end.position);
                Ok(Some(Item::Other(Kind::SnapshotEnd(end))))
            }
            other => Ok(Some(Item::Other(other))),
        }
    }

    fn begin(&mut self, begin: pb::Begin) -> Option<Item<'_>> {
        let interrupted = self.interrupted.take();
        let (again, abandoned) = match interrupted {
            Some(open) if identity(&open.begin) == identity(&begin) => (Some(open), None),
            other => (None, other.map(|open| open.begin)),
        };
        if again.is_some() {
            self.open = again;
            return None;
        }
        let open = self.open.insert(Open { begin, shown: 0 });
        Some(Item::Begin { begin: &open.begin, abandoned })
    }

    fn change(&mut self, change: pb::Change) -> Result<Option<Item<'_>>, Error> {
        if !self.is_new(change.ordinal) {
            return Ok(None);
        }
        let relation = find(&self.relations, change.relation_id)?;
        for row in change.before_row.iter().chain(&change.after_row) {
            RowView::new(relation, row).map_err(|error| Error::Protocol(error.to_string()))?;
        }
        self.changes += 1;
        let begin = self.open.as_ref().map(|open| &open.begin);
        Ok(Some(Item::Change(RowChange { begin, relation, change })))
    }

    fn truncate(&mut self, truncate: pb::Truncate) -> Result<Option<Item<'_>>, Error> {
        if !self.is_new(truncate.ordinal) {
            return Ok(None);
        }
        let tables: Result<Vec<String>, Error> =
            truncate.relation_ids.iter().map(|id| find(&self.relations, *id).map(table_name)).collect();
        self.changes += 1;
        Ok(Some(Item::Truncate { begin: self.open.as_ref().map(|open| &open.begin), tables: tables?, truncate }))
    }

    fn message(&mut self, message: pb::LogicalMessage) -> Result<Option<Item<'_>>, Error> {
        if message.position.is_some() {
            self.resume.clone_from(&message.position);
        } else if !self.is_new(message.ordinal) {
            return Ok(None);
        }
        self.changes += 1;
        Ok(Some(Item::Message { begin: self.open.as_ref().map(|open| &open.begin), message }))
    }

    fn is_new(&mut self, ordinal: u64) -> bool {
        let Some(open) = &mut self.open else { return true };
        let is_new = ordinal > open.shown;
        open.shown = open.shown.max(ordinal);
        is_new
    }

    fn end(&mut self, event: &str) -> Result<pb::Begin, Error> {
        let open = self.open.take();
        open.map(|open| open.begin).ok_or_else(|| Error::Protocol(format!("{event} without begin")))
    }
}

fn find(relations: &HashMap<u32, pb::Relation>, id: u32) -> Result<&pb::Relation, Error> {
    relations.get(&id).ok_or_else(|| Error::Protocol(format!("a change of relation {id}, which was not described")))
}

fn identity(begin: &pb::Begin) -> (&str, &str, u32) {
    (&begin.lineage, &begin.commit_lsn, begin.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{begin, change, commit, event, position, relation, row, text};

    /// The events that were shown, one word each.
    fn show(follower: &mut Follower, events: &[pb::Event]) -> Vec<String> {
        let mut shown = Vec::new();
        for event in events {
            shown.extend(match follower.accept(event.clone()).expect("a valid event") {
                None => None,
                Some(Item::Begin { begin, abandoned }) => {
                    Some(format!("begin {}{}", begin.xid, if abandoned.is_some() { " abandoned" } else { "" }))
                }
                Some(Item::Change(row)) => Some(format!("change {}", row.change.ordinal)),
                Some(Item::Commit { commit, .. }) => {
                    Some(format!("commit {}", commit.position.unwrap_or_default().lsn))
                }
                Some(Item::Discard { begin, .. }) => Some(format!("discard {}", begin.xid)),
                Some(other) => Some(format!("{other:?}")),
            });
        }
        shown
    }

    fn insert(ordinal: u64) -> pb::Event {
        change(pb::Operation::Insert, ordinal, None, Some(row(&[text("1")])))
    }

    fn described() -> pb::Event {
        event(Kind::Relation(relation(1, &[("id", true)])))
    }

    #[test]
    fn a_transaction_that_comes_again_is_continued_where_it_broke() {
        let mut follower = Follower::default();
        show(&mut follower, &[described(), begin("0/10", 1), insert(1), commit("0/20")]);
        assert_eq!(show(&mut follower, &[begin("0/30", 2), insert(1), insert(2)]).len(), 3);
        assert_eq!(follower.resume(), Some(&position("0/20")));
        follower.disconnected();
        let again = [described(), begin("0/30", 2), insert(1), insert(2), insert(3), commit("0/40")];
        assert_eq!(show(&mut follower, &again), ["change 3", "commit 0/40"]);
        assert_eq!(follower.changes(), 4);
        assert_eq!(follower.resume(), Some(&position("0/40")));
    }

    #[test]
    fn a_part_that_does_not_come_again_is_called_so() {
        let mut follower = Follower::default();
        show(&mut follower, &[described(), begin("0/30", 2), insert(1)]);
        follower.disconnected();
        let other = [described(), begin("0/50", 3), insert(1), commit("0/60")];
        assert_eq!(show(&mut follower, &other), ["begin 3 abandoned", "change 1", "commit 0/60"]);
    }

    #[test]
    fn a_discarded_transaction_starts_afresh() {
        let mut follower = Follower::default();
        let discard = event(Kind::Discard(pb::Discard { reason: "ended".into() }));
        show(&mut follower, &[described(), begin("0/30", 2), insert(1), discard]);
        assert_eq!(follower.resume(), None);
        assert_eq!(show(&mut follower, &[begin("0/30", 2), insert(1)]), ["begin 2", "change 1"]);
    }

    #[test]
    fn relation_numbers_do_not_outlive_their_stream() {
        let mut follower = Follower::default();
        show(&mut follower, &[described()]);
        follower.disconnected();
        let error = follower.accept(insert(1)).expect_err("not described");
        assert!(error.to_string().contains("relation 1"), "{error}");
    }

    #[test]
    fn an_event_of_an_unknown_kind_is_an_error() {
        assert!(Follower::default().accept(pb::Event { kind: None }).is_err());
    }

    #[test]
    fn the_place_where_the_stream_opened_is_the_first_to_resume_from() {
        let mut follower = Follower::default();
        let opened = |lsn| {
            let opened = pb::Opened { after: Some(position(lsn)), session: 7, ..Default::default() };
            event(Kind::Opened(opened))
        };
        show(&mut follower, &[opened("0/10")]);
        assert_eq!((follower.resume(), follower.session()), (Some(&position("0/10")), 7));
        let progress = pb::Progress { position: Some(position("0/20")), ..Default::default() };
        show(&mut follower, &[event(Kind::Progress(progress)), opened("0/15")]);
        assert_eq!(follower.resume(), Some(&position("0/20")));
    }
}
