//! A primary, a standby, a hub that knows both, and the oracle's slot, which goes along with a failover.

use std::{fs, time::Duration};

use walcast::lsn::Lsn;

use super::{
    Cluster, Db, Shutdown,
    client::{Client, Request},
    eventually,
    history::{self, History, StreamLog},
    hub::{Hub, READY},
    parsed::{Identity, Parsed, Unit},
    replays::Replays,
    stage::held,
    truth::{self, Truth},
    validators::{self, Broken},
};

/// How the slots come to the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// They do not.
    Lost,
    /// By copying their files.
    Copied,
    /// By the servers themselves (17 and later), or by the hub (16).
    Synced,
}

/// Two servers and a hub.
pub struct Pair {
    pub hub: Hub,
    pub primary: Cluster,
    pub standby: Cluster,
    pub slots: Slots,
}

/// Settings of both servers: WAL stays, and commits do not wait for each other.
pub const SETTINGS: [(&str, &str); 3] =
    [("wal_keep_size", "2GB"), ("wal_retrieve_retry_interval", "100ms"), ("deadlock_timeout", "50ms")];

impl Pair {
    /// Starts both servers with these statements and publication `walcast` for all tables; then the hub.
    pub async fn start(major: u32, slots: Slots, sql: &str, args: &[&str]) -> Pair {
        let mut pair = Pair::prepare(major, slots, sql, args).await;
        pair.hub.start().await;
        pair.streaming().await;
        if slots != Slots::Lost {
            pair.carry().await;
        }
        pair
    }

    /// The same without starting the hub.
    pub async fn prepare(major: u32, slots: Slots, sql: &str, args: &[&str]) -> Pair {
        let primary = Cluster::with(major, &SETTINGS);
        let db = primary.connect().await;
        db.run(sql).await;
        db.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
        db.run("SELECT pg_create_physical_replication_slot('standby', true)").await;
        let standby = follow(&primary, slots).await;
        truth::watch(&db).await;
        let mut hub = Hub::new(&dsn(&[&primary, &standby])).args(args);
        if major == 16 && slots != Slots::Synced {
            hub = hub.args(&["--set", "source.failover_slot=false"]);
        }
        Pair { hub, primary, standby, slots }
    }

    /// Waits until the slots are on the standby and usable there. The oracle's is copied in any case: a slot that never
    /// advances is never synchronized.
    pub async fn carry(&mut self) {
        if self.slots != Slots::Lost {
            self.carry_with_oracle().await;
        }
    }

    /// The same, and the oracle's slot also where the hub's is to be lost.
    pub async fn carry_with_oracle(&mut self) {
        self.primary.connect().await.run("CHECKPOINT").await;
        self.caught_up().await;
        self.standby.stop(Shutdown::Fast);
        self.copy(truth::SLOT);
        if self.slots == Slots::Copied {
            self.copy("walcast");
        }
        self.standby.resume();
        self.caught_up().await;
        if self.slots == Slots::Synced && self.primary.major() > 16 {
            self.synchronized().await;
        }
    }

    /// The slot's file and the serialized snapshots that its decoding begins with. Without those, PostgreSQL looks for a
    /// consistent point anew and silently skips what commits before it: see docs/failover.md.
    fn copy(&self, slot: &str) {
        self.copy_state(slot);
        copy(&self.primary, "pg_logical/snapshots", &self.standby, "pg_logical");
    }

    /// The slot's file alone, as some tools do it. The standby must not run.
    pub fn copy_state(&self, slot: &str) {
        let _ = fs::remove_dir_all(self.standby.data_dir().join("pg_replslot").join(slot));
        copy(&self.primary, &format!("pg_replslot/{slot}"), &self.standby, "pg_replslot");
    }

    /// The serialized snapshots of the server that died, for the one that lives.
    pub fn copy_snapshots(&self) {
        copy(&self.standby, "pg_logical/snapshots", &self.primary, "pg_logical");
    }

    async fn synchronized(&self) {
        let sql = "SELECT synced AND NOT temporary AND invalidation_reason IS NULL FROM pg_replication_slots \
                   WHERE slot_name = 'walcast'";
        eventually(Duration::from_secs(60), || async {
            self.primary.connect().await.run("SELECT pg_log_standby_snapshot()").await;
            match self.standby.connect().await.text(sql).await.as_deref() {
                Some("t") => Ok(()),
                other => Err(format!("ready = {other:?}")),
            }
        })
        .await;
    }

    /// Waits until the hub says that the standby could take over with the slot.
    pub async fn client_says_ready(&self) {
        let client = self.client();
        eventually(Duration::from_secs(60), || async {
            let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
            let standbys = status.source.map(|source| source.standbys).unwrap_or_default();
            if matches!(&standbys[..], [standby] if standby.ready) { Ok(()) } else { Err(format!("{standbys:?}")) }
        })
        .await;
    }

