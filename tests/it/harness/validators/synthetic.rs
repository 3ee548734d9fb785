//! Histories and truths made by hand. Transaction `n` has its commit record at n * 100, ends at n * 100 + 50, and
//! inserts two rows into `public.t`.

use std::time::Instant;

use walcast::{
    lsn::Lsn,
    wire::pb::{self, event::Kind},
};

use super::super::{
    history::{End, History, Record, StreamLog},
    parsed::Identity,
    truth::{Entry, Expected, Op, Truth},
};

pub fn end(n: u64) -> Lsn {
    Lsn(n * 100 + 50)
}

pub fn position(n: u64) -> pb::Position {
    on("old", end(n), 0)
}

pub fn identity(n: u64) -> Identity {
    ("old".into(), Lsn(n * 100), 0)
}

fn on(lineage: &str, lsn: Lsn, sequence: u32) -> pb::Position {
    pb::Position { lsn: lsn.to_string(), lineage: lineage.into(), sequence, snapshot: Default::default() }
}

pub fn truth(numbers: impl IntoIterator<Item = u64>) -> Truth {
    let row = |ordinal| Expected { ordinal, what: Op::Row(pb::Operation::Insert, "public.t".into()) };
    let entry =
        |n: u64| Entry { commit_lsn: Lsn(n * 100), end_lsn: end(n), xid: n as u32, items: vec![row(1), row(2)] };
    Truth { entries: numbers.into_iter().map(entry).collect() }
}

pub fn history<const N: usize>(streams: [Script; N]) -> History {
    History { streams: streams.into_iter().map(|script| script.log).collect(), ..History::default() }
}

/// One stream being written.
pub struct Script {
    log: StreamLog,
    lineage: String,
}

pub fn stream(number: usize) -> Script {
    let script = Script { log: StreamLog::new(number, None, None), lineage: "old".into() };
    script.with(Kind::Opened(pb::Opened { after: Some(on("old", Lsn(0), 0)), ..Default::default() }))
}

impl Script {
    fn with(mut self, kind: Kind) -> Self {
        self.log.events.push(Record { at: Instant::now(), kind });
        self.log.end = End::Closed;
        self
    }

    pub fn resuming_after(mut self, n: u64) -> Self {
        self.log.resumes_after = Some(position(n));
        self.log.events.clear();
        self.with(Kind::Opened(pb::Opened { after: Some(position(n)), ..Default::default() }))
    }

    pub fn on(mut self, lineage: &str) -> Self {
        self.lineage = lineage.into();
        self
    }

    fn begin(self, n: u64, sequence: u32) -> Self {
        let relation = pb::Relation {
            relation_id: 1,
            schema: "public".into(),
            table: "t".into(),
            columns: vec![pb::Column { name: "id".into(), in_identity: true, ..Default::default() }],
            ..Default::default()
        };
        let (commit_lsn, lineage) = (Lsn(n * 100).to_string(), self.lineage.clone());
        self.with(Kind::Begin(pb::Begin { commit_lsn, lineage, sequence, xid: n, ..Default::default() }))
            .with(Kind::Relation(relation))
    }

    fn insert(self, id: u64, ordinal: u64) -> Self {
        let value = pb::Value { kind: Some(pb::value::Kind::IntValue(id as i64)) };
        self.with(Kind::Change(pb::Change {
            operation: pb::Operation::Insert as i32,
            relation_id: 1,
            ordinal,
            after_row: Some(pb::Row { values: vec![value] }),
            ..Default::default()
        }))
    }

    fn commit(self, n: u64, sequence: u32, changes: u64, total_changes: u64) -> Self {
        let position = Some(on(&self.lineage, end(n), sequence));
        self.with(Kind::Commit(pb::Commit { position, changes, total_changes }))
    }

    pub fn all(self, numbers: impl IntoIterator<Item = u64>) -> Self {
        let whole =
            |script: Script, n: u64| script.begin(n, 0).insert(n * 2, 1).insert(n * 2 + 1, 2).commit(n, 0, 2, 2);
        numbers.into_iter().fold(self, whole)
    }

    pub fn replayed(self, n: u64, sequence: u32) -> Self {
        self.begin(n, sequence).insert(n, 1).commit(n, sequence, 1, 1)
    }

    pub fn altered(self, n: u64) -> Self {
        self.begin(n, 0).insert(n * 2, 1).insert(999, 2).commit(n, 0, 2, 2)
    }

    pub fn shortened(self, n: u64) -> Self {
        self.begin(n, 0).insert(n * 2, 1).commit(n, 0, 1, 2)
    }

    pub fn miscounted(self, n: u64) -> Self {
        self.begin(n, 0).insert(n * 2, 1).commit(n, 0, 2, 2)
    }

    pub fn open(self, n: u64) -> Self {
        self.begin(n, 0).insert(n * 2, 1)
    }

    pub fn discarded(self, n: u64) -> Self {
        self.open(n).with(Kind::Discard(pb::Discard { reason: "test".into() }))
    }

    pub fn progress(self, n: u64) -> Self {
        let position = Some(on(&self.lineage, end(n), 0));
        self.with(Kind::Progress(pb::Progress { position, ..Default::default() }))
    }

    pub fn switch(self, n: u64, retracted: &[u64]) -> Self {
        let begin = |n: &u64| pb::Begin {
            commit_lsn: Lsn(n * 100).to_string(),
            lineage: "old".into(),
            xid: *n,
            ..Default::default()
        };
        let retracted = retracted.iter().map(|n| pb::Retracted { begin: Some(begin(n)), ..Default::default() });
        let retracted = retracted.collect();
        self.with(Kind::TimelineChanged(pb::TimelineChanged {
            old_lineage: "old".into(),
            new_lineage: "new".into(),
            switch_lsn: end(n).to_string(),
            retracted,
            ..Default::default()
        }))
    }

    pub fn completed(mut self) -> Self {
        self.log.end = End::Completed;
        self
    }
}

mod atomic {
    use super::{super::super::parsed::Parsed, *};

    fn refused(script: Script) -> bool {
        let told = history([script]);
        Parsed::of(&told).is_err_and(|violation| violation.guarantee == "Atomic")
    }

    #[test]
    fn interleaved_miscounted_and_unfinished_transactions_are_caught() {
        assert!(!refused(stream(0).all(1..=3)));
        assert!(!refused(stream(0).all([1]).open(2)), "a stream may break inside");
        assert!(refused(stream(0).open(1).all([2])), "interleaved");
        assert!(refused(stream(0).miscounted(1)), "a change is missing");
        assert!(refused(stream(0).open(1).completed()), "OK inside a transaction");
        assert!(refused(stream(0).commit(1, 0, 0, 0)), "commit without begin");
        assert!(refused(stream(0).insert(1, 1)), "a change outside");
        assert!(refused(stream(0).begin(1, 0).insert(1, 2).insert(2, 1).commit(1, 0, 2, 2)), "ordinals go back");
    }
}
