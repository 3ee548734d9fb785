//! How a projection is made: one pass over a block's index, runs of events that are sent as they are copied together, and
//! values looked at only where a predicate, a column list or the row format asks for it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{
    Error, RowFormat,
    frames::{self, Message},
    group::Plan,
    projection::{Cut, Failed, Head, Part, Plans, Projection, Tail, head_of},
    rows::{self, Unwritable},
};
use crate::{
    feed::Frame,
    model::{Operation, Position, RelationId},
    selection::Selection,
    wire::{
        block::{Block, Entry, EntryKind, Index, Span, SpanEnd},
        encode,
    },
};

/// Computes a projection. `hits`: the only entries that can be selected, ascending, where that is known; then nothing
/// outside of transactions can be.
pub(super) fn project(
    block: &Block,
    selection: &Selection,
    format: RowFormat,
    plans: &dyn Plans,
    cut: Cut,
    hits: Option<&[u32]>,
) -> Result<Projection, Error> {
    let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
    let mut projector = Projector {
        block,
        payload: frames::payload(block.message()),
        index,
        selection,
        format,
        plans,
        hits,
        current: None,
        relations: Vec::new(),
    };
    if selection.is_everything()
        && format == RowFormat::Compact
        && cut == Cut::default()
        && let Some(projection) = projector.untouched()?
    {
        return Ok(projection);
    }
    projector.select(cut)
}

struct Projector<'a> {
    block: &'a Block,
    payload: &'a [u8],
    index: &'a Index,
    selection: &'a Selection,
    format: RowFormat,
    plans: &'a dyn Plans,
    hits: Option<&'a [u32]>,
    current: Option<(RelationId, Arc<Plan>)>,
    relations: Vec<RelationId>,
}

impl<'a> Projector<'a> {
    fn malformed(&self) -> Error {
        Error::corrupt(self.block.number, "an event does not decode")
    }

    fn slice(&self, start: u32, end: u32) -> Result<&[u8], Error> {
        self.payload.get(start as usize..end as usize).ok_or_else(|| self.malformed())
    }

