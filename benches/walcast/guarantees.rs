//! A stream's guarantees, held as it passes. What the validators of the integration tests hold over recorded histories is
//! held here without recording any, since a benchmark's stream is too long for that, and cheaply, since the client shares
//! the machine with what it measures. That nothing is missing is for count and hash to say ([`super::stage::check`]).

/// What has passed of one stream.
#[derive(Default)]
pub struct Guarantees {
    /// Events of the open transaction.
    open: Option<u64>,
    /// Of its last event.
    ordinal: u64,
    /// LSN and sequence of the last position.
    passed: (u64, u64),
}

impl Guarantees {
    pub fn begin(&mut self) {
        assert!(self.open.is_none(), "Atomic: a transaction begins in another one");
        (self.open, self.ordinal) = (Some(0), 0);
    }

    /// A change, truncate or message in a transaction.
    pub fn event(&mut self, ordinal: u64) {
        let Some(events) = &mut self.open else { panic!("Atomic: an event outside of transactions") };
        assert!(ordinal > self.ordinal, "Unique: event {ordinal} behind event {}", self.ordinal);
        *events += 1;
        self.ordinal = ordinal;
    }

    /// `events`: as many as the stream has sent of the transaction.
    pub fn commit(&mut self, position: (u64, u64), events: u64, total: u64) {
        let Some(sent) = self.open.take() else { panic!("Atomic: a commit without a begin") };
        assert_eq!(sent, events, "Complete: events of a transaction that were selected");
        assert!(events > 0 && events <= total && self.ordinal <= total, "Complete: {events} of {total} events");
        assert!(position > self.passed, "Ordered: a commit at {position:x?} behind {:x?}", self.passed);
        self.passed = position;
    }

    /// A part that did not happen; none of it counts.
    pub fn discard(&mut self) {
        assert!(self.open.take().is_some(), "Atomic: nothing to discard");
    }

    pub fn progress(&mut self, position: (u64, u64)) {
        assert!(self.open.is_none(), "Progress-safe: a progress inside a transaction");
        assert!(position >= self.passed, "Progress-safe: back to {position:x?} from {:x?}", self.passed);
        self.passed = position;
    }

    /// Behind a switch of timelines LSNs come again.
    pub fn switched(&mut self) {
        assert!(self.open.is_none(), "Lineage: a switch inside a transaction");
        self.passed = (0, 0);
    }
}
