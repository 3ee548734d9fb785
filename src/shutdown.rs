//! The drain token: one place that says "finish now", and everybody who must hear it.

use tokio_util::sync::CancellationToken;

/// Told once, heard by every clone, at any time after.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// A token that nobody has told to drain.
    pub fn new() -> Self {
        Drain::default()
    }

    /// Tells everybody.
    pub fn start(&self) {
        self.0.cancel();
    }

    /// Whether draining has been told.
    pub fn started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns once draining has been told; at once if it was before.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}
