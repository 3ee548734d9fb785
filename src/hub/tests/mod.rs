//! The hub over a feed, a source and a checkpoint store in memory.

mod checkpoints;
mod delivery;
mod lagging;
mod limits;
mod live;
mod model;
mod router;
mod shared;
mod snapshots;
mod starts;
