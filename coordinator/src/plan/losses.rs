//! What a database knows as committed and the bucket has lost: found, and noted in the pipeline's row (protocol.md, "Resync": the reverse). Reads only of the bucket.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lockstep_bucket::{
    Checkpoint, DecisionFound, ObjectStore,
    garbage::{self, Decisions},
    read_decision,
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, Seq},
    key::Key,
    problem::{Problem, Reason},
};

use super::patiently;
use crate::store::{Caller, Committed, Difference, Loss, PipelineRow, Store, not_collected};

/// As many of those beside the newest are named.
const NAMED: usize = 10;

const OTHER_BYTES: &str = "holds other bytes";

/// A location, and how long to insist on it.
#[derive(Clone, Copy, Debug)]
pub struct Look<'b> {
    /// Where decisions and tombstones are.
    pub bucket: &'b dyn ObjectStore,
    /// What may pass by itself is asked again for this long.
    pub patience: Duration,
}

/// One that is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// What was committed.
    pub committed: Committed,
    /// What is wrong with its key.
    pub found: &'static str,
}

/// What became of a commit that stood once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Since {
    /// As it was, or retired: all is well.
    Stands,
    /// It stands in its place, keeps what it may reach and is given up by a mark (ADR 29): broken, not lost.
    Unreadable(Problem),
    /// What is wrong with its key.
    Lost(&'static str),
}

/// What a few requests tell of a location.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Newest first.
    pub lost: Vec<Lost>,
    /// Those that are listed, whatever they hold: what a collection must find when it reads them.
    pub listed: Vec<Committed>,
    /// Why the newest that the database knows can't be read, if it is there.
    pub unreadable: Option<Problem>,
}

/// By what its key and the key of its tombstone hold.
pub async fn since(look: Look<'_>, commit: &CommitRef) -> Result<Since, Problem> {
    let read = || async { read_decision(look.bucket, commit.generation, commit.seq).await.known() };
    Ok(match patiently(look.patience, read).await? {
        Some(DecisionFound::Retired) => Since::Stands,
        Some(DecisionFound::Decision(_, digest)) if digest == commit.digest => Since::Stands,
        Some(DecisionFound::Decision(..)) => Since::Lost(OTHER_BYTES),
        Some(DecisionFound::Unreadable(_, problem)) => Since::Unreadable(problem),
        None => Since::Lost("is gone"),
    })
}

/// What the database takes to stand in the pipeline's location, newest first.
async fn committed(store: &Store, row: &PipelineRow) -> Result<Vec<Committed>, Problem> {
    let mut committed = store.committed(row.id).await?;
    // Of a location that was taken over: another pipeline made it, so that no round of this one tells of it.
    if let Some(last) = &row.last_commit
        && committed.iter().all(|one| one.commit != last.commit)
    {
        committed.insert(0, Committed { commit: last.commit, step: last.step });
    }
    Ok(committed)
}

/// By listing, so that thousands cost a few requests; besides, whether the newest that the database knows is the very one, and what became of the one that is noted. The database first, *then* the bucket:
/// what is committed by then was there by then. Commits before tombstones: a tombstone stands before its commit is deleted.
pub async fn compare(look: Look<'_>, store: &Store, row: &PipelineRow) -> Result<Found, Problem> {
    let committed = committed(store, row).await?;
    let Some(oldest) = committed.iter().map(|one| at(&one.commit)).min() else { return Ok(Found::default()) };
    let there = places(look, Key::Commit, oldest).await?;
    let (listed, mut missed): (Vec<Committed>, Vec<Committed>) =
        committed.into_iter().partition(|one| there.contains(&at(&one.commit)));
    if let Some(oldest) = missed.iter().map(|one| at(&one.commit)).min() {
        let retired = places(look, Key::Retired, oldest).await?;
        missed.retain(|one| !retired.contains(&at(&one.commit)));
    }
    let lost = missed.into_iter().map(|committed| Lost { committed, found: "is gone" }).collect();
    let mut found = Found { lost, listed, unreadable: None };
    let noted = row.lost.as_ref().map(|loss| loss.commit);
    let newest = row.last_commit.as_ref().map(|last| last.commit);
    for commit in [newest, noted.filter(|noted| newest != Some(*noted))].into_iter().flatten() {
        let Some(&committed) = found.listed.iter().find(|one| one.commit == commit) else { continue };
        match since(look, &commit).await? {
            Since::Lost(why) => found.lost.push(Lost { committed, found: why }),
            Since::Unreadable(problem) if newest == Some(commit) => found.unreadable = Some(problem),
            Since::Stands | Since::Unreadable(_) => {}
        }
    }
    found.lost = together(found.lost, Vec::new());
    Ok(found)
}

