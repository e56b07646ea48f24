//! Pushes that nobody asks for: pipelines with a `push_interval`, each looked at by one replica at a time when it is due.
//!
//! A look asks the hosts what they hold. Only what isn't the newest commit already becomes a round, and that round is driven like any other; how it ended
//! is reckoned in at the next look, by whichever replica that is.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_protocol::{
    problem::{Problem, Reason},
    round::WantedCut,
    schedule::{Look, PushSchedule, look},
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services,
    drive::jitter,
    rows::{self, Pause},
};
use crate::{
    plan::{Right, draft, hosts},
    store::{
        AdmitPush, Caller, DuePush, FoundCut, Page, PipelineRow, RoundFilter, RoundKind, RoundRecord, StoreError,
        Trigger,
    },
};

/// Taken at once; the rest is due at the next look, which follows at once.
const AT_ONCE: u32 = 64;

/// Without any pipeline that has an interval, or with hints that were lost.
const IDLE: Duration = Duration::from_secs(30);

/// Changes of pipelines that share one look.
const BURST: Duration = Duration::from_secs(1);

/// Who asks, in rows and the audit trail.
const ACTOR: &str = "schedule";

/// Looks at pipelines that are due, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let (tasks, stored) = (TaskTracker::new(), Arc::new(Notify::new()));
    let pause = Pause::Due { idle: IDLE, burst: BURST, stored: Arc::clone(&stored) };
    let look = || look_at_all(Arc::clone(&services), tasks.clone(), Arc::clone(&stored)).boxed();
    rows::until_stopped(&services, &shutdown, tasks.clone(), "schedules could not be read", pause, look).await;
}

async fn look_at_all(
    services: Arc<Services>,
    tasks: TaskTracker,
    stored: Arc<Notify>,
) -> Result<Option<Duration>, StoreError> {
    // Long enough that no other replica looks while hosts are being asked.
    let lease = services.options.lease + services.options.unreachable_after;
    let found = services.store.due_pushes(lease, AT_ONCE).await?;
    for due in found.due {
        let span = tracing::info_span!("schedule", pipeline.id = %due.pipeline);
        let (services, stored) = (Arc::clone(&services), Arc::clone(&stored));
        let look = async move {
            look_at(services, due).await;
            stored.notify_one();
        };
        tasks.spawn(look.instrument(span));
    }
    Ok(found.next)
}

async fn look_at(services: Arc<Services>, due: DuePush) {
    let next = match attempt(&services, &due).await {
        Ok(next) => next,
        Err(error) => {
            let problem = error.problem();
            // The lease of this look runs out, and the next one begins where this one did.
            tracing::warn!(reason = %problem.reason, "whether to push was not found out: {}", problem.message);
            return;
        }
    };
    let Some(next) = next else { return };
    match services.store.save_push_schedule(&due, next).await {
        Ok(true) => {}
        Ok(false) => tracing::debug!("another replica has looked since"),
        Err(error) => {
            let problem = error.problem();
            tracing::warn!(reason = %problem.reason, "the next push's time was not stored: {}", problem.message);
        }
    }
}

/// None: the pipeline is gone or has no interval any more.
async fn attempt(services: &Arc<Services>, due: &DuePush) -> Result<Option<PushSchedule>, StoreError> {
    let row = services.store.get_pipeline(&due.pipeline.into()).await?;
    let Some(interval) = row.spec.push_interval else { return Ok(None) };
    let filter = RoundFilter { pipeline: Some(row.id), kind: Some(RoundKind::Push), active_only: false };
    let last = services.store.list_rounds(filter, Page { size: 1, token: None }).await?;
    let last = last.items.first().map(RoundRecord::as_last_push);
    let now = services.clock.now();
    let schedule = match look(due.schedule.clone(), last.as_ref(), interval, now, jitter()) {
        Look::Wait(schedule) => return Ok(Some(schedule)),
        Look::Push(schedule) => schedule,
    };
    let found = match held_in_common(services, &row).await {
        Held::Nothing => return Ok(Some(schedule.nothing_new(interval, now))),
        Held::Cut(cut) if row.last_commit.as_ref().is_some_and(|last| cut.is(last)) => {
            return Ok(Some(schedule.nothing_new(interval, now)));
        }
        Held::Cut(cut) => Some(cut),
        Held::Apart(problem) => {
            tracing::debug!("nothing to push: {}", problem.message);
            return Ok(Some(schedule.apart(problem, interval, now, jitter())));
        }
        // The round finds out what is wrong, insists, and keeps the cause.
        Held::Unknown => None,
    };
    let push = AdmitPush {
        pipeline: row.id.into(),
        wanted: WantedCut::Newest,
        force: false,
        trigger: Trigger::Periodic,
        found,
        request_id: None,
        deadline: services.options.push_deadline,
        retry: services.options.retry,
    };
    let caller = Caller { actor: ACTOR.to_owned(), trace_id: None, traceparent: None };
    Ok(Some(match services.store.admit_push(push, &caller).await {
        Ok(admitted) => {
            tracing::info!(round.id = %admitted.record().round.id, "periodic push admitted");
            schedule.admitted(interval, services.clock.now())
        }
        // Another round is active, or the pipeline was fenced meanwhile.
        Err(StoreError::Problem(problem)) => refused(schedule, problem, interval, services),
        Err(error) => return Err(error),
    }))
}

fn refused(schedule: PushSchedule, problem: Problem, interval: Duration, services: &Services) -> PushSchedule {
    let now = services.clock.now();
    if problem.reason == Reason::RoundInProgress {
        // A pull, or a push that was faster: no failure, and its end is looked for soon.
        return schedule.admitted(interval, now);
    }
    tracing::warn!(reason = %problem.reason, "no periodic push: {}", problem.message);
    schedule.refused(problem, interval, now, jitter())
}

enum Held {
    Cut(FoundCut),
    /// No host has any checkpoint yet.
    Nothing,
    /// `NO_COMMON_CHECKPOINT`.
    Apart(Problem),
    /// Not every host has told.
    Unknown,
}

async fn held_in_common(services: &Services, row: &PipelineRow) -> Held {
    let mut context = services.plan_context();
    context.right = Right::Read;
    let options = &services.options;
    let kind = draft::push(row, WantedCut::Newest, false);
    let round = draft::round(row, kind, services.clock.now(), options.push_deadline, options.retry);
    match hosts::ask_ahead(&context, &round).await {
        Ok(agents) if agents.iter().all(|agent| agent.checkpoints.is_empty()) => Held::Nothing,
        Ok(agents) => match hosts::common(&agents, WantedCut::Newest) {
            Ok(cut) => Held::Cut(cut.into()),
            Err(problem) => Held::Apart(problem),
        },
        Err(problem) => {
            tracing::debug!(reason = %problem.reason, "the hosts were not asked: {}", problem.message);
            Held::Unknown
        }
    }
}
