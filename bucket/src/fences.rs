//! Fences and their bases in one location: who owns it, claiming it, finishing what a dead taker left (F1 to F4, take-over).

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    fence::{Fence, FenceBase, LocationFormat, TombstoneRef},
    id::{Generation, PipelineId, PipelineName, Seq},
    key::Key,
    location::Location,
    problem::{Problem, Reason},
    tombstone::Tombstone,
};

use crate::{
    document,
    error::StoreError,
    store::{CreateOutcome, Lookup, ObjectStore},
};

/// Documents that are read at once.
pub(crate) const PARALLEL: usize = 16;

/// What came of a try to write a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum FenceOutcome {
    /// Exactly these bytes stand: the generation is mine.
    Mine,
    /// Another fence stands at that generation.
    Lost(Fence),
    /// Try the same bytes again.
    Unknown(StoreError),
    /// The store refused, and the key was read as absent.
    Refused(StoreError),
    /// Something stands that is no fence.
    Unreadable(Problem),
}

/// What came of claiming a location.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// Generation 1 is the caller's, and the highest.
    Mine,
    /// The location has an owner, or was released by this one (`released`): its highest fence.
    OwnedBy(Fence),
}

/// The highest generation that has a fence; absent: proven that there is none.
pub async fn highest(store: &dyn ObjectStore) -> Lookup<Generation, Problem> {
    let listed = match store.list_all(Key::FENCES).await {
        Ok(listed) => listed,
        Err(error) => return Lookup::Unknown(error.problem()),
    };
    let mut fences: Vec<Generation> = listed
        .iter()
        .filter_map(|object| match Key::parse(&object.key) {
            Some(Key::Fence(generation)) => Some(generation),
            _ => None,
        })
        .collect();
    fences.sort_unstable();
    let Some(&highest) = fences.last() else { return Lookup::Absent };
    // Fences are contiguous and never deleted: a gap means that somebody else deletes here, or that the listing lies.
    if fences.first() != Some(&Generation::FIRST) || u64::try_from(fences.len()) != Ok(highest.get()) {
        return Lookup::Unknown(
            Problem::new(
                Reason::LocationUnsuitable,
                format!("{} has {} fences, the highest is {highest}: one is missing", store.location(), fences.len()),
            )
            .with("location", store.location())
            .with("fences", fences.len())
            .with("highest", highest),
        );
    }
    Lookup::Found(highest)
}

/// The highest fence: who owns the location, unless it says that the location was released.
pub async fn owner(store: &dyn ObjectStore) -> Lookup<Fence, Problem> {
    match highest(store).await {
        Lookup::Found(generation) => match document::read(store, &Key::Fence(generation), Fence::parse).await {
            Lookup::Absent => Lookup::Unknown(vanished(store, &Key::Fence(generation))),
            known => known,
        },
        Lookup::Absent => Lookup::Absent,
        Lookup::Unknown(problem) => Lookup::Unknown(problem),
    }
}

/// A key was listed, and is absent when it is read.
pub(crate) fn vanished(store: &dyn ObjectStore, key: &Key) -> Problem {
    Problem::new(
        Reason::StoreUnavailable,
        format!("{} was listed in {} and is absent when it is read", key, store.location()),
    )
    .with("location", store.location())
    .with("key", key)
}

/// `LOCATION_OWNED`, naming both pipelines.
pub fn location_owned(location: &Location, mine: PipelineId, my_name: &PipelineName, owner: &Fence) -> Problem {
    Problem::new(
        Reason::LocationOwned,
        format!(
            "{location} is owned by pipeline {} ({}) since generation {}; pipeline {my_name} ({mine}) must take it over or use another prefix",
            owner.pipeline_name, owner.pipeline, owner.generation
        ),
    )
    .with("location", location)
    .with("owner", owner.pipeline)
    .with("owner_name", &owner.pipeline_name)
    .with("generation", owner.generation)
    .with("pipeline", mine)
    .with("pipeline_name", my_name)
}

