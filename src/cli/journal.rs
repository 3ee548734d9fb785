//! `walcast journal`: the segment files on disk, without a hub.

use std::{io::IsTerminal, path::Path};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    args::JournalCommand,
    error::Error,
    output::Output,
    parts::{self, SegmentRow, Verified},
    text::{self, grouped, plural},
};
use crate::config::units::show_bytes;

pub fn run(command: JournalCommand) -> Result<(), Error> {
    match command {
        JournalCommand::List { data_dir } => Output::plain().print(&table(&parts::segments(&data_dir)?)),
        JournalCommand::Verify { data_dir } => verify(&data_dir),
    }
}

fn table(segments: &[SegmentRow]) -> String {
    let rows: Vec<Vec<String>> = segments
        .iter()
        .map(|segment| {
            let file = segment.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let figures = [show_bytes(segment.bytes), grouped(segment.blocks)];
            [file].into_iter().chain(figures).chain([segment.after.clone(), segment.up_to.clone()]).collect()
        })
        .collect();
    let bytes = segments.iter().map(|segment| segment.bytes).sum();
    let mut text = text::table(&["SEGMENT", "SIZE", "BLOCKS", "AFTER", "UP TO"], &rows);
    text.push_str(&format!("{}, {}\n", plural(segments.len() as u64, "segment"), show_bytes(bytes)));
    text
}

fn verify(data_dir: &Path) -> Result<(), Error> {
    let segments = parts::segments(data_dir)?;
    let bar = bar(segments.iter().map(|segment| segment.bytes).sum());
    let output = Output::plain();
    let mut damaged = 0;
    let mut records = 0;
    let mut before = 0;
    for segment in &segments {
        let verified = parts::verify(segment, &mut |bytes| bar.set_position(before + bytes))?;
        before += segment.bytes;
        records += verified.records;
        damaged += u64::from(verified.damage.is_some());
        bar.suspend(|| output.print(&line(&verified)))?;
    }
    bar.finish_and_clear();
    if damaged > 0 {
        return Err(Error::Failed(format!("{} damaged", plural(damaged, "segment"))));
    }
    output.print(&format!("{} in {} are whole\n", plural(records, "record"), plural(segments.len() as u64, "segment")))
}

fn line(verified: &Verified) -> String {
    let file = verified.file.file_name().unwrap_or_default().to_string_lossy();
    match &verified.damage {
        None => format!("{file}  ok  {}\n", plural(verified.records, "record")),
        Some(damage) => format!("{file}  DAMAGED after {}: {damage}\n", plural(verified.records, "record")),
    }
}

/// On stderr, and only where that is a terminal.
fn bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
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

    #[test]
    fn segments_are_summed_up() {
        let segment = SegmentRow {
            file: "journal/1.seg".into(),
            bytes: 1 << 20,
            blocks: 1234,
            after: "0/10".into(),
            up_to: "0/20".into(),
        };
        assert_eq!(
            table(&[segment]),
            "SEGMENT  SIZE      BLOCKS  AFTER  UP TO\n1.seg    1.00 MiB  1,234   0/10   0/20\n1 segment, 1.00 MiB\n"
        );
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let verified = Verified { file: "1.seg".into(), records: 1, damage: Some("offset 96: CRC".into()) };
        assert_eq!(line(&verified), "1.seg  DAMAGED after 1 record: offset 96: CRC\n");
    }
}
