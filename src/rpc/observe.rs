//! The outermost layer: counts calls by method and code, gives every error an ErrorInfo, and ends health and
//! reflection streams when the server closes. Nobody else would: a graceful HTTP/2 shutdown waits for every open
//! stream, for ever, and a health watcher never hangs up.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use metrics::counter;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::status;
use crate::{
    metrics::REQUESTS,
    reason::Reason,
    shutdown::{Drain, Ear},
};

/// Every method that is counted under its own name.
pub const METHODS: &[&str] = &[
    "walcast.v1.ChangeStreamService/Subscribe",
    "walcast.v1.ChangeStreamService/Consume",
    "walcast.v1.ChangeStreamService/Acknowledge",
    "walcast.v1.ChangeStreamService/Backfill",
    "walcast.v1.ChangeStreamService/ListRelations",
    "walcast.v1.ChangeStreamService/ReadRetracted",
    "walcast.v1.AdminService/GetStatus",
    "walcast.v1.AdminService/ListSubscribers",
    "walcast.v1.AdminService/ResetSubscriber",
    "walcast.v1.AdminService/DeleteSubscriber",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The label of everything else; a client must not be able to make new time series.
const OTHER: &str = "other";

/// See the module.
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    closing: Drain,
}

impl<S> Observe<S> {
    /// `closing`: told after the health status has changed.
    pub fn new(inner: S, closing: Drain) -> Self {
        Observe { inner, closing }
    }
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        let ours = !path.starts_with("grpc.");
        let method = METHODS.iter().find(|method| **method == path).copied().unwrap_or(OTHER);
        let mut record = Record { method, code: Code::Cancelled };
        let closing = self.closing.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if response.headers().contains_key(Status::GRPC_STATUS) {
                status::complete(response.headers_mut(), ours);
                record.note(response.headers());
                return Ok(response);
            }
            let closing = (!ours).then(|| closing.ear());
            Ok(response.map(|body| Body::new(Observed { body, record, ours, closing, ended: false })))
        })
    }
}

/// Counts on drop. CANCELLED until something better is known: the client went away.
struct Record {
    method: &'static str,
    code: Code,
}

impl Record {
    fn note(&mut self, headers: &HeaderMap) {
        self.code = headers.get(Status::GRPC_STATUS).map_or(Code::Unknown, |value| Code::from_bytes(value.as_bytes()));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        counter!(REQUESTS, "method" => self.method, "code" => status::code_name(self.code)).increment(1);
    }
}

struct Observed {
    body: Body,
    record: Record,
    ours: bool,
    closing: Option<Ear>,
    ended: bool,
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(closing) = &mut this.closing else { return Poll::Pending };
                if Pin::new(closing).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.body = Body::empty();
                let status = status::refuse(Reason::Draining, "the hub is shutting down");
                Some(Ok(Frame::trailers(status::trailers(&status))))
            }
        };
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    status::complete(trailers, this.ours);
                    this.record.note(trailers);
                    this.ended = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            end => {
                this.ended = true;
                Poll::Ready(end)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
