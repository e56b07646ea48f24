//! Which ranges of which objects a pull asks for, and where their bytes go. Pure.

use lockstep_protocol::manifest::{FileEntry, PartManifest};

use crate::tree::ALIGN;

/// Bytes between wanted ones that are read and thrown away rather than asked around, in hundredths of the wanted ones of the same segment.
const GAP_PERCENT: u64 = 3;

/// Contiguous bytes of one object, which one request brings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    /// Index into the part's objects.
    pub(super) object: usize,
    /// First byte in the object.
    pub(super) offset: u64,
    /// Bytes, gaps included.
    pub(super) length: u64,
    /// What is wanted of it: ordered, without overlaps, from the first byte to the last.
    pub(super) slices: Vec<Slice>,
}

/// Contiguous bytes of one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slice {
    /// Index into the part's files.
    pub(super) file: usize,
    /// First byte in the file; a multiple of [`ALIGN`].
    pub(super) start: u64,
    /// First byte in the object.
    pub(super) at: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// A file below [`ALIGN`] is never cut, since no segment is smaller than that.
pub(super) const fn is_cut(file: &FileEntry) -> bool {
    file.size >= ALIGN
}

/// Segments that bring the given files, none longer than `part_size` (but never below 1 MiB), the longest first. Each byte of a file is asked for once; objects' bytes that two files
/// claim are asked for once each.
pub(super) fn plan(part: &PartManifest, files: &[usize], part_size: u64) -> Vec<Segment> {
    let most = (part_size / ALIGN * ALIGN).max(ALIGN);
    let mut slices: Vec<(usize, Slice)> = files
        .iter()
        .filter_map(|&index| {
            let file = part.files.get(index)?;
            Some((usize::try_from(file.object?).ok()?, index, file))
        })
        .flat_map(|(object, index, file)| {
            (0..file.size.div_ceil(most)).map(move |number| {
                let start = number * most;
                let length = most.min(file.size - start);
                (object, Slice { file: index, start, at: file.offset + start, length })
            })
        })
        .collect();
    slices.sort_unstable_by_key(|(object, slice)| (*object, slice.at, slice.file));
    let mut segments: Vec<Segment> = Vec::new();
    let mut gaps = 0;
    for (object, slice) in slices {
        let end = slice.at + slice.length;
        if let Some(last) = segments.last_mut()
            && last.object == object
            && let Some(gap) = slice.at.checked_sub(last.offset + last.length)
            && end - last.offset <= most
            // Neither can overflow: both are at most a part.
            && (gaps + gap) * 100 <= (end - last.offset - gaps - gap) * GAP_PERCENT
        {
            gaps += gap;
            last.length = end - last.offset;
            last.slices.push(slice);
        } else {
            gaps = 0;
            segments.push(Segment { object, offset: slice.at, length: slice.length, slices: vec![slice] });
        }
    }
    // Stable: equally long pieces of one file stay in its order.
    segments.sort_by_key(|segment| std::cmp::Reverse(segment.length));
    segments
}

#[cfg(test)]
pub(super) mod tests {
    use lockstep_protocol::{
        digest::Digest,
        host::Slot,
        id::{Attempt, Generation, Incarnation, LocalCheckpointId, PipelineId, RoundId, Step},
        manifest::{ObjectEntry, RelativePath},
    };
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use uuid::Uuid;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Files as (object, offset, size).
    pub(in crate::pull) fn part(files: &[(u32, u64, u64)]) -> PartManifest {
        let objects = files.iter().map(|file| file.0).max().map_or(0, |most| most + 1);
        let entries = files.iter().enumerate().map(|(number, &(object, offset, size))| FileEntry {
            path: RelativePath::new(format!("f{number}")).unwrap(),
            size,
            blake3: Digest::of(&number.to_le_bytes()),
            object: (size > 0).then_some(object),
            offset,
            length: size,
            head: None,
        });
        PartManifest {
            pipeline: PipelineId::new(Uuid::nil()),
            slot: Slot::Solo,
            generation: Generation::new(1).unwrap(),
            round: RoundId::new(Uuid::nil()),
            incarnation: Incarnation::new(Uuid::nil()),
            attempt: Attempt::new(1).unwrap(),
            local_checkpoint: LocalCheckpointId::new(Uuid::nil()),
            step: Step::new(1).unwrap(),
            fingerprint: None,
            processed_records: None,
            store_meta: String::new(),
            objects: (0..objects).map(|n| ObjectEntry { key: format!("o{n}"), size: u64::MAX >> 1 }).collect(),
            files: entries.collect(),
            delta: None,
        }
    }

    fn ranges(segments: &[Segment]) -> Vec<(usize, u64, u64)> {
        segments.iter().map(|segment| (segment.object, segment.offset, segment.length)).collect()
    }

