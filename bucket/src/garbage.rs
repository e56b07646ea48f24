//! What a collector reads of a location, request by request as [`lockstep_protocol::garbage`] asks for it, and the tombstones it puts. Only the owner collects:
//! the base of its generation stands.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef, DecisionObject},
    fence::{Counts, Fence, FenceBase, Successor, counts},
    garbage::{CommitReach, Known, LandedTombstone, ListedKey, OpenUpload, Retiring, TombstoneKnown},
    id::{Generation, Seq},
    key::Key,
    manifest::{Inherited, PartDocument, PartManifest},
    problem::{Problem, Reason},
    takeover::PutAnswer,
    tombstone::Tombstone,
};

use crate::{
    document::{self, Decided},
    fences, parts,
    store::{CreateOutcome, Lookup, MAX_PAGE, ObjectStore},
};

/// A commit that counts, retired or not.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Its place and digest.
    pub commit: CommitRef,
    /// What its key holds, or why that can't be read.
    pub document: Result<CommitDocument, Problem>,
    /// Length of its bytes.
    pub bytes: u64,
}

/// The decisions of a location as they were listed, and what their marks say.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// Greatest generation of any decision, and the greatest seq in it; none: there is none.
    pub newest: Option<(Generation, Seq)>,
    /// Every commit that counts and is there, newest first.
    pub counted: Vec<Counted>,
    /// Tombstones of these that count.
    pub landed: Vec<LandedTombstone>,
    /// Those of them with a tombstone that doesn't count.
    pub occupied: BTreeSet<(Generation, Seq)>,
    /// Places with a mark of damage.
    pub damaged: BTreeSet<(Generation, Seq)>,
}

impl Decisions {
    /// Every commit that counts.
    pub fn refs(&self) -> Vec<CommitRef> {
        self.counted.iter().map(|counted| counted.commit).collect()
    }

    /// Commits that are not retired, newest first, as retention looks at them.
    pub fn known(&self) -> Vec<Known> {
        // A tombstoned key is retired whatever it holds.
        let place = |commit: CommitRef| (commit.generation, commit.seq);
        let retired: BTreeSet<_> = self.landed.iter().map(|landed| place(landed.commit())).collect();
        // Of one that can't be read: when the next newer one was made, which was later. None: nobody knows, and it is not old.
        let mut newer = None;
        let known = |counted: &Counted| {
            let place = (counted.commit.generation, counted.commit.seq);
            newer = counted.document.as_ref().ok().map(|document| document.created_at).or(newer);
            Known {
                commit: counted.commit,
                created_at: newer.unwrap_or(DateTime::<Utc>::MAX_UTC),
                damaged: self.damaged.contains(&place),
                unreadable: counted.document.is_err(),
                occupied: self.occupied.contains(&place),
            }
        };
        self.counted.iter().filter(|counted| !retired.contains(&place(counted.commit))).map(known).collect()
    }

    /// Its tombstone says what it was, whatever its key holds since.
    fn rename_unreadable(&mut self, retired: CommitRef) {
        let place = (retired.generation, retired.seq);
        let same = |counted: &&mut Counted| (counted.commit.generation, counted.commit.seq) == place;
        if let Some(counted) = self.counted.iter_mut().find(same).filter(|counted| counted.document.is_err()) {
            counted.commit = retired;
        }
    }

    /// By its place and digest.
    pub fn find(&self, commit: &CommitRef) -> Option<&Counted> {
        self.counted.iter().find(|counted| counted.commit == *commit)
    }
}

