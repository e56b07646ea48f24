//! What a location holds: the commits that count, newest first (F1, F2). Reads only, except where a base has to be finished.
//!
//! A commit document that can't be read is one thing that is not known, not the end of all knowledge: it is listed as such, it is never passed over where it may be what is looked for
//! (unless it bears a mark of damage), and it hides no other checkpoint (ADR 29).

mod entry;

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    fence::Fence,
    id::{Generation, RoundId, Seq, Step},
    key::Key,
    latest::{Look, ReadCommits},
    problem::Problem,
};

pub use entry::{Entry, Unreadable};
pub use lockstep_protocol::latest::Access;

use entry::{Seen, all_damaged};

use crate::{
    document::{self, Decided},
    fences,
    store::{Lookup, MAX_PAGE, ObjectStore},
};

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest.
    Latest,
    /// The greatest (generation, seq) with this step.
    Step(Step),
    /// The one that this push round made; also what can't be read, by the id that stands in for its round.
    Round(RoundId),
    /// The one at this place of the chain, whether or not it can be read.
    Place(Generation, Seq),
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

/// One checkpoint. Damaged ones are passed over, except where one is named by its round or place; where nothing but damaged ones match, that is `CHECKPOINT_DAMAGED`, not
/// absent. What can't be read is unknown wherever it may be the one.
pub async fn find(store: &dyn ObjectStore, selector: Selector, access: Access) -> Lookup<Checkpoint, Problem> {
    match look_up(store, selector, access).await {
        Lookup::Found(Entry::Whole(checkpoint)) => Lookup::Found(*checkpoint),
        Lookup::Found(Entry::Unreadable(unreadable)) => {
            Lookup::Unknown(unreadable.in_the_way(store, "what was asked for is"))
        }
        Lookup::Absent => Lookup::Absent,
        Lookup::Unknown(problem) => Lookup::Unknown(problem),
    }
}

/// As [`find`]; what can't be read is found by its place, or by the id that stands in for its round.
pub async fn look_up(store: &dyn ObjectStore, selector: Selector, access: Access) -> Lookup<Entry, Problem> {
    let batch = if selector == Selector::Latest { 1 } else { fences::PARALLEL };
    let mut seen = Seen::default();
    let result = scan(store, access, batch, |visit| match visit {
        Visit::Again => {
            seen = Seen::default();
            Next::Go
        }
        Visit::Entry(entry) => seen.visit(selector, entry),
    })
    .await;
    if let Err(problem) = result {
        return Lookup::Unknown(problem);
    }
    match seen {
        Seen { found: Some(entry), .. } => Lookup::Found(entry),
        Seen { instead: Some(unreadable), .. } => {
            Lookup::Unknown(unreadable.in_the_way(store, "what was asked for is or may be"))
        }
        Seen { damaged: Some(commit), .. } => Lookup::Unknown(all_damaged(store, &commit)),
        Seen { .. } => Lookup::Absent,
    }
}

/// What somebody who adds to the chain goes by: damage of whatever is there keeps nobody from a good push.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Newest {
    /// The greatest place that counts, whatever stands there.
    pub greatest: Option<CommitRef>,
    /// The newest that can be built on.
    pub whole: Option<Checkpoint>,
}

/// The newest commits for whoever pushes. For readers it is [`latest`], which passes over nothing that nobody gave up.
pub async fn newest(store: &dyn ObjectStore, access: Access) -> Result<Newest, Problem> {
    let mut newest = Newest::default();
    scan(store, access, 1, |visit| match visit {
        Visit::Again => {
            newest = Newest::default();
            Next::Go
        }
        Visit::Entry(entry) => {
            newest.greatest.get_or_insert(entry.commit());
            match entry {
                Entry::Whole(checkpoint) if !checkpoint.damaged => {
                    newest.whole = Some(*checkpoint);
                    Next::Stop
                }
                Entry::Whole(_) | Entry::Unreadable(_) => Next::Go,
            }
        }
    })
    .await?;
    Ok(newest)
}

/// Every commit that counts and is not retired, newest first, at most `limit`; those that can't be read are among them.
pub async fn list_checkpoints(store: &dyn ObjectStore, access: Access, limit: usize) -> Result<Vec<Entry>, Problem> {
    let mut all = Vec::new();
    if limit == 0 {
        return Ok(all);
    }
    scan(store, access, fences::PARALLEL, |visit| match visit {
        Visit::Again => {
            all.clear();
            Next::Go
        }
        Visit::Entry(entry) => {
            all.push(entry);
            if all.len() < limit { Next::Go } else { Next::Stop }
        }
    })
    .await?;
    Ok(all)
}

/// Those of a listing that can be read.
pub fn whole(entries: Vec<Entry>) -> Vec<Checkpoint> {
    entries.into_iter().filter_map(|entry| entry.whole().ok()).collect()
}

enum Visit {
    /// A take-over came in between: what was visited so far doesn't hold.
    Again,
    /// The next older one.
    Entry(Entry),
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
        let reads: Vec<BoxFuture<'_, Result<Option<Entry>, Problem>>> =
            some.iter().map(|&seq| entry(store, generation, seq, read.is_damaged(seq)).boxed()).collect();
        let found: Vec<Option<Entry>> = futures::stream::iter(reads)
            .buffered(batch)
            .collect::<Vec<Result<_, Problem>>>()
            .await
            .into_iter()
            .collect::<Result<_, Problem>>()?;
        for entry in found.into_iter().flatten() {
            let commit = entry.commit();
            if visit(Visit::Entry(checked(store, read, entry))) == Next::Stop {
                return Ok(Some(commit));
            }
        }
    }
    Ok(None)
}

/// The base of the next generation names one commit with its digest: other bytes are not that commit.
fn checked(store: &dyn ObjectStore, read: &ReadCommits, entry: Entry) -> Entry {
    match entry {
        Entry::Whole(checkpoint) => match read.check(&checkpoint.commit) {
            Ok(()) => Entry::Whole(checkpoint),
            Err(problem) => {
                let Checkpoint { commit, damaged, .. } = *checkpoint;
                let unnamed = CommitRef::unreadable(commit.generation, commit.seq, &[]);
                let commit = CommitRef { digest: commit.digest, ..unnamed };
                let problem = fences::at(store, problem).with("generation", commit.generation).with("seq", commit.seq);
                Entry::Unreadable(Box::new(Unreadable { commit, problem, damaged }))
            }
        },
        unreadable => unreadable,
    }
}

/// Reads one decision; an abort record is no checkpoint.
async fn entry(
    store: &dyn ObjectStore,
    generation: Generation,
    seq: Seq,
    damaged: bool,
) -> Result<Option<Entry>, Problem> {
    match document::decision(store, generation, seq).await.known()? {
        Some(Decided::Decision { decision: DecisionObject::Commit(document), digest, .. }) => {
            let commit = CommitRef { generation, seq, round: document.round, digest };
            Ok(Some(Entry::Whole(Box::new(Checkpoint { commit, document: *document, damaged }))))
        }
        Some(Decided::Decision { decision: DecisionObject::Abort(_), .. }) => Ok(None),
        Some(Decided::Unreadable { commit, problem, .. }) => {
            Ok(Some(Entry::Unreadable(Box::new(Unreadable { commit, problem, damaged }))))
        }
        None => match document::tombstone(store, generation, seq).await.or_problem().known()? {
            // Swept after it was listed.
            Some(_) => Ok(None),
            None => Err(fences::vanished(store, &Key::Commit(generation, seq))),
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
