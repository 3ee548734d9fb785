//! The composition root: builds every part of the hub from the configuration and runs it until told to drain.

use crate::{
    config::Config,
    reason::{Classified, Reason},
    shutdown::Drain,
};

/// The hub did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    reason: Reason,
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        self.reason
    }
}

/// Runs the hub until `drain` is told or it cannot go on.
pub async fn serve(config: Config, drain: Drain) -> Result<(), Error> {
    let _ = (config, drain);
    Err(Error { message: "the hub is not wired yet".to_owned(), reason: Reason::Unsupported })
}
