//! The pulls of an activation: a warm one before the fence, and after the base one of exactly what it names. Both are rounds like any other, of a standby.
//!
//! Their request ids follow from the take-over and the try, so a replica that goes on finds the round that was admitted before instead of another one.

use std::time::Duration;

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{PipelineId, RequestId, RoundId},
    problem::{Problem, Reason, Retryable},
    round::{Kind, Phase},
    spec::PullSelector,
    takeover::{Event, TakeOver},
};

use super::{Services, follow};
use crate::store::{AdmitPull, Change, Changes, Page, RoundFilter, RoundRecord};

/// Rows are looked at this often without any hint.
const POLL: Duration = Duration::from_secs(1);

/// The newest checkpoint onto every host while the old owner still writes. Nothing was put yet: what can't pass by itself ends the activation.
pub(super) async fn warm(services: &Services, take_over: &TakeOver) -> Result<Event, Problem> {
    match pulled(services, take_over, PullSelector::Latest).await {
        Ok(commit) => Ok(Event::Warmed(commit)),
        // Proven: neither the location nor the read location has any.
        Err(problem) if problem.reason == Reason::CheckpointNotFound => Ok(Event::Warmed(None)),
        Err(problem) if problem.retryable() == Retryable::Yes => Err(problem),
        Err(problem) => Ok(Event::Refused(problem)),
    }
}

/// Exactly the base onto every host. The location is fenced: this is tried until it succeeds, and nothing starts before.
pub(super) async fn base(services: &Services, take_over: &TakeOver, commit: CommitRef) -> Result<Event, Problem> {
    match pulled(services, take_over, PullSelector::Checkpoint(commit.round)).await {
        Ok(Some(found)) if found == commit => Ok(Event::Pulled(commit)),
        Ok(found) => {
            let found =
                found.map_or_else(|| "nothing".to_owned(), |found| format!("{}-{}", found.generation, found.seq));
            Err(Problem::new(
                Reason::Integrity,
                format!(
                    "the base of take-over {} is {}-{}, the pull of checkpoint {} brought {found}",
                    take_over.id, commit.generation, commit.seq, commit.round
                ),
            )
            .with("take_over", take_over.id)
            .with("checkpoint", commit.round))
        }
        // Somebody took the location over once more: this generation writes nothing, so there is nothing to wait for.
        Err(problem) if problem.reason == Reason::Fenced => Ok(Event::Refused(problem)),
        Err(problem) => Err(problem),
    }
}

async fn pulled(
    services: &Services,
    take_over: &TakeOver,
    selector: PullSelector,
) -> Result<Option<CommitRef>, Problem> {
    let mut changes = services.store.changes();
    let request_id = request_id(take_over);
    // A pull of the standby itself is not disturbed: what it brings need not be fetched again.
    while let Some(active) = active(services, take_over.pipeline).await? {
        if active.request_id == Some(request_id) {
            break;
        }
        ended(services, active.round.id, &mut changes).await?;
    }
    let pull = AdmitPull {
        pipeline: take_over.pipeline.into(),
        request: follow::request(selector),
        follows: None,
        request_id: Some(request_id),
        deadline: services.options.pull_deadline,
        retry: services.options.retry,
    };
    let admitted = services.store.admit_pull(pull, &services.caller()).await.map_err(Problem::from)?;
    let record = ended(services, admitted.record().round.id, &mut changes).await?;
    let round = record.round;
    match (round.phase, round.problem, round.kind) {
        (Phase::Installed, _, Kind::Pull(pull)) => Ok(pull.resolved.and_then(|resolved| resolved.commit)),
        (_, Some(problem), _) => Err(problem.with("round", round.id)),
        (phase, None, _) => {
            Err(Problem::new(Reason::CheckpointNotFound, format!("pull {} ended as {phase}", round.id))
                .with("round", round.id))
        }
    }
}

async fn active(services: &Services, pipeline: PipelineId) -> Result<Option<RoundRecord>, Problem> {
    let filter = RoundFilter { pipeline: Some(pipeline), active_only: true, kind: None };
    let listed = services.store.list_rounds(filter, Page { size: 1, token: None }).await.map_err(Problem::from)?;
    Ok(listed.items.into_iter().next())
}

/// The round once it is terminal. Its own deadline bounds that.
async fn ended(services: &Services, round: RoundId, changes: &mut Changes) -> Result<RoundRecord, Problem> {
    loop {
        let record = services.store.get_round(round).await.map_err(Problem::from)?;
        if record.round.phase.is_terminal() {
            return Ok(record);
        }
        let told = async { while !matches!(changes.next().await, Change::Ended(id) if id == round) {} };
        let _ = tokio::time::timeout(POLL, told).await;
    }
}

/// The same for the same try of the same phase.
fn request_id(take_over: &TakeOver) -> RequestId {
    let name = format!("{} {} {}", take_over.id, take_over.phase, take_over.tries);
    RequestId::new(Digest::of(name.as_bytes()).to_uuid())
}
