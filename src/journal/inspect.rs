//! Listing and verifying a journal from its files alone: without a hub, or read-only beside a running one. Blocks the
//! thread.
//!
//! Beside a running hub the last record may be half written, which is not a problem, and segments that retention
//! removes meanwhile are left out.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    Error, Horizon,
    disk::{FilePieces, list_segments, read_header},
    horizon::get_horizon,
    segment::{BadHeader, FileHeader, Kind, RECORDS, RecordHeader, Scanner, Step},
    tail::{get_lineage, get_relation, get_state},
};
use crate::{
    model::{Position, RelationId},
    wire::block::Block,
};

/// A segment as its record headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Number, from 1.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// Bytes up to the end of the last record.
    pub bytes: u64,
    /// Blocks in it.
    pub blocks: u64,
    /// Number of the first one.
    pub first_block: u64,
    /// The resume point in front.
    pub after: Position,
    /// The last resume point in it.
    pub up_to: Position,
    /// Creation by the hub's clock, microseconds since 2000-01-01 UTC.
    pub created: i64,
    /// Earliest and latest of its blocks' commit times, microseconds since 2000-01-01 UTC; `None` without commits.
    pub commit_times: Option<(i64, i64)>,
    /// What is wrong with its header, if something is; the other fields are then empty.
    pub problem: Option<String>,
}

/// Something that must not be in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A segment whose header cannot be read, so nothing in it can.
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Bytes that are not an intact record, below what was known synced.
    Damaged {
        /// The file.
        path: PathBuf,
        /// First bad byte.
        from: u64,
        /// Behind the last.
        to: u64,
        /// Last good position before.
        after: Position,
        /// What does not match.
        detail: String,
    },
    /// Records that do not follow each other, or a file that is missing.
    Gap {
        /// The file behind the gap.
        path: PathBuf,
        /// Offset behind the gap.
        offset: u64,
        /// The block and position that were expected.
        expected: (u64, Position),
        /// Those that were found.
        found: (u64, Position),
    },
    /// A record that passes its checksum and cannot be decoded.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Offset of the record.
        offset: u64,
        /// What it should be.
        detail: String,
    },
    /// A block that uses a relation version which its segment does not define.
    UnknownRelation {
        /// The file.
        path: PathBuf,
        /// Number of the block.
        block: u64,
        /// The version.
        relation: RelationId,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Header { path, detail } => write!(f, "{}: {detail}", path.display()),
            Problem::Damaged { path, from, to, after, detail } => {
                write!(f, "{}: bytes {from}..{to} are damaged ({detail}), after {after}", path.display())
            }
            Problem::Gap { path, offset, expected, found } => write!(
                f,
                "{}: at {offset} block {} after {} was expected, and block {} after {} found",
                path.display(),
                expected.0,
                expected.1,
                found.0,
                found.1
            ),
            Problem::Unreadable { path, offset, detail } => {
                write!(f, "{}: unreadable {detail} at {offset}", path.display())
            }
            Problem::UnknownRelation { path, block, relation } => {
                write!(
                    f,
                    "{}: block {block} uses relation version {}, which is not defined",
                    path.display(),
                    relation.0
                )
            }
        }
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Intact blocks.
    pub blocks: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of intact records.
    pub bytes: u64,
    /// The last resume point.
    pub tail: Position,
    /// Bytes at the end that a crash tore off, or that a hub is just writing. Not a problem.
    pub torn_bytes: u64,
    /// Everything that is wrong, in the order of the journal.
    pub problems: Vec<Problem>,
}

fn open_segments(dir: &Path) -> Result<Vec<(u64, PathBuf, File)>, Error> {
    let dir = dir.join("segments");
    let mut open = Vec::new();
    for (number, path) in list_segments(&dir).map_err(Error::io(&dir))? {
        match File::open(&path) {
            Ok(file) => open.push((number, path, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path)(error)),
        }
    }
    Ok(open)
}

fn header(path: &Path, file: &File, number: u64) -> Result<Result<FileHeader, String>, Error> {
    Ok(match read_header(file).map_err(Error::io(path))? {
        Ok(header) if header.number == number => Ok(header),
        Ok(header) => Err(format!("its header says segment {}", header.number)),
        Err(BadHeader::Version(found)) => return Err(Error::Version { path: path.to_owned(), found }),
        Err(error @ BadHeader::Damaged) => Err(error.to_string()),
    })
}

