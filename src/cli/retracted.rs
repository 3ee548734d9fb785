//! What failovers took back, for `walcast status`: each range with its transactions, as far as the caller may read them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{client::Hub, text::timestamp};
use crate::wire::pb::{self, event::Kind};

/// So many transactions of a lineage are listed; a restore to the past can take back any number.
const LISTED: usize = 20;

/// The transactions of one lineage that never happened on the next.
pub struct Retracted {
    lineage: String,
    transactions: Vec<pb::Begin>,
    /// There are others.
    more: bool,
    /// Why there may be others that are not listed.
    error: Option<String>,
}

/// Asks for those of every range that the status names.
pub async fn read(hub: &Hub, status: &pb::GetStatusResponse) -> Vec<Retracted> {
    let mut all: Vec<Retracted> = Vec::new();
    let ranges = status.journal.iter().flat_map(|journal| &journal.retracted);
    for range in ranges {
        if all.iter().all(|known| known.lineage != range.old_lineage) {
            all.push(of(hub, &range.old_lineage).await);
        }
    }
    all
}

async fn of(hub: &Hub, lineage: &str) -> Retracted {
    let mut found = Retracted { lineage: lineage.to_owned(), transactions: Vec::new(), more: false, error: None };
    let request = pb::ReadRetractedRequest { old_lineage: lineage.to_owned(), ..Default::default() };
    let reading = async {
        let mut stream = hub.streams().read_retracted(request).await?.into_inner();
        while let Some(part) = stream.message().await? {
            for event in part.events {
                match event.kind {
                    Some(Kind::Begin(_)) if found.transactions.len() == LISTED => {
                        found.more = true;
                        return Ok(());
                    }
                    // A transaction that spans messages begins again in each.
                    Some(Kind::Begin(begin)) if found.transactions.last() != Some(&begin) => {
                        found.transactions.push(begin);
                    }
                    _ => {}
                }
            }
        }
        Ok::<(), tonic::Status>(())
    };
    if let Err(status) = reading.await {
        found.error = Some(hub.explain(status).await.to_string());
    }
    found
}

fn find<'a>(all: &'a [Retracted], range: &pb::RetractedRange) -> Option<&'a Retracted> {
    all.iter().find(|found| found.lineage == range.old_lineage)
}

/// Lines for people, to follow the line of the range.
pub fn pretty(all: &[Retracted], range: &pb::RetractedRange) -> String {
    let mut text = String::new();
    let Some(found) = find(all, range) else { return text };
    for begin in &found.transactions {
        let time = begin.commit_time.as_ref().and_then(timestamp).map_or_else(String::new, |time| time.to_string());
        let _ = writeln!(text, "  transaction {}  commit {}  {time}", begin.xid, begin.commit_lsn);
    }
    if found.more {
        text += "  and others (ReadRetracted)\n";
    }
    if let Some(error) = &found.error {
        let _ = writeln!(text, "  they cannot be read: {error}");
    }
    text
}

/// The same for programs: the range's `transactions`, and whether there are others.
pub fn to_json(all: &[Retracted], range: &pb::RetractedRange) -> (Value, Value) {
    let Some(found) = find(all, range) else { return (Value::Null, Value::Null) };
    let transaction = |begin: &pb::Begin| {
        json!({
            "xid": begin.xid,
            "commit_lsn": begin.commit_lsn,
            "sequence": begin.sequence,
            "commit_time": begin.commit_time.as_ref().and_then(timestamp).map(|time| time.to_string()),
        })
    };
    let transactions = found.transactions.iter().map(transaction).collect();
    (transactions, Value::Bool(found.more || found.error.is_some()))
}
