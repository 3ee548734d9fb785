//! The oracle is PostgreSQL: a second slot, never advanced, read with SQL. It says which transactions the publication
//! holds, in which order, at which LSNs, and with which changes, without a line of the hub's code.

use std::collections::HashMap;

use globset::{Glob, GlobSet, GlobSetBuilder};
use walcast::{lsn::Lsn, wire::pb};

use super::{Cluster, Db};

/// Everything committed since the oracle's slot was made, in commit order.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    pub entries: Vec<Entry>,
}

/// A transaction, or a logical message outside transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Start of the commit record; of a message: its LSN + 1, which is its position.
    pub commit_lsn: Lsn,
    /// The resume point.
    pub end_lsn: Lsn,
    /// Without epoch; 0 for a message outside transactions.
    pub xid: u32,
    pub items: Vec<Expected>,
}

/// One counted event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// From 1 in the transaction, before any filter; 0 for a message outside transactions.
    pub ordinal: u64,
    pub what: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Row(pb::Operation, String),
    Truncate(Vec<String>),
    Message(String, Vec<u8>),
}

/// The name of the oracle's slot.
pub const SLOT: &str = "oracle";

/// Makes the oracle's slot; before the first change that matters.
pub async fn watch(db: &Db) {
    db.run(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")).await;
}

/// Reads the truth. The publication may hold less than the database.
pub async fn read(cluster: &Cluster, database: &str, publication: &str) -> Truth {
    read_from(cluster, database, publication, SLOT).await
}

/// The same from any slot, which is not advanced.
pub async fn read_from(cluster: &Cluster, database: &str, publication: &str, slot: &str) -> Truth {
    let db = cluster.connect_to(database).await;
    if db.text("SHOW server_encoding").await.as_deref() == Some("SQL_ASCII") {
        // With UTF8 on the client's side the server refuses to send the bytes that such a database may hold.
        db.run("SET client_encoding = 'SQL_ASCII'").await;
    }
    let sql = format!(
        "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, \
         'proto_version', '1', 'publication_names', '{publication}', 'messages', 'true')"
    );
    let mut truth = Truth::default();
    let mut tables: HashMap<u32, String> = HashMap::new();
    let mut open: Option<Entry> = None;
    for row in db.query(&sql, &[]).await.unwrap_or_else(|error| panic!("oracle: {}", super::cluster::describe(&error)))
    {
        let data: &[u8] = row.get(1);
        let mut message = Bytes(&data[1..]);
        let what = match data[0] {
            b'B' => {
                let commit_lsn = Lsn(message.u64());
                message.u64();
                open = Some(Entry { commit_lsn, end_lsn: commit_lsn, xid: message.u32(), items: Vec::new() });
                continue;
            }
            b'C' => {
                message.u8();
                message.u64();
                let mut entry = open.take().expect("commit after begin");
                entry.end_lsn = Lsn(message.u64());
                if !entry.items.is_empty() {
                    truth.entries.push(entry);
                }
                continue;
            }
            b'R' => {
                let oid = message.u32();
                let schema = message.text();
                tables.insert(oid, format!("{schema}.{}", message.text()));
                continue;
            }
            b'I' => Op::Row(pb::Operation::Insert, tables[&message.u32()].clone()),
            b'U' => Op::Row(pb::Operation::Update, tables[&message.u32()].clone()),
            b'D' => Op::Row(pb::Operation::Delete, tables[&message.u32()].clone()),
            b'T' => {
                let count = message.u32();
                message.u8();
                Op::Truncate((0..count).map(|_| tables[&message.u32()].clone()).collect())
            }
            b'M' => {
                let transactional = message.u8() == 1;
                let lsn = Lsn(message.u64());
                let prefix = message.text();
                let len = message.u32() as usize;
                let what = Op::Message(prefix, message.0[..len].to_vec());
                if !transactional {
                    let position = Lsn(lsn.0 + 1);
                    let items = vec![Expected { ordinal: 0, what }];
                    truth.entries.push(Entry { commit_lsn: position, end_lsn: position, xid: 0, items });
                    continue;
                }
                what
            }
            _ => continue, // types and origins
        };
        match &what {
            Op::Row(_, table) if !ours(table) => continue,
            Op::Truncate(tables) if !tables.iter().any(|table| ours(table)) => continue,
            _ => {}
        }
        let entry = open.as_mut().expect("a change inside a transaction");
        entry.items.push(Expected { ordinal: entry.items.len() as u64 + 1, what });
    }
    truth
}

impl Truth {
    /// What a filter leaves, judged by tables, operations and message prefixes. Columns do not change which events
    /// come; `where`, rules and origins are the scenario's to check.
    pub fn selected(&self, filter: Option<&pb::Filter>) -> Truth {
        let selector = filter.map(Selector::new);
        let mut known: HashMap<String, bool> = HashMap::new();
        let mut has_table = |table: &str| match known.get(table) {
            Some(selected) => *selected,
            None => {
                let selected = ours(table) && selector.as_ref().is_none_or(|selector| selector.has_table(table));
                known.insert(table.to_owned(), selected);
                selected
            }
        };
        let has_operation = |operation: pb::Operation| {
            filter.is_none_or(|f| f.operations.is_empty() || f.operations.contains(&(operation as i32)))
        };
        let mut selects = |item: &Expected| match &item.what {
            Op::Message(prefix, _) => selector.as_ref().is_none_or(|s| s.prefixes.is_match(prefix)),
            Op::Row(operation, table) => has_operation(*operation) && has_table(table),
            Op::Truncate(tables) => {
                has_operation(pb::Operation::Truncate) && tables.iter().any(|table| has_table(table))
            }
        };
        let keep = |entry: &Entry| {
            let items: Vec<Expected> = entry.items.iter().filter(|item| selects(item)).cloned().collect();
            (!items.is_empty()).then_some(Entry { items, ..*entry })
        };
        Truth { entries: self.entries.iter().filter_map(keep).collect() }
    }

    /// The first entry after a position.
    pub fn successor(&self, after: Lsn) -> Option<&Entry> {
        self.entries.get(self.entries.partition_point(|entry| entry.end_lsn <= after))
    }

    /// The resume point of the last entry.
    pub fn end(&self) -> Lsn {
        self.entries.last().map_or(Lsn::ZERO, |entry| entry.end_lsn)
    }

    pub fn changes(&self) -> usize {
        self.entries.iter().map(|entry| entry.items.len()).sum()
    }
}

/// The schema `walcast` is the hub's own and never reaches a subscriber.
fn ours(table: &str) -> bool {
    !table.starts_with("walcast.")
}

/// The globs of a filter.
struct Selector {
    tables: Option<GlobSet>,
    excluded: GlobSet,
    prefixes: GlobSet,
}

impl Selector {
    fn new(filter: &pb::Filter) -> Self {
        let set = |globs: &[String]| {
            let mut builder = GlobSetBuilder::new();
            for glob in globs {
                builder.add(Glob::new(glob).expect("glob"));
            }
            builder.build().expect("globs")
        };
        Selector {
            tables: (!filter.tables.is_empty()).then(|| set(&filter.tables)),
            excluded: set(&filter.exclude_tables),
            prefixes: set(&filter.message_prefixes),
        }
    }

    fn has_table(&self, table: &str) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.is_match(table)) && !self.excluded.is_match(table)
    }
}

/// Big-endian fields.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N);
        self.0 = rest;
        head.try_into().expect("length")
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).expect("a terminated string");
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        text
    }
}
