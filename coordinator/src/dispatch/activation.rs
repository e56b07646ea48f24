//! The pulls of an activation: a warm one before the fence, and after the base one of exactly what it names. Both are rounds like any other, of a standby.
//!
//! Their request ids follow from the take-over and the try, so a replica that goes on finds the round that was admitted before instead of another one.

use std::time::Duration;

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, PipelineId, RequestId, RoundId},
    problem::{Problem, Reason},
    round::{CancelRequest, Kind, Phase},
    spec::PullSelector,
    takeover::{self, Chosen, Event, TakeOver, Warmth, check_cancellable, exact_base, is_damage},
};

use super::Services;
use crate::{
    plan::{Right, activate, draft, place::Place},
    store::{AdmitPull, Change, Changes, Page, RoundFilter, RoundRecord},
};

/// Rows are looked at this often without any hint.
const POLL: Duration = Duration::from_secs(1);

/// The newest checkpoint, or the one that was chosen, onto every host while the old owner still writes. Nothing was put yet: what can't pass by itself ends the activation.
pub(super) async fn warm(services: &Services, take_over: &TakeOver) -> Result<Event, Problem> {
    let selector = take_over.chosen.map_or(PullSelector::Latest, Chosen::selector);
    let warmed = async {
        if take_over.chosen.is_none() {
            activate::newest_is_whole(services.connector.as_ref(), &take_over.location).await?;
        }
        pulled(services, take_over, selector).await
    };
    Ok(match Warmth::of(warmed.await, take_over.chosen) {
        Warmth::Warmed(commit) => Event::Warmed(commit),
        Warmth::Again(problem) => return Err(problem),
        Warmth::Damaged(problem) => {
            let what = format!("nothing was fenced: {}", problem.message);
            Event::Refused(way_out(take_over, Reason::CheckpointDamaged, &what, &problem))
        }
        Warmth::Refused(problem) => Event::Refused(problem),
    })
}

/// Exactly the base, or what was chosen, onto every host. The location is fenced: this is tried until it succeeds, and nothing starts before; but what is damaged or gone no
/// try brings back, and somebody has to choose.
pub(super) async fn base(services: &Services, take_over: &TakeOver, commit: CommitRef) -> Result<Event, Problem> {
    let problem = match pulled(services, take_over, PullSelector::Checkpoint(commit.round)).await {
        Ok(Some(found)) if found == commit => return Ok(Event::Pulled(commit)),
        Ok(found) => {
            let found =
                found.map_or_else(|| "nothing".to_owned(), |found| format!("{}-{}", found.generation, found.seq));
            Problem::new(
                Reason::Integrity,
                format!("its commit has other bytes than the base names: the pull brought {found}"),
            )
        }
        Err(problem) => problem,
    };
    match problem.reason {
        // Somebody took the location over once more: this generation writes nothing, so there is nothing to wait for.
        Reason::Fenced => Ok(Event::Refused(problem)),
        reason if is_damage(reason) || reason == Reason::CheckpointNotFound => {
            Ok(Event::Refused(gone(services, take_over, commit, &problem).await))
        }
        _ => Err(problem),
    }
}

/// Why the activation ends with its location fenced. Who pushed the checkpoint is said where that can be found out.
async fn gone(services: &Services, take_over: &TakeOver, commit: CommitRef, cause: &Problem) -> Problem {
    let fence = async {
        let place = Place::open(&services.plan_context(), &take_over.location, Right::Read).await?;
        place.impatient().fence(commit.generation).await
    };
    let owner = match fence.await {
        Ok(Some(fence)) if exact_base(take_over) == Some(commit) => Some(fence.pipeline_name),
        _ => None,
    };
    let pushed_by = owner.as_ref().map_or_else(String::new, |owner| format!(", which pipeline {owner} pushed"));
    let named = if take_over.chosen.is_some() { "that was chosen" } else { "that the base names" };
    let generation = take_over.generation().unwrap_or(Generation::NONE);
    let what = format!(
        "{} is fenced for pipeline {} in generation {generation}, and the checkpoint {named}, {} ({}-{}){pushed_by}, can't be pulled: {}; \
         nothing was started",
        take_over.location, take_over.pipeline_name, commit.round, commit.generation, commit.seq, cause.message
    );
    let reason = match cause.reason {
        Reason::CheckpointNotFound => Reason::CheckpointNotFound,
        _ => Reason::CheckpointDamaged,
    };
    let problem = way_out(take_over, reason, &what, cause)
        .with("checkpoint", commit.round)
        .with("generation", generation)
        .with("cause", cause.reason);
    owner.into_iter().fold(problem, |problem, owner| problem.with("owner", owner))
}