    #[test]
    fn neighbours_in_a_pack_come_in_one_request_and_no_request_exceeds_a_part() {
        let files: Vec<(u32, u64, u64)> = (0..400).map(|n| (0, n * 65_536, 65_536)).collect();
        let part = part(&files);
        let all: Vec<usize> = (0..400).collect();
        assert_eq!(ranges(&plan(&part, &all, 16 * MIB)), [(0, 0, 16 * MIB), (0, 16 * MIB, 400 * 65_536 - 16 * MIB)]);
        // The same whatever the order in which they are missing.
        let backwards: Vec<usize> = all.into_iter().rev().collect();
        assert_eq!(plan(&part, &backwards, 16 * MIB).len(), 2);
    }

    #[test]
    fn a_large_file_is_cut_at_whole_mib_and_its_pieces_come_before_smaller_ones() {
        let part = part(&[(0, 5, 1000), (1, 7, 20 * MIB + 1)]);
        let segments = plan(&part, &[0, 1], 8 * MIB + 4096);
        assert_eq!(
            ranges(&segments),
            [(1, 7, 8 * MIB), (1, 7 + 8 * MIB, 8 * MIB), (1, 7 + 16 * MIB, 4 * MIB + 1), (0, 5, 1000)]
        );
        let starts: Vec<u64> = segments.iter().map(|segment| segment.slices[0].start).collect();
        assert_eq!(starts, [0, 8 * MIB, 16 * MIB, 0]);
    }

    #[test]
    fn small_gaps_are_read_over_and_large_ones_are_not() {
        let part = part(&[(0, 0, 10_000), (0, 10_300, 10_000), (0, 20_601, 1000), (0, 50_000, 10)]);
        // 300 of 20,000 and 601 of 21,000 are below 3%, 28,399 are not.
        assert_eq!(ranges(&plan(&part, &[0, 1, 2, 3], MIB)), [(0, 0, 21_601), (0, 50_000, 10)]);
    }

    #[test]
    fn empty_files_and_no_files_ask_for_nothing() {
        assert_eq!(plan(&part(&[(0, 0, 0)]), &[0], MIB), []);
        assert_eq!(plan(&part(&[(0, 0, 5)]), &[], MIB), []);
    }

    #[test]
    fn whatever_the_files_each_byte_is_asked_for_once_in_segments_that_keep_the_rules() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let count = random.random_range(0..60);
            let overlaps = random.random_bool(0.2);
            let mut end = [0_u64; 3];
            let files: Vec<(u32, u64, u64)> = (0..count)
                .map(|_| {
                    let object = random.random_range(0..3_u32);
                    let magnitude = random.random_range(0..24);
                    let size = random.random_range(0..1_u64 << magnitude);
                    let gap = if random.random_bool(0.5) { 0 } else { random.random_range(0..100_000) };
                    let at = end[object as usize] + gap;
                    let at = if overlaps { random.random_range(0..=at) } else { at };
                    end[object as usize] = at + size;
                    (object, at, size)
                })
                .collect();
            let part = part(&files);
            let wanted: Vec<usize> = (0..count).filter(|_| random.random_bool(0.7)).collect();
            let part_size = random.random_range(MIB..6 * MIB);
            let segments = plan(&part, &wanted, part_size);
            let mut came = vec![0; count];
            for segment in &segments {
                assert!(segment.length <= part_size);
                let mut at = segment.offset;
                let mut bytes = 0;
                for slice in &segment.slices {
                    let file = &part.files[slice.file];
                    assert!(slice.length > 0 && slice.start.is_multiple_of(ALIGN) && slice.at >= at);
                    assert_eq!((file.object, slice.at), (Some(segment.object as u32), file.offset + slice.start));
                    assert!(is_cut(file) || slice.length == file.size);
                    // Slices of one file don't overlap if they have the right sum and different starts.
                    came[slice.file] += slice.length;
                    bytes += slice.length;
                    at = slice.at + slice.length;
                }
                assert_eq!(at, segment.offset + segment.length, "nothing is asked for after the last wanted byte");
                assert!((segment.length - bytes) * 100 <= bytes * GAP_PERCENT);
            }
            let mut starts: Vec<(usize, u64)> =
                segments.iter().flat_map(|segment| &segment.slices).map(|slice| (slice.file, slice.start)).collect();
            starts.sort_unstable();
            let distinct = starts.len();
            starts.dedup();
            assert_eq!(starts.len(), distinct);
            for (index, bytes) in came.into_iter().enumerate() {
                assert_eq!(bytes, if wanted.contains(&index) { part.files[index].size } else { 0 });
            }
            assert!(segments.is_sorted_by_key(|segment| std::cmp::Reverse(segment.length)));
        }
    }
}
