//! Subscribe, Consume and ReadRetracted: a tower service in front of the generated one. It decodes the request as tonic would and
//! answers with a [`StreamBody`]; every other method goes to the generated code.
//!
//! Whatever is wrong is found before the response starts, so that a refusal is a trailers-only response, which is the
//! only one that a client's retry policy may act on ([gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md)).
//!
//! What opens a stream is boxed in two parts of less than 3.5 KiB. In one it took between 7 and 8 KiB, the size in which the
//! allocator also keeps the buffer that h2 reads into. So each connection's buffer was where the stream before it had been
//! opened, with both its pages touched, of which an idle connection needs one: 4 KiB for each.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use prost::Message;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::{Codec, CompressionEncoding},
    metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
};
use tonic_prost::ProstCodec;
use tower::Service;
use tracing::Instrument;

use super::{
    Peer, Places,
    backend::{Backend, Control, Session},
    body::StreamBody,
    request,
    service::ChangeStreams,
    status,
    tokens::Caller,
    web::OneWay,
};
use crate::{
    hub::Subscription,
    reason::Reason,
    shutdown::Drain,
    wire::pb::{
        self,
        change_stream_service_server::{ChangeStreamServiceServer, SERVICE_NAME},
        consume_request::Request as Item,
    },
};

const SUBSCRIBE: &str = "/walcast.v1.ChangeStreamService/Subscribe";
const CONSUME: &str = "/walcast.v1.ChangeStreamService/Consume";
const READ_RETRACTED: &str = "/walcast.v1.ChangeStreamService/ReadRetracted";

/// The methods that are answered here.
#[derive(Clone, Copy, Debug)]
enum Method {
    Subscribe,
    Consume,
    ReadRetracted,
}

impl Method {
    fn of(path: &str) -> Option<Method> {
        match path {
            SUBSCRIBE => Some(Method::Subscribe),
            CONSUME => Some(Method::Consume),
            READ_RETRACTED => Some(Method::ReadRetracted),
            _ => None,
        }
    }
}

/// How long a client may take to say what it wants, once it has opened a stream.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// `walcast.v1.ChangeStreamService`, all methods.
pub struct StreamServer<B> {
    backend: B,
    rest: ChangeStreamServiceServer<ChangeStreams<B>>,
    max_request_bytes: usize,
    closing: Drain,
}

impl<B: Clone> Clone for StreamServer<B> {
    fn clone(&self) -> Self {
        StreamServer {
            backend: self.backend.clone(),
            rest: self.rest.clone(),
            max_request_bytes: self.max_request_bytes,
            closing: self.closing.clone(),
        }
    }
}

impl<B> NamedService for StreamServer<B> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B: Backend> StreamServer<B> {
    /// `rest` answers what does not stream; `closing` refuses what has not opened yet.
    pub fn new(
        backend: B,
        rest: ChangeStreamServiceServer<ChangeStreams<B>>,
        max_request_bytes: usize,
        closing: Drain,
    ) -> Self {
        StreamServer { backend, rest, max_request_bytes, closing }
    }

    async fn open(self, request: Request<Body>, method: Method) -> Result<StreamBody, Status> {
        let place = request.extensions().get::<Places>().map(Places::take).transpose()?;
        let opening = async {
            let body = match method {
                Method::Subscribe => self.subscribe(request).await,
                Method::Consume => self.consume(request).await,
                Method::ReadRetracted => self.read_retracted(request).await,
            };
            body.map(|body| body.holding(place))
        };
        tokio::select! {
            body = opening => body,
            () = self.closing.wait() => Err(status::refuse(Reason::Draining, "the hub is shutting down")),
        }
    }

    async fn subscribe(&self, request: Request<Body>) -> Result<StreamBody, Status> {
        let (parts, body) = request.into_parts();
        let mut messages = self.decode::<pb::SubscribeRequest>(&parts.headers, body)?;
        let message = in_time(async {
            let message = messages.message().await?.ok_or_else(|| Status::internal("there is no request message"))?;
            messages.trailers().await?;
            Ok(message)
        })
        .await?;
        let peer = peer(&parts.extensions);
        let subscription = request::subscription("", message, false, peer).map_err(|error| status::status(&error))?;
        let (session, span) = self.start(&parts.extensions, subscription).await?;
        Ok(StreamBody::new(session, None, parts.extensions.get().cloned(), span))
    }

    async fn read_retracted(&self, request: Request<Body>) -> Result<StreamBody, Status> {
        let (parts, body) = request.into_parts();
        let mut messages = self.decode::<pb::ReadRetractedRequest>(&parts.headers, body)?;
        let message = in_time(async {
            let message = messages.message().await?.ok_or_else(|| Status::internal("there is no request message"))?;
            messages.trailers().await?;
            Ok(message)
        })
        .await?;
        let retracted = request::retracted(message).map_err(|error| status::status(&error))?;
        let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
        let span = tracing::info_span!("retracted", lineage = %retracted.old_lineage, peer = peer(&parts.extensions));
        let session = Box::pin(self.backend.read_retracted(&caller.principal, retracted)).await;
        let session = session.map_err(|error| status::status(&error))?;
        Ok(StreamBody::new(session, None, parts.extensions.get().cloned(), span))
    }