fn way_out(take_over: &TakeOver, reason: Reason, what: &str, cause: &Problem) -> Problem {
    let about = (&take_over.pipeline_name, &take_over.location);
    activate::with_way_out(about, reason, what, cause).with("take_over", take_over.id)
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
        ended(services, take_over, active.round.id, &mut changes).await?;
    }
    still_wanted(services, take_over).await?;
    let pull = AdmitPull {
        pipeline: take_over.pipeline.into(),
        request: draft::of_standby(selector),
        follows: None,
        request_id: Some(request_id),
        deadline: services.options.pull_deadline,
        retry: services.options.retry,
    };
    let admitted = services.store.admit_pull(pull, &services.caller()).await.map_err(Problem::from)?;
    reached(Point::ActivationPullAdmitted);
    let round = admitted.record().round.id;
    let record = match ended(services, take_over, round, &mut changes).await {
        // Nobody waits for what it brings.
        Err(problem) if problem.reason == Reason::Cancelled => {
            give_up(services, round, &problem).await;
            return Err(problem);
        }
        ended => ended?,
    };
    reached(Point::ActivationPulled);
    let round = record.round;
    match (round.phase, round.problem, round.kind) {
        (Phase::Installed, _, Kind::Pull(pull)) => Ok(pull.resolved.and_then(|resolved| resolved.commit)),
        (_, Some(problem), _) => Err(problem.with("round", round.id)),
        // Never `CHECKPOINT_NOT_FOUND`: that ends an activation.
        (phase, None, _) => {
            Err(Problem::new(Reason::Superseded, format!("pull {} ended as {phase}", round.id)).with("round", round.id))
        }
    }
}

async fn active(services: &Services, pipeline: PipelineId) -> Result<Option<RoundRecord>, Problem> {
    let filter = RoundFilter { pipeline: Some(pipeline), active_only: true, kind: None };
    let listed = services.store.list_rounds(filter, Page { size: 1, token: None }).await.map_err(Problem::from)?;
    Ok(listed.items.into_iter().next())
}

/// The round once it is terminal. Its own deadline bounds that, and whoever cancels the take-over.
async fn ended(
    services: &Services,
    take_over: &TakeOver,
    round: RoundId,
    changes: &mut Changes,
) -> Result<RoundRecord, Problem> {
    loop {
        let record = services.store.get_round(round).await.map_err(Problem::from)?;
        if record.round.phase.is_terminal() {
            return Ok(record);
        }
        still_wanted(services, take_over).await?;
        let told = async { while !matches!(changes.next().await, Change::Ended(id) if id == round) {} };
        let _ = tokio::time::timeout(POLL, told).await;
    }
}

/// `CANCELLED` once somebody has cancelled the take-over, which is possible before its fence only.
async fn still_wanted(services: &Services, take_over: &TakeOver) -> Result<(), Problem> {
    if check_cancellable(take_over).is_err() {
        return Ok(());
    }
    let now = services.store.get_take_over(take_over.id).await.map_err(Problem::from)?;
    match now.problem {
        Some(problem) if now.phase == takeover::Phase::Cancelled => Err(problem),
        _ => Ok(()),
    }
}

/// Whoever drove it was stopped in the middle of a step, since the row is not its own any more: if it was cancelled, nobody waits for its warm pull.
pub(super) async fn left(services: &Services, take_over: &TakeOver) {
    let Err(cancelled) = still_wanted(services, take_over).await else { return };
    let request_id = request_id(take_over);
    match active(services, take_over.pipeline).await {
        Ok(Some(active)) if active.request_id == Some(request_id) && cancelled.reason == Reason::Cancelled => {
            give_up(services, active.round.id, &cancelled).await;
        }
        _ => {}
    }
}

/// One that installs by now comes to its end.
async fn give_up(services: &Services, round: RoundId, cause: &Problem) {
    let caller = services.caller();
    let request = CancelRequest { by: caller.actor.clone(), cause: cause.message.clone() };
    if let Err(error) = services.store.request_cancel(round, request, &caller).await {
        let problem = error.problem();
        tracing::debug!(reason = %problem.reason, "the warm pull goes on: {}", problem.message);
    }
}

/// The same for the same try of the same phase.
fn request_id(take_over: &TakeOver) -> RequestId {
    let name = format!("{} {} {}", take_over.id, take_over.phase, take_over.tries);
    RequestId::new(Digest::of(name.as_bytes()).to_uuid())
}
