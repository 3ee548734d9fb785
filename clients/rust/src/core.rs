//! One subscription across its streams: where it resumes, when it tries again, what the user is handed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Error, Position,
    acks::Acks,
    assemble::{Assembler, Item, Spent},
    builder::Options,
    connect::{CONSUME, DEADLINE, RawCodec, Target},
    error::{HubError, Reason},
    model::{Event, Opened, SnapshotEvent, Transaction},
    outbox::{Outbox, Requests},
    pb::{self, change_stream_service_client::ChangeStreamServiceClient},
    retry::Backoff,
};

const HEALTHY: Duration = Duration::from_secs(60);

/// One connection with one Consume call.
struct Stream {
    responses: Streaming<Bytes>,
    // The last handle of a connection closes it.
    _channel: Channel,
}

pub(crate) struct Core {
    target: Target,
    options: Options,
    acks: Arc<Acks>,
    outbox: Arc<Outbox>,
    closed: watch::Receiver<bool>,
    pub(crate) assembler: Assembler,
    backoff: Backoff,
    stream: Option<Stream>,
    use_start: bool,
    unsure: bool,
    opened_at: Instant,
    spent: Spent,
    first_after: Option<Position>,
    last: Option<(Position, u64)>,
    pub(crate) finished: bool,
}

/// Makes a position durable, on a connection that is there or on one of its own.
pub(crate) async fn acknowledge(
    target: &Target,
    request: pb::AcknowledgeRequest,
    deadline: Duration,
) -> Result<Position, Error> {
    let call = async {
        let channel = target.connect().await?;
        let answer = ChangeStreamServiceClient::new(channel).acknowledge(target.request(request)?).await?;
        let checkpoint = answer.into_inner().checkpoint;
        checkpoint.ok_or_else(|| Error::Protocol("an acknowledgement without checkpoint".into()))?.try_into()
    };
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", deadline.as_secs())).into()),
    }
}

