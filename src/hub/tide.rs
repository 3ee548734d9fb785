//! Tells streams that the marks have moved. A task of the runtime does, where waking another task costs an atomic or two: the
//! journal's thread is not of the runtime, and would take the lock of its queue for each of them while its threads empty it.

use std::sync::{
    Arc, OnceLock,
    atomic::{Ordering, fence},
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::control::Shared;
use crate::feed::Marks;

#[derive(Default)]
struct Members {
    places: Vec<Option<Arc<Shared>>>,
    free: Vec<usize>,
}

/// Of one hub.
#[derive(Default)]
pub(super) struct Tide {
    members: Arc<Mutex<Members>>,
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// A stream that can be told, until this is dropped.
pub(super) struct Told {
    members: Arc<Mutex<Members>>,
    at: usize,
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut members = self.members.lock();
        let left = members.places.get_mut(self.at).and_then(Option::take);
        members.free.push(self.at);
        drop(members);
        drop(left);
    }
}

impl Tide {
    /// One more stream. Must be called within the runtime.
    pub fn join(&self, shared: &Arc<Shared>, marks: &watch::Receiver<Marks>) -> Told {
        self.task.get_or_init(|| AbortOnDropHandle::new(tokio::spawn(tell(self.members.clone(), marks.clone()))));
        let mut members = self.members.lock();
        let at = members.free.pop().unwrap_or(members.places.len());
        match members.places.get_mut(at) {
            Some(place) => *place = Some(shared.clone()),
            None => members.places.push(Some(shared.clone())),
        }
        Told { members: self.members.clone(), at }
    }

    /// Streams that can be told.
    #[cfg(test)]
    pub fn members(&self) -> usize {
        self.members.lock().places.iter().flatten().count()
    }
}

async fn tell(members: Arc<Mutex<Members>>, mut marks: watch::Receiver<Marks>) {
    loop {
        let moved = marks.changed().await;
        fence(Ordering::SeqCst);
        for shared in members.lock().places.iter().flatten() {
            shared.marks_moved();
        }
        if moved.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::Position};

    fn stream() -> Arc<Shared> {
        Arc::new(Shared::new(None, 0, 0, String::new(), Position::default(), None, false))
    }

    fn marks(next_block: u64) -> Marks {
        Marks { next_block, tail: Position { lsn: Lsn(next_block), ..Position::default() } }
    }

    #[tokio::test]
    async fn who_wants_to_be_told_is_told_once() {
        let (sender, receiver) = watch::channel(marks(0));
        let tide = Tide::default();
        let streams = [stream(), stream()];
        let _told = streams.each_ref().map(|stream| tide.join(stream, &receiver));
        for next_block in 1..100 {
            streams[0].want_marks();
            sender.send_replace(marks(next_block));
            streams[0].wake.wait().await;
        }
        sender.send_replace(marks(100));
        streams[1].want_marks();
        sender.send_replace(marks(101));
        streams[1].wake.wait().await;
        assert!(!streams[0].wake.is_rung(), "it did not want to be told any more");
    }

    #[tokio::test]
    async fn a_stream_that_is_gone_gives_its_place_back() {
        let (_sender, receiver) = watch::channel(marks(0));
        let tide = Tide::default();
        let gone = stream();
        drop(tide.join(&gone, &receiver));
        assert_eq!(Arc::strong_count(&gone), 1);
        let _told = [tide.join(&stream(), &receiver), tide.join(&stream(), &receiver)];
        assert_eq!(tide.members.lock().places.len(), 2);
    }

    #[tokio::test]
    async fn everybody_hears_that_there_will_be_no_more_marks() {
        let (sender, receiver) = watch::channel(marks(0));
        let tide = Tide::default();
        let stream = stream();
        let _told = tide.join(&stream, &receiver);
        stream.want_marks();
        drop(sender);
        stream.wake.wait().await;
    }
}
