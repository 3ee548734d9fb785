//! Requests as the hub understands them. Everything that can be refused by looking at the message alone is refused
//! here, all of it at once, with the path of each field that is wrong.

use std::{fmt::Display, str::FromStr, time::Duration};

use prost::Message;

use crate::{
    feed::{Resume, SnapshotMode, Start},
    hub::{Backfill, Retracted, RowFormat, StartAt, Subscription},
    lsn::Lsn,
    model::Operation,
    reason::{Classified, Reason},
    selection::{Filter, TableRule},
    wire::{pb, position_from_pb, token::Token},
};

/// Microseconds between 1970-01-01 and 2000-01-01 UTC.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Smallest `max_message_bytes`.
pub const MIN_MESSAGE_BYTES: u32 = 1024;

/// Largest `max_message_bytes`: protobuf's own limit for one message.
pub const MAX_MESSAGE_BYTES: u32 = i32::MAX as u32;

/// Shortest `progress_interval`.
pub const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(10);

/// Longest `progress_interval`.
pub const MAX_PROGRESS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A request that is refused without asking the hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    reason: Reason,
    message: String,
    violations: Vec<(String, String)>,
}

impl Error {
    /// One field is wrong.
    pub fn field(field: &str, description: impl Into<String>) -> Self {
        Violations(vec![(field.to_owned(), description.into())]).into_error()
    }

    /// The client broke the order of messages.
    pub fn protocol(message: impl Into<String>) -> Self {
        Error { reason: Reason::RequestInvalid, message: message.into(), violations: Vec::new() }
    }

    /// The request asks for something that this version does not offer.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error { reason: Reason::Unsupported, message: message.into(), violations: Vec::new() }
    }
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        self.reason
    }

    fn violations(&self) -> Vec<(String, String)> {
        self.violations.clone()
    }
}

/// The subscription that a `SubscribeRequest` asks for. `root`: path of the request in the message that the client
/// sent, "" or "open.". `credits`: the stream waits for credit. The subscriber's name is left to the hub.
pub fn subscription(
    root: &str,
    request: pb::SubscribeRequest,
    credits: bool,
    peer: String,
) -> Result<Subscription, Error> {
    let mut wrong = Violations::default();
    if !request.source.is_empty() {
        wrong.add(format!("{root}source"), "this hub has one source; leave it empty");
    }
    let row_format = row_format(root, request.row_format, &mut wrong);
    let max_message_bytes = match request.max_message_bytes {
        0 => None,
        bytes @ MIN_MESSAGE_BYTES..=MAX_MESSAGE_BYTES => Some(bytes),
        bytes => {
            let range = format!("{bytes} is not 0 and not within {MIN_MESSAGE_BYTES}..={MAX_MESSAGE_BYTES}");
            wrong.add(format!("{root}max_message_bytes"), range);
            None
        }
    };
    let progress_interval = request.progress_interval.as_ref().and_then(|interval| {
        interval_from_pb(interval)
            .map_err(|description| wrong.add(format!("{root}progress_interval"), description))
            .ok()
            .flatten()
    });
    let start = match &request.start {
        None => None,
        Some(start) => start_at(&format!("{root}start"), start, &mut wrong),
    };
    let operations = request.filter.as_ref().map(|filter| filter.operations.as_slice()).unwrap_or_default();
    if matches!(start, Some(StartAt::Snapshot { .. }))
        && !operations.is_empty()
        && !operations.contains(&(pb::Operation::Read as i32))
    {
        wrong.add(format!("{root}filter.operations"), "leaves out READ, and with it the rows of the snapshot");
    }
    let filter = request.filter.as_ref().map(|filter| filter_from_pb(&format!("{root}filter"), filter, &mut wrong));
    wrong.none()?;
    Ok(Subscription {
        subscriber: Some(request.subscriber).filter(|name| !name.is_empty()),
        start,
        filter,
        filter_encoded: request.filter.map(|filter| filter.encode_to_vec().into()).unwrap_or_default(),
        row_format,
        stop_at_tail: request.stop_at_tail,
        max_message_bytes,
        progress_interval,
        credits,
        peer,
    })
}

/// The start of a `ResetSubscriberRequest`, which must name one.
pub fn required_start(field: &str, start: Option<&pb::Start>) -> Result<StartAt, Error> {
    let mut wrong = Violations::default();
    let at = match start {
        None => None,
        Some(start) => start_at(field, start, &mut wrong),
    };
    wrong.none()?;
    at.ok_or_else(|| Error::field(field, "must be set"))
}

