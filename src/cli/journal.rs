//! `walcast journal`: the segment files on disk, without a hub.

use std::{io::IsTerminal, path::Path};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    advice,
    args::JournalCommand,
    error::Error,
    output::Output,
    text::{self, grouped, plural},
};
use crate::{
    config::units::show_bytes,
    journal::inspect::{self, Report, SegmentInfo},
};

pub fn run(command: JournalCommand) -> Result<(), Error> {
    let output = Output::plain();
    match command {
        JournalCommand::List { data_dir } => {
            let segments = inspect::list(existing(&data_dir)?).map_err(|error| advice::journal(&error))?;
            output.print(&table(&segments))
        }
        JournalCommand::Verify { data_dir } => {
            let bar = bar();
            let mut progress = |done, of| {
                bar.set_length(of);
                bar.set_position(done);
            };
            let report = inspect::verify(existing(&data_dir)?, &mut progress);
            bar.finish_and_clear();
            let report = report.map_err(|error| advice::journal(&error))?;
            output.print(&summary(&report))?;
            match report.problems.len() {
                0 => Ok(()),
                problems => Err(Error::Failed(format!("{} in the journal", plural(problems as u64, "problem")))),
            }
        }
    }
}

/// A directory that is not there is a typing mistake, not an empty journal.
pub fn existing(data_dir: &Path) -> Result<&Path, Error> {
    match data_dir.is_dir() {
        true => Ok(data_dir),
        false => Err(Error::Usage(format!("{} is not a directory", data_dir.display()))),
    }
}

fn table(segments: &[SegmentInfo]) -> String {
    let rows: Vec<Vec<String>> = segments
        .iter()
        .map(|segment| {
            let file = segment.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match &segment.problem {
                Some(problem) => vec![file, "DAMAGED".to_owned(), problem.clone()],
                None => vec![
                    file,
                    show_bytes(segment.bytes),
                    grouped(segment.blocks),
                    segment.after.lsn.to_string(),
                    segment.up_to.lsn.to_string(),
                ],
            }
        })
        .collect();
    let bytes = segments.iter().map(|segment| segment.bytes).sum();
    let mut text = text::table(&["SEGMENT", "SIZE", "BLOCKS", "AFTER", "UP TO"], &rows);
    text.push_str(&format!("{}, {}\n", plural(segments.len() as u64, "segment"), show_bytes(bytes)));
    text
}

fn summary(report: &Report) -> String {
    let mut text: String = report.problems.iter().map(|problem| format!("DAMAGED  {problem}\n")).collect();
    text.push_str(&format!(
        "{}: {} with {} in {}, up to {}\n",
        plural(report.segments, "segment"),
        plural(report.blocks, "intact block"),
        plural(report.events, "event"),
        show_bytes(report.bytes),
        report.tail
    ));
    if report.torn_bytes > 0 {
        let torn = show_bytes(report.torn_bytes);
        text.push_str(&format!("{torn} at the end are not whole yet, or were torn off by a crash: no loss\n"));
    }
    text
}

/// On stderr, and only where that is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {binary_bytes} of {binary_total_bytes}  {eta} left") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::Position};

    #[test]
    fn segments_are_summed_up() {
        let segment = SegmentInfo {
            number: 1,
            path: "segments/1.seg".into(),
            bytes: 1 << 20,
            blocks: 1234,
            first_block: 0,
            after: Position { lsn: Lsn(0x10), ..Position::default() },
            up_to: Position { lsn: Lsn(0x20), ..Position::default() },
            created: 0,
            commit_times: None,
            problem: None,
        };
        let damaged =
            SegmentInfo { path: "segments/2.seg".into(), bytes: 0, problem: Some("header".into()), ..segment.clone() };
        assert_eq!(
            table(&[segment, damaged]),
            "SEGMENT  SIZE      BLOCKS  AFTER  UP TO\n\
             1.seg    1.00 MiB  1,234   0/10   0/20\n\
             2.seg    DAMAGED   header\n\
             2 segments, 1.00 MiB\n"
        );
    }

    #[test]
    fn what_a_crash_tore_off_is_no_damage() {
        let report = Report { segments: 1, blocks: 2, events: 3, bytes: 1024, torn_bytes: 7, ..Report::default() };
        let text = summary(&report);
        assert!(text.starts_with("1 segment: 2 intact blocks with 3 events in 1.00 KiB, up to 0/0"), "{text}");
        assert!(text.ends_with("no loss\n") && !text.contains("DAMAGED"), "{text}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_wrong_usage() {
        assert_eq!(existing(Path::new("/no/such/directory")).expect_err("not there").exit_code(), 2);
    }
}
