use std::sync::Arc;

use tonic::{Code, codec::CompressionEncoding, codegen::http::uri::PathAndQuery};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use super::{
    super::Options,
    fake::{Running, lineage, position, start, start_with},
    typed, within,
};
use crate::{
    model::{Relation, RelationId, ReplicaIdentity},
    wire::{pb, position_to_pb},
};

fn relation(id: u32, schema: &str, table: &str) -> Arc<Relation> {
    Arc::new(Relation {
        id: RelationId(id),
        oid: 1000 + id,
        schema: schema.to_owned(),
        table: table.to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: Vec::new(),
    })
}

async fn tables(server: &Running, globs: &[&str]) -> Vec<String> {
    let tables = globs.iter().map(|glob| (*glob).to_owned()).collect();
    let request = pb::ListRelationsRequest { tables, all_versions: false };
    let response = within(server.changes().await.list_relations(request)).await.unwrap().into_inner();
    response.relations.into_iter().map(|relation| format!("{}.{}", relation.schema, relation.table)).collect()
}

#[tokio::test]
async fn relations_are_listed_by_glob_and_the_hubs_own_never() {
    let relations = vec![
        relation(1, "public", "orders"),
        relation(2, "public", "items"),
        relation(3, "audit", "orders"),
        relation(4, "walcast", "log"),
    ];
    let server = start_with(Options::default(), relations).await;
    assert_eq!(tables(&server, &[]).await, ["public.orders", "public.items", "audit.orders"]);
    assert_eq!(tables(&server, &["*.orders"]).await, ["public.orders", "audit.orders"]);
    assert_eq!(tables(&server, &["audit.*", "public.items"]).await, ["public.items", "audit.orders"]);
    assert!(tables(&server, &["walcast.*"]).await.is_empty());

    let request = pb::ListRelationsRequest { tables: vec!["public.*".into(), "a.[".into()], all_versions: false };
    let status = within(server.changes().await.list_relations(request)).await.unwrap_err();
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "tables[1]");
}

#[tokio::test]
async fn acknowledge_goes_to_the_hub_and_its_refusals_come_back() {
    let server = start(Options::default()).await;
    let request = |subscriber: &str| pb::AcknowledgeRequest {
        subscriber: subscriber.to_owned(),
        position: Some(position_to_pb(position(0x42))),
        session: 7,
    };
    let mut client = server.changes().await;
    let checkpoint = within(client.acknowledge(request("mirror"))).await.unwrap().into_inner().checkpoint.unwrap();
    assert_eq!(checkpoint.lsn, "0/42");
    assert_eq!(*server.hub.calls.lock(), [format!("acknowledge /mirror {} 7", position(0x42))]);
    let status = within(client.acknowledge(request("unknown"))).await.unwrap_err();
    assert_eq!(typed(&status), (Code::NotFound, "SUBSCRIBER_UNKNOWN".to_owned()));
    for wrong in [request(""), pb::AcknowledgeRequest { position: None, ..request("mirror") }] {
        let status = within(client.acknowledge(wrong)).await.unwrap_err();
        assert_eq!(typed(&status), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()));
    }
    assert_eq!(server.hub.calls.lock().len(), 2);
}

