//! The response body of Subscribe and Consume. tonic's encoder copies every message into a buffer of its own, once
//! per subscriber; this body hands the hub's refcounted bytes to hyper as they are, and hyper and h2 only split them.
//!
//! A stream's next message is made when the socket has taken the last one, which h2 tells by dropping its bytes. Left to
//! themselves, h2 takes messages until the stream's send buffer is full and hyper keeps
//! [one more](https://github.com/hyperium/hyper/issues/4003), so that a client that stalls where nobody else does would keep blocks in
//! memory that the ring has long given up. As it is, it costs its socket, a cursor, and the message that was on its way, or two where
//! the first is small. Nobody who reads waits for this: the connection and its streams are one task, which makes the next message
//! before it rests. Until then the session is not asked anything, so that a stalled stream learns only with its next message that
//! it has been fenced or drained; a token that is withdrawn ends it at once. Whoever copies a message, as base64 for browsers does, is
//! held back by HTTP/2's buffer alone.
//!
//! Only small messages that are ready together, as of a journal of small transactions, are joined: each is a DATA frame and a write
//! of its own otherwise, which costs ten times what copying it does. Messages are never compressed (`grpc-encoding: identity`):
//! compressing per stream would cost more than everything else together, and the same bytes must serve everybody.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tracing::Span;

use super::{backend::Session, request, status, tokens::Grant};
use crate::reason::{Classified, Reason};

/// A stream of framed messages that ends with trailers. Dropping it closes the session.
pub struct StreamBody {
    shared: Arc<Shared>,
    /// Ends the session when the token that opened the stream no longer allows it, also while nobody takes anything.
    _watch: Option<AbortOnDropHandle<()>>,
    /// On its connection.
    place: Option<OwnedSemaphorePermit>,
    /// What came behind messages that were joined, and is handed out next.
    behind: Option<Option<Result<Bytes, End>>>,
    log: Log,
}

/// Messages of less than this are joined, to at most a frame of this size and the last of them.
const SMALL: usize = 16 << 10;

/// What the session has handed out and nobody has taken yet.
type Handed = Arc<Mutex<Option<Result<Bytes, End>>>>;

/// The session, which stays where it is: `stream::unfold` would move all of it into each step and out again, twice for each
/// message.
struct Messages {
    session: Pin<Box<dyn Future<Output = ()> + Send>>,
    handed: Handed,
}

impl Messages {
    fn new<S>(mut session: S) -> Self
    where
        S: Session,
        S::Error: Classified + Send,
    {
        let handed = Handed::default();
        let hand = handed.clone();
        let session = async move {
            while let Some(message) = session.next().await {
                *hand.lock() = Some(message.map_err(End::from));
                let mut taken = false;
                poll_fn(|_| if std::mem::replace(&mut taken, true) { Poll::Ready(()) } else { Poll::Pending }).await;
            }
        };
        Messages { session: Box::pin(session), handed }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, End>>> {
        let polled = self.session.as_mut().poll(cx);
        match self.handed.lock().take() {
            Some(message) => Poll::Ready(Some(message)),
            None => polled.map(|()| None),
        }
    }
}

/// What reads the client's half of Consume.
pub type Requests = AbortOnDropHandle<Option<request::Error>>;

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    /// A message has been handed out and is not written yet.
    on_its_way: AtomicBool,
    waker: AtomicWaker,
}

/// A message until it is written, or its stream is reset.
struct OnItsWay {
    message: Bytes,
    shared: Arc<Shared>,
}

impl AsRef<[u8]> for OnItsWay {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.shared.on_its_way.store(false, Ordering::Release);
        self.shared.waker.wake();
    }
}

/// What goes when the token is withdrawn.
#[derive(Default)]
struct Held {
    messages: Option<Messages>,
    /// The client's half of Consume: finishes with the violation that ends the stream, or with nothing.
    requests: Option<Requests>,
    /// Why there are no messages any more, while that is not said.
    withdrawn: Option<(Reason, &'static str)>,
}

impl Shared {
    fn hand_out(self: &Arc<Self>, message: Bytes) -> Frame<Bytes> {
        self.on_its_way.store(true, Ordering::Relaxed);
        Frame::data(Bytes::from_owner(OnItsWay { message, shared: self.clone() }))
    }