/// Reads every decision of a location whose highest generation is `mine`: listed first, then its marks, then the bytes.
pub async fn read_decisions(store: &dyn ObjectStore, mine: Generation) -> Result<Decisions, Problem> {
    let places = places(store, Key::Commit, None).await?;
    let retired = places_of(&places, self::places(store, Key::Retired, None).await?);
    let damaged = places_of(&places, self::places(store, Key::Damaged, None).await?);
    let bases = bases(store, mine, &places).await?;
    let counting: Vec<(Generation, Seq)> = places
        .iter()
        .copied()
        .filter(|&(generation, seq)| match bases.get(&generation.next()) {
            _ if generation == mine => true,
            Some(base) => counts(generation, seq, &Successor::Base(base.clone())) == Counts::Yes,
            None => false,
        })
        .collect();
    // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
    let reads: Vec<BoxFuture<'_, Result<Option<Counted>, Problem>>> =
        counting.iter().rev().map(|&(generation, seq)| counted(store, generation, seq).boxed()).collect();
    let read: Vec<Option<Counted>> = futures::stream::iter(reads).buffered(fences::PARALLEL).try_collect().await?;
    let mut decisions = Decisions { newest: places.last().copied(), damaged, ..Decisions::default() };
    decisions.counted = read.into_iter().flatten().collect();
    let marked: Vec<(Generation, Seq)> = decisions
        .counted
        .iter()
        .map(|counted| (counted.commit.generation, counted.commit.seq))
        .filter(|place| retired.contains(place))
        .collect();
    for tombstone in fences::tombstones(store, &marked).await? {
        match LandedTombstone::read(&tombstone, mine, bases.get(&mine)) {
            Some(landed) => {
                decisions.rename_unreadable(landed.commit());
                decisions.landed.push(landed);
            }
            None => {
                decisions.occupied.insert((tombstone.commit.generation, tombstone.commit.seq));
            }
        }
    }
    Ok(decisions)
}

/// Places of decisions, tombstones or marks of damage, as `kind` says, rising; `from`: this one and those after it.
pub async fn places(
    store: &dyn ObjectStore,
    kind: fn(Generation, Seq) -> Key,
    from: Option<(Generation, Seq)>,
) -> Result<Vec<(Generation, Seq)>, Problem> {
    let folder = kind(Generation::FIRST, Seq::FIRST).prefix();
    // Numbers have one length, so that keys are listed in the order of places.
    let mut after = from.and_then(|(generation, seq)| kind(generation, seq).list_after());
    let mut places = Vec::new();
    loop {
        let page = store.list(folder, after.as_deref(), MAX_PAGE).await?;
        let of_kind = page.objects.iter().filter_map(|object| match Key::parse(&object.key) {
            Some(Key::Commit(generation, seq) | Key::Retired(generation, seq) | Key::Damaged(generation, seq)) => {
                Some((generation, seq))
            }
            _ => None,
        });
        places.extend(of_kind);
        match page.next {
            None => return Ok(places),
            Some(next) => after = Some(next),
        }
    }
}

fn places_of(decided: &[(Generation, Seq)], marked: Vec<(Generation, Seq)>) -> BTreeSet<(Generation, Seq)> {
    let decided: BTreeSet<_> = decided.iter().collect();
    marked.into_iter().filter(|place| decided.contains(place)).collect()
}

/// Bases that say which decisions of these generations count, and the one of `mine`.
async fn bases(
    store: &dyn ObjectStore,
    mine: Generation,
    places: &[(Generation, Seq)],
) -> Result<BTreeMap<Generation, FenceBase>, Problem> {
    let mut wanted: BTreeSet<Generation> =
        places.iter().map(|(generation, _)| generation.next()).filter(|&generation| generation <= mine).collect();
    if mine > Generation::FIRST {
        wanted.insert(mine);
    }
    let mut bases = BTreeMap::new();
    for generation in wanted {
        match fences::base(store, generation).await.known()? {
            Some(base) => bases.insert(generation, base),
            // Fences are contiguous, and each below the highest has its base before the next is put.
            None => return Err(fences::vanished(store, &Key::FenceBase(generation))),
        };
    }
    Ok(bases)
}

