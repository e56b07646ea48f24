//! Marks of damaged checkpoints: stored with the finding, put by any replica until something stands at their keys. Putting one again changes nothing, so its
//! lease only saves work.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    damage::DamageMark,
    problem::{Problem, Reason, Retryable},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Services,
    rows::{self, Pause},
};
use crate::store::{StoreError, Verification};

/// Until a mark that could not be put is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Puts marks that are owed, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let look = || look(Arc::clone(&services)).boxed();
    let failed = "no mark of a damaged checkpoint could be put";
    rows::until_stopped(&services, &shutdown, TaskTracker::new(), failed, Pause::Hint, look).await;
}

async fn look(services: Arc<Services>) -> Result<Option<Duration>, StoreError> {
    for verification in services.store.owed_marks(services.options.lease).await? {
        settle(&services, &verification).await;
    }
    Ok(None)
}

async fn settle(services: &Services, verification: &Verification) {
    let commit = &verification.finding.commit;
    reached(Point::DamageTaken);
    let problem = put(services, verification).await.err();
    reached(Point::DamageAfterPut);
    match &problem {
        None => {
            tracing::warn!(checkpoint = %commit.round, "a damaged checkpoint is marked: neither latest nor a base any more");
        }
        Some(problem) => {
            tracing::warn!(checkpoint = %commit.round, reason = %problem.reason, "a mark does not stand yet: {}", problem.message);
        }
    }
    match services.store.settle_mark(verification, problem, AGAIN, &services.caller()).await {
        Ok(_) => reached(Point::DamageStored),
        Err(error) => {
            let problem = error.problem();
            tracing::warn!(reason = %problem.reason, "a mark will be put again: {}", problem.message);
        }
    }
}

async fn put(services: &Services, verification: &Verification) -> Result<(), Problem> {
    let finding = &verification.finding;
    let row = services.store.get_pipeline(&finding.pipeline.into()).await.map_err(Problem::from)?;
    let bucket = services.connector.connect(&row.spec.location).await?;
    let bytes = verification.mark.as_deref().ok_or_else(|| {
        Problem::new(
            Reason::DatabaseUnavailable,
            format!("verification {} owes a mark and holds none", verification.id),
        )
        .with("verification", verification.id)
        .retry(Retryable::AfterFix)
    })?;
    let mark = DamageMark::parse(&DamageMark::key_of(&finding.commit).to_string(), bytes.as_bytes())?;
    lockstep_bucket::put_mark(bucket.as_ref(), &mark).await
}
