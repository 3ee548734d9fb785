//! The gRPC server: accepts, limits, drains.
//!
//! It stands on hyper and not on `tonic::transport::Server`, for four reasons. tonic gives each stream a task of its own
//! ([`Together`] tells what that costs). Its graceful shutdown waits for open streams for ever and, when its future is
//! dropped, leaves their connections running. It waits for a silent peer's preface for ever. And its TLS configuration is
//! fixed at the start. The services are tonic's all the same: each is a tower service over HTTP requests.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::{StreamExt, future::poll_fn};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{body::Body, codec::CompressionEncoding, service::Routes, transport::server::TcpIncoming};
use tower::{Service, util::Either};

use super::{
    Health, Peer, Places, Tls, Tokens,
    admin::Admin,
    auth::Auth,
    backend::Backend,
    cork::{Cork, Corked},
    observe::Observe,
    preface::Counted,
    service::ChangeStreams,
    streams::{Direct, StreamServer},
    throttle::Throttle,
    together::{Spawner, Together},
    web::{Origins, Web},
};
use crate::{
    feed::{Feed, Source},
    shutdown::Drain,
    wire::pb::{
        FILE_DESCRIPTOR_SET, admin_service_server::AdminServiceServer,
        change_stream_service_server::ChangeStreamServiceServer,
    },
};

/// TCP keepalive, for peers that vanish before HTTP/2 begins.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes per stream that wait in h2 for the peer's window where the body does not see to it itself: gRPC-web in base64 copies
/// each message, and other replies are short.
const SEND_BUFFER: usize = 32 * 1024;

/// hyper refuses to read HTTP/1.1 headers through a smaller buffer. The same number bounds what waits to be written.
const LEAST_BUFFER: usize = 8 * 1024;

/// Bytes of request that a client may send ahead, per stream and per connection. Requests are small.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of one frame that a client may send, HTTP/2's own default. How large the frames are that clients get is up
/// to them.
const FRAME: u32 = 16 * 1024;

/// HTTP/2 streams per connection beyond those of subscriptions: for other calls, and so that a subscription too many is told
/// so. At HTTP/2's own limit clients wait in silence.
const OTHER_STREAMS: u32 = 32;

/// Connections beyond the limit, at the same time, whose clients are told that it is reached. Each lasts as long as that
/// takes, and twice [`Options::handshake_limit`] at most; with TLS, whose handshake may take as long, three times.
const REFUSED: usize = 64;

/// Streams that a peer may make the server reset (MadeYouReset) before the connection is closed.
const LOCAL_RESETS: usize = 256;

/// How often token and TLS files are looked at.
const FILES_INTERVAL: Duration = Duration::from_secs(2);

/// Pause after the system refused a connection for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Limits and what is optional.
#[derive(Clone)]
pub struct Options {
    /// `None`: plaintext. See [`refuse_plaintext`].
    pub tls: Option<Arc<Tls>>,
    /// `None`: every caller is the unnamed principal and may do everything.
    pub tokens: Option<Arc<Tokens>>,
    /// Serve reflection.
    pub reflection: bool,
    /// Answer health and reflection without a token.
    pub open_paths: bool,
    /// Serve gRPC-web, over HTTP/1.1 too, to pages of these origins. `None`: native gRPC and HTTP/2 only.
    pub web: Option<Arc<Origins>>,
    /// Connections at the same time. On a few further ones streams are refused with TOO_MANY_STREAMS; beyond them a connection is
    /// closed at once.
    pub connections: usize,
    /// Subscription streams at the same time on one connection; further ones are refused with TOO_MANY_STREAMS.
    pub streams_per_connection: u32,
    /// From accepting a connection to the end of TLS, and again from there to its HTTP/2 preface, or to the end of an
    /// HTTP/1.1 request's headers.
    pub handshake_limit: Duration,
    /// An HTTP/2 ping after this much silence finds half-open connections.
    pub ping_interval: Duration,
    /// How long its answer may take.
    pub ping_limit: Duration,
    /// Bytes of the largest request message.
    pub request_bytes: usize,
    /// Bytes of request headers.
    pub header_bytes: u32,
    /// Streams that a peer may open and reset before anybody has looked at them (rapid reset).
    pub pending_resets: usize,
    /// From the drain token to the end, whatever clients do.
    pub drain_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tls: None,
            tokens: None,
            reflection: true,
            open_paths: true,
            web: None,
            connections: 10_000,
            streams_per_connection: 256,
            handshake_limit: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            ping_limit: Duration::from_secs(20),
            request_bytes: 256 * 1024,
            header_bytes: 16 * 1024,
            pending_resets: 20,
            drain_limit: Duration::from_secs(20),
        }
    }
}

