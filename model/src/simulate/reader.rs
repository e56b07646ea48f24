//! What stands in the bucket, as those see it who have to ask over the network.

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    fence::{Fence, FenceBase, Successor, newest_of},
    id::{Generation, Seq},
    key::Key,
    problem::{Problem, Reason},
};

use super::{
    audit,
    bucket::{self, NotKnown, Read},
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

async fn document<T>(
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

async fn base(sim: &Sim, generation: Generation) -> Result<Option<FenceBase>, Problem> {
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

/// A checkpoint of the location.
pub(super) type Found = (CommitRef, Box<CommitDocument>);

/// The newest commit that counts (F2).
pub(super) async fn newest(sim: &Sim) -> Result<Option<Found>, Problem> {
    let began = audit::reading(sim);
    loop {
        let highest = highest(sim).await?;
        let Some(highest) = highest else { return Ok(None) };
        let base = base(sim, highest).await?;
        if highest > Generation::FIRST && base.is_none() {
            return Err(Problem::new(Reason::TakeOverInProgress, format!("fence {highest} has no base")));
        }
        let mut usable = None;
        for key in bucket::list(sim, &Key::commits_of(highest)).await?.iter().rev() {
            let Some(Key::Commit(generation, seq)) = Key::parse(key) else { continue };
            if let Some((DecisionObject::Commit(document), digest)) = decision(sim, generation, seq).await? {
                usable = Some(CommitRef { generation, seq, round: document.round, digest });
                break;
            }
        }
        let newest = newest_of(highest, base.as_ref(), usable);
        if fence(sim, highest.next()).await?.is_some() {
            continue;
        }
        audit::read_latest(sim, began, newest);
        let Some(newest) = newest else { return Ok(None) };
        return commit(sim, &newest).await;
    }
}

async fn highest(sim: &Sim) -> Result<Option<Generation>, Problem> {
    let keys = bucket::list(sim, Key::FENCES).await?;
    let fences = keys.iter().filter_map(|key| match Key::parse(key) {
        Some(Key::Fence(generation)) => Some(generation),
        _ => None,
    });
    Ok(fences.max())
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
