//! A standby's pull protects its source (G5): another database owns the location and may retire what is being pulled. A pin is put, *then* the tombstone is looked for, then the
//! pull begins; the pin goes when the round is over. Without the right to write the pull goes ahead, and what is missing by then fails it.
//!
//! A location that the pipeline owns needs none of it: there the round's row is the pin. A read location is never written.

use bytes::Bytes;
use lockstep_bucket::{CreateOutcome, WriteOutcome};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    id::Generation,
    key::Key,
    pin::Pin,
    problem::{Problem, Reason},
    round::{Kind, Resolved, Round, Source},
};

use super::drive::Drive;
use crate::plan::{PullPlan, patiently, place::Place, resolve_pull};

/// Checkpoints that are retired one after the other between finding and pinning them.
const TRIES: u32 = 4;

/// Resolves the pull; what it found is pinned where that is needed.
pub(super) async fn resolve(drive: &Drive, round: &Round) -> Result<PullPlan, Problem> {
    let mut tries = 0;
    loop {
        let plan = resolve_pull(&drive.services.plan_context(), round, drive.read_location.as_ref()).await?;
        let Some(commit) = to_pin(round, &plan.resolved) else { return Ok(plan) };
        let place = drive.own_place(round).await?;
        let patience = drive.services.options.store_patience;
        if !patiently(patience, async || pin(drive, round, &place, commit).await).await? {
            return Ok(plan);
        }
        let key = Key::Retired(commit.generation, commit.seq).to_string();
        let read = async || place.bucket().get(&key, MAX_DOCUMENT_BYTES).await.or_problem().known();
        if patiently(patience, read).await?.is_none() {
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

/// After the end. A pin that stays keeps one checkpoint from being retired, and nothing else.
pub(super) async fn release(drive: &Drive, round: &Round) {
    let Kind::Pull(pull) = &round.kind else { return };
    let Some(commit) = pull.resolved.as_ref().and_then(|resolved| to_pin(round, resolved)) else { return };
    match drive.own_place(round).await {
        Ok(place) => unpin(round, &place, commit).await,
        Err(problem) => tracing::debug!(reason = %problem.reason, "a pin was not removed: {}", problem.message),
    }
}

/// Only who owns nothing pulls what another one may retire.
fn to_pin(round: &Round, resolved: &Resolved) -> Option<CommitRef> {
    let foreign = round.generation == Generation::NONE && resolved.source == Source::Location;
    resolved.commit.filter(|_| foreign)
}

/// False: the store does not let this process write there.
async fn pin(drive: &Drive, round: &Round, place: &Place, commit: CommitRef) -> Result<bool, Problem> {
    let key = key(round, commit);
    let Key::Pin(name, id) = &key else { return Ok(false) };
    let pin = Pin {
        name: name.clone(),
        id: *id,
        commit,
        pinned_by: format!("pull {} of pipeline {}", round.id, round.pipeline_name),
        pinned_at: drive.services.clock.now(),
    };
    match place.bucket().create(&key.to_string(), Bytes::from(pin.encode())).await {
        // Another replica has put it for this very round.
        CreateOutcome::Done | CreateOutcome::Exists => Ok(true),
        CreateOutcome::Refused(error) => {
            tracing::info!(%error, "the source is pulled without a pin");
            Ok(false)
        }
        CreateOutcome::Unknown(error) => Err(error.problem()),
    }
}

async fn unpin(round: &Round, place: &Place, commit: CommitRef) {
    match place.bucket().delete(&key(round, commit).to_string()).await {
        WriteOutcome::Done => {}
        WriteOutcome::Refused(error) | WriteOutcome::Unknown(error) => {
            tracing::info!(%error, "a pin was not removed: that checkpoint is kept until somebody unpins it");
        }
    }
}

/// Of no other round and no other checkpoint; the same for every replica that drives the round.
fn key(round: &Round, commit: CommitRef) -> Key {
    let name = format!("{} {}", round.id, commit.round);
    Key::Pin("standby".to_owned(), Digest::of(name.as_bytes()).to_uuid())
}
