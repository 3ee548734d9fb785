//! A connection and its streams in one task. hyper would spawn each stream as a task of its own, so that every delivery took
//! two polls by the runtime and a wake-up from one task to the other.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt, task::AtomicWaker};
use hyper::rt::Executor;
use parking_lot::Mutex;

/// The task is being polled: what becomes due now is seen to before that ends.
const POLLING: u64 = 1 << 63;
/// The connection has something to do.
const CONNECTION: u64 = 1 << 62;
/// There are new streams.
const OPENED: u64 = 1 << 61;
/// The bits below are for groups of streams of which one has something to do.
const GROUPS: usize = 61;

/// Times that streams and connection are polled in turns before others get the thread.
const ROUNDS: usize = 8;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Shared {
    /// Of the bits above.
    due: AtomicU64,
    task: AtomicWaker,
    opened: Mutex<Vec<Stream>>,
}

impl Shared {
    fn tell(&self, what: u64) {
        if self.due.fetch_or(what, Ordering::AcqRel) & (what | POLLING) == 0 {
            self.task.wake();
        }
    }
}

/// What wakes the connection or one stream.
struct Bell {
    what: u64,
    rung: AtomicBool,
    shared: Arc<Shared>,
}

impl Bell {
    fn new(what: u64, shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Bell { what, rung: AtomicBool::new(true), shared: shared.clone() })
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.shared.tell(self.what);
    }
}

/// What hyper gives its streams to.
#[derive(Clone)]
pub struct Spawner(Arc<Shared>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, stream: F) {
        // A panic ends its stream, as it would in a task of its own.
        self.0.opened.lock().push(Box::pin(AssertUnwindSafe(stream).catch_unwind().map(drop)));
        self.0.tell(OPENED);
    }
}

struct Place {
    stream: Stream,
    bell: Arc<Bell>,
    waker: Waker,
}

/// The streams of one connection.
pub struct Together {
    shared: Arc<Shared>,
    places: Vec<Option<Place>>,
    of_connection: Waker,
}

impl Drop for Together {
    /// A connection that ends in the poll that has opened streams leaves them untaken, and each holds a [`Spawner`], and so
    /// itself. Only polls open streams, and there are none after this.
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.shared.opened.lock());
        drop(left);
    }
}

impl Together {
    /// A connection that is to be polled, and what it gives its streams to.
    pub fn new() -> (Self, Spawner) {
        let shared = Arc::new(Shared::default());
        shared.due.store(CONNECTION, Ordering::Release);
        let of_connection = Waker::from(Bell::new(CONNECTION, &shared));
        (Together { shared: shared.clone(), places: Vec::new(), of_connection }, Spawner(shared))
    }

    /// Something was done to the connection that it has to see to.
    pub fn connection_is_due(&self) {
        self.shared.tell(CONNECTION);
    }

    fn take_in(&mut self) -> u64 {
        let mut groups = 0;
        for stream in self.shared.opened.lock().drain(..) {
            let free = self.places.iter().position(Option::is_none);
            let at = free.unwrap_or_else(|| {
                if self.places.is_empty() {
                    self.places.reserve_exact(1); // there is seldom another
                }
                self.places.push(None);
                self.places.len() - 1
            });
            let group = 1 << (at % GROUPS);
            let bell = Bell::new(group, &self.shared);
            groups |= group;
            self.places[at] = Some(Place { stream, waker: Waker::from(bell.clone()), bell });
        }
        groups
    }

    fn poll_groups(&mut self, mut groups: u64) {
        while groups != 0 {
            let group = groups.trailing_zeros() as usize;
            groups &= groups - 1;
            for place in self.places.iter_mut().skip(group).step_by(GROUPS) {
                if let Some(Place { stream, bell, waker }) = place
                    && bell.rung.swap(false, Ordering::Acquire)
                    && stream.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
                {
                    *place = None;
                }
            }
        }
        while matches!(self.places.last(), Some(None)) {
            self.places.pop();
        }
    }

