//! SIGINT and SIGTERM: the first asks everything to end well, the second ends the process.

use tokio::signal::unix::{SignalKind, signal};

use super::error::Error;
use crate::shutdown::Drain;

/// Exit code of a process that was interrupted, as shells count it.
const INTERRUPTED: i32 = 130;

/// A token that the first signal tells. A second signal exits at once.
pub fn drain_on_signal() -> Result<Drain, Error> {
    let context = || Error::io("listening for signals");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(context())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(context())?;
    let drain = Drain::new();
    let told = drain.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if told.started() {
                std::process::exit(INTERRUPTED);
            }
            told.start();
        }
    });
    Ok(drain)
}