/// What a `BackfillRequest` orders.
pub fn backfill(request: &pb::BackfillRequest) -> Result<Backfill, Error> {
    let mut wrong = Violations::default();
    let action = pb::BackfillAction::try_from(request.action).unwrap_or_default();
    let order = match action {
        pb::BackfillAction::Pause => Backfill::Pause,
        pb::BackfillAction::Resume => Backfill::Resume,
        pb::BackfillAction::Cancel => Backfill::Cancel,
        pb::BackfillAction::Start => {
            let given = request.filter.clone().unwrap_or_default();
            filter_from_pb("filter", &given, &mut wrong);
            let allowed = pb::Filter { tables: given.tables, r#where: given.r#where, ..Default::default() };
            if request.filter.as_ref().is_some_and(|filter| *filter != allowed) {
                wrong.add("filter".to_owned(), "a backfill takes `tables` and `where`; all else is the stream's");
            }
            let options = request.options.unwrap_or_default();
            if options.mode() == pb::SnapshotMode::Consistent {
                wrong.add("options.mode".to_owned(), "a running stream takes rows in incremental mode only");
            }
            if !request.snapshot_id.is_empty() {
                wrong.add("snapshot_id".to_owned(), "is given by the hub");
            }
            Backfill::Start {
                tables: allowed.tables,
                predicate: allowed.r#where,
                max_rows_per_second: options.max_rows_per_second,
            }
        }
        pb::BackfillAction::Unspecified => {
            wrong.add("action".to_owned(), "must be START, PAUSE, RESUME or CANCEL");
            Backfill::Pause
        }
    };
    wrong.none()?;
    Ok(order)
}

/// A position that must be set.
pub fn required_position(field: &str, position: Option<&pb::Position>) -> Result<Resume, Error> {
    let mut wrong = Violations::default();
    let position = match position {
        None => {
            wrong.add(field.to_owned(), "must be set");
            None
        }
        Some(position) => self::position(field, position, &mut wrong),
    };
    wrong.none()?;
    position.ok_or_else(|| Error::field(field, "must be set"))
}

/// Text that must parse, such as a lineage.
pub fn parsed<T>(field: &str, text: &str) -> Result<T, Error>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| Error::field(field, error.to_string()))
}

/// Checks a request for what a failover took back.
pub fn retracted(request: pb::ReadRetractedRequest) -> Result<Retracted, Error> {
    let mut wrong = Violations::default();
    let row_format = row_format("", request.row_format, &mut wrong);
    let filter = request.filter.as_ref().map(|filter| filter_from_pb("filter", filter, &mut wrong));
    wrong.none()?;
    Ok(Retracted { old_lineage: parsed("old_lineage", &request.old_lineage)?, filter, row_format })
}

fn row_format(root: &str, number: i32, wrong: &mut Violations) -> RowFormat {
    match pb::RowFormat::try_from(number) {
        Ok(pb::RowFormat::Unspecified | pb::RowFormat::Compact) => RowFormat::Compact,
        Ok(pb::RowFormat::Struct) => RowFormat::Struct,
        Err(_) => {
            wrong.add(format!("{root}row_format"), format!("{number} is not a RowFormat"));
            RowFormat::Compact
        }
    }
}

fn start_at(field: &str, start: &pb::Start, wrong: &mut Violations) -> Option<StartAt> {
    use pb::start::At;
    match &start.at {
        None => {
            wrong.add(format!("{field}.at"), "a start must name a place; leave `start` out for the default");
            None
        }
        Some(At::Checkpoint(())) => Some(StartAt::Checkpoint),
        Some(At::Earliest(())) => Some(StartAt::Feed(Start::Earliest)),
        Some(At::Latest(())) => Some(StartAt::Feed(Start::Latest)),
        Some(At::AfterLsn(text)) => match text.parse::<Lsn>() {
            Ok(lsn) => Some(StartAt::Feed(Start::AfterLsn(lsn))),
            Err(error) => {
                wrong.add(format!("{field}.after_lsn"), error.to_string());
                None
            }
        },
        Some(At::After(position)) => {
            let resume = self::position(&format!("{field}.after"), position, wrong);
            resume.map(|resume| match resume.snapshot.is_empty() {
                true => StartAt::Feed(Start::After(resume.position)),
                false => StartAt::Resume(resume),
            })
        }
        Some(At::Since(timestamp)) => match micros(timestamp) {
            Some(micros) => Some(StartAt::Feed(Start::Since(micros))),
            None => {
                wrong.add(format!("{field}.since"), "is not a time between the years 1 and 9999");
                None
            }
        },
        Some(At::Snapshot(options)) => {
            let mode = match pb::SnapshotMode::try_from(options.mode) {
                Ok(pb::SnapshotMode::Unspecified) => None,
                Ok(pb::SnapshotMode::Consistent) => Some(SnapshotMode::Consistent),
                Ok(pb::SnapshotMode::Incremental) => Some(SnapshotMode::Incremental),
                Err(_) => {
                    wrong.add(format!("{field}.snapshot.mode"), format!("{} is not a SnapshotMode", options.mode));
                    None
                }
            };
            Some(StartAt::Snapshot { mode, max_rows_per_second: options.max_rows_per_second })
        }
    }
}

