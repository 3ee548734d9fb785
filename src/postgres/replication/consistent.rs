//! Where the decoding of a stream becomes consistent. PostgreSQL says it with `LOG: logical decoding found consistent point
//! at …`, and sends that to a client which asks for messages of this level; changes come only after it.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Frame, ReplicationStream};
use crate::{
    lsn::Lsn,
    postgres::error::{Notice, Result},
};

/// What the server said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Consistent from here on: of what commits behind, everything is decoded if no snapshot was restored, or if it was
    /// restored where decoding began.
    At {
        /// Where a record of running transactions begins.
        lsn: Lsn,
        /// From a snapshot that was serialized there before.
        restored: bool,
    },
    /// Not yet: WAL is being read, or transactions that ran where decoding began are waited for.
    Searching,
    /// Nothing: changes came at once.
    Unsaid,
}

impl ReplicationStream {
    /// Waits until the server says where decoding is consistent, for `patience`: [`Consistency::Searching`] when it has not
    /// said so by then. Can be called again. Takes no changes, and asks for none to be forgotten: a server that asks is told
    /// `held`, and so it is once per call.
    pub async fn consistency(&mut self, held: Lsn, patience: Duration) -> Result<Consistency> {
        let deadline = Instant::now() + patience;
        loop {
            let mut asked = false;
            while self.channel.has_frame()? {
                if self.channel.peek_inside() == Some((b'd', b'w')) {
                    return Ok(Consistency::Unsaid);
                }
                match self.next_frame()? {
                    Some(Frame::Notice(notice)) => match read(&notice) {
                        Some(Consistency::Searching) => tracing::info!("source: {notice}"),
                        Some(found) => return Ok(found),
                        None => tracing::debug!("source: {notice}"),
                    },
                    Some(Frame::Keepalive { reply_requested, .. }) => asked |= reply_requested,
                    Some(Frame::CopyDone) => return Err(crate::postgres::Error::Closed),
                    Some(Frame::XLogData { .. }) | None => {}
                }
            }
            let over = Instant::now() >= deadline;
            if asked || over {
                self.send_status(held, held, held, false).await?;
            }
            if over {
                return Ok(Consistency::Searching);
            }
            if let Ok(filled) = timeout_at(deadline, self.fill()).await {
                filled?;
            }
        }
    }
}

/// By the function that reports, which is never translated; the details of what is not consistent yet count transactions.
pub(super) fn read(notice: &Notice) -> Option<Consistency> {
    let restored = match notice.routine.as_str() {
        "SnapBuildRestore" => true,
        "SnapBuildFindSnapshot" => false,
        _ => return None,
    };
    if notice.detail.as_deref().unwrap_or_default().contains(|c: char| c.is_ascii_digit()) {
        return Some(Consistency::Searching);
    }
    let lsn = notice.message.split_whitespace().find_map(|word| word.parse().ok())?;
    Some(Consistency::At { lsn, restored })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(routine: &str, message: &str, detail: &str) -> Notice {
        let (routine, message, detail) = (routine.to_owned(), message.to_owned(), Some(detail.to_owned()));
        Notice { routine, message, detail, severity: "LOG".into(), ..Notice::default() }
    }

    #[test]
    fn in_whatever_language() {
        let found = |routine: &str, message: &str, detail: &str| read(&notice(routine, message, detail));
        let at = |restored| Some(Consistency::At { lsn: Lsn(0x3000028), restored });
        let none = "There are no running transactions.";
        assert_eq!(
            found("SnapBuildFindSnapshot", "logical decoding found consistent point at 0/3000028", none),
            at(false)
        );
        let saved = "Logisches Dekodieren beginnt mit gespeichertem Snapshot.";
        let german = "logisches Dekodieren fand konsistenten Punkt bei 0/03000028";
        assert_eq!(found("SnapBuildRestore", german, saved), at(true));
        let waiting = "Waiting for transactions (approximately 1) older than 741 to end.";
        let initial = "logical decoding found initial starting point at 0/3000028";
        assert_eq!(found("SnapBuildFindSnapshot", initial, waiting), Some(Consistency::Searching));
        assert_eq!(found("CreateDecodingContext", "starting logical decoding for slot \"walcast\"", ""), None);
    }
}
