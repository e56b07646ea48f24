//! Fences and their bases in one location: who owns it, claiming it, finishing what a dead taker left (F1 to F4, take-over).

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    document::MAX_DOCUMENT_BYTES,
    fence::{Fence, FenceBase, LocationFormat},
    finish::{AtKey, Finish},
    id::{Generation, Seq},
    key::Key,
    latest,
    planted::Bug,
    problem::{Problem, Reason},
    takeover::{FenceKnown, PutAnswer, judge_fence},
    tombstone::Tombstone,
};

pub use lockstep_protocol::fence::location_owned;

use crate::{
    decide::create_unless,
    document::{self, Decided},
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
    let fences = listed.iter().filter_map(|object| match Key::parse(&object.key) {
        Some(Key::Fence(generation)) => Some(generation),
        _ => None,
    });
    Lookup::from_known(latest::highest_fence(fences).map_err(|problem| at(store, problem)))
}

/// A problem of the pure protocol, which knows no locations.
pub(crate) fn at(store: &dyn ObjectStore, mut problem: Problem) -> Problem {
    problem.message = format!("{}: {}", store.location(), problem.message);
    problem.with("location", store.location())
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

/// Puts a fence, create-only, and judges "exists" by comparing bytes: two takers never write the same ones.
pub async fn put_fence(store: &dyn ObjectStore, fence: &Fence) -> FenceOutcome {
    let key = Key::Fence(fence.generation).to_string();
    let bytes = Bytes::from(fence.encode());
    let (answer, error) = match create_unless(Bug::UnconditionalFence, store, &key, bytes.clone()).await {
        CreateOutcome::Done => (PutAnswer::Created, None),
        CreateOutcome::Exists => (PutAnswer::Exists, None),
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => (PutAnswer::Unknown, Some(error)),
    };
    let found = match answer {
        PutAnswer::Created => Lookup::Absent,
        PutAnswer::Exists | PutAnswer::Unknown => store.get(&key, MAX_DOCUMENT_BYTES).await,
    };
    let found = match (found, &error) {
        (Lookup::Found(found), _) => Some(found),
        (Lookup::Absent, _) => None,
        (Lookup::Unknown(unread), None) => return FenceOutcome::Unknown(unread),
        (Lookup::Unknown(_), Some(error)) => return FenceOutcome::Unknown(error.clone()),
    };
    match (judge_fence(&key, &bytes, answer, found.as_deref()), error) {
        (Ok(Some(FenceKnown::Mine)), _) => FenceOutcome::Mine,
        (Ok(Some(FenceKnown::Lost(other))), _) => FenceOutcome::Lost(*other),
        (Ok(None), Some(error)) if error.is_refusal() => FenceOutcome::Refused(error),
        (Ok(None), Some(error)) => FenceOutcome::Unknown(error),
        (Ok(None), None) => FenceOutcome::Unreadable(vanished(store, &Key::Fence(fence.generation))),
        (Err(problem), _) => FenceOutcome::Unreadable(problem),
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

/// F3: whoever meets a fence without its base in its *own* location finishes it: the requests of [`Finish`], in its order. For generation 2 and above.
pub async fn finish_base(store: &dyn ObjectStore, generation: Generation) -> Result<FenceBase, Problem> {
    finish(store, Finish::begin(generation).map_err(|problem| at(store, problem))?).await
}

/// As [`finish_base`], from where `step` stands.
pub(crate) async fn finish(store: &dyn ObjectStore, mut step: Finish) -> Result<FenceBase, Problem> {
    // What the last PUT failed with; it counts only if reading doesn't tell what stands.
    let mut failed = None;
    loop {
        step = match step {
            Finish::ReadFence(read) => {
                let fence = document::read(store, &Key::Fence(read.generation()), Fence::parse).await.known()?;
                read.answer(fence.is_some()).map_err(|problem| at(store, problem))?
            }
            Finish::ReadBase(read) => {
                let found = base(store, read.generation()).await.known()?;
                read.answer(found)
            }
            Finish::ReadBefore(read) => {
                let found = base(store, read.generation()).await.known()?;
                read.answer(found)
            }
            Finish::FinishBefore(read) => {
                let found = Box::pin(finish_base(store, read.generation())).await?;
                read.answer(Some(found))
            }
            Finish::ListRetired(list) => {
                let listed = store.list_all(Key::RETIRED).await?;
                list.answer(listed.iter().filter_map(|object| match Key::parse(&object.key) {
                    Some(Key::Retired(generation, seq)) => Some((generation, seq)),
                    _ => None,
                }))
            }
            Finish::ReadTombstones(read) => {
                let tombstones = tombstones(store, read.places()).await?;
                read.answer(&tombstones)
            }
            Finish::ListCommits(list) => {
                let seqs = commit_seqs(store, list.generation()).await?;
                list.answer(seqs)
            }
            Finish::ReadDecision(read) => {
                let (generation, seq) = read.place();
                read.answer(at_key(store, generation, seq).await?)
            }
            Finish::Create(create) => {
                let key = Key::FenceBase(create.base().generation).to_string();
                reached(Point::BaseBeforePut);
                let bytes = Bytes::from(create.base().encode());
                failed = match create_unless(Bug::UnconditionalBase, store, &key, bytes).await {
                    CreateOutcome::Done | CreateOutcome::Exists => None,
                    CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Some(error),
                };
                reached(Point::BaseAfterPut);
                create.sent()
            }
            Finish::ReadStanding(read) => {
                let generation = read.generation();
                match (base(store, generation).await, failed) {
                    (Lookup::Found(stands), _) => return Ok(stands),
                    (_, Some(error)) => return Err(error.problem()),
                    (Lookup::Unknown(problem), None) => return Err(problem),
                    (Lookup::Absent, None) => return Err(vanished(store, &Key::FenceBase(generation))),
                }
            }
            Finish::Done(stands) => return Ok(stands),
        };
    }
}

/// What a decision key holds that was listed.
async fn at_key(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Result<AtKey, Problem> {
    match document::decision(store, generation, seq).await.known()? {
        Some(Decided::Decision { decision: DecisionObject::Commit(commit), digest, .. }) => {
            Ok(AtKey::Commit(CommitRef { generation, seq, round: commit.round, digest }))
        }
        Some(Decided::Decision { decision: DecisionObject::Abort(_), .. }) => Ok(AtKey::Abort),
        Some(Decided::Unreadable { commit, .. }) => unreadable(store, commit).await,
        None => match document::tombstone(store, generation, seq).await.or_problem().known()? {
            Some(_) => Ok(AtKey::Swept),
            None => Err(vanished(store, &Key::Commit(generation, seq))),
        },
    }
}

/// What can't be read stands and counts by its place (ADR 29): a base that passed over it would make whatever it was never have counted, and one that waited for it would never be written.
/// Bases stay for ever, so its bytes are read once more before it is named.
async fn unreadable(store: &dyn ObjectStore, commit: CommitRef) -> Result<AtKey, Problem> {
    match document::decision(store, commit.generation, commit.seq).await.known()? {
        Some(Decided::Unreadable { commit: again, .. }) if again == commit => Ok(AtKey::Commit(commit)),
        _ => Err(Problem::new(
            Reason::StoreUnavailable,
            format!("{} in {} held other bytes when it was read again", commit.key(), store.location()),
        )
        .with("location", store.location())
        .with("key", commit.key())),
    }
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

/// Reads tombstones that were listed.
pub(crate) async fn tombstones(
    store: &dyn ObjectStore,
    places: &[(Generation, Seq)],
) -> Result<Vec<Tombstone>, Problem> {
    // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
    let reads: Vec<BoxFuture<'_, Result<Tombstone, Problem>>> =
        places.iter().map(|&(generation, seq)| read_tombstone(store, Key::Retired(generation, seq)).boxed()).collect();
    futures::stream::iter(reads).buffer_unordered(PARALLEL).try_collect().await
}

async fn read_tombstone(store: &dyn ObjectStore, key: Key) -> Result<Tombstone, Problem> {
    match document::read(store, &key, Tombstone::parse).await.known()? {
        Some(tombstone) => Ok(tombstone),
        None => Err(vanished(store, &key)),
    }
}
