//! Opening a stream: everything that can be wrong is found before the first message.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    Error, Principal, Retracted, Session, StartAt, Subscription, acknowledge, backfill,
    control::Shared,
    inner::{self, Inner},
    lag,
    router::Routers,
    session::{Claim, Opening},
};
use crate::{
    feed::{self, Checkpoint, Cursor, Resume, Snapshot, SnapshotRequest, Start, SubscriberKey},
    lsn::Lsn,
    model::{Described, Printed, Relation, Spelled},
    reason::{Classified, Reason},
    selection::Selection,
    wire::token::{InvalidToken, Progress, Token},
};

/// Where a stream begins.
struct Begun {
    cursor: Cursor,
    token: Token,
    snapshot: Option<(Snapshot, Option<Arc<Selection>>, watch::Sender<bool>)>,
}

/// A named subscriber as its new session found it.
struct Registered {
    session: u64,
    created: bool,
    filter_changed: bool,
    checkpoint: Option<Resume>,
}

/// The newest version of each table that is published now, of those that the feed has seen.
fn current(versions: Vec<Arc<Relation>>, published: Option<&[(String, String)]>) -> Vec<Arc<Relation>> {
    let by_oid: HashMap<u32, Arc<Relation>> = versions.into_iter().map(|relation| (relation.oid, relation)).collect();
    let mut by_name: HashMap<(String, String), Arc<Relation>> = HashMap::new();
    for relation in by_oid.into_values() {
        let known =
            by_name.entry((relation.schema.clone(), relation.table.clone())).or_insert_with(|| relation.clone());
        if known.id < relation.id {
            *known = relation;
        }
    }
    if let Some(published) = published {
        let published: HashSet<&(String, String)> = published.iter().collect();
        by_name.retain(|name, _| published.contains(name));
    }
    let mut current: Vec<_> = by_name.into_values().collect();
    current.sort_unstable_by_key(|relation| relation.id);
    current
}

impl Inner {
    /// See [`Hub::subscribe`](super::Hub::subscribe).
    pub async fn subscribe(self: &Arc<Self>, principal: &Principal, request: Subscription) -> Result<Session, Error> {
        if self.drain.started() {
            return Err(Error::draining(self.tail()));
        }
        let permit = self.permit()?;
        let key = request.subscriber.as_deref().map(|name| inner::key(principal, name)).transpose()?;
        let (selection, unseen) = self.selection(principal, &request).await?;
        if self.feed.lineage().is_none() {
            return Err(Error::starting());
        }
        let known = key.as_ref().and_then(|key| self.checkpoints.get(key));
        let _creating = match (&key, &known) {
            (Some(_), None) => Some(self.create()?),
            _ => None,
        };
        let start = self.start(request.start.clone(), key.is_some(), known.as_ref())?;
        let at_checkpoint = matches!(request.start, None | Some(StartAt::Checkpoint));
        let claim = match start {
            StartAt::Resume(_) if at_checkpoint => Claim::Checkpoint,
            StartAt::Resume(_) | StartAt::Feed(Start::After(_)) => Claim::Position,
            _ => Claim::Nothing,
        };
        let unseen = unseen.iter().map(|told| &told.relation);
        let group = self.groups.join(&self.feed, selection, request.row_format, unseen);
        Routers::start(&self.groups, &self.feed);
        let Begun { cursor, token, snapshot } =
            Box::pin(self.begin(start, at_checkpoint, &group.selection, principal)).await?;
        let stop_at = match request.stop_at_tail {
            true => Some(self.source.wal().await?.flush),
            false => None,
        };
        let filter_hash = group.selection.filter_hash();
        let registered = match &key {
            Some(key) => self.register(key, &request, filter_hash).await?,
            None => Registered { session: 0, created: false, filter_changed: false, checkpoint: None },
        };
        let shared = Arc::new(Shared::new(
            key,
            registered.session,
            filter_hash,
            request.peer.clone(),
            cursor.after,
            registered.checkpoint,
            request.credits,
        ));
        shared.set_snapshot(snapshot.as_ref().map(|(snapshot, ..)| format!("{:016x}", snapshot.id)));
        if let Some(key) = &shared.key {
            self.registry.open(key, &shared)?;
        }
        Ok(Session::new(Opening {
            group,
            token,
            snapshot,
            hub: self.clone(),
            shared,
            cursor,
            stop_at,
            created: registered.created,
            filter_changed: registered.filter_changed,
            max_message_bytes: request.max_message_bytes,
            progress_interval: request.progress_interval,
            permit,
            claim,
            until: None,
        }))
    }

