//! What to subscribe to and how.

use std::{sync::Arc, time::Duration};

use crate::{
    Error, Operation, Start, Subscription, Value,
    connect::Target,
    decode::Decoders,
    error::HubError,
    filter::Rule,
    model::{Gap, Progress, SnapshotEvent, TimelineChanged},
    pb,
    retracted::RetractedTransactions,
    retry::Retry,
};

type Hook<T> = Option<Box<dyn FnMut(&T) + Send>>;

/// What the user wants to be told.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) progress: Hook<Progress>,
    pub(crate) timeline_changed: Hook<TimelineChanged>,
    pub(crate) gap: Hook<Gap>,
    pub(crate) snapshot: Hook<SnapshotEvent>,
    #[allow(clippy::type_complexity)]
    pub(crate) reconnect: Option<Box<dyn FnMut(&HubError, Duration) + Send>>,
}

/// What a subscription asks for.
pub(crate) struct Options {
    pub(crate) filter: pb::Filter,
    pub(crate) subscriber: String,
    pub(crate) start: Option<Start>,
    pub(crate) auto_ack: bool,
    pub(crate) stop_at_tail: bool,
    pub(crate) decoders: Decoders,
    pub(crate) window_events: u64,
    pub(crate) window_bytes: u64,
    pub(crate) max_transaction_bytes: usize,
    pub(crate) progress_interval: Option<prost_types::Duration>,
    pub(crate) retry: Retry,
    pub(crate) hooks: Hooks,
}

/// What to subscribe to and how. Nothing said is everything, anonymously, from now on.
#[must_use]
pub struct SubscriptionBuilder {
    target: Target,
    options: Options,
    wrong: Option<Error>,
}

fn texts<I>(items: I) -> impl Iterator<Item = String>
where
    I: IntoIterator,
    I::Item: Into<String>,
{
    items.into_iter().map(Into::into)
}

impl SubscriptionBuilder {
    pub(crate) fn new(target: Target) -> Self {
        let options = Options {
            filter: pb::Filter::default(),
            subscriber: String::new(),
            start: None,
            auto_ack: true,
            stop_at_tail: false,
            decoders: Decoders::default(),
            window_events: 100_000,
            window_bytes: 8 << 20,
            max_transaction_bytes: 1 << 30,
            progress_interval: None,
            retry: Retry::default(),
            hooks: Hooks::default(),
        };
        SubscriptionBuilder { target, options, wrong: None }
    }

    /// Globs over `schema.table` to add; none is all. A name without wildcards must be published.
    pub fn tables<I: IntoIterator<Item: Into<String>>>(mut self, globs: I) -> Self {
        self.options.filter.tables.extend(texts(globs));
        self
    }

    /// Globs over `schema.table` that are left out, whatever `tables` says.
    pub fn exclude_tables<I: IntoIterator<Item: Into<String>>>(mut self, globs: I) -> Self {
        self.options.filter.exclude_tables.extend(texts(globs));
        self
    }

    /// Operations to add; none is all.
    pub fn operations(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        let numbers = operations.into_iter().map(|operation| pb::Operation::from(operation) as i32);
        self.options.filter.operations.extend(numbers);
        self
    }

    /// Globs over `schema.table.column`; none is all. Columns of the replica identity always come.
    pub fn columns<I: IntoIterator<Item: Into<String>>>(mut self, globs: I) -> Self {
        self.options.filter.columns.extend(texts(globs));
        self
    }

