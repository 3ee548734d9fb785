//! How fast one process of each language's client iterates changes that are decoded to native rows, beside pypgoutput.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use serde::Deserialize;

use super::Suites;
use crate::{
    harness::{Hub, process},
    proc,
    report::{Section, Spread, count, mb},
    stage::{Backlog, Shape},
};

const TABLE: &str = "clients";

/// Which program is run how, and what it should reach.
struct Contender {
    name: &'static str,
    script: &'static str,
    order: &'static str,
    /// Without the compiled reader of the Python client.
    pure: bool,
    goal: Option<u64>,
}

const fn contender(name: &'static str, script: &'static str, order: &'static str, goal: u64) -> Contender {
    Contender { name, script, order, pure: false, goal: Some(goal) }
}

const PYTHON: &str = "clients/python/scripts/bench.sh";
const PEER: &str = "benches/peers/pypgoutput.sh";
const ROWS: &str = "Python, native rows";

const CONTENDERS: &[Contender] = &[
    Contender { name: "pypgoutput", script: PEER, order: "rows", pure: false, goal: None },
    contender(ROWS, PYTHON, "rows", 50_000),
    Contender { name: "Python, asyncio", script: PYTHON, order: "asyncio", pure: false, goal: None },
    Contender { name: "Python, nothing compiled", script: PYTHON, order: "rows", pure: true, goal: Some(50_000) },
    contender("Python, Arrow", PYTHON, "arrow", 500_000),
    contender("Node", "clients/typescript/scripts/bench.sh", "rows", 150_000),
    contender("Go", "clients/go/scripts/bench.sh", "rows", 500_000),
    contender("Java", "clients/java/scripts/bench.sh", "rows", 500_000),
    contender("Rust", "clients/rust/scripts/bench.sh", "rows", 500_000),
];

