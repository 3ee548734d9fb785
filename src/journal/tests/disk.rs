use std::{
    fs::File,
    io::{self, IoSlice},
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst},
};

use parking_lot::Mutex;

use super::*;
use crate::{
    feed::{Fetched, Start},
    journal::{
        Disk, Error,
        conformance::{check_all_starts, fill},
    },
};

/// A disk that fails as told, and looks at the marks while a sync runs.
#[derive(Default)]
struct Broken {
    /// Bytes that may still be written; below zero: any number.
    room: AtomicI64,
    sync_fails: AtomicBool,
    syncs: AtomicU64,
    fatal: Mutex<Option<String>>,
    during_sync: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Broken {
    fn new() -> Arc<Broken> {
        Arc::new(Broken { room: AtomicI64::new(-1), ..Broken::default() })
    }
}

impl Disk for Broken {
    fn write(&self, file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let room = self.room.load(SeqCst);
        if room < 0 {
            return Ok(rustix::io::pwritev(file, bufs, offset)?);
        }
        let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) else { return Ok(0) };
        let some = &first[..first.len().min(room as usize)];
        if some.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room.fetch_sub(some.len() as i64, SeqCst);
        Ok(rustix::io::pwrite(file, some, offset)?)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if let Some(look) = &*self.during_sync.lock() {
            look();
        }
        self.syncs.fetch_add(1, SeqCst);
        if self.sync_fails.load(SeqCst) {
            return Err(io::Error::other("the disk lost it"));
        }
        file.sync_data()
    }

    fn fatal(&self, reason: &str) {
        *self.fatal.lock() = Some(reason.to_owned());
    }
}

fn with(disk: &Arc<Broken>, dir: &Path) -> Options {
    Options { disk: disk.clone(), ..options(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_visible_before_it_is_synced() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Broken::new();
    let mut opened = open(with(&disk, dir.path()));
    let mut script = opened.start().await;
    let written = Arc::new(AtomicU64::new(0));
    let early = Arc::new(AtomicU64::new(0));
    *disk.during_sync.lock() = Some(Box::new({
        let (journal, written, early) = (opened.journal.clone(), written.clone(), early.clone());
        move || {
            let next = journal.marks().borrow().next_block;
            let durable = written.load(SeqCst);
            let mut cursor = crate::feed::Cursor { block: durable + 1, after: Position::default() };
            let hot = matches!(journal.hot(&mut cursor), Some(Fetched::Block(_)));
            early.fetch_add(u64::from(next > durable + 1) + u64::from(hot), SeqCst);
        }
    }));
    for _ in 0..50 {
        script.begin(10);
        script.change(1, 200);
        script.commit();
        let record = script.seal();
        let number = opened.appender.append(record).await.expect("appended");
        opened.flush().await;
        written.store(number, SeqCst);
    }
    assert!(disk.syncs.load(SeqCst) >= 50);
    assert_eq!(early.load(SeqCst), 0, "a block was visible while its sync ran");
    opened.close().await;
    *disk.during_sync.lock() = None;
}

#[tokio::test]
async fn a_failed_sync_is_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Broken::new();
    let mut opened = open(with(&disk, dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 3).await;
    let marks = *opened.journal.marks().borrow();
    disk.sync_fails.store(true, SeqCst);
    script.begin(10);
    script.commit();
    opened.appender.push(script.seal()).expect("queued");
    let failed = opened.appender.flush().await;
    assert!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
    assert!(disk.fatal.lock().as_deref().is_some_and(|reason| reason.contains("the disk lost it")));
    assert_eq!(*opened.journal.marks().borrow(), marks, "the marks never move after a failed sync");
    let refused = opened.appender.append(script.mark(8)).await;
    assert!(matches!(refused, Err(Error::Failed(_))), "{refused:?}");
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Broken::new();
    let mut opened = open(with(&disk, dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 5).await;
    let marks = *opened.journal.marks().borrow();
    let full = opened.journal.disk_full();
    disk.room.store(700, SeqCst);
    for n in 0..200 {
        script.begin(10);
        script.change(1, 500);
        script.commit();
        let record = script.seal();
        match opened.appender.try_room() {
            true => drop(opened.appender.push(record).map_err(|error| panic!("{n}: {error}"))),
            false => panic!("64 KiB hold {n} blocks"),
        }
        if n == 60 {
            break;
        }
    }
    eventually("disk full", || *full.borrow()).await;
    assert_eq!(*opened.journal.marks().borrow(), marks);
    check_prefix(&opened, &script, marks.tail).await;

    let copy = tempfile::tempdir().expect("a directory");
    copy_dir(dir.path(), copy.path());
    let crashed = open(options(copy.path()));
    assert_eq!(crashed.recovered.complete, marks.tail);
    assert_eq!(crashed.recovered.damage, []);
    assert_eq!(crashed.recovered.torn_bytes, 0, "a half written group is cut back before waiting");
    crashed.close().await;

    disk.room.store(-1, SeqCst);
    opened.flush().await;
    assert!(!*full.borrow());
    let begins = Position::new(script.lineage, Lsn(BEGINS));
    check_all_starts(&opened.journal, &script, begins).await;
    opened.close().await;
    let opened = open(options(dir.path()));
    check_all_starts(&opened.journal, &script, begins).await;
    opened.close().await;
}

async fn check_prefix(opened: &Opened, script: &Script, tail: Position) {
    let cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
    let units = crate::journal::conformance::read_units(&opened.journal, cursor).await.expect("readable");
    let end = script.units.partition_point(|unit| unit.position.order() <= tail.order());
    assert_eq!(units, script.units[..end], "reading goes on while the disk is full");
}

#[tokio::test]
async fn append_waits_while_the_queue_is_full_and_stopping_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Broken::new();
    let mut opened = open(with(&disk, dir.path()));
    let mut script = opened.start().await;
    disk.room.store(0, SeqCst);
    let mut appended = 0;
    loop {
        script.begin(10);
        script.change(1, 4000);
        script.commit();
        let record = script.seal();
        match tokio::time::timeout(Duration::from_millis(300), opened.appender.append(record)).await {
            Ok(number) => appended = number.expect("appended"),
            Err(_) => break,
        }
        assert!(appended < 100, "the queue takes everything");
    }
    assert!(appended > 10 && !opened.appender.try_room() && !opened.appender.is_idle());
    let stopped = opened.appender.shutdown().await;
    assert!(matches!(stopped, Err(Error::Failed(_))), "{stopped:?}");
}

#[tokio::test]
async fn queued_marks_become_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Broken::new();
    let mut opened = open(with(&disk, dir.path()));
    let mut script = opened.start().await;
    let len = || opened.journal.shared().map.read().segments[0].len;
    let before = len();
    disk.room.store(0, SeqCst);
    opened.appender.push(script.mark(8)).expect("queued");
    let full = opened.journal.disk_full();
    eventually("disk full", || *full.borrow()).await;
    for _ in 0..100 {
        opened.appender.push(script.mark(8)).expect("queued");
    }
    disk.room.store(-1, SeqCst);
    let marks = opened.appender.flush().await.expect("flushed");
    assert_eq!(marks.tail, script.marks[100]);
    assert_eq!(opened.journal.shared().map.read().segments[0].len - before, 2 * 88);
    opened.close().await;
}

/// Runs a test of this module again, with WALCAST_SMALL_DIR naming a file system of 24 MiB that only it sees.
fn again_on_a_small_file_system(test: &str) {
    let unshare = || {
        let mut command = std::process::Command::new("unshare");
        command.args(["--map-root-user", "--mount"]);
        command
    };
    let dir = tempfile::tempdir().expect("a directory");
    let mount = "mount -t tmpfs -o size=24m none \"$WALCAST_SMALL_DIR\"";
    let possible = unshare().args(["sh", "-c", mount]).env("WALCAST_SMALL_DIR", dir.path()).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("no file systems of one's own here: nothing to look at");
        return;
    }
    let path = format!("{}::{test}", module_path!().trim_start_matches("walcast::"));
    let script = format!("{mount} && exec \"$0\" --exact {path} --nocapture");
    let program = std::env::current_exe().expect("this program");
    let output = unshare().args(["sh", "-c", &script]).arg(program).env("WALCAST_SMALL_DIR", dir.path()).output();
    let output = output.expect("unshare");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "{path} is not the test's name: {told}");
}

