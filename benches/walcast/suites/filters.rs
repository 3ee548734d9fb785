//! What filters cost the intake: many different ones beside one stream that follows everything.

use rustix::process::{Pid, Signal, kill_process};

use super::Suites;
use crate::{
    client::{From, Until},
    events::hash,
    harness::wait,
    proc::{self, Client, now_us},
    report::{Section, Spread, count, mb},
    stage::{Cost, Shape, check, orders, validate},
};

const TABLE: &str = "filtered";
/// Rows that are there before the streams open.
const BEFORE: u64 = 1000;
/// Rows at the end that residual predicates select, to show that their streams keep up.
const SELECTED: u64 = 10;

/// So many streams, each with a predicate of its own.
struct Case {
    name: &'static str,
    streams: usize,
    predicate: String,
    /// Seconds between what a stream is told that selects nothing; 0: the hub's default, one second.
    progress: i64,
    /// Whether the measurement ends only when all of them have seen the last rows.
    keeping_up: bool,
}

/// The hash of these ids in order.
fn ids(ids: std::ops::RangeInclusive<u64>) -> u64 {
    ids.fold(0, |all, id| hash(all, id as i64))
}

impl Suites {
    pub(super) async fn filters(&mut self) -> Section {
        let runs = self.runs();
        let rows = self.pick(1_000_000, 100_000);
        let many = self.pick(10_000, 1000);
        let about = format!(
            "{} rows of about 160 bytes are inserted while the walsender is stopped; then, until a stream without a filter \
             has them all, beside so many streams with different predicates, each over a connection of its own. Equality is \
             indexed and never matches; residual predicates are comparisons that must be evaluated for each row, of which \
             those that keep up select the last {SELECTED} rows and end the measurement. Streams that select nothing are told \
             how far everything is: once a second, or every 10 s where they ask for that. {runs} runs each, taking turns, with one \
             without filters before and behind each; a share is of those two. Every stream is checked for count and order, \
             those that select nothing for that.",
            count(rows as f64)
        );
        let case =
            |name, streams, predicate: String, keeping_up| Case { name, streams, predicate, progress: 0, keeping_up };
        let rarely = |name, case: &Case| Case { name, progress: 10, predicate: case.predicate.clone(), ..*case };
        let mut cases = vec![
            case("none", 0, String::new(), false),
            case("equality", many, "a = 1000{}".to_owned(), false),
            case("residual, keeping up", 100, format!("id > {} or a > 1000{{}}", BEFORE + rows - SELECTED), true),
            case("residual, lagging", many, "a > 1000{}".to_owned(), false),
        ];
        cases.push(rarely("equality, told every 10 s", &cases[1]));
        cases.push(rarely("residual, lagging, told every 10 s", &cases[3]));
        let columns = [
            "filters",
            "streams",
            "wall s",
            "changes/s",
            "of none",
            "walsender CPU s",
            "hub CPU s",
            "clients CPU s",
            "hub RSS MB",
        ];
        let mut section = Section::new("5b-filters", "Intake beside filtered streams", about, &columns);
        section.unit = "changes/s".to_owned();
        let mut costs: [Vec<Cost>; 6] = Default::default();
        for run in 1..=runs {
            for (case, beside) in (1..).zip(&cases[1..]) {
                costs[0].push(self.filtered(&cases[0], rows, false).await);
                costs[case].push(self.filtered(beside, rows, run == runs).await);
            }
        }
        costs[0].push(self.filtered(&cases[0], rows, true).await);
        let wall = |at: usize| Spread::of(costs[at].iter().map(|cost| cost.wall));
        let cpu = |at: usize| Spread::of(costs[at].iter().map(|cost| cost.reader));
        // The machine is not the same for all of them: each is held against its neighbours.
        let share = |at: usize| {
            let neighbours = costs[0].windows(2).map(|none| (none[0].wall + none[1].wall) / 2.0);
            let neighbours = neighbours.skip(at.saturating_sub(1)).step_by(cases.len() - 1);
            Spread::of(neighbours.zip(&costs[at]).map(|(none, beside)| none / beside.wall))
        };
        for (at, case) in cases.iter().enumerate() {
            let rate = rows as f64 / wall(at).median;
            section.row(&[
                case.name.to_owned(),
                count(case.streams as f64),
                wall(at).show(3),
                count(rate),
                if at == 0 { "1.00".to_owned() } else { share(at).show(2) },
                Spread::of(costs[at].iter().map(|cost| cost.walsender)).show(2),
                cpu(at).show(2),
                Spread::of(costs[at].iter().map(|cost| cost.client)).show(2),
                costs[at].iter().map(|cost| cost.rss).max().map_or_else(String::new, mb),
            ]);
            section.bar(format!("{}, {}", case.name, case.streams), rate, at == 0);
        }
        for (at, goal) in [(1, 0.95), (2, 0.5), (3, 0.9), (4, 0.95), (5, 0.9)] {
            let text = format!(
                "Intake beside {} filters, {}: {goal} of the rate without",
                count(cases[at].streams as f64),
                cases[at].name
            );
            section.goal(text, share(at).show(2), share(at).median >= goal);
        }
        let evaluation = (cpu(2).median - cpu(0).median).max(0.0) * 1e9 / (100 * rows) as f64;
        section.goal(
            "Evaluation of a residual predicate: at most 70 ns",
            format!("{evaluation:.0} ns"),
            evaluation <= 70.0,
        );
        section
    }

