//! Take-overs of locations: each a row that one replica at a time drives, effect by effect, as `protocol` decides. What was put may stand whatever is known, so
//! nothing is given up half way: whoever claims the row next puts the same bytes.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_bucket::{Access, DecisionFound, FenceOutcome, Lookup, ObjectStore, fences, probe_as, read_decision};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    fence::{Fence, FenceBase},
    id::Generation,
    key::Key,
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    takeover::{Decision, Effect, Event, FenceKnown, Purpose, TakeOver, decide, effects, next_wake},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services, activation,
    drive::jitter,
    milestone,
    rows::{self, Pause, Turns},
    settling,
};
use crate::{
    chance,
    plan::BackOff,
    store::{Adoption, LastCommit, Learnt, Page, RoundFilter, StoreError, TakeOverApplied},
};

/// So many rounds are known again by one resync, the newest: they are written in one transaction. Older checkpoints are listed from the bucket as all are.
const LEARNT: usize = 1_000;

/// Claims take-overs that nobody drives, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let look = || look(Arc::clone(&services), tasks.clone(), shutdown.clone()).boxed();
    rows::until_stopped(&services, &shutdown, tasks.clone(), "no take-over could be claimed", Pause::Hint, look).await;
}

async fn look(
    services: Arc<Services>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) -> Result<Option<Duration>, StoreError> {
    for take_over in services.store.claim_take_overs(&services.options.replica, services.options.lease).await? {
        let span =
            tracing::info_span!("take-over", take_over.id = %take_over.id, pipeline.name = %take_over.pipeline_name);
        tasks.spawn(drive(Arc::clone(&services), take_over, shutdown.clone()).instrument(span));
    }
    Ok(None)
}

/// One take-over, until it ends, is somebody else's, or the process stops; then its lease runs out, and another replica goes on.
async fn drive(services: Arc<Services>, take_over: TakeOver, shutdown: CancellationToken) {
    let (lost, turns) = (CancellationToken::new(), Turns::default());
    // Also if a step panics: a take-over that is renewed for nobody would never end.
    let _renewed_no_longer = lost.clone().drop_guard();
    let renewal = tokio::spawn({
        let (services, id, term) = (Arc::clone(&services), take_over.id, take_over.term);
        let (every, lease) = (services.options.renew_every, services.options.lease);
        let renew = move || {
            let services = Arc::clone(&services);
            async move { services.store.renew_take_over(id, term, lease).await }.boxed()
        };
        rows::renewed(every, turns.clone(), lost.clone(), renew)
    });
    let stop = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lost.cancelled() => {}
        }
    };
    let mut back_off = BackOff::of_calls();
    let mut now = take_over;
    let steps = async {
        reached(Point::TakeOverClaimed);
        while !now.phase.is_terminal() {
            match step(&services, &now, &turns).await {
                Ok(Some(next)) => {
                    back_off = BackOff::of_calls();
                    now = next;
                }
                Ok(None) => return,
                Err(error) => {
                    let problem = error.problem();
                    tracing::warn!(reason = %problem.reason, "a step of the take-over was not stored: {}", problem.message);
                    back_off.pause().await;
                    match services.store.get_take_over(now.id).await {
                        Ok(found) if found.term == now.term => now = found,
                        Ok(_) => return,
                        Err(_) => {}
                    }
                }
            }
        }
        match &now.problem {
            None => tracing::info!(phase = %now.phase, "take-over ended"),
            Some(problem) => {
                tracing::warn!(phase = %now.phase, reason = %problem.reason, "take-over ended: {}", problem.message)
            }
        }
    };
    // Database calls run in tasks of their own; an S3 request that is dropped here counts as unknown, as any other.
    tokio::select! {
        () = steps => {}
        () = stop => {}
    }
    if lost.is_cancelled() {
        activation::left(&services, &now).await;
    }
    lost.cancel();
    if let Err(error) = renewal.await {
        tracing::error!(%error, "renewing a take-over ended early");
    }
}

/// The stored take-over's effect, and the guarded write of what comes of it. None: it is somebody else's now.
async fn step(services: &Services, take_over: &TakeOver, turns: &Turns) -> Result<Option<TakeOver>, StoreError> {
    let Some(effect) = effects(take_over, services.clock.now()).into_iter().next() else {
        let at = next_wake(take_over).unwrap_or_else(|| services.clock.now());
        tokio::time::sleep_until(services.clock.instant_of(at)).await;
        return Ok(Some(take_over.clone()));
    };
    let done = carry_out(services, take_over, effect).await;
    let (event, adoption) = done.unwrap_or_else(|problem| (unknown(problem), None));
    let decision: Decision = decide(take_over, &event, services.clock.now());
    if !decision.changes(take_over) {
        return Ok(Some(take_over.clone()));
    }
    let milestone = milestone::of_take_over(take_over, &decision.next);
    milestone::before_stored(milestone);
    let _turn = turns.mine().await;
    match services.store.apply_take_over(take_over, &decision, adoption, &services.caller()).await? {
        TakeOverApplied::Stored(next) => {
            milestone::stored(milestone);
            Ok(Some(next))
        }
        TakeOverApplied::Moved => match services.store.get_take_over(take_over.id).await? {
            found if found.term == take_over.term => Ok(Some(found)),
            _ => Ok(None),
        },
    }
}

fn unknown(problem: Problem) -> Event {
    tracing::info!(reason = %problem.reason, "the take-over waits: {}", problem.message);
    Event::Unknown { problem, jitter: jitter() }
}

