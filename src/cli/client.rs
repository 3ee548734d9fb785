//! The connection to a hub: TLS, token, and typed failures.

use std::{
    ffi::OsString,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};
use tonic_types::StatusExt;

use super::{args::HubArgs, error::Error};
use crate::wire::pb::{
    admin_service_client::AdminServiceClient, change_stream_service_client::ChangeStreamServiceClient,
};

/// Responses of a stream may be this large: the server batches up to what the request allows, 4 MiB by default.
pub const MAX_MESSAGE_BYTES: u32 = 16 << 20;

/// How long a call may go unanswered before it is looked at whether anybody speaks there at all, and how long that may take.
const SILENCE: Duration = Duration::from_secs(5);

/// Adds the bearer token to every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A hub that can be called. Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct Hub {
    url: String,
    uri: Uri,
    channel: InterceptedService<Channel, Bearer>,
}

impl Hub {
    /// The hub that a person names: with the environment's token where no flag gives one.
    pub fn named(args: &HubArgs) -> Result<Hub, Error> {
        Hub::new(&with_token_of(args, |name| std::env::var_os(name))?)
    }

    /// Reads token and certificates; connects on the first call, and again whenever the connection was lost.
    pub fn new(args: &HubArgs) -> Result<Hub, Error> {
        let url = if args.hub.contains("://") { args.hub.clone() } else { format!("http://{}", args.hub) };
        let usage = |error: tonic::transport::Error| Error::Usage(format!("--hub {url}: {}", chain(&error)));
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(usage)?
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .user_agent(concat!("walcast-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(usage)?;
        if url.starts_with("https://") {
            endpoint = endpoint.tls_config(tls(args)?).map_err(usage)?;
        }
        let uri = endpoint.uri().clone();
        let channel = InterceptedService::new(endpoint.connect_lazy(), Bearer(token(args)?));
        Ok(Hub { url, uri, channel })
    }

    /// Streams of changes.
    pub fn streams(&self) -> ChangeStreamServiceClient<InterceptedService<Channel, Bearer>> {
        ChangeStreamServiceClient::new(self.channel.clone()).max_decoding_message_size(2 * MAX_MESSAGE_BYTES as usize)
    }

    /// Status and subscribers.
    pub fn admin(&self) -> AdminServiceClient<InterceptedService<Channel, Bearer>> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// Waits for the answer to a call. An answer may take as long as it takes, but somebody has to be there: a listener that
    /// never says anything is given up.
    pub async fn answered<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let mut call = pin!(call);
        if let Ok(answer) = timeout(SILENCE, &mut call).await {
            return answer;
        }
        let silent = async {
            match self.listener().await {
                Listener::Silent => Status::from_error(Box::new(Silent)),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = &mut call => answer,
            status = silent => Err(status),
        }
    }

    /// The answer to a call with one answer, or the error to print.
    pub async fn ask<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
        match self.answered(call).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.explain(status).await),
        }
    }

    /// The error for a failed call: a hub that was not reached is told from a hub that refused, with what to do about it.
    pub async fn explain(&self, status: Status) -> Error {
        let foreign =
            status.get_error_details().error_info().is_none() && status.message().contains("HTTP status code");
        let detail = match transport_failure(&status) {
            Some(detail) => detail,
            None if foreign => status.message().to_owned(),
            None => return status.into(),
        };
        let is_silent = std::error::Error::source(&status).is_some_and(|source| source.is::<Silent>());
        let advice = match certificate_advice(&detail) {
            Some(advice) => advice.to_owned(),
            None if is_silent => Listener::Silent.advice(&self.uri, foreign),
            None => self.listener().await.advice(&self.uri, foreign),
        };
        Error::Unreachable { hub: self.url.clone(), detail, advice }
    }

    /// What is at the hub's address, by its answers to a request of HTTP/1.1, which servers of neither HTTP/2 nor TLS take for
    /// their own, and to a ClientHello, since not every TLS server answers to the first.
    async fn listener(&self) -> Listener {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.uri.port_u16().unwrap_or(if is_https(&self.uri) { 443 } else { 80 });
        let request = format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        let looked = async {
            match answer((host, port), request.as_bytes()).await {
                Listener::Other => answer((host, port), &client_hello()).await,
                listener => listener,
            }
        };
        timeout(SILENCE, looked).await.unwrap_or(Listener::Silent)
    }
}

async fn answer(address: (&str, u16), question: &[u8]) -> Listener {
    let Ok(mut stream) = TcpStream::connect(address).await else { return Listener::Absent };
    let mut answer = Vec::new();
    if stream.write_all(question).await.is_ok() {
        // What came before a reset counts too.
        let _ = stream.take(5).read_to_end(&mut answer).await;
    }
    match &answer[..] {
        // A record of TLS: an alert, or a handshake.
        [0x15 | 0x16, 0x03, ..] => Listener::Tls,
        b"HTTP/" => Listener::Http1,
        _ => Listener::Other,
    }
}

