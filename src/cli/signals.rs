//! SIGINT and SIGTERM: the first asks everything to end well, the second ends the process.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::error::Error;
use crate::shutdown::Drain;

/// Exit code of a process that was interrupted, as shells count it.
const INTERRUPTED: i32 = 130;

/// Signals that come together are one: `timeout` sends its own to the process and to its group, and so do other parents.
const TOGETHER: Duration = Duration::from_millis(500);

/// A token that the first signal tells. A second signal, half a second later at least, exits at once.
pub fn drain_on_signal() -> Result<Drain, Error> {
    let context = || Error::io("listening for signals");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(context())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(context())?;
    let drain = Drain::new();
    let told = drain.clone();
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match first {
                Some(first) if first.elapsed() < TOGETHER => continue,
                _ if told.started() => std::process::exit(INTERRUPTED),
                _ => {}
            }
            first = Some(Instant::now());
            told.start();
        }
    });
    Ok(drain)
}