/// Puts a fence, create-only, and judges "exists" by comparing bytes: two takers never write the same ones.
pub async fn put_fence(store: &dyn ObjectStore, fence: &Fence) -> FenceOutcome {
    let key = Key::Fence(fence.generation).to_string();
    let bytes = Bytes::from(fence.encode());
    let lost = match store.create(&key, bytes.clone()).await {
        CreateOutcome::Done => return FenceOutcome::Mine,
        CreateOutcome::Exists => None,
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Some(error),
    };
    match (store.get(&key, MAX_DOCUMENT_BYTES).await, lost) {
        (Lookup::Found(found), _) if found == bytes => FenceOutcome::Mine,
        (Lookup::Found(found), _) => match Fence::parse(&key, &found) {
            Ok(other) => FenceOutcome::Lost(other),
            Err(problem) => FenceOutcome::Unreadable(problem),
        },
        (Lookup::Absent, Some(error)) if error.is_refusal() => FenceOutcome::Refused(error),
        (Lookup::Absent | Lookup::Unknown(_), Some(error)) | (Lookup::Unknown(error), None) => {
            FenceOutcome::Unknown(error)
        }
        (Lookup::Absent, None) => FenceOutcome::Unreadable(vanished(store, &Key::Fence(fence.generation))),
    }
}

/// Writes `lockstep.json`, or checks that the one which stands can be obeyed.
pub async fn ensure_format(store: &dyn ObjectStore) -> Result<(), Problem> {
    let key = Key::Format.to_string();
    let created = store.create(&key, Bytes::from(LocationFormat::current().encode())).await;
    let error = match created {
        CreateOutcome::Done => return Ok(()),
        CreateOutcome::Exists => None,
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Some(error),
    };
    match (document::read(store, &Key::Format, LocationFormat::parse).await, error) {
        (Lookup::Found(_), _) => Ok(()),
        (_, Some(error)) => Err(error.problem()),
        (Lookup::Unknown(problem), None) => Err(problem),
        (Lookup::Absent, None) => Err(vanished(store, &Key::Format)),
    }
}

/// Claims a location that nobody owned before: the take-over of nothing. `fence` is of generation 1, its bytes are stored beforehand, and
/// the call is repeated with the same ones while it fails with a retryable problem.
pub async fn claim_first(store: &dyn ObjectStore, fence: &Fence) -> Result<Claim, Problem> {
    if fence.generation != Generation::FIRST {
        return Err(Problem::new(
            Reason::SpecInvalid,
            format!("a location is claimed with generation 1, not {}", fence.generation),
        )
        .with("generation", fence.generation));
    }
    if let Some(owner) = owner(store).await.known()? {
        return Ok(if owner == *fence { Claim::Mine } else { Claim::OwnedBy(owner) });
    }
    ensure_format(store).await?;
    reached(Point::ClaimBeforeFence);
    match put_fence(store, fence).await {
        FenceOutcome::Mine => Ok(Claim::Mine),
        // It may have been taken over since: the highest one counts.
        FenceOutcome::Lost(other) => Ok(Claim::OwnedBy(owner(store).await.known()?.unwrap_or(other))),
        FenceOutcome::Unknown(error) | FenceOutcome::Refused(error) => Err(error.problem()),
        FenceOutcome::Unreadable(problem) => Err(problem),
    }
}

/// Reads the base of a generation; generation 1 has none, and starts at nothing.
pub async fn base(store: &dyn ObjectStore, generation: Generation) -> Lookup<FenceBase, Problem> {
    if generation <= Generation::FIRST {
        return Lookup::Absent;
    }
    document::read(store, &Key::FenceBase(generation), FenceBase::parse).await
}

