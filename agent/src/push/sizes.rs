//! How a file is cut, and how many small ones travel together: S3's bounds and the transfer's memory on one side, few requests and a short tail on the other.

use lockstep_protocol::{
    manifest::RelativePath,
    problem::{Problem, Reason},
};

use crate::{blocks::BLOCK, order::TransferLimits};

const MIB: u64 = BLOCK as u64;

/// S3's smallest piece of a multipart upload but the last.
const MIN_PIECE: u64 = 5 << 20;

/// S3's greatest number of pieces.
pub(super) const MAX_PIECES: u64 = 10_000;

/// S3's greatest object.
const MAX_OBJECT: u64 = 5 << 40;

/// Smaller files travel in packs.
pub(super) const SMALL: u64 = MIB;

/// Packs that a push makes at least if they become no smaller than [`MIN_PACK`], so that reading one and sending another overlap.
const PACKS: u64 = 4;

const MIN_PACK: u64 = 4 << 20;

/// Bytes of bodies under one set of limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// A piece of a large file, and the greatest pack.
    piece: u64,
    memory: u64,
}

impl Sizes {
    pub(super) fn of(limits: &TransferLimits) -> Self {
        let memory = (limits.memory / MIB * MIB).max(MIN_PIECE);
        Self { piece: (limits.part_size.min(memory) / MIB * MIB).max(MIN_PIECE), memory }
    }

    /// Whether a file is sent by one PUT of its own.
    pub(super) const fn is_whole(&self, size: u64) -> bool {
        size <= self.piece
    }

    /// The length of all pieces of a large file but the last.
    pub(super) fn piece(&self, path: &RelativePath, size: u64) -> Result<u64, Problem> {
        if size > MAX_OBJECT {
            return Err(Problem::new(
                Reason::SourceUnsupported,
                format!("{path} has {size} bytes, an object of S3 has at most {MAX_OBJECT}"),
            )
            .with("path", path)
            .with("bytes", size)
            .with("max", MAX_OBJECT));
        }
        let least = size.div_ceil(MAX_PIECES).div_ceil(MIB) * MIB;
        if least > self.memory {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!(
                    "{path} of {size} bytes takes {MAX_PIECES} pieces of {least} bytes, the transfer's memory is {}: raise transfer memory to at least {least}",
                    self.memory
                ),
            )
            .with("field", "transfer.memory")
            .with("path", path)
            .with("bytes", size)
            .with("value", self.memory)
            .with("needed", least));
        }
        Ok(self.piece.max(least))
    }

    /// The greatest length of each pack of files that have `total` bytes in all.
    pub(super) fn pack(&self, total: u64) -> u64 {
        let packs = (total / MIN_PACK).clamp(1, PACKS);
        (total.div_ceil(packs).div_ceil(MIB) * MIB).clamp(MIB, self.piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(part_size: u64, memory: u64) -> Sizes {
        Sizes::of(&TransferLimits { part_size, memory, ..TransferLimits::default() }.checked().unwrap())
    }

    fn path() -> RelativePath {
        RelativePath::new("f").unwrap()
    }

    #[test]
    fn pieces_are_whole_mibs_of_at_least_5_at_most_memory_and_at_most_10_000() {
        for part_size in [5 << 20, (5 << 20) + 1, (16 << 20) - 1, 16 << 20, 5 << 30] {
            for memory in [5 << 20, (6 << 20) - 1, 64 << 20, 8 << 30] {
                let sizes = sizes(part_size, memory);
                for size in [1, 6 << 20, 100 << 20, 48 << 30, 60 << 30, 5 << 40] {
                    match sizes.piece(&path(), size) {
                        Ok(piece) => {
                            assert!(piece.is_multiple_of(MIB) && piece >= MIN_PIECE && piece <= memory.max(MIN_PIECE));
                            assert!(size.div_ceil(piece) <= MAX_PIECES, "{size} in {piece}");
                        }
                        Err(problem) => {
                            assert!(size.div_ceil(MAX_PIECES) > memory / MIB * MIB, "{problem}");
                            assert_eq!(problem.metadata["field"], "transfer.memory");
                            let needed = problem.metadata["needed"].parse().unwrap();
                            assert!(Sizes { memory: needed, ..sizes }.piece(&path(), size).is_ok());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_file_larger_than_any_object_is_refused() {
        let problem = sizes(16 << 20, 8 << 30).piece(&path(), (5 << 40) + 1).unwrap_err();
        assert_eq!((problem.reason, problem.metadata["path"].as_str()), (Reason::SourceUnsupported, "f"));
    }

    #[test]
    fn packs_are_few_but_enough_to_overlap() {
        let sizes = sizes(16 << 20, 64 << 20);
        for (total, packs) in [(1, 1), (7 << 20, 1), (8 << 20, 2), (40 << 20, 4), (250 << 20, 16)] {
            let pack = sizes.pack(total);
            assert!(pack.is_multiple_of(MIB) && pack <= 16 << 20);
            assert_eq!(total.div_ceil(pack), packs, "{total}");
        }
    }
}
