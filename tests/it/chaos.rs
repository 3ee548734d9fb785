//! A primary dies at a random moment under a random workload, a standby with some lag takes its place, and the hub is
//! killed at the named places of what follows. The ledger on the survivor says what happened.
//!
//! The seed decides the course before anything begins; what the servers make of it still differs from run to run.

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt, time::Duration};

use walcast::{journal::inspect, wire::pb};

use crate::harness::{
    client::Request,
    command::walcast,
    eventually,
    follower::{Follower, Resume},
    history,
    pair::{self, Pair, Slots, kept, retracted},
    parsed::{Identity, Parsed},
    replays::Replays,
    stage::held,
    validators::{self, Replica},
    workload::{self, Plan, Report, Workload, ledger_agrees},
};

const PATIENCE: Duration = Duration::from_secs(90);

/// What the hub has at the new primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Its slot, which somebody copied.
    Copied,
    /// Its slot, which the servers kept in step (17 and later).
    Synced,
    /// No slot, and the log tables.
    LogTables,
}

impl Family {
    fn slots(self) -> Slots {
        match self {
            Family::Copied => Slots::Copied,
            Family::Synced => Slots::Synced,
            Family::LogTables => Slots::Lost,
        }
    }

    /// Where the hub may be killed, in the order in which it passes by.
    fn places(self) -> &'static [&'static str] {
        match self {
            Family::Copied | Family::Synced => {
                &["before_lineage", "after_lineage", "mid_transaction", "after_fsync_before_status"]
            }
            Family::LogTables => &[
                "before_lineage",
                "after_lineage",
                "recovery_slot_dropped",
                "recovery_polled",
                "recovery_poll_durable",
                "recovery_slot_created",
                "recovery_mid_replay",
                "recovery_replayed",
                "recovery_before_recovered",
                "recovery_recovered",
                "mid_transaction",
                "after_fsync_before_status",
            ],
        }
    }
}

/// When a prepared transaction ends that was in doubt when the primary died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// There is none but those of the workload.
    None,
    /// Before the hub has found the new primary.
    Early,
    /// When a new slot waits for it, or at the end.
    Late,
}

