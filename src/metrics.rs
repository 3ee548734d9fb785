//! Metric names and their one-line recorders, so that logic carries one call and no strings.

use metrics::{counter, describe_counter, describe_gauge, gauge};

macro_rules! names {
    ($( $(#[$doc:meta])* $kind:ident $name:ident = $text:literal, $help:literal; )*) => {
        $( #[doc = $help] pub const $name: &str = $text; )*

        /// Registers the help text of every metric; once, after the recorder is installed.
        pub fn describe() { $( names!(@$kind $name, $help); )* }
    };
    (@counter $name:ident, $help:literal) => { describe_counter!($name, $help); };
    (@gauge $name:ident, $help:literal) => { describe_gauge!($name, $help); };
}

names! {
    counter EVENTS_ENCODED = "walcast_events_encoded_total", "Events encoded, once each, whatever the number of subscribers.";
    counter EVENTS_DELIVERED = "walcast_events_delivered_total", "Events handed to subscribers' streams.";
    counter PROJECTIONS = "walcast_projections_total", "Blocks projected, once per distinct selection and row format.";
    counter JOURNAL_BYTES_WRITTEN = "walcast_journal_bytes_written_total", "Bytes written to journal segments.";
    counter JOURNAL_FSYNCS = "walcast_journal_fsyncs_total", "fdatasync calls on journal segments.";
    counter JOURNAL_READS = "walcast_journal_reads_total", "Reads of journal segments by streams that are behind; those at the same place share one.";
    counter JOURNAL_BYTES_READ = "walcast_journal_bytes_read_total", "Bytes of journal segments read for streams that are behind.";
    counter CATCH_UP_RESTS = "walcast_catch_up_rests_total", "Rests of streams that catch up, so that live ones get the cores first.";
    gauge CATCH_UP_PIECES = "walcast_catch_up_pieces_per_second", "Pieces of 60 KiB or more a second that streams that catch up may take in together beside live ones; 0 while they go as fast as they can.";
    gauge JOURNAL_BYTES = "walcast_journal_bytes", "Bytes of journal on disk.";
    gauge JOURNAL_EAGER = "walcast_journal_eager", "1 if changes are delivered before they are durable, else 0.";
    gauge JOURNAL_DISK_FULL = "walcast_journal_disk_full", "1 while the journal waits for disk space.";
    gauge SLOT_RETAINED_BYTES = "walcast_slot_retained_bytes", "WAL that the slot holds back on the source.";
    gauge SLOT_CONFIRMED_LSN = "walcast_slot_confirmed_flush_lsn", "confirmed_flush_lsn of the slot, as a number.";
    gauge STANDBY_SLOT_READY = "walcast_standby_slot_ready", "1 if this standby could take over with the slot, else 0; gone once it is the primary.";
    gauge SOURCE_CONNECTED = "walcast_source_connected", "1 while the slot streams.";
    gauge SOURCE_ALARMS = "walcast_source_alarms", "Alarms about the source, such as tables that a failover would lose; `walcast status` names them.";
    counter SOURCE_RECONNECTS = "walcast_source_reconnects_total", "Connections to the source that ended.";
    gauge SOURCE_UNDECODABLE = "walcast_source_undecodable", "1 while a message of the source that cannot be decoded keeps it stopped: alert on it.";
    counter SLOT_DECODE_FAILURES = "walcast_slot_decode_failures_total", "Streams that the server ended because it could not decode the slot.";
    counter SOURCE_TRANSACTIONS = "walcast_source_transactions_total", "Transactions received from the source.";
    counter SOURCE_BYTES = "walcast_source_bytes_total", "Bytes of pgoutput received from the source.";
    gauge SUBSCRIBER_LAG_BYTES = "walcast_subscriber_lag_bytes", "WAL bytes between a named subscriber's checkpoint and the journal's tail.";
    gauge SUBSCRIBER_EXPIRED = "walcast_subscriber_expired", "1 if retention has removed what a named subscriber has not acknowledged, else 0.";
    gauge STREAMS = "walcast_streams", "Open subscription streams.";
    counter STREAMS_ENDED = "walcast_streams_ended_total", "Streams ended, by reason.";
    counter BYTES_DELIVERED = "walcast_bytes_delivered_total", "Bytes handed to subscribers' streams.";
    counter CHECKPOINT_WRITES = "walcast_checkpoint_syncs_total", "Synced groups of checkpoints.";
    counter REQUESTS = "walcast_grpc_requests_total", "gRPC calls by method and code.";
    gauge TLS_EXPIRES_SECONDS = "walcast_tls_certificate_expires_seconds", "Seconds until the server certificate expires.";
}

/// Adds to a counter without labels.
pub fn add(name: &'static str, n: u64) {
    counter!(name).increment(n);
}

/// Takes a gauge that belongs to nothing any more off the page. The recorder cannot forget a series, so its value says so.
pub fn retire(gauge: &metrics::Gauge) {
    gauge.set(f64::NAN);
}

/// Sets a gauge without labels.
pub fn set(name: &'static str, value: f64) {
    gauge!(name).set(value);
}
