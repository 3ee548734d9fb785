//! Between what is shared and what one stream sends while a snapshot concerns it: transactions that are in its rows are
//! left out, and every position says what else is needed to go on from it.

use bytes::Bytes;
use prost::Message as _;

use super::{
    Error,
    acknowledge::KEPT,
    frames::{self, Kind, Message},
    outbox::Item,
};
use crate::{
    feed::{self, Crossing},
    model::{LineageId, Position},
    wire::{
        encode, pb,
        token::{Handover, Progress, Token},
    },
};

/// Does nothing, and costs nothing, until there is a token.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    token: Token,
    encoded: Bytes,
    /// The open transaction is in the rows.
    skipping: bool,
    /// Where the stream began, if with the rows of a consistent snapshot.
    rows: Option<Position>,
}

fn lost() -> Error {
    Error::snapshot_interrupted(
        "the source has failed over to a standby that may lack what the rows hold; the snapshot starts over when its stream is \
         resumed",
    )
}

impl Stamp {
    pub fn new(token: Token) -> Self {
        let encoded = token.encode();
        Stamp { token, encoded, skipping: false, rows: None }
    }

    /// `Position.snapshot`.
    pub fn encoded(&self) -> Bytes {
        self.encoded.clone()
    }

    /// Changes what positions say from now on.
    pub fn update(&mut self, change: impl FnOnce(&mut Token)) {
        change(&mut self.token);
        self.encoded = self.token.encode();
    }

    /// Positions say from now on that rows are owed behind this place. False: they still name an earlier place, because this one
    /// takes more bytes than a checkpoint keeps; its key is a long text. Rows behind the earlier one may come again then.
    pub fn owe(&mut self, progress: Progress) -> bool {
        let token = Token { handover: self.token.handover.clone(), progress: Some(progress) };
        let encoded = token.encode();
        let kept = encoded.len() <= KEPT;
        if kept {
            (self.token, self.encoded) = (token, encoded);
        }
        kept
    }

    /// Everything up to here has been handed out: whether a transaction is in the rows is no longer a question.
    pub fn passed(&mut self, position: Position) {
        let over = |handover: &Handover| handover.lineage == position.lineage && position.lsn >= handover.until;
        if self.token.handover.as_ref().is_some_and(over) {
            self.update(|token| token.handover = None);
        }
    }

    /// The stream begins with the rows of a consistent snapshot, which hold everything up to here and perhaps more.
    pub fn begins_with_rows(&mut self, start: Position) {
        self.rows = Some(start);
    }

    /// The lineage will be left there. An error if the rows may hold what lies behind.
    pub fn departs(&self, crossing: &Crossing) -> Result<(), Error> {
        let Some(start) = self.rows.filter(|start| start.lineage == crossing.departs.lineage) else { return Ok(()) };
        let until = self.token.handover.as_ref().map_or(start.lsn, |handover| handover.until.max(start.lsn));
        if crossing.holds_lsn(until) { Ok(()) } else { Err(lost()) }
    }

    /// The stream leaves its lineage. An error if the rows of a consistent snapshot hold what the next one lacks, which nothing else
    /// may tell for long: a hub that was behind the source crosses without having had any of it.
    pub fn leaves(&mut self, crossing: &Crossing) -> Result<(), Error> {
        let Some(handover) = &self.token.handover else { return Ok(()) };
        if handover.lineage == crossing.departs.lineage && crossing.holds_lsn(handover.until) {
            // Whatever comes behind the switch has committed after the rows were read.
            self.update(|token| token.handover = None);
            return Ok(());
        }
        if self.token.progress.as_ref().is_some_and(|progress| progress.incremental) { Ok(()) } else { Err(lost()) }
    }

    /// Why the position at which the stream began is not there any more.
    pub fn diverged(&self, error: feed::Error) -> Error {
        if self.rows.is_some() { lost() } else { error.into() }
    }

    /// The stream goes on on this lineage. An error if the rows may hold what this lineage does not.
    pub fn crosses(&mut self, lineage: LineageId) -> Result<(), Error> {
        let Some(handover) = &self.token.handover else { return Ok(()) };
        if handover.lineage == lineage {
            return Ok(());
        }
        if self.token.progress.as_ref().is_some_and(|progress| progress.incremental) {
            self.update(|token| token.handover = None);
            return Ok(());
        }
        Err(lost())
    }

    /// What the stream is to send of an item.
    pub fn apply(&mut self, item: Item) -> Result<Item, Error> {
        if self.encoded.is_empty() && !self.skipping {
            return Ok(item);
        }
        let payload = frames::payload(&item.message);
        let mut out = Message::new();
        let (mut events, mut counted) = (0, 0);
        let mut offset = 0;
        while offset < payload.len() {
            let malformed = || Error::internal("an event does not decode");
            let event = frames::first(&payload[offset..]).ok_or_else(malformed)?;
            let framed = &payload[offset..offset + event.len];
            offset += event.len;
            if event.kind == Kind::Begin {
                let begin = pb::Begin::decode(event.body).map_err(|_| malformed())?;
                self.skipping = self.token.handover.as_ref().is_some_and(|handover| handover.seen.sees(begin.xid));
            }
            if self.skipping && event.kind != Kind::Other {
                self.skipping = !matches!(event.kind, Kind::Commit | Kind::Discard);
                continue;
            }
            match event.kind {
                Kind::Commit => {
                    let mut commit = pb::Commit::decode(event.body).map_err(|_| malformed())?;
                    self.stamp(&mut commit.position);
                    encode::event(&mut out.0, pb::event::Kind::Commit(commit));
                }
                Kind::Message => {
                    let mut message = pb::LogicalMessage::decode(event.body).map_err(|_| malformed())?;
                    self.stamp(&mut message.position);
                    encode::event(&mut out.0, pb::event::Kind::Message(message));
                }
                _ => out.0.extend_from_slice(framed),
            }
            events += 1;
            counted += u64::from(event.kind.counts());
        }
        let begun = item.begun.map(|begun| begun && !self.skipping);
        Ok(Item { message: out.finish(), events, counted, begun, reached: item.reached })
    }

    fn stamp(&self, position: &mut Option<pb::Position>) {
        if let Some(position) = position {
            position.snapshot = self.encoded.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(key: &str) -> Progress {
        Progress { id: 1, incremental: true, key: vec![key.to_owned()], ..Progress::default() }
    }

    #[test]
    fn a_place_that_no_checkpoint_keeps_leaves_the_one_before() {
        let mut stamp = Stamp::default();
        assert!(stamp.owe(behind("a")));
        let before = stamp.encoded();
        assert!(!stamp.owe(behind(&"b".repeat(KEPT))));
        assert_eq!(stamp.encoded(), before);
        assert!(stamp.owe(behind("c")));
        assert_eq!(Token::decode(&stamp.encoded()).ok().and_then(|token| token.progress), Some(behind("c")));
        assert!(stamp.encoded().len() <= KEPT);
    }
}