/// What is going to happen.
#[derive(Clone, Debug)]
pub struct Course {
    pub seed: u64,
    pub major: u32,
    pub family: Family,
    /// Commits before the standby is cut off, or the primary dies.
    pub before: u64,
    /// Commits that the standby never receives.
    pub lost: Option<u64>,
    /// The hub is away while the primary dies, and finds the switch when it comes back.
    pub away: bool,
    pub doubt: Doubt,
    pub doubt_commits: bool,
    /// The server can tell where each commit record is.
    pub walinspect: bool,
    /// Commits at the new primary before the hub is there again.
    pub head_start: u64,
    /// Where the hub is killed, and at which hit.
    pub places: Vec<(&'static str, u32)>,
    pub large_rows: u32,
    /// A mistake that the hub is to make.
    pub planted: &'static str,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Went {
    /// What the clients heard on both sides of the failover.
    pub report: Report,
    /// Where the hub died.
    pub aborted: Vec<&'static str>,
}

impl Course {
    pub fn random(seed: u64, major: u32, family: Family) -> Course {
        let mut random = fastrand::Rng::with_seed(seed);
        let before = 30 + random.u64(..80);
        let lost = (random.u32(..4) > 0).then(|| random.u64(..120));
        let doubt = [Doubt::None, Doubt::Early, Doubt::Late][(seed % 3) as usize];
        // The first two, and two more, by turns, so that a few seeds in a row have them all. Polled is only while a new slot
        // waits.
        let (first, rest) = family.places().split_at(2);
        let passed = |place: &&&str| doubt == Doubt::Late || !place.contains("poll");
        let rest: Vec<&'static str> = rest.iter().filter(passed).copied().collect();
        let (turn, half) = ((seed / 3) as usize % rest.len(), rest.len() / 2);
        let is_due = |(at, _): &(usize, &&str)| *at == turn || *at == (turn + half) % rest.len();
        let due = rest.iter().enumerate().filter(is_due).map(|(_, place)| *place);
        let places: Vec<&'static str> = first.iter().copied().chain(due).collect();
        let hit = |place: &&'static str| (*place, if is_once(place) { 1 } else { random.u32(1..4) });
        let places = places.iter().map(hit).collect();
        Course {
            seed,
            major,
            family,
            before,
            lost,
            places,
            away: random.bool(),
            doubt,
            doubt_commits: random.bool(),
            walinspect: family == Family::LogTables && major >= 15 && (seed / 3).is_multiple_of(2),
            head_start: random.u64(..60),
            large_rows: 1000,
            planted: "",
        }
    }
}

/// Places that every attempt passes once.
fn is_once(place: &str) -> bool {
    place.contains("lineage") || place.contains("recovery") && place != "recovery_mid_replay"
}

/// Places that a hub which streams has passed.
fn is_before_streaming(place: &str) -> bool {
    place.contains("lineage") || place.contains("recovery")
}

impl Course {
    /// Follows the course and holds everything that anybody saw against every guarantee.
    pub async fn run(&self) -> Went {
        println!("{self:?}");
        let mut pair =
            Pair::start(self.major, self.family.slots(), workload::SCHEMA, &["--set", "journal.segment_bytes=1MiB"])
                .await;
        if self.walinspect {
            let available = "FROM pg_available_extensions WHERE name = 'pg_walinspect'";
            let create = format!("SELECT 'CREATE EXTENSION pg_walinspect' {available}");
            if let Some(create) = pair.db().await.text(&create).await {
                pair.db().await.run(&create).await;
            }
        }
        if self.family == Family::LogTables {
            walcast(&["logtables", "install"], &[("WALCAST_DSN", &pair.primary.dsn())]).good();
            pair.carry_with_oracle().await;
        }
        let plan = Plan {
            seed: self.seed,
            clients: 3,
            transactions: 0,
            large_rows: self.large_rows,
            ddl: true,
            prepared: true,
            pause: Duration::from_millis(100),
            first_client: 0,
        };
        let filtered = Request::named("two").earliest().tables(&["load.ledger", "load.accounts"]);
        let checkpoint = |offset| Resume::Checkpoint { one_in: 4, seed: self.seed + offset };
        let followers = vec![
            Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true),
            Follower::start(pair.client(), Request::named("one").earliest(), checkpoint(1), true),
            Follower::start(pair.client(), filtered, checkpoint(2), true),
        ];
        let load = Workload::start(pair.primary.config("postgres"), plan);
        load.commits(20, PATIENCE).await;
        if self.family == Family::LogTables {
            protected(&pair).await;
        }
        load.commits(load.report().committed + self.before, PATIENCE).await;
        if self.doubt != Doubt::None {
            pair.db().await.run(IN_DOUBT).await;
            pair.caught_up().await;
        }
        if let Some(lost) = self.lost {
            pair.cut_off().await;
            load.commits(load.report().committed + lost, PATIENCE).await;
        }
        if self.away {
            pair.hub.kill9();
        }
        pair.primary.kill9();
        let before = load.stop().await;
        println!("seed {} before: {before:?}", self.seed);
        pair.standby.promote().await;
        std::mem::swap(&mut pair.primary, &mut pair.standby);
        self.end_doubts(&pair).await;
        let plan = Plan { ddl: plan.ddl, ..plan.renamed(0) };
        let load = Workload::start(pair.primary.config("postgres"), plan);
        if !self.away {
            pair.hub.kill9();
        }
        load.commits(self.head_start, PATIENCE).await;
        let aborted = self.kill_everywhere(&mut pair).await;
        pair.hub.failpoints(self.planted);
        pair.hub.spawn();
        if self.doubt == Doubt::Late {
            self.end_doubt(&pair).await;
        }
        pair.hub.ready().await;
        pair::streaming(&pair.primary).await;
        load.commits(load.report().committed + 40, PATIENCE).await;
        let after = load.stop().await;
        println!("seed {} after: {after:?}, aborted at {aborted:?}", self.seed);
        // A hub that lived through the switch may have followed before it was killed.
        assert!(!self.away || aborted.starts_with(&["before_lineage", "after_lineage"]) || self.places.is_empty());
        self.finish(&pair, followers).await;
        Went { report: before + after, aborted }
    }

    /// Ends what the workload had prepared and not ended, at random.
    async fn end_doubts(&self, pair: &Pair) {
        let db = pair.db().await;
        let mut random = fastrand::Rng::with_seed(self.seed);
        for gid in db.rows("SELECT gid FROM pg_prepared_xacts WHERE gid <> 'in doubt' ORDER BY 1").await {
            let gid = gid[0].as_deref().expect("a name");
            db.run(&format!("{} PREPARED '{gid}'", if random.bool() { "COMMIT" } else { "ROLLBACK" })).await;
        }
        if self.doubt == Doubt::Early {
            db.run(self.ending()).await;
        }
    }

