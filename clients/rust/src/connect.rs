//! Addresses, credentials, channels, and a codec that leaves responses as bytes.

use std::{marker::PhantomData, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};

use crate::{Error, error::HubError};

pub(crate) const CLIENT: &str = concat!("walcast-rust/", env!("CARGO_PKG_VERSION"));
/// Of unary calls. Streams have none.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const CONSUME: &str = "/walcast.v1.ChangeStreamService/Consume";
pub(crate) const READ_RETRACTED: &str = "/walcast.v1.ChangeStreamService/ReadRetracted";

/// A bearer token that is asked for at each connection and call.
pub(crate) type Token = Arc<dyn Fn() -> String + Send + Sync>;

/// How to connect with TLS: PEM files, read anew for each connection.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Authorities to trust; the system's where not given.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, for mutual TLS.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The name that the hub's certificate must have, where it is not the host.
    pub server_name: Option<String>,
}

/// Where the hub is and how to get in.
#[derive(Clone)]
pub(crate) struct Target {
    uri: Uri,
    tls: Option<Tls>,
    token: Option<Token>,
    pub(crate) max_message_bytes: u32,
}

impl Target {
    /// `host:port`, `http://host:port` or `https://host:port`, which asks for TLS.
    pub(crate) fn parse(address: &str, tls: Option<Tls>, token: Option<Token>, max: u32) -> Result<Self, Error> {
        let wrong = |what: &str| Error::Argument(format!("{address}: {what}"));
        let (scheme, authority) = address.split_once("://").unwrap_or(("", address));
        if !["", "http", "https"].contains(&scheme) {
            return Err(wrong("the scheme is http or https"));
        }
        if scheme == "http" && tls.is_some() {
            return Err(wrong("TLS needs https://, or an address without a scheme"));
        }
        let tls = if scheme == "https" { Some(tls.unwrap_or_default()) } else { tls };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{authority}").parse().map_err(|_| wrong("not host:port"))?;
        let host = uri.host().ok_or_else(|| wrong("not host:port"))?.to_owned();
        let uri = match (uri.port_u16(), address.starts_with("https://")) {
            (Some(_), _) => uri,
            (None, https) => format!("{scheme}://{host}:{}", if https { 443 } else { 50051 })
                .parse()
                .map_err(|_| wrong("not host:port"))?,
        };
        if token.is_some() && tls.is_none() && !is_loopback(&host) {
            tracing::warn!(%host, "the token goes over the network in clear text: use TLS");
        }
        Ok(Target { uri, tls, token, max_message_bytes: max })
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        let argument = |error: tonic::transport::Error| Error::Argument(error.to_string());
        let mut endpoint = Endpoint::from(self.uri.clone())
            .user_agent(CLIENT)
            .map_err(argument)?
            .connect_timeout(DEADLINE)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(false);
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(settings(tls)?).map_err(argument)?;
        }
        endpoint.connect().await.map_err(|error| HubError::from(error).into())
    }

    /// Metadata of a call; the token is asked for each time.
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        self.metadata(request.metadata_mut())?;
        Ok(request)
    }

    fn metadata(&self, metadata: &mut MetadataMap) -> Result<(), Error> {
        metadata.insert("client-id", tonic::metadata::MetadataValue::from_static(CLIENT));
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token()).parse();
            let mut value: tonic::metadata::AsciiMetadataValue =
                value.map_err(|_| Error::Argument("the token is not printable ASCII".into()))?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        Ok(())
    }
}

fn settings(tls: &Tls) -> Result<ClientTlsConfig, Error> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|error| Error::Argument(format!("{}: {error}", path.display())));
    let mut config = match &tls.ca {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => config = config.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => {}
        _ => return Err(Error::Argument("a client certificate needs cert and key".into())),
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name.clone());
    }
    Ok(config)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Requests as messages, responses as bytes: credit is counted in bytes, and rows are read straight from them.
pub(crate) struct RawCodec<M>(PhantomData<fn(M)>);

impl<M> Default for RawCodec<M> {
    fn default() -> Self {
        RawCodec(PhantomData)
    }
}

impl<M: Message + 'static> Codec for RawCodec<M> {
    type Encode = M;
    type Decode = Bytes;
    type Encoder = RawCodec<M>;
    type Decoder = RawCodec<M>;

    fn encoder(&mut self) -> RawCodec<M> {
        RawCodec::default()
    }

    fn decoder(&mut self) -> RawCodec<M> {
        RawCodec::default()
    }
}

impl<M: Message> Encoder for RawCodec<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, request: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M> Decoder for RawCodec<M> {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