    fn framed(&self, entry: &Entry) -> Result<&'a [u8], Error> {
        let framed = self.payload.get(entry.offset as usize..(entry.offset + entry.len) as usize);
        framed.ok_or_else(|| self.malformed())
    }

    fn plan(&mut self, id: RelationId) -> Result<Arc<Plan>, Error> {
        if let Some((current, plan)) = &self.current
            && *current == id
        {
            return Ok(plan.clone());
        }
        let plan = self.plans.plan(id)?;
        self.current = Some((id, plan.clone()));
        Ok(plan)
    }

    fn used(&mut self, id: RelationId) {
        if self.relations.last() != Some(&id) && !self.relations.contains(&id) {
            self.relations.push(id);
        }
    }

    fn prefix(&self, start: u32, end: u32) -> Result<&str, Error> {
        let event = frames::first(self.slice(start, end)?).ok_or_else(|| self.malformed())?;
        frames::message_prefix(event.body).ok_or_else(|| self.malformed())
    }

    /// The block as it is; `None` if it holds something of the hub's own.
    fn untouched(&mut self) -> Result<Option<Projection>, Error> {
        let mut last = RelationId(0);
        for entry in &self.index.entries {
            match entry.kind {
                EntryKind::Message => {
                    if !self.selection.messages(self.prefix(entry.offset, entry.offset + entry.len)?) {
                        return Ok(None);
                    }
                }
                EntryKind::Truncate => {
                    let framed = self.framed(entry)?;
                    let named = self.truncated(&mut BytesMut::new(), framed, |_| true)?;
                    for plan in named {
                        if !plan.rules.selected {
                            return Ok(None);
                        }
                        self.used(plan.relation.id);
                    }
                }
                _ if entry.relation == last => {}
                _ => {
                    if !self.plan(entry.relation)?.rules.selected {
                        return Ok(None);
                    }
                    last = entry.relation;
                    self.used(last);
                }
            }
        }
        let mut counted = self.index.entries.len() as u64;
        for span in &self.index.spans {
            if matches!(span.ending, SpanEnd::Message { .. }) {
                if !self.selection.messages(self.prefix(span.start, span.end)?) {
                    return Ok(None);
                }
                counted += 1;
            }
        }
        let size = |span: &Span| u64::from(span.entries.1 - span.entries.0);
        let head = head_of(self.index);
        let tail = self.index.spans.last().filter(|span| span.ending == SpanEnd::Open && span.begin_len > 0);
        Ok(Some(Projection {
            block: self.block.number,
            untouched: true,
            head: head.map(|span| Head {
                part: Part { counted: size(span), ..Part::default() },
                ending: span.ending,
                discard: Bytes::new(),
            }),
            body: Part { message: Frame::new(), events: self.block.events, counted },
            tail: tail.map(|span| Tail { begun: true, counted: size(span) }),
            relations: std::mem::take(&mut self.relations),
            failed: None,
        }))
    }

    fn select(mut self, cut: Cut) -> Result<Projection, Error> {
        self.relations.clear();
        let mut head = None;
        let mut tail = None;
        let mut body = Message::new();
        let (mut events, mut counted) = (0, 0);
        let index = self.index;
        let continued = head_of(index).is_some();
        let mut failed = None;
        for number in (Numbers { index, next: 0, hits: self.hits }) {
            let span = &index.spans[number];
            let before = self.resume_point(number);
            let resume = span.ending.position().unwrap_or(before);
            let dead = |position: Position| cut.up_to.is_some_and(|up_to| position.lsn.0 & !7 > up_to.0);
            let dead = span.ending.position().is_some_and(dead);
            if number == 0 && continued {
                let done = dead
                    || cut.after.is_some_and(|after| match span.ending {
                        SpanEnd::Commit { position, .. } => position.order() <= after.order(),
                        SpanEnd::Discard => before.order() < after.order(),
                        SpanEnd::Open | SpanEnd::Message { .. } => false,
                    });
                match self.head(span, cut.head || done) {
                    Ok(written) => head = Some(written),
                    Err(error) => {
                        failed = Some(Failed::at(before, error)?);
                        break;
                    }
                }
                continue;
            }
            let opens = span.ending == SpanEnd::Open;
            let skipped = match (cut.after, span.ending) {
                (_, SpanEnd::Open) => cut.tail,
                _ if dead => true,
                (Some(after), SpanEnd::Discard) => before.order() < after.order(),
                (Some(after), _) => resume.order() <= after.order(),
                (None, _) => false,
            };
            let mark = body.0.len();
            let (n, own) = match if skipped { Ok((0, 0)) } else { self.span(&mut body, span) } {
                Ok(written) => written,
                Err(error) => {
                    body.0.truncate(mark);
                    failed = Some(Failed::at(before, error)?);
                    break;
                }
            };
            if n == 0 {
                body.0.truncate(mark);
            }
            events += own;
            counted += n;
            if opens {
                tail = Some(Tail { begun: n > 0, counted: n });
            }
        }
        let body = Part { message: body.finish_exact(), events, counted };
        let relations = self.relations;
        Ok(Projection { block: self.block.number, untouched: false, head, body, tail, relations, failed })
    }

    /// The last one before a span.
    fn resume_point(&self, span: usize) -> Position {
        let before = self.index.spans.iter().take(span).rev();
        before.filter_map(|span| span.ending.position()).next().unwrap_or(self.block.after)
    }

    fn head(&mut self, span: &Span, skipped: bool) -> Result<Head, Error> {
        let mut message = Message::new();
        let selected = !skipped && self.origin(self.block.continued_begin())?;
        let counted = if selected { self.entries(&mut message.0, span)? } else { 0 };
        let discard = match span.ending {
            SpanEnd::Discard => Bytes::copy_from_slice(self.slice(span.end_offset, span.end)?),
            _ => Bytes::new(),
        };
        let part = Part { message: message.finish_exact(), events: counted as u32, counted };
        Ok(Head { part, ending: span.ending, discard })
    }

    /// Writes a span that begins in this block; how many events use credit, and how many there are. Nothing counts
    /// if no event uses credit.
    fn span(&mut self, out: &mut Message, span: &Span) -> Result<(u64, u32), Error> {
        if let SpanEnd::Message { .. } = span.ending {
            if !self.selection.origin("") || !self.selection.messages(self.prefix(span.start, span.end)?) {
                return Ok((0, 0));
            }
            out.0.extend_from_slice(self.slice(span.start, span.end)?);
            return Ok((1, 1));
        }
        let begin = self.slice(span.start, span.start + span.begin_len)?;
        if !self.origin(begin)? {
            return Ok((0, 0));
        }
        out.0.extend_from_slice(begin);
        let counted = self.entries(&mut out.0, span)?;
        if counted == 0 {
            return Ok((0, 0));
        }
        match span.ending {
            SpanEnd::Commit { position, total } => encode::commit(&mut out.0, position, counted, total),
            SpanEnd::Discard => out.0.extend_from_slice(self.slice(span.end_offset, span.end)?),
            SpanEnd::Open | SpanEnd::Message { .. } => return Ok((counted, counted as u32 + 1)),
        }
        Ok((counted, counted as u32 + 2))
    }

    fn origin(&self, begin: &[u8]) -> Result<bool, Error> {
        if !self.selection.filters_origins() {
            return Ok(true);
        }
        let event = frames::first(begin).ok_or_else(|| self.malformed())?;
        let begin: crate::wire::pb::Begin = prost::Message::decode(event.body).map_err(|_| self.malformed())?;
        Ok(self.selection.origin(&begin.origin))
    }

    /// Writes the selected entries of a span; how many.
    fn entries(&mut self, out: &mut BytesMut, span: &Span) -> Result<u64, Error> {
        let index = self.index;
        let (from, to) = span.entries;
        let within = |hits: &'a [u32]| {
            let hits = &hits[hits.partition_point(|hit| *hit < from)..];
            &hits[..hits.partition_point(|hit| *hit < to)]
        };
        let hits = self.hits.map(within);
        let count = hits.map_or(to.saturating_sub(from) as usize, <[u32]>::len);
        let mut run = 0..0;
        let mut counted = 0;
        for at in 0..count {
            let number = hits.map_or(from as usize + at, |hits| hits[at] as usize);
            let Some(entry) = index.entries.get(number) else { return Err(self.malformed()) };
            let end = entry.offset + entry.len;
            let fits = match self.verdict(entry)? {
                Verdict::Never => false,
                Verdict::AsIs if run.end == entry.offset && !run.is_empty() => {
                    run.end = end;
                    counted += 1;
                    continue;
                }
                Verdict::AsIs => {
                    out.extend_from_slice(self.slice(run.start, run.end)?);
                    run = entry.offset..end;
                    true
                }
                Verdict::Rewritten => {
                    out.extend_from_slice(self.slice(run.start, run.end)?);
                    run = 0..0;
                    self.rewrite(out, entry)?
                }
            };
            counted += u64::from(fits);
        }
        out.extend_from_slice(self.slice(run.start, run.end)?);
        Ok(counted)
    }

    fn verdict(&mut self, entry: &Entry) -> Result<Verdict, Error> {
        let operation = match entry.kind {
            EntryKind::Message => {
                let selected = self.selection.messages(self.prefix(entry.offset, entry.offset + entry.len)?);
                return Ok(if selected { Verdict::AsIs } else { Verdict::Never });
            }
            EntryKind::Truncate => return Ok(Verdict::Rewritten),
            EntryKind::Insert => Operation::Insert,
            EntryKind::Update => Operation::Update,
            EntryKind::Delete => Operation::Delete,
            EntryKind::Read => Operation::Read,
        };
        let plan = self.plan(entry.relation)?;
        if !plan.rules.passes(operation) {
            return Ok(Verdict::Never);
        }
        if self.format == RowFormat::Struct || plan.rules.columns.is_some() || plan.rules.predicate.is_some() {
            return Ok(Verdict::Rewritten);
        }
        self.used(entry.relation);
        Ok(Verdict::AsIs)
    }

    fn rewrite(&mut self, out: &mut BytesMut, entry: &Entry) -> Result<bool, Error> {
        let framed = self.framed(entry)?;
        if entry.kind == EntryKind::Truncate {
            let named = self.truncated(out, framed, |plan| plan.rules.passes(Operation::Truncate))?;
            for plan in &named {
                self.used(plan.relation.id);
            }
            Ok(!named.is_empty())
        } else {
            let plan = self.plan(entry.relation)?;
            let selected = rows::change(out, framed, &plan, self.format, entry.lsn).map_err(|error| match error {
                Unwritable::Malformed => self.malformed(),
                Unwritable::Undecided(error) => Error::from(error).at(entry.lsn),
            })?;
            if selected {
                self.used(entry.relation);
            }
            Ok(selected)
        }
    }

    /// Appends a truncate of the tables whose plans `keep` keeps; which those are.
    fn truncated(
        &mut self,
        out: &mut BytesMut,
        framed: &[u8],
        keep: impl Fn(&Plan) -> bool,
    ) -> Result<Vec<Arc<Plan>>, Error> {
        let mut named = Vec::new();
        let mut failed = None;
        let written = rows::truncate(out, framed, self.format, |id| match self.plans.plan(id) {
            Ok(plan) if keep(&plan) => {
                let table = plan.relation.qualified_name();
                named.push(plan);
                Some(table)
            }
            Ok(_) => None,
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        match (failed, written) {
            (Some(error), _) => Err(error),
            (None, Ok(_)) => Ok(named),
            (None, Err(_)) => Err(self.malformed()),
        }
    }
}

/// Numbers of the spans that a projection looks at.
struct Numbers<'a> {
    index: &'a Index,
    next: usize,
    hits: Option<&'a [u32]>,
}

impl Iterator for Numbers<'_> {
    type Item = usize;

    /// With hits: the first and the last span, since a transaction may go on there, and every span with a hit.
    fn next(&mut self) -> Option<usize> {
        let spans = &self.index.spans;
        if self.next >= spans.len() {
            return None;
        }
        let mut number = self.next;
        if let Some(hits) = &mut self.hits
            && number > 0
        {
            let from = spans[number].entries.0;
            *hits = &hits[hits.partition_point(|hit| *hit < from)..];
            number = match hits.first() {
                Some(hit) => number + spans[number..].partition_point(|span| span.entries.1 <= *hit),
                None => spans.len() - 1,
            };
        }
        self.next = number + 1;
        (number < spans.len()).then_some(number)
    }
}

enum Verdict {
    Never,
    AsIs,
    Rewritten,
}
