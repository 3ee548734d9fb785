//! `walcast subscribers`: named subscribers and their checkpoints.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::{
    args::{Format, SubscribersCommand},
    client::Hub,
    error::Error,
    output::Output,
    status::position,
    text::{self, timestamp},
};
use crate::{
    config::units::{show_bytes, show_duration},
    lsn::Lsn,
    wire::{pb, token::Token},
};

pub async fn run(command: SubscribersCommand) -> Result<(), Error> {
    let output = Output::plain();
    match command {
        SubscribersCommand::List { format, hub } => {
            let hub = Hub::named(&hub)?;
            let response = hub.ask(async { hub.admin().list_subscribers(pb::ListSubscribersRequest {}).await }).await?;
            let subscribers = response.subscribers;
            // Asked behind the list: what has expired stays so.
            let status = hub.ask(async { hub.admin().get_status(pb::GetStatusRequest {}).await }).await?;
            let earliest = status.journal.and_then(|journal| journal.earliest);
            let earliest = earliest.as_ref().and_then(|earliest| earliest.lsn.parse().ok());
            output.print(&match format {
                Format::Pretty => table(&subscribers, earliest, Timestamp::now()),
                Format::Json => subscribers.iter().map(|subscriber| line(subscriber, earliest)).collect(),
            })
        }
        SubscribersCommand::Reset { name, to, hub } => {
            let hub = Hub::named(&hub)?;
            let request =
                pb::ResetSubscriberRequest { subscriber: name.clone(), start: Some(to.to_pb(Timestamp::now())) };
            let response = hub.ask(async { hub.admin().reset_subscriber(request).await }).await?;
            let lsn = response.checkpoint.unwrap_or_default().lsn;
            output.print(&format!("{name} continues after {lsn}\n"))
        }
        SubscribersCommand::Delete { name, hub } => {
            let hub = Hub::named(&hub)?;
            let request = pb::DeleteSubscriberRequest { subscriber: name.clone() };
            hub.ask(async { hub.admin().delete_subscriber(request).await }).await?;
            output.print(&format!("{name} is forgotten\n"))
        }
    }
}

/// Whether retention has removed what comes behind the checkpoint. One that owes the rows of a consistent snapshot needs none
/// of it: they are read anew.
fn has_expired(subscriber: &pb::Subscriber, earliest: Option<Lsn>) -> bool {
    let Some(checkpoint) = &subscriber.checkpoint else { return false };
    let owed = Token::decode(&checkpoint.snapshot).ok().and_then(|token| token.progress);
    let at: Option<Lsn> = checkpoint.lsn.parse().ok();
    subscriber.lag_bytes > 0
        && owed.is_none_or(|owed| owed.incremental)
        && at.zip(earliest).is_some_and(|(at, earliest)| at < earliest)
}

fn table(subscribers: &[pb::Subscriber], earliest: Option<Lsn>, now: Timestamp) -> String {
    if subscribers.is_empty() {
        return "there are no named subscribers\n".to_owned();
    }
    let rows: Vec<Vec<String>> = subscribers
        .iter()
        .map(|subscriber| {
            let seen = subscriber.last_seen.as_ref().and_then(timestamp);
            let seen = seen.and_then(|seen| Duration::try_from(now.duration_since(seen)).ok());
            let state = match (subscriber.connected, seen) {
                (true, _) => format!("connected from {}", subscriber.peer),
                (false, Some(seen)) => format!("gone for {}", show_duration(seen)),
                (false, None) => "never seen".to_owned(),
            };
            vec![
                subscriber.name.clone(),
                subscriber.checkpoint.as_ref().map_or_else(|| "-".to_owned(), |position| position.lsn.clone()),
                show_bytes(subscriber.lag_bytes),
                subscriber.lag.and_then(|lag| lag.try_into().ok()).map_or_else(|| "-".to_owned(), show_duration),
                [if has_expired(subscriber, earliest) { "expired, " } else { "" }, &*state].concat(),
            ]
        })
        .collect();
    text::table(&["NAME", "CHECKPOINT", "LAG", "BEHIND", "STATE"], &rows)
}

fn line(subscriber: &pb::Subscriber, earliest: Option<Lsn>) -> String {
    let lag: Option<Duration> = subscriber.lag.and_then(|lag| lag.try_into().ok());
    let value = json!({
        "name": subscriber.name,
        "checkpoint": position(subscriber.checkpoint.as_ref()),
        "connected": subscriber.connected,
        "lag_bytes": subscriber.lag_bytes,
        "lag_seconds": lag.map(|lag| lag.as_secs_f64()),
        "last_seen": subscriber.last_seen.as_ref().and_then(timestamp).map(|time| time.to_string()),
        "peer": subscriber.peer,
        "expired": has_expired(subscriber, earliest),
    });
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    #[test]
    fn who_is_behind_is_seen_at_a_glance() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().expect("a time");
        let billing = pb::Subscriber {
            name: "billing".into(),
            checkpoint: Some(testing::position("0/16B3748")),
            lag_bytes: 3 << 20,
            lag: Some(prost_types::Duration { seconds: 75, nanos: 0 }),
            last_seen: Some(prost_types::Timestamp { seconds: now.as_second() - 7200, nanos: 0 }),
            ..Default::default()
        };
        let search =
            pb::Subscriber { name: "s".into(), connected: true, peer: "10.0.0.7:4711".into(), ..Default::default() };
        let both = [billing.clone(), search];
        assert_eq!(
            table(&both, "0/16B3748".parse().ok(), now),
            "NAME     CHECKPOINT  LAG       BEHIND  STATE\n\
             billing  0/16B3748   3.00 MiB  1m 15s  gone for 2h\n\
             s        -           0 B       -       connected from 10.0.0.7:4711\n"
        );
        let earliest = "0/16B3749".parse().ok();
        assert!(table(&both, earliest, now).contains("1m 15s  expired, gone for 2h\n"));
        assert!(line(&billing, earliest).contains("\"expired\":true"));
    }
}