/// What the services stand on.
pub struct Services<B> {
    /// The hub.
    pub backend: B,
    /// For relations and status.
    pub feed: Arc<dyn Feed>,
    /// For status.
    pub source: Arc<dyn Source>,
    /// Told by the application when streams are served.
    pub health: Health,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {address} for gRPC: {source}{}", hint(source))]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// See [`refuse_plaintext`].
    #[error(
        "refusing to serve plaintext on {0}: anybody on the network could read every row and every token. \
         Give a certificate and key, listen on 127.0.0.1, or say --insecure if something in front encrypts"
    )]
    Plaintext(SocketAddr),
    /// The descriptor set in the binary does not describe itself.
    #[error("reflection cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: stop it, or choose another address with --listen",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another with --listen",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

/// Takes the address. Port 0: any free one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Without TLS only loopback may be listened on, unless the operator insists.
pub fn refuse_plaintext(listen: SocketAddr, tls: bool, insecure: bool) -> Result<(), Error> {
    if tls || insecure || listen.ip().to_canonical().is_loopback() { Ok(()) } else { Err(Error::Plaintext(listen)) }
}

/// Serves until the drain token is told, then sends GOAWAY, lets streams end (the hub ends its own with DRAINING) and
/// returns when all have, or when [`Options::drain_limit`] is over and what is left was cut. Never later.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    services: Services<B>,
    options: Options,
    drain: Drain,
) -> Result<(), Error> {
    let health = services.health.clone();
    let closing = Drain::new();
    let routes = routes(services, &options, &closing)?;
    let service = Observe::new(Auth::new(routes, options.tokens.clone(), options.open_paths), closing.clone());
    let service = match &options.web {
        Some(origins) => Either::Left(Web::new(service, Arc::clone(origins))),
        None => Either::Right(service),
    };
    let server = Arc::new(Connections {
        service,
        options: options.clone(),
        tls: options.tls.clone(),
        handshake_limit: options.handshake_limit,
        limit: options.connections,
        streams: options.streams_per_connection,
        closing,
    });
    let _watches = watch_files(&options);

    let mut connections = JoinSet::new();
    accept(listener, &server, &mut connections, &drain).await;
    health.serving(false).await;
    server.closing.start();
    let ended = timeout(options.drain_limit, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(connections = connections.len(), limit = ?options.drain_limit, "cutting connections that did not end");
        connections.shutdown().await;
    }
    Ok(())
}

fn routes<B: Backend>(services: Services<B>, options: &Options, closing: &Drain) -> Result<Direct<B, Routes>, Error> {
    let Services { backend, feed, source, health } = services;
    macro_rules! limited {
        ($server:expr) => {
            $server
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .send_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Zstd)
                .max_decoding_message_size(options.request_bytes)
        };
    }
    let changes = ChangeStreams::new(backend.clone(), Arc::clone(&feed));
    let changes = limited!(ChangeStreamServiceServer::new(changes));
    let streams = StreamServer::new(backend.clone(), changes, options.request_bytes, closing.clone());
    let admin = limited!(AdminServiceServer::new(Admin::new(backend, feed, source)));
    let mut routes = Routes::new(streams.clone())
        .add_service(admin)
        .add_service(health.server().max_decoding_message_size(options.request_bytes));
    if options.reflection {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes
            .add_service(reflection().build_v1()?.max_decoding_message_size(options.request_bytes))
            .add_service(reflection().build_v1alpha()?.max_decoding_message_size(options.request_bytes));
    }
    Ok(Direct { streams, routes: routes.prepare() })
}

fn protocol(options: &Options, spawner: Spawner) -> auto::Builder<Spawner> {
    let mut protocol = auto::Builder::new(spawner);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.streams_per_connection.saturating_add(OTHER_STREAMS))
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(options.header_bytes)
        .max_pending_accept_reset_streams(options.pending_resets)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .keep_alive_interval(options.ping_interval)
        .keep_alive_timeout(options.ping_limit);
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.handshake_limit)
        .max_buf_size((options.header_bytes as usize).max(LEAST_BUFFER));
    if options.web.is_some() { protocol } else { protocol.http2_only() }
}

fn watch_files(options: &Options) -> Vec<AbortOnDropHandle<()>> {
    let mut watches = Vec::new();
    if let Some(tls) = options.tls.clone() {
        watches.push(AbortOnDropHandle::new(tokio::spawn(async move { tls.watch(FILES_INTERVAL).await })));
    }
    if let Some(tokens) = options.tokens.clone() {
        watches.push(AbortOnDropHandle::new(tokio::spawn(async move { tokens.watch(FILES_INTERVAL).await })));
    }
    watches
}

