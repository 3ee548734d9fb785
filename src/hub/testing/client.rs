//! A client that reads a stream event by event.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{DEADLINE, position};
use crate::{
    hub::{Error, Session, frames},
    model::Position,
    wire::pb,
};

/// Reads a session event by event; checks what holds for every stream.
pub(in crate::hub) struct Client {
    pub session: Session,
    events: std::collections::VecDeque<pb::event::Kind>,
    pub opened: pb::Opened,
    pub frames: Vec<Bytes>,
    relations: BTreeMap<u32, pb::Relation>,
    in_transaction: bool,
}

impl Client {
    pub fn new(session: Session) -> Self {
        Client {
            session,
            events: Default::default(),
            opened: pb::Opened::default(),
            frames: Vec::new(),
            relations: BTreeMap::new(),
            in_transaction: false,
        }
    }

    /// The next event; `None` at an OK end.
    pub async fn next(&mut self) -> Option<Result<pb::event::Kind, Error>> {
        while self.events.is_empty() {
            let next = tokio::time::timeout(DEADLINE, self.session.next()).await;
            match next.expect("the stream says something before the deadline")? {
                Ok(frame) => {
                    assert_eq!(frame[0], 0, "not compressed");
                    assert_eq!(u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize, frame.len() - 5);
                    let response = pb::SubscribeResponse::decode(frames::payload(&frame)).expect("a response");
                    assert!(!response.events.is_empty(), "no empty messages");
                    self.events.extend(response.events.into_iter().map(|event| event.kind.expect("a kind")));
                    self.frames.push(frame);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        let event = self.events.pop_front()?;
        self.check(&event);
        Some(Ok(event))
    }

    fn check(&mut self, event: &pb::event::Kind) {
        use pb::event::Kind;
        match event {
            Kind::Opened(opened) => {
                assert_eq!(self.opened, pb::Opened::default(), "opened twice");
                self.opened = opened.clone();
            }
            Kind::Relation(relation) => {
                let known = self.relations.insert(relation.relation_id, relation.clone());
                assert_eq!(known, None, "a relation version is sent once");
            }
            Kind::Begin(_) => assert!(!std::mem::replace(&mut self.in_transaction, true), "begin inside a transaction"),
            Kind::Commit(_) | Kind::Discard(_) => {
                assert!(std::mem::replace(&mut self.in_transaction, false), "an end without begin");
            }
            Kind::Progress(_) => assert!(!self.in_transaction, "progress inside a transaction"),
            Kind::TimelineChanged(_) => assert!(!self.in_transaction, "a crossing inside a transaction"),
            Kind::SnapshotBegin(_) | Kind::SnapshotEnd(_) => {
                assert!(!self.in_transaction, "a snapshot inside a transaction");
            }
            Kind::Change(change) => {
                assert!(self.in_transaction, "a change outside transactions");
                let relation = self.relations.get(&change.relation_id).expect("relations come before their changes");
                for row in [&change.before_row, &change.after_row].into_iter().flatten() {
                    assert_eq!(row.values.len(), relation.columns.len(), "rows are positional against the relation");
                }
            }
            Kind::Truncate(truncate) => {
                assert!(self.in_transaction, "a truncate outside transactions");
                assert!(truncate.relation_ids.iter().all(|id| self.relations.contains_key(id)));
            }
            Kind::Message(message) => assert_eq!(self.in_transaction, message.position.is_none()),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub async fn event(&mut self) -> pb::event::Kind {
        self.next().await.expect("the stream goes on").expect("no error")
    }

    /// The error that ends the stream, after any number of events.
    pub async fn error(&mut self) -> Error {
        loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("ended with OK"),
            }
        }
    }

    /// What comes before the stream has caught up with this position, as lines.
    pub async fn until(&mut self, end: Position) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.event().await {
                pb::event::Kind::Progress(progress) if position(&progress.position).order() >= end.order() => {
                    assert_eq!(position(&progress.position), end);
                    return lines;
                }
                event => lines.extend(self.line(&event)),
            }
        }
    }

    /// The next progress, after any number of events.
    pub async fn progress(&mut self) -> pb::Progress {
        loop {
            if let pb::event::Kind::Progress(progress) = self.event().await {
                return progress;
            }
        }
    }

    /// Reads on until the stream says that it has caught up, or that it has not.
    pub async fn until_caught_up(&mut self, caught_up: bool) {
        let until = async { while self.progress().await.caught_up != caught_up {} };
        tokio::time::timeout(DEADLINE, until).await.expect("the stream says so before the deadline");
    }

    /// The next line, if one comes within the time.
    pub async fn line_within(&mut self, time: Duration) -> Option<String> {
        let deadline = tokio::time::Instant::now() + time;
        loop {
            if self.events.is_empty() {
                let next = tokio::time::timeout_at(deadline, self.session.next()).await.ok()??;
                let frame = next.expect("no error");
                let response = pb::SubscribeResponse::decode(frames::payload(&frame)).expect("a response");
                self.events.extend(response.events.into_iter().map(|event| event.kind.expect("a kind")));
                self.frames.push(frame);
            }
            let event = self.event().await;
            if let Some(line) = self.line(&event) {
                return Some(line);
            }
        }
    }

    /// An event of a transaction for people; nothing for others.
    pub fn line(&self, event: &pb::event::Kind) -> Option<String> {
        use pb::event::Kind;
        Some(match event {
            Kind::Begin(begin) => format!("begin {}", begin.commit_lsn),
            Kind::Change(change) => {
                let table = match self.relations.get(&change.relation_id) {
                    Some(relation) => format!("{}.{}", relation.schema, relation.table),
                    None => String::new(),
                };
                let mut line = format!("{} {} {table}", change.ordinal, change.operation().as_str_name());
                for row in [&change.before_row, &change.after_row].into_iter().flatten() {
                    let values: Vec<String> = row.values.iter().map(text).collect();
                    line += &format!(" [{}]", values.join(" "));
                }
                for fields in [&change.before, &change.after].into_iter().flatten() {
                    let names: Vec<&str> = fields.fields.keys().map(String::as_str).collect();
                    line += &format!(" {{{}}}", names.join(" "));
                }
                if change.transition != 0 {
                    line += change.transition().as_str_name().trim_start_matches("TRANSITION");
                }
                line
            }
            Kind::Truncate(truncate) => format!("{} truncate {:?}", truncate.ordinal, truncate.relation_ids),
            Kind::Message(message) => format!("{} message {}", message.ordinal, message.prefix),
            Kind::Commit(commit) => {
                let position = position(&commit.position);
                format!("commit {} {}/{}", position.lsn, commit.changes, commit.total_changes)
            }
            Kind::Discard(_) => "discard".to_owned(),
            _ => return None,
        })
    }
}

fn text(value: &pb::Value) -> String {
    match &value.kind {
        Some(pb::value::Kind::Text(text)) => text.clone(),
        Some(pb::value::Kind::Missing(3)) => "-".to_owned(),
        other => format!("{other:?}"),
    }
}
