//! Whether the standby could take over with the slot, and if not why: what status, the metric and `walcast doctor` say of a
//! slot that the servers keep in step (17 and later), in each state that such a slot can be in.

use std::time::Duration;

use walcast::wire::pb::StandbyStatus;

use crate::harness::{
    Cluster, Shutdown,
    command::walcast,
    eventually,
    hub::Hub,
    pair::{self, Pair, Slots},
    versions,
};

const FAILOVER: &str = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'walcast'";

/// Waits until status says that the standby is ready, or else why not in words that contain these; metric and doctor must
/// then say the same.
async fn shown(pair: &Pair, why: Option<&str>) {
    let client = pair.client();
    eventually(Duration::from_secs(60), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let standbys = status.source.unwrap_or_default().standbys;
        let [StandbyStatus { ready, detail, .. }] = &standbys[..] else { return Err(format!("{standbys:?}")) };
        let said = match why {
            None => *ready && detail.is_empty(),
            Some(why) => !*ready && detail.contains(why),
        };
        if said { Ok(()) } else { Err(format!("{standbys:?}")) }
    })
    .await;
    let metric = format!("walcast_standby_slot_ready{{standby=\"127.0.0.1:{}\"}}", pair.standby.port());
    assert_eq!(pair.hub.metrics().await.get(&metric), Some(&f64::from(u8::from(why.is_none()))));
    let told = doctor(pair);
    let line = told.lines().find(|line| line.contains(&format!("127.0.0.1:{}", pair.standby.port())));
    let line = line.unwrap_or_else(|| panic!("nothing of the standby: {told}"));
    assert!(line.contains(why.unwrap_or("could take over with the slot")), "{told}");
}

fn doctor(pair: &Pair) -> String {
    let dsn = pair::dsn(&[&pair.primary, &pair.standby]);
    walcast(&["doctor", "--dsn", &dsn], &[]).stdout
}

/// The hub looks at its standbys when it begins to stream, and not only when it is time again.
async fn look_again(pair: &Pair) {
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'walcast'";
    pair.db().await.run(end).await;
}

/// From now on the servers do not keep the slot in step.
async fn no_longer_synchronized(standby: &Cluster) {
    let db = standby.connect().await;
    db.run("ALTER SYSTEM SET sync_replication_slots = off; SELECT pg_reload_conf()").await;
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'slotsync worker'";
    eventually(Duration::from_secs(60), || async {
        let found = db.number(workers).await;
        if found == 0 { Ok(()) } else { Err(found) }
    })
    .await;
}

/// The servers keep the slot in step again. They would wait for ten seconds if the standby had done so since it was started.
async fn synchronized(standby: &Cluster) {
    let db = standby.connect().await;
    db.run("ALTER SYSTEM RESET sync_replication_slots; SELECT pg_reload_conf()").await;
}

/// The standby's row of the slot.
async fn row(pair: &Pair, columns: &str) -> String {
    let sql = format!("SELECT concat_ws(' ', {columns}) FROM pg_replication_slots WHERE slot_name = 'walcast'");
    pair.standby.connect().await.text(&sql).await.unwrap_or_default()
}