    fn ending(&self) -> &'static str {
        if self.doubt_commits { "COMMIT PREPARED 'in doubt'" } else { "ROLLBACK PREPARED 'in doubt'" }
    }

    /// Ends the transaction that is still in doubt, where there is one; a new slot must have named it first.
    async fn end_doubt(&self, pair: &Pair) {
        let db = pair.db().await;
        if db.number("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'in doubt'").await == 0 {
            return;
        }
        if self.family == Family::LogTables {
            let client = pair.client();
            eventually(PATIENCE, || async {
                let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
                let alarms = status.source.unwrap_or_default().alarms;
                let named = |alarm: &String| alarm.starts_with("RECOVERY_BLOCKED") && alarm.contains("\"in doubt\"");
                if alarms.iter().any(named) { Ok(()) } else { Err(format!("{alarms:?}")) }
            })
            .await;
        }
        db.run(self.ending()).await;
    }

    /// Starts the hub with each of the places armed; those at which it died.
    async fn kill_everywhere(&self, pair: &mut Pair) -> Vec<&'static str> {
        let mut aborted = Vec::new();
        for (place, hit) in &self.places {
            pair.hub.failpoints(&format!("{place}=abort@{hit},{}", self.planted));
            pair.hub.spawn();
            let polls = place.contains("poll");
            let waits = place.contains("recovery") && *place != "recovery_slot_dropped" && !polls;
            if self.doubt == Doubt::Late && (waits || !is_before_streaming(place)) {
                self.end_doubt(pair).await;
            }
            let ended = eventually(PATIENCE, || async {
                match pair.hub.get("/readyz").await {
                    // A place that lies behind the hub is not passed again.
                    Ok((200, body)) if body.contains("\"source_connected\":true") && is_before_streaming(place) => {
                        Ok(false)
                    }
                    // It waits for the transaction in doubt, behind the place.
                    Ok((_, body)) if body.contains("RECOVERY_BLOCKED") && !polls => Ok(false),
                    Err(_) if !pair.hub.is_alive() => Ok(true),
                    other => Err(format!("{place}: {other:?}")),
                }
            })
            .await;
            if ended {
                let status = pair.hub.wait_exit(Duration::from_secs(5)).await;
                assert_eq!(status.signal(), Some(6), "aborted at {place}, not ended with {status}");
                aborted.push(*place);
            } else {
                pair.hub.kill9();
            }
        }
        aborted
    }

    async fn finish(&self, pair: &Pair, followers: Vec<Follower>) {
        let note = format!("seed {} on {}, {:?}", self.seed, self.major, self.family);
        let (goal, lineage, db) = (pair.truth().await.end(), pair.lineage().await, pair.db().await);
        let mut whole = pair.collect(Request::new().earliest()).await;
        whole.note = note.clone();
        let whole = kept(&whole);
        let journal = held(&whole, Parsed::of(&whole));
        let replays = Replays::of(&journal);
        held(&whole, ledger_agrees(&db, &journal).await);
        pair.check_with(&whole, &replays).await;
        if self.family == Family::LogTables {
            let truth = pair.truth().await;
            let inspected = db.number("SELECT count(*) FROM pg_extension WHERE extname = 'pg_walinspect'").await == 1;
            let exact = inspected && !journal.polled();
            held(&whole, validators::recovered(&journal, &truth, exact));
            if exact {
                let replayed = held(&whole, validators::exact_lsns(&journal, &truth));
                println!("{note}: the order and LSNs of {replayed} replayed transactions are exact");
            }
            assert!(replays.len() as u64 >= self.head_start, "{} were replayed", replays.len());
        }
        let mut replica = Replica::default();
        held(&whole, replica.apply(&journal));
        let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
        held(&whole, replica.equals_source(&db, &tables).await);
        let lost = lost(pair, &whole).await;
        let mut told = Vec::new();
        for follower in followers {
            follower.reaches_on(lineage.clone(), goal, PATIENCE).await;
            let mut history = follower.stop().await.history;
            history.note = format!("{note}; {}", history.note);
            pair.check_with(&history, &replays).await;
            let parsed = held(&history, Parsed::of(&history));
            held(&history, validators::lineage(&parsed, Some(&lost)));
            let left = kept(&history);
            let parsed_left = held(&left, Parsed::of(&left));
            if history.filter.is_none() {
                held(&left, ledger_agrees(&db, &parsed_left).await);
                held(&left, validators::repeats_are_identical(&[&parsed_left, &journal]));
            }
            let (streams, changes) = (history.streams.len(), history.changes());
            told.push(format!("{streams} streams, {changes} changes, {} retracted", retracted(&parsed).len()));
        }
        println!("{note}: {} lost, {} replayed; followers: {}", lost.len(), replays.len(), told.join("; "));
    }
}

/// In rows that nobody else touches, so that only who waits for every transaction waits for this one.
const IN_DOUBT: &str = "BEGIN; INSERT INTO load.ledger (client, n) VALUES (-7, 1); \
    INSERT INTO load.bulk SELECT -7, 1, i, 'in doubt' FROM generate_series(1, 20) i; PREPARE TRANSACTION 'in doubt'";

/// Waits until the standby has what a recovery from the log tables begins with.
async fn protected(pair: &Pair) {
    let now = pair.flushed().await;
    eventually(PATIENCE, || async {
        tokio::time::sleep(Duration::from_millis(100)).await; // reading the journal is work
        match inspect::horizon(pair.hub.data_dir()).expect("readable") {
            Some(horizon) if horizon.high >= now => Ok(()),
            other => Err(format!("{other:?}, waiting for {now}")),
        }
    })
    .await;
    pair.caught_up().await;
}

/// What the failover took back, whoever has seen it.
async fn lost(pair: &Pair, whole: &history::History) -> BTreeSet<Identity> {
    let old = whole.last().opened().and_then(|opened| opened.after.clone()).expect("a position").lineage;
    let lost = pair.client().read_retracted(&old).await.expect("what was lost");
    lost.iter()
        .filter_map(|kind| match kind {
            pb::event::Kind::Begin(begin) => {
                Some((begin.lineage.clone(), history::lsn(&begin.commit_lsn), begin.sequence))
            }
            _ => None,
        })
        .collect()
}
