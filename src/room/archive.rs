//! The messages of a log that its history has evicted.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use crate::format::Batch;
use crate::message::Unavailable;

/// Where the messages of one log are that its history has evicted: the hub's way to a store.
pub(crate) trait Archive: Debug + Send + Sync {
    /// The messages of the log with these sequence numbers, as far as they are kept: one run that begins
    /// with the first of them that is kept, and may end before the last one.
    fn read(&self, seqs: Range<u64>) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>>;

    /// Whether messages were lost on the way to it, and no new epoch tells of that yet.
    fn has_lost(&self) -> bool;
}

/// A read of an archive: the messages, at their positions. What cannot be read, several times, counts as
/// evicted there, too.
pub(super) type Reading = BoxFuture<'static, Vec<Arc<Batch>>>;

/// Reads the messages at `positions` of a log whose positions are its sequence numbers and `offset`.
pub(super) fn read(archive: &Arc<dyn Archive>, offset: u64, positions: Range<u64>) -> Reading {
    let seq = |position: u64| position.wrapping_sub(offset);
    let seqs = seq(positions.start)..seq(positions.end);
    let mut reading = archive.read(seqs.clone());
    let archive = archive.clone();
    let place = move |batch: Batch| {
        let position = batch.first_id().seq.wrapping_add(offset);
        Arc::new(batch.at(position))
    };
    async move {
        let mut tries = 1;
        let batches = loop {
            match reading.await {
                Ok(batches) => break batches,
                Err(_) if tries == TRIES => break Vec::new(),
                Err(why) => sleep(why.retry_after).await,
            }
            tries += 1;
            reading = archive.read(seqs.clone());
        };
        batches.into_iter().map(place).collect()
    }
    .boxed()
}

/// How often a read is tried: a disk that fails for a moment has not forgotten anything.
const TRIES: u32 = 3;
