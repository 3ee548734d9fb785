//! `walcast tail`: follows a stream across reconnects and prints what it has not printed before.

pub mod follow;
pub mod json;
pub mod pretty;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use self::{
    follow::{Follower, Item},
    pretty::View,
};
use super::{
    args::{Format, Op, TailArgs},
    client::{Hub, MAX_MESSAGE_BYTES, transport_failure},
    error::{Error, has_no_room_for_subscribers, reason_of},
    output::{Output, terminal_width},
    start::From,
    text::{clock, plural, timestamp},
};
use crate::{
    shutdown::Drain,
    wire::pb::{self, event::Kind},
};

/// Acknowledgements are this far apart at least.
const ACK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the hub may take to answer what is only told beside the stream, and to take the last acknowledgement.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What to follow and how to show it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `None`: everything.
    pub filter: Option<pb::Filter>,
    /// `None`: the checkpoint of a named subscriber, latest for anonymous ones.
    pub from: Option<From>,
    /// Durable name; empty: anonymous.
    pub subscriber: String,
    /// Whether what was printed is acknowledged.
    pub ack: bool,
    /// Changes after which to end.
    pub count: Option<u64>,
    /// Whether to end at the source's present position.
    pub stop_at_tail: bool,
    /// How to print.
    pub format: Format,
    /// Whether JSON has lines for what is no change.
    pub envelope: bool,
    /// How long the hub may take to appear at first.
    pub patience: Duration,
}

impl Options {
    /// What the command line says.
    pub fn new(args: &TailArgs) -> Options {
        Options {
            filter: filter(args),
            from: args.from,
            subscriber: args.subscriber.clone().unwrap_or_default(),
            ack: args.ack,
            count: args.count,
            stop_at_tail: args.stop_at_tail,
            format: args.format,
            envelope: args.envelope,
            patience: Duration::ZERO,
        }
    }
}

fn filter(args: &TailArgs) -> Option<pb::Filter> {
    let operation = |op: &Op| match op {
        Op::Insert => pb::Operation::Insert as i32,
        Op::Update => pb::Operation::Update as i32,
        Op::Delete => pb::Operation::Delete as i32,
        Op::Truncate => pb::Operation::Truncate as i32,
    };
    let filter = pb::Filter {
        tables: args.tables.clone(),
        exclude_tables: args.exclude.clone(),
        operations: args.operations.iter().map(operation).collect(),
        columns: args.columns.clone(),
        r#where: args.predicate.clone().unwrap_or_default(),
        message_prefixes: args.messages.clone(),
        ..Default::default()
    };
    (filter != pb::Filter::default()).then_some(filter)
}

/// How one stream ended.
enum Ended {
    /// Everything that was asked for has been printed.
    Done,
    /// Somebody wants the command to end.
    Stopped,
    /// The stream broke.
    Broken(Status),
}

/// How following ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Changes printed.
    pub changes: u64,
    /// Whether `stop` was told before what the options ask for had come.
    pub interrupted: bool,
}

/// Follows until everything asked for is printed or retrying cannot help. Returns the number of changes printed. Without a
/// count and without an end `stop` is how it ends; with one of them that is an error.
pub async fn run(hub: &Hub, options: &Options, output: &Output, stop: &Drain) -> Result<u64, Error> {
    let followed = run_observed(hub, options, output, stop, &|_| {}).await?;
    match (followed.interrupted, options.count) {
        (false, _) => Ok(followed.changes),
        (true, Some(count)) => Err(Error::Failed(format!("interrupted: {} of {count} changes came", followed.changes))),
        (true, None) => Err(Error::Failed("interrupted before the end".to_owned())),
    }
}