/// Each once, newest first.
pub fn together(mut lost: Vec<Lost>, more: Vec<Lost>) -> Vec<Lost> {
    let known: BTreeSet<_> = lost.iter().map(|one| at(&one.committed.commit)).collect();
    lost.extend(more.into_iter().filter(|one| !known.contains(&at(&one.committed.commit))));
    lost.sort_by_key(|one| Reverse(at(&one.committed.commit)));
    lost
}

/// Those of `listed` that were not read as themselves afterwards, when every document was: written over, or gone since.
pub async fn missing(look: Look<'_>, listed: &[Committed], decisions: &Decisions) -> Result<Vec<Lost>, Problem> {
    let read = decisions.counted.iter().map(|one| (at(&one.commit), one.document.is_ok().then_some(one.commit.digest)));
    let retired = decisions.landed.iter().map(|landed| (at(&landed.commit()), None));
    not_read(look, listed, &read.chain(retired).collect()).await
}

/// The same by a list of those that can be read and are not retired.
pub async fn missing_of(look: Look<'_>, listed: &[Committed], whole: &[Checkpoint]) -> Result<Vec<Lost>, Problem> {
    not_read(look, listed, &whole.iter().map(|one| (at(&one.commit), Some(one.commit.digest))).collect()).await
}

/// `read`: digests by place; none: nothing that could be compared, and all is well.
async fn not_read(
    look: Look<'_>,
    listed: &[Committed],
    read: &BTreeMap<(Generation, Seq), Option<Digest>>,
) -> Result<Vec<Lost>, Problem> {
    let mut lost = Vec::new();
    for &committed in listed {
        let known = read.get(&at(&committed.commit));
        if known.is_some_and(|digest| digest.is_none_or(|digest| digest == committed.commit.digest)) {
            continue;
        }
        // An abort record, another document, nothing; or retired meanwhile.
        if let Since::Lost(found) = since(look, &committed.commit).await? {
            lost.push(Lost { committed, found });
        }
    }
    Ok(lost)
}

/// Why nothing is collected, whatever of it is noted; with the ways out.
pub fn refuse(row: &PipelineRow, lost: &[Lost]) -> Result<(), Problem> {
    match loss(row, lost) {
        Some(loss) => Err(not_collected(&row.spec.name, &loss)),
        None => Ok(()),
    }
}

/// Notes the newest of them, which names the others, in the pipeline's row: one that is settled makes room for the next. None: nothing is lost.
pub async fn note(
    store: &Store,
    row: &PipelineRow,
    lost: &[Lost],
    caller: &Caller,
) -> Result<Option<Problem>, Problem> {
    let Some(Loss { commit, problem }) = loss(row, lost) else { return Ok(None) };
    store.note_difference((row.id, row.generation), Difference::Lost(commit), problem.clone(), caller).await?;
    Ok(Some(problem))
}

fn loss(row: &PipelineRow, lost: &[Lost]) -> Option<Loss> {
    let (Lost { committed: Committed { commit, step }, found }, others) = lost.split_first()?;
    let name = &row.spec.name;
    let mut message = format!(
        "{} of pipeline {name}: checkpoint {} (step {step}) was committed, and its commit {} {found}: somebody else writes or deletes in this location; \
         other checkpoints may be whole, the next push sends what is missing; nothing is collected until the commit is put back as it was, \
         or until it is given up with `lockstep pipeline accept-loss {name}`",
        row.spec.location,
        commit.round,
        commit.key(),
    );
    if !others.is_empty() {
        let named = others.iter().take(NAMED).map(|one| &one.committed.commit);
        let named: Vec<String> = named.map(|commit| format!("{} ({})", commit.round, commit.key())).collect();
        let more = if others.len() > NAMED { ", ..." } else { "" };
        message += &format!(
            "; lost as well, and settled after it (`accept-loss {name} --all` gives up every one): {}{more}",
            named.join(", ")
        );
    }
    let problem = Problem::new(Reason::CheckpointNotFound, message)
        .with("pipeline", name)
        .with("location", &row.spec.location)
        .with("checkpoint", commit.round)
        .with("key", commit.key())
        .with("lost", lost.len());
    Some(Loss { commit: *commit, problem })
}

const fn at(commit: &CommitRef) -> (Generation, Seq) {
    (commit.generation, commit.seq)
}

async fn places(
    look: Look<'_>,
    kind: fn(Generation, Seq) -> Key,
    oldest: (Generation, Seq),
) -> Result<BTreeSet<(Generation, Seq)>, Problem> {
    let list = || garbage::places(look.bucket, kind, Some(oldest));
    Ok(patiently(look.patience, list).await?.into_iter().collect())
}
