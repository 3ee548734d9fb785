//! `walcast snapshot`: copies tables into a file, as of one point, through the hub.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::interval;

use super::{
    args::SnapshotArgs,
    client::{Hub, MAX_MESSAGE_BYTES},
    error::Error,
    output::Output,
    parquet::ParquetFile,
    rows::{RowView, table_name, to_json, to_text},
    text::{grouped, plural},
};
use crate::{
    model::Value,
    shutdown::Drain,
    wire::pb::{self, event::Kind},
};

/// How often a line tells the progress where there is no terminal for a bar.
const LINE: Duration = Duration::from_secs(10);

/// What the file is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl" | "ndjson") => Ok(Format::JsonLines),
            Some("csv") => Ok(Format::Csv),
            Some("parquet") => Ok(Format::Parquet),
            _ => Err(Error::Usage(format!("{}: the name must end in .jsonl, .csv or .parquet", path.display()))),
        }
    }

    /// Files of this format have columns, and so hold one table.
    fn has_columns(self) -> bool {
        self != Format::JsonLines
    }
}

/// Where rows go.
enum Sink {
    JsonLines(BufWriter<fs::File>),
    /// With its columns once they are known.
    Csv(BufWriter<fs::File>, Option<Vec<String>>),
    /// Before its columns are known.
    Parquet(fs::File),
    Columns(Box<ParquetFile>),
}

/// Copies until the snapshot ends, or until `stop` is told: then no file is left.
pub async fn run(args: &SnapshotArgs, stop: &Drain) -> Result<(), Error> {
    let format = Format::of(&args.to)?;
    let hub = Hub::named(&args.hub)?;
    let request = pb::SubscribeRequest {
        start: Some(pb::Start {
            at: Some(pb::start::At::Snapshot(pb::SnapshotOptions {
                mode: pb::SnapshotMode::Consistent as i32,
                max_rows_per_second: args.max_rows_per_second.unwrap_or(0),
            })),
        }),
        filter: Some(pb::Filter {
            tables: args.tables.clone(),
            columns: args.columns.clone(),
            r#where: args.predicate.clone().unwrap_or_default(),
            // Nothing but rows is wanted, so the condition may name columns that a DELETE would not tell of.
            operations: vec![pb::Operation::Read as i32],
            ..Default::default()
        }),
        max_message_bytes: MAX_MESSAGE_BYTES,
        ..Default::default()
    };
    let interrupted = || Error::Failed(format!("interrupted: {} was not written", args.to.display()));
    let mut streams = hub.streams();
    let mut stream = tokio::select! {
        opened = hub.ask(streams.subscribe(request)) => opened?,
        () = stop.wait() => return Err(interrupted()),
    };
    let mut copy = Copy::create(&args.to, format)?;
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            _ = ticks.tick() => {
                copy.tell();
                continue;
            }
            () = stop.wait() => return Err(interrupted()),
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => break,
            Err(status) => return Err(hub.explain(status).await),
        };
        for event in response.events {
            let kind = event.kind.ok_or_else(|| Error::Protocol("an event without a kind that it knows".to_owned()))?;
            if copy.take(kind)? {
                let summary = copy.finish()?;
                return Output::plain().print(&summary);
            }
        }
    }
    Err(Error::Failed("the stream ended before the snapshot did".to_owned()))
}

/// A file that gets its name when it is complete.
struct Copy {
    to: PathBuf,
    part: PathBuf,
    sink: Option<Sink>,
    format: Format,
    relations: HashMap<u32, pb::Relation>,
    tables: Vec<String>,
    rows: u64,
    started: Instant,
    told: Instant,
    bar: ProgressBar,
    complete: bool,
}

impl Copy {
    fn create(to: &Path, format: Format) -> Result<Copy, Error> {
        let mut part = to.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = fs::File::create(&part).map_err(Error::io(part.display().to_string()))?;
        let buffered = |file| BufWriter::with_capacity(1 << 20, file);
        let sink = match format {
            Format::JsonLines => Sink::JsonLines(buffered(file)),
            Format::Csv => Sink::Csv(buffered(file), None),
            Format::Parquet => Sink::Parquet(file),
        };
        let now = Instant::now();
        Ok(Copy {
            to: to.to_owned(),
            part,
            sink: Some(sink),
            format,
            relations: HashMap::new(),
            tables: Vec::new(),
            rows: 0,
            started: now,
            told: now,
            bar: ProgressBar::hidden(),
            complete: false,
        })
    }

