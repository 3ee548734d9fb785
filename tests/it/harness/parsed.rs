//! A history read as the grammar of the protocol says: transactions, messages outside them, progress. Reading it is
//! the Atomic check: whatever interleaves, miscounts or stands at a wrong place is a violation here.

use std::{collections::HashMap, fmt, sync::Arc};

use walcast::{
    lsn::Lsn,
    wire::pb::{self, event::Kind},
};

use super::history::{Brief, End, History, StreamLog, lsn};

/// A broken guarantee, with the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name in the table of guarantees.
    pub guarantee: &'static str,
    pub text: String,
    /// The events around it.
    pub context: String,
    /// Number of the stream.
    pub stream: Option<usize>,
}

impl Violation {
    pub fn new(guarantee: &'static str, text: impl Into<String>) -> Self {
        Violation { guarantee, text: text.into(), context: String::new(), stream: None }
    }

    /// With the events around `event` of a stream.
    pub fn at(guarantee: &'static str, stream: &StreamLog, event: usize, text: impl Into<String>) -> Self {
        let mut context = String::new();
        let first = event.saturating_sub(6);
        for (index, record) in stream.events.iter().enumerate().skip(first).take(12) {
            let mark = if index == event { ">>" } else { "  " };
            context += &format!("{mark} {index:>6} {}\n", Brief(&record.kind));
        }
        let text = format!("stream {}, event {event}: {}", stream.number, text.into());
        Violation { guarantee, text, context, stream: Some(stream.number) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n{}", self.guarantee, self.text, self.context)
    }
}

/// What `(lineage, commit LSN, sequence)` names. A message outside transactions stands under its own LSN.
pub type Identity = (String, Lsn, u32);

/// A typed column value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cell {
    Null,
    Unchanged,
    Absent,
    Bool(bool),
    Int(i64),
    /// The bits, so that NaN equals itself.
    Float(u64),
    Bytes(Vec<u8>),
    Text(String),
    Raw(Vec<u8>),
}

/// A relation version as a stream described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub table: String,
    pub oid: u32,
    pub replica_identity: i32,
    /// Name, type name, part of the identity.
    pub columns: Vec<(String, String, bool)>,
}

/// One counted event of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub ordinal: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Row {
        operation: pb::Operation,
        shape: Arc<Shape>,
        before: Option<Vec<Cell>>,
        after: Option<Vec<Cell>>,
        transition: i32,
    },
    Truncate {
        tables: Vec<String>,
        cascade: bool,
        restart_identity: bool,
    },
    Message {
        prefix: String,
        content: Vec<u8>,
    },
}

impl What {
    /// Tables concerned; none for messages.
    pub fn tables(&self) -> Vec<&str> {
        match self {
            What::Row { shape, .. } => vec![&shape.table],
            What::Truncate { tables, .. } => tables.iter().map(String::as_str).collect(),
            What::Message { .. } => Vec::new(),
        }
    }

    /// The value of a column of the new image, or of the old one for a DELETE.
    pub fn get(&self, column: &str) -> Option<&Cell> {
        let What::Row { shape, before, after, .. } = self else { return None };
        let index = shape.columns.iter().position(|(name, _, _)| name == column)?;
        after.as_ref().or(before.as_ref())?.get(index)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Commit {
        after: (Lsn, u32),
        changes: u64,
        total: u64,
    },
    Discard(String),
    /// The stream ended inside.
    Open,
}

/// A transaction, or what of it a stream carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub identity: Identity,
    pub xid: u64,
    pub origin: String,
    pub provenance: i32,
    pub items: Vec<Item>,
    pub ending: Ending,
    /// Index of `begin` and of the last event.
    pub events: (usize, usize),
}

