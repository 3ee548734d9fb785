//! From log rows to the journal's transactions.

use std::{collections::HashMap, future::Future, sync::Arc};

use super::Error;
use crate::{
    lsn::Lsn,
    model::{Datum, OldImage, Operation, Position, Relation, ReplicaIdentity, Transaction},
    postgres::logtables::{
        Field, fields, order,
        read::{Logged, Pending, Published, Shapes},
    },
    reason::Classified,
};

/// Where a replay goes: whoever writes the journal.
pub trait Sink: Send {
    /// Why the journal does not take it.
    type Error: Classified + Send + Sync + 'static;

    /// Whether an attempt that did not end has replayed this transaction.
    fn has_replayed(&self, xid: u64) -> bool;
    /// Whether transactions can be added that count at once: not inside a replay that has not ended.
    fn may_poll(&self) -> bool;
    /// The newest transactions were polled, and no replay has ended since.
    fn polled(&self) -> bool;
    /// What follows counts transaction by transaction.
    fn begin_poll(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Makes durable what was polled.
    fn end_poll(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// What follows counts only with [`Sink::recovered`].
    fn begin_replay(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// A transaction begins.
    fn begin(&mut self, transaction: Transaction);
    /// Numbers a relation version.
    fn relation(&mut self, relation: Relation) -> Arc<Relation>;
    /// A change of the open transaction; images in the columns' order.
    fn change<'a>(
        &mut self,
        relation: &Relation,
        operation: Operation,
        lsn: Lsn,
        old: Option<(OldImage, &[Datum<'a>])>,
        new: Option<&[Datum<'a>]>,
    ) -> Result<(), Self::Error>;
    /// A truncate of one table.
    fn truncate(&mut self, relation: &Relation, lsn: Lsn);
    /// The open transaction ends.
    fn commit(&mut self, position: Position, xid: u64);
    /// Hands over what is full.
    fn pause(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Everything up to here counts.
    fn recovered(&mut self, position: Position, slot: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// A shape as the publication shows it.
struct Version {
    relation: Arc<Relation>,
    taken: Vec<usize>,
}

type Begins<'a> = dyn Fn(&Pending, u32) -> Transaction + Sync + 'a;
type Ends<'a> = dyn Fn(u32) -> Position + Sync + 'a;

/// Takes rows in order and writes transactions.
pub(super) struct Applier<'a, S: Sink> {
    published: &'a Published,
    shapes: &'a Shapes,
    /// By table and id of the shape.
    versions: HashMap<(u32, i64), Version>,
    /// Which version of each published relation was announced last.
    current: HashMap<u32, (u32, i64)>,
    sink: &'a mut S,
    pending: &'a [Pending],
    begins: &'a Begins<'a>,
    ends: &'a Ends<'a>,
    /// Rank, start of the commit record.
    open: Option<(usize, Lsn)>,
    /// Rows of a transaction whose order must be found.
    held: Vec<Logged>,
    transactions: u32,
    rows: u64,
}

impl<'a, S: Sink> Applier<'a, S> {
    pub(super) fn new(
        published: &'a Published,
        shapes: &'a Shapes,
        sink: &'a mut S,
        pending: &'a [Pending],
        begins: &'a Begins<'a>,
        ends: &'a Ends<'a>,
    ) -> Self {
        Applier {
            published,
            shapes,
            versions: HashMap::new(),
            current: HashMap::new(),
            sink,
            pending,
            begins,
            ends,
            open: None,
            held: Vec::new(),
            transactions: 0,
            rows: 0,
        }
    }

    /// The next row; they come by rank, and by id within it.
    pub(super) async fn row(&mut self, row: Logged) -> Result<(), Error<S::Error>> {
        if self.held.first().is_some_and(|held| held.rank != row.rank) {
            self.release().await?;
        }
        match self.pending.get(row.rank).is_some_and(|transaction| transaction.tangled) {
            true => self.held.push(row),
            false => self.apply(&row).await?,
        }
        Ok(())
    }

    /// The last row has come. How many transactions and rows there were.
    pub(super) async fn finish(&mut self) -> Result<(u32, u64), Error<S::Error>> {
        self.release().await?;
        self.commit();
        Ok((self.transactions, self.rows))
    }

    async fn release(&mut self) -> Result<(), Error<S::Error>> {
        for row in order::untangle(std::mem::take(&mut self.held)) {
            self.apply(&row).await?;
        }
        Ok(())
    }

    fn commit(&mut self) {
        if let Some((rank, _)) = self.open.take() {
            self.sink.commit((self.ends)(self.transactions), self.pending[rank].xid);
        }
    }

    async fn apply(&mut self, row: &Logged) -> Result<(), Error<S::Error>> {
        if self.open.is_some_and(|(rank, _)| rank != row.rank) {
            self.commit();
        }
        // As pgoutput: what is published is asked of the change that was made, not of what a filter makes of it.
        let Some(op) = row.shown.filter(|_| self.published.publishes(row.op)) else { return Ok(()) };
        let unfit = |detail: String| Error::Row { id: row.id, detail };
        let Some(pending) = self.pending.get(row.rank) else {
            return Err(unfit("its transaction was not asked for".into()));
        };
        let Some(shape) = self.shapes.of(row) else {
            return Err(unfit(format!("no shape of relation {} is known", row.relid)));
        };
        if shape.published == Some(false) {
            return Ok(());
        }
        let key = (row.relid, shape.id);
        let version = self.versions.entry(key).or_insert_with(|| {
            let (relation, taken) = self.published.project(shape);
            Version { relation: Arc::new(relation), taken }
        });
        if row.op == b'T' && version.relation.oid != row.relid {
            return Ok(()); // of a partition that is published under its root's name: the root is not empty
        }
        let lsn = match self.open {
            Some((_, lsn)) => lsn,
            None => {
                self.transactions += 1;
                let transaction = (self.begins)(pending, self.transactions);
                let lsn = transaction.commit_lsn;
                self.sink.begin(transaction);
                self.open = Some((row.rank, lsn));
                lsn
            }
        };
        if self.current.insert(version.relation.oid, key) != Some(key) {
            version.relation = self.sink.relation(Relation::clone(&version.relation));
        }
        write(self.sink, row, op, version, lsn)?;
        self.rows += 1;
        self.sink.pause().await.map_err(Error::Sink)
    }
}

fn write<S: Sink>(sink: &mut S, row: &Logged, op: u8, version: &Version, lsn: Lsn) -> Result<(), Error<S::Error>> {
    let relation = &version.relation;
    let unfit = |detail: String| Error::Row { id: row.id, detail };
    let missing = || unfit("an image is missing".into());
    let old = row.old_row.as_deref().map(|text| image(text, version)).transpose().map_err(unfit)?;
    let new = row.new_row.as_deref().map(|text| image(text, version)).transpose().map_err(unfit)?;
    let full = relation.replica_identity == ReplicaIdentity::Full;
    let key = |old: &[Field<'_>]| -> Vec<bool> {
        relation.columns.iter().zip(old).map(|(column, _)| column.in_identity || full).collect()
    };
    let old_image = if full { OldImage::Full } else { OldImage::Key };
    let done = match op {
        b'I' => {
            let new = new.ok_or_else(missing)?;
            sink.change(relation, Operation::Insert, lsn, None, Some(&datums(&new, None)))
        }
        b'U' => {
            let (old, new) = (old.ok_or_else(missing)?, new.ok_or_else(missing)?);
            let key = key(&old);
            // As the stream has it: the old image comes when it is full, or when the identity changed.
            let changed = full || key.iter().zip(old.iter().zip(&new)).any(|(key, (old, new))| *key && old != new);
            let before = datums(&old, Some(&key));
            let before = changed.then_some((old_image, before.as_slice()));
            sink.change(relation, Operation::Update, lsn, before, Some(&datums(&new, None)))
        }
        b'D' => {
            let old = old.ok_or_else(missing)?;
            let before = datums(&old, Some(&key(&old)));
            sink.change(relation, Operation::Delete, lsn, Some((old_image, &before)), None)
        }
        b'T' => {
            sink.truncate(relation, lsn);
            Ok(())
        }
        other => return Err(unfit(format!("operation {:?}", char::from(other)))),
    };
    done.map_err(Error::Sink)
}

/// The published columns of a row.
fn image<'r>(text: &'r str, version: &Version) -> Result<Vec<Field<'r>>, String> {
    let all = fields(text).map_err(|error| error.to_string())?;
    let picked: Option<Vec<Field<'r>>> = version.taken.iter().map(|at| all.get(*at).cloned()).collect();
    picked.ok_or_else(|| format!("{} columns in a row of {}", all.len(), version.relation.qualified_name()))
}

/// Values for the encoder; outside of `only`, null.
fn datums<'f>(fields: &'f [Field<'_>], only: Option<&[bool]>) -> Vec<Datum<'f>> {
    let taken = |at: usize| only.is_none_or(|only| only.get(at) == Some(&true));
    let datum = |(at, field): (usize, &'f Field<'_>)| match field {
        Some(value) if taken(at) => Datum::Text(value.as_bytes()),
        _ => Datum::Null,
    };
    fields.iter().enumerate().map(datum).collect()
}
