//! `walcast slot`: the slots of the source, which hold back its WAL whether anybody reads from them or not.

use std::io::{IsTerminal, Write};

use super::{
    args::SlotCommand,
    error::Error,
    output::Output,
    parts::{self, SlotRow},
    text,
};
use crate::config::units::show_bytes;

pub async fn run(command: SlotCommand) -> Result<(), Error> {
    let output = Output::plain();
    match command {
        SlotCommand::List { source } => output.print(&table(&parts::slots(&parts::dsn(&source)?).await?)),
        SlotCommand::Drop { slot, yes, source } => {
            let dsn = parts::dsn(&source)?;
            if !yes && !confirmed(&slot)? {
                return Err(Error::Failed("nothing was dropped".to_owned()));
            }
            parts::drop_slot(&dsn, &slot).await?;
            output.print(&format!("dropped slot {slot}\n"))
        }
    }
}

fn confirmed(slot: &str) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::Usage("not asking without a terminal: give --yes".to_owned()));
    }
    let mut err = std::io::stderr();
    let asked =
        write!(err, "Drop slot {slot}? What the hub has not read is lost to it. [y/N] ").and_then(|()| err.flush());
    asked.map_err(Error::io("stderr"))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::io("stdin"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn table(slots: &[SlotRow]) -> String {
    if slots.is_empty() {
        return "the source has no logical replication slots\n".to_owned();
    }
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|slot| {
            vec![
                slot.name.clone(),
                slot.database.clone(),
                slot.plugin.clone(),
                slot.active_pid.map_or_else(|| "idle".to_owned(), |pid| format!("pid {pid}")),
                slot.wal_status.clone(),
                slot.confirmed_flush_lsn.clone(),
                show_bytes(slot.retained_bytes),
            ]
        })
        .collect();
    text::table(&["SLOT", "DATABASE", "PLUGIN", "READER", "WAL", "CONFIRMED", "HOLDS BACK"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_slot_holds_back_is_shown() {
        let slot = SlotRow {
            name: "walcast".into(),
            plugin: "pgoutput".into(),
            database: "shop".into(),
            active_pid: Some(7),
            wal_status: "reserved".into(),
            confirmed_flush_lsn: "0/16B3748".into(),
            retained_bytes: 1 << 20,
        };
        assert_eq!(
            table(&[slot]),
            "SLOT     DATABASE  PLUGIN    READER  WAL       CONFIRMED  HOLDS BACK\n\
             walcast  shop      pgoutput  pid 7   reserved  0/16B3748  1.00 MiB\n"
        );
    }
}
