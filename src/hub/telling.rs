//! What a stream tells of where it stands: `progress`, when it is due, and that the tail or the stream's end was reached.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Session,
    frames::Message,
    pace::{self, Standing},
    session::{For, IDLE_CHECK, Step},
};
use crate::{
    feed::Frame,
    lsn::Lsn,
    model::Position,
    wire::{encode, pb},
};

/// How often a stream that is to end at the tail asks the source to move it.
const NUDGE: Duration = Duration::from_millis(100);

impl Session {
    pub(super) fn rest(&mut self, now: Instant, tail: Option<Position>, for_what: For) -> Step {
        if let Some(tail) = tail.filter(|tail| tail.lineage == self.lineage) {
            self.reach_tail(tail);
            self.stride.at_tail(&self.hub.governor, self.stop_at.is_none() && self.until.is_none());
        }
        match self.progress(now) {
            Some(frame) => Step::Frame(frame),
            None => match self.hub.source.lost().filter(|_| self.has_everything()) {
                Some(lost) => Step::Lost(lost),
                None => self.pause(now, for_what),
            },
        }
    }

    /// Whether the stream, which rests, stands behind all that the feed has. That it has caught up once does not say so: what is
    /// behind it may not have been looked at.
    fn has_everything(&self) -> bool {
        self.caught_up && self.cursor.block >= self.marks.borrow().next_block
    }

    fn reach_tail(&mut self, tail: Position) {
        if !self.outbox.begun() {
            self.pass(tail);
        }
        if self.skip.is_some_and(|skip| tail.order() >= skip.order()) {
            self.skip = None;
        }
        if !self.caught_up {
            self.caught_up = true;
            self.pace.at_once();
        }
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            position: self.resume(),
            checkpoint: self.shared.checkpoint(),
            connected: self.hub.source.connected(),
        }
    }

    pub(super) fn at_stop(&self) -> bool {
        let under_way = self.leaving.is_some() || self.running.is_some();
        !under_way && self.stop_at.is_some_and(|stop| self.passed.lsn >= stop)
    }

    /// Whether the progress that ends the stream has been told.
    pub(super) fn stopped(&self, stop: Lsn) -> bool {
        let under_way = self.leaving.is_some() || self.running.is_some();
        let told = self.pace.last_told();
        !under_way && told.is_some_and(|told| told.lineage == self.lineage && told.lsn >= stop)
    }

    /// Not inside a transaction, nor before the client knows where it crosses to; and what never happened has no progress.
    fn may_tell(&self) -> bool {
        !self.outbox.begun() && self.passage.is_none() && self.until.is_none()
    }

    pub(super) fn progress(&mut self, now: Instant) -> Option<Frame> {
        let last = self.at_stop() && self.outbox.is_empty();
        if !self.may_tell() {
            return None;
        }
        if !last && !self.pace.may_be_due(now) && !self.pace.turned(self.hub.source.connected()) {
            return None;
        }
        let standing = self.standing();
        if !(last || self.pace.due(now, &standing)) {
            return None;
        }
        self.shared.sent(standing.position.position);
        let marks = self.routed.unwrap_or_else(|| *self.marks.borrow());
        let caught_up = self.outbox.is_empty() && self.incoming.is_none() && self.cursor.block >= marks.next_block;
        let credit = self.shared.credits(|credits| credits.map(|credits| credits.left()));
        let event = pace::event(&standing, marks, self.hub.feed.window(), caught_up, credit);
        self.pace.told(now, standing);
        Some(self.hand_out_event(pb::event::Kind::Progress(event)))
    }

    /// When to look again if nothing happens. Progress that is due and may not be told is no reason to.
    pub(super) fn look_again(&self, now: Instant) -> Instant {
        let idle = now + IDLE_CHECK;
        if !self.may_tell() {
            return idle;
        }
        let due = self.pace.deadline_after(self.passed).unwrap_or_else(|| self.pace.deadline(&self.standing()));
        idle.min(due)
    }

    pub(super) fn pause(&mut self, now: Instant, for_what: For) -> Step {
        let mut until = self.look_again(now);
        if for_what == For::Marks && self.stop_at.is_some() {
            if now >= self.next_nudge {
                self.hub.source.nudge();
                self.next_nudge = now + NUDGE;
            }
            until = until.min(self.next_nudge);
        }
        Step::Wait { until, for_what }
    }

    pub(super) fn hand_out_event(&self, kind: pb::event::Kind) -> Frame {
        let mut message = Message::new();
        encode::event(&mut message.0, kind);
        self.hand_out(message.finish(), 1)
    }
}
