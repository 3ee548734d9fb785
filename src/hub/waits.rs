//! What a session waits for. All state changes in steps; a wait that is dropped loses nothing.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, sleep_until};

use super::{Error, Session, session::For};
use crate::feed::Fetched;

impl Session {
    /// The wait of a stream that follows the marks or its client, and nothing else.
    fn poll_wait(&mut self, cx: &mut Context<'_>, for_what: For) -> Poll<Result<(), Error>> {
        if self.shared.wake.poll(cx).is_ready() || Pin::new(&mut self.draining).poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if for_what == For::Marks {
            self.told.get_or_insert_with(|| self.hub.tide.join(&self.shared, &self.marks));
            self.shared.want_marks();
            match self.marks.has_changed() {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(_) if self.marks.borrow().next_block > self.cursor.block => return Poll::Ready(Ok(())),
                Err(_) => return Poll::Ready(Err(Error::draining(self.passed))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx).map(Ok),
            None => Poll::Pending,
        }
    }

    pub(super) async fn wait(&mut self, until: Instant, for_what: For) -> Result<(), Error> {
        if for_what == For::Concern {
            self.told = None; // its router wakes it, and each member costs whoever tells of the marks a look
        }
        // Kept from wait to wait: setting a timer to a later time takes no lock, starting and dropping one does.
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        if self.running.is_none() && matches!(for_what, For::Marks | For::Client) {
            return poll_fn(|cx| self.poll_wait(cx, for_what)).await;
        }
        let concerned = async {
            match &mut self.route {
                // The sender lives as long as the group, and the group as long as the stream.
                Some((_, concerned)) if for_what == For::Concern => concerned.changed().await.is_ok(),
                _ => std::future::pending().await,
            }
        };
        let piece = async {
            match self.running.as_mut().filter(|running| running.wants_piece()) {
                Some(running) => running.pull().await,
                None => std::future::pending().await,
            }
        };
        let rested = async {
            match for_what {
                For::Rest => self.stride.rested(&self.hub.governor).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = concerned => Ok(()),
            () = rested => Ok(()),
            () = piece => Ok(()),
            () = self.shared.wake.wait() => Ok(()),
            () = &mut self.draining => Ok(()),
            () = timer => Ok(()),
            moved = self.marks.changed(), if for_what == For::Marks => moved.map_err(|_| Error::draining(self.passed)),
        }
    }

    /// Reading is a task of its own, so that a client that stops pulling in the middle keeps nobody else waiting for a turn.
    pub(super) async fn read(&mut self) -> Result<(), Error> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(self.hub.spawn_read(self.cursor.clone())),
        };
        let read = tokio::select! {
            read = reading => read,
            () = self.hub.drain.wait() => return Ok(()),
            () = self.shared.wake.wait() => return Ok(()),
        };
        self.reading = None;
        let (cursor, fetched) = read.map_err(|error| Error::internal(format!("reading a block: {error}")))?;
        if let Fetched::Block(block) = fetched? {
            self.cursor = cursor;
            self.incoming = Some(block);
        }
        Ok(())
    }

    pub(super) async fn pull(&mut self) -> Result<(), Error> {
        let until = self.look_again(Instant::now());
        let Some(running) = &mut self.running else { return Ok(()) };
        tokio::select! {
            () = running.pull() => {}
            () = self.shared.wake.wait() => {}
            () = self.hub.drain.wait() => {}
            () = sleep_until(until) => {}
        }
        Ok(())
    }
}