    /// See [`Hub::read_retracted`](super::Hub::read_retracted).
    pub async fn read_retracted(self: &Arc<Self>, principal: &Principal, request: Retracted) -> Result<Session, Error> {
        if self.drain.started() {
            return Err(Error::draining(self.tail()));
        }
        let permit = self.permit()?;
        let rights = principal.tables.as_ref().map(|tables| tables.as_slice());
        let selection = Selection::compile(request.filter.as_ref(), rights)?;
        let history = self.feed.history();
        if history.rank(request.old_lineage).is_none() {
            return Err(feed::Error::LineageUnknown(request.old_lineage).into());
        }
        let (cursor, until) = match history.crossing(request.old_lineage) {
            Some(crossing) => {
                self.admit(&Start::Earliest)?;
                let _turn = self.turn(crossing.departs.lsn).await;
                (self.feed.locate_dead(&crossing).await?, crossing.to.first_block)
            }
            None => (self.place(Start::Latest).await?, 0),
        };
        let shared = Shared::new(None, 0, selection.filter_hash(), String::new(), cursor.after, None, false);
        Ok(Session::new(Opening {
            group: self.groups.join(&self.feed, selection, request.row_format, []),
            hub: self.clone(),
            shared: Arc::new(shared),
            cursor,
            stop_at: None,
            created: false,
            filter_changed: false,
            max_message_bytes: None,
            progress_interval: None,
            permit,
            claim: Claim::Nothing,
            until: Some(until),
            token: Token::default(),
            snapshot: None,
        }))
    }

    /// A checkpoint that a failover took back is the hub's own business: the stream begins where both histories part, and
    /// first tells what never happened.
    async fn locate_or_common(&self, start: Start, at_checkpoint: bool) -> Result<Cursor, Error> {
        let checkpoint = match start {
            Start::After(checkpoint) if at_checkpoint => checkpoint,
            start => return self.locate(start).await,
        };
        loop {
            if let Err(feed::Error::Diverged { common, .. }) = self.feed.history().check(checkpoint) {
                return Ok(self.place(Start::After(common)).await?);
            }
            match self.locate(Start::After(checkpoint)).await {
                // The history has forked since it was asked.
                Err(error) if error.reason() == Reason::PositionDiverged => tokio::task::yield_now().await,
                located => return located,
            }
        }
    }

    /// What the request selects, and the tables with a predicate that have never changed.
    async fn selection(
        &self,
        principal: &Principal,
        request: &Subscription,
    ) -> Result<(Selection, Vec<Arc<Described>>), Error> {
        let rights = principal.tables.as_ref().map(|tables| tables.as_slice());
        let selection = Selection::compile(request.filter.as_ref(), rights)?;
        if self.check_published(&selection).is_err() {
            self.source.refresh().await;
            if let Err(error) = self.check_published(&selection) {
                return Err(self.refusal(request, error).await);
            }
        }
        let unseen = match selection.has_predicates() {
            true => self.check_predicates(&selection).await?,
            false => Vec::new(),
        };
        Ok((selection, unseen))
    }

    /// Says more of a table that is not published, where rows of it were asked for.
    async fn refusal(&self, request: &Subscription, error: Error) -> Error {
        let table = error.metadata().into_iter().find_map(|(key, table)| (key == "table").then_some(table));
        match (&request.start, self.snapshots.get(), table) {
            (Some(StartAt::Snapshot { .. }), Some(snapshots), Some(table))
                if error.reason() == Reason::TableNotPublished =>
            {
                snapshots.refusal(&table).await.map_or(error, Error::from)
            }
            _ => error,
        }
    }

    /// Holds the predicates against every published table that they are for. The feed has seen those that have changed; the
    /// source tells of the others, which are returned. The feed learns of ALTER TABLE with the table's
    /// next change; so where a predicate does not fit, and for tables by name that were never seen, the source tells
    /// how the table is now.
    async fn check_predicates(&self, selection: &Selection) -> Result<Vec<Arc<Described>>, Error> {
        let published = self.source.published();
        let published = published.as_ref().map(|tables| tables.as_slice());
        let mut current = current(self.feed.relations(), published);
        let is = |relation: &Relation, schema: &str, table: &str| relation.schema == schema && relation.table == table;
        let seen: HashSet<(&str, &str)> = current.iter().map(|seen| (&*seen.schema, &*seen.table)).collect();
        let judged = published.unwrap_or_default().iter().filter(|(schema, table)| selection.judges(schema, table));
        let unseen: Vec<_> = judged.filter(|(schema, table)| !seen.contains(&(schema, table))).cloned().collect();
        let mut others = match unseen.is_empty() {
            true => Vec::new(),
            false => self.source.relations_lately(&unseen).await,
        };
        let fits = |it: &Described| selection.check_relations([(&it.carried, Some(&*it.partial))]).is_ok();
        let unclear = |(schema, table): &&(String, String)| match current.iter().find(|known| is(known, schema, table))
        {
            Some(known) => selection.relation(known).is_err() || self.source.is_uneven(schema, table),
            None => {
                let told = others.iter().find(|told| is(&told.relation, schema, table));
                selection.names(schema, table) || told.is_some_and(|told| !fits(told))
            }
        };
        let asked: Vec<_> = published.unwrap_or_default().iter().filter(unclear).cloned().collect();
        if !asked.is_empty() {
            let now = self.source.relations(&asked).await;
            let is_now = |known: &Relation| now.iter().any(|now| is(known, &now.relation.schema, &now.relation.table));
            current.retain(|known| !is_now(known));
            others.retain(|told| !is_now(&told.relation));
            others.extend(now.into_iter().map(Arc::new));
        }
        let known = current.iter().map(|known| (known.as_ref(), None));
        selection.check_relations(known.chain(others.iter().map(|it| (&it.carried, Some(&*it.partial)))))?;
        let known = current.iter().map(|known| known.as_ref()).chain(others.iter().map(|it| &it.relation));
        self.check_literals(selection, known).await?;
        Ok(others)
    }

