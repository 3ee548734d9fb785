//! `walcast slot`: the slots of the source, which hold back its WAL whether anybody reads from them or not.

use std::io::{IsTerminal, Write};

use super::{
    args::SlotCommand,
    error::Error,
    output::Output,
    source::{self, Given, failed},
    text,
};
use crate::{
    config::units::show_bytes,
    postgres::slot::{self, SlotState},
};

pub async fn run(command: SlotCommand) -> Result<(), Error> {
    let output = Output::plain();
    match command {
        SlotCommand::List { source } => {
            let sql = source::connect(&source::options(&source)?).await?;
            output.print(&table(&slot::list(&sql).await.map_err(failed)?))
        }
        SlotCommand::Drop { slot, yes, source } => {
            let settings = source::settings(&source, Given { slot, ..Given::default() })?;
            let sql = source::connect(&settings.options()?).await?;
            let name = settings.slot;
            if !yes && !confirmed(&name)? {
                return Err(Error::Failed("nothing was dropped".to_owned()));
            }
            match slot::drop(&sql, &name).await.map_err(failed)? {
                true => output.print(&format!("dropped slot {name}\n")),
                false => Err(Error::Failed(format!("there is no slot {name}"))),
            }
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

fn table(slots: &[SlotState]) -> String {
    if slots.is_empty() {
        return "the source has no replication slots\n".to_owned();
    }
    let rows: Vec<Vec<String>> = slots
        .iter()
        .map(|slot| {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            vec![
                slot.name.clone(),
                or_dash(&slot.database),
                slot.plugin.clone().unwrap_or_else(|| "physical".to_owned()),
                slot.active_pid.map_or_else(|| "idle".to_owned(), |pid| format!("pid {pid}")),
                or_dash(&slot.wal_status),
                or_dash(&slot.confirmed_flush.map(|lsn| lsn.to_string())),
                show_bytes(slot.retained_bytes),
            ]
        })
        .collect();
    text::table(&["SLOT", "DATABASE", "PLUGIN", "READER", "WAL", "CONFIRMED", "HOLDS BACK"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    #[test]
    fn what_a_slot_holds_back_is_shown() {
        let slot = SlotState {
            active_pid: Some(7),
            confirmed_flush: Some(Lsn(0x16B_3748)),
            retained_bytes: 1 << 20,
            ..SlotState::example()
        };
        assert_eq!(
            table(&[slot]),
            "SLOT     DATABASE  PLUGIN    READER  WAL       CONFIRMED  HOLDS BACK\n\
             walcast  shop      pgoutput  pid 7   reserved  0/16B3748  1.00 MiB\n"
        );
    }
}
