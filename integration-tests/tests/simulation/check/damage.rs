//! What is damaged, in words of its own, past all faults: marked only if it is, and once it is marked neither latest nor the base of anything.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use lockstep_coordinator::store::{AuditRow, RoundRecord};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef, DecisionObject},
    damage::DamageMark,
    key::Key,
    manifest::PartDocument,
    round::{Kind, Source},
    spec::PullSelector,
};

use super::{
    Fences, Place,
    garbage::{Retired, below, counted, reached},
    object,
};
use crate::{
    log,
    world::{World, location},
};

/// What a commit's key holds.
pub(crate) fn document(world: &World, commit: &CommitRef) -> Option<Box<CommitDocument>> {
    committed_at(world, (commit.generation, commit.seq)).filter(|document| document.round == commit.round)
}

/// The commit at a place, if one stands there.
pub(super) fn committed_at(world: &World, (generation, seq): Place) -> Option<Box<CommitDocument>> {
    let key = Key::Commit(generation, seq).to_string();
    match DecisionObject::parse(&key, &object(&world.buckets, &key)?).unwrap() {
        DecisionObject::Commit(document) => Some(document),
        _ => None,
    }
}

/// The object that a host has pushed for this checkpoint alone.
pub(crate) fn state_of(world: &World, part: &CommitPart) -> Option<String> {
    let bytes = object(&world.buckets, &part.manifest)?;
    let PartDocument::Full(manifest) = PartDocument::parse(&part.manifest, &bytes).unwrap() else { return None };
    let state = manifest.objects.into_iter().next_back()?.key;
    object(&world.buckets, &state).map(|_| state)
}

/// Also where it was healed since.
fn was_damaged(world: &World, document: &CommitDocument) -> bool {
    let rotten = world.rotten.borrow();
    reached(world, document).is_ok_and(|keys| keys.iter().any(|key| rotten.contains_key(key)))
}

fn is_damaged(world: &World, document: &CommitDocument) -> bool {
    let rotten = world.rotten.borrow();
    let still = |key: &String| rotten.get(key).is_some_and(|held| object(&world.buckets, key) == *held);
    reached(world, document).is_ok_and(|keys| keys.iter().any(still))
}

/// Whether a full key is of an object that was lost or altered.
pub(super) fn is_rotten(world: &World, full_key: &str) -> bool {
    world.rotten.borrow().keys().any(|key| location().full_key(key) == full_key)
}

/// Of those that count and are not retired.
pub(crate) fn damaged_and_unmarked(world: &World) -> Vec<CommitRef> {
    let counted = counted(&world.buckets, &Fences::of(&world.buckets)).into_iter();
    let wanted = counted.filter(|one| one.retired == Retired::No && is_damaged(world, &one.document));
    let commits = wanted.map(|one| one.commit);
    commits.filter(|commit| object(&world.buckets, &DamageMark::key_of(commit).to_string()).is_none()).collect()
}

/// Marks that stand, and rounds that were admitted since.
pub(super) fn is_passed_over(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    let Some(bytes_per_day) = world.verify_bytes_per_day else { return Ok(()) };
    for key in below(&world.buckets, "damaged/") {
        let Some(mark) = object(&world.buckets, &key).map(|bytes| DamageMark::parse(&key, &bytes).unwrap()) else {
            continue;
        };
        if world.marked.borrow().contains_key(&mark.commit.round) {
            continue;
        }
        // It may have been retired and swept since, and then nobody can tell.
        if document(world, &mark.commit).is_some_and(|document| !was_damaged(world, &document)) {
            return Err(format!("S1: {key} stands, and nothing of that checkpoint is broken"));
        }
        world.marked.borrow_mut().insert(mark.commit.round, world.time());
    }
    rounds.iter().try_for_each(|record| no_use_of_it(world, record))?;
    within_its_budget(world, bytes_per_day)
}

fn no_use_of_it(world: &World, record: &RoundRecord) -> Result<(), String> {
    let marked = world.marked.borrow();
    let was_marked = |commit: &CommitRef| marked.get(&commit.round).is_some_and(|at| *at < record.created_at);
    match &record.round.kind {
        Kind::Pull(pull) => {
            let resolved = pull.resolved.as_ref().filter(|resolved| resolved.source == Source::Location);
            let latest =
                resolved.and_then(|resolved| resolved.commit).filter(|_| pull.request.selector == PullSelector::Latest);
            match latest.filter(was_marked) {
                Some(commit) => Err(format!(
                    "S11: latest of pull {} is {}, which was marked damaged",
                    record.round.id, commit.round
                )),
                None => Ok(()),
            }
        }
        Kind::Push(push) => {
            if let Some(base) = push.base.filter(|base| adopted_marked(world, record, base)) {
                return Err(format!(
                    "S1: push {} begins at {}, which was damaged when it was adopted",
                    record.round.id, base.round
                ));
            }
            let Some(base) = push.base.filter(was_marked).and_then(|base| document(world, &base)) else {
                return Ok(());
            };
            let Some(own) = push.committed.and_then(|commit| document(world, &commit)) else { return Ok(()) };
            let (Ok(own), Ok(base)) = (reached(world, &own), reached(world, &base)) else { return Ok(()) };
            let shared: Vec<_> = own.intersection(&base).collect();
            if shared.is_empty() {
                return Ok(());
            }
            Err(format!("S1: push {} reuses {shared:?} of a base that was marked damaged", record.round.id))
        }
    }
}

/// Whether a round builds on what bore its mark already when the last take-over before it began to adopt its generation.
fn adopted_marked(world: &World, record: &RoundRecord, base: &CommitRef) -> bool {
    let Some(marked) = world.marked.borrow().get(&base.round).copied() else { return false };
    let adopts = |row: &AuditRow| row.event == "take_over_phase" && row.to.as_deref() == Some("adopting");
    let audit = world.database.audit().into_iter().rev();
    audit.filter(adopts).find(|row| row.at < record.created_at).is_some_and(|adopted| marked < adopted.at)
}

/// Re-read without being asked to: what has grown since the beginning, and the checkpoint that was begun with the last of it. One that is read twice, since its end could not
/// be stored, counts once.
fn within_its_budget(world: &World, bytes_per_day: u64) -> Result<(), String> {
    let (mut read, mut most, mut seen) = (0, 0, BTreeSet::new());
    for verification in world.database.verifications() {
        let finding = verification.finding;
        if finding.rolling && seen.insert(finding.commit.round) {
            (read, most) = (read + finding.bytes, most.max(finding.bytes));
        }
    }
    let day = TimeDelta::days(1).as_seconds_f64();
    let passed = log::elapsed().as_secs_f64() + day / 96.0;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (allowed, read) = (bytes_per_day as f64 * passed / day + most as f64, read as f64);
    if read > allowed {
        return Err(format!("budget: {read} bytes were re-read within {allowed}"));
    }
    Ok(())
}
