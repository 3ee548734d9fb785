//! rustls set up for each [`sslmode`](https://www.postgresql.org/docs/current/libpq-ssl.html), and the certificate
//! hash that binds SCRAM to the session.
//!
//! libpq's rule that is easy to miss: a root certificate, once there, is used in every mode that does TLS, so `require`
//! with one is `verify-ca`. Signatures of the handshake are checked in every mode, even where the certificate is not:
//! without that, anybody could present the real server's certificate and channel binding would prove nothing.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::{
    conninfo::{Roots, SslMode, TlsOptions},
    error::{Error, Result},
};

/// The client side of TLS for these options. Reads the certificate files, so that each connection sees rotated ones.
pub fn client_config(options: &TlsOptions) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier {
        trusted: trusted(&options.roots)?,
        names: options.mode == SslMode::VerifyFull,
        provider: provider.clone(),
    };
    if verifier.trusted.is_none() && options.mode >= SslMode::VerifyCa {
        return Err(Error::TlsConfig("verify-ca and verify-full need a root certificate".into()));
    }
    let versions: &[_] = match options.tls13_only {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| Error::TlsConfig(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| Error::TlsConfig(format!("{} and {}: {error}", cert.display(), key.display())))?
        }
    };
    config.enable_sni = options.sni;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn unreadable(file: &Path, error: impl std::fmt::Display) -> Error {
    Error::TlsConfig(format!("{}: {error}", file.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(file, error))?;
    match found.is_empty() {
        true => Err(Error::TlsConfig(format!("{}: no certificate in it", file.display()))),
        false => Ok(found),
    }
}

/// What a server certificate is checked against.
#[derive(Debug)]
struct Trusted {
    store: RootCertStore,
    /// The same certificates as read: a server may present one of them itself.
    certificates: Vec<CertificateDer<'static>>,
}

fn trusted(roots: &Roots) -> Result<Option<Trusted>> {
    let mut store = RootCertStore::empty();
    let certificates = match roots {
        Roots::None => return Ok(None),
        Roots::System => rustls_native_certs::load_native_certs().certs,
        Roots::File(file) => certificates(file)?,
    };
    let (added, _) = store.add_parsable_certificates(certificates.iter().cloned());
    match added {
        0 => Err(Error::TlsConfig("no usable root certificate".into())),
        _ => Ok(Some(Trusted { store, certificates })),
    }
}

#[derive(Debug)]
struct Verifier {
    /// `None`: every certificate is accepted.
    trusted: Option<Trusted>,
    /// Whether the certificate must name the host.
    names: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.store, intermediates, now, algorithms) {
            Ok(()) => {}
            // The self-signed certificate of PostgreSQL's manual carries CA:TRUE, which webpki refuses for a server
            // (after it has checked the dates). As its own root it is exactly the certificate that is trusted.
            Err(TlsError::InvalidCertificate(CertificateError::Other(_)))
                if trusted.certificates.iter().any(|known| known == end_entity) => {}
            Err(error) => return Err(error),
        }
        if self.names {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The data of [`tls-server-end-point`](https://www.rfc-editor.org/rfc/rfc5929#section-4): the certificate's hash
/// with the algorithm of its signature, SHA-256 in place of MD5 and SHA-1. `None` where that algorithm names no hash
/// (Ed25519), and then there is no channel binding.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate_body, _) = der(certificate)?;
    let (_, _, after_tbs) = der(certificate_body)?;
    let (_, algorithm, _) = der(after_tbs)?;
    let (_, oid, _) = der(algorithm)?;
    const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let bits = match (oid.strip_prefix(PKCS1), oid.strip_prefix(ECDSA_SHA2)) {
        (Some([4 | 5 | 11]), _) | (_, Some([2])) => 256,
        (Some([12]), _) | (_, Some([3])) => 384,
        (Some([13]), _) | (_, Some([4])) => 512,
        _ if oid == ECDSA_SHA1 => 256,
        _ => return None,
    };
    Some(match bits {
        256 => Sha256::digest(certificate).to_vec(),
        384 => Sha384::digest(certificate).to_vec(),
        _ => Sha512::digest(certificate).to_vec(),
    })
}

/// Tag, content and what follows, of the DER element at the start.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let p256 = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(end_point_hash(&p256), Some(Sha256::digest(&p256).to_vec()));
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point_hash(&p384), Some(Sha384::digest(&p384).to_vec()));
        assert_eq!(end_point_hash(&certificate(&PKCS_ED25519)), None);
    }

    #[test]
    fn no_prefix_of_a_certificate_is_read_past_its_end() {
        let whole = certificate(&PKCS_ECDSA_P256_SHA256);
        assert!((0..whole.len()).all(|end| end_point_hash(&whole[..end]).is_none()));
    }
}
