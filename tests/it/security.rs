//! Who may do what, over which transport.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use walcast::wire::pb;

use crate::harness::{
    Stage,
    client::{Client, Request, refused},
    history::End,
    process, stage,
    stage::Setup,
};

/// A certificate authority, a server certificate for localhost and a client certificate, as PEM files.
struct Pki {
    dir: PathBuf,
    authority: String,
    client: (String, String),
}

fn pki() -> Pki {
    let authority_key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("authority").pem();
    let issuer = Issuer::new(params, authority_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        (params.signed_by(&key, &issuer).expect("certificate").pem(), key.serialize_pem())
    };
    let (server, client) = (issue("localhost"), issue("client"));
    let dir = process::fresh_dir("pki");
    fs::write(dir.join("ca.pem"), &authority).expect("ca.pem");
    fs::write(dir.join("server.pem"), server.0).expect("server.pem");
    fs::write(dir.join("server.key"), server.1).expect("server.key");
    Pki { dir, authority, client }
}

impl Pki {
    fn setup(&self) -> Setup {
        let file = |name: &str| self.dir.join(name).display().to_string();
        stage()
            .sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE secret (id int PRIMARY KEY)")
            .env("WALCAST_TLS_CERT", &file("server.pem"))
            .env("WALCAST_TLS_KEY", &file("server.key"))
    }

    fn trust(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority)).domain_name("localhost")
    }
}

async fn opens(client: Client) -> bool {
    let mut stream = client.subscribe(&Request::new().earliest()).await;
    stream.pull().await && stream.log.opened().is_some()
}

fn client(stage: &Stage, tls: ClientTlsConfig) -> Client {
    Client::with_tls(stage.hub.grpc_port(), tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_served_and_plaintext_is_not() {
    let pki = pki();
    let stage = pki.setup().start().await;
    assert!(opens(client(&stage, pki.trust())).await);
    assert!(!opens(stage.client()).await, "plaintext on a TLS port");
    assert!(!opens(client(&stage, ClientTlsConfig::new())).await, "an authority that the client does not trust");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_asks_for_a_certificate() {
    let pki = pki();
    let ca = pki.dir.join("ca.pem").display().to_string();
    let stage = pki.setup().env("WALCAST_TLS_CLIENT_CA", &ca).start().await;
    let with = |(certificate, key): &(String, String)| pki.trust().identity(Identity::from_pem(certificate, key));
    assert!(opens(client(&stage, with(&pki.client))).await);
    assert!(!opens(client(&stage, pki.trust())).await, "no certificate");
    let stranger = self::pki();
    assert!(!opens(client(&stage, with(&stranger.client))).await, "another authority's certificate");
}

const TOKENS: &str = "# token principal tables rights\n\
    reader-token-0123456789 reader public.t\n\
    other-token-0123456789 other *\n\
    admin-token-0123456789 operator * admin\n";

async fn with_tokens() -> Stage {
    let file = process::fresh_dir("tokens").join("tokens");
    fs::write(&file, TOKENS).expect("tokens");
    let stage = stage()
        .sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE secret (id int PRIMARY KEY)")
        .env("WALCAST_TOKENS_FILE", &file.display().to_string())
        .start()
        .await;
    stage.db.run("INSERT INTO t VALUES (1); INSERT INTO secret VALUES (1)").await;
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_valid_token_nothing_is_served() {
    let stage = with_tokens().await;
    for client in [stage.client(), stage.client().token("reader-token-012345678"), stage.client().token("x")] {
        client.subscribe(&Request::new().earliest()).await.fails_with("UNAUTHENTICATED").await;
        refused(client.status().await, "UNAUTHENTICATED");
    }
    let log = stage.hub.log();
    assert!(!log.contains("reader-token-012345678"), "the log holds no tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_reads_its_tables_only() {
    let stage = with_tokens().await;
    let reader = stage.client().token("reader-token-0123456789");
    let request = Request::new().earliest().tables(&["public.secret"]);
    let failure = reader.subscribe(&request).await.fails_with("PERMISSION_DENIED").await;
    assert_eq!(failure.metadata.get("table").map(String::as_str), Some("public.secret"));
    let mut stream = reader.subscribe(&Request::new().earliest().stop_at_tail()).await;
    stream.ended().await;
    if let End::Completed = stream.log.end {
        let tables = stream.log.kinds().filter_map(|kind| match kind {
            pb::event::Kind::Relation(relation) => Some(relation.table.clone()),
            _ => None,
        });
        assert!(tables.into_iter().all(|table| table == "t"), "everything means everything it may read");
    } else {
        assert_eq!(stream.log.end.reason(), Some("PERMISSION_DENIED"));
    }
    refused(reader.status().await, "PERMISSION_DENIED");
    stage.client().token("admin-token-0123456789").status().await.expect("the operator may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriber_names_are_private_to_their_principal() {
    let stage = with_tokens().await;
    let (reader, other) =
        (stage.client().token("reader-token-0123456789"), stage.client().token("other-token-0123456789"));
    let request = Request::named("worker").earliest().tables(&["public.t"]);
    let mut mine = reader.subscribe(&request).await;
    mine.until("the row", |log| log.commits() == 1).await;
    let mut theirs = other.subscribe(&request).await;
    theirs.until("the row", |log| log.commits() == 1).await;
    let position = mine.log.position().expect("a position");
    reader.acknowledge("worker", &position, mine.opened().session).await.expect("not fenced by a namesake");
    drop(theirs);
    other.subscribe(&Request::named("worker").tables(&["public.t"])).await.fails_with("CHECKPOINT_MISSING").await;
}
