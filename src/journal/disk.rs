//! Files: what the journal asks of the operating system, with the three calls that tests must be able to break behind
//! a trait.

use std::{
    fs::File,
    io::{self, IoSlice},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::{
    buffer::spare_capacity,
    fs::{Advice, FallocateFlags, SeekFrom, fadvise},
};

use super::segment::{FileHeader, Pieces, RECORDS};

/// The calls of the commit path.
pub trait Disk: Send + Sync + 'static {
    /// Writes some of `bufs` at `offset` and says how many bytes.
    fn write(&self, file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(file, bufs, offset)?)
    }

    /// fdatasync.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Bytes that an ordinary user may still write on the file system of `dir`.
    fn available(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Called when nothing that was promised can be kept any more: after a failed fsync the page cache may show data
    /// that the disk never got ([fsyncgate](https://wiki.postgresql.org/wiki/Fsync_Errors)), so trying again proves
    /// nothing and the process ends.
    fn fatal(&self, reason: &str) {
        tracing::error!(reason, "the journal cannot be trusted any more, the process ends");
        std::process::abort();
    }
}

/// The operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

impl Disk for Os {}

/// Whether an error says that there is no room, which time can heal.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes creations, renames and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reserves `len` bytes, so that a sync need not write the file's size. Where the file system cannot, the file grows
/// by writing; whether it could.
pub(super) fn preallocate(file: &File, len: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Path of a segment.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// The segments of a directory, ascending. Other names are not looked at.
pub(super) fn list_segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".seg"))
            .filter(|stem| stem.len() == 16)
            .and_then(|stem| u64::from_str_radix(stem, 16).ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a segment's header.
pub(super) fn read_header(file: &File) -> io::Result<Result<FileHeader, super::segment::BadHeader>> {
    let mut reader = FilePieces::new(file, RECORDS, RECORDS as usize)?;
    let head = reader.piece(0, RECORDS as usize)?;
    Ok(FileHeader::decode(&head))
}

/// Reads a file in pieces of at least `ahead` bytes. Pieces share the buffer they were read into.
#[derive(Debug)]
pub(super) struct FilePieces<'f> {
    file: &'f File,
    end: u64,
    ahead: usize,
    base: u64,
    buffer: Bytes,
}

impl<'f> FilePieces<'f> {
    /// Reads up to `end`, or the file's end if that comes first.
    pub fn new(file: &'f File, end: u64, ahead: usize) -> io::Result<Self> {
        let end = end.min(file.metadata()?.len());
        Ok(FilePieces { file, end, ahead, base: 0, buffer: Bytes::new() })
    }
}

impl Pieces for FilePieces<'_> {
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let len = (len as u64).min(self.end.saturating_sub(offset)) as usize;
        let held = offset >= self.base && offset + len as u64 <= self.base + self.buffer.len() as u64;
        if !held {
            let want = (len.max(self.ahead) as u64).min(self.end.saturating_sub(offset)) as usize;
            self.buffer = read_range(self.file, offset, want)?;
            self.base = offset;
        }
        let start = (offset - self.base) as usize;
        Ok(self.buffer.slice(start..start + len.min(self.buffer.len() - start)))
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        match rustix::fs::seek(self.file, SeekFrom::Data(offset)) {
            Ok(at) => at,
            Err(rustix::io::Errno::NXIO) => self.end,
            Err(_) => offset,
        }
    }
}

/// Reads `len` bytes at `offset`, fewer at the end of the file.
pub(super) fn read_range(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(len);
    Ok(buffer.into())
}

/// Tells the system that this range is about to be read, so that many small reads of it wait for the disk once.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    let _ = fadvise(file, offset, NonZeroU64::new(len), Advice::WillNeed); // advice: reading works without it
}

/// The directory, held exclusively for as long as this lives.
#[derive(Debug)]
pub(super) struct DirLock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl DirLock {
    /// `None` when another process or another journal in this one holds it.
    pub fn take(dir: &Path) -> io::Result<Option<DirLock>> {
        let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(DirLock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The hub's clock, microseconds since 2000-01-01 UTC.
pub(super) fn now() -> i64 {
    const POSTGRES_EPOCH: i64 = 946_684_800_000_000;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX).saturating_sub(POSTGRES_EPOCH)
}
