//! BLAKE3 of a file whose pieces are read, sent or received in any order, each hashed on its own thread.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB. A piece that begins at a multiple of 1 MiB covers whole subtrees, whose chaining values are kept and merged
//! as their siblings come in; section 2.1 of the BLAKE3 paper says how. The result is the ordinary BLAKE3 digest of the whole.

use std::collections::BTreeMap;

use blake3::{
    Hasher,
    hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root},
};
use lockstep_protocol::digest::Digest;

/// Pieces begin at multiples of this; a power of two, as the tree wants it.
pub(crate) const ALIGN: u64 = 1 << 20;

/// One piece of a file on its way through. Bytes come in order.
#[derive(Debug)]
pub(crate) struct PieceHasher {
    /// Where the subtree in the making begins.
    start: u64,
    /// Bytes of it that came in.
    filled: u64,
    hasher: Hasher,
    file_size: u64,
    nodes: Vec<(u64, Node)>,
    head: Option<Digest>,
}

/// What the hashes of a piece leave behind: 32 bytes for each MiB at most.
#[derive(Debug)]
pub(crate) struct Piece {
    nodes: Vec<(u64, Node)>,
    head: Option<Digest>,
}

impl Piece {
    /// Digest of the file's first [`ALIGN`] bytes; only of a piece that begins with them, and of a file that goes on behind them.
    pub(crate) const fn head(&self) -> Option<Digest> {
        self.head
    }
}

#[derive(Clone, Copy, Debug)]
enum Node {
    /// A subtree of so many bytes.
    Inner(u64, ChainingValue),
    /// The whole file fits into one subtree.
    Whole(Digest),
}

