//! The bytes of one segment, as they come, into the files that they belong to.

use std::sync::Arc;

use lockstep_protocol::problem::Problem;

use super::{
    place::{Filling, Places, Wrong},
    segment::Segment,
};

/// Takes the bytes of a segment in order, in pieces of any size.
#[derive(Debug)]
pub(super) struct Filler {
    places: Arc<Places>,
    segment: Arc<Segment>,
    /// Bytes that were taken.
    came: u64,
    /// Which slice is next, or being filled.
    slice: usize,
    filling: Option<Filling>,
    wrong: Vec<Wrong>,
}

impl Filler {
    pub(super) const fn new(places: Arc<Places>, segment: Arc<Segment>) -> Self {
        Self { places, segment, came: 0, slice: 0, filling: None, wrong: Vec::new() }
    }

    /// Blocks for the disk.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            // No slice: nothing is wanted beyond the last one, and nothing is asked for.
            let Some(slice) = self.segment.slices.get(self.slice).copied() else { return Ok(()) };
            let at = self.segment.offset + self.came;
            if let Some(gap @ 1..) = slice.at.checked_sub(at) {
                let skipped = within(gap, bytes);
                bytes = bytes.get(skipped..).unwrap_or_default();
                self.came += skipped as u64;
                continue;
            }
            let done = at - slice.at;
            let (now, later) = bytes.split_at(within(slice.length - done, bytes));
            let mut filling = match self.filling.take() {
                Some(filling) => filling,
                None => self.places.begin(slice)?,
            };
            self.places.fill(&mut filling, slice, done, now)?;
            self.came += now.len() as u64;
            if done + now.len() as u64 == slice.length {
                self.wrong.extend(self.places.end(filling, slice)?);
                self.slice += 1;
            } else {
                self.filling = Some(filling);
            }
            bytes = later;
        }
        Ok(())
    }

    /// Files that this segment completed and that are not what they should be.
    pub(super) fn finish(self) -> Vec<Wrong> {
        self.wrong
    }
}

fn within(count: u64, bytes: &[u8]) -> usize {
    usize::try_from(count).map_or(bytes.len(), |count| count.min(bytes.len()))
}
