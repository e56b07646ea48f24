//! Before a commit: every part manifest is read and compared with its report, the round and the base (push step 4, S8, S9).

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitPart,
    manifest::PartManifest,
    problem::{Problem, Reason, Retryable},
    round::{Event, Kind, Participant, PushState, Round},
};
use tokio::sync::OnceCell;

use super::drive::{Drive, WRITER, jitter};
use crate::plan::{BackOff, known::Reach, place::Place};

/// Manifests read at a time; each may have some MiB.
const PARALLEL: usize = 8;

/// None: it could not be found out, and the round ends by its deadline if that stays so.
pub(super) async fn check(drive: &Drive, round: &Round) -> Option<Event> {
    let Kind::Push(push) = &round.kind else { return None };
    let mut back_off = BackOff::of_calls();
    reached(Point::PartsBefore);
    loop {
        match check_all(drive, round, push).await {
            Ok(()) => {
                reached(Point::PartsChecked);
                return Some(Event::PartsChecked { writer: WRITER.to_owned(), trace_id: drive.trace_id.clone() });
            }
            // The store may come back; what is stored in the row stays good until then.
            Err((_, problem)) if problem.retryable() == Retryable::Yes && problem.reason != Reason::Integrity => {
                tracing::warn!(reason = %problem.reason, "parts can't be checked yet: {}", problem.message);
                back_off.pause().await;
            }
            Err((host_idx, problem)) => {
                let host = round.participants.iter().find(|participant| participant.host_idx == host_idx)?;
                return Some(Event::HostFailed { host_idx, attempt: host.attempt, problem, jitter: jitter() });
            }
        }
    }
}

/// What the parts of the base reach, by host; empty without a base.
type Reaches = Vec<Arc<Reach>>;

/// A failure names the host whose attempt it ends.
async fn check_all(drive: &Drive, round: &Round, push: &PushState) -> Result<(), (u32, Problem)> {
    let place = drive.own_place(round).await.map_err(|problem| (0, problem))?;
    let base = OnceCell::new();
    let checks: Vec<_> = round
        .participants
        .iter()
        .map(|participant| check_one(drive, round, push, &place, &base, participant))
        .collect();
    let mut checks = stream::iter(checks).buffered(PARALLEL).zip(stream::iter(&round.participants));
    while let Some((checked, participant)) = checks.next().await {
        checked.map_err(|problem| (participant.host_idx, problem))?;
    }
    Ok(())
}

async fn check_one(
    drive: &Drive,
    round: &Round,
    push: &PushState,
    place: &Place,
    base: &OnceCell<Reaches>,
    participant: &Participant,
) -> Result<(), Problem> {
    let Some(part) = &participant.part else {
        return Err(broken(participant, "no part was reported", &"a part", &"none"));
    };
    let manifest = place.part(part).await.map_err(|problem| of_the_part(participant, problem))?;
    compare(round, push, participant, part, &manifest)?;
    if manifest.delta.is_none() && manifest.objects.iter().all(|object| manifest.wrote(object)) {
        return Ok(());
    }
    let reaches = base.get_or_try_init(|| base_reaches(drive, round, place)).await?;
    let own = usize::try_from(participant.host_idx).ok().and_then(|index| reaches.get(index));
    // Most of what a host reuses is its own.
    let size = |key: &str| own.into_iter().chain(reaches).find_map(|reach| reach.objects.get(key).copied());
    manifest.check_closure(size, own.map(|reach| &reach.full)).map_err(|problem| of_the_part(participant, problem))
}

fn compare(
    round: &Round,
    push: &PushState,
    participant: &Participant,
    part: &CommitPart,
    manifest: &PartManifest,
) -> Result<(), Problem> {
    let slot = round.layout.slot(participant.host_idx)?;
    let differs = |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(broken(participant, what, expected, found))
    };
    if manifest.pipeline != round.pipeline {
        return differs("pipeline", &round.pipeline, &manifest.pipeline);
    }
    if manifest.slot != slot {
        return differs("host", &slot, &manifest.slot);
    }
    if manifest.generation != round.generation {
        return differs("generation", &round.generation, &manifest.generation);
    }
    if manifest.round != round.id {
        return differs("round", &round.id, &manifest.round);
    }
    if manifest.attempt != participant.attempt {
        return differs("attempt", &participant.attempt, &manifest.attempt);
    }
    if Some(manifest.incarnation) != participant.incarnation {
        return differs("incarnation", &shown(participant.incarnation), &manifest.incarnation);
    }
    if Some(manifest.local_checkpoint) != participant.local_checkpoint {
        return differs("local checkpoint", &shown(participant.local_checkpoint), &manifest.local_checkpoint);
    }
    if Some(manifest.step) != push.step {
        return differs("step", &shown(push.step), &manifest.step);
    }
    if manifest.fingerprint != push.fingerprint {
        return differs("fingerprint", &shown(push.fingerprint), &shown(manifest.fingerprint));
    }
    if manifest.processed_records != part.processed_records {
        return differs("processed_records", &shown(part.processed_records), &shown(manifest.processed_records));
    }
    Ok(())
}

fn shown(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

/// `INTEGRITY`: the attempt's word and its part differ, so the attempt counts for nothing and another one is made.
fn broken(
    participant: &Participant,
    what: &str,
    expected: &dyn std::fmt::Display,
    found: &dyn std::fmt::Display,
) -> Problem {
    Problem::new(
        Reason::Integrity,
        format!("part of host {}: {what} is {found}, expected {expected}", participant.host_idx),
    )
    .with("host_idx", participant.host_idx)
    .with("what", what)
    .with("expected", expected)
    .with("found", found)
}

/// A part that is missing or breaks its rules is the fault of the attempt that wrote it.
fn of_the_part(participant: &Participant, problem: Problem) -> Problem {
    match problem.reason {
        Reason::CheckpointDamaged | Reason::ManifestInvalid => Problem {
            reason: Reason::Integrity,
            message: format!("part of host {}: {}", participant.host_idx, problem.message),
            retryable_override: None,
            ..problem
        },
        _ => problem,
    }
}

/// A broken base reaches nothing: parts that use it fail, and the next attempts send everything.
async fn base_reaches(drive: &Drive, round: &Round, place: &Place) -> Result<Reaches, Problem> {
    let Some((_, document)) = drive.base(round).await? else { return Ok(Reaches::new()) };
    let reads: Vec<_> = document.parts.iter().map(|part| place.reach(part)).collect();
    match stream::iter(reads).buffered(PARALLEL).try_collect().await {
        Ok(reaches) => Ok(reaches),
        Err(problem) if matches!(problem.reason, Reason::CheckpointDamaged | Reason::ManifestInvalid) => {
            drive.give_up_base(&problem).await;
            Ok(Reaches::new())
        }
        Err(problem) => Err(problem),
    }
}