/// None: an abort record, or swept since it was listed.
async fn counted(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Result<Option<Counted>, Problem> {
    match document::decision(store, generation, seq).await.known()? {
        Some(Decided::Decision { decision: DecisionObject::Commit(document), digest, length }) => {
            let commit = CommitRef { generation, seq, round: document.round, digest };
            Ok(Some(Counted { commit, document: Ok(*document), bytes: length }))
        }
        Some(Decided::Decision { decision: DecisionObject::Abort(_), .. }) => Ok(None),
        Some(Decided::Unreadable { commit, length, problem }) => {
            Ok(Some(Counted { commit, document: Err(problem), bytes: length }))
        }
        None => match document::tombstone(store, generation, seq).await.or_problem().known()? {
            Some(_) => Ok(None),
            None => Err(fences::vanished(store, &Key::Commit(generation, seq))),
        },
    }
}

/// What a commit that must stay reaches; and why not all of that is known, if its document can't be read or a part manifest is proven missing or damaged. One of which that is
/// not known is an error.
pub async fn reach(store: &dyn ObjectStore, counted: &Counted) -> Result<(CommitReach, Option<Problem>), Problem> {
    let document = match &counted.document {
        Ok(document) => document,
        Err(problem) => {
            return Ok((
                CommitReach::of_unreadable(counted.commit),
                Some(unreadable_document(store, counted, problem)),
            ));
        }
    };
    let mut lost = None;
    let mut manifests = Vec::new();
    let mut reads = futures::stream::iter(part_reads(store, document)).buffered(fences::PARALLEL);
    while let Some(read) = reads.next().await {
        manifests.push(match read {
            Ok(Ok(manifest)) => Some(manifest),
            Ok(Err(Absent(key))) => {
                lost.get_or_insert_with(|| unreadable(store, counted, &key, "is missing"));
                None
            }
            Err((key, problem)) if is_lost(&problem) => {
                let how = format!("is damaged ({})", problem.message);
                lost.get_or_insert_with(|| unreadable(store, counted, &key, &how));
                None
            }
            Err((_, problem)) => return Err(problem),
        });
    }
    Ok((CommitReach::of_broken(counted.commit, document, &manifests)?, lost))
}

/// What a retired commit reaches still: a manifest that is proven absent contributes nothing. One that is damaged, or a document that can't be read, makes it a broken one, until it
/// is swept.
pub async fn reach_of_retired(store: &dyn ObjectStore, counted: &Counted) -> Result<CommitReach, Problem> {
    let Ok(document) = &counted.document else { return Ok(CommitReach::of_unreadable(counted.commit)) };
    let mut whole = true;
    let mut manifests = Vec::new();
    let mut reads = futures::stream::iter(part_reads(store, document)).buffered(fences::PARALLEL);
    while let Some(read) = reads.next().await {
        manifests.push(match read {
            Ok(read) => read.ok(),
            Err((_, problem)) if is_lost(&problem) => {
                whole = false;
                None
            }
            Err((_, problem)) => return Err(problem),
        });
    }
    let reach = CommitReach::of_retired(counted.commit, document, &manifests)?;
    Ok(CommitReach { whole, ..reach })
}

/// It is there, and nobody can read it any more.
fn is_lost(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::CheckpointDamaged | Reason::ManifestInvalid)
}

fn unreadable(store: &dyn ObjectStore, counted: &Counted, key: &str, how: &str) -> Problem {
    let CommitRef { generation, seq, round, .. } = counted.commit;
    Problem::new(
        Reason::CheckpointDamaged,
        format!(
            "part manifest {key} of checkpoint {round} ({generation}-{seq}) {how} in {}, so what it reaches is not known and whatever is as old stays; \
             verify it, and delete the checkpoint if it can't be mended",
            store.location()
        ),
    )
    .with("key", key)
    .with("checkpoint", round)
    .with("generation", generation)
    .with("seq", seq)
    .with("location", store.location())
}

fn unreadable_document(store: &dyn ObjectStore, counted: &Counted, why: &Problem) -> Problem {
    let CommitRef { generation, seq, .. } = counted.commit;
    Problem::new(
        Reason::CheckpointDamaged,
        format!(
            "the commit document {} in {} can't be read ({}), so what it reaches is not known and whatever is as old stays; bring it back, or give it up: checkpoint verify PIPELINE \
             {generation}-{seq} marks it damaged, and then checkpoint delete PIPELINE {generation}-{seq} or retention lets it go",
            counted.commit.key(),
            store.location(),
            why.message
        ),
    )
    .with("key", counted.commit.key())
    .with("generation", generation)
    .with("seq", seq)
    .with("location", store.location())
}