impl Span {
    pub fn committed(&self) -> Option<(Lsn, u32)> {
        match self.ending {
            Ending::Commit { after, .. } => Some(after),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Unit {
    Transaction(Span),
    /// A logical message outside transactions.
    Message {
        item: Item,
        lineage: String,
        after: (Lsn, u32),
        event: usize,
    },
    Progress {
        progress: pb::Progress,
        event: usize,
    },
    Timeline {
        changed: pb::TimelineChanged,
        event: usize,
    },
    Gap {
        gap: pb::Gap,
        event: usize,
    },
    /// A row of a snapshot.
    Read {
        item: Item,
        event: usize,
    },
}

impl Unit {
    /// Resume point and first event of what was committed.
    pub fn committed(&self) -> Option<((Lsn, u32), usize)> {
        match self {
            Unit::Transaction(span) => span.committed().map(|after| (after, span.events.0)),
            Unit::Message { after, event, .. } => Some((*after, *event)),
            _ => None,
        }
    }

    /// Identity and content of what was committed.
    pub fn content(&self) -> Option<(Identity, &[Item])> {
        match self {
            Unit::Transaction(span) if span.committed().is_some() => Some((span.identity.clone(), &span.items)),
            Unit::Message { item, lineage, after, .. } => {
                Some(((lineage.clone(), after.0, after.1), std::slice::from_ref(item)))
            }
            _ => None,
        }
    }
}

/// A history and its reading, one list of units per stream.
#[derive(Debug)]
pub struct Parsed<'a> {
    pub history: &'a History,
    pub streams: Vec<Vec<Unit>>,
}

impl<'a> Parsed<'a> {
    /// Checks Atomic on the way.
    pub fn of(history: &'a History) -> Result<Self, Violation> {
        let streams = history.streams.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Parsed { history, streams })
    }

    /// Every stream with its units.
    pub fn iter(&self) -> impl Iterator<Item = (&'a StreamLog, &[Unit])> {
        self.history.streams.iter().zip(self.streams.iter().map(Vec::as_slice))
    }

    /// Whether some of them came from the log tables while a recovery was blocked: as they were found, so in no exact order.
    pub fn polled(&self) -> bool {
        self.transactions().any(|span| span.provenance == pb::Provenance::LogPoll as i32)
    }

    /// Committed transactions of all streams.
    pub fn transactions(&self) -> impl Iterator<Item = &Span> {
        self.streams.iter().flatten().filter_map(|unit| match unit {
            Unit::Transaction(span) if span.committed().is_some() => Some(span),
            _ => None,
        })
    }

    /// Items of committed transactions of all streams.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.transactions().flat_map(|span| &span.items)
    }
}

const ATOMIC: &str = "Atomic";

