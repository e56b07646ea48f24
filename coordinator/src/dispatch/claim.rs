//! Locations of new pipelines: the store is probed, then the stored bytes of the first fence are put until it is known who owns the location.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_bucket::{Claim, claim_first, location_owned, probe_as};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    fence::Fence,
    id::{Generation, Term},
    key::Key,
    problem::{Problem, Reason, Retryable},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Services,
    rows::{self, Pause, Turns},
};
use crate::{
    chance,
    plan::BackOff,
    store::{ClaimOutcome, ClaimSettled, PipelineRow, StoreError},
};

/// Claims what nobody claims, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let look = || look(Arc::clone(&services), tasks.clone(), shutdown.clone()).boxed();
    rows::until_stopped(&services, &shutdown, tasks.clone(), "no location could be claimed", Pause::Hint, look).await;
}

async fn look(
    services: Arc<Services>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) -> Result<Option<Duration>, StoreError> {
    for row in services.store.claim_claiming(&services.options.replica, services.options.lease).await? {
        let span = tracing::info_span!("claim", pipeline.id = %row.id, pipeline.name = %row.spec.name);
        tasks.spawn(claim_location(Arc::clone(&services), row, shutdown.clone()).instrument(span));
    }
    Ok(None)
}

async fn claim_location(services: Arc<Services>, row: PipelineRow, shutdown: CancellationToken) {
    reached(Point::ClaimTaken);
    // Kept while it takes long. If it is lost all the same, another replica puts the same bytes.
    let done = CancellationToken::new();
    // Also if the attempt panics: a claim that is renewed for nobody would never be settled.
    let _renewed_no_longer = done.clone().drop_guard();
    let renewal = tokio::spawn({
        let (services, id, term) = (Arc::clone(&services), row.id, row.claim_term);
        let (every, lease) = (services.options.renew_every, services.options.lease);
        let renew = move || {
            let services = Arc::clone(&services);
            async move { services.store.renew_claim(id, term, lease).await }.boxed()
        };
        rows::renewed(every, Turns::default(), done.clone(), renew)
    });
    let outcome = shutdown.run_until_cancelled(attempt(&services, &row)).await;
    done.cancel();
    if let Err(error) = renewal.await {
        tracing::error!(%error, "renewing a claim ended early");
    }
    // Stopped half way: whoever claims it next puts the same bytes.
    let Some(outcome) = outcome else { return };
    match &outcome {
        ClaimOutcome::Owned(generation) => {
            tracing::info!(%generation, location = %row.spec.location, "location claimed")
        }
        ClaimOutcome::Refused(problem) => {
            tracing::warn!(reason = %problem.reason, "location not claimed: {}", problem.message);
        }
        ClaimOutcome::Again { problem, .. } => {
            tracing::warn!(reason = %problem.reason, "location not claimed yet: {}", problem.message);
        }
    }
    let mut back_off = BackOff::of_calls();
    loop {
        let settled =
            services.store.settle_claim(row.id, row.version, row.claim_term, outcome.clone(), &services.caller()).await;
        match settled {
            Ok(ClaimSettled::Stored(_) | ClaimSettled::Moved) => return reached(Point::ClaimStored),
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "a claim's outcome was not stored: {}", problem.message);
                if matches!(error, StoreError::Problem(_))
                    || shutdown.run_until_cancelled(back_off.pause()).await.is_none()
                {
                    return;
                }
            }
        }
    }
}

async fn attempt(services: &Services, row: &PipelineRow) -> ClaimOutcome {
    match try_claim(services, row).await {
        Ok(outcome) => outcome,
        Err(Trouble { problem, before_put }) => {
            // Nothing was PUT ever: the caller learns at once what to change. Afterwards an unknown PUT may have landed or may land, and giving the
            // row up would leave a location that nobody owns any more.
            if before_put && row.claim_term.get() <= FIRST_TERM && problem.retryable() != Retryable::Yes {
                return ClaimOutcome::Refused(problem);
            }
            ClaimOutcome::Again { problem, after: again_after(row.claim_term) }
        }
    }
}

/// Term of a claim that nobody tried before.
const FIRST_TERM: u64 = 1;

struct Trouble {
    problem: Problem,
    before_put: bool,
}

async fn try_claim(services: &Services, row: &PipelineRow) -> Result<ClaimOutcome, Trouble> {
    let location = &row.spec.location;
    let before = |problem| Trouble { problem, before_put: true };
    let Some(bytes) = &row.fence_bytes else {
        return Err(before(Problem::new(
            Reason::DatabaseBehind,
            format!("pipeline {} is to claim {location}, but its row holds no fence", row.spec.name),
        )));
    };
    let fence = Fence::parse(&Key::Fence(Generation::FIRST).to_string(), bytes.as_bytes()).map_err(before)?;
    let bucket = services.connector.connect(location).await.map_err(before)?;
    let report = probe_as(bucket.as_ref(), chance::id()).await.map_err(before)?;
    if !report.left.is_empty() {
        tracing::info!(location = %location, left = report.left.len(), "the probe's objects could not be removed");
    }
    reached(Point::ClaimBeforePut);
    let claimed = claim_first(bucket.as_ref(), &fence).await;
    reached(Point::ClaimAfterPut);
    match claimed {
        Ok(Claim::Mine) => Ok(ClaimOutcome::Owned(Generation::FIRST)),
        Ok(Claim::OwnedBy(owner)) => {
            Ok(ClaimOutcome::Refused(location_owned(location, row.id, &row.spec.name, &owner)))
        }
        Err(problem) => Err(Trouble { problem, before_put: false }),
    }
}

/// Each try raises the term, so it tells how many there were.
fn again_after(term: Term) -> Duration {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    let doublings = u32::try_from(term.get().saturating_sub(1).min(16)).unwrap_or(16);
    let full = FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST);
    full.mul_f64(chance::between(0.5..=1.0))
}
