//! Who may do what, over which transport.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use walcast::wire::pb;

use crate::harness::{
    Stage,
    client::{Client, Request, refused},
    eventually,
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

/// A certificate that is replaced while the hub runs, by one of another authority, holds for new connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_holds_without_a_restart() {
    let pki = pki();
    let stage = pki.setup().start().await;
    let mut open = client(&stage, pki.trust()).subscribe(&Request::new().earliest()).await;
    open.until("opened", |log| log.opened().is_some()).await;
    let next = self::pki();
    assert!(!opens(client(&stage, next.trust())).await, "not yet");
    for name in ["server.pem", "server.key"] {
        fs::copy(next.dir.join(name), pki.dir.join(name)).expect("copy");
    }
    eventually(Duration::from_secs(30), || async {
        if opens(client(&stage, next.trust())).await { Ok(()) } else { Err("the old certificate") }
    })
    .await;
    assert!(!opens(client(&stage, pki.trust())).await, "the old certificate is gone");
    stage.db.run("INSERT INTO t VALUES (1)").await;
    open.until("the open stream goes on", |log| log.changes() == 1).await;
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
    with_tokens_in(&process::fresh_dir("tokens").join("tokens")).await
}

async fn with_tokens_in(file: &Path) -> Stage {
    fs::write(file, TOKENS).expect("tokens");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_removed_ends_its_streams_and_no_other() {
    let file = process::fresh_dir("tokens").join("tokens");
    let stage = with_tokens_in(&file).await;
    let open = async |token: &str, request: Request| {
        let mut stream = stage.client().token(token).subscribe(&request.earliest().tables(&["public.t"])).await;
        stream.until("the row", |log| log.commits() == 1).await;
        stream
    };
    let mut reader = open("reader-token-0123456789", Request::new()).await;
    let mut named = open("reader-token-0123456789", Request::named("worker")).await;
    let mut other = open("other-token-0123456789", Request::new()).await;
    fs::write(&file, TOKENS.replace("reader-token-0123456789", "reader-token-next-12345")).expect("tokens");
    reader.fails_with("UNAUTHENTICATED").await;
    named.fails_with("UNAUTHENTICATED").await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    other.until("the next row", |log| log.commits() == 2).await;
    assert_eq!(reader.log.commits(), 1);
    let mut next = open("reader-token-next-12345", Request::new()).await;

    fs::write(&file, "other-token-0123456789 other public.secret\nreader-token-next-12345 reader *\n").expect("tokens");
    other.fails_with("PERMISSION_DENIED").await;
    stage.db.run("INSERT INTO t VALUES (3)").await;
    next.until("more rights end nothing", |log| log.commits() == 3).await;
    let log = stage.hub.log();
    assert!(!log.contains("-token-"), "the log holds no tokens");
}
