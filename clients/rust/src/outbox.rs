//! What is to be sent: credit that was earned and the newest acknowledgement.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Position,
    pb::{self, ConsumeRequest, consume_request::Request},
};

/// Acknowledgements are sent at most this often,
pub(crate) const ACK_INTERVAL: Duration = Duration::from_millis(100);
/// or when this many have gathered.
pub(crate) const ACK_BATCH: u32 = 1000;

#[derive(Default)]
struct State {
    /// Which stream it is that sends. The last one may be polled for a while by its dying connection.
    stream: u64,
    first: Option<ConsumeRequest>,
    events: u64,
    bytes: u64,
    position: Option<Position>,
    count: u32,
    due: Option<Instant>,
    waker: Option<Waker>,
}

/// Shared between the subscription and the request half of its stream.
#[derive(Default)]
pub(crate) struct Outbox(Mutex<State>);

/// What there is to send.
#[derive(Debug)]
pub(crate) enum Next {
    Request(Box<ConsumeRequest>),
    At(Instant),
    Nothing,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn grant(&self, events: u64, bytes: u64) {
        let mut state = self.lock();
        state.events += events;
        state.bytes += bytes;
        state.waker.take().into_iter().for_each(Waker::wake);
    }

    pub(crate) fn acknowledge(&self, position: Position) {
        let mut state = self.lock();
        if state.position.as_ref().is_some_and(|pending| pending.reaches(&position)) {
            return;
        }
        let first = state.position.replace(position).is_none();
        state.count += 1;
        if first || state.count == ACK_BATCH {
            state.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// A new stream: earlier credit is void, and an acknowledgement on another lineage would be refused there.
    pub(crate) fn reopen(&self, open: ConsumeRequest, resume: Option<&Position>) {
        let mut state = self.lock();
        state.stream += 1;
        state.first = Some(open);
        state.waker.take().into_iter().for_each(Waker::wake);
        state.events = 0;
        state.bytes = 0;
        state.count = 0;
        state.position = state.position.take().filter(|newest| resume.is_some_and(|resume| resume.reaches(newest)));
    }

    /// The stream that was opened last sends no more.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.stream += 1;
        state.waker.take().into_iter().for_each(Waker::wake);
    }

    #[cfg(test)]
    pub(crate) fn next(&self, now: Instant) -> Next {
        self.lock().next(now)
    }
}

impl State {
    fn next(&mut self, now: Instant) -> Next {
        let request = |request| Next::Request(Box::new(ConsumeRequest { request: Some(request) }));
        if let Some(open) = self.first.take() {
            return Next::Request(Box::new(open));
        }
        if self.events > 0 || self.bytes > 0 {
            let credit = pb::Credit { events: self.events, bytes: self.bytes };
            (self.events, self.bytes) = (0, 0);
            return request(Request::Credit(credit));
        }
        match (&self.position, self.due) {
            (None, _) => Next::Nothing,
            (Some(_), Some(due)) if self.count < ACK_BATCH && now < due => Next::At(due),
            (Some(position), _) => {
                let acknowledge = request(Request::Acknowledge(position.clone().into()));
                self.position = None;
                self.count = 0;
                self.due = Some(now + ACK_INTERVAL);
                acknowledge
            }
        }
    }
}

/// The request half of one stream.
pub(crate) struct Requests {
    outbox: Arc<Outbox>,
    stream: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Requests {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        let stream = outbox.lock().stream;
        Requests { outbox, stream, sleep: None }
    }
}

impl Stream for Requests {
    type Item = ConsumeRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ConsumeRequest>> {
        loop {
            let next = {
                let mut state = self.outbox.lock();
                if state.stream != self.stream {
                    return Poll::Ready(None);
                }
                state.waker = Some(cx.waker().clone());
                state.next(Instant::now())
            };
            match next {
                Next::Request(request) => return Poll::Ready(Some(*request)),
                Next::Nothing => return Poll::Pending,
                Next::At(due) => {
                    let sleep = self.sleep.insert(Box::pin(sleep_until(due)));
                    match sleep.as_mut().poll(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(()) => self.sleep = None,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(lsn: &str) -> Position {
        Position { lsn: lsn.into(), lineage: "a".into(), sequence: 0, snapshot: bytes::Bytes::new() }
    }

    fn acknowledged(next: Next) -> String {
        match next {
            Next::Request(request) => match request.request {
                Some(Request::Acknowledge(position)) => position.lsn,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_newest_is_kept_and_sent_when_due() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        outbox.acknowledge(position("0/10"));
        assert_eq!(acknowledged(outbox.next(now)), "0/10");
        for lsn in ["0/20", "0/30", "0/20"] {
            outbox.acknowledge(position(lsn));
        }
        assert!(matches!(outbox.next(now), Next::At(due) if due == now + ACK_INTERVAL));
        assert_eq!(acknowledged(outbox.next(now + ACK_INTERVAL)), "0/30");
        assert!(matches!(outbox.next(now), Next::Nothing));
        for number in 1..=ACK_BATCH {
            outbox.acknowledge(position(&format!("1/{number:X}")));
        }
        assert_eq!(acknowledged(outbox.next(now)), format!("1/{ACK_BATCH:X}"), "a thousand do not wait");
    }

    #[tokio::test]
    async fn a_dying_stream_takes_nothing_from_the_next_one() {
        let outbox = Arc::new(Outbox::default());
        outbox.reopen(ConsumeRequest::default(), None);
        let mut old = Requests::new(outbox.clone());
        outbox.reopen(ConsumeRequest::default(), None);
        let mut new = Requests::new(outbox.clone());
        let poll = |requests: &mut Requests| {
            Pin::new(requests).poll_next(&mut Context::from_waker(Waker::noop())).map(|next| next.is_some())
        };
        assert_eq!([poll(&mut old), poll(&mut new)], [Poll::Ready(false), Poll::Ready(true)]);
        assert_eq!(poll(&mut new), Poll::Pending);
    }

    #[test]
    fn what_another_lineage_does_not_know_is_not_sent_there() {
        let outbox = Outbox::default();
        outbox.acknowledge(position("0/30"));
        let resume = Position { lineage: "b".into(), ..position("0/20") };
        outbox.reopen(ConsumeRequest::default(), Some(&resume));
        assert!(matches!(outbox.next(Instant::now()), Next::Request(open) if open.request.is_none()));
        assert!(matches!(outbox.next(Instant::now()), Next::Nothing));
    }
}