/// The segments of the journal in `dir`, oldest first. Reads record headers, not payloads.
pub fn list(dir: &Path) -> Result<Vec<SegmentInfo>, Error> {
    let mut listed = Vec::new();
    for (number, path, file) in open_segments(dir)? {
        let header = header(&path, &file, number)?;
        let mut info = SegmentInfo {
            number,
            bytes: 0,
            blocks: 0,
            first_block: header.as_ref().map_or(0, |header| header.first_block),
            after: header.as_ref().map_or(Position::default(), |header| header.after),
            up_to: header.as_ref().map_or(Position::default(), |header| header.after),
            created: header.as_ref().map_or(0, |header| header.created),
            commit_times: None,
            problem: header.as_ref().err().cloned(),
            path,
        };
        if let Ok(header) = header {
            walk(&mut info, &file, header.salt).map_err(Error::io(&info.path))?;
        }
        listed.push(info);
    }
    Ok(listed)
}

fn walk(info: &mut SegmentInfo, file: &File, salt: u64) -> io::Result<()> {
    let mut scanner = Scanner::new(FilePieces::new(file, u64::MAX, 4096)?, salt, RECORDS, false);
    loop {
        match scanner.step()? {
            Step::End { .. } => return Ok(()),
            Step::Damage { .. } => {}
            Step::Record { offset, header, .. } => {
                info.bytes = offset + header.size();
                info.up_to = header.last;
                if header.kind == Kind::Block as u8 {
                    info.blocks += 1;
                    let time = header.commit_time;
                    if time != 0 {
                        let (first, last) = info.commit_times.unwrap_or((time, time));
                        info.commit_times = Some((first.min(time), last.max(time)));
                    }
                }
            }
        }
    }
}

/// The newest horizon that the journal in `dir` has recorded. Reads the last segment only, where the latest ones are
/// repeated; a hub may be writing it.
pub fn horizon(dir: &Path) -> Result<Option<Horizon>, Error> {
    let mut newest = None;
    let Some((number, path, file)) = open_segments(dir)?.pop() else { return Ok(None) };
    let Ok(header) = header(&path, &file, number)? else { return Ok(None) };
    let pieces = FilePieces::new(&file, u64::MAX, 4096).map_err(Error::io(&path))?;
    let mut scanner = Scanner::new(pieces, header.salt, RECORDS, false);
    loop {
        match scanner.step().map_err(Error::io(&path))? {
            Step::End { .. } => return Ok(newest),
            Step::Damage { .. } => {}
            Step::Record { header, payload, .. } => match Kind::from_byte(header.kind) {
                Some(Kind::State) => newest = get_state(&payload).ok().and_then(|state| state.horizons.last().cloned()),
                Some(Kind::Horizon) => newest = get_horizon(&payload).ok(),
                _ => {}
            },
        }
    }
}

/// Reads everything in `dir` and checks it: checksums, the order of numbers and positions, relation versions.
/// `progress` hears how many bytes of how many are done.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Report, Error> {
    let segments = open_segments(dir)?;
    let total = segments.iter().map(|(_, _, file)| file.metadata().map_or(0, |metadata| metadata.len())).sum();
    let mut verifier =
        Verifier { report: Report::default(), expected: None, relations: BTreeSet::new(), done: 0, total, progress };
    let last = segments.last().map(|(number, ..)| *number);
    for (number, path, file) in segments {
        verifier.report.segments += 1;
        match header(&path, &file, number)? {
            Ok(header) => verifier.segment(&path, &file, header, last == Some(number))?,
            Err(detail) => {
                verifier.expected = None;
                verifier.report.problems.push(Problem::Header { path, detail });
            }
        }
    }
    Ok(verifier.report)
}

