//! The newest blocks in memory, by number.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

use crate::wire::block::Block;

/// A bounded run of consecutive blocks. Readers take a shared lock for one index access.
#[derive(Debug)]
pub(super) struct Ring {
    limit: usize,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    first: u64,
    bytes: usize,
    blocks: VecDeque<Arc<Block>>,
}

/// What the ring knows of a block number.
#[derive(Debug)]
pub(super) enum Lookup {
    Here(Arc<Block>),
    /// Fell out, or was never in.
    Older,
    /// Not durable yet.
    Ahead,
}

impl Ring {
    /// A ring whose first block will be number `first`. Keeps at least the newest block, whatever `limit` bytes.
    pub fn new(limit: usize, first: u64) -> Self {
        Ring { limit, inner: RwLock::new(Inner { first, ..Inner::default() }) }
    }

    /// Adds durable blocks, the next numbers.
    pub fn push(&self, blocks: impl Iterator<Item = Arc<Block>>) {
        let mut dropped = Vec::new();
        let mut inner = self.inner.write();
        for block in blocks {
            debug_assert_eq!(block.number, inner.first + inner.blocks.len() as u64);
            inner.bytes += block.footprint();
            inner.blocks.push_back(block);
        }
        while inner.bytes > self.limit && inner.blocks.len() > 1 {
            if let Some(block) = inner.blocks.pop_front() {
                inner.bytes -= block.footprint();
                inner.first += 1;
                dropped.push(block);
            }
        }
        drop(inner); // freeing takes longer than readers should wait
    }

    /// Forgets everything: the next block will be number `first`.
    pub fn restart(&self, first: u64) {
        let old = std::mem::replace(&mut *self.inner.write(), Inner { first, ..Inner::default() });
        drop(old); // outside the lock
    }

    /// The block with this number.
    pub fn get(&self, number: u64) -> Lookup {
        let inner = self.inner.read();
        match number.checked_sub(inner.first) {
            None => Lookup::Older,
            Some(index) => match inner.blocks.get(index as usize) {
                Some(block) => Lookup::Here(block.clone()),
                None => Lookup::Ahead,
            },
        }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }
}