/// A ClientHello without extensions ([RFC 5246, 7.4.1.2](https://www.rfc-editor.org/rfc/rfc5246#section-7.4.1.2)), which every
/// TLS server answers, if only with an alert.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![0x16, 0x03, 0x01, 0, 45, 0x01, 0, 0, 41, 0x03, 0x03];
    hello.extend([0; 32]);
    // No session, one cipher suite, no compression.
    hello.extend([0, 0, 2, 0xC0, 0x2F, 1, 0]);
    hello
}

/// Who is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    /// Nobody.
    Absent,
    /// Somebody who says nothing.
    Silent,
    /// TLS.
    Tls,
    /// HTTP/1.1 without TLS.
    Http1,
    /// Anything else, such as HTTP/2 without TLS.
    Other,
}

impl Listener {
    /// What to do when a call to this URL failed there. `foreign`: an HTTP server answered that is no hub's.
    fn advice(self, uri: &Uri, foreign: bool) -> String {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        match self {
            Listener::Http1 if !is_https(uri) || !foreign => {
                "that is an HTTP port, as of the hub's metrics and dashboard; gRPC has another, 50051 by default"
                    .to_owned()
            }
            Listener::Tls if !is_https(uri) => format!("TLS is spoken there: --hub https://{authority}"),
            Listener::Other if is_https(uri) => format!("no TLS is spoken there: --hub http://{authority}"),
            Listener::Silent => "something listens there and says nothing: --hub (WALCAST_HUB) names a hub".to_owned(),
            _ => "is `walcast serve` running? --hub (WALCAST_HUB) names another address".to_owned(),
        }
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// What to do about a certificate that rustls refused, by the name of its error.
fn certificate_advice(detail: &str) -> Option<&'static str> {
    let advice = [
        ("not valid for name", "--tls-name (WALCAST_TLS_NAME) says which name the hub's certificate has"),
        (
            "invalid peer certificate",
            "--ca (WALCAST_CA) names a file with the authority that signed the hub's certificate, PEM",
        ),
        (
            "CertificateRequired",
            "--cert and --key (WALCAST_CERT, WALCAST_KEY) name the client's certificate and key, PEM",
        ),
    ];
    advice.iter().find(|(error, _)| detail.contains(error)).map(|(_, advice)| *advice)
}

/// Somebody listens and never says anything.
#[derive(Debug)]
struct Silent;

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {} s", 2 * SILENCE.as_secs())
    }
}

impl std::error::Error for Silent {}

/// What the transport says, when no hub answered at all.
pub fn transport_failure(status: &Status) -> Option<String> {
    let source = std::error::Error::source(status)?;
    let is_transport = source.is::<tonic::transport::Error>() || source.is::<Silent>();
    is_transport.then(|| chain(source))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

fn tls(args: &HubArgs) -> Result<ClientTlsConfig, Error> {
    let mut tls = match &args.ca {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&args.cert, &args.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &args.tls_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

/// A flag of the two replaces what either variable says.
fn with_token_of(args: &HubArgs, env: impl Fn(&str) -> Option<OsString>) -> Result<HubArgs, Error> {
    let mut args = args.clone();
    if args.token.is_none() && args.token_file.is_none() {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        args.token = env("WALCAST_TOKEN").map(|token| token.to_string_lossy().into_owned());
        args.token_file = env("WALCAST_TOKEN_FILE").map(PathBuf::from);
        if args.token.is_some() && args.token_file.is_some() {
            return Err(Error::Usage("WALCAST_TOKEN and WALCAST_TOKEN_FILE are both set: set one".to_owned()));
        }
    }
    Ok(args)
}

fn token(args: &HubArgs) -> Result<Option<MetadataValue<Ascii>>, Error> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.trim().to_owned(),
        (None, Some(path)) => read(path)?.trim().to_owned(),
        (None, None) => return Ok(None),
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Error::Usage("the token holds bytes that a header cannot".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(Error::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_replaces_what_the_environment_says() {
        let args = |token: Option<&str>, file: Option<&str>| HubArgs {
            hub: "http://127.0.0.1:50051".into(),
            token: token.map(Into::into),
            token_file: file.map(Into::into),
            ca: None,
            cert: None,
            key: None,
            tls_name: None,
        };
        let both = |args: HubArgs| (args.token, args.token_file);
        let of = |given: &HubArgs, set: &[(&str, &str)]| {
            let env = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            with_token_of(given, env).map(both)
        };
        let (token, file) = (("WALCAST_TOKEN", "theirs"), ("WALCAST_TOKEN_FILE", "/theirs"));
        let none = args(None, None);
        assert_eq!(of(&none, &[("WALCAST_TOKEN", "")]).unwrap(), (None, None));
        assert_eq!(of(&none, &[token, ("WALCAST_TOKEN_FILE", "")]).unwrap(), (Some("theirs".into()), None));
        assert_eq!(of(&none, &[file]).unwrap(), (None, Some("/theirs".into())));
        assert!(matches!(of(&none, &[token, file]), Err(Error::Usage(_))));
        for given in [args(Some("own"), None), args(None, Some("/own"))] {
            assert_eq!(of(&given, &[token, file]).unwrap(), both(given));
        }
    }
}
