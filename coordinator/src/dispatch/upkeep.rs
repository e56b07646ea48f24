//! Upkeep of locations: each a row that one replica at a time drives. Whoever claims it next looks again and goes on with what is left, so it may stop
//! anywhere.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use lockstep_bucket::{DecisionFound, ObjectStore, decide as decisions, pins};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    problem::{Problem, Reason},
    upkeep::{Outcome, Tally, Upkeep, Work, decide},
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services, collect,
    drive::jitter,
    rows::{self, Pause, Turns},
};
use crate::{
    plan::{BackOff, patiently},
    store::{AdmitUpkeep, Caller, StoreError, UpkeepApplied},
};

/// Pieces of upkeep that one replica drives at once.
const PLACES: usize = 16;

/// Collections admitted in one go; the rest is due at the next look.
const AT_ONCE: u32 = 16;

/// Who asks, in rows and the audit trail.
const ACTOR: &str = "schedule";

/// What was done so far, counted while it is done.
#[derive(Clone, Debug, Default)]
pub(super) struct Counting(Arc<Mutex<Tally>>);

impl Counting {
    pub(super) fn add(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn so_far(&self) -> Tally {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Claims upkeep that nobody drives, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(PLACES)));
    let look = || look(Arc::clone(&services), tasks.clone(), Arc::clone(&places), shutdown.clone()).boxed();
    rows::until_stopped(&services, &shutdown, tasks.clone(), "no upkeep could be claimed", Pause::Hint, look).await;
}

async fn look(
    services: Arc<Services>,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
) -> Result<Option<Duration>, StoreError> {
    let free = u32::try_from(places.available_permits()).unwrap_or(u32::MAX);
    if free == 0 {
        return Ok(None);
    }
    for upkeep in services.store.claim_upkeep(&services.options.replica, services.options.lease, free).await? {
        let span = tracing::info_span!(
            "upkeep", otel.name = upkeep.work.as_str(), upkeep.id = %upkeep.id, pipeline.name = %upkeep.pipeline_name
        );
        let place = Arc::clone(&places).try_acquire_owned();
        let driven = drive(Arc::clone(&services), upkeep, shutdown.clone());
        let in_its_place = async move {
            driven.await;
            drop(place);
        };
        tasks.spawn(in_its_place.instrument(span));
    }
    Ok(None)
}

/// Admits collections of pipelines that were not collected for long enough. Every replica looks; the row is one.
pub(super) async fn schedule(services: Arc<Services>, shutdown: CancellationToken) {
    let Some(every) = services.options.garbage.every else { return };
    let pause = (every / 4).clamp(Duration::from_millis(100), Duration::from_secs(30));
    while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let due = match services.store.due_collections(every, AT_ONCE).await {
            Ok(due) => due,
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "due collections could not be read: {}", problem.message);
                continue;
            }
        };
        for pipeline in due {
            let ask = AdmitUpkeep {
                pipeline: pipeline.into(),
                work: Work::Collect,
                request_id: None,
                at_least_apart: Some(every),
                retry: services.options.retry,
            };
            let caller = Caller { actor: ACTOR.to_owned(), trace_id: None, traceparent: None };
            if let Err(error) = services.store.admit_upkeep(ask, &caller).await {
                let problem = error.problem();
                tracing::warn!(pipeline.id = %pipeline, reason = %problem.reason, "no collection: {}", problem.message);
            }
        }
    }
}

/// One piece of upkeep, until it ends, is somebody else's, or the process stops; then it is let go for others to claim.
async fn drive(services: Arc<Services>, upkeep: Upkeep, shutdown: CancellationToken) {
    reached(Point::UpkeepClaimed);
    let counting = Counting(Arc::new(Mutex::new(upkeep.tally)));
    let (lost, turns) = (CancellationToken::new(), Turns::default());
    // Also if a step panics: what is renewed for nobody would never end.
    let _renewed_no_longer = lost.clone().drop_guard();
    let renewal = tokio::spawn({
        let (services, counting, id, term) = (Arc::clone(&services), counting.clone(), upkeep.id, upkeep.term);
        let (every, lease) = (services.options.renew_every, services.options.lease);
        let renew = move || {
            let (services, so_far) = (Arc::clone(&services), counting.so_far());
            async move { services.store.renew_upkeep(id, term, lease, so_far).await }.boxed()
        };
        rows::renewed(every, turns.clone(), lost.clone(), renew)
    });
    let (id, term) = (upkeep.id, upkeep.term);
    // Database calls run in tasks of their own; an S3 request that is dropped here counts as unknown, as any other.
    let ended = tokio::select! {
        () = try_until_ended(&services, upkeep, &counting, &turns) => true,
        () = shutdown.cancelled() => false,
        () = lost.cancelled() => false,
    };
    let mine = !lost.is_cancelled();
    lost.cancel();
    if let Err(error) = renewal.await {
        tracing::error!(%error, "renewing upkeep ended early");
    }
    if !ended
        && mine
        && let Err(error) = services.store.release_upkeep(id, term, counting.so_far()).await
    {
        tracing::warn!(reason = %error.problem().reason, "the lease runs out by itself: {}", error.problem().message);
    }
}

