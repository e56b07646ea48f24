//! Which commits count, in words of its own: rules F1 and F2, past all faults.

use lockstep_bucket::MemoryBuckets;
use lockstep_protocol::{
    commit::DecisionObject,
    fence::{Fence, FenceBase},
    id::{Generation, PipelineId, Seq},
    key::Key,
};

use super::object;
use crate::world::{BUCKET, location};

/// A commit's place in the order of all commits.
pub(crate) type Place = (Generation, Seq);

/// Fences of a location, the first first, each with its base if that stands.
pub(crate) struct Fences(Vec<(Fence, Option<FenceBase>)>);

impl Fences {
    pub(crate) fn of(buckets: &MemoryBuckets) -> Self {
        let (mut fences, mut generation) = (Vec::new(), Generation::FIRST);
        loop {
            let (key, base) = (Key::Fence(generation).to_string(), Key::FenceBase(generation).to_string());
            let Some(bytes) = object(buckets, &key) else { return Self(fences) };
            let base = object(buckets, &base).map(|bytes| FenceBase::parse(&base, &bytes).unwrap());
            fences.push((Fence::parse(&key, &bytes).unwrap(), base));
            generation = generation.next();
        }
    }

    pub(crate) fn owner(&self) -> Option<PipelineId> {
        self.0.last().map(|(fence, _)| fence.pipeline)
    }

    /// F1: the next generation's base decides, if it stands.
    pub(crate) fn counts(&self, (generation, seq): Place) -> bool {
        let next = self.0.iter().find(|(fence, _)| fence.generation == generation.next());
        let Some(base) = next.and_then(|(_, base)| base.as_ref()) else { return true };
        base.newest.is_some_and(|newest| newest.generation == generation && seq <= newest.seq)
    }

    /// F2. None: the highest fence has no base, so nobody knows.
    pub(crate) fn latest(&self, buckets: &MemoryBuckets) -> Option<Option<Place>> {
        let (fence, base) = self.0.last()?;
        if base.is_none() && fence.generation > Generation::FIRST {
            return None;
        }
        let based = base.as_ref().and_then(|base| base.newest).map(|newest| (newest.generation, newest.seq));
        let commits = buckets.keys(BUCKET, &location().full_key("commits/"));
        let own = commits.iter().filter_map(|key| {
            let key = &key[location().full_key("").len()..];
            let bytes = object(buckets, key)?;
            match DecisionObject::parse(key, &bytes).unwrap() {
                DecisionObject::Commit(commit) if commit.generation == fence.generation => {
                    Some((commit.generation, commit.seq))
                }
                _ => None,
            }
        });
        Some(own.max().or(based))
    }
}
