//! What a subscriber saw: every event with its time, per stream, and how each stream ended.

use std::{collections::HashMap, error::Error as _, fmt, time::Duration, time::Instant};

use tonic::{Code, Status};
use tonic_types::StatusExt;
use walcast::{
    lsn::Lsn,
    wire::pb::{self, event::Kind},
};

/// One subscriber over any number of streams.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// For messages; empty for an anonymous subscriber.
    pub subscriber: String,
    /// The filter of all its streams.
    pub filter: Option<pb::Filter>,
    pub streams: Vec<StreamLog>,
    /// The test killed the hub or the connection, so streams may end without a typed error.
    pub may_be_cut: bool,
    /// Whatever reproduces the run, such as the workload's seed.
    pub note: String,
}

/// One stream.
#[derive(Clone, Debug)]
pub struct StreamLog {
    pub number: usize,
    /// As requested.
    pub start: Option<pb::Start>,
    /// What the client knew to be done when it asked: its own position, or the checkpoint that was acknowledged.
    pub resumes_after: Option<pb::Position>,
    pub events: Vec<Record>,
    pub end: End,
}

/// One event and when it was taken from the stream.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: Instant,
    pub kind: Kind,
}

/// How a stream ended.
#[derive(Clone, Debug, Default)]
pub enum End {
    /// It has not.
    #[default]
    Open,
    /// With status OK.
    Completed,
    /// The client closed it.
    Closed,
    /// The hub sent an error.
    Failed(Failure),
    /// The connection broke; not an answer of the hub.
    Cut(String),
}

/// A status from the hub, taken apart.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// `ErrorInfo.reason`; empty when there is none.
    pub reason: String,
    pub domain: String,
    pub metadata: HashMap<String, String>,
    /// `RetryInfo`.
    pub retry: Option<Duration>,
    /// `BadRequest` field paths.
    pub violations: Vec<String>,
}

impl Failure {
    pub fn of(status: &Status) -> Failure {
        let info = status.get_details_error_info();
        let violations = status.get_details_bad_request().map_or_else(Vec::new, |request| request.field_violations);
        Failure {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.as_ref().map_or_else(String::new, |info| info.reason.clone()),
            domain: info.as_ref().map_or_else(String::new, |info| info.domain.clone()),
            metadata: info.map_or_else(HashMap::new, |info| info.metadata),
            retry: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
            violations: violations.into_iter().map(|violation| violation.field).collect(),
        }
    }

    /// Metadata as an LSN.
    pub fn lsn(&self, key: &str) -> Lsn {
        let text = self.metadata.get(key).unwrap_or_else(|| panic!("no metadata {key:?} in {self:?}"));
        text.parse().unwrap_or_else(|_| panic!("metadata {key:?} is no LSN in {self:?}"))
    }
}

impl End {
    /// An error that the hub sent has no source; what tonic made of a broken connection has one.
    pub fn of(status: &Status) -> End {
        if status.source().is_some() { End::Cut(status.to_string()) } else { End::Failed(Failure::of(status)) }
    }

    /// The reason of a typed error.
    pub fn reason(&self) -> Option<&str> {
        match self {
            End::Failed(failure) => Some(&failure.reason),
            _ => None,
        }
    }
}

impl StreamLog {
    pub fn new(number: usize, start: Option<pb::Start>, resumes_after: Option<pb::Position>) -> Self {
        StreamLog { number, start, resumes_after, events: Vec::new(), end: End::Open }
    }

    pub fn push(&mut self, event: pb::Event) {
        let kind = event.kind.unwrap_or_else(|| panic!("an event without a known kind in stream {}", self.number));
        self.events.push(Record { at: Instant::now(), kind });
    }

    pub fn opened(&self) -> Option<&pb::Opened> {
        match self.events.first().map(|record| &record.kind) {
            Some(Kind::Opened(opened)) => Some(opened),
            _ => None,
        }
    }

    pub fn kinds(&self) -> impl DoubleEndedIterator<Item = &Kind> {
        self.events.iter().map(|record| &record.kind)
    }

    /// The last events, a line each.
    pub fn last_lines(&self, lines: usize) -> String {
        let skip = self.events.len().saturating_sub(lines);
        self.events[skip..].iter().map(|record| format!("  {}\n", Brief(&record.kind))).collect()
    }

    /// Changes, truncates and messages.
    pub fn changes(&self) -> usize {
        self.kinds().filter(|kind| matches!(kind, Kind::Change(_) | Kind::Truncate(_) | Kind::Message(_))).count()
    }

    pub fn commits(&self) -> usize {
        self.kinds().filter(|kind| matches!(kind, Kind::Commit(_))).count()
    }

    pub fn progress(&self) -> impl DoubleEndedIterator<Item = &pb::Progress> {
        self.kinds().filter_map(|kind| match kind {
            Kind::Progress(progress) => Some(progress),
            _ => None,
        })
    }

