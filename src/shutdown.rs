//! The drain token: one place that says "finish now", and everybody who must hear it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Told once, heard by every clone, at any time after.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// The token's own answer takes the lock of its list.
    told: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Drain {
    /// A token that nobody has told to drain.
    pub fn new() -> Self {
        Drain::default()
    }

    /// Tells everybody.
    pub fn start(&self) {
        self.told.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether draining has been told.
    pub fn started(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Returns once draining has been told; at once if it was before.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// The same, to be kept and polled over and over.
    pub fn ear(&self) -> Ear {
        Ear { waiting: Box::pin(self.token.clone().cancelled_owned()), drain: self.clone(), listed: None }
    }
}

/// Finishes once draining has been told. Everybody who waits for a token is in one list with one lock, and is looked up there
/// by each poll: with a hundred streams that wake for every transaction, the threads meet there. This one stays in the list
/// from one wait to the next, and a poll by the task that polled it before reads an atomic.
pub struct Ear {
    drain: Drain,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
    listed: Option<Waker>,
}

impl Future for Ear {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.started() {
            return Poll::Ready(());
        }
        if self.listed.as_ref().is_some_and(|listed| listed.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let polled = self.waiting.as_mut().poll(cx);
        self.listed = Some(cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn whoever_polled_last_is_woken() {
        let drain = Drain::new();
        let mut ear = drain.ear();
        let woken = [Arc::<Woken>::default(), Arc::default()];
        let mut poll = |by: usize| {
            let waker = Waker::from(woken[by].clone());
            Pin::new(&mut ear).poll(&mut Context::from_waker(&waker))
        };
        for by in [0, 0, 1, 1] {
            assert_eq!(poll(by), Poll::Pending);
        }
        drain.start();
        assert_eq!([0, 1].map(|at| woken[at].0.load(Ordering::SeqCst)), [0, 1]);
        assert_eq!(poll(1), Poll::Ready(()));
        assert_eq!(poll(0), Poll::Ready(()), "and again");
        assert_eq!(Pin::new(&mut drain.ear()).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    }
}
