//! Why a subscription or a call on it was refused or ended.

use crate::{
    feed::{self, CheckpointError, SnapshotError, SourceAway},
    lsn::Lsn,
    model::Position,
    reason::{Classified, Reason},
    selection,
};

/// Why a subscription or a call on it was refused or ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: Reason,
    message: String,
    metadata: Vec<(&'static str, String)>,
    violations: Vec<(String, String)>,
}

impl Error {
    /// Any reason with a sentence for people.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Error { reason, message: message.into(), metadata: Vec::new(), violations: Vec::new() }
    }

    /// REQUEST_INVALID with one field violation.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut error = Error::new(Reason::RequestInvalid, format!("{field}: {detail}"));
        error.violations.push((field.to_owned(), detail));
        error
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    pub(super) fn classified(error: &(impl Classified + ?Sized)) -> Self {
        Error {
            reason: error.reason(),
            message: error.to_string(),
            metadata: error.metadata(),
            violations: error.violations(),
        }
    }

    /// The same about the change whose WAL record lies there.
    pub(super) fn at(mut self, lsn: Lsn) -> Self {
        self.message = format!("{}; the change is at {lsn}", self.message);
        self.with("lsn", lsn)
    }

    /// TOO_MANY_STREAMS: `state` is all that the setting `key` allows.
    pub(super) fn limit(key: &'static str, state: String) -> Self {
        Error::new(Reason::TooManyStreams, format!("{state}, which is the limit ({key})")).with("limit", key)
    }

    /// The same with what to do about it.
    pub(super) fn or(mut self, remedy: &str) -> Self {
        self.message = format!("{}; {remedy}", self.message);
        self
    }

    pub(super) fn checkpoint_missing(detail: &str) -> Self {
        Error::new(Reason::CheckpointMissing, detail)
    }

    pub(super) fn subscriber_unknown(name: &str) -> Self {
        Error::new(Reason::SubscriberUnknown, format!("there is no subscriber {name:?}"))
    }

    pub(super) fn fenced(session: u64) -> Self {
        Error::new(Reason::SubscriberFenced, "a newer stream, a reset or a deletion has taken over from this session")
            .with("session", session)
    }

    pub(super) fn ack_ahead(position: Position, sent: Option<Position>) -> Self {
        let sent = sent.map_or_else(|| "nothing".to_owned(), |sent| sent.lsn.to_string());
        Error::new(Reason::AckAhead, format!("position {position} has not been sent; the last one sent is {sent}"))
            .with("position", position.lsn)
            .with("sent", sent)
    }

    pub(super) fn in_future(requested: Lsn, insert: Lsn) -> Self {
        Error::new(
            Reason::PositionInFuture,
            format!("position {requested} lies beyond {insert}, where the source writes"),
        )
        .with("requested", requested)
        .with("insert", insert)
    }

    /// `position`: of the transaction's end, or of a message outside transactions. `row`: its table, and its ordinal in
    /// the transaction. The metadata hold all that `Position` needs, so that the event can be passed over.
    pub(super) fn too_large(bytes: usize, limit: usize, position: Position, row: Option<(String, u64)>) -> Self {
        let what = match &row {
            Some((table, ordinal)) => format!("change {ordinal} of its transaction, in {table},"),
            None => "a message".to_owned(),
        };
        let message = format!(
            "{what} has {bytes} bytes, and the client can receive {limit}; acknowledge {position} to leave it out with the \
             rest of its transaction"
        );
        let mut error = Error::new(Reason::EventTooLarge, message)
            .with("bytes", bytes)
            .with("limit", limit)
            .with("lsn", position.lsn)
            .with("lineage", position.lineage)
            .with("sequence", position.sequence);
        if let Some((table, ordinal)) = row {
            error = error.with("table", table).with("ordinal", ordinal);
        }
        error
    }

    /// A row of a snapshot, which no position passes over.
    pub(super) fn row_too_large(bytes: usize, limit: usize, table: String) -> Self {
        let message = format!(
            "a row of {table} has {bytes} bytes, and the client can receive {limit}; raise max_message_bytes, or leave the row or \
             its column out with the filter"
        );
        Error::new(Reason::EventTooLarge, message).with("bytes", bytes).with("limit", limit).with("table", table)
    }

    /// FILTER_INVALID for a backfill.
    pub(super) fn filter_too_long(bytes: usize, limit: usize) -> Self {
        let detail = format!(
            "takes {bytes} bytes together with filter.tables, and positions keep {limit} of a backfill; order several backfills, one \
             after another"
        );
        let mut error = Error::new(Reason::FilterInvalid, format!("filter.where: {detail}"));
        error.violations.push(("filter.where".to_owned(), detail));
        error
    }

    pub(super) fn draining(position: Position) -> Self {
        Error::new(Reason::Draining, format!("the hub is shutting down; resume after {position}"))
            .with("position", position.lsn)
            .with("lineage", position.lineage)
    }

    pub(super) fn starting() -> Self {
        Error::new(Reason::Starting, "the hub has never been connected to its source")
    }

    pub(super) fn snapshot_interrupted(detail: &str) -> Self {
        Error::new(Reason::SnapshotInterrupted, detail)
    }

    pub(super) fn corrupt(block: u64, detail: &str) -> Self {
        Error::new(Reason::JournalCorrupt, format!("block {block}: {detail}"))
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Error::new(Reason::Internal, message)
    }
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        self.reason
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        self.metadata.clone()
    }

    fn violations(&self) -> Vec<(String, String)> {
        self.violations.clone()
    }
}

impl From<feed::Error> for Error {
    fn from(error: feed::Error) -> Self {
        Error::classified(&error)
    }
}

impl From<SnapshotError> for Error {
    fn from(error: SnapshotError) -> Self {
        Error::classified(&error)
    }
}

impl From<selection::Error> for Error {
    fn from(error: selection::Error) -> Self {
        Error::classified(&error)
    }
}

impl From<CheckpointError> for Error {
    fn from(error: CheckpointError) -> Self {
        let reason = if error.disk_full { Reason::DiskFull } else { Reason::Internal };
        Error::new(reason, error.to_string())
    }
}

impl From<SourceAway> for Error {
    fn from(error: SourceAway) -> Self {
        Error::new(Reason::SourceUnavailable, error.to_string())
    }
}