impl PieceHasher {
    /// `offset` is a multiple of [`ALIGN`]; the piece ends at another one or at the end of the file.
    pub(crate) fn new(file_size: u64, offset: u64) -> Self {
        debug_assert!(offset.is_multiple_of(ALIGN), "a piece begins at a multiple of {ALIGN}");
        Self { start: offset, filled: 0, hasher: Hasher::new(), file_size, nodes: Vec::new(), head: None }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == 0 {
                // A reset one would remember the offset of the subtree before.
                self.hasher = Hasher::new();
                self.hasher.set_input_offset(self.start);
            }
            let room = usize::try_from(ALIGN - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.filled += now.len() as u64;
            if self.filled == ALIGN {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        let node = if self.start == 0 && self.filled == self.file_size {
            Node::Whole(Digest::from_hash(self.hasher.finalize()))
        } else {
            if self.start == 0 && self.filled == ALIGN {
                self.head = Some(Digest::from_hash(self.hasher.finalize()));
            }
            Node::Inner(self.filled, self.hasher.finalize_non_root())
        };
        self.nodes.push((self.start, node));
        self.start += self.filled;
        self.filled = 0;
    }

    pub(crate) fn finish(mut self) -> Piece {
        if self.filled > 0 || (self.file_size == 0 && self.start == 0) {
            self.close();
        }
        Piece { nodes: self.nodes, head: self.head }
    }
}

/// The digest of one file in the making.
#[derive(Clone, Debug)]
pub(crate) struct TreeDigest {
    size: u64,
    /// Subtrees by where they begin; none overlap, and siblings are merged at once.
    nodes: BTreeMap<u64, Node>,
}

impl TreeDigest {
    pub(crate) const fn new(size: u64) -> Self {
        Self { size, nodes: BTreeMap::new() }
    }

    /// Takes in one piece. The same piece again changes nothing.
    pub(crate) fn add(&mut self, piece: Piece) {
        for (start, node) in piece.nodes {
            match node {
                Node::Whole(_) => {
                    self.nodes.insert(start, node);
                }
                Node::Inner(length, value) => {
                    // What covers it already was merged from it.
                    let covered = self.nodes.range(..=start).next_back().is_some_and(|(at, node)| match node {
                        Node::Inner(covering, _) => at + covering > start,
                        Node::Whole(_) => true,
                    });
                    if !covered {
                        self.merge(start, length, value);
                    }
                }
            }
        }
    }

    /// Merges full siblings upwards; the last, shorter ones wait for the end.
    fn merge(&mut self, mut start: u64, mut length: u64, mut value: ChainingValue) {
        while length.is_power_of_two() && length * 2 < self.size {
            let (left, right) =
                if start.is_multiple_of(length * 2) { (start, start + length) } else { (start - length, start) };
            let sibling = if left == start { right } else { left };
            match self.nodes.get(&sibling) {
                Some(Node::Inner(other, other_value)) if *other == length => {
                    let (first, second) = if left == start { (&value, other_value) } else { (other_value, &value) };
                    value = merge_subtrees_non_root(first, second, Mode::Hash);
                    self.nodes.remove(&sibling);
                    (start, length) = (left, length * 2);
                }
                _ => break,
            }
        }
        self.nodes.insert(start, Node::Inner(length, value));
    }

    /// None: not all pieces came in.
    pub(crate) fn finish(self) -> Option<Digest> {
        if let Some(Node::Whole(digest)) = self.nodes.get(&0) {
            return Some(*digest);
        }
        if self.size <= ALIGN {
            return None;
        }
        let middle = left_subtree_len(self.size);
        let left = self.subtree(0, middle)?;
        let right = self.subtree(middle, self.size - middle)?;
        Some(Digest::from_hash(merge_subtrees_root(&left, &right, Mode::Hash)))
    }

    fn subtree(&self, start: u64, length: u64) -> Option<ChainingValue> {
        if let Some(Node::Inner(found, value)) = self.nodes.get(&start)
            && *found == length
        {
            return Some(*value);
        }
        if length <= ALIGN {
            return None;
        }
        let middle = left_subtree_len(length);
        let left = self.subtree(start, middle)?;
        let right = self.subtree(start + middle, length - middle)?;
        Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::*;

    fn piece(content: &[u8], start: usize, end: usize, steps: &mut impl FnMut() -> usize) -> Piece {
        let mut hasher = PieceHasher::new(content.len() as u64, start as u64);
        let mut left = &content[start..end];
        while !left.is_empty() {
            let (now, later) = left.split_at(steps().min(left.len()));
            hasher.update(now);
            left = later;
        }
        hasher.finish()
    }

    #[test]
    fn pieces_in_any_order_and_size_give_the_digest_of_the_whole() {
        let seed = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mib = 1 << 20;
        for size in [0, 1, 1023, mib - 1, mib, mib + 1, 2 * mib, 3 * mib, 4 * mib, 4 * mib + 1, 7 * mib + 5000, 9 * mib]
        {
            let mut content = vec![0; size];
            random.fill(content.as_mut_slice());
            for pieces_of in [1, 2, 3, 16] {
                let step = pieces_of * mib;
                let mut starts: Vec<usize> = (0..size.max(1)).step_by(step).collect();
                starts.shuffle(&mut random);
                let mut digest = TreeDigest::new(size as u64);
                for start in &starts {
                    let mut lengths = || random.random_range(1..=300_000);
                    digest.add(piece(&content, *start, (start + step).min(size), &mut lengths));
                }
                assert_eq!(digest.finish(), Some(Digest::of(&content)), "{size} bytes in pieces of {pieces_of} MiB");
            }
        }
    }

    #[test]
    fn the_first_piece_knows_the_digest_of_the_files_head() {
        let content: Vec<u8> = (0..2_500_000_u32).map(|at| (at % 251) as u8).collect();
        let mut whole = || 300_000;
        let head = Digest::of(&content[..1 << 20]);
        assert_eq!(piece(&content, 0, 2 << 20, &mut whole).head(), Some(head));
        assert_eq!(piece(&content, 1 << 20, 2 << 20, &mut whole).head(), None);
        assert_eq!(piece(&content[..1 << 20], 0, 1 << 20, &mut whole).head(), None);
    }

    #[test]
    fn a_missing_piece_leaves_no_digest_and_one_that_came_twice_does_no_harm() {
        let content = vec![7; 5 << 20];
        let mut whole = || 1 << 20;
        let mut digest = TreeDigest::new(content.len() as u64);
        for start in [0, 1, 3, 4] {
            digest.add(piece(&content, start << 20, (start + 1) << 20, &mut whole));
        }
        assert_eq!(digest.finish(), None);
        let mut digest = TreeDigest::new(content.len() as u64);
        for start in [0, 1, 0, 3, 2, 2, 4] {
            digest.add(piece(&content, start << 20, (start + 1) << 20, &mut whole));
        }
        assert_eq!(digest.finish(), Some(Digest::of(&content)));
    }
}