    /// Waits until the hub streams from its slot.
    pub async fn streaming(&self) {
        streaming(&self.primary).await;
    }

    /// Waits until the standby has replayed what the primary has flushed.
    pub async fn caught_up(&self) {
        replayed(&self.standby, &self.primary).await;
    }

    /// Brings the slots to the standby again, in the `round`-th failover; in the first they are there.
    pub async fn carry_again(&mut self, round: u32) {
        if round > 0 {
            self.carry().await;
        }
        self.caught_up().await;
    }

    /// The lineage that the hub is on.
    pub async fn lineage(&self) -> String {
        let status = self.client().status().await.unwrap_or_else(|failure| panic!("{failure:?}"));
        status.source.map(|source| source.lineage).unwrap_or_default()
    }

    /// The standby receives nothing more: whatever commits from now on is lost with the primary.
    pub async fn cut_off(&self) {
        isolate(&self.standby).await;
    }
}

fn copy(from: &Cluster, what: &str, to: &Cluster, place: &str) {
    let mut cp = std::process::Command::new("cp");
    let status = cp.arg("-a").arg(from.data_dir().join(what)).arg(to.data_dir().join(place)).status();
    assert!(status.expect("cp").success());
}

/// Waits until the standby has replayed what the primary has flushed.
pub async fn replayed(standby: &Cluster, primary: &Cluster) {
    let goal = primary.connect().await.lsn("pg_current_wal_flush_lsn()").await;
    eventually(Duration::from_secs(30), || async {
        let replayed = standby.connect().await.lsn("pg_last_wal_replay_lsn()").await;
        if replayed >= goal { Ok(()) } else { Err(format!("replayed {replayed} of {goal}")) }
    })
    .await;
}

/// A standby receives nothing more.
pub async fn isolate(standby: &Cluster) {
    let db = standby.connect().await;
    db.run("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'; SELECT pg_reload_conf()").await;
    eventually(Duration::from_secs(30), || async {
        let sql = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let receivers = standby.connect().await.number(sql).await;
        if receivers == 0 { Ok(()) } else { Err(receivers) }
    })
    .await;
}

impl Pair {
    /// The primary dies and the standby takes its place; `primary` is the survivor then, `standby` the dead one.
    pub async fn fail_over(&mut self) {
        self.primary.kill9();
        self.standby.promote().await;
        std::mem::swap(&mut self.primary, &mut self.standby);
    }

    /// A new standby of the present primary in place of the dead one, at the same port.
    pub async fn rebuild(&mut self) {
        let db = self.primary.connect().await;
        db.run("SELECT pg_create_physical_replication_slot('standby', true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'standby')").await;
        db.run("ALTER SYSTEM RESET primary_conninfo").await;
        let port = self.standby.port();
        self.standby = follow_at(&self.primary, self.slots, Some(port)).await;
    }

    pub fn client(&self) -> Client {
        Client::new(self.hub.grpc_port())
    }

    pub async fn db(&self) -> Db {
        self.primary.connect().await
    }

    /// What the survivor has committed since the oracle's slot was made.
    pub async fn truth(&self) -> Truth {
        truth::read(&self.primary, "postgres", "walcast").await
    }

    /// Where the survivor's WAL ends.
    pub async fn flushed(&self) -> Lsn {
        self.db().await.lsn("pg_current_wal_flush_lsn()").await
    }

    /// Waits until the hub has journaled what the primary has flushed.
    pub async fn journaled(&self) {
        let goal = self.flushed().await;
        let client = self.client();
        eventually(Duration::from_secs(30), || async {
            let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
            let tail = status.journal.and_then(|journal| journal.tail).ok_or("no tail")?;
            let tail = history::lsn(&tail.lsn);
            if tail >= goal { Ok(()) } else { Err(format!("tail {tail}, source {goal}")) }
        })
        .await;
    }

    /// Waits until the hub's source says an error with this reason, and returns it.
    pub async fn source_error(&self, reason: &str) -> String {
        let client = self.client();
        eventually(Duration::from_secs(30), || async {
            let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
            let error = status.source.map(|source| source.last_error).unwrap_or_default();
            if error.contains(reason) { Ok(error) } else { Err(error) }
        })
        .await
    }

    /// Everything that a request selects up to now.
    pub async fn collect(&self, request: Request) -> History {
        self.client().collect(request).await
    }

    /// Holds a history against every guarantee: what was retracted is left out of it first.
    pub async fn check(&self, history: &History) {
        self.check_with(history, &Replays::default()).await;
    }

