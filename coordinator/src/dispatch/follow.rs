//! Standbys: pipelines that own nothing and keep what their hosts hold as new as their location. Each is looked at by one replica at a time when it is due.
//!
//! What may be done is in the type: a look takes a [`Following`], which only a standby's own state makes (`protocol::standby`). It asks the location for its newest
//! checkpoint and the hosts for what they hold; what they lack becomes a pull round, driven like any other. How that ended is reckoned in at the next look, by
//! whichever replica that is. Nothing here ever starts an engine.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_bucket::Checkpoint;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    problem::{Problem, Reason},
    ready::Role,
    round::{Kind, PullState},
    spec::PullSelector,
    standby::{self, DEFAULT_INTERVAL, FollowState, Following, Look, Sighting, is_held, look},
};
use tokio::sync::{Mutex, Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services,
    drive::jitter,
    rows::{self, Pause},
};
use crate::{
    plan::{Right, draft, hosts, place::Place},
    store::{AdmitPull, Caller, DueStandby, Page, PipelineRow, RoundFilter, RoundKind, RoundRecord, StoreError},
};

mod behind;
mod gauges;
mod last_copy;

/// Taken at once; the rest is due at the next look, which follows at once.
const AT_ONCE: u32 = 64;

/// Without any standby, or with hints that were lost; also how old the gauges get.
const IDLE: Duration = Duration::from_secs(5);

/// Changes of pipelines that share one look: every round changes one, and most are no standby's.
const BURST: Duration = Duration::from_secs(1);

/// Who asks, in rows and the audit trail.
const ACTOR: &str = "standby";

/// Looks at standbys that are due, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let (tasks, stored) = (TaskTracker::new(), Arc::new(Notify::new()));
    let gauges = Arc::new(Mutex::new(gauges::Gauges::default()));
    let pause = Pause::Due { idle: IDLE, burst: BURST, stored: Arc::clone(&stored) };
    let look = || {
        let (services, gauges) = (Arc::clone(&services), Arc::clone(&gauges));
        let (tasks, stored) = (tasks.clone(), Arc::clone(&stored));
        async move {
            let next = look_at_all(&services, &tasks, &stored).await?;
            gauges.lock().await.show(&services).await;
            Ok(next)
        }
        .boxed()
    };
    rows::until_stopped(&services, &shutdown, tasks.clone(), "standbys could not be read", pause, look).await;
}

async fn look_at_all(
    services: &Arc<Services>,
    tasks: &TaskTracker,
    stored: &Arc<Notify>,
) -> Result<Option<Duration>, StoreError> {
    // Long enough that no other replica looks while location and hosts are being asked.
    let lease = services.options.lease + services.options.unreachable_after + services.options.store_patience;
    let found = services.store.due_standbys(lease, AT_ONCE).await?;
    for due in found.due {
        let span = tracing::info_span!("standby", pipeline.id = %due.following.pipeline());
        let (services, stored) = (Arc::clone(services), Arc::clone(stored));
        let look = async move {
            look_at(&services, due).await;
            stored.notify_one();
        };
        tasks.spawn(look.instrument(span));
    }
    Ok(found.next)
}

async fn look_at(services: &Arc<Services>, due: DueStandby) {
    reached(Point::StandbyTaken);
    let next = match attempt(services, &due).await {
        Ok(next) => next,
        Err(error) => {
            let problem = error.problem();
            // The lease of this look runs out, and the next one begins where this one did.
            tracing::warn!(reason = %problem.reason, "what to pull was not found out: {}", problem.message);
            return;
        }
    };
    match services.store.save_follow_state(&due, next).await {
        Ok(true) => reached(Point::StandbyStored),
        Ok(false) => tracing::debug!("another replica has looked since, or somebody started or stopped it"),
        Err(error) => {
            let problem = error.problem();
            tracing::warn!(reason = %problem.reason, "the standby's next look was not stored: {}", problem.message);
        }
    }
}

