use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN,
    },
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::{
    super::{Options, Origins, Tokens},
    fake::{Running, Script, frame, lsn_of, start},
    typed, within,
};
use crate::{reason::Reason, wire::pb};

const PAGE: &str = "https://app.example.com";
const SUBSCRIBE: &str = "/walcast.v1.ChangeStreamService/Subscribe";
const CONSUME: &str = "/walcast.v1.ChangeStreamService/Consume";
const ACKNOWLEDGE: &str = "/walcast.v1.ChangeStreamService/Acknowledge";
const LIST: &str = "/walcast.v1.ChangeStreamService/ListRelations";
const TRAILERS: u8 = 0x80;

fn web() -> Options {
    Options { web: Some(Arc::new(Origins::new([PAGE.to_owned()]))), ..Options::default() }
}

enum Sender {
    Http1(conn::http1::SendRequest<Full<Bytes>>),
    Http2(conn::http2::SendRequest<Full<Bytes>>),
}

/// What a browser does for a page: one connection to the hub. Ends with it.
struct Browser {
    sender: Sender,
    address: String,
    _connection: AbortOnDropHandle<()>,
}

impl Browser {
    async fn open(server: &Running, version: Version) -> Browser {
        let io = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
        let (sender, connection) = if version == Version::HTTP_2 {
            let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            (Sender::Http2(sender), tokio::spawn(async { connection.await.unwrap_or_default() }))
        } else {
            let (sender, connection) = conn::http1::handshake(io).await.unwrap();
            (Sender::Http1(sender), tokio::spawn(async { connection.await.unwrap_or_default() }))
        };
        Browser { sender, address: server.address.to_string(), _connection: AbortOnDropHandle::new(connection) }
    }

    fn request(&self, path: &str) -> http::request::Builder {
        let uri = match self.sender {
            Sender::Http1(_) => path.to_owned(),
            Sender::Http2(_) => format!("http://{}{path}", self.address),
        };
        Request::post(uri).header(HOST, &self.address)
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within(async {
            match &mut self.sender {
                Sender::Http1(sender) => sender.send_request(request).await,
                Sender::Http2(sender) => sender.send_request(request).await,
            }
        })
        .await
        .unwrap()
    }

    /// A gRPC-web call of a page of the allowed origin.
    async fn call(&mut self, path: &str, message: &impl Message) -> Response<Incoming> {
        let request = self.request(path).header(CONTENT_TYPE, "application/grpc-web+proto").header(ORIGIN, PAGE);
        self.send(request.body(Full::new(framed(message))).unwrap()).await
    }
}

fn framed(message: &impl Message) -> Bytes {
    let content = message.encode_to_vec();
    [&[0][..], &u32::try_from(content.len()).unwrap().to_be_bytes(), &content].concat().into()
}

/// Takes a response apart as a page does: flag and content of each frame.
struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

impl Frames {
    fn new(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc-web+proto");
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], PAGE);
        Frames { body: response.into_body(), buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let Some(&[flag, a, b, c, d]) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.buffer.len() >= 5 + length {
                    let frame = self.buffer.split_to(5 + length).freeze();
                    return Some((flag, frame.slice(5..)));
                }
            }
            match within(self.body.frame()).await {
                Some(frame) => self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => return None,
            }
        }
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        let (flag, content) = self.next().await.unwrap();
        assert_eq!(flag, 0, "{content:?}");
        M::decode(content).unwrap()
    }

    /// What the last frame says; nothing may follow it.
    async fn status(&mut self) -> Status {
        let (flag, content) = self.next().await.unwrap();
        assert_eq!(flag, TRAILERS);
        assert!(self.next().await.is_none());
        let mut trailers = HeaderMap::new();
        for line in std::str::from_utf8(&content).unwrap().lines() {
            let (name, value) = line.split_once(':').unwrap();
            trailers.insert(http::HeaderName::try_from(name).unwrap(), value.trim().parse().unwrap());
        }
        Status::from_header_map(&trailers).unwrap()
    }
}