/// Proven: nothing stands at this key.
struct Absent(String);

/// A part's manifest, or the one of its two documents that is absent; or the one that could not be read, and why.
type PartRead = Result<Result<PartManifest, Absent>, (String, Problem)>;

fn part_reads<'s>(store: &'s dyn ObjectStore, document: &'s CommitDocument) -> Vec<BoxFuture<'s, PartRead>> {
    document.parts.iter().map(|part| part_read(store, parts::named_by(part)).boxed()).collect()
}

async fn part_read(store: &dyn ObjectStore, own: Inherited) -> PartRead {
    let delta = match part_document(store, &own).await {
        Ok(None) => return Ok(Err(Absent(own.key))),
        Ok(Some(PartDocument::Full(manifest))) => return Ok(Ok(manifest)),
        Ok(Some(PartDocument::Delta(delta))) => delta,
        Err(problem) => return Err((own.key, problem)),
    };
    let base = delta.inherits().clone();
    match store.get(&base.key, parts::allowed(base.length)).await {
        Lookup::Absent => Ok(Err(Absent(base.key))),
        found => match parts::judge_full(store.location(), &base, found) {
            Ok(full) => delta.resolve(&full).map(Ok).map_err(|problem| (own.key, problem)),
            Err(problem) => Err((base.key, problem)),
        },
    }
}

/// None: proven absent.
async fn part_document(store: &dyn ObjectStore, name: &Inherited) -> Result<Option<PartDocument>, Problem> {
    match store.get(&name.key, parts::allowed(name.length)).await {
        Lookup::Absent => Ok(None),
        found => parts::judge(store.location(), name, found).map(Some),
    }
}

/// Every object that attempts of hosts have written.
pub async fn list_attempts(store: &dyn ObjectStore) -> Result<Vec<ListedKey>, Problem> {
    let mut keys = Vec::new();
    for prefix in [Key::HOSTS, Key::SOLO] {
        let listed = store.list_all(prefix).await?;
        keys.extend(listed.into_iter().map(|object| ListedKey { key: object.key, bytes: object.size }));
    }
    Ok(keys)
}

/// Every multipart upload that was neither completed nor aborted.
pub async fn list_uploads(store: &dyn ObjectStore) -> Result<Vec<OpenUpload>, Problem> {
    let open = store.list_multipart("").await?;
    Ok(open.into_iter().map(|open| OpenUpload { key: open.key, upload: open.upload.0 }).collect())
}

/// Whether a fence stands.
pub async fn fence_stands(store: &dyn ObjectStore, generation: Generation) -> Result<bool, Problem> {
    let key = Key::Fence(generation);
    Ok(document::read(store, &key, Fence::parse).await.known()?.is_some())
}

/// Puts a tombstone's stored bytes, create-only, and says what is known of its key. One of an earlier generation of ours is only looked for: put now it would not
/// count.
pub async fn put_tombstone(
    store: &dyn ObjectStore,
    retiring: &Retiring,
    mine: Generation,
) -> Result<TombstoneKnown, Problem> {
    let tombstone = retiring.tombstone();
    let key = tombstone.key();
    let current = tombstone.retired_in >= mine;
    let (answer, error) = if current {
        match store.create(&key.to_string(), Bytes::from(tombstone.encode())).await {
            CreateOutcome::Done => return Ok(retiring.judge(PutAnswer::Created, None, None)),
            CreateOutcome::Exists => (PutAnswer::Exists, None),
            CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => (PutAnswer::Unknown, Some(error)),
        }
    } else {
        (PutAnswer::Unknown, None)
    };
    let found = document::read(store, &key, Tombstone::parse).await.known()?;
    let base = fences::base(store, mine).await.known()?;
    if !current {
        let counts = found.as_ref().and_then(|found| LandedTombstone::read(found, mine, base.as_ref()));
        return Ok(counts.map_or(TombstoneKnown::Occupied, TombstoneKnown::Landed));
    }
    match (retiring.judge(answer, found.as_ref(), base.as_ref()), error) {
        (TombstoneKnown::Unknown, Some(error)) => Err(error.problem()),
        (known, _) => Ok(known),
    }
}