fn position(field: &str, position: &pb::Position, wrong: &mut Violations) -> Option<Resume> {
    if let Err(error) = Token::decode(&position.snapshot) {
        wrong.add(format!("{field}.snapshot"), error.to_string());
    }
    if let Err(error) = position.lsn.parse::<Lsn>() {
        wrong.add(format!("{field}.lsn"), error.to_string());
        return None;
    }
    let snapshot = position.snapshot.clone();
    match position_from_pb(position) {
        Ok(position) => Some(Resume { position, snapshot }),
        Err(error) => {
            wrong.add(format!("{field}.lineage"), error.to_string());
            None
        }
    }
}

fn filter_from_pb(field: &str, filter: &pb::Filter, wrong: &mut Violations) -> Filter {
    for (name, globs) in [
        ("tables", &filter.tables),
        ("exclude_tables", &filter.exclude_tables),
        ("columns", &filter.columns),
        ("message_prefixes", &filter.message_prefixes),
    ] {
        not_empty(&format!("{field}.{name}"), globs, wrong);
    }
    let rules = filter.rules.iter().enumerate().map(|(number, rule)| {
        let field = format!("{field}.rules[{number}]");
        if rule.tables.is_empty() {
            wrong.add(format!("{field}.tables"), "must be a glob over schema.table");
        }
        not_empty(&format!("{field}.columns"), &rule.columns, wrong);
        TableRule {
            tables: rule.tables.clone(),
            columns: rule.columns.clone(),
            predicate: rule.r#where.clone(),
            operations: operations(&field, &rule.operations, wrong),
        }
    });
    let rules = rules.collect();
    Filter {
        tables: filter.tables.clone(),
        exclude_tables: filter.exclude_tables.clone(),
        operations: operations(field, &filter.operations, wrong),
        columns: filter.columns.clone(),
        predicate: filter.r#where.clone(),
        message_prefixes: filter.message_prefixes.clone(),
        origins: filter.origins.clone(),
        rules,
    }
}

fn operations(field: &str, numbers: &[i32], wrong: &mut Violations) -> Vec<Operation> {
    let mut operations = Vec::with_capacity(numbers.len());
    for (index, &number) in numbers.iter().enumerate() {
        match pb::Operation::try_from(number) {
            Ok(pb::Operation::Insert) => operations.push(Operation::Insert),
            Ok(pb::Operation::Update) => operations.push(Operation::Update),
            Ok(pb::Operation::Delete) => operations.push(Operation::Delete),
            Ok(pb::Operation::Truncate) => operations.push(Operation::Truncate),
            Ok(pb::Operation::Read) => operations.push(Operation::Read),
            Ok(pb::Operation::Unspecified) | Err(_) => {
                wrong.add(format!("{field}.operations[{index}]"), format!("{number} is not an operation"));
            }
        }
    }
    operations
}

fn not_empty(field: &str, globs: &[String], wrong: &mut Violations) {
    for (index, _) in globs.iter().enumerate().filter(|(_, glob)| glob.is_empty()) {
        wrong.add(format!("{field}[{index}]"), "is empty and matches nothing");
    }
}

/// `None` for zero, which means the default.
fn interval_from_pb(interval: &prost_types::Duration) -> Result<Option<Duration>, String> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(interval.seconds), u32::try_from(interval.nanos)) else {
        return Err("is negative".to_owned());
    };
    if nanos >= 1_000_000_000 {
        return Err(format!("{nanos} nanoseconds are not a fraction of a second"));
    }
    match Duration::new(seconds, nanos) {
        Duration::ZERO => Ok(None),
        interval if (MIN_PROGRESS_INTERVAL..=MAX_PROGRESS_INTERVAL).contains(&interval) => Ok(Some(interval)),
        interval => Err(format!("{interval:?} is not within {MIN_PROGRESS_INTERVAL:?}..={MAX_PROGRESS_INTERVAL:?}")),
    }
}

/// Microseconds since 2000-01-01 UTC, rounded up, since commit times are whole microseconds;
/// `None` outside of the years 1 to 9999, which is the range of
/// [`Timestamp`](https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp).
fn micros(timestamp: &prost_types::Timestamp) -> Option<i64> {
    let in_range = (-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds)
        && (0..1_000_000_000).contains(&timestamp.nanos);
    in_range.then(|| {
        timestamp.seconds * 1_000_000 + i64::from(timestamp.nanos).unsigned_abs().div_ceil(1000) as i64 - POSTGRES_EPOCH
    })
}

/// What is wrong so far: field path and description.
#[derive(Default)]
struct Violations(Vec<(String, String)>);

impl Violations {
    fn add(&mut self, field: String, description: impl Into<String>) {
        self.0.push((field, description.into()));
    }

    fn none(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    fn into_error(self) -> Error {
        let in_filter = |field: &str| field.split(['.', '[']).any(|part| part == "filter");
        let reason = if self.0.iter().all(|(field, _)| in_filter(field)) {
            Reason::FilterInvalid
        } else {
            Reason::RequestInvalid
        };
        let message = self.0.iter().map(|(field, text)| format!("{field}: {text}")).collect::<Vec<_>>().join("; ");
        Error { reason, message, violations: self.0 }
    }
}

#[cfg(test)]
#[path = "tests/request.rs"]
mod tests;