    /// Holds literals that compare in text form against the form in which the source prints them.
    async fn check_literals<'a>(
        &self,
        selection: &Selection,
        relations: impl Iterator<Item = &'a Relation>,
    ) -> Result<(), Error> {
        let literals: Vec<_> = relations.flat_map(|relation| selection.literals(relation)).collect();
        let distinct: HashSet<Spelled> = literals.iter().map(|literal| literal.spelled.clone()).collect();
        if distinct.is_empty() {
            return Ok(());
        }
        let distinct: Vec<Spelled> = distinct.into_iter().collect();
        let printed = self.source.printed(&distinct).await;
        let printed: HashMap<Spelled, Printed> =
            distinct.into_iter().zip(printed).filter_map(|(spelled, printed)| Some((spelled, printed?))).collect();
        Ok(selection.check_literals(&literals, |spelled| printed.get(spelled).cloned())?)
    }

    pub fn check_published(&self, selection: &Selection) -> Result<(), Error> {
        let published = self.source.published();
        let known = |table: &str| self.feed.relations().iter().any(|relation| relation.qualified_name() == table);
        Ok(selection.check(published.as_ref().map(|tables| tables.as_slice()), known)?)
    }

    fn start(&self, start: Option<StartAt>, named: bool, known: Option<&Checkpoint>) -> Result<StartAt, Error> {
        let checkpoint = known.and_then(|known| {
            let position = known.position?;
            Some(Resume { position, snapshot: known.snapshot.clone() })
        });
        match (start, named, checkpoint) {
            (Some(start @ (StartAt::Feed(_) | StartAt::Resume(_) | StartAt::Snapshot { .. })), _, _) => Ok(start),
            (None, false, _) => Ok(StartAt::Feed(Start::Latest)),
            (_, true, Some(checkpoint)) => Ok(StartAt::Resume(checkpoint)),
            (_, true, None) => Err(Error::checkpoint_missing("the subscriber has no checkpoint; give a start")),
            (Some(StartAt::Checkpoint), false, _) => {
                Err(Error::checkpoint_missing("an anonymous stream has no checkpoint"))
            }
        }
    }

    /// Resolves a start, and begins the snapshot that it asks for or that an earlier stream did not see the end of.
    async fn begin(
        &self,
        start: StartAt,
        at_checkpoint: bool,
        selection: &Arc<Selection>,
        principal: &Principal,
    ) -> Result<Begun, Error> {
        let (paused, pause) = watch::channel(false);
        let request = |mode, max_rows_per_second, resume| {
            let permit = self.snapshot_permit()?;
            let selection = selection.clone();
            Ok::<_, Error>(SnapshotRequest { selection, mode, max_rows_per_second, resume, pause, permit })
        };
        match start {
            StartAt::Feed(start) => {
                Ok(Begun { cursor: self.locate(start).await?, token: Token::default(), snapshot: None })
            }
            StartAt::Resume(resume) => {
                acknowledge::check_size(&resume)?;
                let invalid = |error: InvalidToken| Error::invalid("position.snapshot", error.to_string());
                let mut token = Token::decode(&resume.snapshot).map_err(invalid)?;
                let lost = token.handover.as_ref().is_some_and(|it| it.lineage != self.tail().lineage);
                match token.progress.clone() {
                    Some(progress) if progress.incremental => {
                        let cursor = self.locate_or_common(Start::After(resume.position), at_checkpoint).await?;
                        let only = match progress.tables.is_empty() && progress.predicate.is_empty() {
                            true => None,
                            false => Some(backfill::selection(principal, &progress.tables, &progress.predicate)?),
                        };
                        // Rows that were sent behind a crossing, or of a place that the stream is not at yet.
                        let again = progress.at > cursor.after.lsn;
                        let progress = if again { progress.from_the_beginning() } else { progress };
                        token.progress = Some(progress.clone());
                        let mut request = request(None, 0, Some(progress))?;
                        request.selection = only.clone().unwrap_or(request.selection);
                        let snapshot = self.snapshot(request).await?;
                        token.handover = token.handover.filter(|_| !lost);
                        Ok(Begun { cursor, token, snapshot: Some((snapshot, only, paused)) })
                    }
                    // What was read in one piece is read again in one piece, and so is what a failover may have taken back.
                    Some(progress) => {
                        let request = request(None, progress.max_rows_per_second, Some(progress))?;
                        self.begin_snapshot(request, paused).await
                    }
                    None if lost => {
                        let again = Progress { id: 1, ..Progress::default() };
                        self.begin_snapshot(request(None, 0, Some(again))?, paused).await
                    }
                    None => {
                        let cursor = self.locate_or_common(Start::After(resume.position), at_checkpoint).await?;
                        Ok(Begun { cursor, token, snapshot: None })
                    }
                }
            }
            StartAt::Snapshot { mode, max_rows_per_second } => {
                self.begin_snapshot(request(mode, max_rows_per_second, None)?, paused).await
            }
            StartAt::Checkpoint => Err(Error::checkpoint_missing("the subscriber has no checkpoint; give a start")),
        }
    }

    async fn snapshot(&self, request: SnapshotRequest) -> Result<Snapshot, Error> {
        let unsupported = || Error::new(Reason::Unsupported, "this hub has no source to take snapshots of");
        Ok(self.snapshots.get().ok_or_else(unsupported)?.begin(request).await?)
    }

    async fn begin_snapshot(&self, request: SnapshotRequest, paused: watch::Sender<bool>) -> Result<Begun, Error> {
        let snapshot = self.snapshot(request).await?;
        let cursor = self.locate(Start::After(snapshot.start)).await?;
        let token = Token { handover: Some(snapshot.handover.clone()), progress: Some(snapshot.progress.clone()) };
        if token.encode().len() > acknowledge::KEPT {
            let open = snapshot.handover.seen.running.len();
            return Err(Error::snapshot_interrupted(&format!(
                "{open} transactions were open when the snapshot was taken, more than a position can name; it succeeds when fewer are"
            )));
        }
        Ok(Begun { cursor, token, snapshot: Some((snapshot, None, paused)) })
    }

    /// Resolves a start. One beyond the tail is accepted if the source has written that far. While the source is away
    /// a position on the current lineage is accepted all the same, since a hub handed it out and its stream waits;
    /// a bare LSN, which anybody can mistype, is not.
    pub async fn locate(&self, start: Start) -> Result<Cursor, Error> {
        let tail = self.tail();
        match &start {
            Start::After(position) if position.lineage == tail.lineage && position.order() > tail.order() => {
                self.check_future(position.lsn, true).await?;
            }
            Start::AfterLsn(lsn) if *lsn > tail.lsn => self.check_future(*lsn, false).await?,
            _ => {}
        }
        self.admit(&start)?;
        Ok(self.place(start).await?)
    }

    async fn check_future(&self, lsn: Lsn, handed_out: bool) -> Result<(), Error> {
        match self.source.wal().await {
            Ok(wal) if lsn > wal.insert => Err(Error::in_future(lsn, wal.insert)),
            Ok(_) => Ok(()),
            Err(_) if handed_out => Ok(()),
            Err(away) => Err(away.into()),
        }
    }

    async fn register(
        &self,
        key: &SubscriberKey,
        request: &Subscription,
        filter_hash: u64,
    ) -> Result<Registered, Error> {
        const FILTER_KEPT: usize = 2048;
        let mut registered = Registered { session: 0, created: false, filter_changed: false, checkpoint: None };
        let change = |present: Option<&Checkpoint>| {
            let now = lag::now();
            let mut next = present.cloned().unwrap_or(Checkpoint { created: now, ..Checkpoint::default() });
            registered.created = present.is_none();
            registered.filter_changed = next.position.is_some() && next.filter_hash != filter_hash;
            registered.checkpoint = next.position.map(|position| Resume { position, snapshot: next.snapshot.clone() });
            registered.session = next.session + 1;
            if next.position.is_none() {
                next.filter_hash = filter_hash;
            }
            next.filter = request.filter_encoded.clone();
            if next.filter.len() > FILTER_KEPT || next.filter.len() + next.snapshot.len() > acknowledge::KEPT {
                next.filter.clear();
            }
            next.session = registered.session;
            next.last_seen = now;
            Some(next)
        };
        self.checkpoints.update(key, Box::new(change)).await?;
        Ok(registered)
    }
}