    /// Polls whatever has something to do; ready when the connection is.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.shared.task.register(cx.waker());
        self.shared.due.fetch_or(POLLING, Ordering::AcqRel);
        for _ in 0..ROUNDS {
            let mut due = self.shared.due.swap(POLLING, Ordering::AcqRel);
            if due == POLLING
                && self.shared.due.compare_exchange(POLLING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
            {
                return Poll::Pending;
            }
            if due & OPENED != 0 {
                due |= self.take_in();
            }
            let groups = due & (OPENED - 1);
            if groups != 0 {
                self.poll_groups(groups);
                due |= self.shared.due.fetch_and(!CONNECTION, Ordering::AcqRel) & CONNECTION;
            }
            if due & CONNECTION != 0
                && let Poll::Ready(ended) = connection(&mut Context::from_waker(&self.of_connection))
            {
                return Poll::Ready(ended);
            }
        }
        self.shared.due.fetch_and(!POLLING, Ordering::AcqRel);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        sync::atomic::AtomicUsize,
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A stream that counts its polls and leaves its waker behind.
    #[derive(Clone, Default)]
    struct Watched {
        polls: Arc<AtomicUsize>,
        waker: Arc<Mutex<Option<Waker>>>,
    }

    impl Watched {
        fn stream(&self) -> impl Future<Output = ()> + Send + 'static {
            let watched = self.clone();
            poll_fn(move |cx| {
                watched.polls.fetch_add(1, Ordering::SeqCst);
                *watched.waker.lock() = Some(cx.waker().clone());
                Poll::Pending
            })
        }

        fn wake(&self) {
            if let Some(waker) = &*self.waker.lock() {
                waker.wake_by_ref();
            }
        }

        fn polls(&self) -> usize {
            self.polls.load(Ordering::SeqCst)
        }
    }

    fn poll(together: &mut Together, task: &Arc<Counting>, connection: &Watched) -> usize {
        let waker = Waker::from(task.clone());
        let before = connection.polls();
        let polled = together.poll(&mut Context::from_waker(&waker), |cx| {
            connection.polls.fetch_add(1, Ordering::SeqCst);
            *connection.waker.lock() = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        connection.polls() - before
    }

    #[test]
    fn only_what_has_something_to_do_is_polled() {
        let (task, connection) = (Arc::<Counting>::default(), Watched::default());
        let (mut together, spawner) = Together::new();
        assert_eq!(poll(&mut together, &task, &connection), 1, "a new connection");
        let streams: Vec<Watched> = (0..2 * GROUPS + 3).map(|_| Watched::default()).collect();
        streams.iter().for_each(|stream| spawner.execute(stream.stream()));
        assert_eq!(task.0.load(Ordering::SeqCst), 1, "it is woken once");
        assert_eq!(poll(&mut together, &task, &connection), 0);
        assert!(streams.iter().all(|stream| stream.polls() == 1));
        for woken in [0, GROUPS, 2 * GROUPS + 2] {
            let before: Vec<usize> = streams.iter().map(Watched::polls).collect();
            streams[woken].wake();
            poll(&mut together, &task, &connection);
            let polled: Vec<usize> = (0..streams.len()).filter(|at| streams[*at].polls() > before[*at]).collect();
            assert_eq!(polled, [woken]);
        }
        connection.wake();
        assert_eq!(poll(&mut together, &task, &connection), 1);
        assert_eq!(poll(&mut together, &task, &connection), 0, "nothing is due");
    }

    #[test]
    fn a_connection_that_a_stream_wakes_is_polled_at_once() {
        let (task, connection) = (Arc::<Counting>::default(), Watched::default());
        let (mut together, spawner) = Together::new();
        poll(&mut together, &task, &connection);
        let woken = Watched::default();
        let (inner, outer) = (woken.clone(), connection.clone());
        let mut stream = Box::pin(inner.stream());
        spawner.execute(poll_fn(move |cx| {
            outer.wake();
            stream.as_mut().poll(cx)
        }));
        let wakes = task.0.load(Ordering::SeqCst);
        assert_eq!(poll(&mut together, &task, &connection), 1);
        assert_eq!(task.0.load(Ordering::SeqCst), wakes, "the task has nothing left to do");
        woken.wake();
        assert_eq!(task.0.load(Ordering::SeqCst), wakes + 1);
        assert_eq!(poll(&mut together, &task, &connection), 1);
    }

    #[test]
    fn a_stream_that_panics_or_ends_leaves_the_others() {
        let (task, connection) = (Arc::<Counting>::default(), Watched::default());
        let (mut together, spawner) = Together::new();
        let other = Watched::default();
        spawner.execute(async { panic!("of one stream") });
        spawner.execute(other.stream());
        spawner.execute(async {});
        poll(&mut together, &task, &connection);
        other.wake();
        poll(&mut together, &task, &connection);
        assert_eq!((other.polls(), together.places.len()), (2, 2), "the last place is given back");
        spawner.execute(pending());
        poll(&mut together, &task, &connection);
        assert_eq!(together.places.len(), 2, "and the first one taken again");
    }

    #[test]
    fn one_that_always_has_something_to_do_lets_others_have_the_thread() {
        let (task, connection) = (Arc::<Counting>::default(), Watched::default());
        let (mut together, spawner) = Together::new();
        let busy = Watched::default();
        let mut stream = Box::pin(busy.clone().stream());
        spawner.execute(poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            stream.as_mut().poll(cx)
        }));
        poll(&mut together, &task, &connection);
        assert_eq!(busy.polls(), ROUNDS);
        assert_eq!(task.0.load(Ordering::SeqCst), 1, "to be polled again");
        poll(&mut together, &task, &connection);
        assert_eq!(busy.polls(), 2 * ROUNDS);
    }

