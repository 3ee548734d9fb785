//! Sections of results, kept as JSON so that one suite can be repeated without the others, and written as one Markdown
//! page with a plot per section.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::proc;

/// One suite's results.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Section {
    /// Orders the page; also the plot's file name.
    pub id: String,
    pub title: String,
    /// What was done, and how often.
    pub about: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub goals: Vec<Goal>,
    /// What the bars measure.
    pub unit: String,
    pub bars: Vec<Bar>,
    /// When, of which commit, and what else the machine did.
    pub when: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Goal {
    pub text: String,
    pub measured: String,
    pub met: bool,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// Drawn in another colour than the hub.
    pub peer: bool,
}

impl Section {
    pub fn new(id: &str, title: &str, about: impl Into<String>, columns: &[&str]) -> Section {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        let (id, title, about) = (id.to_owned(), title.to_owned(), about.into());
        Section { id, title, about, columns, ..Section::default() }
    }

    /// Under what it was measured.
    pub fn under(mut self, circumstances: String) -> Section {
        self.when = circumstances;
        self
    }

    pub fn row(&mut self, cells: &[String]) {
        println!("  {}", cells.join(" | "));
        self.rows.push(cells.to_vec());
    }

    pub fn goal(&mut self, text: impl Into<String>, measured: impl Into<String>, met: bool) {
        let goal = Goal { text: text.into(), measured: measured.into(), met };
        println!("  {}: {} ({})", goal.text, goal.measured, verdict(met));
        self.goals.push(goal);
    }

    pub fn bar(&mut self, label: impl Into<String>, value: f64, peer: bool) {
        self.bars.push(Bar { label: label.into(), value, peer });
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Median with the extremes behind it, of values in one unit.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { median, min: values[0], max: values[values.len() - 1] }
    }

    pub fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$} to {:.decimals$})", self.median, self.min, self.max)
    }
}

/// 1,234,567.
pub fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

pub fn mb(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// When it is, which commit is measured, and how much of the machine others use. Waits a while for that to be little.
pub fn circumstances() -> String {
    const CALM: f64 = 0.9;
    let mut idle = proc::idle();
    for _ in 0..60 {
        if idle >= CALM {
            break;
        }
        idle = proc::idle();
    }
    let git = |args: &[&str]| proc::first_line("git", &[&["-C", env!("CARGO_MANIFEST_DIR")], args].concat());
    let changed = git(&["status", "--porcelain", "--", "src", "benches", "Cargo.lock"]);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}, walcast at {}{}; the cores were {:.0} % idle when it began, the load average was {}",
        proc::first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        git(&["rev-parse", "--short", "HEAD"]),
        if changed.is_empty() { "" } else { " with changes" },
        idle * 100.0,
        load.split(' ').next().unwrap_or_default()
    )
}

/// Where results go.
pub struct Report {
    dir: PathBuf,
    mode: &'static str,
    sections: BTreeMap<String, Section>,
}

impl Report {
    pub fn open(quick: bool) -> Report {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/results");
        let mode = if quick { "quick" } else { "full" };
        let text = fs::read_to_string(dir.join(format!("{mode}.json"))).unwrap_or_default();
        Report { dir, mode, sections: serde_json::from_str(&text).unwrap_or_default() }
    }

    /// Replaces the section and writes everything.
    pub fn add(&mut self, section: Section) {
        fs::create_dir_all(&self.dir).expect("results");
        if !section.bars.is_empty() {
            fs::write(self.dir.join(self.plot(&section)), svg(&section)).expect("plot");
        }
        self.sections.insert(section.id.clone(), section);
        let json = serde_json::to_string_pretty(&self.sections).expect("JSON");
        fs::write(self.dir.join(format!("{}.json", self.mode)), json + "\n").expect("results");
        fs::write(self.dir.join(format!("{}.md", self.mode)), self.page()).expect("results");
    }

    fn plot(&self, section: &Section) -> String {
        format!("{}-{}.svg", self.mode, section.id)
    }

    fn page(&self) -> String {
        let mut out = format!("# Benchmark results, {} run\n\n{}\n", self.mode, machine());
        let goals: Vec<&Goal> = self.sections.values().flat_map(|section| &section.goals).collect();
        if !goals.is_empty() {
            out.push_str("\n| goal | measured | |\n|---|---|---|\n");
            for goal in goals {
                let _ = writeln!(out, "| {} | {} | {} |", goal.text, goal.measured, verdict(goal.met));
            }
        }
        for section in self.sections.values() {
            let _ = write!(out, "\n## {}\n\n{} {}.\n\n", section.title, section.about, section.when);
            let _ = writeln!(out, "| {} |\n|{}", section.columns.join(" | "), "---|".repeat(section.columns.len()));
            for row in &section.rows {
                let _ = writeln!(out, "| {} |", row.join(" | "));
            }
            if !section.bars.is_empty() {
                let _ = writeln!(out, "\n![{}: {}]({})", section.title, section.unit, self.plot(section));
            }
        }
        out
    }
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |m| m.1);
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    [
        format!("- Machine: {cores} cores of {model}, {:.0} GB of memory", kib.unwrap_or(0.0) * 1024.0 / 1e9),
        format!("- {}", proc::first_line("uname", &["-sr"])),
        format!("- {}", proc::first_line("/usr/lib/postgresql/15/bin/postgres", &["--version"])),
        format!("- walcast {}, {}", env!("CARGO_PKG_VERSION"), proc::first_line("rustc", &["--version"])),
        "- Everything runs on this one machine, over 127.0.0.1: server, hub, peers and subscribers share its cores, so \
         ratios between contenders of the same run say more than rates."
            .to_owned(),
        "- CPU seconds are user and system time from /proc/PID/stat; RSS is VmHWM unless it says otherwise. Medians, with \
         minimum and maximum in parentheses; contenders take turns."
            .to_owned(),
    ]
    .join("\n")
}

/// Horizontal bars.
fn svg(section: &Section) -> String {
    const ROW: usize = 26;
    const LEFT: usize = 250;
    const WIDTH: usize = 420;
    let largest = section.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = section.bars.len() * ROW + 46;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"22\" font-weight=\"bold\">{}</text>\n",
        LEFT + WIDTH + 110,
        escape(&section.unit)
    );
    for (number, bar) in section.bars.iter().enumerate() {
        let y = 36 + number * ROW;
        let width = (bar.value / largest * WIDTH as f64).max(1.0);
        let colour = if bar.peer { "#9aa5b1" } else { "#2f6f9f" };
        let value = if bar.value < 100.0 { format!("{:.2}", bar.value) } else { count(bar.value) };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{value}</text>",
            LEFT - 8,
            y + 14,
            escape(&bar.label),
            LEFT as f64 + width + 6.0,
            y + 14
        );
    }
    out + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
