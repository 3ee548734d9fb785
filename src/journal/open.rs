//! [`Journal::open`]: lock, store, segments, threads, in this order.

use std::{
    fs,
    sync::{Arc, atomic::AtomicUsize},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::{
    Appender, Error, Inner, Journal, OpenTransaction, Options, Recovered, Shared,
    appender::Queue,
    chunk::ChunkCache,
    disk::{DirLock, now, preallocate, sync_dir},
    keeper::{Desk, Keeper},
    map::Map,
    read::find_earliest,
    recovery::{self, Found},
    retention::Expiry,
    ring::Ring,
    segment::FileHeader,
    store::Store,
    syncer::Syncer,
    tail::{Tail, read_begin},
    writer::{Batch, Stop, Writer},
    xids::Xids,
};
use crate::{feed::Marks, metrics, model::Position};

impl Journal {
    /// Opens the journal in `options.dir`, creating it if it is missing, and takes it for this process alone. Blocks
    /// the thread for a moment. Everything that is found is synced before it counts.
    pub fn open(options: Options) -> Result<(Journal, Appender, Recovered), Error> {
        let segments_dir = options.dir.join("segments");
        fs::create_dir_all(&segments_dir).map_err(Error::io(&segments_dir))?;
        let lock = DirLock::take(&options.dir).map_err(Error::io(&options.dir))?;
        let Some(lock) = lock else { return Err(Error::Locked(options.dir)) };
        let store_dir = options.dir.join("sled");
        let (store, loaded) = Store::open(&store_dir).map_err(Error::io(&store_dir))?;
        sync_dir(&options.dir).map_err(Error::io(&options.dir))?;
        let mut known = recovery::sort_rows(&loaded);
        let lost_checkpoints = lost_checkpoints(&loaded.broken, known.lost_checkpoints);
        let found = recovery::find(&segments_dir, &known)?;
        let fresh = found.is_none();
        let mut found = found.unwrap_or_else(|| Found {
            map: Map::default(),
            tail: Tail { next_block: 1, ..Tail::default() },
            resume: None,
            damage: Vec::new(),
            torn: 0,
            rows: Vec::new(),
        });
        found.map.marks = Marks { next_block: found.tail.next_block, tail: found.tail.position };

        let shared = Arc::new(Shared {
            ring: Ring::new(options.ring_bytes, found.tail.next_block),
            chunks: ChunkCache::new(options.cache_bytes),
            marks: watch::Sender::new(found.map.marks),
            complete: watch::Sender::new(found.map.marks.tail),
            lineages: AtomicUsize::new(found.map.history.len()),
            disk_full: watch::Sender::new(false),
            expiry: Expiry::new(),
            xids: Xids::default(),
            reserved: Mutex::default(),
            map: RwLock::new(found.map),
            segments_dir,
            options,
            _lock: lock,
        });
        let desk = Desk::new(std::mem::take(&mut known.checkpoints));
        let queue = Arc::new(Queue::default());
        desk.catalogue(found.rows);
        let last_xid = found.tail.last_xid();
        let mut writer = writer(&shared, &desk, &queue, found.tail, found.resume)?;
        let earliest = find_earliest(&shared.map.read()).map_err(Error::io(&shared.segments_dir))?;
        {
            let mut map = shared.map.write();
            map.earliest = earliest.map(|(position, block, _)| (position, block));
            map.earliest_commit_time = earliest.and_then(|(_, _, time)| time);
            metrics::set(metrics::JOURNAL_BYTES, map.bytes() as f64);
        }
        metrics::set(metrics::JOURNAL_DISK_FULL, 0.0);
        for damage in &found.damage {
            tracing::error!(after = %damage.after, detail = %damage.detail, "the journal is damaged");
        }
        if found.torn > 0 {
            tracing::warn!(bytes = found.torn, "cut what a crash tore off the journal's end");
        }
        let recovered = recovered(&mut writer, last_xid, fresh, found.damage, found.torn, lost_checkpoints);

        let thread_error = |error| Error::io(&shared.options.dir)(error);
        let keeper = Keeper::start(desk.clone(), store, shared.clone()).map_err(thread_error)?;
        let inner = Arc::new(Inner { shared: shared.clone(), desk, _keeper: keeper });
        if shared.options.eager {
            let syncer = Syncer::start(shared.clone(), inner.desk.clone(), queue.clone());
            writer.syncer = Some(syncer.map_err(thread_error)?);
        }
        metrics::set(metrics::JOURNAL_EAGER, f64::from(u8::from(shared.options.eager)));
        let builder = std::thread::Builder::new().name("walcast-journal".into());
        let thread = builder.spawn(move || writer.run()).map_err(thread_error)?;
        let appender = Appender::new(queue, inner.clone(), thread);
        Ok((Journal { inner }, appender, recovered))
    }
}

/// Continues the last segment, or begins one.
fn writer(
    shared: &Arc<Shared>,
    desk: &Arc<Desk>,
    queue: &Arc<Queue>,
    tail: Tail,
    resume: Option<(u64, u64, bool)>,
) -> Result<Writer, Error> {
    let last = shared.map.read().segments.last().cloned();
    let after = tail.position;
    let next = FileHeader {
        number: last.as_ref().map_or(1, |last| last.number + 1),
        first_block: tail.next_block,
        after,
        created: now(),
        salt: fastrand::u64(..),
        preamble: 0,
        replay: false,
    };
    let path = last.as_ref().map_or_else(|| shared.segments_dir.clone(), |last| last.path.clone());
    let open = |path| fs::File::options().read(true).write(true).open(path);
    let file = match &last {
        Some(last) => open(&last.path),
        None => fs::File::open(&shared.segments_dir),
    };
    let mut writer = Writer {
        shared: shared.clone(),
        desk: desk.clone(),
        queue: queue.clone(),
        tail,
        file: Arc::new(file.map_err(Error::io(&path))?),
        header: next,
        offset: 0,
        written: 0,
        synced: 0,
        preallocated: false,
        place: 0,
        has_blocks: false,
        held_rows: Vec::new(),
        syncer: None,
        batch: Batch::default(),
    };
    match (last, resume) {
        (Some(last), Some((offset, place, has_blocks))) => {
            writer.header = FileHeader {
                number: last.number,
                first_block: last.first_block,
                after: last.after,
                created: last.created,
                salt: last.salt,
                preamble: last.preamble,
                replay: false, // complete, or it would have been cut
            };
            (writer.offset, writer.written, writer.synced) = (offset, offset, offset);
            (writer.place, writer.has_blocks) = (place, has_blocks);
            writer.file.set_len(offset).map_err(Error::io(&path))?;
            writer.preallocated = preallocate(&writer.file, shared.options.segment_bytes).unwrap_or(false);
            writer.file.sync_all().map_err(Error::io(&path))?;
        }
        (last, _) => {
            if last.is_some() {
                writer.file.sync_all().map_err(Error::io(&path))?;
            }
            queue.set_stop(true);
            writer.begin(next).map_err(|stop| match stop {
                Stop::Asked => Error::Failed("there is no room on disk for a segment".into()),
                Stop::Fatal(reason) => Error::Failed(reason.into()),
            })?;
            queue.set_stop(false);
        }
    }
    Ok(writer)
}

fn recovered(
    writer: &mut Writer,
    last_xid: Option<u64>,
    fresh: bool,
    damage: Vec<recovery::Damage>,
    torn_bytes: u64,
    lost_checkpoints: Option<String>,
) -> Recovered {
    let polled = writer.tail.polled();
    let tail = &writer.tail;
    let open = tail.open.as_ref().and_then(|open| {
        let transaction = read_begin(&open.begin)?;
        Some(OpenTransaction { transaction, first_block: open.first_block, ordinals: open.ordinals })
    });
    let complete: Position = tail.position;
    Recovered {
        complete,
        lineages: tail.lineages.clone(),
        relations: writer.shared.map.read().relations.values().map(|entry| entry.relation.clone()).collect(),
        current: tail.current.values().cloned().collect(),
        open,
        next_block: tail.next_block,
        horizons: tail.horizons.clone(),
        fresh,
        last_xid,
        polled,
        damage,
        torn_bytes,
        lost_checkpoints,
    }
}

fn lost_checkpoints(broken: &Option<(std::path::PathBuf, String)>, unreadable: usize) -> Option<String> {
    let text = match broken {
        Some((path, why)) => format!("the store did not open ({why}) and was kept as {}", path.display()),
        None if unreadable > 0 => format!("{unreadable} checkpoints are damaged"),
        None => return None,
    };
    tracing::error!(
        detail = text,
        "CHECKPOINTS ARE LOST: their subscribers get CHECKPOINT_MISSING until they name a start"
    );
    Some(text)
}
