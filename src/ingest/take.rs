//! One frame at a time: what each pgoutput message does to the block that is being filled.

use std::sync::atomic::Ordering;

use super::{Error, Resent, State, undecodable};
use bytes::BytesMut;

use crate::{
    feed::MARK_PREFIX,
    journal::Record,
    lsn::Lsn,
    model::{Datum, OldImage, Operation, Position, ReplicaIdentity, Transaction},
    pgoutput::{self, Message, Oids, Tuple},
    postgres::{self, publication::OWN_SCHEMA, replication::Frame, server},
    wire::{block::BlockBuilder, encode},
};

/// SQLSTATE of the warning with which PostgreSQL 18 skips a missing publication: object_not_in_prerequisite_state.
const SKIPPED_PUBLICATION: &str = "55000";
/// Where PostgreSQL 17 and later say, with the same code, that the walsender waits for a standby of
/// [synchronized_standby_slots](https://www.postgresql.org/docs/17/runtime-config-replication.html#GUC-SYNCHRONIZED-STANDBY-SLOTS).
const WAITS_FOR_STANDBYS: &str = "StandbySlotsHaveCaughtup";

impl State {
    pub(super) fn take(&mut self, frame: Frame<'_>) -> Result<(), Error> {
        match frame {
            Frame::XLogData { wal_start, data, .. } => {
                let message = pgoutput::decode(data).map_err(|error| Error::from((wal_start, data, error)))?;
                self.message(wal_start, data, &message)
            }
            Frame::Keepalive { wal_end, reply_requested, .. } => {
                self.reply_requested |= reply_requested;
                if !self.in_transaction {
                    self.pass(wal_end);
                }
                Ok(())
            }
            Frame::Notice(notice) => {
                let waits = notice.routine == WAITS_FOR_STANDBYS;
                if notice.code == SKIPPED_PUBLICATION && notice.severity == "WARNING" && !waits {
                    return Err(Error::PublicationSkipped(notice.message));
                }
                if notice.severity == "LOG" {
                    tracing::debug!("source: {}", notice.message);
                    return Ok(());
                }
                tracing::info!(code = notice.code, severity = notice.severity, "source: {}", notice.message);
                Ok(())
            }
            Frame::CopyDone => Err(postgres::Error::Closed.into()),
        }
    }

    /// Everything up to here has been received. A cut transaction whose commit lies behind will not come again.
    fn pass(&mut self, wal_end: Lsn) {
        if let Some(resent) = &self.resent {
            if wal_end <= resent.open.transaction.commit_lsn {
                return;
            }
            self.discard_resent("the source no longer sends it");
        }
        self.passed = self.passed.max(wal_end);
    }

    /// The position to be journaled for WAL that held nothing for us.
    pub(super) fn mark(&self) -> Option<Position> {
        let up_to = self.builder.up_to();
        let free = self.builder.open_transaction().is_none() && self.resent.is_none();
        (free && self.passed > up_to.lsn).then(|| Position::new(up_to.lineage, self.passed))
    }

    /// Closes the journaled part of a cut transaction: it never happened in this form.
    pub(super) fn discard_resent(&mut self, reason: &str) {
        if let Some(Resent { open, .. }) = self.resent.take() {
            tracing::warn!(xid = open.transaction.xid, ordinals = open.ordinals, "transaction discarded: {reason}");
            self.builder.begin(open.transaction, open.ordinals);
            self.builder.discard(reason);
            self.events += 1;
        }
    }

