//! `kill -9`, start again, and how long until a subscriber hears something new.

use std::{process::Stdio, time::Duration};

use super::Suites;
use crate::{
    client::{From, Until},
    harness::process::{self, Account},
    proc::{self, Client, now_us},
    report::{Section, Spread, mb},
    stage::{Shape, orders},
};

impl Suites {
    pub(super) async fn restart(&mut self, id: &str, bytes: u64, goal: f64) -> Section {
        let runs = self.runs();
        let about = format!(
            "The hub has a journal of so many bytes, a session inserts one row every 10 ms, and a subscriber that reconnects \
             follows. kill -9 of the hub, which is started again at once; until the first change on the subscriber's next \
             stream, which begins behind the last position it saw. Then the same with pg_recvlogical on its slot. {runs} \
             times. The subscriber checks that nothing is missing and nothing comes twice."
        );
        let mut section = Section::new(
            id,
            "kill -9 to the first new event",
            about,
            &["reader", "seconds", "its CPU s", "its RSS MB"],
        );
        section.unit = "seconds".to_owned();
        self.restart_with(&mut section, bytes, goal, runs).await;
        section
    }

    async fn restart_with(&mut self, section: &mut Section, bytes: u64, goal: f64, runs: usize) {
        let backlog = self.stage.backlog("restarted", Shape::Text, bytes / 2100).await;
        let slot = self.stage.copy(&backlog).await;
        let mut hub = self.stage.hub(&slot, &["--set", "journal.retain_bytes=20GiB"]);
        hub.start().await;
        let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(backlog.changes))).finish();
        crate::stage::check(&backlog, &report);
        let journal = hub.metric("walcast_journal_bytes").await as u64;
        self.stage.db.run("CREATE TABLE ticks (id bigserial)").await;
        let peer_slot = "restart_peer";
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{peer_slot}', 'pgoutput')")).await;
        let mut client = Client::start(&orders(&hub, 1, From::Latest, Until::Reconnect));
        let mut ticks = self.ticks();
        client.report();
        let (mut walls, mut peers, mut holes) = (Vec::new(), Vec::new(), 0);
        let (mut cpu, mut rss) = ([Vec::new(), Vec::new()], [0, 0]);
        for _ in 0..runs {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let killed = now_us();
            hub.kill9();
            hub.spawn();
            let broken = client.report();
            let first = client.report();
            cpu[1].push(proc::cpu(hub.pid()));
            rss[1] = proc::memory(hub.pid(), "VmHWM").max(rss[1]);
            assert!(first.stream > broken.stream, "not a new stream");
            walls.push((first.first_us - killed) as f64 / 1e6);
            holes = first.holes;
            let (wall, seconds, bytes) = self.direct_restart(peer_slot).await;
            peers.push(wall);
            cpu[0].push(seconds);
            rss[0] = bytes.max(rss[0]);
        }
        assert_eq!(holes, 0, "changes were lost or came twice");
        process::signal(&ticks, rustix::process::Signal::KILL);
        let _ = ticks.wait();
        drop((hub, client));
        let (hub, peer) = (Spread::of(walls), Spread::of(peers));
        let size = format!("{} MB of journal", mb(journal));
        let [peer_cpu, hub_cpu] = cpu.map(|seconds| Spread::of(seconds).show(2));
        let readers = [format!("pg_recvlogical, {} MiB of WAL behind it", bytes >> 20), format!("hub, {size}")];
        let [peer_name, hub_name] = readers;
        section.row(&[peer_name, peer.show(3), peer_cpu, mb(rss[0])]);
        section.row(&[hub_name, hub.show(3), hub_cpu, mb(rss[1])]);
        section.bar("pg_recvlogical", peer.median, true);
        section.bar(format!("hub, {size}"), hub.median, false);
        let text = format!("kill -9 to the first new event, {} MiB of journal: under {goal} s", bytes >> 20);
        section.goal(text, hub.show(3), hub.median < goal);
        for slot in [&slot, peer_slot] {
            self.stage.drop_slot(slot).await;
        }
        self.stage.db.run("DROP TABLE ticks").await;
        self.stage.drop(backlog).await;
    }

    /// The same for PostgreSQL's client: seconds, CPU seconds and peak bytes.
    async fn direct_restart(&self, slot: &str) -> (f64, f64, u64) {
        let skip = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())");
        self.stage.db.rows(&skip).await;
        let first_bytes = |child: &mut std::process::Child| {
            use std::io::Read;
            let mut byte = [0];
            child.stdout.take().expect("stdout").read_exact(&mut byte).expect("pg_recvlogical");
        };
        let mut child = self.stage.recvlogical(slot, None, "-");
        first_bytes(&mut child);
        let killed = now_us();
        process::signal(&child, rustix::process::Signal::KILL);
        let _ = child.wait();
        // The walsender holds the slot until it notices.
        loop {
            let mut child = self.stage.recvlogical(slot, None, "-");
            let mut pipe = child.stdout.take().expect("stdout");
            let mut byte = [0];
            let read = std::io::Read::read(&mut pipe, &mut byte).unwrap_or(0);
            let took = (now_us() - killed) as f64 / 1e6;
            let rss = proc::memory(child.id(), "VmHWM");
            process::signal(&child, rustix::process::Signal::KILL);
            let (cpu, _) = proc::wait(&mut child);
            if read == 1 {
                return (took, cpu, rss);
            }
        }
    }

    fn ticks(&self) -> std::process::Child {
        let script = process::scratch().join("tick.sql");
        std::fs::write(&script, "INSERT INTO ticks DEFAULT VALUES;\n\\sleep 10 ms\n").expect("script");
        let bin = format!("/usr/lib/postgresql/{}/bin/pgbench", self.stage.cluster.major());
        let mut command = process::command(std::path::Path::new(&bin), Account::Own, "KILL");
        command.args(["-h", "127.0.0.1", "-p", &self.stage.cluster.port().to_string(), "-U", "postgres", "-n"]);
        command.args(["-c", "1", "-T", "600", "-f"]).arg(&script).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process::spawn(command).expect("pgbench")
    }
}
