//! A standby's pull protects its source (G5): another database owns the location and may retire what is being pulled. A pin is put, *then* the tombstone is looked for, then the
//! pull begins; the pin goes when the round is over. Without the right to write the pull goes ahead; what is missing by then was retired meanwhile, if
//! the tombstone says so, and another one is chosen in the same round; or it is damaged.
//!
//! A location that the pipeline owns needs none of it: there the round's row is the pin. A read location is never written: there it is as without the right to write.

use bytes::Bytes;
use lockstep_bucket::{CreateOutcome, WriteOutcome};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{RoundId, Term},
    key::Key,
    pin::Pin,
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{Kind, Resolved, Round, Source},
};

use super::{drive::Drive, left_pins};
use crate::plan::{PullPlan, Right, patiently, place::Place, resolve_pull};

/// Name of a pull's pin.
pub(super) const PIN: &str = "standby";

/// Checkpoints that are retired one after the other between finding and pinning them.
const TRIES: u32 = 4;

/// Resolves the pull, maybe not for the first time; what it found is pinned where that is needed.
pub(super) async fn resolve(drive: &Drive, round: &Round) -> Result<PullPlan, Problem> {
    if let Err(problem) = unpin_retired(drive, round).await {
        tracing::debug!(reason = %problem.reason, "what was retired stays pinned until the end: {}", problem.message);
    }
    let mut tries = 0;
    loop {
        let plan = resolve_pull(&drive.services.plan_context(), round, drive.read_location.as_ref()).await?;
        let Some(commit) = to_pin(drive, round, &plan.resolved).await? else { return Ok(plan) };
        let place = drive.own_place(round).await?;
        let patience = drive.services.options.store_patience;
        if !patiently(patience, async || pin(drive, round, &place, commit).await).await? {
            return Ok(plan);
        }
        if !is_retired(drive, &place, commit).await? {
            return Ok(plan);
        }
        unpin(round, &place, commit).await;
        tries += 1;
        if tries == TRIES {
            return Err(Problem::new(
                Reason::CheckpointNotFound,
                format!("checkpoint {} was retired while it was being chosen, as were those before it", commit.round),
            )
            .with("checkpoint", commit.round)
            .with("location", &round.location));
        }
    }
}

async fn is_retired(drive: &Drive, place: &Place, commit: CommitRef) -> Result<bool, Problem> {
    let patience = drive.services.options.store_patience;
    patiently(patience, async || lockstep_bucket::is_retired(place.bucket(), &commit).await).await
}

/// What a host found missing in a source that its owner may retire: the commit, if it was retired, and what to tell of it; none: it is damaged. In a location of one's own the row keeps what is pulled,
/// so nothing is asked. An error: not known yet.
pub(super) async fn retired_meanwhile(
    drive: &Drive,
    round: &Round,
    problem: &Problem,
) -> Result<Option<(CommitRef, Problem)>, Problem> {
    let Kind::Pull(pull) = &round.kind else { return Ok(None) };
    let Some(resolved) = pull.resolved.as_ref().filter(|_| problem.reason == Reason::CheckpointDamaged) else {
        return Ok(None);
    };
    let (Some(commit), Some(location)) = (resolved.commit, &resolved.location) else { return Ok(None) };
    let retired = async {
        if *location == round.location && !drive.follows(round).await? {
            return Ok(false);
        }
        if planted::is(Bug::MissingTakenAsRetired) {
            return Ok(true);
        }
        let place = Place::open(&drive.services.plan_context(), location, Right::Read).await?;
        is_retired(drive, &place, commit).await
    };
    match retired.await {
        Ok(false) => Ok(None),
        Ok(true) => {
            let message = format!(
                "checkpoint {} ({}-{}) of {location} was retired by its owner while it was pulled ({})",
                commit.round, commit.generation, commit.seq, problem.message
            );
            let problem = Problem::new(Reason::CheckpointNotFound, message)
                .with("checkpoint", commit.round)
                .with("generation", commit.generation)
                .with("seq", commit.seq)
                .with("location", location);
            Ok(Some((commit, problem)))
        }
        Err(unknown) if unknown.retryable() == Retryable::Yes => Err(unknown),
        Err(unknown) => {
            tracing::info!(reason = %unknown.reason, "whether the source was retired is not known: {}", unknown.message);
            Ok(None)
        }
    }
}

