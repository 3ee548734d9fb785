//! From a list of servers to one byte stream: name resolution, TCP or Unix-domain socket, the
//! [SSLRequest](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL) and the handshake.
//!
//! SQL and replication connections both begin here, so that they agree on every option and the second can be told to
//! go to the very address that the first one reached: two connections to "the primary" by name may be two servers.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    conninfo::{ConnectOptions, Host, HostSpec, SslMode, TcpOptions},
    error::{Error, Result, with_causes},
    tls,
};

/// The server that a connection reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As configured.
    pub spec: HostSpec,
    /// Where it was found.
    pub address: Address,
    /// Whether the connection was encrypted.
    pub encrypted: bool,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(address) if address.to_string() != self.spec.to_string() => {
                write!(f, "{} ({address})", self.spec)
            }
            _ => write!(f, "{}", self.spec),
        }
    }
}

/// Where a socket is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// Path of the socket.
    Unix(PathBuf),
}

/// Whether one attempt uses TLS. libpq's weak modes make two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encryption {
    /// None.
    Plain,
    /// TLS, or without if the server has none.
    Offered,
    /// TLS.
    Required,
}

/// The attempts that `sslmode` allows at one address, best first.
fn attempts(options: &ConnectOptions, address: &Address) -> &'static [Encryption] {
    match (address, options.tls.mode) {
        (Address::Unix(_), _) | (_, SslMode::Disable) => &[Encryption::Plain],
        (_, SslMode::Allow) => &[Encryption::Plain, Encryption::Required],
        (_, SslMode::Prefer) => &[Encryption::Offered, Encryption::Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Required],
    }
}

/// Opens a stream to one address and lets `start` begin the session on it, over each kind of encryption that
/// `sslmode` allows. `connect_timeout` bounds each attempt, authentication included.
///
/// The second kind is tried if the handshake fails, or if `pg_hba.conf` has no entry for the first (28000). A wrong
/// password does not count, although libpq goes on then: it would cross the network once more, in the clear.
pub(super) async fn at<T, F>(
    options: &ConnectOptions,
    spec: &HostSpec,
    address: &Address,
    start: impl Fn(Stream, Server) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut refused = None::<Error>;
    for encryption in attempts(options, address) {
        let mut server = Server { spec: spec.clone(), address: address.clone(), encrypted: false };
        let shown = server.to_string();
        let session = async {
            let stream = open(options, &server, *encryption).await?;
            server.encrypted = stream.encrypted();
            start(stream, server).await
        };
        let outcome = match options.connect_timeout {
            None => session.await,
            Some(limit) => tokio::time::timeout(limit, session).await.unwrap_or_else(|_| {
                Err(Error::Unreachable { server: shown, problem: format!("no answer within {} s", limit.as_secs()) })
            }),
        };
        match (outcome, refused.take()) {
            (Err(error), None) if matches!(error, Error::Tls { .. }) || error.is("28000") => refused = Some(error),
            // The error of the kind that got further says more.
            (Err(error @ (Error::Server { .. } | Error::Authentication { .. })), Some(first)) if first.is("28000") => {
                return Err(error);
            }
            // It went away between the two, or before.
            (Err(error), Some(Error::Tls { .. })) if error.retryable() => return Err(error),
            (Err(_), Some(first)) => return Err(first),
            (outcome, _) => return outcome,
        }
    }
    Err(refused.unwrap_or(Error::Closed))
}

/// The addresses of one configured server.
pub(super) async fn resolve(options: &ConnectOptions, spec: &HostSpec) -> Result<Vec<Address>> {
    let name = match (&spec.host, spec.socket_path(), spec.addr) {
        (_, Some(path), _) => return Ok(vec![Address::Unix(path)]),
        (_, _, Some(addr)) => return Ok(vec![Address::Tcp((addr, spec.port).into())]),
        (Host::Tcp(name), _, _) => name.as_str(),
        (Host::Unix(path), None, _) => return Ok(vec![Address::Unix(path.clone())]),
    };
    let unreachable = |problem: String| Error::Unreachable { server: spec.to_string(), problem };
    let found = tokio::net::lookup_host((name, spec.port));
    let found = tokio::time::timeout(options.connect_timeout.unwrap_or(Duration::MAX), found)
        .await
        .map_err(|_| unreachable("name resolution takes too long".into()))?
        .map_err(|error| unreachable(error.to_string()))?;
    let addresses: Vec<_> = found.map(Address::Tcp).collect();
    if addresses.is_empty() { Err(unreachable("the name has no address".into())) } else { Ok(addresses) }
}