/// Invalidates the slot on the standby, which must not synchronize it: WAL that it needs is removed there.
async fn invalidate(pair: &Pair) {
    let standby = pair.standby.connect().await;
    standby.run("ALTER SYSTEM SET wal_keep_size = 0; ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    standby.run("SELECT pg_reload_conf()").await;
    let db = pair.db().await;
    eventually(Duration::from_secs(60), || async {
        db.run("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal(); CHECKPOINT").await;
        pair.caught_up().await;
        standby.run("CHECKPOINT").await; // a restartpoint, as far as the primary's last checkpoint
        let why = row(pair, "invalidation_reason").await;
        if why == "wal_removed" { Ok(()) } else { Err(why) }
    })
    .await;
    standby.run("ALTER SYSTEM RESET wal_keep_size; ALTER SYSTEM RESET max_slot_wal_keep_size").await;
    standby.run("SELECT pg_reload_conf()").await;
}

/// Waits until the slot's decoding begins where the standby, which is cut off, has nothing.
async fn moved_on(pair: &Pair) {
    let db = pair.db().await;
    let had = pair.standby.connect().await.lsn("pg_last_wal_receive_lsn()").await;
    eventually(Duration::from_secs(60), || async {
        db.run("SELECT pg_logical_emit_message(false, '', ''), pg_log_standby_snapshot()").await;
        let begins = db.lsn("(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'walcast')").await;
        if begins > had { Ok(()) } else { Err(format!("{begins}, the standby has {had}")) }
    })
    .await;
}

async fn readiness_is_shown(major: u32) {
    let mut pair = Pair::prepare(major, Slots::Synced, "CREATE TABLE t (id int PRIMARY KEY)", &[]).await;
    no_longer_synchronized(&pair.standby).await;
    pair.standby.stop(Shutdown::Fast);
    pair.hub.start().await;
    pair.streaming().await;
    assert_eq!(pair.db().await.text(FAILOVER).await.as_deref(), Some("t"));
    shown(&pair, Some("")).await;

    // While a transaction is open that the standby knows of, it reserves what is younger than the slot on the primary is.
    let open = pair.db().await;
    open.run("BEGIN; INSERT INTO t VALUES (1)").await;
    pair.db().await.run("INSERT INTO t VALUES (2)").await;
    pair.standby.resume();
    pair.caught_up().await;
    look_again(&pair).await;
    shown(&pair, Some("the slot is not there")).await;
    synchronized(&pair.standby).await;
    shown(&pair, Some("the slot is not synchronized yet")).await;
    assert_eq!(row(&pair, "synced, temporary, active, confirmed_flush_lsn IS NULL").await, "t t t t");
    open.run("COMMIT").await;
    shown(&pair, None).await; // the hub itself brings it about on an idle primary
    assert_eq!(row(&pair, "synced, temporary").await, "t f");

    no_longer_synchronized(&pair.standby).await;
    invalidate(&pair).await;
    look_again(&pair).await;
    shown(&pair, Some("the slot is invalidated there (wal_removed)")).await;
    pair.standby.stop(Shutdown::Fast);
    pair.standby.resume();
    synchronized(&pair.standby).await;
    shown(&pair, None).await; // made anew

    let told = doctor(&pair);
    assert!(told.contains("synchronized_standby_slots is empty"), "{told}");
    let db = pair.db().await;
    db.run("ALTER SYSTEM SET synchronized_standby_slots = 'standby'; SELECT pg_reload_conf()").await;
    let told = doctor(&pair);
    assert!(told.contains("synchronized_standby_slots = standby: nothing is shown"), "{told}");
    db.run("ALTER SYSTEM RESET synchronized_standby_slots; SELECT pg_reload_conf()").await;
    pair.cut_off().await;
    moved_on(&pair).await;
    pair.standby.kill9();
    db.run("ALTER SYSTEM SET synchronized_standby_slots = 'standby'; SELECT pg_reload_conf()").await;
    look_again(&pair).await;
    shown(&pair, Some("")).await;
    let told = doctor(&pair);
    assert!(told.contains("which no standby uses now"), "{told}");
    // The old primary withholds what decoding begins with: the stream is never consistent. It is left all the same.
    pair.standby.resume();
    pair.standby.promote().await;
    pair::streaming(&pair.standby).await;

    // A slot from before FAILOVER was asked for becomes one.
    db.run("ALTER SYSTEM RESET synchronized_standby_slots; SELECT pg_reload_conf()").await;
    pair.hub.terminate();
    eventually(Duration::from_secs(60), || db.batch_execute("SELECT pg_drop_replication_slot('walcast')")).await;
    db.run("SELECT pg_create_logical_replication_slot('walcast', 'pgoutput')").await;
    let mut other = Hub::new(&pair.primary.dsn());
    other.start().await;
    pair::streaming(&pair.primary).await;
    assert_eq!(db.text(FAILOVER).await.as_deref(), Some("t"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standbys_readiness_is_shown_on_every_version_of_the_matrix() {
    for major in versions::matrix().into_iter().filter(|major| *major >= 17) {
        readiness_is_shown(major).await;
    }
}
