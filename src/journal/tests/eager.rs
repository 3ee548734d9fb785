//! What is shown before it is durable: who sees it, who must not, and what a power failure leaves of it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::{FileExt, MetadataExt},
};

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::{
    feed::Start,
    journal::{
        Disk, Error,
        conformance::{self, Unit, check_all_starts, fill, read_units},
    },
};

/// A disk whose syncs end when they may, and that knows what a power failure would leave: by inode, how much is written,
/// and how much of it is durable.
#[derive(Default)]
struct Slow {
    held: Mutex<bool>,
    moved: Condvar,
    fails: Mutex<bool>,
    fatal: Mutex<Option<String>>,
    files: Mutex<HashMap<u64, (u64, u64)>>,
}

impl Slow {
    fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.moved.notify_all();
    }

    fn durable(&self, file: &File) -> u64 {
        let inode = file.metadata().expect("a file").ino();
        self.files.lock().get(&inode).map_or(0, |(_, durable)| *durable)
    }
}

impl Disk for Slow {
    fn write(&self, file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let written = rustix::io::pwritev(file, bufs, offset)?;
        let end = offset + written as u64;
        let mut files = self.files.lock();
        // What a new segment begins with is synced before it gets its name.
        let entry = files.entry(file.metadata()?.ino()).or_insert((end, end));
        entry.0 = entry.0.max(end);
        Ok(written)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        let written = self.files.lock().get(&inode).map_or(0, |(written, _)| *written);
        let mut held = self.held.lock();
        while *held {
            self.moved.wait(&mut held);
        }
        drop(held);
        if *self.fails.lock() {
            return Err(io::Error::other("the disk lost it"));
        }
        file.sync_data()?;
        if let Some((_, durable)) = self.files.lock().get_mut(&inode) {
            *durable = (*durable).max(written);
        }
        Ok(())
    }

    fn fatal(&self, reason: &str) {
        *self.fatal.lock() = Some(reason.to_owned());
    }
}

fn eager(disk: &Arc<Slow>, dir: &Path) -> Options {
    Options { disk: disk.clone(), eager: true, ..options(dir) }
}

async fn all(journal: &Journal) -> Vec<Unit> {
    let cursor = journal.locate(Start::Earliest).await.expect("earliest");
    read_units(journal, cursor).await.expect("readable")
}