#[tokio::test]
async fn a_backfill_is_ordered_or_refused_by_field() {
    let server = start(Options::default()).await;
    let mut client = server.changes().await;
    let order = pb::BackfillRequest {
        subscriber: "a".to_owned(),
        action: pb::BackfillAction::Start as i32,
        filter: Some(pb::Filter { tables: vec!["public.t".to_owned()], ..Default::default() }),
        ..Default::default()
    };
    let answer = within(client.backfill(order.clone())).await.unwrap().into_inner();
    assert_eq!(answer.snapshot_id, "77");
    let filter = pb::Filter { columns: vec!["public.t.x".to_owned()], ..Default::default() };
    let options = pb::SnapshotOptions { mode: pb::SnapshotMode::Consistent as i32, ..Default::default() };
    for (request, field) in [
        (pb::BackfillRequest { subscriber: String::new(), ..order.clone() }, "subscriber"),
        (pb::BackfillRequest { action: 0, ..order.clone() }, "action"),
        (pb::BackfillRequest { filter: Some(filter), ..order.clone() }, "filter"),
        (pb::BackfillRequest { options: Some(options), ..order.clone() }, "options.mode"),
        (pb::BackfillRequest { snapshot_id: "5".to_owned(), ..order.clone() }, "snapshot_id"),
    ] {
        let status = within(client.backfill(request)).await.unwrap_err();
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    let unknown = pb::BackfillRequest { subscriber: "unknown".to_owned(), ..order };
    let status = within(client.backfill(unknown)).await.unwrap_err();
    assert_eq!(typed(&status), (Code::NotFound, "SUBSCRIBER_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn what_this_version_lacks_says_so() {
    let server = start(Options::default()).await;
    let mut client = server.changes().await;
    let of = |old_lineage: String| pb::ReadRetractedRequest { old_lineage, ..Default::default() };
    let status = within(client.read_retracted(of("00000000000000aa".to_owned()))).await.unwrap_err();
    assert_eq!(typed(&status), (Code::FailedPrecondition, "LINEAGE_UNKNOWN".to_owned()));
    let status = within(client.read_retracted(of("zebra".to_owned()))).await.unwrap_err();
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "old_lineage");
    let mut nothing = within(client.read_retracted(of(lineage().id().to_string()))).await.unwrap().into_inner();
    assert!(within(nothing.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_administrator_sees_everything_and_names_it_by_principal() {
    let server = start(Options::default()).await;
    let mut admin = server.admin().await;
    let status = within(admin.get_status(pb::GetStatusRequest {})).await.unwrap().into_inner();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    let source = status.source.unwrap();
    assert_eq!((source.system_identifier.as_str(), source.timeline), ("7000000000000000001", 1));
    assert_eq!((source.current_lsn.as_str(), source.confirmed_flush_lsn.as_str()), ("0/99", ""));
    assert_eq!(source.lineage, lineage().id().to_string());
    let journal = status.journal.unwrap();
    assert_eq!((journal.earliest.unwrap().lsn.as_str(), journal.tail.unwrap().lsn.as_str()), ("0/10", "0/99"));

    let list = within(admin.list_subscribers(pb::ListSubscribersRequest {})).await.unwrap().into_inner().subscribers;
    let names: Vec<_> = list.iter().map(|subscriber| subscriber.name.as_str()).collect();
    assert_eq!(names, ["mirror", "billing/mirror"]);
    assert_eq!(list[0].filter.as_ref().unwrap().tables, ["public.orders"]);
    assert_eq!(list[0].lag, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));

    let start = Some(pb::Start { at: Some(pb::start::At::Earliest(())) });
    let reset = pb::ResetSubscriberRequest { subscriber: "billing/mirror".to_owned(), start };
    assert_eq!(within(admin.reset_subscriber(reset)).await.unwrap().into_inner().checkpoint.unwrap().lsn, "0/55");
    let nowhere = pb::ResetSubscriberRequest { subscriber: "mirror".to_owned(), start: None };
    assert_eq!(typed(&within(admin.reset_subscriber(nowhere)).await.unwrap_err()).1, "REQUEST_INVALID");
    let delete = |name: &str| pb::DeleteSubscriberRequest { subscriber: name.to_owned() };
    within(admin.delete_subscriber(delete("mirror"))).await.unwrap();
    assert_eq!(typed(&within(admin.delete_subscriber(delete("unknown"))).await.unwrap_err()).1, "SUBSCRIBER_UNKNOWN");
    assert_eq!(
        *server.hub.calls.lock(),
        ["subscribers of \"\"", "reset billing/mirror Feed(Earliest)", "delete /mirror", "delete /unknown"]
    );
}

async fn call(server: &Running, path: &'static str, message: pb::AcknowledgeRequest) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    within(grpc.ready()).await.unwrap();
    let codec = ProstCodec::<pb::AcknowledgeRequest, pb::AcknowledgeResponse>::default();
    let call = grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(path), codec);
    within(call).await.unwrap_err()
}

#[tokio::test]
async fn errors_that_tonic_makes_are_typed_too() {
    let server = start(Options::default()).await;
    let empty = pb::AcknowledgeRequest::default();
    for path in ["/walcast.v1.ChangeStreamService/Nonsense", "/walcast.v1.AdminService/Nonsense", "/other.Service/Call"]
    {
        let status = call(&server, path, empty.clone()).await;
        assert_eq!(typed(&status), (Code::Unimplemented, "UNSUPPORTED".to_owned()), "{path}");
    }

    // Field 3 of AcknowledgeRequest is a number, of SubscribeRequest and Credit's neighbours a message.
    let garbage = pb::AcknowledgeRequest { session: 1, ..Default::default() };
    let large = pb::AcknowledgeRequest { subscriber: "x".repeat(300 * 1024), ..Default::default() };
    for path in ["/walcast.v1.ChangeStreamService/Subscribe", "/walcast.v1.ChangeStreamService/Consume"] {
        let status = call(&server, path, garbage.clone()).await;
        assert_eq!(typed(&status), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()), "{path}");
    }
    for path in [
        "/walcast.v1.ChangeStreamService/Subscribe",
        "/walcast.v1.ChangeStreamService/Acknowledge",
        "/walcast.v1.AdminService/DeleteSubscriber",
    ] {
        let status = call(&server, path, large.clone()).await;
        assert_eq!(typed(&status), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()), "{path}");
        assert!(status.message().contains("too large"), "{status:?}");
    }
    assert!(server.hub.subscriptions.lock().is_empty());

    let unknown = HealthCheckRequest { service: "nobody".to_owned() };
    let status = within(HealthClient::new(server.channel().await).check(unknown)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    typed(&status);
}

#[tokio::test]
async fn unary_answers_are_compressed_where_the_client_can_read_it() {
    let relations = (1..200).map(|id| relation(id, "public", &format!("table{id}"))).collect();
    let server = start_with(Options::default(), relations).await;
    for (encoding, name) in [(CompressionEncoding::Gzip, "gzip"), (CompressionEncoding::Zstd, "zstd")] {
        let mut client = server.changes().await.send_compressed(encoding).accept_compressed(encoding);
        let response = within(client.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
        assert_eq!(response.metadata().get("grpc-encoding").unwrap(), name);
        assert_eq!(response.into_inner().relations.len(), 199);
    }
}

#[tokio::test]
async fn health_of_the_process_and_of_the_services_are_two_things() {
    let server = start(Options::default()).await;
    let mut client = HealthClient::new(server.channel().await);
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        within(client.check(request)).await.unwrap().into_inner().status()
    };
    let services = ["walcast.v1.ChangeStreamService", "walcast.v1.AdminService"];
    assert_eq!(check("").await, ServingStatus::Serving);
    for service in services {
        assert_eq!(check(service).await, ServingStatus::NotServing);
    }
    assert!(!server.health.is_serving());
    server.health.serving(true).await;
    assert!(server.health.is_serving());
    for service in services {
        assert_eq!(check(service).await, ServingStatus::Serving);
    }
}

macro_rules! reflected {
    ($server:expr, $version:ident) => {{
        use prost::Message;
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Answer,
        };
        let mut client = ServerReflectionClient::new($server.channel().await);
        let asks = [Ask::ListServices(String::new()), Ask::FileContainingSymbol("walcast.v1.Position".to_owned())];
        let asks = asks.map(|ask| ServerReflectionRequest { host: String::new(), message_request: Some(ask) });
        let mut answers = within(client.server_reflection_info(tokio_stream::iter(asks))).await.unwrap().into_inner();
        let Some(Answer::ListServicesResponse(list)) =
            within(answers.message()).await.unwrap().unwrap().message_response
        else {
            panic!("no list")
        };
        let Some(Answer::FileDescriptorResponse(files)) =
            within(answers.message()).await.unwrap().unwrap().message_response
        else {
            panic!("no file")
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        let file = prost_types::FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
        (names, file)
    }};
}

#[tokio::test]
async fn reflection_speaks_both_versions_and_carries_comments() {
    let server = start(Options::default()).await;
    for (names, file) in [reflected!(server, v1), reflected!(server, v1alpha)] {
        for service in ["walcast.v1.ChangeStreamService", "walcast.v1.AdminService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|name| name == service), "{names:?}");
        }
        assert_eq!(file.name(), "walcast/v1/event.proto");
        let comments = file.source_code_info.unwrap().location;
        assert!(comments.iter().any(|location| location.leading_comments().contains("resume point")));
    }
    let without = start(Options { reflection: false, ..Options::default() }).await;
    let status = call(&without, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Default::default()).await;
    assert_eq!(status.code(), Code::Unimplemented);
}