struct Verifier<'a> {
    report: Report,
    /// Number of the next block and the tail; `None` behind something that cannot be read.
    expected: Option<(u64, Position)>,
    /// Versions that the segment has defined so far.
    relations: BTreeSet<RelationId>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Verifier<'_> {
    fn segment(&mut self, path: &Path, file: &File, header: FileHeader, last: bool) -> Result<(), Error> {
        let len = file.metadata().map_err(Error::io(path))?.len();
        let before = self.done;
        self.relations.clear();
        self.follow(path, 0, (header.first_block, header.after), (header.first_block, header.after));
        let pieces = FilePieces::new(file, len, 1 << 20).map_err(Error::io(path))?;
        let mut scanner = Scanner::new(pieces, header.salt, RECORDS, true);
        let mut proven = if last { RECORDS } else { len };
        let mut damaged: Vec<Problem> = Vec::new();
        loop {
            match scanner.step().map_err(Error::io(path))? {
                Step::End { offset } => {
                    if !last && offset < len {
                        let (from, to, detail) = (offset, len, "zeros".to_owned());
                        let after = self.report.tail;
                        damaged.push(Problem::Damaged { path: path.to_owned(), from, to, after, detail });
                    }
                    break;
                }
                Step::Damage { from, to, detail } => {
                    let (detail, after) = (detail.to_owned(), self.report.tail);
                    damaged.push(Problem::Damaged { path: path.to_owned(), from, to, after, detail });
                    self.expected = None;
                    if to >= len {
                        break;
                    }
                }
                Step::Record { offset, header, payload } => {
                    if header.synced <= offset {
                        proven = proven.max(header.synced);
                    }
                    self.record(path, offset, &header, payload)?;
                    self.done = before + offset + header.size();
                    (self.progress)(self.done, self.total);
                }
            }
        }
        for problem in damaged {
            match problem {
                Problem::Damaged { from, to, .. } if from >= proven => self.report.torn_bytes += to - from,
                problem => self.report.problems.push(problem),
            }
        }
        self.done = before + len;
        (self.progress)(self.done, self.total);
        Ok(())
    }

    /// Checks that `found` is what was expected, and expects `next` from now on.
    fn follow(&mut self, path: &Path, offset: u64, found: (u64, Position), next: (u64, Position)) {
        if let Some(expected) = self.expected.filter(|expected| *expected != found) {
            self.report.problems.push(Problem::Gap { path: path.to_owned(), offset, expected, found });
        }
        self.expected = Some(next);
        self.report.tail = next.1;
    }

    fn record(&mut self, path: &Path, offset: u64, header: &RecordHeader, payload: bytes::Bytes) -> Result<(), Error> {
        self.report.bytes += header.size();
        let Some(kind) = Kind::from_byte(header.kind) else {
            return Err(Error::UnknownRecord { path: path.to_owned(), kind: header.kind });
        };
        let readable = match kind {
            Kind::Block => return self.block(path, offset, header, payload),
            Kind::Mark | Kind::Recovered => Ok(()),
            Kind::Horizon => get_horizon(&payload).map(drop),
            Kind::State => get_state(&payload).map(drop),
            Kind::Lineage => get_lineage(&payload).map(drop),
            Kind::Relation => get_relation(&payload).map(|relation| self.relations.extend([relation.id])),
        };
        if let Err(error) = readable {
            let detail = error.0.to_owned();
            self.report.problems.push(Problem::Unreadable { path: path.to_owned(), offset, detail });
        }
        self.follow(path, offset, (header.block, header.first), (header.block, header.last));
        Ok(())
    }

    fn block(&mut self, path: &Path, offset: u64, header: &RecordHeader, payload: bytes::Bytes) -> Result<(), Error> {
        let decoded = Block::decode(payload).ok().filter(|block| {
            (block.number, block.after, block.up_to) == (header.block, header.first, header.last)
                && block.index().is_ok()
        });
        let Some(block) = decoded else {
            let detail = format!("block {}", header.block);
            self.report.problems.push(Problem::Unreadable { path: path.to_owned(), offset, detail });
            self.expected = None;
            return Ok(());
        };
        self.report.blocks += 1;
        self.report.events += u64::from(block.events);
        let relations: BTreeSet<RelationId> = match block.index() {
            Ok(index) => index.entries.iter().map(|entry| entry.relation).collect(),
            Err(_) => BTreeSet::new(),
        };
        for relation in relations.difference(&self.relations).filter(|relation| relation.0 > 0) {
            let (path, relation) = (path.to_owned(), *relation);
            self.report.problems.push(Problem::UnknownRelation { path, block: block.number, relation });
        }
        let front = self.expected.map_or(block.after, |(_, tail)| tail);
        let backwards =
            block.up_to != block.after && block.up_to.order() <= front.order() || block.after.lineage != front.lineage;
        let found = if backwards { block.after } else { front };
        self.follow(path, offset, (block.number, found), (block.number + 1, block.up_to));
        Ok(())
    }
}