/// F3: whoever meets a fence without its base in its *own* location finishes it. Everything is listed *after* the fence was seen; the base
/// is created, and what then stands is obeyed, not the own value. For generation 2 and above.
pub async fn finish_base(store: &dyn ObjectStore, generation: Generation) -> Result<FenceBase, Problem> {
    let Some(previous) = generation.get().checked_sub(1).filter(|&g| g > 0).map(Generation::new).transpose()? else {
        return Err(Problem::new(Reason::SpecInvalid, format!("generation {generation} has no base"))
            .with("generation", generation));
    };
    if document::read(store, &Key::Fence(generation), Fence::parse).await.known()?.is_none() {
        return Err(Problem::new(
            Reason::TakeOverInProgress,
            format!("{} has no fence {generation} yet, so its base can't be written", store.location()),
        )
        .with("location", store.location())
        .with("generation", generation));
    }
    if let Some(stands) = base(store, generation).await.known()? {
        return Ok(stands);
    }
    let before = match base(store, previous).await.known()? {
        Some(before) => Some(before),
        None if previous == Generation::FIRST => None,
        // A taker makes sure of it before its own fence; without it nothing of the generation before is decided.
        None => Some(Box::pin(finish_base(store, previous)).await?),
    };
    let tombstones = tombstones_of(store, previous, before.as_ref()).await?;
    let newest = match newest_commit(store, previous).await? {
        Some(newest) => Some(newest),
        None => before.as_ref().and_then(|before| before.newest),
    };
    let mine = FenceBase { generation, newest, tombstones };
    let created = store.create(&Key::FenceBase(generation).to_string(), Bytes::from(mine.encode())).await;
    match (base(store, generation).await, created) {
        (Lookup::Found(stands), _) => Ok(stands),
        (_, CreateOutcome::Refused(error) | CreateOutcome::Unknown(error)) => Err(error.problem()),
        (Lookup::Unknown(problem), _) => Err(problem),
        (Lookup::Absent, _) => Err(vanished(store, &Key::FenceBase(generation))),
    }
}

/// The commit with the greatest seq of one generation. Retired and damaged ones are included: F1 asks for neither.
async fn newest_commit(store: &dyn ObjectStore, generation: Generation) -> Result<Option<CommitRef>, Problem> {
    let mut seqs: Vec<Seq> = commit_seqs(store, generation).await?;
    while let Some(seq) = seqs.pop() {
        let key = Key::Commit(generation, seq);
        let read = document::read(store, &key, |key, bytes| {
            DecisionObject::parse(key, bytes).map(|decision| (decision, Digest::of(bytes)))
        });
        match read.await.known()? {
            Some((DecisionObject::Commit(commit), digest)) => {
                return Ok(Some(CommitRef { generation, seq, round: commit.round, digest }));
            }
            Some((DecisionObject::Abort(_), _)) => {}
            None => match document::tombstone(store, generation, seq).await.or_problem().known()? {
                // Swept after it was listed.
                Some(_) => {}
                None => return Err(vanished(store, &key)),
            },
        }
    }
    Ok(None)
}

/// Seqs of one generation that have a decision, rising.
pub(crate) async fn commit_seqs(store: &dyn ObjectStore, generation: Generation) -> Result<Vec<Seq>, Problem> {
    let listed = store.list_all(&Key::commits_of(generation)).await?;
    Ok(listed
        .iter()
        .filter_map(|object| match Key::parse(&object.key) {
            Some(Key::Commit(_, seq)) => Some(seq),
            _ => None,
        })
        .collect())
}

/// What base g+1 lists: the tombstones that count before it, and those that the owner of g wrote.
async fn tombstones_of(
    store: &dyn ObjectStore,
    owner: Generation,
    before: Option<&FenceBase>,
) -> Result<Vec<TombstoneRef>, Problem> {
    let known: Vec<TombstoneRef> = before.map(|base| base.tombstones.clone()).unwrap_or_default();
    let listed = store.list_all(Key::RETIRED).await?;
    let fresh = listed.iter().filter_map(|object| match Key::parse(&object.key) {
        Some(Key::Retired(g, s)) if !known.iter().any(|t| (t.generation, t.seq) == (g, s)) => Some(Key::Retired(g, s)),
        _ => None,
    });
    // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
    let reads: Vec<BoxFuture<'_, Result<Tombstone, Problem>>> =
        fresh.map(|key| read_tombstone(store, key).boxed()).collect();
    let read: Vec<Tombstone> = futures::stream::iter(reads).buffer_unordered(PARALLEL).try_collect().await?;
    let mut tombstones = known;
    tombstones.extend(read.iter().filter(|tombstone| tombstone.retired_in >= owner).map(Tombstone::reference));
    tombstones.sort_unstable();
    Ok(tombstones)
}

async fn read_tombstone(store: &dyn ObjectStore, key: Key) -> Result<Tombstone, Problem> {
    match document::read(store, &key, Tombstone::parse).await.known()? {
        Some(tombstone) => Ok(tombstone),
        None => Err(vanished(store, &key)),
    }
}