async fn open(options: &ConnectOptions, server: &Server, encryption: Encryption) -> Result<Stream> {
    let unreachable = |error: io::Error| Error::Unreachable { server: server.to_string(), problem: error.to_string() };
    let mut tcp = match &server.address {
        Address::Unix(path) => return Ok(Stream::Unix(UnixStream::connect(path).await.map_err(unreachable)?)),
        Address::Tcp(address) => TcpStream::connect(address).await.map_err(unreachable)?,
    };
    configure(&tcp, &options.tcp).map_err(unreachable)?;
    if encryption == Encryption::Plain {
        return Ok(Stream::Tcp(tcp));
    }
    let failed = |problem: String| Error::Tls { server: server.to_string(), problem };
    let ended = |error: io::Error| if went_away(&error) { unreachable(error) } else { failed(with_causes(&error)) };
    if !options.tls.direct && !server_offers_tls(&mut tcp).await.map_err(ended)? {
        return match encryption {
            Encryption::Offered => Ok(Stream::Tcp(tcp)),
            _ => Err(failed("the server does not support it".into())),
        };
    }
    let name = match &server.spec.host {
        Host::Tcp(name) => ServerName::try_from(name.clone()).map_err(|error| failed(error.to_string()))?,
        Host::Unix(_) => return Err(failed("not over a Unix-domain socket".into())),
    };
    let connector = TlsConnector::from(Arc::new(tls::client_config(&options.tls)?));
    let stream = connector.connect(name, tcp).await;
    let stream = stream.map_err(|error| match encryption {
        // There is another way to try.
        Encryption::Offered => failed(with_causes(&error)),
        _ => ended(error),
    })?;
    Ok(Stream::Tls(Box::new(stream)))
}

/// A server that ends says nothing of TLS; one that has an objection does so in words.
fn went_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Sends SSLRequest. Exactly one byte is read: anything behind it would have been injected before the handshake
/// ([CVE-2021-23222](https://www.postgresql.org/support/security/CVE-2021-23222/)).
async fn server_offers_tls(tcp: &mut TcpStream) -> io::Result<bool> {
    tcp.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await?;
    let mut answer = [0];
    tcp.read_exact(&mut answer).await?;
    match answer[0] {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a PostgreSQL server")),
    }
}

fn configure(tcp: &TcpStream, options: &TcpOptions) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    if options.keepalives {
        let mut keepalive = TcpKeepalive::new();
        if !options.idle.is_zero() {
            keepalive = keepalive.with_time(options.idle);
        }
        if !options.interval.is_zero() {
            keepalive = keepalive.with_interval(options.interval);
        }
        if options.count > 0 {
            keepalive = keepalive.with_retries(options.count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if !options.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    }
    Ok(())
}

/// A connected byte stream. An enum and not a boxed trait object: the plain kinds are read once per wake-up of the
/// hot path, and TLS needs its session for channel binding, which a trait object would hide.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn encrypted(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// Data for SCRAM's channel binding, where there is any.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Stream::Tls(stream) => tls::end_point_hash(stream.get_ref().1.peer_certificates()?.first()?),
            Stream::Tcp(_) | Stream::Unix(_) => None,
        }
    }
}

macro_rules! forward {
    ($stream:expr, $method:ident, $($argument:expr),*) => {
        match $stream.get_mut() {
            Stream::Tcp(inner) => Pin::new(inner).$method($($argument),*),
            Stream::Unix(inner) => Pin::new(inner).$method($($argument),*),
            Stream::Tls(inner) => Pin::new(inner).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown, cx)
    }
}