/// Accepts until the drain token is told, then gives the port back.
async fn accept<S>(listener: TcpListener, server: &Arc<Connections<S>>, connections: &mut JoinSet<()>, drain: &Drain)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let mut incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
    let (room, refused) = (Arc::new(Semaphore::new(server.limit)), Arc::new(Semaphore::new(REFUSED)));
    let log = Throttle::new(1);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.wait() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = incoming.next() => accepted,
        };
        match accepted {
            Some(Ok(stream)) => {
                let permit = Arc::clone(&room).try_acquire_owned();
                let served = permit.is_ok();
                if !served && let Some(unreported) = log.pass() {
                    let limit = server.limit;
                    tracing::warn!(limit, unreported, "connection refused: the limit on connections is reached");
                }
                if let Ok(permit) = permit.or_else(|_| Arc::clone(&refused).try_acquire_owned()) {
                    connections.spawn(Arc::clone(server).connection(stream, permit, served));
                }
            }
            Some(Err(error)) if concerns_one_connection(&error) => {}
            Some(Err(error)) => {
                if let Some(unreported) = log.pass() {
                    tracing::error!(%error, unreported, "cannot accept connections");
                }
                tokio::select! {
                    () = drain.wait() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
            None => return,
        }
    }
}

/// The peer gave up before it was accepted. Everything else (EMFILE, ENFILE, ENOBUFS, ENOMEM) will be so the next time
/// too, and asking again at once would only burn a core.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock
    )
}

/// What all connections share.
struct Connections<S> {
    service: S,
    options: Options,
    tls: Option<Arc<Tls>>,
    handshake_limit: Duration,
    limit: usize,
    streams: u32,
    closing: Drain,
}

impl<S> Connections<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn connection(self: Arc<Self>, stream: TcpStream, _permit: OwnedSemaphorePermit, served: bool) {
        let Ok(peer) = stream.peer_addr() else { return };
        let (stream, cork) = Corked::new(stream);
        match &self.tls {
            // Boxed, so that a connection without TLS does not hold the space for it: 2 KB instead of 8.5.
            Some(tls) => Box::pin(self.encrypted(tls, stream, cork, peer, served)).await,
            None => self.http(stream, cork, peer, served).await,
        }
    }

    async fn encrypted(&self, tls: &Tls, stream: Corked, cork: Cork, peer: SocketAddr, served: bool) {
        let accepted = {
            let mut accept = Box::pin(timeout(self.handshake_limit, tls.acceptor().accept(stream)));
            let pushed = poll_fn(|cx| {
                let polled = accept.as_mut().poll(cx);
                cork.push(); // a long chain of certificates is bulk too, and the client answers to its end
                polled
            });
            pushed.await
        };
        match accepted {
            Ok(Ok(stream)) => self.http(stream, cork, peer, served).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn http<IO>(&self, io: IO, cork: Cork, peer: SocketAddr, served: bool)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (io, preface) = Counted::new(io);
        let service = self.service.clone();
        let refused = (!served).then(Drain::new);
        let places = match &refused {
            None => Places::new(self.streams),
            Some(refused) => Places::none(self.limit, refused.clone()),
        };
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (mut service, places) = (service.clone(), places.clone());
            // Boxed, so that it is gone when the response begins: the stream keeps the place for whatever is not.
            Box::pin(async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(places);
                poll_fn(|cx| service.poll_ready(cx)).await?;
                service.call(request).await
            })
        });
        let (mut together, spawner) = Together::new();
        let connection = protocol(&self.options, spawner).serve_connection(TokioIo::new(io), service).into_owned();
        let mut connection = pin!(connection);
        let mut handshake = Some(Box::pin(sleep(self.handshake_limit)));
        let (mut told, mut refused) = (self.closing.ear(), refused.map(|refused| refused.ear()));
        let mut closing = false;
        poll_fn(|cx| {
            loop {
                let ended = together.poll(cx, |cx| connection.as_mut().poll(cx));
                cork.push();
                if let Poll::Ready(ended) = ended {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "connection failed");
                    }
                    return Poll::Ready(());
                }
                if served && handshake.is_some() && preface.complete() {
                    handshake = None;
                }
                let mut close = false;
                if let Some(handshake) = &mut handshake
                    && handshake.as_mut().poll(cx).is_ready()
                {
                    if !preface.complete() {
                        tracing::debug!(%peer, "the peer does not speak HTTP");
                        return Poll::Ready(());
                    }
                    if closing {
                        return Poll::Ready(());
                    }
                    handshake.as_mut().reset(Instant::now() + self.handshake_limit);
                    close = true;
                }
                close |= Pin::new(&mut told).poll(cx).is_ready();
                close |= refused.as_mut().is_some_and(|refused| Pin::new(refused).poll(cx).is_ready());
                if closing || !close {
                    return Poll::Pending;
                }
                if !preface.complete() {
                    return Poll::Ready(());
                }
                closing = true;
                connection.as_mut().graceful_shutdown();
                together.connection_is_due();
            }
        })
        .await;
    }
}