async fn attempt(services: &Arc<Services>, due: &DueStandby) -> Result<FollowState, StoreError> {
    let row = services.store.get_pipeline(&due.following.pipeline().into()).await?;
    let interval = row.spec.pull_interval.unwrap_or(DEFAULT_INTERVAL);
    let filter = RoundFilter { pipeline: Some(row.id), kind: Some(RoundKind::Pull), active_only: false };
    let last = services.store.list_rounds(filter, Page { size: 1, token: None }).await?;
    let last = last.items.first().map(RoundRecord::as_last_pull);
    let state = match look(due.state.clone(), last.as_ref(), interval, services.clock.now(), jitter()) {
        Look::Wait(state) => return Ok(state),
        Look::Lag(state) => return Ok(lag(services, &row, state).await),
        Look::Now(state) => state,
    };
    let seen = match see(services, &row, &due.following).await {
        Ok(seen) => seen,
        Err(problem) => return Ok(failed(services, state, problem)),
    };
    reached(Point::StandbySeen);
    let sighting = sighted(services, &state, seen.newest.as_ref(), seen.held(&state)).await;
    let now = services.clock.now();
    let state = FollowState { sighting: sighting.clone(), ..state };
    let disks = match seen.disks {
        Ok(disks) => disks,
        Err(problem) => return Ok(failed(services, state, problem)),
    };
    let settled = match &seen.target {
        Some(target) if is_held(parts(target), &disks) => are_standby(services, &row).await?,
        _ => false,
    };
    match (&seen.target, due.following.pinned()) {
        (Some(_), _) if settled => Ok(state.up_to_date(sighting, interval, now)),
        // Nothing was ever pushed there.
        (None, None) => Ok(state.up_to_date(sighting, interval, now)),
        (None, Some(pinned)) => Ok(failed(services, state, pinned_is_missing(&row, pinned))),
        (Some(_), None) => match last_copy::kept(&row, seen.newest.as_ref(), state.sighting.held, &disks).await {
            Ok(None) => pull(services, due, &row, state).await,
            // Of what is whole they lack nothing.
            Ok(Some(problem)) => {
                let sighting = Sighting { lag: None, ..sighting };
                Ok(failed(services, FollowState { sighting, ..state }, problem))
            }
            Err(problem) => Ok(failed(services, state, problem)),
        },
        (Some(_), Some(_)) => pull(services, due, &row, state).await,
    }
}

/// Whether the last word that hosts were owed is that of a standby. They may hold what is wanted and still be what an owner has left: told that their engines may start, with
/// local checkpoints beside it that were never pushed. Only a pull's install takes both away.
async fn are_standby(services: &Services, row: &PipelineRow) -> Result<bool, StoreError> {
    Ok(services.store.word_of(row.id).await?.is_some_and(|word| word.role == Role::Standby))
}

/// While a pull runs: what it leaves behind goes on growing. An answer that doesn't come is waited for at the next look.
async fn lag(services: &Services, row: &PipelineRow, state: FollowState) -> FollowState {
    let newest = async { find(&places(services, row).await?, &PullSelector::Latest).await };
    match newest.await {
        Ok(newest) => {
            let sighting = sighted(services, &state, newest.as_ref(), state.sighting.held).await;
            FollowState { sighting, ..state }
        }
        Err(problem) => {
            tracing::debug!(reason = %problem.reason, "the newest checkpoint is not known: {}", problem.message);
            state
        }
    }
}

async fn sighted(
    services: &Services,
    state: &FollowState,
    newest: Option<&(Checkpoint, Place)>,
    held: Option<standby::Point>,
) -> Sighting {
    let bytes = match newest {
        None => 0,
        Some((newest, place)) => behind::bytes(place, newest, held, &state.sighting).await,
    };
    state.sighting.next(newest.map(|(newest, _)| point(newest)), held, bytes, services.clock.now())
}

fn failed(services: &Services, state: FollowState, problem: Problem) -> FollowState {
    tracing::info!(reason = %problem.reason, failures = state.failures + 1, "the standby keeps what it has: {}", problem.message);
    state.failed(problem, services.clock.now(), jitter())
}

fn pinned_is_missing(row: &PipelineRow, pinned: lockstep_protocol::id::RoundId) -> Problem {
    let name = &row.spec.name;
    Problem::new(
        Reason::CheckpointNotFound,
        format!("standby {name} is told to stay on checkpoint {pinned}, which is not in {}", row.spec.location),
    )
    .with("pipeline", name)
    .with("checkpoint", pinned)
    .with("location", &row.spec.location)
}

