//! What one would write next: each transaction is encoded once, and tonic's codec copies the bytes into the buffer of each
//! subscriber. `walcast`'s own body hands them to HTTP/2 as they are.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes};
use futures_util::future::BoxFuture;
use prost::Message;
use tokio::sync::{Semaphore, broadcast};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService, ServerStreamingService},
};
use tower::Service;
use walcast::wire::pb;

/// Encoded transactions to whoever subscribes.
#[derive(Clone)]
pub struct Shared {
    pub changes: broadcast::Sender<Bytes>,
    pub subscribed: &'static Semaphore,
}

impl NamedService for Shared {
    const NAME: &'static str = "walcast.v1.ChangeStreamService";
}

#[derive(Default)]
struct Copying;

impl Codec for Copying {
    type Encode = Bytes;
    type Decode = pb::SubscribeRequest;
    type Encoder = Copying;
    type Decoder = Copying;

    fn encoder(&mut self) -> Copying {
        Copying
    }

    fn decoder(&mut self) -> Copying {
        Copying
    }
}

impl Encoder for Copying {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Copying {
    type Item = pb::SubscribeRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<pb::SubscribeRequest>, Status> {
        let request = pb::SubscribeRequest::decode(buffer);
        request.map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

impl ServerStreamingService<pb::SubscribeRequest> for Shared {
    type Response = Bytes;
    type ResponseStream = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<pb::SubscribeRequest>) -> Self::Future {
        let changes = BroadcastStream::new(self.changes.subscribe());
        self.subscribed.add_permits(1);
        let messages = changes.map(|item| item.map_err(|lagged| Status::data_loss(lagged.to_string())));
        std::future::ready(Ok(Response::new(Box::pin(messages))))
    }
}

impl Service<http::Request<Body>> for Shared {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(Grpc::new(Copying).server_streaming(service, request).await) })
    }
}
