//! Eager mode's second half: the thread that makes durable what the writer has shown already. The writer writes and shows,
//! and hands over what becomes true with the sync: how far the segment is durable, the complete mark, and catalogue rows.
//! Several groups that were written while one sync ran share the next.

use std::{fs::File, sync::Arc, thread::JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::{Shared, appender::Queue, keeper::Desk, store::Write, writer::Stop};
use crate::{failpoint, metrics, model::Position};

/// What a sync of `file` makes true.
#[derive(Debug)]
pub(super) struct Written {
    pub segment: u64,
    pub file: Arc<File>,
    /// End of what is written.
    pub offset: u64,
    pub complete: Position,
    pub rows: Vec<Write>,
}

#[derive(Debug, Default)]
struct State {
    pending: Option<Written>,
    /// Groups in `pending`.
    groups: usize,
    syncing: bool,
    /// Segment, and how much of it is durable.
    synced: (u64, u64),
    failed: Option<Arc<str>>,
    stop: bool,
}

#[derive(Debug, Default)]
struct Table {
    state: Mutex<State>,
    /// Wakes the syncer.
    work: Condvar,
    /// Wakes the writer: a sync has ended.
    moved: Condvar,
}

/// The running thread. Dropping it syncs what was handed over and waits for that.
#[derive(Debug)]
pub(super) struct Syncer {
    table: Arc<Table>,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub fn start(shared: Arc<Shared>, desk: Arc<Desk>, queue: Arc<Queue>) -> std::io::Result<Syncer> {
        let table = Arc::new(Table::default());
        let thread = std::thread::Builder::new().name("walcast-syncer".into()).spawn({
            let (table, queue) = (table.clone(), queue.clone());
            move || run(&table, &shared, &desk, &queue)
        })?;
        Ok(Syncer { table, queue, thread: Some(thread) })
    }

    /// Leaves a group to be made durable.
    pub fn hand(&self, written: Written) -> Result<(), Stop> {
        let mut state = self.table.state.lock();
        if let Some(reason) = &state.failed {
            return Err(Stop::Fatal(reason.to_string()));
        }
        state.groups += 1;
        self.queue.written();
        match &mut state.pending {
            Some(pending) => {
                let rows = std::mem::take(&mut pending.rows);
                *pending = written;
                pending.rows.splice(0..0, rows);
            }
            none => *none = Some(written),
        }
        drop(state);
        self.table.work.notify_one();
        Ok(())
    }

    /// Returns when everything handed over is durable.
    pub fn settled(&self) -> Result<(), Stop> {
        let mut state = self.table.state.lock();
        loop {
            if let Some(reason) = &state.failed {
                return Err(Stop::Fatal(reason.to_string()));
            }
            if state.pending.is_none() && !state.syncing {
                return Ok(());
            }
            self.table.moved.wait(&mut state);
        }
    }

    /// How much of this segment is durable, as far as the syncer has seen to it.
    pub fn synced(&self, segment: u64) -> Option<u64> {
        let (number, offset) = self.table.state.lock().synced;
        (number == segment).then_some(offset)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.table.state.lock().stop = true;
        self.table.work.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn run(table: &Table, shared: &Shared, desk: &Desk, queue: &Queue) {
    loop {
        let (written, groups) = {
            let mut state = table.state.lock();
            while state.pending.is_none() && !state.stop {
                table.work.wait(&mut state);
            }
            let Some(written) = state.pending.take() else { return };
            state.syncing = true;
            (written, std::mem::take(&mut state.groups))
        };
        failpoint::hit("shown_before_fsync");
        if let Err(error) = shared.options.disk.sync(&written.file) {
            let reason = format!("fdatasync: {error}");
            shared.options.disk.fatal(&reason);
            table.state.lock().failed = Some(reason.as_str().into());
            table.moved.notify_all();
            queue.fail(reason);
            return;
        }
        metrics::add(metrics::JOURNAL_FSYNCS, 1);
        if !written.rows.is_empty() {
            desk.catalogue(written.rows);
        }
        shared.complete.send_replace(written.complete);
        let mut state = table.state.lock();
        state.synced = (written.segment, written.offset);
        state.syncing = false;
        drop(state);
        table.moved.notify_all();
        queue.synced(groups);
    }
}
