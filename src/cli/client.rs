//! The connection to a hub: TLS, token, and typed failures.

use std::{path::Path, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{args::HubArgs, error::Error};
use crate::wire::pb::{
    admin_service_client::AdminServiceClient, change_stream_service_client::ChangeStreamServiceClient,
};

/// Responses of a stream may be this large: the server batches up to what the request allows, 4 MiB by default.
pub const MAX_MESSAGE_BYTES: u32 = 16 << 20;

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
    channel: InterceptedService<Channel, Bearer>,
}

impl Hub {
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
        let channel = InterceptedService::new(endpoint.connect_lazy(), Bearer(token(args)?));
        Ok(Hub { url, channel })
    }

    /// Streams of changes.
    pub fn streams(&self) -> ChangeStreamServiceClient<InterceptedService<Channel, Bearer>> {
        ChangeStreamServiceClient::new(self.channel.clone()).max_decoding_message_size(2 * MAX_MESSAGE_BYTES as usize)
    }

    /// Status and subscribers.
    pub fn admin(&self) -> AdminServiceClient<InterceptedService<Channel, Bearer>> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// The error for a failed call: a hub that was not reached is told from a hub that refused.
    pub fn error(&self, status: Status) -> Error {
        match transport_failure(&status) {
            Some(detail) => Error::Unreachable { hub: self.url.clone(), detail },
            None => status.into(),
        }
    }
}

/// What the transport says, when no hub answered at all.
pub fn transport_failure(status: &Status) -> Option<String> {
    let source = std::error::Error::source(status)?;
    source.downcast_ref::<tonic::transport::Error>().map(|error| chain(error))
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