    /// A predicate over columns; [`filter`](crate::filter) quotes for you.
    pub fn r#where(mut self, predicate: impl ToString) -> Self {
        self.options.filter.r#where = predicate.to_string();
        self
    }

    /// Globs over prefixes of logical messages.
    pub fn messages<I: IntoIterator<Item: Into<String>>>(mut self, prefixes: I) -> Self {
        self.options.filter.message_prefixes.extend(texts(prefixes));
        self
    }

    /// Names of replication origins; none is all, and "" names the source itself.
    pub fn origins<I: IntoIterator<Item: Into<String>>>(mut self, origins: I) -> Self {
        self.options.filter.origins.extend(texts(origins));
        self
    }

    /// Other columns, predicates and operations for some tables; the first rule that matches holds.
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.options.filter.rules.extend(rules.into_iter().map(Into::into));
        self
    }

    /// A durable name, 1 to 128 of `[a-zA-Z0-9._-]`, which makes the hub keep its position.
    pub fn subscriber(mut self, name: impl Into<String>) -> Self {
        self.options.subscriber = name.into();
        self
    }

    /// Where to begin; a named subscriber begins there only if it has no checkpoint. The default is latest for an anonymous one,
    /// and for a named one [`Reason::CheckpointMissing`](crate::Reason::CheckpointMissing).
    pub fn start(mut self, start: impl Into<Start>) -> Self {
        self.options.start = Some(start.into());
        self
    }

    /// Whether a transaction is acknowledged when the next one is asked for; default true.
    pub fn auto_ack(mut self, automatically: bool) -> Self {
        self.options.auto_ack = automatically;
        self
    }

    /// End at the position that the source had when the stream was opened.
    pub fn stop_at_tail(mut self) -> Self {
        self.options.stop_at_tail = true;
        self
    }

    /// Leave json and jsonb as text.
    pub fn json_as_text(mut self) -> Self {
        self.options.decoders.json_as_text = true;
        self
    }

    /// Decodes a type's text in another way: an enum for instance. The type's name as in [`Column`](crate::Column).
    pub fn decoder(
        mut self,
        type_name: impl Into<String>,
        decode: impl Fn(&str) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        self.options.decoders.custom.insert(type_name.into(), Arc::new(decode));
        self
    }

    /// What the hub may send ahead, at least 1 of each; default 100,000 events and 8 MiB.
    pub fn window(mut self, events: u64, bytes: u64) -> Self {
        if events == 0 || bytes == 0 {
            self.wrong = Some(Error::Argument("a window is at least 1".into()));
        }
        self.options.window_events = events;
        self.options.window_bytes = bytes;
        self
    }

    /// The largest transaction that is gathered in memory, as it comes over the wire; default 1 GiB.
    pub fn max_transaction_bytes(mut self, bytes: usize) -> Self {
        self.options.max_transaction_bytes = bytes;
        self
    }

    /// Time between two progress events; default 1 s while positions move, 10 s when silent.
    pub fn progress_interval(mut self, interval: Duration) -> Self {
        match interval.try_into() {
            Ok(interval) => self.options.progress_interval = Some(interval),
            Err(_) => self.wrong = Some(Error::Argument("the progress interval is out of range".into())),
        }
        self
    }

    /// When to try again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.options.retry = retry;
        self
    }

    /// Called with each progress.
    pub fn on_progress(mut self, hook: impl FnMut(&Progress) + Send + 'static) -> Self {
        self.options.hooks.progress = Some(Box::new(hook));
        self
    }

    /// Called with each failover, which without is an [`Error::TimelineChanged`].
    pub fn on_timeline_changed(mut self, hook: impl FnMut(&TimelineChanged) + Send + 'static) -> Self {
        self.options.hooks.timeline_changed = Some(Box::new(hook));
        self
    }

    /// Called with each gap, which without is an [`Error::Gap`].
    pub fn on_gap(mut self, hook: impl FnMut(&Gap) + Send + 'static) -> Self {
        self.options.hooks.gap = Some(Box::new(hook));
        self
    }

    /// Called with each event of a snapshot; one that starts over is an [`Error::SnapshotRestarted`] without.
    pub fn on_snapshot(mut self, hook: impl FnMut(&SnapshotEvent) + Send + 'static) -> Self {
        self.options.hooks.snapshot = Some(Box::new(hook));
        self
    }

    /// Called with each loss of the stream, and the time until the next attempt.
    pub fn on_reconnect(mut self, hook: impl FnMut(&HubError, Duration) + Send + 'static) -> Self {
        self.options.hooks.reconnect = Some(Box::new(hook));
        self
    }

    /// Subscribes. Connects when polled.
    ///
    /// # Errors
    /// [`Error::Argument`] if something that was said makes no sense.
    pub fn subscribe(self) -> Result<Subscription, Error> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => Ok(Subscription::new(self.target, self.options)),
        }
    }

    /// Rather than to subscribe: reads the transactions that a failover took back, for as long as the journal retains them.
    /// Of what was said here that counts which selects and decodes. The lineage is `TimelineChanged::old_lineage`, or that of
    /// a position which the hub refuses with [`Reason::PositionDiverged`](crate::Reason::PositionDiverged).
    ///
    /// # Errors
    /// [`Error::Argument`] if something that was said makes no sense; else if the hub refuses or does not answer.
    pub async fn read_retracted(self, lineage: &str) -> Result<RetractedTransactions, Error> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => RetractedTransactions::open(&self.target, lineage, self.options).await,
        }
    }
}