fn parse(stream: &StreamLog) -> Result<Vec<Unit>, Violation> {
    let mut units = Vec::new();
    let mut shapes: HashMap<u32, Arc<Shape>> = HashMap::new();
    let mut open: Option<Span> = None;
    let mut snapshot = false;
    for (event, record) in stream.events.iter().enumerate() {
        let wrong = |text: &str| Violation::at(ATOMIC, stream, event, text);
        if (event == 0) != matches!(record.kind, Kind::Opened(_)) {
            return Err(wrong("`opened` is the first event of every stream and comes once"));
        }
        let outside = |open: &Option<Span>, what: &str| match open {
            Some(_) => Err(wrong(&format!("{what} inside a transaction"))),
            None => Ok(()),
        };
        match &record.kind {
            Kind::Opened(_) => {}
            Kind::Begin(begin) => {
                outside(&open, "begin")?;
                open = Some(Span {
                    identity: (begin.lineage.clone(), lsn(&begin.commit_lsn), begin.sequence),
                    xid: begin.xid,
                    origin: begin.origin.clone(),
                    provenance: begin.provenance,
                    items: Vec::new(),
                    ending: Ending::Open,
                    events: (event, event),
                });
            }
            Kind::Relation(relation) => {
                shapes.insert(relation.relation_id, Arc::new(shape(relation)));
            }
            Kind::Change(change) => {
                let item = row(change, &shapes).map_err(|text| wrong(&text))?;
                if change.operation() == pb::Operation::Read {
                    outside(&open, "a row of a snapshot")?;
                    if item.ordinal != 0 || !snapshot {
                        return Err(wrong("READ with an ordinal or outside of a snapshot"));
                    }
                    units.push(Unit::Read { item, event });
                    continue;
                }
                let span = open.as_mut().ok_or_else(|| wrong("a change outside a transaction"))?;
                span.items.push(item);
            }
            Kind::Truncate(truncate) => {
                let named = |id: &u32| shapes.get(id).map(|shape| shape.table.clone());
                let mut tables: Vec<String> = truncate.relation_ids.iter().filter_map(named).collect();
                if tables.len() != truncate.relation_ids.len() {
                    return Err(wrong("a truncate of a relation that the stream has not described"));
                }
                tables
                    .extend(truncate.tables.iter().filter(|name| !tables.contains(name)).cloned().collect::<Vec<_>>());
                let (cascade, restart_identity) = (truncate.cascade, truncate.restart_identity);
                let span = open.as_mut().ok_or_else(|| wrong("a truncate outside a transaction"))?;
                span.items.push(Item {
                    ordinal: truncate.ordinal,
                    what: What::Truncate { tables, cascade, restart_identity },
                });
            }
            Kind::Message(message) => {
                let what = What::Message { prefix: message.prefix.clone(), content: message.content.to_vec() };
                let item = Item { ordinal: message.ordinal, what };
                match (&mut open, &message.position) {
                    (Some(span), None) => span.items.push(item),
                    (None, Some(position)) => units.push(Unit::Message {
                        item,
                        lineage: position.lineage.clone(),
                        after: super::history::order(position),
                        event,
                    }),
                    (Some(_), Some(_)) => return Err(wrong("a message with a position inside a transaction")),
                    (None, None) => return Err(wrong("a message without a position outside a transaction")),
                }
            }
            Kind::Commit(commit) => {
                let mut span = open.take().ok_or_else(|| wrong("commit without begin"))?;
                let position = commit.position.as_ref().ok_or_else(|| wrong("commit without a position"))?;
                if position.lineage != span.identity.0 || position.sequence != span.identity.2 {
                    return Err(wrong("commit names another lineage or sequence than begin"));
                }
                if span.items.len() as u64 != commit.changes {
                    let text = format!("commit counts {} changes, the stream had {}", commit.changes, span.items.len());
                    return Err(wrong(&text));
                }
                if commit.changes > commit.total_changes {
                    return Err(wrong("more changes than the transaction has"));
                }
                let mut last = 0;
                for item in &span.items {
                    if item.ordinal <= last || item.ordinal > commit.total_changes {
                        let text = format!("ordinal {} after {last}, of {}", item.ordinal, commit.total_changes);
                        return Err(wrong(&text));
                    }
                    last = item.ordinal;
                }
                let after = super::history::order(position);
                span.ending = Ending::Commit { after, changes: commit.changes, total: commit.total_changes };
                span.events.1 = event;
                units.push(Unit::Transaction(span));
            }
            Kind::Discard(discard) => {
                let mut span = open.take().ok_or_else(|| wrong("discard without begin"))?;
                span.ending = Ending::Discard(discard.reason.clone());
                span.events.1 = event;
                units.push(Unit::Transaction(span));
            }
            Kind::Progress(progress) => {
                outside(&open, "progress")?;
                units.push(Unit::Progress { progress: progress.clone(), event });
            }
            Kind::TimelineChanged(changed) => {
                outside(&open, "timeline_changed")?;
                units.push(Unit::Timeline { changed: changed.clone(), event });
            }
            Kind::Gap(gap) => {
                outside(&open, "gap")?;
                units.push(Unit::Gap { gap: gap.clone(), event });
            }
            Kind::SnapshotBegin(_) | Kind::SnapshotTableEnd(_) | Kind::SnapshotEnd(_) => {
                outside(&open, "a snapshot event")?;
                if snapshot == matches!(record.kind, Kind::SnapshotBegin(_)) {
                    return Err(wrong("snapshot_begin comes before everything else of a snapshot, and once"));
                }
                snapshot = !matches!(record.kind, Kind::SnapshotEnd(_));
            }
        }
    }
    if let Some(mut span) = open {
        let last = stream.events.len() - 1;
        if matches!(stream.end, End::Completed) {
            return Err(Violation::at(ATOMIC, stream, last, "the stream ended with OK inside a transaction"));
        }
        span.events.1 = last;
        units.push(Unit::Transaction(span));
    }
    Ok(units)
}

