//! What stands in the bucket, as those see it who have to ask over the network.

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    fence::{Fence, FenceBase, Successor},
    finish::Finish,
    id::{Generation, Seq},
    key::Key,
    latest::Access,
    planted::{self, Bug},
    problem::{Problem, Reason},
};

use super::{
    bucket::{self, NotKnown, Read},
    taker,
    world::Sim,
};

pub(super) fn unavailable(what: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::StoreUnavailable, format!("not known: {what}"))
}

impl From<NotKnown> for Problem {
    fn from(_: NotKnown) -> Self {
        unavailable("a listing")
    }
}

pub(super) async fn document<T>(
    sim: &Sim,
    key: &Key,
    parse: impl Fn(&str, &[u8]) -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    let name = key.to_string();
    match bucket::get(sim, &name).await {
        Read::Found(bytes) => parse(&name, &bytes).map(Some),
        Read::Absent => Ok(None),
        Read::Unknown => Err(unavailable(key)),
    }
}

pub(super) async fn fence(sim: &Sim, generation: Generation) -> Result<Option<Fence>, Problem> {
    document(sim, &Key::Fence(generation), Fence::parse).await
}

pub(super) async fn base(sim: &Sim, generation: Generation) -> Result<Option<FenceBase>, Problem> {
    document(sim, &Key::FenceBase(generation), FenceBase::parse).await
}

pub(super) async fn decision(
    sim: &Sim,
    generation: Generation,
    seq: Seq,
) -> Result<Option<(DecisionObject, Digest)>, Problem> {
    document(sim, &Key::Commit(generation, seq), |key, bytes| {
        Ok((DecisionObject::parse(key, bytes)?, Digest::of(bytes)))
    })
    .await
}

/// What follows a generation. The fence is read first: a base that stands was written after its fence.
pub(super) async fn successor(sim: &Sim, generation: Generation) -> Result<Successor, Problem> {
    let next = generation.next();
    if fence(sim, next).await?.is_none() {
        return Ok(Successor::Absent);
    }
    Ok(base(sim, next).await?.map_or(Successor::FenceOnly, Successor::Base))
}

/// As [`successor`], with a base that was left out finished on the way (F3).
pub(super) async fn settled_successor(sim: &Sim, generation: Generation) -> Result<Successor, Problem> {
    match successor(sim, generation).await? {
        Successor::FenceOnly if !planted::is(Bug::FencedWithoutReadingTheBase) => {
            taker::finish(sim, Finish::begin(generation.next())?).await.map(Successor::Base)
        }
        known => Ok(known),
    }
}

/// A checkpoint of the location.
pub(super) type Found = (CommitRef, Box<CommitDocument>);

/// The newest commit that counts (F2), for the owner.
pub(super) async fn newest(sim: &Sim) -> Result<Option<Found>, Problem> {
    match taker::newest(sim, Access::Own).await? {
        Some(newest) => commit(sim, &newest).await,
        None => Ok(None),
    }
}

/// The document of a commit that counts.
pub(super) async fn commit(sim: &Sim, commit: &CommitRef) -> Result<Option<Found>, Problem> {
    match decision(sim, commit.generation, commit.seq).await? {
        Some((DecisionObject::Commit(document), digest)) if digest == commit.digest => Ok(Some((*commit, document))),
        _ => {
            Err(Problem::new(Reason::CheckpointDamaged, format!("commit {}-{} is gone", commit.generation, commit.seq)))
        }
    }
}