async fn try_until_ended(services: &Services, mut now: Upkeep, counting: &Counting, turns: &Turns) {
    let mut back_off = BackOff::of_calls();
    loop {
        if let Some(at) = now.retry_at {
            tokio::time::sleep_until(services.clock.instant_of(at)).await;
        }
        let outcome = match Box::pin(carry_out(services, &now, counting)).await {
            Ok(put_off) => Outcome::Done(put_off),
            Err(problem) => Outcome::Stopped { problem, jitter: jitter() },
        };
        let next = decide(&now, outcome, counting.so_far(), services.clock.now());
        reached(Point::UpkeepBeforeEnd);
        let turn = turns.mine().await;
        loop {
            match services.store.apply_upkeep(&now, &next, &services.caller()).await {
                Ok(UpkeepApplied::Stored(stored)) => {
                    now = stored;
                    break;
                }
                Ok(UpkeepApplied::Moved) => return tracing::info!("the upkeep is somebody else's now"),
                Err(error) => {
                    let problem = error.problem();
                    tracing::warn!(reason = %problem.reason, "an outcome of upkeep was not stored: {}", problem.message);
                    back_off.pause().await;
                }
            }
        }
        drop(turn);
        if now.phase.is_terminal() {
            reached(Point::UpkeepEnded);
            return tell(&now);
        }
        if let Some(problem) = &now.problem {
            tracing::info!(reason = %problem.reason, "the upkeep waits: {}", problem.message);
        }
    }
}

/// For logs and metrics.
fn tell(upkeep: &Upkeep) {
    let Tally { retired, swept, objects, bytes, uploads, put_off } = upkeep.tally;
    let outcome = upkeep.problem.as_ref().map_or("as asked", |problem| problem.reason.as_str());
    metrics::counter!("lockstep_upkeep_total", "work" => upkeep.work.as_str(), "phase" => upkeep.phase.as_str(), "outcome" => outcome)
        .increment(1);
    for (what, count) in [("retired", retired), ("swept", swept)] {
        metrics::counter!("lockstep_checkpoints_removed_total", "how" => what).increment(count);
    }
    metrics::counter!("lockstep_garbage_objects_total").increment(objects);
    metrics::counter!("lockstep_garbage_bytes_total").increment(bytes);
    metrics::counter!("lockstep_garbage_uploads_total").increment(uploads);
    match &upkeep.problem {
        None => tracing::info!(phase = upkeep.phase.as_str(), retired, swept, objects, bytes, uploads, "upkeep ended"),
        Some(problem) => tracing::warn!(
            phase = upkeep.phase.as_str(), reason = %problem.reason, retired, swept, objects, bytes, uploads, put_off,
            "upkeep ended: {}", problem.message
        ),
    }
}

/// What the work asks for. A problem in an `Ok` is why something was put off.
async fn carry_out(services: &Services, upkeep: &Upkeep, counting: &Counting) -> Result<Option<Problem>, Problem> {
    match &upkeep.work {
        Work::Pin { commit, key, bytes } => {
            let bucket = services.connector.connect(&upkeep.location).await?;
            pin(services, bucket.as_ref(), commit, (key, bytes)).await.map(|()| None)
        }
        Work::Unpin { keys, .. } => {
            let bucket = services.connector.connect(&upkeep.location).await?;
            for key in keys {
                delete(services, bucket.as_ref(), key).await?;
                reached(Point::UnpinDeleted);
            }
            Ok(None)
        }
        Work::Retire { commit } => collect::retire_one(services, upkeep, commit, counting).await.map(|()| None),
        Work::Collect => collect::collect(services, upkeep, counting).await,
    }
}

/// G5, also of the own database: first the pin, then the look whether what it keeps was retired.
async fn pin(
    services: &Services,
    bucket: &dyn ObjectStore,
    commit: &CommitRef,
    (key, bytes): (&str, &str),
) -> Result<(), Problem> {
    let patience = services.options.store_patience;
    reached(Point::PinBeforePut);
    patiently(patience, || pins::put_pin(bucket, key, bytes)).await?;
    reached(Point::PinAfterPut);
    let place = (commit.generation, commit.seq);
    let found =
        patiently(patience, || async move { decisions::read_decision(bucket, place.0, place.1).await.known() }).await?;
    match found {
        Some(DecisionFound::Decision(_, digest)) if digest == commit.digest => Ok(()),
        Some(DecisionFound::Unreadable(_, problem)) => Err(problem),
        _ => {
            delete(services, bucket, key).await?;
            Err(Problem::new(
                Reason::CheckpointNotFound,
                format!(
                    "checkpoint {} ({}-{}) of {} was retired before its pin stood",
                    commit.round,
                    commit.generation,
                    commit.seq,
                    bucket.location()
                ),
            )
            .with("checkpoint", commit.round)
            .with("generation", commit.generation)
            .with("seq", commit.seq)
            .with("location", bucket.location()))
        }
    }
}

async fn delete(services: &Services, bucket: &dyn ObjectStore, key: &str) -> Result<(), Problem> {
    patiently(services.options.store_patience, || async move {
        bucket.delete(key).await.done().map_err(|error| error.problem())
    })
    .await
}