/// The status of a call that was refused before it began.
fn refused(response: &Response<Incoming>) -> (Code, String) {
    let exposed = response.headers()[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
    assert!(["grpc-status", "grpc-message", "grpc-status-details-bin"].iter().all(|name| exposed.contains(name)));
    typed(&Status::from_header_map(response.headers()).unwrap())
}

#[tokio::test]
async fn a_page_gets_each_message_as_it_comes_and_the_status_at_the_end() {
    let server = start(web()).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let steps = server.script();
        let mut browser = Browser::open(&server, version).await;
        let mut frames = Frames::new(browser.call(SUBSCRIBE, &pb::SubscribeRequest::default()).await);
        for lsn in [1, 2, 3] {
            steps.send(Ok(frame(lsn, 100_000))).await.unwrap();
            let message: pb::SubscribeResponse = frames.message().await;
            assert_eq!(lsn_of(&message.events), format!("0/{lsn}"), "{version:?}");
        }
        steps.send(Err(super::fake::FakeError(Reason::SubscriberFenced))).await.unwrap();
        assert_eq!(typed(&frames.status().await), (Code::Aborted, "SUBSCRIBER_FENCED".to_owned()));
        within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;

        let request = pb::AcknowledgeRequest {
            subscriber: "page".to_owned(),
            position: Some(crate::wire::position_to_pb(super::fake::position(0x77))),
            session: 5,
        };
        let mut browser = Browser::open(&server, version).await;
        let mut frames = Frames::new(browser.call(ACKNOWLEDGE, &request).await);
        let answer: pb::AcknowledgeResponse = frames.message().await;
        assert_eq!(answer.checkpoint.unwrap().lsn, "0/77");
        assert_eq!(frames.status().await.code(), Code::Ok);
    }
    // Native gRPC on the same port.
    within(server.changes().await.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
}

#[tokio::test]
async fn a_page_that_is_left_frees_its_place_and_one_that_does_not_read_stops_the_hub() {
    let server = start(web()).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let _steps = server.script();
        let mut left = Browser::open(&server, version).await;
        let response = left.call(SUBSCRIBE, &pb::SubscribeRequest::default()).await;
        within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 1)).await;
        drop((left, response));
        within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;

        server.hub.scripts.lock().push(Script::Flood(frame(1, 64 * 1024)));
        let before = server.hub.sent.load(Ordering::SeqCst);
        let mut slow = Browser::open(&server, version).await;
        let mut frames = Frames::new(slow.call(SUBSCRIBE, &pb::SubscribeRequest::default()).await);
        // Sockets and windows take what they take; when nothing has been asked for in a while they are full.
        let mut sent = before;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = server.hub.sent.load(Ordering::SeqCst);
            if now > before && now == sent {
                break;
            }
            sent = now;
        }
        assert!((sent - before) * 64 * 1024 < 64 << 20, "{} messages", sent - before);
        for _ in 0..sent - before + 10 {
            let _: pb::SubscribeResponse = frames.message().await;
        }
    }
}

#[tokio::test]
async fn what_is_refused_before_it_begins_says_so_in_headers_that_a_page_may_read() {
    let server = start(web()).await;
    server.hub.scripts.lock().push(Script::Refuse(Reason::PositionExpired));
    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    let response = browser.call(SUBSCRIBE, &pb::SubscribeRequest::default()).await;
    assert_eq!(refused(&response), (Code::OutOfRange, "POSITION_EXPIRED".to_owned()));

    let open = pb::ConsumeRequest { request: Some(pb::consume_request::Request::Open(Default::default())) };
    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    let response = browser.call(CONSUME, &open).await;
    assert_eq!(refused(&response), (Code::FailedPrecondition, "UNSUPPORTED".to_owned()));
    let status = Status::from_header_map(response.headers()).unwrap();
    assert!(status.message().contains("Subscribe"), "{status:?}");
    assert_eq!(server.hub.subscriptions.lock().len(), 1);

    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    let long = pb::SubscribeRequest { subscriber: "x".repeat(web().request_bytes), ..Default::default() };
    let response = browser.call(SUBSCRIBE, &long).await;
    assert_eq!(refused(&response), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()));
}