impl Core {
    pub(crate) fn new(
        target: Target,
        options: Options,
        acks: Arc<Acks>,
        outbox: Arc<Outbox>,
        closed: watch::Receiver<bool>,
    ) -> Self {
        Core {
            assembler: Assembler::new(options.decoders.clone(), options.max_transaction_bytes),
            backoff: Backoff::new(options.retry, std::time::Instant::now()),
            use_start: !acks.is_named(),
            target,
            options,
            acks,
            outbox,
            closed,
            stream: None,
            unsure: false,
            opened_at: Instant::now(),
            spent: Spent::default(),
            first_after: None,
            last: None,
            finished: false,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    // -- handing out

    /// The user asks for the next item, so the last one is done.
    pub(crate) fn next_requested(&mut self) -> Result<(), Error> {
        match self.last.take() {
            Some((position, serial)) if self.options.auto_ack && self.acks.is_named() => {
                self.acks.acknowledge(&position, serial)
            }
            _ => Ok(()),
        }
    }

    /// The next transaction that is ready; calls the hooks on the way.
    pub(crate) fn transaction(&mut self) -> Result<Option<Transaction>, Error> {
        while let Some(item) = self.assembler.ready.pop_front() {
            match item {
                Item::Transaction(mut transaction) => {
                    transaction.serial = self.hand(transaction.position.clone());
                    transaction.acks = Some(self.acks.clone());
                    return Ok(Some(transaction));
                }
                Item::Event(event) => {
                    self.hand_event(&event);
                    self.hook(event)?;
                }
            }
        }
        Ok(None)
    }

    /// The next event that is ready.
    pub(crate) fn event(&mut self) -> Option<Event> {
        loop {
            if let Item::Event(event) = self.assembler.ready.pop_front()? {
                self.hand_event(&event);
                return Some(event);
            }
        }
    }

    fn hand(&mut self, position: Position) -> u64 {
        let serial = self.acks.hand(position.clone());
        self.last = Some((position, serial));
        serial
    }

    fn hand_event(&mut self, event: &Event) {
        match event {
            Event::Progress(progress) => self.acks.passed(progress),
            Event::Commit { position, .. } => drop(self.hand(position.clone())),
            Event::Gap(gap) => drop(self.hand(gap.up_to.clone())),
            Event::TimelineChanged(changed) => {
                self.assembler.told(changed);
                self.hand(changed.position.clone());
            }
            _ => {}
        }
    }

    /// Events that are not transactions; an error where there is no hook and it matters.
    fn hook(&mut self, event: Event) -> Result<(), Error> {
        let hooks = &mut self.options.hooks;
        match event {
            Event::Progress(progress) => hooks.progress.iter_mut().for_each(|hook| hook(&progress)),
            Event::TimelineChanged(changed) => match &mut hooks.timeline_changed {
                Some(hook) => hook(&changed),
                None => return Err(Error::TimelineChanged(Box::new(changed))),
            },
            Event::Gap(gap) => match &mut hooks.gap {
                Some(hook) => hook(&gap),
                None => return Err(Error::Gap(Box::new(gap))),
            },
            Event::Snapshot(SnapshotEvent::Begin(begin)) if begin.restarted && hooks.snapshot.is_none() => {
                return Err(Error::SnapshotRestarted(Box::new(begin)));
            }
            Event::Snapshot(event) => hooks.snapshot.iter_mut().for_each(|hook| hook(&event)),
            _ => {}
        }
        Ok(())
    }

    // -- receiving

    /// Receives one response, or finds out why there is none: then waits until it is time to try again.
    pub(crate) async fn receive(&mut self) -> Result<(), Error> {
        let mut closed = self.closed.clone();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {
                self.hang_up();
                Ok(())
            }
            outcome = self.receive_or_retry() => outcome,
        }
    }

    async fn receive_or_retry(&mut self) -> Result<(), Error> {
        let lost = match self.response().await {
            Ok(Some(response)) => return self.received(&response),
            Ok(None) if self.options.stop_at_tail => {
                self.disconnect();
                return Ok(());
            }
            Ok(None) => HubError::new(Reason::ConnectionLost, Code::Unavailable, "the stream ended"),
            Err(Error::Hub(error)) => *error,
            Err(other) => return Err(other),
        };
        self.hang_up();
        let delay = self.failed(&lost)?;
        self.options.hooks.reconnect.iter_mut().for_each(|hook| hook(&lost, delay));
        tokio::time::sleep(delay).await;
        Ok(())
    }

    async fn response(&mut self) -> Result<Option<Bytes>, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                self.prove().await?;
                let stream = self.open().await?;
                self.stream.insert(stream)
            }
        };
        Ok(stream.responses.message().await?)
    }

    /// A connection that broke does not say whether the hub had fenced this subscriber, and opening again would fence the other.
    async fn prove(&mut self) -> Result<(), Error> {
        let at = self.acks.acked_position().or_else(|| self.first_after.clone());
        if let Some(request) = at.filter(|_| self.unsure).and_then(|at| self.acks.request(at)) {
            acknowledge(&self.target, request, DEADLINE).await?;
            self.unsure = false;
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<Stream, Error> {
        self.assembler.reopen();
        self.spent = Spent::default();
        self.opened_at = Instant::now();
        let resume = self.assembler.received.clone();
        let start = match &resume {
            Some(position) => Some(position.clone().into()),
            None => self.options.start.clone().filter(|_| self.use_start),
        };
        let request = pb::SubscribeRequest {
            subscriber: self.options.subscriber.clone(),
            start: start.map(Into::into),
            filter: Some(self.options.filter.clone()).filter(|filter| *filter != pb::Filter::default()),
            stop_at_tail: self.options.stop_at_tail,
            max_message_bytes: self.target.max_message_bytes,
            progress_interval: self.options.progress_interval,
            ..Default::default()
        };
        let open = pb::ConsumeRequest { request: Some(pb::consume_request::Request::Open(request)) };
        self.outbox.reopen(open, resume.as_ref());
        // The last stream may have broken before its acknowledgement arrived.
        let newest = self.acks.acked_position().zip(resume).filter(|(newest, resume)| resume.reaches(newest));
        newest.into_iter().for_each(|(newest, _)| self.outbox.acknowledge(newest));
        self.outbox.grant(self.options.window_events, self.options.window_bytes);

        let channel = self.target.connect().await?;
        let limit = usize::try_from(self.target.max_message_bytes).unwrap_or(usize::MAX);
        let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(limit);
        grpc.ready().await.map_err(HubError::from)?;
        let requests = self.target.request(Requests::new(self.outbox.clone()))?;
        let path = http::uri::PathAndQuery::from_static(CONSUME);
        let responses = grpc.streaming(requests, path, RawCodec::default()).await?.into_inner();
        Ok(Stream { responses, _channel: channel })
    }

    fn received(&mut self, response: &Bytes) -> Result<(), Error> {
        let before = self.assembler.received.clone();
        let spent = self.assembler.receive(response)?;
        if let Some(opened) = self.assembler.opened.take() {
            self.opened(opened, before.is_none())?;
        }
        if before.is_some() && before != self.assembler.received {
            self.backoff.succeeded(std::time::Instant::now());
        }
        self.spent.events += spent.events;
        self.spent.bytes += spent.bytes;
        let Spent { events, bytes } = self.spent;
        if events.saturating_mul(2) >= self.options.window_events
            || bytes.saturating_mul(2) >= self.options.window_bytes
        {
            self.outbox.grant(events, bytes);
            self.spent = Spent::default();
        }
        Ok(())
    }

    fn opened(&mut self, opened: Opened, first: bool) -> Result<(), Error> {
        let after = opened.after.clone();
        if opened.filter_changed {
            tracing::warn!(subscriber = self.options.subscriber, "the filter differs from the checkpoint's");
        }
        tracing::debug!(after = %after, "stream opened");
        self.acks.opened(opened, first);
        if first {
            self.first_after = Some(after.clone());
            if self.acks.is_named() && self.use_start {
                // From now on the subscriber has a place of its own, whatever happens before its first transaction.
                self.acks.acknowledge(&after, 0)?;
            }
        }
        Ok(())
    }

    /// How long to wait until the next attempt; the error where another one does not help.
    fn failed(&mut self, error: &HubError) -> Result<Duration, Error> {
        let never_opened = self.assembler.received.is_none();
        if error.reason == Reason::CheckpointMissing && never_opened && !self.use_start && self.options.start.is_some()
        {
            self.use_start = true;
            tracing::info!(subscriber = self.options.subscriber, "no checkpoint: starting at the given start");
            return Ok(Duration::ZERO);
        }
        let now = std::time::Instant::now();
        if !never_opened && self.opened_at.elapsed() >= HEALTHY {
            self.backoff.succeeded(now);
        }
        let delay =
            if error.is_retryable() { self.backoff.delay(error.retry_after, now, fastrand::f64()) } else { None };
        let delay = delay.ok_or_else(|| Error::from(error.clone()))?;
        if error.reason == Reason::ConnectionLost && self.acks.is_named() {
            self.unsure = true;
        }
        tracing::warn!(%error, delay = delay.as_secs_f64(), "stream lost, trying again");
        Ok(delay)
    }

    /// hyper keeps a connection for as long as a request half on it has not ended, whoever has dropped the rest.
    fn hang_up(&mut self) {
        self.stream = None;
        self.outbox.end();
    }

    /// Ends the subscription.
    pub(crate) fn disconnect(&mut self) {
        self.hang_up();
        self.finished = true;
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.outbox.end();
    }
}