    async fn watch(self: Arc<Self>, grant: Grant) {
        let why = grant.withdrawn().await;
        let mut held = self.held.lock();
        if held.messages.is_none() {
            return;
        }
        let left = std::mem::replace(&mut *held, Held { withdrawn: Some(why), ..Held::default() });
        drop(held);
        drop(left);
        self.waker.wake();
    }
}

/// How a stream ends otherwise than well.
struct End {
    reason: Reason,
    status: Box<Status>,
}

impl<E: Classified> From<E> for End {
    fn from(error: E) -> Self {
        End { reason: error.reason(), status: Box::new(status::status(&error)) }
    }
}

/// One line when the stream opens, one when it ends.
struct Log {
    span: Span,
    opened: Instant,
    messages: u64,
    bytes: u64,
    ended: Option<&'static str>,
}

impl StreamBody {
    /// The body of one session. `grant` is what the caller was let in with, `span` names the stream in the log.
    pub fn new<S>(session: S, requests: Option<Requests>, grant: Option<Grant>, span: Span) -> Self
    where
        S: Session,
        S::Error: Classified + Send,
    {
        span.in_scope(|| tracing::info!("stream opened"));
        let held = Held { messages: Some(Messages::new(session)), requests, withdrawn: None };
        let shared = Arc::new(Shared { held: Mutex::new(held), ..Shared::default() });
        StreamBody {
            _watch: grant.map(|grant| AbortOnDropHandle::new(tokio::spawn(shared.clone().watch(grant)))),
            shared,
            place: None,
            behind: None,
            log: Log { span, opened: Instant::now(), messages: 0, bytes: 0, ended: None },
        }
    }

    /// Keeps this as long as the stream is open.
    pub fn holding(mut self, place: Option<OwnedSemaphorePermit>) -> Self {
        self.place = place;
        self
    }
}

impl Drop for StreamBody {
    /// At once: who watches the token has a share in the session, and goes when the runtime gets to it.
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.shared.held.lock());
        drop(left);
    }
}

fn next(
    messages: &mut Messages,
    requests: &mut Option<Requests>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, End>>> {
    if let Some(reading) = requests
        && let Poll::Ready(outcome) = Pin::new(reading).poll(cx)
    {
        *requests = None;
        if let Ok(Some(violation)) = outcome {
            return Poll::Ready(Some(Err(violation.into())));
        }
    }
    messages.poll_next(cx)
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        this.shared.waker.register(cx.waker());
        let mut held = this.shared.held.lock();
        let Held { messages, requests, withdrawn } = &mut *held;
        let first = match (withdrawn.take(), messages.as_mut()) {
            (Some((reason, why)), _) => Some(Err(End { reason, status: Box::new(status::refuse(reason, why)) })),
            (None, None) => return Poll::Ready(None),
            (None, Some(_)) if this.shared.on_its_way.load(Ordering::Acquire) => return Poll::Pending,
            (None, Some(messages)) => match this.behind.take() {
                Some(behind) => behind,
                None => match next(messages, requests, cx) {
                    Poll::Ready(next) => next,
                    Poll::Pending => return Poll::Pending,
                },
            },
        };
        let end = match first {
            Some(Ok(message)) => {
                let mut data = message;
                let mut together = 1;
                let mut joined = BytesMut::new();
                while data.len() + joined.len() < SMALL
                    && let Some(messages) = messages
                {
                    match next(messages, requests, cx) {
                        Poll::Pending => break,
                        Poll::Ready(Some(Ok(message))) if message.len() < SMALL => {
                            together += 1;
                            joined.extend_from_slice(&data);
                            data = message;
                        }
                        Poll::Ready(behind) => {
                            this.behind = Some(behind);
                            break;
                        }
                    }
                }
                if !joined.is_empty() {
                    joined.extend_from_slice(&data);
                    data = joined.freeze();
                }
                this.log.messages += together;
                this.log.bytes += data.len() as u64;
                return Poll::Ready(Some(Ok(this.shared.hand_out(data))));
            }
            Some(Err(end)) => end,
            None => End { reason: Reason::Internal, status: Box::new(Status::ok("")) },
        };
        // The session goes before the trailers: whoever sees the stream end finds its place free.
        *held = Held::default();
        drop(held);
        this.place = None;
        this.log.ended = Some(if end.status.code() == tonic::Code::Ok { "OK" } else { end.reason.as_str() });
        Poll::Ready(Some(Ok(Frame::trailers(status::trailers(&end.status)))))
    }

    fn is_end_stream(&self) -> bool {
        let held = self.shared.held.lock();
        held.messages.is_none() && held.withdrawn.is_none()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Log { messages, bytes, .. } = *self;
        let seconds = self.opened.elapsed().as_secs_f64();
        let reason = self.ended.unwrap_or("the client went away");
        self.span.in_scope(|| tracing::info!(reason, messages, bytes, seconds, "stream ended"));
    }
}
