//! What a stream finds out by reading ahead of itself: whether its start still exists, and how an open transaction ends.

use super::{Error, Session, outbox::End, take::end_of_head};
use crate::feed::{Fetched, Start};

impl Session {
    pub(super) async fn relocate(&mut self) -> Result<(), Error> {
        if let Some(skip) = self.skip {
            self.hub.place(Start::After(skip)).await.map_err(|error| self.stamp.diverged(error))?;
            self.skip = None;
        }
        Ok(())
    }

    pub(super) async fn decide(&mut self) -> Result<(), Error> {
        let Some(skip) = self.skip else { return Ok(()) };
        self.wanted = match self.find_end().await? {
            End::At(position) => Some(position.lineage != skip.lineage || position.order() > skip.order()),
            End::Discarded => Some(false),
            End::Later => None,
        };
        Ok(())
    }

    pub(super) async fn pass_over(&mut self, bytes: usize) -> Result<(), Error> {
        if let (false, Some(subject)) = (self.outbox.begun(), self.outbox.subject()) {
            let known = self.running.as_ref().and_then(|running| running.table(subject.relation));
            return Err(Error::row_too_large(bytes, self.max_message, known.unwrap_or_default()));
        }
        let end = match self.outbox.end() {
            End::Later => self.find_end().await?,
            end => end,
        };
        match end {
            End::At(position) => {
                self.shared.set_pass_over(Some(position));
                let row = self.outbox.subject().and_then(|subject| {
                    let table = self.hub.feed.relation(subject.relation)?.qualified_name();
                    Some((table, subject.ordinal))
                });
                Err(Error::too_large(bytes, self.max_message, position, row))
            }
            End::Discarded => {
                self.outbox.leave_out();
                Ok(())
            }
            End::Later => Ok(()),
        }
    }

    /// How the transaction ends that is open behind the cursor; waits for it. `Later`: the stream is to end before.
    async fn find_end(&self) -> Result<End, Error> {
        let mut cursor = self.cursor.clone();
        let mut marks = self.hub.feed.marks();
        while self.shared.ended().is_none() && !self.hub.drain.started() {
            marks.mark_unchanged();
            let (next, fetched) = self
                .hub
                .spawn_read(cursor)
                .await
                .map_err(|error| Error::internal(format!("reading a block: {error}")))?;
            cursor = next;
            match fetched? {
                Fetched::Block(block) => match end_of_head(&block)? {
                    End::Later => {}
                    end => return Ok(end),
                },
                Fetched::AtTail => tokio::select! {
                    () = self.shared.wake.wait() => {}
                    () = self.hub.drain.wait() => {}
                    moved = marks.changed() => moved.map_err(|_| Error::draining(self.passed))?,
                },
            }
        }
        Ok(End::Later)
    }
}
