//! A temporary slot for what its making waits for. The server writes a record of the transactions that run, and then, before it
//! takes the next step, another one in which all of these have ended
//! ([SnapBuild](https://github.com/postgres/postgres/blob/master/src/backend/replication/logical/snapbuild.c)). It says so at each step,
//! with the words in which [`consistent`](super::consistent) hears it. There are three, and the first is enough to know that
//! what ran at the beginning runs no more.

use std::time::Duration;

use super::{
    Replication,
    consistent::{Consistency, read},
    frame, identifier,
};
use crate::postgres::error::{Error, Phase, Result};

/// How it became known that everything has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlived {
    /// The slot is made, and goes with its session.
    Made,
    /// The server goes on making it, and waits for others now. That is to be ended.
    Making,
}

impl Replication {
    /// Waits until every transaction that runs now has ended and is seen by whoever looks: makes a temporary slot of this name, or
    /// half of it. The session is of no other use afterwards.
    ///
    /// The slot is made with a snapshot, although nobody takes it. Without one, some releases
    /// [wait for nobody](super::begins_amid).
    ///
    /// # Errors
    /// 55P03 when one transaction is waited for longer than `patience` (whole milliseconds, at least one). The server sees to that
    /// itself, also when nobody listens: who waits for a transaction does not notice that the connection has gone.
    pub async fn outlive(&mut self, name: &str, patience: Duration) -> Result<Outlived> {
        let patience = patience.as_millis().clamp(1, i32::MAX as u128);
        self.rows(&format!("SET lock_timeout = {patience}")).await?;
        self.hear_where_decoding_is_consistent().await?;
        let options = match self.version() {
            ..150_000 => "EXPORT_SNAPSHOT",
            _ => "(SNAPSHOT 'export')",
        };
        self.query(&format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput {options}", identifier(name)))
            .await?;
        let mut steps = 0;
        let mut failure = None;
        loop {
            match self.channel.next()? {
                None => match self.channel.fill().await {
                    Ok(()) => {}
                    // After a FATAL error the connection ends instead of becoming ready.
                    Err(error) => return Err(failure.unwrap_or(error)),
                },
                Some((b'N', body)) => {
                    let notice = frame::notice(body);
                    tracing::debug!(slot = name, %notice, "from the source");
                    steps += usize::from(notice.severity == "LOG" && read(&notice) == Some(Consistency::Searching));
                    // The first tells who is waited for, the second that they have ended.
                    if steps == 2 {
                        return Ok(Outlived::Making);
                    }
                }
                Some((b'E', body)) => {
                    failure = Some(Error::Server { phase: Phase::Command, notice: frame::notice(body) });
                }
                Some((b'Z', _)) => return failure.map_or(Ok(Outlived::Made), Err),
                Some(_) => {}
            }
        }
    }
}
