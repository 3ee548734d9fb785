//! TLS with files that are read again when they change, since certificates live shorter than hubs do. A bad new
//! certificate leaves the old one in place; connections that are open keep what they began with. There is no way
//! from TLS back to plaintext.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode;

use crate::metrics::{self, TLS_EXPIRES_SECONDS};

/// Names of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, intermediates after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that clients' certificates must come from; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be offered with these files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Its name.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Its name.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Certificate and key do not work together.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The authorities for clients do not work.
    #[error("client CA cannot be used: {0}")]
    ClientCa(#[from] VerifierBuilderError),
}

/// Which HTTP is offered in the handshake (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2.
    Http2,
    /// HTTP/2, and HTTP/1.1 for browsers behind proxies and for scripts that know no better.
    Http2AndHttp1,
}

/// The server's side of TLS.
pub struct Tls {
    files: TlsFiles,
    offer: Offer,
    current: ArcSwap<Loaded>,
    read: Mutex<Contents>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    expires: SystemTime,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the files. An expired certificate is an error.
    pub fn load(files: TlsFiles, offer: Offer) -> Result<Self, Error> {
        let contents = Contents::read(&files)?;
        let loaded = contents.load(&files, offer)?;
        let tls = Tls { offer, current: ArcSwap::from_pointee(loaded), read: Mutex::new(contents), files };
        tls.report();
        Ok(tls)
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().config))
    }

    /// When the certificate in use expires.
    pub fn expires(&self) -> SystemTime {
        self.current.load().expires
    }

    /// Reads the files again; whether they were others. On an error everything stays as it was.
    pub fn reload(&self) -> Result<bool, Error> {
        let contents = Contents::read(&self.files)?;
        if *self.read.lock() == contents {
            return Ok(false);
        }
        let loaded = contents.load(&self.files, self.offer);
        *self.read.lock() = contents;
        self.current.store(Arc::new(loaded?));
        Ok(true)
    }

    /// Reads the files again whenever they change, for ever. Looks every `interval`.
    pub async fn watch(&self, interval: Duration) {
        let mut failed = false;
        loop {
            tokio::time::sleep(interval).await;
            match self.reload() {
                Ok(true) => {
                    failed = false;
                    let days = self.remaining().as_secs() / 86_400;
                    tracing::info!(certificate = %self.files.certificate.display(), days, "TLS certificate read again");
                }
                Ok(false) => failed = false,
                Err(Error::Read { .. }) if failed => {}
                Err(error) => {
                    failed = true;
                    tracing::error!(%error, "the TLS certificate stays as it was");
                }
            }
            self.report();
        }
    }

    fn remaining(&self) -> Duration {
        self.expires().duration_since(SystemTime::now()).unwrap_or_default()
    }

    fn report(&self) {
        metrics::set(TLS_EXPIRES_SECONDS, self.remaining().as_secs_f64());
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, Error> {
        Ok(Contents {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn load(&self, files: &TlsFiles, offer: Offer) -> Result<Loaded, Error> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| content(&files.key, error))?;
        let expires = not_after(&files.certificate, &chain)?;
        if expires <= SystemTime::now() {
            return Err(content(&files.certificate, "the certificate has expired"));
        }
        let provider = Arc::new(ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let config = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, pem)? {
                    roots.add(authority).map_err(|error| content(path, error))?;
                }
                let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                config.with_client_cert_verifier(clients)
            }
            _ => config.with_no_client_auth(),
        };
        let mut config = config.with_single_cert(chain, key)?;
        config.alpn_protocols = match offer {
            Offer::Http2 => vec![b"h2".to_vec()],
            Offer::Http2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(Loaded { config: Arc::new(config), expires })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn content(path: &Path, problem: impl ToString) -> Error {
    Error::Content { path: path.to_owned(), problem: problem.to_string() }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(content(path, "holds no certificate in PEM form")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(content(path, error)),
    }
}

fn not_after(path: &Path, chain: &[CertificateDer<'_>]) -> Result<SystemTime, Error> {
    let leaf = chain.first().ok_or_else(|| content(path, "holds no certificate in PEM form"))?;
    let leaf = x509_cert::Certificate::from_der(leaf).map_err(|error| content(path, error))?;
    Ok(leaf.tbs_certificate.validity.not_after.to_system_time())
}