fn script(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Builds a program; otherwise why it is left out.
fn build(path: &str) -> Result<(), String> {
    let mut command = process::command(&script(path), process::Account::Own, "KILL");
    command.arg("build").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::spawn(command).and_then(Child::wait_with_output).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().lines().last().unwrap_or_default().to_owned();
    let said = [text(&output.stdout), text(&output.stderr)].into_iter().find(|line| !line.is_empty());
    Err(said.unwrap_or_else(|| output.status.to_string()))
}

/// What a program says of itself.
#[derive(Deserialize)]
struct Ready {
    ready: String,
}

/// What a program says of one pass.
#[derive(Deserialize)]
struct Pass {
    changes: u64,
    nulls: u64,
    digest: u32,
    seconds: f64,
}

/// A program that waits for orders, one for each pass.
struct Program {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    version: String,
}

impl Program {
    fn start(contender: &Contender, args: &[&str]) -> Program {
        let mut command = process::command(&script(contender.script), process::Account::Own, "KILL");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        if contender.pure {
            command.env("WALCAST_PURE_PYTHON", "1");
        }
        let mut child = process::spawn(command).expect("the client's program");
        let orders = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let line = answers.next().expect("the client's program ended").expect("stdout");
        let version = serde_json::from_str::<Ready>(&line).expect("JSON").ready;
        Program { child, orders, answers, version }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn pass(&mut self, order: &str) -> Pass {
        let orders = self.orders.as_mut().expect("stdin");
        writeln!(orders, "{order}").and_then(|()| orders.flush()).expect("the client's program takes orders");
        let line = self.answers.next().expect("the client's program ended").expect("stdout");
        serde_json::from_str(&line).expect("JSON")
    }

    /// With the children that it has waited for.
    fn cpu(&self) -> f64 {
        proc::cpu(self.pid()) + proc::cpu_of_children(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// What one pass cost, each per million changes.
struct Cost {
    rate: f64,
    cpu: f64,
    hub: f64,
}

/// A contender, and what was measured; `Err` says why it was left out.
type Measured<'a> = (&'a Contender, Result<(Program, Vec<Cost>, u64), String>);

impl Suites {
    pub(super) async fn clients(&mut self) -> Section {
        let rows = self.pick(500_000, 100_000);
        let few = self.pick(20_000, 8_000);
        let runs = self.pick(6, 3);
        let about = format!(
            "{} inserts of eight columns (int8, two int4, numeric, float8, bool, timestamptz, text; the last is NULL in every tenth row) \
             in transactions of 100, in the journal of a hub. One process of each client iterates them over its stream Consume from the \
             beginning to the tail, decoded to native rows by column name (Arrow: to RecordBatches per table), and counts changes \
             and NULLs and folds the keys in order into a digest, which is checked. pypgoutput reads the first {} of the same changes from \
             a copy of the same slot, without a hub. Programs are built before, take turns, and do one pass each in turn; the first of \
             {runs} passes, with compilation at run time and connections' warming up, stands apart from the median of the others. CPU seconds \
             are the program's and the hub's, for a million changes.",
            count(rows as f64),
            count(few as f64)
        );
        let columns = [
            "client",
            "program",
            "changes/s, first pass",
            "changes/s",
            "of pypgoutput",
            "client CPU s",
            "hub CPU s",
            "client RSS MB",
        ];
        let mut section = Section::new("b-clients", "What one client process iterates", about, &columns);
        section.unit = "changes/s".to_owned();
        let mut built: Vec<(&str, Result<(), String>)> = Vec::new();
        for contender in CONTENDERS {
            if !built.iter().any(|(path, _)| *path == contender.script) {
                built.push((contender.script, build(contender.script)));
            }
        }
        let backlog = self.stage.backlog(TABLE, Shape::Mixed, rows).await;
        let (hub, slot) = self.hot(&backlog, &[]).await;
        let (address, dsn) = (format!("127.0.0.1:{}", hub.grpc_port()), self.stage.cluster.dsn());
        let outcome =
            |path: &str| built.iter().find(|(known, _)| *known == path).map_or(Ok(()), |(_, done)| done.clone());
        let mut all: Vec<Measured<'_>> = Vec::new();
        for contender in CONTENDERS {
            let table = format!("public.{TABLE}");
            let args = if contender.script == PEER { [dsn.as_str(), "bench"] } else { [address.as_str(), &table] };
            let program = outcome(contender.script).map(|()| (Program::start(contender, &args), Vec::new(), 0));
            all.push((contender, program));
        }
        for _ in 0..runs {
            for (contender, program) in &mut all {
                if let Ok((program, costs, rss)) = program {
                    let changes = if contender.script == PEER { few } else { rows };
                    costs.push(self.pass(contender, program, &backlog, changes, &hub).await);
                    *rss = proc::memory(program.pid(), "VmHWM");
                }
            }
        }
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        evaluate(&mut section, &all);
        section
    }

    async fn pass(
        &mut self,
        contender: &Contender,
        program: &mut Program,
        backlog: &Backlog,
        changes: u64,
        hub: &Hub,
    ) -> Cost {
        let slot = if contender.script == PEER { Some(self.stage.copy(backlog).await) } else { None };
        let order = slot.as_ref().map(|slot| format!("{} {slot} {changes}", contender.order));
        let before = (program.cpu(), proc::cpu(hub.pid()));
        let pass = program.pass(order.as_deref().unwrap_or(contender.order));
        let after = (program.cpu(), proc::cpu(hub.pid()));
        if let Some(slot) = slot {
            self.stage.drop_slot(&slot).await;
        }
        let digest = (1..=changes).fold(0u32, |digest, id| digest.wrapping_mul(31).wrapping_add(id as u32));
        let name = contender.name;
        assert_eq!((pass.changes, pass.nulls, pass.digest), (changes, changes / 10, digest), "changes that {name} saw");
        let million = changes as f64 / 1e6;
        Cost {
            rate: changes as f64 / pass.seconds,
            cpu: (after.0 - before.0) / million,
            hub: (after.1 - before.1) / million,
        }
    }
}

/// Of all passes but the first.
fn median(costs: &[Cost], value: fn(&Cost) -> f64) -> f64 {
    Spread::of(costs[1..].iter().map(value)).median
}

fn evaluate(section: &mut Section, all: &[Measured<'_>]) {
    let rate = |name: &str| {
        let found = all.iter().find(|(contender, _)| contender.name == name)?;
        found.1.as_ref().ok().map(|(_, costs, _)| median(costs, |cost| cost.rate))
    };
    let peer = rate("pypgoutput");
    for (contender, measured) in all {
        let name = contender.name.to_owned();
        match measured {
            Ok((program, costs, rss)) => {
                let per_second = median(costs, |cost| cost.rate);
                section.row(&[
                    name.clone(),
                    program.version.clone(),
                    count(costs[0].rate),
                    count(per_second),
                    peer.map_or_else(|| "-".to_owned(), |peer| format!("{:.1}", per_second / peer)),
                    format!("{:.2}", median(costs, |cost| cost.cpu)),
                    if contender.script == PEER {
                        "-".to_owned()
                    } else {
                        format!("{:.2}", median(costs, |cost| cost.hub))
                    },
                    mb(*rss),
                ]);
                section.bar(name.clone(), per_second, contender.script == PEER);
                if let Some(goal) = contender.goal {
                    let text = format!("{name}: {} changes/s", count(goal as f64));
                    section.goal(text, count(per_second), per_second >= goal as f64);
                }
            }
            Err(why) => {
                let mut cells = vec![name, format!("left out: {why}")];
                cells.resize(section.columns.len(), "-".to_owned());
                section.row(&cells);
            }
        }
    }
    if let (Some(peer), Some(rows)) = (peer, rate(ROWS)) {
        let times = rows / peer;
        section.goal("Python, of pypgoutput's rate: 10", format!("{times:.1}"), times >= 10.0);
    }
}