async fn carry_out(
    services: &Services,
    take_over: &TakeOver,
    effect: Effect,
) -> Result<(Event, Option<Adoption>), Problem> {
    let bucket = services.connector.connect(&take_over.location).await?;
    let bucket = bucket.as_ref();
    Ok(match effect {
        Effect::Survey => (survey(bucket).await?, None),
        Effect::PutFence(generation) => (put_fence(bucket, take_over, generation).await?, None),
        Effect::FinishBase(generation) => (Event::BaseStands(fences::finish_base(bucket, generation).await?), None),
        Effect::Adopt => (Event::Adopted, Some(adoption(services, bucket, take_over).await?)),
        Effect::WarmPull => (activation::warm(services, take_over).await?, None),
        Effect::Pull(commit) => (activation::base(services, take_over, commit).await?, None),
    })
}

/// Nothing has been put yet: what can't pass by itself ends the take-over.
async fn survey(bucket: &dyn ObjectStore) -> Result<Event, Problem> {
    let found = async {
        let report = probe_as(bucket, chance::id()).await?;
        if !report.left.is_empty() {
            tracing::info!(left = report.left.len(), "the probe's objects could not be removed");
        }
        match fences::owner(bucket).await {
            Lookup::Found(fence) => {
                if fence.generation > Generation::FIRST {
                    fences::finish_base(bucket, fence.generation).await?;
                }
                Ok(Some(fence))
            }
            Lookup::Absent => Ok(None),
            Lookup::Unknown(problem) => Err(problem),
        }
    };
    match found.await {
        Ok(highest) => Ok(Event::Surveyed { highest }),
        Err(problem) if problem.retryable() == Retryable::Yes => Err(problem),
        Err(problem) => Ok(Event::Refused(problem)),
    }
}

async fn put_fence(bucket: &dyn ObjectStore, take_over: &TakeOver, generation: Generation) -> Result<Event, Problem> {
    let missing = || {
        Problem::new(Reason::DatabaseBehind, format!("take-over {} holds no fence", take_over.id))
            .with("take_over", take_over.id)
    };
    let prepared = take_over.fence.as_ref().ok_or_else(missing)?;
    let fence = Fence::parse(&Key::Fence(generation).to_string(), prepared.bytes.as_bytes())?;
    if generation == Generation::FIRST {
        fences::ensure_format(bucket).await?;
    }
    match fences::put_fence(bucket, &fence).await {
        FenceOutcome::Mine => Ok(Event::Fenced(FenceKnown::Mine)),
        FenceOutcome::Lost(other) => Ok(Event::Fenced(FenceKnown::Lost(Box::new(other)))),
        FenceOutcome::Unknown(error) | FenceOutcome::Refused(error) => Err(error.problem()),
        FenceOutcome::Unreadable(problem) => Err(problem),
    }
}

/// What becomes of the pipeline's open round, and which commit its row names from now on.
async fn adoption(services: &Services, bucket: &dyn ObjectStore, take_over: &TakeOver) -> Result<Adoption, Problem> {
    // A location that nobody owned before starts at nothing.
    let nothing = FenceBase { generation: Generation::FIRST, newest: None, tombstones: Vec::new() };
    let base = take_over.base.clone().unwrap_or(nothing);
    let filter = RoundFilter { pipeline: Some(take_over.pipeline), active_only: true, kind: None };
    let open = services.store.list_rounds(filter, Page { size: 1, token: None }).await.map_err(Problem::from)?;
    let round = match open.items.into_iter().next() {
        None => None,
        Some(record) => Some(settling::by_base(services, bucket, record.round, base.clone()).await?),
    };
    let last = match base.newest {
        None => None,
        Some(newest) => last_commit(bucket, newest).await?,
    };
    let learnt = match take_over.purpose {
        Purpose::Resync if planted::is(Bug::ResyncLearnsNothing) => Vec::new(),
        Purpose::Resync => learnt(bucket).await?,
        Purpose::Claim | Purpose::TakeOver | Purpose::Activate | Purpose::Release => Vec::new(),
    };
    Ok(Adoption { round, last, learnt })
}

/// What counts, newest first: the base stands, so no more is added to it.
async fn learnt(bucket: &dyn ObjectStore) -> Result<Vec<Learnt>, Problem> {
    let found = lockstep_bucket::list_checkpoints(bucket, Access::Own, LEARNT).await?;
    Ok(lockstep_bucket::whole(found)
        .into_iter()
        .map(|one| Learnt { commit: one.commit, document: one.document })
        .collect())
}

/// None: it was retired since; its objects may go, so nothing builds on it. Or it is marked damaged: pushing the same checkpoints again heals it.
async fn last_commit(bucket: &dyn ObjectStore, newest: CommitRef) -> Result<Option<LastCommit>, Problem> {
    if lockstep_bucket::is_marked(bucket, &newest).await? && !planted::is(Bug::MarkedIsAdopted) {
        return Ok(None);
    }
    match read_decision(bucket, newest.generation, newest.seq).await.known()? {
        Some(DecisionFound::Decision(DecisionObject::Commit(document), digest)) if digest == newest.digest => {
            Ok(Some(LastCommit {
                commit: newest,
                step: document.step,
                fingerprint: document.fingerprint,
                local_checkpoints: document.parts.iter().map(|part| part.local_checkpoint).collect(),
                at: document.created_at,
            }))
        }
        _ => Ok(None),
    }
}
