//! The journal under test: small segments, real files.

mod crash;
mod damage;
mod disk;
mod eager;
mod feed;
mod retention;

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Appender, Journal, Options, Record, Recovered,
    conformance::{Script, Subject, lineage, relation},
};
use crate::{
    feed::{BoxFuture, Feed},
    lsn::Lsn,
    model::Position,
};

pub(super) const BEGINS: u64 = 0x1000;

pub(super) fn options(dir: &Path) -> Options {
    Options {
        segment_bytes: 16 << 10,
        ring_bytes: 4 << 10,
        cache_bytes: 32 << 10,
        index_bytes: 2 << 10,
        reserve_bytes: 0,
        retain_bytes: 1 << 30,
        queue_bytes: 64 << 10,
        ..Options::new(dir)
    }
}

pub(super) struct Opened {
    pub journal: Journal,
    pub appender: Appender,
    pub recovered: Recovered,
}

pub(super) fn open(options: Options) -> Opened {
    let (journal, appender, recovered) = Journal::open(options).expect("a journal that opens");
    Opened { journal, appender, recovered }
}

impl Opened {
    /// A fresh journal's first records.
    pub async fn start(&mut self) -> Script {
        let position = Position::new(lineage(1, 0).id(), Lsn(BEGINS));
        self.append(Record::Lineage(lineage(1, 0))).await;
        self.append(Record::Mark(position)).await;
        self.append(Record::Relation(relation(1, 16384, "a"))).await;
        self.append(Record::Relation(relation(2, 16385, "b"))).await;
        self.flush().await;
        Script::new(position)
    }

    pub async fn close(self) {
        self.appender.shutdown().await.expect("a clean end");
    }
}

impl Subject for Opened {
    fn feed(&self) -> Arc<dyn Feed> {
        Arc::new(self.journal.clone())
    }

    fn append(&mut self, record: Record) -> BoxFuture<'_, ()> {
        Box::pin(async { self.appender.append(record).await.map(|_| ()).expect("appended") })
    }

    fn flush(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.appender.flush().await.map(|_| ()).expect("flushed") })
    }
}

/// Polls until it holds; panics after ten seconds.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Copies a directory as a crash would leave it: what is listed last was created last, so it is copied first, and what
/// is created or renamed meanwhile does not count.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    let entries = std::fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = entries.collect();
    paths.sort();
    for path in paths.iter().rev() {
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy_dir(path, &to.join(name));
        } else if let Err(error) = std::fs::copy(path, to.join(name)) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", path.display());
        }
    }
}
