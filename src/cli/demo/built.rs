//! Rows built from the stream, as a subscriber would keep them, to be compared with the source's at the end.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    cli::{
        rows::{RowView, table_name, to_text},
        tail::follow::{Item, RowChange},
    },
    lsn::Lsn,
    model::Value,
    wire::pb::{self, event::Kind},
};

/// Lineage, commit LSN, sequence.
type Identity = (String, String, u32);

/// Columns and their texts in the table's order.
type Row = Vec<(String, Option<String>)>;

/// What one subscriber knows.
#[derive(Debug, Default)]
pub struct Built {
    transactions: Vec<Transaction>,
    open: Vec<Change>,
    /// Transactions that `timeline_changed` took back.
    retracted: usize,
    /// The lineage that the last `timeline_changed` led to.
    pub switched_to: Option<String>,
    reached: Option<(String, Lsn)>,
}

#[derive(Debug)]
struct Transaction {
    identity: Identity,
    replayed: bool,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    table: String,
    before: Option<Image>,
    after: Option<Image>,
}

#[derive(Debug)]
struct Image {
    key: Vec<Option<String>>,
    /// Outer `None`: the stream did not send the value, because it has not changed.
    row: Vec<(String, Option<Option<String>>)>,
}

impl Built {
    /// Takes what a subscriber is shown. A transaction counts when it is complete.
    pub fn take(&mut self, item: &Item<'_>) {
        match item {
            Item::Begin { .. } | Item::Discard { .. } => self.open.clear(),
            Item::Change(row) => self.open.push(change(row)),
            Item::Commit { begin, commit } => {
                self.transactions.push(Transaction {
                    identity: identity(begin),
                    replayed: begin.provenance() == pb::Provenance::LogReplay,
                    changes: std::mem::take(&mut self.open),
                });
                self.reaches(commit.position.as_ref());
            }
            Item::Other(Kind::Progress(progress)) => self.reaches(progress.position.as_ref()),
            Item::Other(Kind::TimelineChanged(changed)) => {
                let lost: HashSet<Identity> =
                    changed.retracted.iter().filter_map(|retracted| retracted.begin.as_ref()).map(identity).collect();
                let before = self.transactions.len();
                self.transactions.retain(|transaction| !lost.contains(&transaction.identity));
                self.retracted += before - self.transactions.len();
                self.switched_to = Some(changed.new_lineage.clone());
            }
            _ => {}
        }
    }

    fn reaches(&mut self, position: Option<&pb::Position>) {
        let position = position.and_then(|p| Some((p.lineage.clone(), p.lsn.parse().ok()?)));
        self.reached = position.or(self.reached.take());
    }

    /// Whether everything up to an LSN of the present lineage has come.
    pub fn has_reached(&self, lsn: Lsn) -> bool {
        let present = |lineage: &String| self.switched_to.as_ref().is_none_or(|switched| switched == lineage);
        self.reached.as_ref().is_some_and(|(lineage, reached)| present(lineage) && *reached >= lsn)
    }

    /// Complete transactions that count; of them replayed; taken back.
    pub fn counts(&self) -> (usize, usize, usize) {
        let replayed = self.transactions.iter().filter(|transaction| transaction.replayed).count();
        (self.transactions.len(), replayed, self.retracted)
    }

    /// Transactions from the slot of the new lineage.
    pub fn streamed_since_switch(&self) -> usize {
        let new = |transaction: &&Transaction| Some(&transaction.identity.0) == self.switched_to.as_ref();
        self.transactions.iter().filter(|transaction| new(transaction) && !transaction.replayed).count()
    }

    /// The rows of a table; an error is a change that does not fit what came before it.
    pub fn rows(&self, table: &str) -> Result<Vec<Row>, String> {
        let mut rows: BTreeMap<&[Option<String>], Row> = BTreeMap::new();
        let changes = self.transactions.iter().flat_map(|transaction| &transaction.changes);
        for change in changes.filter(|change| change.table == table) {
            let mut old = None;
            if let Some(before) = &change.before {
                old = Some(
                    rows.remove(before.key.as_slice()).ok_or_else(|| format!("{table}: no row {:?}", before.key))?,
                );
            }
            if let Some(after) = &change.after {
                let row = after.row.iter().map(|(name, value)| {
                    let kept =
                        || old.iter().flatten().find(|(old, _)| old == name).and_then(|(_, value)| value.clone());
                    (name.clone(), value.clone().unwrap_or_else(kept))
                });
                if rows.insert(&after.key, row.collect()).is_some() {
                    return Err(format!("{table}: row {:?} came twice", after.key));
                }
            }
        }
        Ok(rows.into_values().collect())
    }
}

fn identity(begin: &pb::Begin) -> Identity {
    (begin.lineage.clone(), begin.commit_lsn.clone(), begin.sequence)
}

