use std::{
    fs, io,
    sync::{Arc, atomic::Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Request, metadata::MetadataValue};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    super::{Options, Tokens, refuse_plaintext, server},
    fake::{Running, Script, frame, lsn_of, start, start_with},
    typed, within,
};
use crate::{
    model::{Relation, RelationId, ReplicaIdentity},
    wire::pb,
};

const BILLING: &str = "6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55";
const OPERATOR: &str = "c2a7e4d90f1b4c7e8a6d5b3f2e1c0d9a";
/// Type of the frame.
const GOAWAY: u8 = 7;

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn relation(id: u32, table: &str) -> Arc<Relation> {
    Arc::new(Relation {
        id: RelationId(id),
        oid: id,
        schema: "public".to_owned(),
        table: table.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: Vec::new(),
    })
}

async fn guarded(options: Options) -> (tempfile::TempDir, Running) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, format!("{BILLING} billing public.invoices\n{OPERATOR} operator * admin\n")).unwrap();
    let tokens = Some(Arc::new(Tokens::load(path).unwrap()));
    let relations = vec![relation(1, "invoices"), relation(2, "salaries")];
    (directory, start_with(Options { tokens, ..options }, relations).await)
}

#[tokio::test]
async fn a_call_without_a_known_token_reaches_nothing() {
    let (_directory, server) = guarded(Options::default()).await;
    let mut changes = server.changes().await;
    let refused = (Code::Unauthenticated, "UNAUTHENTICATED".to_owned());
    let request = pb::SubscribeRequest::default;
    assert_eq!(typed(&within(changes.subscribe(request())).await.unwrap_err()), refused);
    assert_eq!(typed(&within(changes.subscribe(with_token(request(), "wrong"))).await.unwrap_err()), refused);
    assert_eq!(typed(&within(changes.list_relations(pb::ListRelationsRequest::default())).await.unwrap_err()), refused);
    let mut admin = server.admin().await;
    assert_eq!(typed(&within(admin.get_status(pb::GetStatusRequest {})).await.unwrap_err()), refused);
    assert!(server.hub.subscriptions.lock().is_empty());
}

