//! What users iterate.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    Error, Position,
    acks::Acks,
    builder::Options,
    connect::{DEADLINE, Target},
    core::{Core, acknowledge},
    model::{Event, Opened, Progress, Transaction},
    outbox::Outbox,
};

type Receiving = Pin<Box<dyn Future<Output = (Box<Core>, Result<(), Error>)> + Send>>;

enum State {
    Idle(Box<Core>),
    Busy(Receiving),
    Gone,
}

/// Transactions in commit order, across reconnects. Connects when it is first polled. A
/// [`Stream`](futures_core::Stream), or a loop over [`Subscription::next`].
///
/// Nothing is read but while it is polled, so slow users slow the hub down. Waiting may be cancelled at any time without losing
/// anything. Dropping it closes the connection; [`Subscription::close`] makes acknowledgements durable before.
pub struct Subscription {
    target: Target,
    acks: Arc<Acks>,
    closer: Arc<watch::Sender<bool>>,
    state: State,
}

/// Ends a subscription's loop from elsewhere.
#[derive(Clone)]
pub struct Closer(Arc<watch::Sender<bool>>);

impl Closer {
    /// The loop ends, as at the end of the stream.
    pub fn close(&self) {
        self.0.send_replace(true);
    }
}

impl Subscription {
    pub(crate) fn new(target: Target, options: Options) -> Self {
        let outbox = Arc::new(Outbox::default());
        let acks = Arc::new(Acks::new(options.subscriber.clone(), outbox.clone()));
        let (closer, closed) = watch::channel(false);
        let core = Core::new(target.clone(), options, acks.clone(), outbox, closed);
        Subscription { target, acks, closer: Arc::new(closer), state: State::Idle(Box::new(core)) }
    }

    /// The next transaction; `None` when it is closed, has ended with an error, or reached the tail under `stop_at_tail`. Under
    /// automatic acknowledgement, asking is what acknowledges the transaction before.
    ///
    /// After an error for which [`Error::goes_on`] holds, ask again; after any other it has ended.
    ///
    /// # Errors
    /// What trying again does not help, and what must not be missed.
    pub async fn next(&mut self) -> Option<Result<Transaction, Error>> {
        poll_fn(|cx| self.poll_transaction(cx)).await
    }

    /// The next event as it comes, without waiting for a transaction's end: for transactions that do not fit into memory. What
    /// came since a Begin counts only when its Commit has come; a Discard takes it back.
    ///
    /// # Errors
    /// As [`Subscription::next`], but failovers and gaps are events. [`Error::Misuse`] after `next`.
    pub async fn next_event(&mut self) -> Option<Result<Event, Error>> {
        if let State::Idle(core) = &mut self.state {
            if self.acks.last_opened().is_some() && !core.assembler.streaming {
                return Some(Err(Error::Misuse("next_event() must be the first use of a subscription".into())));
            }
            core.assembler.streaming = true;
        }
        poll_fn(|cx| self.poll_with(cx, |core| Ok(core.event()))).await
    }

    fn poll_transaction(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Transaction, Error>>> {
        self.poll_with(cx, Core::transaction)
    }

    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl Fn(&mut Core) -> Result<Option<T>, Error>,
    ) -> Poll<Option<Result<T, Error>>> {
        if let State::Idle(core) = &mut self.state {
            core.next_requested()?;
        }
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Gone) {
                State::Gone => return Poll::Ready(None),
                State::Idle(mut core) => {
                    let taken = if core.is_closed() { Ok(None) } else { take(&mut core) };
                    let over = core.finished || core.is_closed();
                    if !matches!(taken, Ok(None)) || over {
                        self.state = State::Idle(core);
                        return Poll::Ready(taken.transpose());
                    }
                    State::Busy(Box::pin(async move {
                        let outcome = core.receive().await;
                        (core, outcome)
                    }))
                }
                State::Busy(mut receiving) => match receiving.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Busy(receiving);
                        return Poll::Pending;
                    }
                    Poll::Ready((mut core, outcome)) => {
                        if outcome.is_err() {
                            core.disconnect();
                        }
                        self.state = State::Idle(core);
                        outcome?;
                        continue;
                    }
                },
            }
        }
    }

    /// Everything that was handed out is done. Returns at once; acknowledgements are gathered and sent a few times per second.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the subscription is anonymous, or nothing was received yet.
    pub fn ack(&self) -> Result<(), Error> {
        let position = self.position().ok_or_else(|| Error::Misuse("nothing was received yet".into()))?;
        self.ack_position(&position)
    }

    /// Everything up to and including a position is done.
    ///
    /// # Errors
    /// [`Reason::AckAhead`](crate::Reason::AckAhead) if it was not handed out; [`Error::Misuse`] if the subscription is anonymous.
    pub fn ack_position(&self, position: &Position) -> Result<(), Error> {
        self.acks.acknowledge(position, 0)
    }

    /// Waits until what was acknowledged is durable, at most 30 s; the checkpoint. `None` if nothing was acknowledged.
    ///
    /// # Errors
    /// If the hub refuses or does not answer.
    pub async fn flush(&self) -> Result<Option<Position>, Error> {
        self.flush_within(DEADLINE).await
    }

    async fn flush_within(&self, deadline: Duration) -> Result<Option<Position>, Error> {
        let request = self.acks.acked_position().and_then(|position| self.acks.request(position));
        match request {
            Some(request) => acknowledge(&self.target, request, deadline).await.map(Some),
            None => Ok(None),
        }
    }

    /// Everything up to here was handed out: what an anonymous subscriber resumes after. `None` before the stream is open.
    pub fn position(&self) -> Option<Position> {
        self.acks.position()
    }

    /// How the present stream was opened; `None` before that.
    pub fn opened(&self) -> Option<Opened> {
        self.acks.last_opened()
    }

    /// The newest progress that was reached, with lag, checkpoint and expiry.
    pub fn progress(&self) -> Option<Progress> {
        self.acks.progress()
    }

    /// To end the loop from elsewhere.
    pub fn closer(&self) -> Closer {
        Closer(self.closer.clone())
    }

    /// Makes durable what was acknowledged, as far as the hub answers within 5 s, and closes the connection.
    pub async fn close(self) {
        if self.acks.is_unflushed()
            && let Err(error) = self.flush_within(Duration::from_secs(5)).await
        {
            tracing::warn!(%error, "the last acknowledgement was not confirmed");
        }
    }
}

impl futures_core::Stream for Subscription {
    type Item = Result<Transaction, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(self.poll_transaction(cx)))
    }
}
