//! What a database knows as committed and the bucket has lost: found, and noted in the pipeline's row (protocol.md, "Resync": the reverse). Reads only of the bucket.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_bucket::{DecisionFound, garbage::Decisions};
use lockstep_protocol::{
    commit::CommitRef,
    id::{Generation, Seq},
    key::Key,
    problem::{Problem, Reason},
};

use super::place::Place;
use crate::store::{Caller, Committed, Difference, PipelineRow, Store};

/// As many of those beside the newest are named.
const NAMED: usize = 10;

/// One of them.
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

const OTHER_BYTES: &str = "holds other bytes";

/// By what its key and the key of its tombstone hold.
pub async fn since(place: &Place, commit: &CommitRef) -> Result<Since, Problem> {
    Ok(match place.decision(commit.generation, commit.seq).await? {
        Some(DecisionFound::Retired) => Since::Stands,
        Some(DecisionFound::Decision(_, digest)) if digest == commit.digest => Since::Stands,
        Some(DecisionFound::Decision(..)) => Since::Lost(OTHER_BYTES),
        Some(DecisionFound::Unreadable(_, problem)) => Since::Unreadable(problem),
        None => Since::Lost("is gone"),
    })
}

/// What the database takes to stand in the pipeline's location, newest first. It is to be read *before* the bucket is listed: what is committed by then was there by then.
pub async fn committed(store: &Store, row: &PipelineRow) -> Result<Vec<Committed>, Problem> {
    let mut committed = store.committed(row.id).await?;
    // Of a location that was taken over: another pipeline made it, so that no round of this one tells of it.
    if let Some(last) = &row.last_commit
        && committed.iter().all(|one| one.commit != last.commit)
    {
        committed.insert(0, Committed { commit: last.commit, step: last.step });
    }
    Ok(committed)
}

/// Those of `committed` whose commits are gone. By listing, so that thousands cost a few requests; what is missed is looked at one by one, since a tombstone may have landed meanwhile.
async fn gone(place: &Place, committed: &[Committed]) -> Result<Vec<Lost>, Problem> {
    if committed.is_empty() {
        return Ok(Vec::new());
    }
    let there = place.places(Key::COMMITS).await?;
    let mut missed: Vec<&Committed> = committed.iter().filter(|one| !there.contains(&at(&one.commit))).collect();
    if !missed.is_empty() {
        let retired = place.places(Key::RETIRED).await?;
        missed.retain(|one| !retired.contains(&at(&one.commit)));
    }
    let mut lost = Vec::new();
    for &one in missed {
        if let Since::Lost(found) = since(place, &one.commit).await? {
            lost.push(Lost { committed: one, found });
        }
    }
    Ok(lost)
}

/// What a few requests tell of a location.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    /// Newest first.
    pub lost: Vec<Lost>,
    /// Why the newest that the database knows can't be read, if it is there.
    pub unreadable: Option<Problem>,
}

/// What is gone, and whether the newest that the database knows is the very one.
pub async fn losses(place: &Place, row: &PipelineRow, committed: &[Committed]) -> Result<Losses, Problem> {
    let mut found = Losses { lost: gone(place, committed).await?, unreadable: None };
    if let Some(last) = &row.last_commit
        && found.lost.iter().all(|one| one.committed.commit != last.commit)
    {
        match since(place, &last.commit).await? {
            Since::Stands => {}
            Since::Lost(why) => {
                let committed = Committed { commit: last.commit, step: last.step };
                found.lost.insert(0, Lost { committed, found: why });
            }
            Since::Unreadable(problem) => found.unreadable = Some(problem),
        }
    }
    Ok(found)
}

/// Those of `committed` in whose places documents of other bytes were read.
pub fn edited(committed: &[Committed], decisions: &Decisions) -> Vec<Lost> {
    let retired: BTreeSet<_> = decisions.landed.iter().map(|landed| at(&landed.commit())).collect();
    let read = decisions.counted.iter().filter(|one| one.document.is_ok());
    let digests: BTreeMap<_, _> = read.map(|one| (at(&one.commit), one.commit.digest)).collect();
    let others = |commit: &CommitRef| digests.get(&at(commit)).is_some_and(|digest| *digest != commit.digest);
    let edited = committed.iter().filter(|one| !retired.contains(&at(&one.commit)) && others(&one.commit));
    edited.map(|&committed| Lost { committed, found: OTHER_BYTES }).collect()
}

/// Notes the newest of them, which names the others, in the pipeline's row: one that is settled makes room for the next. None: nothing is lost.
pub async fn note(
    store: &Store,
    row: &PipelineRow,
    lost: &[Lost],
    caller: &Caller,
) -> Result<Option<Problem>, Problem> {
    let Some(newest) = lost.first() else { return Ok(None) };
    let problem = problem(row, newest, &lost[1..]);
    let difference = Difference::Lost(newest.committed.commit);
    store.note_difference((row.id, row.generation), difference, problem.clone(), caller).await?;
    Ok(Some(problem))
}

fn problem(row: &PipelineRow, newest: &Lost, others: &[Lost]) -> Problem {
    let (name, Lost { committed: Committed { commit, step }, found }) = (&row.spec.name, newest);
    let also = if others.is_empty() {
        String::new()
    } else {
        let named: Vec<String> = others
            .iter()
            .take(NAMED)
            .map(|one| format!("{} ({})", one.committed.commit.round, one.committed.commit.key()))
            .collect();
        let more = if others.len() > NAMED { ", ..." } else { "" };
        format!("; {} older ones are lost as well: {}{more}", others.len(), named.join(", "))
    };
    Problem::new(
        Reason::CheckpointNotFound,
        format!(
            "{} of pipeline {name}: checkpoint {} (step {step}) was committed, and its commit {} {found}: somebody else writes or deletes in this location; \
             other checkpoints may be whole, the next push sends what is missing; nothing is collected until the commit is put back as it was, \
             or until it is given up with `lockstep pipeline accept-loss {name}`{also}",
            row.spec.location,
            commit.round,
            commit.key(),
        ),
    )
    .with("pipeline", name)
    .with("location", &row.spec.location)
    .with("checkpoint", commit.round)
    .with("key", commit.key())
    .with("lost", others.len() + 1)
}

const fn at(commit: &CommitRef) -> (Generation, Seq) {
    (commit.generation, commit.seq)
}