/// One transaction, appended; where it ends.
async fn one(opened: &mut Opened, script: &mut Script) -> Position {
    script.begin(10);
    script.change(1, 200);
    let end = script.commit();
    let record = script.seal();
    opened.append(record).await;
    end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eager_journal_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Slow::default());
    let mut opened = open(eager(&disk, dir.path()));
    conformance::run(&mut opened).await;
    assert!(opened.journal.shared().map.read().segments.len() > 5, "the suite crosses segments");
    opened.close().await;
    let opened = open(options(dir.path()));
    assert_eq!((opened.recovered.torn_bytes, opened.recovered.damage.len()), (0, 0));
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_run_ahead_of_the_sync_and_nobody_else_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Slow::default());
    let mut opened = open(Options { segment_bytes: 1 << 20, ..eager(&disk, dir.path()) });
    let mut script = opened.start().await;
    let begins = Position::new(script.lineage, Lsn(BEGINS));
    let complete = opened.journal.complete();
    let durable = opened.journal.durable().expect("an eager journal says what is durable");
    assert_eq!((*complete.borrow(), *durable.borrow()), (begins, begins));
    disk.hold(true);
    let mut last = begins;
    for _ in 0..50 {
        last = one(&mut opened, &mut script).await;
    }
    let marks = opened.journal.marks();
    eventually("everything is shown", || marks.borrow().tail == last).await;
    assert_eq!(all(&opened.journal).await, script.units, "from ring and file while no sync has ended");
    assert_eq!((*complete.borrow(), *durable.borrow()), (begins, begins), "PostgreSQL hears of none of it");
    let flushed = tokio::time::timeout(Duration::from_millis(100), opened.appender.flush()).await;
    assert!(flushed.is_err(), "a flush waits for the sync");
    assert!(opened.appender.is_idle(), "and the next block does not");
    disk.hold(false);
    assert_eq!(opened.appender.flush().await.expect("flushed").tail, last);
    assert_eq!((*complete.borrow(), *durable.borrow()), (last, last));
    check_all_starts(&opened.journal, &script, begins).await;
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lineage_is_durable_before_it_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Slow::default());
    let mut opened = open(eager(&disk, dir.path()));
    let mut script = opened.start().await;
    let end = one(&mut opened, &mut script).await;
    opened.flush().await;
    disk.hold(true);
    opened.append(Record::Lineage(lineage(2, end.lsn.0))).await;
    let early = tokio::time::timeout(Duration::from_millis(100), opened.appender.flush()).await;
    assert!(early.is_err());
    assert_eq!((opened.journal.lineages().len(), opened.journal.marks().borrow().tail), (1, end));
    disk.hold(false);
    opened.flush().await;
    assert_eq!(opened.journal.lineages().len(), 2);
    assert_eq!(*opened.journal.complete().borrow(), opened.journal.marks().borrow().tail);
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_an_eager_journal_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Slow::default());
    let mut opened = open(eager(&disk, dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 3).await;
    let complete = *opened.journal.complete().borrow();
    *disk.fails.lock() = true;
    one(&mut opened, &mut script).await;
    let failed = opened.appender.flush().await;
    assert!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
    assert!(disk.fatal.lock().as_deref().is_some_and(|reason| reason.contains("the disk lost it")));
    assert_eq!(*opened.journal.complete().borrow(), complete, "the complete mark never moves after a failed sync");
    let refused = opened.appender.append(script.mark(8)).await;
    assert!(matches!(refused, Err(Error::Failed(_))), "{refused:?}");
}

/// Of what was written behind the last sync, a power failure leaves any pages in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_failure_leaves_a_prefix_with_all_that_postgresql_was_told() {
    const SECTOR: u64 = 512;
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Slow::default());
    let mut opened = open(Options { segment_bytes: 1 << 20, ..eager(&disk, dir.path()) });
    let mut script = opened.start().await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut lost = 0;
    for round in 0..30 {
        fill(&mut opened, &mut script, 1 + round % 3).await;
        disk.hold(true);
        let mut last = script.units.last().expect("a transaction").position;
        for _ in 0..random.usize(1..20) {
            last = one(&mut opened, &mut script).await;
        }
        let marks = opened.journal.marks();
        eventually("everything is shown", || marks.borrow().tail == last).await;
        let told = *opened.journal.complete().borrow();

        let copy = tempfile::tempdir().expect("a directory");
        copy_dir(dir.path(), copy.path());
        for segment in std::fs::read_dir(dir.path().join("segments")).expect("segments") {
            let path = segment.expect("a segment").path();
            let durable = disk.durable(&File::open(&path).expect("a segment"));
            let target = copy.path().join("segments").join(path.file_name().expect("a name"));
            let target = File::options().write(true).open(target).expect("a copy");
            let end = target.metadata().expect("a copy").len();
            let mut at = durable.next_multiple_of(SECTOR);
            while at < end {
                if random.bool() {
                    target.write_all_at(&[0; SECTOR as usize], at).expect("zeros");
                }
                at += SECTOR;
            }
        }
        let crashed = open(options(copy.path()));
        assert_eq!(crashed.recovered.damage, [], "what was torn off was promised to nobody but readers");
        assert!(crashed.recovered.complete.order() >= told.order(), "what PostgreSQL was told is there");
        let units = all(&crashed.journal).await;
        assert_eq!(units, script.units[..units.len()]);
        lost += script.units.len() - units.len();
        crashed.close().await;
        disk.hold(false);
    }
    assert!(lost > 30, "only {lost} transactions were lost: the disk forgets too little");
    opened.close().await;
}
