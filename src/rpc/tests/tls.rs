use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use super::{
    super::{
        Options,
        tls::{Error, Offer, Tls, TlsFiles},
    },
    fake::{Running, start},
    within,
};
use crate::wire::pb::{ListRelationsRequest, change_stream_service_client::ChangeStreamServiceClient};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, both PEM.
fn issue(authority: &Authority, expires: SystemTime) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = expires.into();
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn in_days(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * 86_400)
}

fn files(directory: &Path, client_ca: bool) -> TlsFiles {
    TlsFiles {
        certificate: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        client_ca: client_ca.then(|| directory.join("ca.crt")),
    }
}

fn install(directory: &Path, (certificate, key): &(String, String)) {
    fs::write(directory.join("tls.crt"), certificate).unwrap();
    fs::write(directory.join("tls.key"), key).unwrap();
}

async fn serve(directory: &Path, client_ca: bool) -> (Arc<Tls>, Running) {
    let tls = Arc::new(Tls::load(files(directory, client_ca), Offer::Http2).unwrap());
    let server = start(Options { tls: Some(Arc::clone(&tls)), ..Options::default() }).await;
    (tls, server)
}

/// A call over a new connection that trusts this authority.
async fn call(server: &Running, authority: &Authority, identity: Option<(String, String)>) -> Result<(), String> {
    let mut tls =
        ClientTlsConfig::new().domain_name("localhost").ca_certificate(Certificate::from_pem(authority.pem()));
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Channel::from_shared(format!("https://{}", server.address)).unwrap().tls_config(tls).unwrap();
    let channel = within(endpoint.connect()).await.map_err(|error| format!("{error:?}"))?;
    let call = ChangeStreamServiceClient::new(channel).list_relations(ListRelationsRequest::default()).await;
    call.map(drop).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_connects_and_no_other() {
    let (directory, ours, theirs) = (tempfile::tempdir().unwrap(), authority("ours"), authority("theirs"));
    install(directory.path(), &issue(&ours, in_days(30)));
    let (tls, server) = serve(directory.path(), false).await;
    call(&server, &ours, None).await.unwrap();
    call(&server, &theirs, None).await.unwrap_err();
    let plaintext = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await;
    if let Ok(channel) = plaintext {
        within(ChangeStreamServiceClient::new(channel).list_relations(ListRelationsRequest::default()))
            .await
            .unwrap_err();
    }
    let remaining = tls.expires().duration_since(SystemTime::now()).unwrap().as_secs_f64() / 86_400.0;
    assert!((29.9..30.1).contains(&remaining), "{remaining} days");
}

#[tokio::test]
async fn with_a_client_authority_a_client_needs_a_certificate_of_it() {
    let (directory, ours, theirs) = (tempfile::tempdir().unwrap(), authority("ours"), authority("theirs"));
    install(directory.path(), &issue(&ours, in_days(30)));
    fs::write(directory.path().join("ca.crt"), ours.pem()).unwrap();
    let (_tls, server) = serve(directory.path(), true).await;
    call(&server, &ours, Some(issue(&ours, in_days(1)))).await.unwrap();
    call(&server, &ours, None).await.unwrap_err();
    call(&server, &ours, Some(issue(&theirs, in_days(1)))).await.unwrap_err();
}

#[tokio::test]
async fn a_new_certificate_holds_without_a_restart_and_a_bad_one_never() {
    let (directory, old, new) = (tempfile::tempdir().unwrap(), authority("old"), authority("new"));
    install(directory.path(), &issue(&old, in_days(30)));
    let (tls, server) = serve(directory.path(), false).await;
    call(&server, &old, None).await.unwrap();

    let (certificate, key) = issue(&new, in_days(60));
    let expired = issue(&new, SystemTime::now() - Duration::from_secs(60));
    let other_key = (certificate.clone(), KeyPair::generate().unwrap().serialize_pem());
    let garbage = ("not a certificate".to_owned(), key.clone());
    for bad in [&expired, &other_key, &garbage] {
        install(directory.path(), bad);
        assert!(tls.reload().is_err());
        call(&server, &old, None).await.unwrap();
    }
    fs::remove_file(directory.path().join("tls.crt")).unwrap();
    assert!(matches!(tls.reload(), Err(Error::Read { .. })));
    call(&server, &old, None).await.unwrap();

    // The server's own watch finds it.
    install(directory.path(), &(certificate, key));
    within(async {
        while call(&server, &new, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    call(&server, &old, None).await.unwrap_err();
}

#[test]
fn a_server_does_not_start_with_files_that_cannot_work() {
    let (directory, ours) = (tempfile::tempdir().unwrap(), authority("ours"));
    let load = || {
        Tls::load(files(directory.path(), false), Offer::Http2).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(load().contains("tls.crt cannot be read"), "{}", load());
    install(directory.path(), &issue(&ours, SystemTime::now() - Duration::from_secs(60)));
    assert!(load().contains("expired"), "{}", load());
    install(directory.path(), &(String::new(), String::new()));
    assert!(load().contains("no certificate"), "{}", load());
    let (certificate, _) = issue(&ours, in_days(1));
    install(directory.path(), &(certificate, KeyPair::generate().unwrap().serialize_pem()));
    assert!(load().contains("cannot be used"), "{}", load());
}

/// What the server settles on where the client would like these.
async fn settled(directory: &Path, offer: Offer, ours: &Authority, wanted: &[&str]) -> Result<Option<Vec<u8>>, String> {
    let tls = Arc::new(Tls::load(files(directory, false), offer).unwrap());
    let server = start(Options { tls: Some(tls), ..Options::default() }).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ours.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = wanted.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = within(connector.connect("localhost".try_into().unwrap(), stream)).await;
    stream.map(|stream| stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)).map_err(|error| error.to_string())
}

#[tokio::test]
async fn http1_is_offered_to_browsers_only() {
    let (directory, ours) = (tempfile::tempdir().unwrap(), authority("ours"));
    install(directory.path(), &issue(&ours, in_days(30)));
    for (offer, wanted, got) in [
        (Offer::Http2, &["h2", "http/1.1"][..], Some("h2")),
        (Offer::Http2, &["http/1.1"], None),
        (Offer::Http2AndHttp1, &["http/1.1", "h2"], Some("h2")),
        (Offer::Http2AndHttp1, &["http/1.1"], Some("http/1.1")),
    ] {
        let settled = settled(directory.path(), offer, &ours, wanted).await;
        match got {
            Some(protocol) => assert_eq!(settled, Ok(Some(protocol.as_bytes().to_vec())), "{offer:?} {wanted:?}"),
            None => assert!(settled.is_err(), "{offer:?} {wanted:?}: {settled:?}"),
        }
    }
}