    async fn consume(&self, request: Request<Body>) -> Result<StreamBody, Status> {
        let (parts, body) = request.into_parts();
        if parts.extensions.get::<OneWay>().is_some() {
            let text =
                "Consume goes both ways, which gRPC-web cannot: open the stream with Subscribe, and call Acknowledge";
            return Err(status::refuse(Reason::Unsupported, text));
        }
        let mut messages = self.decode::<pb::ConsumeRequest>(&parts.headers, body)?;
        let first =
            in_time(async { messages.message().await?.ok_or_else(|| Status::internal("the request stream is empty")) })
                .await?;
        let Some(Item::Open(open)) = first.request else {
            return Err(status::status(&request::Error::protocol("the first message of Consume must be `open`")));
        };
        let peer = peer(&parts.extensions);
        let subscription = request::subscription("open.", open, true, peer).map_err(|error| status::status(&error))?;
        let (session, span) = self.start(&parts.extensions, subscription).await?;
        // A task of its own, because the body is not polled while the client's window is full.
        let requests = AbortOnDropHandle::new(tokio::spawn(follow(messages, session.control())));
        Ok(StreamBody::new(session, Some(requests), parts.extensions.get().cloned(), span))
    }

    async fn start(
        &self,
        extensions: &http::Extensions,
        subscription: Subscription,
    ) -> Result<(B::Session, tracing::Span), Status> {
        let caller = extensions.get::<Caller>().cloned().unwrap_or_default();
        let span = tracing::info_span!(
            "stream",
            subscriber = subscription.subscriber.as_deref().unwrap_or("-"),
            principal = caller.principal.name,
            peer = subscription.peer,
        );
        match Box::pin(self.backend.subscribe(&caller.principal, subscription)).instrument(span.clone()).await {
            Ok(session) => Ok((session, span)),
            Err(error) => {
                let status = status::status(&error);
                span.in_scope(|| tracing::info!(reason = crate::reason::Classified::reason(&error).as_str(), %error, "stream refused"));
                Err(status)
            }
        }
    }

    fn decode<M: Message + Default + 'static>(&self, headers: &HeaderMap, body: Body) -> Result<Streaming<M>, Status> {
        let decoder = ProstCodec::<M, M>::default().decoder();
        Ok(Streaming::new_request(decoder, body, encoding(headers)?, Some(self.max_request_bytes)))
    }
}

impl<B: Backend> Service<Request<Body>> for StreamServer<B> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(method) = Method::of(request.uri().path()) else { return self.rest.call(request) };
        let server = self.clone();
        Box::pin(async move {
            Ok(match server.open(request, method).await {
                Ok(body) => {
                    let mut response = Response::new(Body::new(body));
                    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

/// Streams past the router, which wraps a body four times over, each time in a box; everything else through it.
#[derive(Clone)]
pub struct Direct<B, S> {
    /// For the methods that it answers itself.
    pub streams: StreamServer<B>,
    /// For the others.
    pub routes: S,
}

impl<B, S> Service<Request<Body>> for Direct<B, S>
where
    B: Backend,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<<StreamServer<B> as Service<Request<Body>>>::Future, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.routes.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match Method::of(request.uri().path()) {
            Some(_) => Either::Left(self.streams.call(request)),
            None => Either::Right(self.routes.call(request)),
        }
    }
}

/// Carries credit and acknowledgements to the session until the client closes its half, which leaves the stream open.
async fn follow<C: Control>(mut messages: Streaming<pb::ConsumeRequest>, control: C) -> Option<request::Error> {
    loop {
        let item = match messages.message().await {
            Ok(Some(message)) => message.request,
            Ok(None) => return None,
            Err(status) => {
                let status = status::from_transport(status);
                let lost = matches!(status.code(), tonic::Code::Cancelled | tonic::Code::Unavailable);
                return (!lost).then(|| request::Error::protocol(status.message()));
            }
        };
        match item {
            Some(Item::Credit(credit)) => control.grant(credit.events, credit.bytes),
            Some(Item::Acknowledge(position)) => match request::required_position("acknowledge", Some(&position)) {
                Ok(position) => {
                    if let Err(error) = control.acknowledge(position) {
                        control.fail(error);
                        return None;
                    }
                }
                Err(error) => return Some(error),
            },
            Some(Item::Open(_)) => return Some(request::Error::protocol("`open` may be sent only once")),
            None => return Some(request::Error::protocol("a message of Consume holds nothing that this hub knows")),
        }
    }
}

async fn in_time<M>(request: impl Future<Output = Result<M, Status>>) -> Result<M, Status> {
    match tokio::time::timeout(REQUEST_TIME, request).await {
        Ok(message) => message.map_err(status::from_transport),
        Err(_) => {
            let text = format!("the request did not arrive within {} s", REQUEST_TIME.as_secs());
            Err(status::refuse(Reason::RequestInvalid, &text))
        }
    }
}

/// The request's compression ([gRPC compression](https://github.com/grpc/grpc/blob/master/doc/compression.md)).
fn encoding(headers: &HeaderMap) -> Result<Option<CompressionEncoding>, Status> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(CompressionEncoding::Gzip)),
        Some(b"zstd") => Ok(Some(CompressionEncoding::Zstd)),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            let text = format!("requests compressed with {other:?} are not understood; use gzip, zstd or none");
            let mut status = status::from_transport(Status::unimplemented(text));
            let accepted = tonic::metadata::MetadataValue::from_static("gzip,zstd,identity");
            status.metadata_mut().insert("grpc-accept-encoding", accepted);
            Err(status)
        }
    }
}

fn peer(extensions: &http::Extensions) -> String {
    extensions.get::<Peer>().map(Peer::to_string).unwrap_or_default()
}
