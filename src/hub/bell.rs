//! What wakes one stream: rung by whoever has something for it, heard by the session at its next wait.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

/// Of one listener. A ring that nobody waits for is heard by the next wait. Neither ringing nor waiting takes a lock, and a wait
/// that is dropped leaves nothing behind.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Wakes the stream.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready once for any number of rings since it was ready last.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.heard() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.heard() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn heard(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel)
    }

    #[cfg(test)]
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Waits for a ring. Cancel-safe.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}
