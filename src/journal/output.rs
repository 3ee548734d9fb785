//! A batch's way to the disk: one vectored write, tried until there is room.

use std::{
    io::{self, IoSlice},
    time::Duration,
};

use super::{
    disk::is_full,
    writer::{Part, Stop, Writer},
};
use crate::metrics;

impl Writer {
    pub fn sync(&self) -> Result<(), Stop> {
        self.shared.options.disk.sync(&self.file).map_err(|error| Stop::Fatal(format!("fdatasync: {error}")))
    }

    pub fn write_batch(&self) -> Result<u64, Stop> {
        let start = self.written;
        self.until_room(|| {
            if !self.preallocated {
                self.check_reserve(self.offset - start)?;
            }
            let result = self.try_write(start);
            if result.is_err() {
                self.file.set_len(start)?;
            }
            result
        })
    }

    fn try_write(&self, start: u64) -> io::Result<u64> {
        const MAX_PARTS: usize = 1024; // IOV_MAX
        let mut at = start;
        for parts in self.batch.parts.chunks(MAX_PARTS) {
            let mut slices: Vec<IoSlice<'_>> = parts
                .iter()
                .map(|part| match part {
                    Part::Scratch(range) => IoSlice::new(&self.batch.scratch[range.clone()]),
                    Part::Message(message) => IoSlice::new(message),
                })
                .collect();
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                match self.shared.options.disk.write(&self.file, rest, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        at += n as u64;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(at - start)
    }

    /// Tries until it works, as long as the only trouble is a full disk.
    pub fn until_room<T>(&self, mut run: impl FnMut() -> io::Result<T>) -> Result<T, Stop> {
        loop {
            match run() {
                Ok(done) => {
                    self.set_disk_full(false);
                    return Ok(done);
                }
                Err(error) if is_full(&error) => {
                    self.set_disk_full(true);
                    if self.queue.wait_for_stop(Duration::from_millis(250)) {
                        return Err(Stop::Asked);
                    }
                }
                Err(error) => return Err(Stop::Fatal(format!("write: {error}"))),
            }
        }
    }

    fn set_disk_full(&self, full: bool) {
        let changed = self.shared.disk_full.send_if_modified(|now| std::mem::replace(now, full) != full);
        if changed && full {
            tracing::error!(dir = %self.shared.options.dir.display(), "no room on disk, the journal waits");
        } else if changed {
            tracing::info!("there is room on disk again");
        }
        if changed {
            metrics::set(metrics::JOURNAL_DISK_FULL, f64::from(u8::from(full)));
        }
    }

    pub fn check_reserve(&self, wanted: u64) -> io::Result<()> {
        let options = &self.shared.options;
        if options.disk.available(&options.dir)? < wanted.saturating_add(options.reserve_bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}