fn change(row: &RowChange<'_>) -> Change {
    let (before, after) = (row.before().map(image), row.after().map(image));
    let before = match (row.change.operation(), before, &after) {
        // Without an old image the identity has not changed.
        (pb::Operation::Update, None, Some(after)) => Some(Image { key: after.key.clone(), row: Vec::new() }),
        (_, before, _) => before,
    };
    Change { table: table_name(row.relation), before, after }
}

fn image(view: RowView<'_>) -> Image {
    let text = |column, value| match value {
        Value::Null => None,
        value => Some(to_text(column, value)),
    };
    let key = view.iter().filter(|(column, _)| column.in_identity).map(|(column, value)| text(column, value));
    let row = view.iter().map(|(column, value)| match value {
        Value::Unchanged | Value::Absent => (column.name.clone(), None),
        value => (column.name.clone(), Some(text(column, value))),
    });
    Image { key: key.collect(), row: row.collect() }
}

/// The rows of a table at the source, with texts as the stream has them.
pub async fn source(client: &Client, table: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
    client.batch_execute("SET timezone = 'UTC'; SET datestyle = 'ISO'").await?;
    let messages = client.simple_query(&format!("SELECT * FROM {table}")).await?;
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = row.columns().iter().enumerate();
            Some(columns.map(|(at, column)| (column.name().to_owned(), row.get(at).map(str::to_owned))).collect())
        }
        _ => None,
    };
    Ok(messages.iter().filter_map(row).collect())
}

/// Of all rows, whatever their order.
pub fn checksum(rows: &[Row]) -> u32 {
    let mut lines: Vec<String> = rows.iter().map(|row| format!("{row:?}")).collect();
    lines.sort_unstable();
    lines.iter().fold(0, |sum, line| crc32c::crc32c_append(sum, line.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        tail::follow::Follower,
        testing::{begin, change, commit, event, position, relation, row, text},
    };

    fn told(events: Vec<pb::Event>) -> Built {
        let (mut built, mut follower) = (Built::default(), Follower::default());
        let mut relation = relation(1, &[("id", true), ("v", false)]);
        (relation.schema, relation.table) = ("public".into(), "t".into());
        for event in [event(Kind::Relation(relation))].into_iter().chain(events) {
            if let Some(item) = follower.accept(event).expect("a valid event") {
                built.take(&item);
            }
        }
        built
    }

    fn write(operation: pb::Operation, id: &str, v: &str) -> pb::Event {
        change(operation, 1, None, Some(row(&[text(id), text(v)])))
    }

    fn values(built: &Built) -> Vec<String> {
        let rows = built.rows("public.t").expect("rows");
        rows.into_iter()
            .map(|row| row.into_iter().filter_map(|(_, value)| value).collect::<Vec<_>>().join("="))
            .collect()
    }

    #[test]
    fn what_was_taken_back_is_not_built() {
        let lineage = position("0/30").lineage;
        let lost = pb::Begin { commit_lsn: "0/30".into(), lineage, ..Default::default() };
        let changed = pb::TimelineChanged {
            retracted: vec![pb::Retracted { begin: Some(lost), ..Default::default() }],
            new_lineage: "new".into(),
            ..Default::default()
        };
        let mut events = vec![begin("0/10", 1), write(pb::Operation::Insert, "1", "a"), commit("0/20")];
        events.extend([begin("0/30", 2), write(pb::Operation::Update, "1", "lost"), commit("0/40")]);
        assert_eq!(values(&told(events.clone())), ["1=lost"]);
        events.push(event(Kind::TimelineChanged(changed)));
        let built = told(events);
        assert_eq!((values(&built), built.counts()), (vec!["1=a".to_owned()], (1, 0, 1)));
        assert!(!built.has_reached(Lsn(0x10)), "that was on the old lineage");
    }

    #[test]
    fn what_comes_twice_or_without_its_row_does_not_fit() {
        let insert = |lsn| vec![begin(lsn, 1), write(pb::Operation::Insert, "1", "a"), commit("0/20")];
        assert!(told([insert("0/10"), insert("0/30")].concat()).rows("public.t").is_err());
        let update = vec![begin("0/10", 1), write(pb::Operation::Update, "1", "a"), commit("0/20")];
        assert!(told(update).rows("public.t").is_err());
        let open = vec![begin("0/10", 1), write(pb::Operation::Insert, "1", "a")];
        assert!(values(&told(open)).is_empty(), "not complete");
    }

    #[test]
    fn a_checksum_is_of_the_rows_and_not_of_their_order() {
        let row = |id: &str| vec![("id".to_owned(), Some(id.to_owned()))];
        assert_eq!(checksum(&[row("1"), row("2")]), checksum(&[row("2"), row("1")]));
        assert_ne!(checksum(&[row("1"), row("2")]), checksum(&[row("1"), row("3")]));
        assert_ne!(checksum(&[vec![("id".into(), None)]]), checksum(&[row("")]));
    }
}