    #[test]
    fn streams_of_a_connection_that_ends_as_it_opens_them_go_with_it() {
        let (mut together, spawner) = Together::new();
        let request = Arc::new(());
        let ended = together.poll(&mut Context::from_waker(Waker::noop()), |_| {
            let held = (spawner.clone(), request.clone());
            spawner.execute(async move {
                pending::<()>().await;
                drop(held);
            });
            Poll::Ready(())
        });
        assert!(ended.is_ready());
        assert_eq!(Arc::strong_count(&request), 2);
        drop(spawner);
        drop(together);
        assert_eq!(Arc::strong_count(&request), 1, "the stream is still there");
    }

    /// Each of many wakes, from another thread and at any time, is followed by a poll.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        const TURNS: usize = 20_000;
        let (mut together, spawner) = Together::new();
        let (to, mut heard) = (Arc::<Talk>::default(), 0);
        let (stream, told) = (to.clone(), to.clone());
        spawner.execute(poll_fn(move |cx| {
            stream.waker.register(cx.waker());
            stream.seen.store(stream.said.load(Ordering::SeqCst), Ordering::SeqCst);
            Poll::Pending
        }));
        let task = tokio::spawn(async move { poll_fn(|cx| together.poll(cx, |_| Poll::<()>::Pending)).await });
        let speaking = tokio::task::spawn_blocking(move || {
            while heard < TURNS {
                heard += 1;
                told.said.store(heard, Ordering::SeqCst);
                told.waker.wake();
                while told.seen.load(Ordering::SeqCst) < heard {
                    std::thread::yield_now();
                }
            }
        });
        let in_time = tokio::time::timeout(Duration::from_secs(60), speaking).await;
        to.seen.store(usize::MAX, Ordering::SeqCst);
        task.abort();
        assert!(in_time.is_ok(), "a wake was lost");
    }

    #[derive(Default)]
    struct Talk {
        said: AtomicUsize,
        seen: AtomicUsize,
        waker: AtomicWaker,
    }
}