async fn pull(
    services: &Services,
    due: &DueStandby,
    row: &PipelineRow,
    state: FollowState,
) -> Result<FollowState, StoreError> {
    let pull = AdmitPull {
        pipeline: row.id.into(),
        request: draft::of_standby(due.following.selector()),
        follows: Some(due.version),
        request_id: None,
        deadline: services.options.pull_deadline,
        retry: services.options.retry,
    };
    let caller = Caller { actor: ACTOR.to_owned(), trace_id: None, traceparent: None };
    let sighting = state.sighting.clone();
    match services.store.admit_pull(pull, &caller).await {
        Ok(admitted) => {
            reached(Point::StandbyAdmitted);
            tracing::info!(round.id = %admitted.record().round.id, "the standby pulls");
            Ok(state.pulling(sighting, services.clock.now()))
        }
        // A pull by hand, which is reckoned in when it has ended.
        Err(StoreError::Problem(problem)) if problem.reason == Reason::RoundInProgress => {
            Ok(state.pulling(sighting, services.clock.now()))
        }
        Err(StoreError::Problem(problem)) => Ok(failed(services, state, problem)),
        Err(error) => Err(error),
    }
}

/// What location and hosts said.
struct Seen {
    /// Of the location, else of the read location.
    newest: Option<(Checkpoint, Place)>,
    /// What the standby wants of it.
    target: Option<Checkpoint>,
    disks: Result<Vec<Vec<lockstep_protocol::selection::LocalCheckpoint>>, Problem>,
}

impl Seen {
    /// What every host is known to hold: what is wanted, or what was held before. A host that holds nothing at all has lost it.
    fn held(&self, state: &FollowState) -> Option<standby::Point> {
        let before = state.sighting.held;
        let Ok(disks) = &self.disks else { return before };
        match &self.target {
            Some(target) if is_held(parts(target), disks) => Some(point(target)),
            _ => before.filter(|_| disks.iter().all(|disk| !disk.is_empty())),
        }
    }
}

fn parts(checkpoint: &Checkpoint) -> impl Iterator<Item = lockstep_protocol::id::LocalCheckpointId> {
    checkpoint.document.parts.iter().map(|part| part.local_checkpoint)
}

fn point(checkpoint: &Checkpoint) -> standby::Point {
    let document = &checkpoint.document;
    standby::Point { commit: checkpoint.commit, step: document.step, at: document.created_at }
}

async fn see(services: &Services, row: &PipelineRow, following: &Following) -> Result<Seen, Problem> {
    let context = services.plan_context();
    let places = places(services, row).await?;
    let newest = find(&places, &PullSelector::Latest).await?;
    let target = match following.selector() {
        PullSelector::Latest => newest.as_ref().map(|(newest, _)| newest.clone()),
        pinned => find(&places, &pinned).await?.map(|(found, _)| found),
    };
    let kind = Kind::Pull(PullState::asked(draft::of_standby(following.selector())));
    let options = &services.options;
    let round = draft::round(row, kind, services.clock.now(), options.pull_deadline, options.retry);
    let agents = hosts::ask_all(&context, &round).await;
    let disks = agents.map(|agents| agents.into_iter().map(|agent| agent.checkpoints).collect());
    Ok(Seen { newest, target, disks })
}

/// The location, whose fences a standby finishes (F3), then the read location, which is never written.
async fn places(services: &Services, row: &PipelineRow) -> Result<Vec<Place>, Problem> {
    let context = services.plan_context();
    let mut places = vec![Place::open(&context, &row.spec.location, Right::FinishBase).await?];
    if let Some(read) = &row.spec.read_location {
        places.push(Place::open(&context, read, Right::Read).await?);
    }
    Ok(places)
}

/// In the first place that has it; unknown is never absent.
async fn find(places: &[Place], selector: &PullSelector) -> Result<Option<(Checkpoint, Place)>, Problem> {
    for place in places {
        if let Some(found) = place.find(selector).await? {
            return Ok(Some((found, place.clone())));
        }
    }
    Ok(None)
}