    /// The same across replays from log tables.
    pub async fn check_with(&self, history: &History, replays: &Replays) {
        let truth = replays.place(self.truth().await);
        held(history, formal(history));
        let kept = kept(history);
        held(&kept, validators::ordered(&held(&kept, Parsed::of(&kept))));
        let placed = replays.place_history(&kept);
        held(&placed, validators::of_one_course(&placed, &truth));
    }
}

/// The guarantees that hold for the raw history.
fn formal(history: &History) -> Result<(), Broken> {
    let parsed = Parsed::of(history)?;
    validators::ordered(&parsed)?;
    validators::unique(&parsed)?;
    validators::lineage(&parsed, None)?;
    validators::loud(history)
}

/// Waits until the hub's slot on this server is in use.
pub async fn streaming(cluster: &Cluster) {
    eventually(READY, || async {
        let db = cluster.connect().await;
        match db.text("SELECT active FROM pg_replication_slots WHERE slot_name = 'walcast'").await.as_deref() {
            Some("t") => Ok(()),
            other => Err(format!("active = {other:?}")),
        }
    })
    .await;
}

async fn follow(primary: &Cluster, slots: Slots) -> Cluster {
    follow_at(primary, slots, None).await
}

async fn follow_at(primary: &Cluster, slots: Slots, port: Option<u16>) -> Cluster {
    let port = port.map(|port| port.to_string());
    let mut settings = SETTINGS.to_vec();
    settings.push(("primary_slot_name", "standby"));
    if let Some(port) = &port {
        settings.push(("port", port));
    }
    if slots == Slots::Synced && primary.major() > 16 {
        settings.push(("sync_replication_slots", "on"));
    }
    primary.standby(&settings).await
}

/// All servers in one connection string, in this order.
pub fn dsn(servers: &[&Cluster]) -> String {
    let hosts: Vec<&str> = servers.iter().map(|_| "127.0.0.1").collect();
    let ports: Vec<String> = servers.iter().map(|server| server.port().to_string()).collect();
    format!("host={} port={} user=postgres dbname=postgres connect_timeout=5", hosts.join(","), ports.join(","))
}

/// Everything that `timeline_changed` took back.
pub fn retracted(parsed: &Parsed<'_>) -> Vec<Identity> {
    let units = parsed.streams.iter().flatten();
    let changed = units.filter_map(|unit| match unit {
        Unit::Timeline { changed, .. } => Some(changed),
        _ => None,
    });
    let begins = changed.flat_map(|changed| &changed.retracted).filter_map(|retracted| retracted.begin.as_ref());
    begins.map(|begin| (begin.lineage.clone(), history::lsn(&begin.commit_lsn), begin.sequence)).collect()
}

/// The history without what it was told never happened: the retracted transactions and messages, and progress on the
/// old lineage behind the switch.
pub fn kept(history: &History) -> History {
    use walcast::wire::pb::event::Kind;
    let parsed = Parsed::of(history).unwrap_or_else(|violation| panic!("{violation}"));
    let lost = retracted(&parsed);
    let units = parsed.streams.iter().flatten();
    let switches: Vec<(String, Lsn)> = units
        .filter_map(|unit| match unit {
            Unit::Timeline { changed, .. } => Some((changed.old_lineage.clone(), history::lsn(&changed.switch_lsn))),
            _ => None,
        })
        .collect();
    let dead = |position: &Option<walcast::wire::pb::Position>| {
        position.as_ref().is_some_and(|p| {
            switches.iter().any(|(old, switch)| *old == p.lineage && history::lsn(&p.lsn).0 & !7 > switch.0)
        })
    };
    let mut kept = history.clone();
    for stream in &mut kept.streams {
        let mut dropping = false;
        let events = std::mem::take(&mut stream.events);
        stream.events = events
            .into_iter()
            .filter(|record| {
                match &record.kind {
                    Kind::Begin(begin) => {
                        let identity = (begin.lineage.clone(), history::lsn(&begin.commit_lsn), begin.sequence);
                        dropping = lost.contains(&identity);
                    }
                    Kind::Message(message) if !dropping => return !dead(&message.position),
                    Kind::Progress(progress) => return !dead(&progress.position),
                    Kind::Relation(_) => return true,
                    Kind::Commit(_) | Kind::Discard(_) => return !std::mem::take(&mut dropping),
                    _ => {}
                }
                !dropping
            })
            .collect();
        if dead(&stream.resumes_after) {
            stream.resumes_after = stream.opened().and_then(|opened| opened.after.clone());
        }
    }
    kept
}

/// Whether a stream has been told of a switch.
pub fn crossed(log: &StreamLog) -> bool {
    log.kinds().any(|kind| matches!(kind, walcast::wire::pb::event::Kind::TimelineChanged(changed) if !changed.more))
}
