//! What a location holds: the commits that count, newest first (F1, F2). Reads only, except where a base has to be finished.

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    fence::Fence,
    id::{Generation, RoundId, Seq, Step},
    key::Key,
    latest::{Look, ReadCommits},
    problem::{Problem, Reason},
};

pub use lockstep_protocol::latest::Access;

use crate::{
    document, fences,
    store::{Lookup, MAX_PAGE, ObjectStore},
};

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest.
    Latest,
    /// The greatest (generation, seq) with this step.
    Step(Step),
    /// The one that this push round made.
    Round(RoundId),
    /// The newest that was created at or before this time.
    Time(DateTime<Utc>),
}

/// One checkpoint that counts and is not retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its place and digest.
    pub commit: CommitRef,
    /// What its key holds.
    pub document: CommitDocument,
    /// It bears a mark: something of it was found broken. No base, not latest.
    pub damaged: bool,
}

/// The newest checkpoint (F2): never of an older generation while a take-over is open, never a retired or damaged one.
pub async fn latest(store: &dyn ObjectStore, access: Access) -> Lookup<Checkpoint, Problem> {
    find(store, Selector::Latest, access).await
}

/// One checkpoint. Damaged ones are passed over, except where one is named by its round; where nothing but damaged ones
/// match, that is `CHECKPOINT_DAMAGED`, not absent.
pub async fn find(store: &dyn ObjectStore, selector: Selector, access: Access) -> Lookup<Checkpoint, Problem> {
    let mut damaged: Option<CommitRef> = None;
    let mut found = None;
    let wanted = |checkpoint: &Checkpoint| match selector {
        Selector::Latest => true,
        Selector::Step(step) => checkpoint.document.step == step,
        Selector::Round(round) => checkpoint.document.round == round,
        Selector::Time(time) => checkpoint.document.created_at <= time,
    };
    let batch = if selector == Selector::Latest { 1 } else { fences::PARALLEL };
    let result = scan(store, access, batch, |round| match round {
        Visit::Again => {
            damaged = None;
            found = None;
            Next::Go
        }
        Visit::Checkpoint(checkpoint) if !wanted(&checkpoint) => Next::Go,
        Visit::Checkpoint(checkpoint) if checkpoint.damaged && !matches!(selector, Selector::Round(_)) => {
            damaged.get_or_insert(checkpoint.commit);
            Next::Go
        }
        Visit::Checkpoint(checkpoint) => {
            found = Some(*checkpoint);
            Next::Stop
        }
    })
    .await;
    match (result, found, damaged) {
        (Err(problem), ..) => Lookup::Unknown(problem),
        (Ok(()), Some(checkpoint), _) => Lookup::Found(checkpoint),
        (Ok(()), None, None) => Lookup::Absent,
        (Ok(()), None, Some(commit)) => Lookup::Unknown(
            Problem::new(
                Reason::CheckpointDamaged,
                format!(
                    "{}: every checkpoint that fits is marked damaged, the newest of them is {} ({}-{})",
                    store.location(),
                    commit.round,
                    commit.generation,
                    commit.seq
                ),
            )
            .with("location", store.location())
            .with("checkpoint", commit.round)
            .with("generation", commit.generation)
            .with("seq", commit.seq),
        ),
    }
}

/// Every checkpoint that counts and is not retired, newest first, at most `limit`.
pub async fn list_checkpoints(
    store: &dyn ObjectStore,
    access: Access,
    limit: usize,
) -> Result<Vec<Checkpoint>, Problem> {
    let mut all = Vec::new();
    if limit == 0 {
        return Ok(all);
    }
    scan(store, access, fences::PARALLEL, |visit| match visit {
        Visit::Again => {
            all.clear();
            Next::Go
        }
        Visit::Checkpoint(checkpoint) => {
            all.push(*checkpoint);
            if all.len() < limit { Next::Go } else { Next::Stop }
        }
    })
    .await?;
    Ok(all)
}

enum Visit {
    /// A take-over came in between: what was visited so far doesn't hold.
    Again,
    /// The next older one.
    Checkpoint(Box<Checkpoint>),
}

#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