    fn message(&mut self, lsn: Lsn, bytes: &[u8], message: &Message<'_>) -> Result<(), Error> {
        let describes = matches!(message, Message::Type { .. } | Message::Relation(_));
        if !describes && !matches!(message, Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. }) {
            self.versions.described();
        }
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                self.last_xid = server::widen(*xid, self.last_xid);
                self.greatest_xid = self.greatest_xid.max(self.last_xid);
                self.in_transaction = true;
                self.counting = self.desk.sampling.load(Ordering::Relaxed);
                self.tally.clear();
                self.begun = Some(Transaction {
                    commit_lsn: *final_lsn,
                    xid: self.last_xid,
                    commit_time: *commit_time,
                    ..Transaction::default()
                });
                Ok(())
            }
            Message::Origin { name, .. } => {
                if let Some(begun) = &mut self.begun {
                    begun.origin = name.to_string();
                }
                Ok(())
            }
            Message::Type { oid, namespace, name } => {
                self.versions.name_type(*oid, namespace, name);
                Ok(())
            }
            Message::Relation(relation) => {
                if let Some(version) = self.versions.describe(relation) {
                    self.described.push(Record::Relation(version));
                }
                Ok(())
            }
            Message::Insert { oid, new } => {
                let none = None::<(OldImage, Tuple<'_>)>;
                self.change(lsn, bytes, *oid, Operation::Insert, none, Some(new.clone()))
            }
            Message::Update { oid, old, new } => {
                self.change(lsn, bytes, *oid, Operation::Update, old.clone(), Some(new.clone()))
            }
            Message::Delete { oid, old_image, old } => {
                self.change(lsn, bytes, *oid, Operation::Delete, Some((*old_image, old.clone())), None)
            }
            Message::Truncate { oids, cascade, restart_identity } => {
                self.truncate(lsn, bytes, oids.clone(), *cascade, *restart_identity)
            }
            Message::Message { transactional: true, lsn, prefix, content } => {
                self.event(*lsn, |builder, scratch, ordinal| {
                    match scratch {
                        Some(out) => encode::message(out, prefix, content, ordinal, *lsn, None),
                        None => {
                            builder.message(prefix, content, *lsn).map_err(|error| undecodable(*lsn, bytes, error))?
                        }
                    }
                    Ok(())
                })
            }
            Message::Message { transactional: false, lsn, prefix, content } => {
                let position = Position::new(self.builder.up_to().lineage, Lsn(lsn.0 + 1));
                if position.lsn > self.builder.up_to().lsn {
                    self.discard_resent("the source sends something else in its place");
                    let added = self.builder.message_outside(prefix, content, *lsn, position);
                    added.map_err(|error| undecodable(*lsn, bytes, error))?;
                    self.events += 1;
                    self.marked = *prefix == MARK_PREFIX;
                }
                Ok(())
            }
            Message::Commit { end_lsn, .. } => self.commit(*end_lsn),
        }
    }

    fn change(
        &mut self,
        lsn: Lsn,
        bytes: &[u8],
        oid: u32,
        operation: Operation,
        old: Option<(OldImage, Tuple<'_>)>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), Error> {
        let Some((relation, mut narrow)) = self.versions.written(oid) else {
            return Err(undecodable(lsn, bytes, format!("relation {oid} was not described on this connection")));
        };
        let mut relation = relation.clone();
        let whole = matches!(old, Some((OldImage::Full, _)));
        let news = self.versions.just_described() || whole && relation.replica_identity != ReplicaIdentity::Full;
        if news {
            if let Some(version) = self.versions.changed(oid, whole) {
                self.described.push(Record::Relation(version));
            }
            if let Some((written, now_narrow)) = self.versions.written(oid) {
                (relation, narrow) = (written.clone(), now_narrow);
            }
        }
        if relation.schema == OWN_SCHEMA {
            return Ok(());
        }
        self.count(oid);
        if let (Operation::Update, true, None, Some(new)) = (operation, narrow, &old, &new) {
            let kept = new.clone().zip(&relation.columns);
            let old = kept.map(|(datum, column)| if column.in_identity { datum } else { Datum::Null });
            return self.event(lsn, |builder, scratch, ordinal| {
                let old = Some((OldImage::Key, old));
                match scratch {
                    Some(out) => encode::change(out, &relation, operation, ordinal, old, Some(new.clone())),
                    None => builder.change(&relation, operation, lsn, old, Some(new.clone())),
                }
                .map_err(|error| Error::from((lsn, bytes, error)))
            });
        }
        self.event(lsn, |builder, scratch, ordinal| {
            match scratch {
                Some(out) => encode::change(out, &relation, operation, ordinal, old, new),
                None => builder.change(&relation, operation, lsn, old, new),
            }
            .map_err(|error| Error::from((lsn, bytes, error)))
        })
    }

    fn truncate(
        &mut self,
        lsn: Lsn,
        bytes: &[u8],
        oids: Oids<'_>,
        cascade: bool,
        restart_identity: bool,
    ) -> Result<(), Error> {
        let (mut ids, mut counted) = (Vec::new(), Vec::new());
        for oid in oids {
            match self.versions.current(oid) {
                Some(relation) if relation.schema == OWN_SCHEMA => {}
                Some(relation) => {
                    ids.push(relation.id.0);
                    counted.push(oid);
                }
                None => {
                    let detail = format!("relation {oid} was not described on this connection");
                    return Err(undecodable(lsn, bytes, detail));
                }
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        counted.into_iter().for_each(|oid| self.count(oid));
        self.event(lsn, |builder, scratch, ordinal| {
            match scratch {
                Some(out) => encode::truncate(out, &ids, cascade, restart_identity, ordinal),
                None => builder.truncate(&ids, cascade, restart_identity, lsn),
            }
            Ok(())
        })
    }

    /// One more change of a table, for whoever compares with the log tables.
    fn count(&mut self, oid: u32) {
        match self.tally.iter_mut().rev().find(|(table, _)| *table == oid) {
            Some((_, count)) => *count += 1,
            None if self.counting => self.tally.push((oid, 1)),
            None => {}
        }
    }

    fn tell_counts(&mut self) {
        if self.tally.is_empty() {
            return;
        }
        let mut sample = self.desk.sample.lock();
        for (oid, count) in self.tally.drain(..) {
            sample.insert(oid, (self.last_xid, count));
        }
    }

    /// Adds one event with an ordinal: to the block, or, while a cut transaction comes again, to the comparison.
    fn event(
        &mut self,
        lsn: Lsn,
        add: impl FnOnce(&mut BlockBuilder, Option<&mut BytesMut>, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(begun) = self.begun.take() {
            match &self.resent {
                Some(resent) if resent.open.transaction == begun => {}
                Some(_) => {
                    self.discard_resent("the source no longer sends it");
                    self.builder.begin(begun, 0);
                    self.events += 1;
                }
                None => {
                    self.builder.begin(begun, 0);
                    self.events += 1;
                }
            }
        }
        if let Some(resent) = &mut self.resent
            && !resent.finished()
        {
            let ordinal = resent.compared() + 1;
            self.scratch.clear();
            add(&mut self.builder, Some(&mut self.scratch), ordinal)?;
            if resent.matches(lsn, &self.scratch) {
                return Ok(());
            }
            return Err(Error::Resent { xid: resent.open.transaction.xid, compared: resent.compared() });
        }
        self.continue_resent();
        self.events += 1;
        add(&mut self.builder, None, 0)
    }

    /// Goes on with a cut transaction whose journaled part has come again unchanged.
    fn continue_resent(&mut self) {
        if let Some(Resent { open, .. }) = self.resent.take_if(|resent| resent.finished()) {
            tracing::debug!(xid = open.transaction.xid, ordinals = open.ordinals, "transaction continued");
            self.builder.begin(open.transaction, open.ordinals);
        }
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<(), Error> {
        self.tell_counts();
        self.in_transaction = false;
        self.transactions += 1;
        if let Some(begun) = self.begun.take() {
            if self.resent.as_ref().is_some_and(|resent| resent.open.transaction.commit_lsn <= begun.commit_lsn) {
                self.discard_resent("the source sent it again without content");
            }
            self.pass(end_lsn);
            return Ok(());
        }
        if let Some(resent) = &self.resent
            && !resent.finished()
        {
            return Err(Error::Resent { xid: resent.open.transaction.xid, compared: resent.compared() });
        }
        self.continue_resent();
        let position = Position::new(self.builder.up_to().lineage, end_lsn);
        self.builder.commit(position);
        self.events += 1;
        Ok(())
    }
}
