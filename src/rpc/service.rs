//! `ChangeStreamService` without its streams, which [`streams`](super::streams) answers.

use std::{collections::HashSet, pin::Pin, sync::Arc};

use futures_util::Stream;
use globset::{Glob, GlobSet, GlobSetBuilder};
use tonic::{Request, Response, Status, Streaming};

use super::{backend::Backend, request, status, tokens::Caller};
use crate::{
    feed::{Feed, resume_to_pb},
    hub::Principal,
    model::Relation,
    wire::{pb, relation_to_pb},
};

/// Tables in this schema are the hub's own and reach nobody.
const OWN_SCHEMA: &str = "walcast";

/// Answers the methods that do not stream changes.
pub struct ChangeStreams<B> {
    backend: B,
    feed: Arc<dyn Feed>,
}

impl<B: Backend> ChangeStreams<B> {
    /// `feed`: for relations and lineages.
    pub fn new(backend: B, feed: Arc<dyn Feed>) -> Self {
        ChangeStreams { backend, feed }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<B: Backend> pb::change_stream_service_server::ChangeStreamService for ChangeStreams<B> {
    type SubscribeStream = Events<pb::SubscribeResponse>;
    type ConsumeStream = Events<pb::ConsumeResponse>;
    type ReadRetractedStream = Events<pb::ReadRetractedResponse>;

    async fn subscribe(&self, _: Request<pb::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(elsewhere())
    }

    async fn consume(
        &self,
        _: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(elsewhere())
    }

    async fn acknowledge(
        &self,
        request: Request<pb::AcknowledgeRequest>,
    ) -> Result<Response<pb::AcknowledgeResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        named("subscriber", &request.subscriber)?;
        let position = request::required_position("position", request.position.as_ref()).map_err(refused)?;
        let checkpoint = self
            .backend
            .acknowledge(&caller.principal, &request.subscriber, position, request.session)
            .await
            .map_err(|error| status::status(&error))?;
        Ok(Response::new(pb::AcknowledgeResponse { checkpoint: Some(resume_to_pb(&checkpoint)) }))
    }

    async fn backfill(&self, request: Request<pb::BackfillRequest>) -> Result<Response<pb::BackfillResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        named("subscriber", &request.subscriber)?;
        let backfill = request::backfill(&request).map_err(refused)?;
        let snapshot_id = self
            .backend
            .backfill(&caller.principal, &request.subscriber, &request.snapshot_id, backfill)
            .await
            .map_err(|error| status::status(&error))?;
        Ok(Response::new(pb::BackfillResponse { snapshot_id }))
    }

    async fn list_relations(
        &self,
        request: Request<pb::ListRelationsRequest>,
    ) -> Result<Response<pb::ListRelationsResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let wanted = globs(&request.tables).map_err(refused)?;
        let readable = readable(&caller.principal)?;
        let relations = self.feed.relations();
        let shown = if request.all_versions { relations } else { newest(relations) };
        let relations = shown
            .iter()
            .filter(|relation| relation.schema != OWN_SCHEMA)
            .filter(|relation| {
                let name = relation.qualified_name();
                [&wanted, &readable].iter().all(|globs| globs.as_ref().is_none_or(|globs| globs.is_match(&name)))
            })
            .map(|relation| relation_to_pb(relation))
            .collect();
        Ok(Response::new(pb::ListRelationsResponse { relations }))
    }

    async fn read_retracted(
        &self,
        _: Request<pb::ReadRetractedRequest>,
    ) -> Result<Response<Self::ReadRetractedStream>, Status> {
        Err(elsewhere())
    }
}

/// The caller that [`auth`](super::auth) found.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}

pub(super) fn refused(error: request::Error) -> Status {
    status::status(&error)
}

/// A name that must not be empty; what else it must be is the hub's business.
pub(super) fn named(field: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() { Err(refused(request::Error::field(field, "must be set"))) } else { Ok(()) }
}

fn elsewhere() -> Status {
    refused(request::Error::unsupported("streams are answered in front of this service"))
}

/// `None`: every table.
fn globs(tables: &[String]) -> Result<Option<GlobSet>, request::Error> {
    if tables.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for (index, glob) in tables.iter().enumerate() {
        let wrong = |error: globset::Error| request::Error::field(&format!("tables[{index}]"), error.to_string());
        set.add(Glob::new(glob).map_err(wrong)?);
    }
    set.build().map(Some).map_err(|error| request::Error::field("tables", error.to_string()))
}

/// The principal's own globs. The token file was checked when it was read; should one not compile, nothing is shown.
fn readable(principal: &Principal) -> Result<Option<GlobSet>, Status> {
    match &principal.tables {
        None => Ok(None),
        Some(tables) if tables.is_empty() => Ok(Some(GlobSet::empty())),
        Some(tables) => globs(tables).map_err(|error| {
            status::refuse(crate::reason::Reason::Internal, &format!("rights of the caller: {error}"))
        }),
    }
}

/// The newest version of each table that still has its name: a table that was renamed or replaced shows once.
fn newest(relations: Vec<Arc<Relation>>) -> Vec<Arc<Relation>> {
    let mut oids = HashSet::new();
    let mut names = HashSet::new();
    let mut newest: Vec<_> = relations
        .into_iter()
        .rev()
        .filter(|relation| {
            let new_table = oids.insert(relation.oid);
            let new_name = names.insert(relation.qualified_name());
            new_table && new_name
        })
        .collect();
    newest.reverse();
    newest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RelationId, ReplicaIdentity};

    fn relation(id: u32, oid: u32, table: &str) -> Arc<Relation> {
        Arc::new(Relation {
            id: RelationId(id),
            oid,
            schema: "public".to_owned(),
            table: table.to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    #[test]
    fn a_table_shows_once_in_its_newest_version() {
        let shown = newest(vec![
            relation(1, 10, "a"),
            relation(2, 11, "b"),
            relation(3, 10, "a"),
            relation(4, 10, "renamed"),
            relation(5, 12, "a"),
            relation(6, 13, "b"),
        ]);
        let shown: Vec<_> = shown.iter().map(|relation| (relation.id.0, relation.table.as_str())).collect();
        assert_eq!(shown, [(4, "renamed"), (5, "a"), (6, "b")]);
    }
}