    /// The last one is held against the tests' validators, too.
    async fn filtered(&mut self, case: &Case, rows: u64, last: bool) -> Cost {
        let backlog = self.stage.backlog(TABLE, Shape::Small(1000), BEFORE).await;
        let slot = self.stage.copy(&backlog).await;
        let mut hub = self.stage.hub(&slot, &["--set", "limits.streams=12000", "--set", "limits.connections=12000"]);
        hub.start().await;
        // "latest" is behind these.
        let (first, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(BEFORE))).finish();
        check(&backlog, &first);
        let mut filtered = (case.streams > 0).then(|| {
            let until = if case.keeping_up { Until::Changes(SELECTED) } else { Until::Killed };
            let mut orders = orders(&hub, case.streams, From::Latest, until);
            orders.predicate = case.predicate.clone();
            orders.progress = case.progress;
            Client::start(&orders)
        });
        if let Some(client) = filtered.as_mut().filter(|_| !case.keeping_up) {
            client.report();
        }
        let mut all = Client::start(&orders(&hub, 1, From::Latest, Until::Following(rows)));
        all.report();
        let open = case.streams as f64 + 1.0;
        wait::eventually(std::time::Duration::from_secs(120), || async {
            let streams = hub.metric("walcast_streams").await;
            if streams >= open { Ok(()) } else { Err(format!("{streams} streams are open")) }
        })
        .await;
        let walsender = self.stage.walsender(&slot).await;
        let signal = |signal| {
            let pid = Pid::from_raw(walsender as i32).expect("a walsender");
            kill_process(pid, signal).expect("a signal");
        };
        signal(Signal::STOP);
        self.stage.insert(TABLE, Shape::Small(1000), BEFORE + 1, rows).await;
        let clients = [Some(all.pid()), filtered.as_ref().map(Client::pid)];
        let clients = || clients.iter().flatten().map(|pid| proc::cpu(*pid)).sum::<f64>();
        let spent = [walsender, hub.pid()].map(proc::cpu);
        let before = clients();
        let began = now_us();
        signal(Signal::CONT);
        let mut end = 0;
        let mut at_end = 0.0;
        if case.keeping_up
            && let Some(client) = filtered.take()
        {
            let (report, cpu) = client.finish();
            let selected = ids(BEFORE + 1 + rows - SELECTED..=BEFORE + rows);
            assert_eq!((report.changes, report.hash), (SELECTED, selected), "what the filters select");
            (end, at_end) = (report.end_us, cpu);
        }
        let (report, cpu) = all.finish();
        assert_eq!((report.changes, report.hash), (rows, ids(BEFORE + 1..=BEFORE + rows)), "changes at the sink");
        end = end.max(report.end_us);
        at_end += cpu + filtered.as_ref().map_or(0.0, |client| proc::cpu(client.pid()));
        let spent_by = |at: usize| proc::cpu([walsender, hub.pid()][at]) - spent[at];
        let cost = Cost {
            wall: (end - began) as f64 / 1e6,
            walsender: spent_by(0),
            reader: spent_by(1),
            client: at_end - before,
            rss: proc::memory(hub.pid(), "VmHWM"),
            ..Cost::default()
        };
        drop(filtered);
        if last {
            validate(&self.stage, &hub, &backlog.slot).await;
        }
        hub.kill9();
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        cost
    }
}
