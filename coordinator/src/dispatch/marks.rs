//! Marks of damaged checkpoints: stored with the finding, put by any replica until something stands at their keys. Putting one again changes nothing, so its
//! lease only saves work.

use std::{sync::Arc, time::Duration};

use lockstep_protocol::{
    damage::DamageMark,
    problem::{Problem, Reason},
};
use tokio_util::sync::CancellationToken;

use super::{Services, next_look};
use crate::{
    plan::BackOff,
    store::{Change, Verification},
};

/// Until a mark that could not be put is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Puts marks that are owed, until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    let mut changes = services.store.changes();
    let mut back_off = BackOff::of_calls();
    while !shutdown.is_cancelled() {
        let looked = tokio::time::Instant::now();
        match services.store.owed_marks(services.options.lease).await {
            Ok(owed) => {
                back_off = BackOff::of_calls();
                for verification in owed {
                    settle(&services, &verification).await;
                }
                shutdown.run_until_cancelled(next_look(&services, &mut changes, Change::ClaimWaits, looked)).await;
            }
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "no mark of a damaged checkpoint could be put: {}", problem.message);
                shutdown.run_until_cancelled(back_off.pause()).await;
            }
        }
    }
}

async fn settle(services: &Services, verification: &Verification) {
    let commit = &verification.finding.commit;
    let problem = put(services, verification).await.err();
    match &problem {
        None => {
            tracing::warn!(checkpoint = %commit.round, "a damaged checkpoint is marked: neither latest nor a base any more");
        }
        Some(problem) => {
            tracing::warn!(checkpoint = %commit.round, reason = %problem.reason, "a mark does not stand yet: {}", problem.message);
        }
    }
    if let Err(error) = services.store.settle_mark(verification, problem, AGAIN, &services.caller()).await {
        let problem = error.problem();
        tracing::warn!(reason = %problem.reason, "a mark will be put again: {}", problem.message);
    }
}

async fn put(services: &Services, verification: &Verification) -> Result<(), Problem> {
    let finding = &verification.finding;
    let row = services.store.get_pipeline(&finding.pipeline.into()).await.map_err(Problem::from)?;
    let bucket = services.connector.connect(&row.spec.location).await?;
    let bytes = verification.mark.as_deref().ok_or_else(|| {
        Problem::new(Reason::DatabaseBehind, format!("verification {} holds no mark", verification.id))
            .with("verification", verification.id)
    })?;
    let mark = DamageMark::parse(&DamageMark::key_of(&finding.commit).to_string(), bytes.as_bytes())?;
    lockstep_bucket::put_mark(bucket.as_ref(), &mark).await
}