/// A real one, where the store meets it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_system_fills_up_and_gets_room_again() {
    use crate::feed::{Checkpoint, Checkpoints, SubscriberKey};
    let Some(small) = std::env::var_os("WALCAST_SMALL_DIR") else {
        return again_on_a_small_file_system("a_small_file_system_fills_up_and_gets_room_again");
    };
    let dir = tempfile::tempdir_in(small).expect("a directory");
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![1; 6 << 20]).expect("room");
    let small = || Options { segment_bytes: 2 << 20, queue_bytes: 1 << 20, ..options(&dir.path().join("journal")) };
    let mut opened = open(small());
    let mut script = opened.start().await;
    let full = opened.journal.disk_full();
    while !*full.borrow() {
        script.begin(10);
        script.change(1, 60_000);
        script.commit();
        let record = script.seal();
        opened.appender.push(record).expect("queued");
        while !opened.appender.try_room() && !*full.borrow() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // What is left goes too, so that the store meets a full disk as well.
    let mut rest = File::create(dir.path().join("rest")).expect("a file");
    while io::Write::write_all(&mut rest, &[1; 4096]).is_ok() {}
    let key = |n: u64| SubscriberKey { principal: String::new(), name: format!("s{n}") };
    let mut durable = Vec::new();
    let mut failed = 0;
    for n in 0..400 {
        let next = Checkpoint { session: n, filter: vec![n as u8; 3000].into(), ..Checkpoint::default() };
        match opened.journal.update(&key(n), Box::new(|_| Some(next))).await {
            Ok(_) => durable.push(n),
            Err(_) => failed += 1,
        }
        if failed > 3 {
            break;
        }
    }
    assert!(failed > 0, "the store never met the full disk");
    for n in &durable {
        assert_eq!(opened.journal.get(&key(*n)).map(|checkpoint| checkpoint.session), Some(*n));
    }
    std::fs::remove_file(dir.path().join("rest")).expect("removed");
    std::fs::remove_file(&filler).expect("removed");
    opened.flush().await;
    assert!(!*full.borrow());
    let next = Checkpoint { session: 9999, ..Checkpoint::default() };
    opened.journal.update(&key(9999), Box::new(|_| Some(next))).await.expect("room again");
    opened.close().await;
    let opened = open(small());
    assert_eq!(opened.recovered.lost_checkpoints, None);
    assert_eq!(opened.recovered.damage, []);
    for n in durable.into_iter().chain([9999]) {
        assert_eq!(opened.journal.get(&key(n)).map(|checkpoint| checkpoint.session), Some(n));
    }
    let cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
    let units = crate::journal::conformance::read_units(&opened.journal, cursor).await.expect("readable");
    assert_eq!(units, script.units);
    opened.close().await;
}
