//! What a location holds: the commits that count, newest first (F1, F2). Reads only, except where a base has to be finished.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    fence::{Fence, FenceBase},
    id::{Generation, RoundId, Seq, Step},
    key::Key,
    problem::{Problem, Reason},
    tombstone::Tombstone,
};

use crate::{
    document, fences,
    store::{Lookup, MAX_PAGE, ObjectStore},
};

/// Whether the reader may finish a base that a dead taker left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A location that the caller owns or follows as its own: F3 is done on the way.
    Own,
    /// A foreign or read-only location is never written (G5): there an open take-over is `TAKE_OVER_IN_PROGRESS`.
    ReadOnly,
}

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

/// A take-over that lands between two looks makes a reader start over (F2 step 4); this many in one call are no accident.
const LOOKS: usize = 8;

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

/// Visits checkpoints newest first, `batch` documents at once, and starts over where a fence came in between (F2).
async fn scan(
    store: &dyn ObjectStore,
    access: Access,
    batch: usize,
    mut visit: impl FnMut(Visit) -> Next + Send,
) -> Result<(), Problem> {
    let mut highest = None;
    for _ in 0..LOOKS {
        highest = fences::highest(store).await.known()?;
        let Some(highest) = highest else { return Ok(()) };
        visit(Visit::Again);
        let base = match fences::base(store, highest).await.known()? {
            Some(base) => Some(base),
            None if highest == Generation::FIRST => None,
            None if access == Access::Own => Some(fences::finish_base(store, highest).await?),
            None => return Err(take_over_in_progress(store, highest)),
        };
        scan_from(store, highest, base, batch, &mut visit).await?;
        // Only now: a fence that came before the listing would have made it incomplete.
        if document::read(store, &Key::Fence(highest.next()), Fence::parse).await.known()?.is_none() {
            return Ok(());
        }
    }
    Err(take_over_in_progress(store, highest.unwrap_or(Generation::FIRST)))
}

fn take_over_in_progress(store: &dyn ObjectStore, generation: Generation) -> Problem {
    Problem::new(
        Reason::TakeOverInProgress,
        format!("{} is being taken over: generation {generation} has no base yet", store.location()),
    )
    .with("location", store.location())
    .with("generation", generation)
}

async fn scan_from(
    store: &dyn ObjectStore,
    highest: Generation,
    highest_base: Option<FenceBase>,
    batch: usize,
    visit: &mut (impl FnMut(Visit) -> Next + Send),
) -> Result<(), Problem> {
    let mut generation = highest;
    let mut own_base = highest_base.clone();
    let mut last: Option<CommitRef> = None;
    loop {
        let mut seqs = fences::commit_seqs(store, generation).await?;
        if let Some(last) = last {
            seqs.retain(|&seq| seq <= last.seq);
        }
        let marks = Marks::read(store, generation, seqs.first().copied(), highest, highest_base.as_ref()).await?;
        seqs.retain(|seq| !marks.retired.contains(seq));
        seqs.reverse();
        for some in seqs.chunks(batch) {
            // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
            let reads: Vec<BoxFuture<'_, Result<Option<Checkpoint>, Problem>>> = some
                .iter()
                .map(|&seq| checkpoint(store, generation, seq, marks.damaged.contains(&seq)).boxed())
                .collect();
            let read: Vec<Option<Checkpoint>> = futures::stream::iter(reads)
                .buffered(batch)
                .collect::<Vec<Result<_, Problem>>>()
                .await
                .into_iter()
                .collect::<Result<_, Problem>>()?;
            for checkpoint in read.into_iter().flatten() {
                check_last(&checkpoint, last.as_ref())?;
                if visit(Visit::Checkpoint(Box::new(checkpoint))) == Next::Stop {
                    return Ok(());
                }
            }
        }
        // F1: what counts of the generation that the base names is said by the base of exactly the following generation.
        let Some(named) = own_base.and_then(|base| base.newest) else { return Ok(()) };
        let following = named.generation.next();
        let deciding = if following == generation {
            Some(named)
        } else {
            fences::base(store, following).await.known()?.and_then(|base| base.newest)
        };
        last = deciding.filter(|newest| newest.generation == named.generation);
        if last.is_none() {
            return Err(Problem::new(
                Reason::ManifestInvalid,
                format!("base {generation} names commit {}-{}, base {following} does not", named.generation, named.seq),
            )
            .with("generation", named.generation)
            .with("seq", named.seq));
        }
        generation = named.generation;
        own_base = fences::base(store, generation).await.known()?;
    }
}

/// The commit that a base names must be the very one.
fn check_last(checkpoint: &Checkpoint, last: Option<&CommitRef>) -> Result<(), Problem> {
    match last {
        Some(last) if last.seq == checkpoint.commit.seq && last.digest != checkpoint.commit.digest => {
            Err(Problem::new(
                Reason::CheckpointDamaged,
                format!(
                    "{} has digest {}, the base of the next generation says {}",
                    last.key(),
                    checkpoint.commit.digest,
                    last.digest
                ),
            )
            .with("key", last.key())
            .with("found", checkpoint.commit.digest)
            .with("expected", last.digest))
        }
        _ => Ok(()),
    }
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

/// Which commits of one generation are retired or damaged.
struct Marks {
    retired: BTreeSet<Seq>,
    damaged: BTreeSet<Seq>,
}

impl Marks {
    /// Looks from the oldest commit that is there on: tombstones are never deleted, so there may be any number of older ones.
    async fn read(
        store: &dyn ObjectStore,
        generation: Generation,
        oldest: Option<Seq>,
        highest: Generation,
        base: Option<&FenceBase>,
    ) -> Result<Self, Problem> {
        let mut marks = Self { retired: BTreeSet::new(), damaged: BTreeSet::new() };
        let Some(oldest) = oldest else { return Ok(marks) };
        let before = Seq::new(oldest.get().saturating_sub(1))?;
        for seq in list_from(store, Key::RETIRED, generation, Key::Retired(generation, before)).await? {
            // In the highest generation only its own owner can have written it.
            let counts = seq >= oldest
                && (generation == highest || {
                    let key = Key::Retired(generation, seq);
                    match document::read(store, &key, Tombstone::parse).await.known()? {
                        Some(tombstone) => tombstone.counts(highest, base),
                        None => return Err(fences::vanished(store, &key)),
                    }
                });
            if counts {
                marks.retired.insert(seq);
            }
        }
        marks.damaged.extend(list_from(store, Key::DAMAGED, generation, Key::Damaged(generation, before)).await?);
        Ok(marks)
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
