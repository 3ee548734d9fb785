//! How far one stream has come since it was last at the tail, and since it last rested.

use std::time::Duration;

use tokio::time::Instant;

use super::{BLOCK, BURST, Governor, PIECE, Rest};
use crate::wire::block::Block;

/// Of one stream.
#[derive(Debug, Default)]
pub(in crate::hub) struct Stride {
    /// It was at the tail.
    stood: bool,
    /// Bytes that it has taken in since it was at the tail.
    behind: usize,
    /// Bytes since it rested, and what they cost.
    piece: usize,
    cost: usize,
    /// When the piece began.
    began: Option<Instant>,
    resting: Option<Rest>,
}

impl Stride {
    /// It takes in a block.
    pub fn take(&mut self, block: &Block, now: Instant) {
        let bytes = block.stored_bytes();
        self.behind += bytes;
        self.piece += bytes;
        self.cost += bytes + BLOCK;
        self.began.get_or_insert(now);
    }

    /// What it wants is not in memory any more.
    pub fn reads_files(&mut self) {
        self.behind = self.behind.max(BURST);
    }

    /// There is nothing more to take in. `follows`: it goes on when there is.
    pub fn at_tail(&mut self, governor: &Governor, follows: bool) {
        if self.stood && self.behind > 0 {
            governor.live();
        }
        *self = Stride { stood: follows, ..Stride::default() };
    }

    /// Whether it has to rest before it takes in more.
    pub fn must_rest(&mut self, governor: &Governor, now: Instant) -> bool {
        if self.resting.is_none() && self.behind >= BURST && self.cost >= PIECE {
            let took = self.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
            self.resting = governor.rest(self.piece, took);
            (self.piece, self.cost, self.began) = (0, 0, None);
        }
        self.resting.is_some()
    }

    /// Waits until it has rested. Cancel-safe.
    pub async fn rested(&mut self, governor: &Governor) {
        if let Some(resting) = &mut self.resting {
            resting.over(governor).await;
            self.resting = None;
        }
    }
}