/// The same until `stop` is told; `observe` sees every item once, before it is printed.
pub async fn run_observed(
    hub: &Hub,
    options: &Options,
    output: &Output,
    stop: &Drain,
    observe: &Observe<'_>,
) -> Result<Followed, Error> {
    let mut tail = Tail {
        hub,
        options,
        output,
        stop,
        observe,
        follower: Follower::default(),
        acked: None,
        opened: false,
        begins_late: None,
    };
    let started = Instant::now();
    let mut backoff = FIRST_BACKOFF;
    let mut opened_before = false;
    loop {
        let progressed = tail.follower.resume().cloned();
        let ended = tail.stream().await?;
        tail.follower.disconnected();
        let status = match ended {
            ended @ (Ended::Done | Ended::Stopped) => {
                tail.acknowledge_last().await;
                return Ok(tail.followed(matches!(ended, Ended::Stopped)));
            }
            Ended::Broken(status) => status,
        };
        opened_before |= tail.follower.resume().is_some();
        let is_absent = !opened_before && transport_failure(&status).is_some();
        if is_absent && started.elapsed() >= options.patience {
            return Err(hub.explain(status).await);
        }
        if tail.follower.resume() != progressed.as_ref() {
            backoff = FIRST_BACKOFF;
        }
        let Some(wait) = retry_after(&status, backoff) else { return Err(hub.explain(status).await) };
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
        let is_awaited = !opened_before && started.elapsed() < options.patience;
        if !is_awaited {
            tail.tell_reconnect(&status, wait);
        }
        tokio::select! {
            () = stop.wait() => return Ok(tail.followed(true)),
            () = sleep(wait) => {}
        }
    }
}

/// When to try again: what the hub asks for, or the back-off with full jitter where it could not say (any time up to it,
/// so that subscribers which lost their hub together do not come back together). `None`: never.
fn retry_after(status: &Status, backoff: Duration) -> Option<Duration> {
    if has_no_room_for_subscribers(status) {
        return None;
    }
    let jittered = backoff.mul_f64(fastrand::f64());
    // What the hub asks for is jittered by the hub; one that keeps asking for less than the back-off is not hammered.
    let at_least = (backoff + jittered) / 2;
    if let Some(asked) = status.get_error_details().retry_info().and_then(|info| info.retry_delay) {
        return Some(asked.max(at_least));
    }
    if let Some(reason) = reason_of(status) {
        return reason.retry_after().map(|seconds| Duration::from_secs_f64(seconds).max(at_least));
    }
    // Without a reason it was not the hub that spoke: a connection that was lost shows up as any of these.
    let is_lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    is_lost.then_some(jittered)
}

/// What comes of something that only waits for the hub; `None` once somebody wants the command to end.
async fn unless_stopped<T>(stop: &Drain, waiting: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.wait() => None,
        done = waiting => Some(done),
    }
}

/// Sees what is printed.
pub type Observe<'a> = dyn Fn(&Item<'_>) + Send + Sync + 'a;

struct Tail<'a> {
    hub: &'a Hub,
    options: &'a Options,
    output: &'a Output,
    stop: &'a Drain,
    observe: &'a Observe<'a>,
    follower: Follower,
    acked: Option<pb::Position>,
    /// Whether the hub accepted the present stream.
    opened: bool,
    /// The time that was asked for, of a stream that begins where the journal does.
    begins_late: Option<Timestamp>,
}