/// Visits checkpoints newest first, `batch` documents at once: the requests of [`Look`], in its order.
async fn scan(
    store: &dyn ObjectStore,
    access: Access,
    batch: usize,
    mut visit: impl FnMut(Visit) -> Next + Send,
) -> Result<(), Problem> {
    let mut look = Look::begin(access);
    let here = |problem| fences::at(store, problem);
    loop {
        look = match look {
            Look::ListFences(list) => {
                visit(Visit::Again);
                let listed = store.list_all(Key::FENCES).await?;
                let fences = listed.iter().filter_map(|object| match Key::parse(&object.key) {
                    Some(Key::Fence(generation)) => Some(generation),
                    _ => None,
                });
                list.answer(fences).map_err(here)?
            }
            Look::ReadBase(read) => {
                let found = fences::base(store, read.generation()).await.known()?;
                read.answer(found).map_err(here)?
            }
            Look::FinishBase(missing) => {
                let stands = fences::finish(store, missing.begin()).await?;
                missing.answer(stands)
            }
            Look::ListCommits(list) => {
                let seqs = fences::commit_seqs(store, list.generation()).await?;
                list.answer(seqs)
            }
            Look::ListMarks(list) => {
                let (generation, after) = (list.generation(), list.after());
                let retired = list_from(store, Key::RETIRED, generation, Key::Retired(generation, after)).await?;
                let damaged = list_from(store, Key::DAMAGED, generation, Key::Damaged(generation, after)).await?;
                list.answer(retired, damaged)
            }
            Look::ReadTombstones(read) => {
                let places: Vec<_> = read.wanted().iter().map(|&seq| (read.generation(), seq)).collect();
                let tombstones = fences::tombstones(store, &places).await?;
                read.answer(&tombstones)
            }
            Look::ReadCommits(read) => match visit_each(store, &read, batch, &mut visit).await? {
                Some(commit) => read.found(commit),
                None => read.exhausted(),
            },
            Look::ReadFollowing(read) => {
                let found = fences::base(store, read.generation()).await.known()?;
                read.answer(found).map_err(here)?
            }
            Look::ReadOwnBase(read) => {
                let found = fences::base(store, read.generation()).await.known()?;
                read.answer(found)
            }
            Look::ReadSuccessor(read) => {
                let fence = document::read(store, &Key::Fence(read.generation()), Fence::parse).await.known()?;
                read.answer(fence.is_some())
            }
            Look::Done => return Ok(()),
        };
    }
}

/// Visits commits until the visitor stops: at which one.
async fn visit_each(
    store: &dyn ObjectStore,
    read: &ReadCommits,
    batch: usize,
    visit: &mut (impl FnMut(Visit) -> Next + Send),
) -> Result<Option<CommitRef>, Problem> {
    let generation = read.generation();
    for some in read.seqs().chunks(batch) {
        // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
        let reads: Vec<BoxFuture<'_, Result<Option<Checkpoint>, Problem>>> =
            some.iter().map(|&seq| checkpoint(store, generation, seq, read.is_damaged(seq)).boxed()).collect();
        let found: Vec<Option<Checkpoint>> = futures::stream::iter(reads)
            .buffered(batch)
            .collect::<Vec<Result<_, Problem>>>()
            .await
            .into_iter()
            .collect::<Result<_, Problem>>()?;
        for checkpoint in found.into_iter().flatten() {
            let commit = checkpoint.commit;
            read.check(&commit).map_err(|problem| fences::at(store, problem))?;
            if visit(Visit::Checkpoint(Box::new(checkpoint))) == Next::Stop {
                return Ok(Some(commit));
            }
        }
    }
    Ok(None)
}

/// Reads one decision; an abort record is no checkpoint.
async fn checkpoint(
    store: &dyn ObjectStore,
    generation: Generation,
    seq: Seq,
    damaged: bool,
) -> Result<Option<Checkpoint>, Problem> {
    let key = Key::Commit(generation, seq);
    let read = document::read(store, &key, |key, bytes| {
        DecisionObject::parse(key, bytes).map(|decision| (decision, Digest::of(bytes)))
    });
    match read.await.known()? {
        Some((DecisionObject::Commit(document), digest)) => {
            let commit = CommitRef { generation, seq, round: document.round, digest };
            Ok(Some(Checkpoint { commit, document: *document, damaged }))
        }
        Some((DecisionObject::Abort(_), _)) => Ok(None),
        None => match document::tombstone(store, generation, seq).await.or_problem().known()? {
            // Swept after it was listed.
            Some(_) => Ok(None),
            None => Err(fences::vanished(store, &key)),
        },
    }
}

async fn list_from(
    store: &dyn ObjectStore,
    folder: &str,
    generation: Generation,
    after: Key,
) -> Result<Vec<Seq>, Problem> {
    let prefix = format!("{folder}{:020}-", generation.get());
    let mut seqs = Vec::new();
    let mut after = Some(after.to_string());
    while after.is_some() {
        let page = store.list(&prefix, after.as_deref(), MAX_PAGE).await?;
        seqs.extend(page.objects.iter().filter_map(|object| match Key::parse(&object.key) {
            Some(Key::Retired(_, seq) | Key::Damaged(_, seq)) => Some(seq),
            _ => None,
        }));
        after = page.next;
    }
    Ok(seqs)
}
