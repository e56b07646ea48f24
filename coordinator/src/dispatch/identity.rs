//! Whether the database is the one that wrote the pipelines' fences (R13): after a fail-over to a replica, or a restore, rows may be missing, and nobody knows which.
//!
//! A pipeline whose row was written by another database does nothing but take its own location over: the store claims and writes nothing of it (`store/identity.rs`), here it is
//! noticed, and the base settles what was open. A later timeline of the same server
//! is a promoted replica or a recovery to a point in time, and the resync begins by itself. Another server or another database is a restored dump as well as a copy
//! for tests, which must not take the location of the living one: that resync somebody has to ask for (ADR 21).

use std::sync::Arc;

use lockstep_bucket::fences;
use lockstep_protocol::{
    problem::{Problem, Reason},
    takeover::Purpose,
};
use tokio_util::sync::CancellationToken;

use super::{Services, settling};
use crate::store::{
    AdmitTakeOver, Applied, ClaimState, DatabaseIdentity, Difference, Page, PipelineRow, RoundFilter, StoreError,
    another_database,
};

/// Pipelines read at a time.
const PAGE: u32 = 100;

/// Looks which database this is, again and again, and at the pipelines as long as another one wrote some of their rows: one that is being claimed or taken over as an older
/// database had begun it is found to be behind when it owns its location.
pub(super) async fn watch(services: Arc<Services>, shutdown: CancellationToken) {
    let mut settled: Option<DatabaseIdentity> = None;
    while !shutdown.is_cancelled() {
        match look(&services, settled.as_ref()).await {
            Ok(now) => settled = now,
            Err(error) => not_looked(error.problem()),
        }
        shutdown.run_until_cancelled(tokio::time::sleep(services.options.lease)).await;
    }
}

fn not_looked(problem: &Problem) {
    tracing::debug!(reason = %problem.reason, "which database this is was not found out: {}", problem.message);
}

/// This database, if it wrote every row.
async fn look(services: &Services, settled: Option<&DatabaseIdentity>) -> Result<Option<DatabaseIdentity>, StoreError> {
    let now = services.store.identity().await?;
    if settled == Some(&now) {
        return Ok(Some(now));
    }
    let mut all_here = true;
    let mut token = None;
    loop {
        let listed = services.store.list_pipelines(Page { size: PAGE, token }).await?;
        for row in listed.items.iter().filter(|row| row.holds_fence() && row.database != now) {
            let done = match (&row.claim, &row.fenced) {
                (ClaimState::Owned, None) => {
                    stop(services, row, &now).await.map(|()| false).map_err(|error| error.problem().clone())
                }
                (_, Some(_)) => settle_open(services, row).await.map(|()| true),
                (_, None) => Ok(false),
            };
            all_here &= done.unwrap_or_else(|problem| {
                not_looked(&problem);
                false
            });
        }
        token = listed.next;
        if token.is_none() {
            return Ok(all_here.then_some(now));
        }
    }
}

/// Nothing is admitted from here on, until a take-over.
async fn stop(services: &Services, row: &PipelineRow, now: &DatabaseIdentity) -> Result<(), StoreError> {
    let caller = services.caller();
    let problem = another_database(row, now);
    let noted = (problem.reason, problem.message.clone());
    if services.store.note_difference((row.id, row.generation), Difference::Behind, problem, &caller).await? {
        tracing::warn!(pipeline.name = %row.spec.name, reason = %noted.0, "{}", noted.1);
    }
    if !is_promoted(&row.database, now) {
        return Ok(());
    }
    let ask = AdmitTakeOver {
        pipeline: row.id.into(),
        purpose: Purpose::Resync,
        chosen: None,
        request_id: None,
        seen: Some(row.generation),
        retry: services.options.retry,
    };
    match services.store.admit_take_over(ask, &caller).await {
        Ok(take_over) => {
            tracing::info!(pipeline.name = %row.spec.name, take_over.id = %take_over.id, "resync begun");
            Ok(())
        }
        // It is under way, or another replica was faster.
        Err(StoreError::Problem(problem)) if problem.reason == Reason::TakeOverInProgress => Ok(()),
        Err(error) => Err(error),
    }
}

/// A pipeline that lost its location is not taken over for, so its open round is settled by itself: by the base of who has the location now.
async fn settle_open(services: &Services, row: &PipelineRow) -> Result<(), Problem> {
    let filter = RoundFilter { pipeline: Some(row.id), active_only: true, kind: None };
    let open = services.store.list_rounds(filter, Page { size: 1, token: None }).await.map_err(Problem::from)?;
    let Some(record) = open.items.into_iter().next() else { return Ok(()) };
    let bucket = services.connector.connect(&record.round.location).await?;
    let base = fences::finish_base(bucket.as_ref(), record.round.generation.next()).await?;
    let (round, decision) = settling::by_base(services, bucket.as_ref(), record.round, base).await?;
    match services.store.apply_settled(&round, &decision, &services.caller()).await.map_err(Problem::from)? {
        Applied::Stored(_) => Ok(()),
        Applied::Moved | Applied::SourceRetired(_) => {
            Err(Problem::new(Reason::RoundInProgress, format!("round {} has moved", round.id)).with("round", round.id))
        }
    }
}

/// The same server on another timeline.
fn is_promoted(wrote: &DatabaseIdentity, now: &DatabaseIdentity) -> bool {
    wrote.database == now.database && wrote.system_identifier == now.system_identifier
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_protocol::id::DatabaseId;
    use uuid::Uuid;

    fn identity(database: u128, system_identifier: &str, timeline: u32) -> DatabaseIdentity {
        let database = DatabaseId::new(Uuid::from_u128(database));
        DatabaseIdentity { database, system_identifier: system_identifier.to_owned(), timeline }
    }

    #[test]
    fn only_another_timeline_of_the_same_server_is_a_promoted_replica() {
        let wrote = identity(1, "77", 1);
        assert!(is_promoted(&wrote, &identity(1, "77", 2)));
        assert!(!is_promoted(&wrote, &identity(1, "78", 1)), "restored into another server, or a copy");
        assert!(!is_promoted(&wrote, &identity(2, "77", 1)), "another database");
    }
}