impl Tail<'_> {
    fn followed(&self, stopped: bool) -> Followed {
        let changes = self.follower.changes();
        let wanted = self.options.stop_at_tail || self.options.count.is_some_and(|count| changes < count);
        Followed { changes, interrupted: stopped && wanted }
    }

    /// One stream, from where the last one ended.
    async fn stream(&mut self) -> Result<Ended, Error> {
        let request = self.request();
        self.opened = false;
        let opened = tokio::select! {
            () = self.stop.wait() => return Ok(Ended::Stopped),
            opened = self.hub.answered(async { self.hub.streams().subscribe(request).await }) => opened,
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Ended::Broken(status)),
        };
        self.opened = true;
        if self.follower.resume().is_none() && unless_stopped(self.stop, self.tell_unmatched()).await.is_none() {
            return Ok(Ended::Stopped);
        }
        let mut acks = interval(ACK_INTERVAL);
        acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.wait() => return Ok(Ended::Stopped),
                _ = acks.tick(), if self.ack_due().is_some() => {
                    match unless_stopped(self.stop, self.acknowledge()).await {
                        Some(Ok(())) => {}
                        Some(Err(status)) => return Ok(Ended::Broken(status)),
                        None => return Ok(Ended::Stopped), // and sends it again
                    }
                }
                message = next(&mut stream) => match message {
                    Ok(None) => return self.ended(),
                    Err(status) => return Ok(Ended::Broken(status)),
                    Ok(Some(message)) => {
                        self.look_at_beginning(&message.events);
                        if let Some(asked) = self.begins_late.take()
                            && unless_stopped(self.stop, self.tell_beginning(asked)).await.is_none()
                        {
                            return Ok(Ended::Stopped);
                        }
                        if self.show(message.events)? {
                            return Ok(Ended::Done);
                        }
                    }
                },
            }
        }
    }

    fn request(&self) -> pb::SubscribeRequest {
        let start = match self.follower.resume() {
            Some(position) => Some(pb::Start { at: Some(pb::start::At::After(position.clone())) }),
            None => self.options.from.map(|from| from.to_pb(Timestamp::now())),
        };
        pb::SubscribeRequest {
            subscriber: self.options.subscriber.clone(),
            start,
            filter: self.options.filter.clone(),
            row_format: pb::RowFormat::Compact as i32,
            stop_at_tail: self.options.stop_at_tail,
            max_message_bytes: MAX_MESSAGE_BYTES,
            ..Default::default()
        }
    }

    /// The hub ends a stream without an error only when it was asked to stop at the tail.
    fn ended(&self) -> Result<Ended, Error> {
        if self.options.stop_at_tail {
            return Ok(Ended::Done);
        }
        Ok(Ended::Broken(Status::unavailable("the stream ended")))
    }

    /// Prints a message's events; whether the count has been reached.
    fn show(&mut self, events: Vec<pb::Event>) -> Result<bool, Error> {
        let mut text = String::new();
        let view = View { width: terminal_width(), zone: TimeZone::system(), now: Timestamp::now() };
        for event in events {
            let Some(item) = self.follower.accept(event)? else { continue };
            (self.observe)(&item);
            match self.options.format {
                Format::Pretty => view.render(&mut text, &item),
                Format::Json => {
                    if let Some(line) = json::line(&item, self.options.envelope) {
                        text.push_str(&line);
                        text.push('\n');
                    }
                }
            }
            let is_change = matches!(item, Item::Change(_) | Item::Truncate { .. } | Item::Message { .. });
            let is_progress = matches!(item, Item::Other(Kind::Progress(_)));
            if is_change && self.options.count.is_some_and(|count| self.follower.changes() >= count) {
                self.output.print(&text)?;
                return Ok(true);
            }
            if is_progress {
                self.output.status(|| status_line(&self.follower));
            }
        }
        self.output.print(&text)?;
        Ok(self.options.count == Some(0))
    }

    fn ack_due(&self) -> Option<&pb::Position> {
        let resume = self.follower.resume().filter(|_| self.options.ack)?;
        (self.acked.as_ref() != Some(resume)).then_some(resume)
    }

    async fn acknowledge(&mut self) -> Result<(), Status> {
        let Some(position) = self.ack_due().cloned() else { return Ok(()) };
        let request = pb::AcknowledgeRequest {
            subscriber: self.options.subscriber.clone(),
            position: Some(position.clone()),
            session: self.follower.session(),
        };
        self.hub.streams().acknowledge(request).await?;
        self.acked = Some(position);
        Ok(())
    }

    async fn acknowledge_last(&mut self) {
        match tokio::time::timeout(PATIENCE, self.acknowledge()).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => self.output.note(&format!("the last acknowledgement failed: {}", status.message())),
            Err(_) => {
                let waited = PATIENCE.as_secs();
                self.output.note(&format!("the last acknowledgement was not answered in {waited} s"));
            }
        }
    }

    /// Says that what has changed so far matches none of the globs; names without wildcards are the hub's to check.
    async fn tell_unmatched(&self) {
        let tables = self.options.filter.iter().flat_map(|filter| filter.tables.iter().cloned());
        let tables: Vec<String> = tables.collect();
        if tables.is_empty() || !tables.iter().all(|table| table.contains(['*', '?', '[', '{'])) {
            return;
        }
        let shown = tables.join(", ");
        let request = pb::ListRelationsRequest { tables, all_versions: false };
        let known = async { self.hub.streams().list_relations(request).await };
        if let Ok(Ok(known)) = tokio::time::timeout(PATIENCE, known).await
            && known.into_inner().relations.is_empty()
        {
            self.output.note(&format!("! no published table that has changed matches {shown} yet"));
        }
    }

    /// Notes when a time was asked for and the stream begins where the journal does.
    fn look_at_beginning(&mut self, events: &[pb::Event]) {
        let asked = match self.options.from {
            Some(From::At(time)) => time,
            Some(From::Ago(ago)) => Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN),
            _ => return,
        };
        let is_first = self.follower.resume().is_none();
        let at_earliest = |event: &pb::Event| match &event.kind {
            Some(Kind::Opened(opened)) => opened.after.is_some() && opened.after == opened.earliest,
            _ => false,
        };
        self.begins_late = (is_first && events.iter().any(at_earliest)).then_some(asked);
    }

    /// Says that the journal has nothing as old as was asked for, as far as the hub lets this caller know.
    async fn tell_beginning(&self, asked: Timestamp) {
        let status = async { self.hub.admin().get_status(pb::GetStatusRequest {}).await };
        let Ok(Ok(status)) = tokio::time::timeout(PATIENCE, status).await else { return };
        let first = status.into_inner().journal.and_then(|journal| journal.earliest_commit_time);
        let Some(first) = first.as_ref().and_then(timestamp).filter(|first| *first > asked) else { return };
        let shown = clock(first, Timestamp::now(), &TimeZone::system());
        self.output.note(&format!("! the journal begins at {shown}, later than asked"));
    }

    fn tell_reconnect(&self, status: &Status, wait: Duration) {
        let reason = reason_of(status).map_or_else(|| format!("{:?}", status.code()), |r| r.as_str().to_owned());
        let wait = crate::config::units::show_duration(wait);
        let text = status.message();
        self.output.note(&match (self.opened, self.follower.resume()) {
            (false, _) => format!("no stream yet ({reason}: {text}), trying again in {wait}"),
            (true, None) => format!("the stream ended ({reason}: {text}), opening another in {wait}"),
            (true, Some(p)) => format!("the stream ended ({reason}: {text}), resuming after {} in {wait}", p.lsn),
        });
        self.output.status(|| "reconnecting".to_owned());
    }
}

async fn next(stream: &mut Streaming<pb::SubscribeResponse>) -> Result<Option<pb::SubscribeResponse>, Status> {
    stream.message().await
}

fn status_line(follower: &Follower) -> String {
    let Some(progress) = follower.progress() else { return String::new() };
    let lsn = |position: &Option<pb::Position>| position.as_ref().map_or("-", |p| p.lsn.as_str()).to_owned();
    let state = match (progress.source_connected, progress.caught_up) {
        (false, _) => "the source is away".to_owned(),
        (true, true) => "caught up".to_owned(),
        (true, false) => format!("catching up to {}", lsn(&progress.tail)),
    };
    format!("{} · {state} · {}", lsn(&progress.position), plural(follower.changes(), "change"))
}

#[cfg(test)]
mod tests;
