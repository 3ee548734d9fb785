//! Credits of `Consume`. Events with an ordinal and messages use event credit; response bytes (protobuf, without the
//! gRPC prefix) use byte credit, those of `opened` and `progress` excepted. Sending goes on while both are positive, so
//! the last event may overdraw, and `commit` and `discard` are never held back: a client that waits for the
//! commit before it grants more is not to wait forever.

/// The grant that never ends.
pub(super) const UNLIMITED: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Balance(Option<i128>);

impl Balance {
    fn grant(&mut self, amount: u64) {
        self.0 = self.0.filter(|_| amount != UNLIMITED).map(|left| left + i128::from(amount));
    }

    fn spend(&mut self, amount: u64) {
        self.0 = self.0.map(|left| left - i128::from(amount));
    }

    fn covers(self, amount: u64) -> bool {
        self.0.is_none_or(|left| left >= i128::from(amount))
    }

    fn left(self) -> u64 {
        self.0.map_or(UNLIMITED, |left| u64::try_from(left.max(0)).unwrap_or(UNLIMITED))
    }
}

/// What a stream may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credits {
    events: Balance,
    bytes: Balance,
}

impl Credits {
    /// Before the first grant.
    pub const NONE: Credits = Credits { events: Balance(Some(0)), bytes: Balance(Some(0)) };

    pub fn grant(&mut self, events: u64, bytes: u64) {
        self.events.grant(events);
        self.bytes.grant(bytes);
    }

    pub fn spend(&mut self, events: u64, bytes: usize) {
        self.events.spend(events);
        self.bytes.spend(bytes as u64);
    }

    /// Whether one more event may be sent.
    pub fn positive(&self) -> bool {
        self.events.covers(1) && self.bytes.covers(1)
    }

    /// Whether all of this may be sent without asking again in between.
    pub fn covers(&self, events: u64, bytes: usize) -> bool {
        self.positive() && self.events.covers(events) && self.bytes.covers(bytes as u64)
    }

    /// Events and bytes left; an overdrawn one is 0.
    pub fn left(&self) -> (u64, u64) {
        (self.events.left(), self.bytes.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_must_be_positive() {
        let mut credits = Credits::NONE;
        assert!(!credits.positive());
        credits.grant(5, 0);
        assert!(!credits.positive());
        credits.grant(0, 10);
        assert!(credits.positive() && credits.covers(5, 10) && !credits.covers(6, 10) && !credits.covers(5, 11));
        credits.spend(1, 25);
        assert!(!credits.positive(), "one event may overdraw");
        assert_eq!(credits.left(), (4, 0));
        credits.grant(0, 15);
        assert!(!credits.positive(), "an overdraft is paid back first");
        credits.grant(0, 1);
        assert!(credits.positive());
    }

    #[test]
    fn unlimited_stays() {
        let mut credits = Credits::NONE;
        credits.grant(UNLIMITED, UNLIMITED);
        credits.spend(UNLIMITED, usize::MAX);
        credits.grant(1, 1);
        assert!(credits.covers(UNLIMITED, usize::MAX));
        assert_eq!(credits.left(), (UNLIMITED, UNLIMITED));
    }

    #[test]
    fn many_large_grants_do_not_wrap() {
        let mut credits = Credits::NONE;
        credits.grant(UNLIMITED - 1, 1);
        credits.grant(UNLIMITED - 1, 1);
        assert_eq!(credits.left(), (UNLIMITED, 2));
    }
}
