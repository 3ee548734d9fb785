//! What may be journaled yet. See `source::gate` for who opens it.

use tokio::sync::watch;

use crate::lsn::Lsn;

/// Holds back transactions that end behind an LSN.
pub struct Gate {
    open: watch::Receiver<Lsn>,
    want: watch::Sender<Lsn>,
}

impl Gate {
    /// `open` says up to where (inclusive) it is open; `want` is told what waits.
    pub fn new(open: watch::Receiver<Lsn>, want: watch::Sender<Lsn>) -> Self {
        Gate { open, want }
    }

    /// Whether it is open up to here; if not, that is asked for.
    pub(super) fn passes(&self, lsn: Lsn) -> bool {
        let passes = lsn <= *self.open.borrow();
        if !passes {
            self.want.send_if_modified(|wanted| std::mem::replace(wanted, lsn) != lsn);
        }
        passes
    }

    /// Returns when it has moved. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        if self.open.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
