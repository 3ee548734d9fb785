//! `walcast status`: what `GetStatus` says, for people and for jq.

use serde_json::{Value, json};

use super::{
    args::{Format, StatusArgs},
    client::Hub,
    error::Error,
    output::Output,
    retracted::{self, Retracted},
    text::{grouped, pairs, timestamp},
};
use crate::{config::units::show_bytes, wire::pb};

pub async fn run(args: &StatusArgs) -> Result<(), Error> {
    let hub = Hub::named(&args.hub)?;
    let status = hub.ask(async { hub.admin().get_status(pb::GetStatusRequest {}).await }).await?;
    let retracted = retracted::read(&hub, &status).await;
    Output::plain().print(&match args.format {
        Format::Pretty => pretty(&status, &retracted),
        Format::Json => format!("{}\n", to_json(&status, &retracted)),
    })
}

fn pretty(status: &pb::GetStatusResponse, retracted: &[Retracted]) -> String {
    let source = status.source.clone().unwrap_or_default();
    let journal = status.journal.clone().unwrap_or_default();
    let state = match (source.connected, source.last_error.is_empty()) {
        (true, _) => "streaming".to_owned(),
        (false, true) => "connecting".to_owned(),
        (false, false) => format!("away: {}", source.last_error),
    };
    let since = journal.earliest_commit_time.as_ref().and_then(timestamp);
    let since = since.map_or_else(String::new, |time| format!("  since {time:.0}"));
    // What the hub saw last: while it is away nothing says how it is now.
    let seen = if source.connected || source.wal_status.is_empty() { "" } else { "  (when it last streamed)" };
    let wal = if source.wal_status.is_empty() { String::new() } else { format!("  wal {}{seen}", source.wal_status) };
    let mut text = source.alarms.iter().fold(String::new(), |text, alarm| text + "ALARM " + alarm + "\n");
    text += &pairs(&[
        ("hub", format!("walcast {}", status.version)),
        ("streams", grouped(u64::from(status.streams))),
        ("source", state),
        ("  cluster", format!("{}  timeline {}", source.system_identifier, source.timeline)),
        ("  lineage", source.lineage),
        ("  slot", format!("{}{wal}", source.slot)),
        ("  confirmed", format!("{}{seen}", source.confirmed_flush_lsn)),
        ("  current", format!("{}{seen}", source.current_lsn)),
        ("  retained", format!("{}{seen}", show_bytes(source.retained_wal_bytes))),
        ("journal", show_bytes(journal.bytes)),
        ("  earliest", format!("{}{since}", lsn(journal.earliest.as_ref()))),
        ("  tail", lsn(journal.tail.as_ref())),
    ]);
    if source.connected && !source.last_error.is_empty() {
        text += &pairs(&[("  WAITS", source.last_error)]); // it streams, and nothing is taken from the stream
    }
    if journal.eager {
        text += &pairs(&[("  durable", format!("{}  (eager: delivered before)", lsn(journal.durable.as_ref())))]);
    }
    for standby in &source.standbys {
        let state = if standby.ready { "ready to take over" } else { &standby.detail };
        text += &pairs(&[("standby", format!("{}  {state}", standby.server))]);
    }
    for range in &journal.retracted {
        let (after, up_to) = (lsn(range.after.as_ref()), lsn(range.up_to.as_ref()));
        text += &pairs(&[("retracted", format!("{}  after {after} up to {up_to}", range.old_lineage))]);
        text += &retracted::pretty(retracted, range);
    }
    text
}

fn lsn(position: Option<&pb::Position>) -> String {
    position.map_or_else(|| "-".to_owned(), |position| position.lsn.clone())
}

fn to_json(status: &pb::GetStatusResponse, retracted: &[Retracted]) -> Value {
    let source = status.source.as_ref().map(|source| {
        json!({
            "connected": source.connected,
            "system_identifier": source.system_identifier,
            "timeline": source.timeline,
            "lineage": source.lineage,
            "slot": source.slot,
            "wal_status": source.wal_status,
            "confirmed_flush_lsn": source.confirmed_flush_lsn,
            "current_lsn": source.current_lsn,
            "retained_wal_bytes": source.retained_wal_bytes,
            "last_error": source.last_error,
            "alarms": source.alarms,
            "standbys": source.standbys.iter().map(|standby| {
                json!({ "server": standby.server, "ready": standby.ready, "detail": standby.detail })
            }).collect::<Vec<_>>(),
        })
    });
    let journal = status.journal.as_ref().map(|journal| {
        json!({
            "earliest": position(journal.earliest.as_ref()),
            "tail": position(journal.tail.as_ref()),
            "bytes": journal.bytes,
            "eager": journal.eager,
            "durable": position(journal.durable.as_ref()),
            "earliest_commit_time":
                journal.earliest_commit_time.as_ref().and_then(timestamp).map(|time| time.to_string()),
            "retracted": journal.retracted.iter().map(|range| {
                let (transactions, more) = retracted::to_json(retracted, range);
                json!({
                    "transactions": transactions,
                    "more": more,
                    "old_lineage": range.old_lineage,
                    "new_lineage": range.new_lineage,
                    "switch_lsn": range.switch_lsn,
                    "after": position(range.after.as_ref()),
                    "up_to": position(range.up_to.as_ref()),
                })
            }).collect::<Vec<_>>(),
        })
    });
    json!({ "version": status.version, "streams": status.streams, "source": source, "journal": journal })
}

/// A position as JSON; null where there is none.
pub fn position(position: Option<&pb::Position>) -> Value {
    position.map_or(
        Value::Null,
        |position| json!({ "lsn": position.lsn, "lineage": position.lineage, "sequence": position.sequence }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_has_never_connected_can_be_shown() {
        let text = pretty(&pb::GetStatusResponse { version: "1.2.3".into(), ..Default::default() }, &[]);
        assert!(
            text.starts_with("hub          walcast 1.2.3\n") && text.contains("source       connecting\n"),
            "{text}"
        );
        assert_eq!(to_json(&pb::GetStatusResponse::default(), &[])["source"], Value::Null);
    }

    #[test]
    fn the_reason_of_an_outage_is_shown() {
        let source = pb::SourceStatus { last_error: "SLOT_IN_USE: by pid 7".into(), ..Default::default() };
        let text = pretty(&pb::GetStatusResponse { source: Some(source), ..Default::default() }, &[]);
        assert!(text.contains("away: SLOT_IN_USE: by pid 7"), "{text}");
    }

    #[test]
    fn what_was_true_before_an_outage_is_not_said_as_if_it_were_true_now() {
        let source = |connected| pb::SourceStatus {
            connected,
            last_error: "DISK_FULL: no room".into(),
            wal_status: "reserved".into(),
            retained_wal_bytes: 2048,
            ..Default::default()
        };
        let text = |source| pretty(&pb::GetStatusResponse { source: Some(source), ..Default::default() }, &[]);
        let (away, there) = (text(source(false)), text(source(true)));
        assert!(away.contains("wal reserved  (when it last streamed)\n"), "{away}");
        assert!(away.contains("2.00 KiB  (when it last streamed)\n") && !away.contains("WAITS"), "{away}");
        assert!(there.contains("wal reserved\n") && there.contains("2.00 KiB\n"), "{there}");
        assert!(there.contains("WAITS") && there.contains("DISK_FULL: no room\n"), "{there}");
    }
}
