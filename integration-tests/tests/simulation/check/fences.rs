//! Which commits count and who may write, in words of its own: rules F1 and F2, past all faults.

use lockstep_bucket::MemoryBuckets;
use lockstep_coordinator::store::RoundRecord;
use lockstep_protocol::{
    commit::DecisionObject,
    fence::{Fence, FenceBase},
    id::{Generation, PipelineId, Seq},
    key::Key,
    round::{self, Kind},
    takeover::{Phase, Purpose, exact_base},
};

use super::object;
use crate::world::{BUCKET, World, location};

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

    /// The highest generation, and its base if that stands. The first has none, and starts at nothing.
    pub(super) fn highest(&self) -> Option<(Generation, Option<FenceBase>)> {
        let (fence, base) = self.0.last()?;
        let nothing = || FenceBase { generation: fence.generation, newest: None, tombstones: Vec::new() };
        let first = fence.generation == Generation::FIRST;
        Some((fence.generation, base.clone().or_else(|| first.then(nothing))))
    }

    pub(crate) fn owner(&self) -> Option<PipelineId> {
        self.0.last().map(|(fence, _)| fence.pipeline)
    }

    /// The fence before a generation's.
    pub(crate) fn before(&self, generation: Generation) -> Option<&Fence> {
        self.0.iter().map(|(fence, _)| fence).find(|fence| fence.generation.next() == generation)
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

/// S11: what is newest never goes back, whoever owns the location.
pub(super) fn never_goes_back(world: &World, fences: &Fences) -> Result<(), String> {
    let Some(latest) = fences.latest(&world.buckets) else { return Ok(()) };
    let before = world.latest.replace(latest);
    if latest < before {
        return Err(format!("S11: the newest commit that counts was {before:?}, now it is {latest:?}"));
    }
    Ok(())
}

/// S5, of take-overs: one that was told failed before it adopted anything has no fence that stands.
pub(super) fn failed_for_good(world: &World, fences: &Fences) -> Result<(), String> {
    for take_over in world.database.take_overs() {
        let stands = fences.0.iter().any(|(fence, _)| fence.take_over == take_over.id);
        if stands && take_over.base.is_none() && matches!(take_over.phase, Phase::Failed | Phase::Cancelled) {
            return Err(format!("S5: take-over {} is {} and its fence stands", take_over.id, take_over.phase));
        }
    }
    Ok(())
}

/// Activation: who was activated has exactly its base on every host, and has pushed nothing before.
pub(super) fn activated_with_the_base(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    for take_over in world.database.take_overs().iter().filter(|one| one.purpose == Purpose::Activate) {
        let (Some(generation), base) = (take_over.generation(), exact_base(take_over)) else { continue };
        let pulled = |record: &&RoundRecord| match &record.round.kind {
            Kind::Pull(pull) if record.round.phase == round::Phase::Installed => {
                pull.resolved.as_ref().and_then(|resolved| resolved.commit) == base
            }
            _ => false,
        };
        let pushed =
            |record: &&RoundRecord| record.round.generation == generation && matches!(record.round.kind, Kind::Push(_));
        let done = take_over.phase == Phase::Done;
        if base.is_some() && done && rounds.iter().find(pulled).is_none() {
            return Err(format!("S12: activation {} is done, its base {base:?} was never installed", take_over.id));
        }
        if let Some(push) = rounds.iter().find(pushed).filter(|_| !done) {
            return Err(format!(
                "S12: push {} was admitted before activation {} was done",
                push.round.id, take_over.id
            ));
        }
    }
    Ok(())
}