    /// The greatest position up to which the stream is complete; `None` before `opened`.
    pub fn position(&self) -> Option<pb::Position> {
        let mut reached: Option<&pb::Position> = None;
        for kind in self.kinds() {
            if let Some(position) = resume_point(kind)
                && reached.is_none_or(|old| order(position) >= order(old) || position.lineage != old.lineage)
            {
                reached = Some(position);
            }
        }
        reached.cloned()
    }
}

impl History {
    /// The newest stream.
    pub fn last(&self) -> &StreamLog {
        self.streams.last().expect("a history has a stream")
    }

    pub fn position(&self) -> Option<pb::Position> {
        self.streams.iter().rev().find_map(StreamLog::position)
    }

    pub fn changes(&self) -> usize {
        self.streams.iter().map(StreamLog::changes).sum()
    }

    /// Writes every event to a file that outlives the test, a line each; its path.
    pub fn keep(&self) -> String {
        let name = if self.subscriber.is_empty() { "anonymous" } else { &self.subscriber };
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = dir.join(format!("history-{}-{name}-{:08x}.txt", std::process::id(), fastrand::u32(..)));
        let mut text = format!("{}\nfilter {:?}\n", self.note, self.filter);
        for stream in &self.streams {
            text += &format!(
                "\nstream {} start {:?} resumes after {:?}\n",
                stream.number, stream.start, stream.resumes_after
            );
            text += &stream.last_lines(usize::MAX);
            text += &format!("ended {:?}\n", stream.end);
        }
        match std::fs::write(&file, text) {
            Ok(()) => file.display().to_string(),
            Err(error) => format!("nowhere: {error}"),
        }
    }

    /// Everything the hub answered with instead of OK.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.streams.iter().filter_map(|stream| match &stream.end {
            End::Failed(failure) => Some(failure),
            _ => None,
        })
    }
}

/// The position that an event lets a client acknowledge.
pub fn resume_point(kind: &Kind) -> Option<&pb::Position> {
    match kind {
        Kind::Opened(opened) => opened.after.as_ref(),
        Kind::Commit(commit) => commit.position.as_ref(),
        Kind::Progress(progress) => progress.position.as_ref(),
        Kind::Message(message) => message.position.as_ref(),
        Kind::TimelineChanged(changed) => changed.position.as_ref(),
        Kind::Gap(gap) => gap.up_to.as_ref(),
        Kind::SnapshotEnd(end) => end.position.as_ref(),
        _ => None,
    }
}

/// Order inside one lineage.
pub fn order(position: &pb::Position) -> (Lsn, u32) {
    (lsn(&position.lsn), position.sequence)
}

/// LSNs on the wire are text.
pub fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no LSN"))
}

/// One line per event, for failures.
pub struct Brief<'a>(pub &'a Kind);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |position: &Option<pb::Position>| match position {
            Some(position) => format!("{}.{}@{}", position.lsn, position.sequence, position.lineage),
            None => "-".to_owned(),
        };
        match self.0 {
            Kind::Begin(begin) => {
                write!(f, "begin commit_lsn={} seq={} xid={}", begin.commit_lsn, begin.sequence, begin.xid)
            }
            Kind::Relation(relation) => {
                let columns: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
                write!(
                    f,
                    "relation {} {}.{} ({})",
                    relation.relation_id,
                    relation.schema,
                    relation.table,
                    columns.join(", ")
                )
            }
            Kind::Change(change) => {
                let mut text = format!(
                    "  {} relation={} #{} before={:?} after={:?}",
                    change.operation().as_str_name(),
                    change.relation_id,
                    change.ordinal,
                    change.before_row.as_ref().map(|row| &row.values),
                    change.after_row.as_ref().map(|row| &row.values)
                );
                if let Some((end, _)) = text.char_indices().nth(300) {
                    text.truncate(end);
                }
                f.write_str(&text)
            }
            Kind::Truncate(truncate) => write!(f, "  truncate {:?} #{}", truncate.relation_ids, truncate.ordinal),
            Kind::Message(message) => {
                write!(f, "  message {:?} #{} position={}", message.prefix, message.ordinal, at(&message.position))
            }
            Kind::Commit(commit) => {
                write!(f, "commit {} changes={} of {}", at(&commit.position), commit.changes, commit.total_changes)
            }
            Kind::Progress(progress) => write!(
                f,
                "progress {} tail={} caught_up={} connected={} checkpoint={}",
                at(&progress.position),
                at(&progress.tail),
                progress.caught_up,
                progress.source_connected,
                at(&progress.checkpoint)
            ),
            Kind::Discard(discard) => write!(f, "discard {:?}", discard.reason),
            Kind::Opened(opened) => write!(
                f,
                "opened after={} earliest={} tail={} session={}",
                at(&opened.after),
                at(&opened.earliest),
                at(&opened.tail),
                opened.session
            ),
            other => write!(f, "{other:?}"),
        }
    }
}