    /// Takes one event; whether it was the last.
    fn take(&mut self, kind: Kind) -> Result<bool, Error> {
        match kind {
            Kind::SnapshotBegin(begin) => {
                self.tables = begin.tables.iter().map(|table| table.table.clone()).collect();
                if self.tables.is_empty() {
                    return Err(Error::Failed("no published table matches".to_owned()));
                }
                if self.format.has_columns() && self.tables.len() > 1 {
                    let found = self.tables.join(", ");
                    return Err(Error::Usage(format!("such a file holds one table, and these match: {found}")));
                }
                let rows: i64 = begin.tables.iter().map(|table| table.estimated_rows.max(0)).sum();
                self.bar = bar(rows.unsigned_abs());
            }
            Kind::Relation(relation) => {
                self.describe(&relation)?;
                self.relations.insert(relation.relation_id, relation);
            }
            Kind::Change(change) if change.operation() == pb::Operation::Read => self.row(&change)?,
            Kind::SnapshotEnd(_) => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    /// The columns of the file, before its first row.
    fn describe(&mut self, relation: &pb::Relation) -> Result<(), Error> {
        let changed = || Error::Failed("the table's columns changed while it was copied".to_owned());
        if !self.tables.contains(&table_name(relation)) {
            return Ok(());
        }
        self.sink = match self.sink.take() {
            Some(Sink::Parquet(file)) => Some(Sink::Columns(Box::new(ParquetFile::create(file, relation)?))),
            Some(Sink::Columns(file)) if !file.fits(relation) => return Err(changed()),
            Some(Sink::Csv(mut file, known)) => {
                let names: Vec<String> = relation.columns.iter().map(|column| column.name.clone()).collect();
                match &known {
                    Some(known) if *known != names => return Err(changed()),
                    Some(_) => {}
                    None => {
                        let line: Vec<String> = names.iter().map(|name| quoted(name)).collect();
                        writeln!(file, "{}", line.join(",")).map_err(Error::io(self.part.display().to_string()))?;
                    }
                }
                Some(Sink::Csv(file, Some(names)))
            }
            sink => sink,
        };
        Ok(())
    }

    fn row(&mut self, change: &pb::Change) -> Result<(), Error> {
        let wrong = |text: String| Error::Protocol(text);
        let relation = self.relations.get(&change.relation_id);
        let relation = relation.ok_or_else(|| wrong(format!("relation {} was not described", change.relation_id)))?;
        let row = change.after_row.as_ref().ok_or_else(|| wrong("a row without values".to_owned()))?;
        let row = RowView::new(relation, row).map_err(|error| wrong(error.to_string()))?;
        let failed = Error::io(self.part.display().to_string());
        match &mut self.sink {
            Some(Sink::JsonLines(file)) => {
                let cell = |(column, value): (&pb::Column, _)| Some((column.name.clone(), to_json(column, value)?));
                let values: serde_json::Map<_, _> = row.iter().filter_map(cell).collect();
                let line = match self.tables.len() {
                    1 => serde_json::Value::Object(values),
                    _ => serde_json::json!({ "table": table_name(relation), "row": values }),
                };
                writeln!(file, "{line}").map_err(failed)?;
            }
            Some(Sink::Csv(file, _)) => {
                let cells = row.iter().map(|(column, value)| match value {
                    Value::Null | Value::Absent | Value::Unchanged => String::new(),
                    value => quoted(&to_text(column, value)),
                });
                writeln!(file, "{}", cells.collect::<Vec<_>>().join(",")).map_err(failed)?;
            }
            Some(Sink::Columns(file)) => file.add(row)?,
            Some(Sink::Parquet(_)) | None => {}
        }
        self.rows += 1;
        if self.rows.is_multiple_of(64) {
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.bar.set_length(self.bar.length().unwrap_or(0).max(self.rows));
        self.bar.set_position(self.rows);
        if self.told.elapsed() >= LINE && !io::stderr().is_terminal() {
            self.told = Instant::now();
            if self.tables.is_empty() {
                anstream::eprintln!("waiting for the snapshot to begin");
                return;
            }
            let of = self.bar.length().unwrap_or(0);
            let (rate, left) = pace(self.rows, of, self.started.elapsed());
            anstream::eprintln!(
                "{} of about {} rows, {} per second, about {} left",
                grouped(self.rows),
                grouped(of),
                grouped(rate),
                HumanDuration(left.unwrap_or_default())
            );
        }
    }

    fn finish(&mut self) -> Result<String, Error> {
        let failed = || Error::io(self.part.display().to_string());
        let file = match self.sink.take() {
            Some(Sink::JsonLines(file) | Sink::Csv(file, _)) => {
                file.into_inner().map_err(|error| failed()(error.into_error()))?
            }
            Some(Sink::Columns(file)) => file.finish()?,
            Some(Sink::Parquet(_)) | None => return Err(Error::Protocol("a table that was not described".to_owned())),
        };
        file.sync_all().map_err(failed())?;
        fs::rename(&self.part, &self.to).map_err(Error::io(self.to.display().to_string()))?;
        self.complete = true;
        self.bar.finish_and_clear();
        let took = self.started.elapsed();
        let (rate, _) = pace(self.rows, self.rows, took);
        Ok(format!(
            "{} of {} in {:.1} s ({} per second): {}\n",
            plural(self.rows, "row"),
            plural(self.tables.len() as u64, "table"),
            took.as_secs_f64(),
            grouped(rate),
            self.to.display()
        ))
    }
}

impl Drop for Copy {
    /// What did not become complete leaves nothing.
    fn drop(&mut self) {
        if !self.complete {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// A field as [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180) has it. The empty text is quoted, so that it is not NULL.
fn quoted(text: &str) -> String {
    match text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// How fast it has gone so far, and how long the rest will take at that rate. Nothing is said of the rest before the first row.
fn pace(rows: u64, of: u64, took: Duration) -> (u64, Option<Duration>) {
    let rate = rows as f64 / took.as_secs_f64().max(0.001);
    let left = of.saturating_sub(rows) as f64 / rate;
    (rate as u64, (rows > 0).then(|| Duration::from_secs_f64(left.min(1e9))))
}

/// On stderr, and only where that is a terminal.
fn bar(rows: u64) -> ProgressBar {
    let bar = ProgressBar::new(rows);
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        return bar;
    }
    let template = "{bar:30} {human_pos} of about {human_len} rows  {rate} per second  {left} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        let now = |state: &ProgressState| pace(state.pos(), state.len().unwrap_or(0), state.elapsed());
        let rate = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&grouped(now(state).0));
        };
        let left = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = match now(state).1 {
                Some(left) => write!(out, "{}", HumanDuration(left)),
                None => out.write_str("?"),
            };
        };
        bar.set_style(style.with_key("rate", rate).with_key("left", left));
    }
    // Also where nothing comes.
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        for (text, field) in
            [("a", "a"), ("", "\"\""), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("a\nb", "\"a\nb\"")]
        {
            assert_eq!(quoted(text), field);
        }
    }

    #[test]
    fn the_rest_takes_as_long_as_what_was_before_it() {
        let seconds = Duration::from_secs;
        assert_eq!(pace(1000, 4000, seconds(2)), (500, Some(seconds(6))));
        assert_eq!(pace(0, 4000, seconds(2)), (0, None));
        assert_eq!(pace(5000, 4000, seconds(2)), (2500, Some(seconds(0))), "the number of rows was an estimate");
    }

    #[test]
    fn the_name_says_the_format() {
        assert_eq!(Format::of(Path::new("x/t.jsonl")).ok(), Some(Format::JsonLines));
        assert_eq!(Format::of(Path::new("t.csv")).ok(), Some(Format::Csv));
        assert_eq!(Format::of(Path::new("t.parquet")).ok(), Some(Format::Parquet));
        for name in ["parquet", "t", "t.txt"] {
            assert_eq!(Format::of(Path::new(name)).err().map(|error| error.exit_code()), Some(2), "{name}");
        }
    }
}
