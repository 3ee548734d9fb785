//! `AdminService`. An administrator sees the subscribers of every principal; those of another principal than its own
//! are named `principal/name`, in lists and in requests alike. A subscriber's name cannot hold a slash.

use std::{sync::Arc, time::Duration};

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    backend::Backend,
    request,
    service::{caller, named, refused},
    status,
};
use crate::{
    feed::{Crossing, Feed, Resume, Source, SubscriberKey, resume_to_pb},
    hub::{Principal, SubscriberInfo},
    lsn::Lsn,
    wire::{pb, position_to_pb, timestamp},
};

/// Answers the administrative methods.
pub struct Admin<B> {
    backend: B,
    feed: Arc<dyn Feed>,
    source: Arc<dyn Source>,
}

impl<B: Backend> Admin<B> {
    /// `feed` and `source`: for status.
    pub fn new(backend: B, feed: Arc<dyn Feed>, source: Arc<dyn Source>) -> Self {
        Admin { backend, feed, source }
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::admin_service_server::AdminService for Admin<B> {
    async fn get_status(&self, _: Request<pb::GetStatusRequest>) -> Result<Response<pb::GetStatusResponse>, Status> {
        let source = self.source.status();
        let window = self.feed.window();
        let durable = self.feed.durable().map(|durable| *durable.borrow());
        let known = self.feed.lineage();
        Ok(Response::new(pb::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: Some(pb::SourceStatus {
                connected: source.connected,
                system_identifier: text_unless(source.system_identifier == 0, source.system_identifier),
                timeline: source.timeline,
                lineage: known.as_ref().map(|lineage| lineage.id().to_string()).unwrap_or_default(),
                slot: source.slot,
                wal_status: source.wal_status,
                confirmed_flush_lsn: text_unless(source.confirmed_flush == Lsn::ZERO, source.confirmed_flush),
                current_lsn: text_unless(source.current == Lsn::ZERO, source.current),
                retained_wal_bytes: source.retained_wal_bytes,
                last_error: source.last_error,
                alarms: source.alarms,
                standbys: source
                    .standbys
                    .into_iter()
                    .map(|seen| pb::StandbyStatus { server: seen.server, ready: seen.ready, detail: seen.detail })
                    .collect(),
            }),
            journal: Some(pb::JournalStatus {
                earliest: known.as_ref().map(|_| position_to_pb(window.earliest)),
                tail: known.as_ref().map(|_| position_to_pb(window.tail)),
                bytes: window.bytes,
                earliest_commit_time: window.earliest_commit_time.map(timestamp),
                retracted: self.feed.history().retracted().map(retracted_to_pb).collect(),
                eager: durable.is_some(),
                durable: durable.filter(|_| known.is_some()).map(position_to_pb),
            }),
            streams: u32::try_from(self.backend.streams()).unwrap_or(u32::MAX),
        }))
    }

    async fn list_subscribers(
        &self,
        request: Request<pb::ListSubscribersRequest>,
    ) -> Result<Response<pb::ListSubscribersResponse>, Status> {
        let caller = caller(&request).principal;
        let everybody = Principal::default();
        let subscribers =
            self.backend.subscribers(&everybody).into_iter().map(|info| subscriber_to_pb(&caller, info)).collect();
        Ok(Response::new(pb::ListSubscribersResponse { subscribers }))
    }

    async fn reset_subscriber(
        &self,
        request: Request<pb::ResetSubscriberRequest>,
    ) -> Result<Response<pb::ResetSubscriberResponse>, Status> {
        let caller = caller(&request).principal;
        let request = request.into_inner();
        named("subscriber", &request.subscriber)?;
        let start = request::required_start("start", request.start.as_ref()).map_err(refused)?;
        let (owner, name) = owner_and_name(&caller, &request.subscriber);
        tracing::info!(subscriber = request.subscriber, by = caller.name, ?start, "subscriber reset");
        let checkpoint =
            self.backend.reset_subscriber(&owner, name, start).await.map_err(|error| status::status(&error))?;
        Ok(Response::new(pb::ResetSubscriberResponse { checkpoint: Some(position_to_pb(checkpoint)) }))
    }

    async fn delete_subscriber(
        &self,
        request: Request<pb::DeleteSubscriberRequest>,
    ) -> Result<Response<pb::DeleteSubscriberResponse>, Status> {
        let caller = caller(&request).principal;
        let request = request.into_inner();
        named("subscriber", &request.subscriber)?;
        let (owner, name) = owner_and_name(&caller, &request.subscriber);
        tracing::info!(subscriber = request.subscriber, by = caller.name, "subscriber deleted");
        self.backend.delete_subscriber(&owner, name).await.map_err(|error| status::status(&error))?;
        Ok(Response::new(pb::DeleteSubscriberResponse {}))
    }
}

fn retracted_to_pb(crossing: Crossing) -> pb::RetractedRange {
    pb::RetractedRange {
        old_lineage: crossing.old.to_string(),
        new_lineage: crossing.to.id.to_string(),
        switch_lsn: crossing.to.lineage.switch_lsn.to_string(),
        after: Some(position_to_pb(crossing.departs)),
        up_to: Some(position_to_pb(crossing.to.left)),
    }
}

fn owner_and_name<'a>(caller: &Principal, shown: &'a str) -> (Principal, &'a str) {
    match shown.split_once('/') {
        Some((owner, name)) => (Principal { name: owner.to_owned(), tables: None }, name),
        None => (caller.clone(), shown),
    }
}

fn shown_name(caller: &Principal, key: &SubscriberKey) -> String {
    if key.principal == caller.name { key.name.clone() } else { format!("{}/{}", key.principal, key.name) }
}

fn subscriber_to_pb(caller: &Principal, info: SubscriberInfo) -> pb::Subscriber {
    let filter = &info.checkpoint.filter;
    pb::Subscriber {
        name: shown_name(caller, &info.key),
        checkpoint: info
            .checkpoint
            .position
            .map(|position| resume_to_pb(&Resume { position, snapshot: info.checkpoint.snapshot.clone() })),
        connected: info.connected,
        lag_bytes: info.lag_bytes,
        lag: info.lag.map(duration),
        last_seen: Some(timestamp(info.checkpoint.last_seen)),
        filter: if filter.is_empty() { None } else { pb::Filter::decode(filter.clone()).ok() },
        peer: info.peer,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

fn text_unless(none: bool, value: impl ToString) -> String {
    if none { String::new() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(name: &str) -> Principal {
        Principal { name: name.to_owned(), tables: None }
    }

    #[test]
    fn a_shown_name_leads_back_to_its_subscriber() {
        for caller in ["", "operator", "billing"] {
            for owner in ["", "operator", "billing"] {
                let key = SubscriberKey { principal: owner.to_owned(), name: "mirror".to_owned() };
                let shown = shown_name(&principal(caller), &key);
                let (found, name) = owner_and_name(&principal(caller), &shown);
                assert_eq!((found.name.as_str(), name), (owner, "mirror"), "{shown:?}");
                assert_eq!(shown.contains('/'), caller != owner);
            }
        }
    }
}