/// After the end, also of the terms before. A pin that stays keeps one checkpoint from being retired, and nothing else; it goes at the end of the next pull.
pub(super) async fn release(drive: &Drive, round: &Round) {
    let released = async {
        if unpin_retired(drive, round).await? | unpin_source(drive, round).await? {
            left_pins::look(&drive.services, drive.own_place(round).await?.bucket()).await;
        }
        Ok(())
    };
    let released: Result<(), Problem> = released.await;
    if let Err(problem) = released {
        tracing::debug!(reason = %problem.reason, "a pin was not removed: {}", problem.message);
    }
}

/// Whether there may have been a pin.
async fn unpin_source(drive: &Drive, round: &Round) -> Result<bool, Problem> {
    let Kind::Pull(pull) = &round.kind else { return Ok(false) };
    let Some(resolved) = &pull.resolved else { return Ok(false) };
    let Some(commit) = to_pin(drive, round, resolved).await? else { return Ok(false) };
    unpin(round, &drive.own_place(round).await?, commit).await;
    Ok(true)
}

/// What was chosen before and retired for all that is not kept any longer: its owner's sweep would go round it. Whether there may have been a pin.
async fn unpin_retired(drive: &Drive, round: &Round) -> Result<bool, Problem> {
    let Kind::Pull(pull) = &round.kind else { return Ok(false) };
    if pull.retired.is_empty() || !drive.follows(round).await? {
        return Ok(false);
    }
    let place = drive.own_place(round).await?;
    for commit in &pull.retired {
        unpin(round, &place, *commit).await;
    }
    Ok(true)
}

/// Only who owns nothing pulls what another one may retire. The round's generation does not say it: a pipeline that follows what it owned once has kept its own.
async fn to_pin(drive: &Drive, round: &Round, resolved: &Resolved) -> Result<Option<CommitRef>, Problem> {
    let Some(commit) = resolved.commit.filter(|_| resolved.source == Source::Location) else { return Ok(None) };
    Ok(drive.follows(round).await?.then_some(commit))
}

/// False: the store does not let this process write there.
async fn pin(drive: &Drive, round: &Round, place: &Place, commit: CommitRef) -> Result<bool, Problem> {
    let key = key(round.id, round.term, commit);
    let Key::Pin(name, id) = &key else { return Ok(false) };
    let pin = Pin {
        name: name.clone(),
        id: *id,
        commit,
        pinned_by: left_pins::signed(round.id, round.term, &round.pipeline_name),
        pinned_at: drive.services.clock.now(),
    };
    match place.bucket().create(&key.to_string(), Bytes::from(pin.encode())).await {
        // By an earlier try.
        CreateOutcome::Done | CreateOutcome::Exists => Ok(true),
        CreateOutcome::Refused(error) => {
            tracing::info!(%error, "the source is pulled without a pin");
            Ok(false)
        }
        CreateOutcome::Unknown(error) => Err(error.problem()),
    }
}

async fn unpin(round: &Round, place: &Place, commit: CommitRef) {
    match place.bucket().delete(&key(round.id, round.term, commit).to_string()).await {
        WriteOutcome::Done => {}
        WriteOutcome::Refused(error) | WriteOutcome::Unknown(error) => {
            tracing::info!(%error, "a pin was not removed: that checkpoint is kept until the next pull or collection looks for it");
        }
    }
}

/// Of no other round, checkpoint or term: a replica that lost the round, and doesn't know it yet, takes its own pin away and not the one that its successor relies on.
pub(super) fn key(round: RoundId, term: Term, commit: CommitRef) -> Key {
    let name = format!("{round} {term} {}", commit.round);
    Key::Pin(PIN.to_owned(), Digest::of(name.as_bytes()).to_uuid())
}
