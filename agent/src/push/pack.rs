//! Small files travel packed: one object holds many, one after the other.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use lockstep_bucket::Payload;
use lockstep_protocol::{digest::Digest, problem::Problem};

use super::{
    base::Base,
    ledger::Entry,
    source::{Body, Source},
};
use crate::{
    blocks::{BLOCK, Room},
    digests::Digests,
    store::HeldCheckpoint,
    work::Stop,
};

/// Small files that nobody has taken yet, by their place among the held ones.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<VecDeque<(usize, u64)>>);

impl Queue {
    /// Files with their sizes, in the order in which they are to lie.
    pub(super) fn new(files: impl Iterator<Item = (usize, u64)>) -> Self {
        Self(Mutex::new(files.collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The next files that fit into so many bytes, about a block of them: neighbours stay together though several packs are made at once.
    fn take(&self, most: u64) -> Vec<usize> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(&(file, size)) = queue.front()
            && bytes + size <= most
            && (bytes == 0 || bytes + size <= BLOCK as u64)
        {
            queue.pop_front();
            taken.push(file);
            bytes += size;
        }
        taken
    }
}

/// Files that were read.
pub(super) struct Packed {
    /// Those that are to be sent; no chunks: none.
    pub(super) payload: Payload,
    /// What it is made of: file, digest, place.
    pub(super) files: Vec<(usize, Digest, u64)>,
    /// Those that the base turned out to hold.
    pub(super) known: Vec<(usize, Entry)>,
}

/// Reads files until the pack has `most` bytes or none are left. Blocks.
pub(super) fn build(
    held: &dyn HeldCheckpoint,
    queue: &Queue,
    base: &Base,
    digests: &Digests,
    (room, most): (Room, u64),
    stop: &Stop,
) -> Result<Packed, Problem> {
    let mut body = Body::new(room);
    let mut packed = Packed { payload: Payload::default(), files: Vec::new(), known: Vec::new() };
    let mut hasher = blake3::Hasher::new();
    loop {
        let batch = queue.take(most - body.length());
        if batch.is_empty() {
            break;
        }
        for index in batch {
            // The queue was made of these files.
            let Some(file) = held.files().get(index) else { continue };
            let begin = body.mark();
            let offset = body.length();
            let source = Source::open(held, file)?;
            body.read(&source, (0, file.size), stop, |slice| {
                hasher.update(slice);
            })?;
            let look = source.check()?;
            let digest = Digest::from_hash(hasher.finalize());
            hasher.reset();
            digests.learn(&look, digest);
            match base.find(file.size, digest) {
                Some(entry) => {
                    body.rewind(begin);
                    packed.known.push((index, entry));
                }
                None => packed.files.push((index, digest, offset)),
            }
        }
    }
    packed.payload = body.into_payload();
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_taken_together_and_never_more_than_fits() {
        let queue = Queue::new((0..40).map(|file| (file, 100 << 10)));
        assert_eq!(queue.take(16 << 20), (0..10).collect::<Vec<_>>());
        assert_eq!(queue.take(250 << 10), [10, 11]);
        assert!(queue.take(99 << 10).is_empty());
        assert!(!queue.is_empty());
        assert_eq!(queue.take(16 << 20).len() + queue.take(16 << 20).len() + queue.take(16 << 20).len(), 28);
        assert!(queue.is_empty() && queue.take(16 << 20).is_empty());
    }

    #[test]
    fn a_file_as_large_as_a_block_is_taken_alone() {
        let queue = Queue::new([(0, 1 << 20), (1, 1)].into_iter());
        assert_eq!((queue.take(2 << 20), queue.take(2 << 20)), (vec![0], vec![1]));
    }
}
