//! The memory of one transfer: blocks of one size from one pool, so that nothing is allocated, zeroed and given back for each file, and the sum never exceeds
//! what the order allows.
//!
//! Blocks are anonymous mappings: at the end of a transfer they go back to the system, whatever the process' allocator would keep.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use lockstep_protocol::problem::{Problem, Reason};
use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one block: large enough that a block costs nothing beside its bytes, small enough that one holds little more than a small file, and still
/// in a core's second-level cache when it is hashed piece by piece.
pub(crate) const BLOCK: usize = 1 << 20;

/// Blocks of one transfer; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Blocks(Arc<Pool>);

struct Pool {
    free: Mutex<Vec<MmapMut>>,
    places: Arc<Semaphore>,
    most: AtomicU32,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("most", &self.most()).field("places", &self.places.available_permits()).finish()
    }
}

impl Pool {
    fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Blocks {
    /// At most `bytes` in all, at least one block. Nothing is allocated before it is needed.
    pub(crate) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / BLOCK as u64).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
        Self(Arc::new(Pool {
            free: Mutex::default(),
            places: Arc::new(Semaphore::new(most as usize)),
            most: AtomicU32::new(most),
        }))
    }

    /// Waits for room for `bytes`, first come, first served. Who asks for more than there is gets all of it.
    pub(crate) async fn room(&self, bytes: u64) -> Result<Room, Problem> {
        let blocks = u32::try_from(bytes.div_ceil(BLOCK as u64)).unwrap_or(u32::MAX).clamp(1, self.0.most());
        let permit = Arc::clone(&self.0.places).acquire_many_owned(blocks).await.map_err(|_| {
            // Never closed; were it so, the transfer is over.
            Problem::new(Reason::Cancelled, "the agent is stopping")
        })?;
        Ok(Room { pool: Arc::clone(&self.0), permit })
    }

    /// Leaves so many bytes of the memory to other uses for the rest of the transfer, but no less than `least` to the blocks. To be said before any room is asked for:
    /// who got room already keeps it.
    pub(crate) fn set_aside(&self, bytes: u64, least: u64) {
        let most = self.0.most();
        let least = u32::try_from(least.div_ceil(BLOCK as u64)).unwrap_or(u32::MAX).clamp(1, most);
        let aside = u32::try_from(bytes.div_ceil(BLOCK as u64)).unwrap_or(u32::MAX).min(most - least);
        let aside = self.0.places.forget_permits(aside as usize);
        self.0.most.store(most - u32::try_from(aside).unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes that room can be had for at once.
    pub(crate) fn capacity(&self) -> u64 {
        u64::from(self.0.most()) * BLOCK as u64
    }

    /// Gives what nobody uses back to the system.
    pub(crate) fn trim(&self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Blocks that nobody has.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.0.places.available_permits()
    }
}

/// The right to so many blocks. What isn't taken is free again when it drops.
#[derive(Debug)]
pub(crate) struct Room {
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Room {
    /// Blocks that can still be taken.
    pub(crate) fn left(&self) -> usize {
        self.permit.num_permits()
    }

    /// The next block; its content is whatever was last in it. None: all are taken.
    pub(crate) fn block(&mut self) -> Result<Option<Block>, Problem> {
        let Some(permit) = self.permit.split(1) else { return Ok(None) };
        let free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = match free {
            Some(bytes) => bytes,
            None => MmapMut::map_anon(BLOCK).map_err(|error| {
                Problem::new(Reason::LocalIo, format!("cannot get a buffer of {BLOCK} bytes: {error}"))
                    .with("bytes", BLOCK)
            })?,
        };
        Ok(Some(Block { bytes: Some(bytes), pool: Arc::clone(&self.pool), _permit: permit }))
    }
}

/// One block of memory, which goes back to its pool when it drops.
#[derive(Debug)]
pub(crate) struct Block {
    /// None only while it drops.
    bytes: Option<MmapMut>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Block {
    /// The first `length` bytes, as what the network sends; the block goes back when the last clone or slice drops.
    pub(crate) fn freeze(self, length: usize) -> Bytes {
        Bytes::from_owner(Frozen(self)).slice(..length.min(BLOCK))
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

struct Frozen(Block);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_never_exceed_the_memory_but_who_wants_more_still_gets_a_turn() {
        let blocks = Blocks::new(8 << 20);
        let all = blocks.room(100 << 20).await.unwrap();
        assert_eq!((all.left(), blocks.available()), (8, 0));
        drop(all);
        let half = blocks.room((3 << 20) + 1).await.unwrap();
        assert_eq!((half.left(), blocks.available()), (4, 4));
    }

    #[tokio::test]
    async fn a_block_is_used_again_once_the_last_slice_of_its_bytes_is_gone() {
        let blocks = Blocks::new(1 << 20);
        let mut room = blocks.room(1).await.unwrap();
        let mut block = room.block().unwrap().unwrap();
        assert!(room.block().unwrap().is_none());
        block[..3].copy_from_slice(b"abc");
        let bytes = block.freeze(3);
        let slice = bytes.slice(1..);
        drop((bytes, room));
        assert_eq!((slice.as_ref(), blocks.available()), (b"bc".as_slice(), 0));
        drop(slice);
        assert_eq!(blocks.available(), 1);
        let again = blocks.room(1).await.unwrap().block().unwrap().unwrap();
        assert_eq!((&again[..3], again.len()), (b"abc".as_slice(), BLOCK));
    }

    #[tokio::test]
    async fn what_is_set_aside_is_not_given_out_and_something_is_always_left() {
        let blocks = Blocks::new(8 << 20);
        blocks.set_aside((2 << 20) + 1, 1 << 20);
        assert_eq!((blocks.available(), blocks.room(100 << 20).await.unwrap().left()), (5, 5));
        blocks.set_aside(100 << 20, 2 << 20);
        assert_eq!((blocks.available(), blocks.room(100 << 20).await.unwrap().left()), (2, 2));
    }

    #[tokio::test]
    async fn what_was_asked_for_first_is_served_first() {
        let blocks = Blocks::new(4 << 20);
        let held = blocks.room(2 << 20).await.unwrap();
        let (large, small) = (blocks.room(4 << 20), blocks.room(1 << 20));
        tokio::pin!(large, small);
        assert!(futures::poll!(&mut large).is_pending());
        // There would be room for it, but the large one would then wait for ever.
        assert!(futures::poll!(&mut small).is_pending());
        drop(held);
        let large = large.await.unwrap();
        drop(large);
        small.await.unwrap();
    }
}