fn shape(relation: &pb::Relation) -> Shape {
    let column = |c: &pb::Column| (c.name.clone(), c.type_name.clone(), c.in_identity);
    Shape {
        table: format!("{}.{}", relation.schema, relation.table),
        oid: relation.oid,
        replica_identity: relation.replica_identity,
        columns: relation.columns.iter().map(column).collect(),
    }
}

fn row(change: &pb::Change, shapes: &HashMap<u32, Arc<Shape>>) -> Result<Item, String> {
    let what = if change.before.is_some() || change.after.is_some() {
        struct_row(change)
    } else {
        let shape = shapes.get(&change.relation_id);
        let shape = shape.ok_or_else(|| format!("relation {} has not been described", change.relation_id))?;
        let cells = |row: &Option<pb::Row>| match row {
            None => Ok(None),
            Some(row) if row.values.len() == shape.columns.len() => {
                row.values.iter().map(cell).collect::<Result<_, _>>().map(Some)
            }
            Some(row) => {
                Err(format!("{} values for {} columns of {}", row.values.len(), shape.columns.len(), shape.table))
            }
        };
        What::Row {
            operation: change.operation(),
            shape: shape.clone(),
            before: cells(&change.before_row)?,
            after: cells(&change.after_row)?,
            transition: change.transition,
        }
    };
    Ok(Item { ordinal: change.ordinal, what })
}

/// A value of the wire.
pub fn cell(value: &pb::Value) -> Result<Cell, String> {
    use pb::value::Kind as V;
    Ok(match value.kind.as_ref().ok_or("a value without a kind")? {
        V::Missing(missing) => match pb::Missing::try_from(*missing) {
            Ok(pb::Missing::Null) => Cell::Null,
            Ok(pb::Missing::Unchanged) => Cell::Unchanged,
            Ok(pb::Missing::Absent) => Cell::Absent,
            _ => return Err(format!("missing = {missing}")),
        },
        V::BoolValue(value) => Cell::Bool(*value),
        V::IntValue(value) => Cell::Int(*value),
        V::FloatValue(value) => Cell::Float(value.to_bits()),
        V::BytesValue(value) => Cell::Bytes(value.to_vec()),
        V::Text(value) => Cell::Text(value.clone()),
        V::RawText(value) => Cell::Raw(value.to_vec()),
    })
}

fn struct_row(change: &pb::Change) -> What {
    use prost_types::value::Kind as V;
    let mut names: Vec<&String> = change
        .before
        .iter()
        .chain(&change.after)
        .flat_map(|fields| fields.fields.keys())
        .chain(&change.unchanged)
        .collect();
    names.sort();
    names.dedup();
    let cells = |fields: &Option<prost_types::Struct>, image_is_new: bool| {
        let fields = &fields.as_ref()?.fields;
        let cell = |name: &&String| match fields.get(*name).and_then(|value| value.kind.as_ref()) {
            None if image_is_new && change.unchanged.contains(name) => Cell::Unchanged,
            None => Cell::Absent,
            Some(V::NullValue(_)) => Cell::Null,
            Some(V::BoolValue(value)) => Cell::Bool(*value),
            Some(V::NumberValue(value)) => Cell::Float(value.to_bits()),
            Some(V::StringValue(value)) => Cell::Text(value.clone()),
            Some(other) => Cell::Text(format!("{other:?}")),
        };
        Some(names.iter().map(cell).collect())
    };
    let columns = names.iter().map(|name| ((*name).clone(), String::new(), false)).collect();
    let shape = Shape { table: change.table.clone(), oid: 0, replica_identity: 0, columns };
    What::Row {
        operation: change.operation(),
        before: cells(&change.before, false),
        after: cells(&change.after, true),
        shape: Arc::new(shape),
        transition: change.transition,
    }
}