#[tokio::test]
async fn a_token_makes_its_principal_and_its_rights() {
    let (_directory, server) = guarded(Options::default()).await;
    drop(server.script());
    within(server.changes().await.subscribe(with_token(pb::SubscribeRequest::default(), BILLING))).await.unwrap();
    {
        let subscriptions = server.hub.subscriptions.lock();
        assert_eq!(subscriptions[0].0.name, "billing");
        assert_eq!(**subscriptions[0].0.tables.as_ref().unwrap(), ["public.invoices"]);
    }
    for (token, expected) in [(BILLING, vec!["invoices"]), (OPERATOR, vec!["invoices", "salaries"])] {
        let request = with_token(pb::ListRelationsRequest::default(), token);
        let relations = within(server.changes().await.list_relations(request)).await.unwrap().into_inner().relations;
        assert_eq!(relations.iter().map(|relation| relation.table.as_str()).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn only_an_administrator_administrates() {
    let (_directory, server) = guarded(Options::default()).await;
    let mut admin = server.admin().await;
    let list = pb::ListSubscribersRequest {};
    let status = within(admin.list_subscribers(with_token(list, BILLING))).await.unwrap_err();
    assert_eq!(typed(&status), (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()));
    let list = within(admin.list_subscribers(with_token(list, OPERATOR))).await.unwrap().into_inner();
    let names: Vec<_> = list.subscribers.iter().map(|subscriber| subscriber.name.as_str()).collect();
    assert_eq!(names, ["/mirror", "billing/mirror"]);
}

#[tokio::test]
async fn probes_need_no_token_unless_told_so() {
    let check = async |server: &Running| {
        within(HealthClient::new(server.channel().await).check(HealthCheckRequest::default())).await
    };
    let (_directory, open) = guarded(Options::default()).await;
    check(&open).await.unwrap();
    let (_directory, shut) = guarded(Options { open_paths: false, ..Options::default() }).await;
    assert_eq!(typed(&check(&shut).await.unwrap_err()).0, Code::Unauthenticated);
}

#[tokio::test]
async fn a_replaced_token_holds_without_a_restart() {
    let (directory, server) = guarded(Options::default()).await;
    let next = "nextnextnextnextnextnext";
    fs::write(directory.path().join("tokens"), format!("{next} billing *")).unwrap();
    let mut changes = server.changes().await;
    within(async {
        while changes.list_relations(with_token(pb::ListRelationsRequest::default(), next)).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let status = within(changes.list_relations(with_token(pb::ListRelationsRequest::default(), BILLING))).await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn who_comes_over_a_connection_beyond_the_limit_is_told_so_and_room_is_used_again() {
    use tonic_types::StatusExt as _;
    let handshake_limit = std::time::Duration::from_secs(3600);
    let server = start(Options { connections: 1, handshake_limit, ..Options::default() }).await;
    let steps = server.script();
    let mut stream = within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    let open = server.hub.open.load(Ordering::SeqCst);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut second = server.changes().await;
        let refused = within(second.subscribe(pb::SubscribeRequest::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let details = refused.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "TOO_MANY_STREAMS");
        assert!(details.retry_info().unwrap().retry_delay.is_some());
        assert!(refused.message().contains("1 connections are open"), "{refused:?}");
        clients.push(second);
    }
    assert_eq!(server.hub.open.load(Ordering::SeqCst), open, "nobody asked the hub");
    // Who has been told has no connection any more, so that many more can be told.
    let mut raw = TcpStream::connect(server.address).await.unwrap();
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(within(raw.read(&mut [0; 64])).await.unwrap() > 0, "it is spoken with");

    steps.send(Ok(frame(1, 10))).await.unwrap();
    assert_eq!(lsn_of(&within(stream.get_mut().message()).await.unwrap().unwrap().events), "0/1");
    drop(stream);
    server.hub.scripts.lock().extend((0..1000).map(|_| Script::Stuck));
    // The same channel finds room as soon as there is some: it does not keep what refused it.
    within(async {
        while let Err(refused) = clients[0].subscribe(pb::SubscribeRequest::default()).await {
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_nothing_beyond_the_limit_are_bounded_and_end() {
    let limit = std::time::Duration::from_millis(300);
    let server = start(Options { connections: 0, handshake_limit: limit, ..Options::default() }).await;
    let mut sockets = Vec::new();
    for _ in 0..200 {
        sockets.push(TcpStream::connect(server.address).await.unwrap());
    }
    for mut socket in sockets {
        let end = within(socket.read_to_end(&mut Vec::new())).await;
        assert!(
            end.as_ref().is_ok_and(|said| *said < 100)
                || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
        );
    }
    let answer = within(server.changes().await.list_relations(pb::ListRelationsRequest::default())).await;
    assert!(answer.is_ok(), "other calls are answered: {answer:?}");
    // One that speaks and asks for nothing is told to go, and goes although it does not answer.
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut all = Vec::new();
    within(idle.read_to_end(&mut all)).await.unwrap();
    assert!(all.windows(9).any(|frame| frame[..4] == [0, 0, 8, GOAWAY]), "{all:?}");
}

#[tokio::test]
async fn one_connection_opens_no_more_streams_than_it_may() {
    use tonic_types::StatusExt as _;
    let server = start(Options { streams_per_connection: 2, ..Options::default() }).await;
    server.hub.scripts.lock().extend([Script::Stuck, Script::Stuck, Script::Stuck]);
    let mut client = server.changes().await;
    let first = within(client.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    let _second = within(client.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    let refused = within(client.subscribe(pb::SubscribeRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "TOO_MANY_STREAMS");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    // Other calls and other connections are not concerned.
    within(client.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
    within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    assert!(server.hub.open.load(Ordering::SeqCst) <= 3);
    drop(first);
    within(async {
        while client.subscribe(pb::SubscribeRequest::default()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[test]
fn plaintext_stays_on_loopback_unless_somebody_insists() {
    for (listen, tls, insecure, allowed) in [
        ("127.0.0.1:50051", false, false, true),
        ("127.8.9.1:50051", false, false, true),
        ("[::1]:50051", false, false, true),
        ("[::ffff:127.0.0.1]:50051", false, false, true),
        ("0.0.0.0:50051", false, false, false),
        ("[::]:50051", false, false, false),
        ("192.0.2.1:50051", false, false, false),
        ("192.0.2.1:50051", true, false, true),
        ("192.0.2.1:50051", false, true, true),
    ] {
        let result = refuse_plaintext(listen.parse().unwrap(), tls, insecure);
        assert_eq!(result.is_ok(), allowed, "{listen} {tls} {insecure}");
        if let Err(error) = result {
            assert!(error.to_string().contains("--insecure") && error.to_string().contains(listen), "{error}");
        }
    }
}

#[tokio::test]
async fn a_taken_address_is_named_with_what_to_do() {
    let server = start(Options::default()).await;
    let error = server::bind(server.address).await.unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()) && error.contains("--listen"), "{error}");
}