#[tokio::test]
async fn only_pages_of_the_origins_that_are_named_reach_the_hub() {
    let server = start(web()).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut browser = Browser::open(&server, version).await;
        for origin in ["https://evil.example.com", "https://app.example.com.evil.com", "null", ""] {
            for method in [Method::POST, Method::OPTIONS] {
                let request = browser.request(SUBSCRIBE).method(method).header(ORIGIN, origin);
                let request = request.header(ACCESS_CONTROL_REQUEST_METHOD, "POST");
                let request = request.header(CONTENT_TYPE, "application/grpc-web+proto");
                let message = framed(&pb::SubscribeRequest::default());
                let response = browser.send(request.body(Full::new(message)).unwrap()).await;
                assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin:?}");
                assert!(!response.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
                response.into_body().collect().await.unwrap();
            }
        }
        assert!(server.hub.subscriptions.lock().is_empty());
        // What is no page says no origin.
        let request = browser.request(LIST).header(CONTENT_TYPE, "application/grpc-web");
        let message = framed(&pb::ListRelationsRequest::default());
        let response = browser.send(request.body(Full::new(message)).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    let any = Options { web: Some(Arc::new(Origins::new(["*".to_owned()]))), ..Options::default() };
    let server = start(any).await;
    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    Frames::new(browser.call(LIST, &pb::ListRelationsRequest::default()).await);
}

#[tokio::test]
async fn tokens_hold_for_pages_too_but_not_for_the_question_whether_they_may_ask() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, "6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55 billing public.invoices\n").unwrap();
    let tokens = Some(Arc::new(Tokens::load(path).unwrap()));
    let server = start(Options { tokens, ..web() }).await;
    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    let question = browser.request(LIST).method(Method::OPTIONS).header(ORIGIN, PAGE);
    let question = question.header(ACCESS_CONTROL_REQUEST_METHOD, "POST");
    let question = question.header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,x-grpc-web");
    let response = browser.send(question.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], PAGE);
    assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,content-type,x-grpc-web");

    let response = browser.call(LIST, &pb::ListRelationsRequest::default()).await;
    assert_eq!(refused(&response), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
    let request = browser.request(LIST).header(CONTENT_TYPE, "application/grpc-web+proto").header(ORIGIN, PAGE);
    let request = request.header(AUTHORIZATION, "Bearer 6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55");
    let message = framed(&pb::ListRelationsRequest::default());
    let mut frames = Frames::new(browser.send(request.body(Full::new(message)).unwrap()).await);
    let _: pb::ListRelationsResponse = frames.message().await;
    assert_eq!(frames.status().await.code(), Code::Ok);
}

/// Everything that the server says until it hangs up.
async fn answer_to(server: &Running, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request).await.unwrap_or_default();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap_or_default();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn http1_has_limits_too() {
    let server = start(Options { handshake_limit: Duration::from_millis(300), ..web() }).await;
    let long = format!("POST {LIST} HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(20_000));
    assert!(answer_to(&server, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // Headers that do not end, and a connection that has nothing more to ask.
    assert_eq!(answer_to(&server, b"POST / HTTP/1.1\r\nhost: x\r\nx-slow: and so on\r\n").await, "");
    assert!(answer_to(&server, b"GET /favicon.ico HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    within(server.changes().await.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
}

#[tokio::test]
async fn a_draining_hub_tells_pages_and_does_not_wait_for_idle_ones() {
    let server = start(Options { drain_limit: Duration::from_secs(3600), ..web() }).await;
    let steps = server.script();
    steps.send(Ok(frame(1, 10))).await.unwrap();
    let mut idle = Browser::open(&server, Version::HTTP_11).await;
    let mut answered = Frames::new(idle.call(LIST, &pb::ListRelationsRequest::default()).await);
    let _: pb::ListRelationsResponse = answered.message().await;
    assert_eq!(answered.status().await.code(), Code::Ok);
    let mut browser = Browser::open(&server, Version::HTTP_11).await;
    let mut frames = Frames::new(browser.call(SUBSCRIBE, &pb::SubscribeRequest::default()).await);
    let _: pb::SubscribeResponse = frames.message().await;
    server.drain.start();
    assert_eq!(typed(&frames.status().await), (Code::Unavailable, "DRAINING".to_owned()));
    within(server.task).await.unwrap().unwrap();
}
