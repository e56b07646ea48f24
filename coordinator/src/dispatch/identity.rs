//! Whether the database is the one that wrote the pipelines' fences (R13): after a fail-over to a replica, or a restore, rows may be missing, and nobody knows which.
//!
//! A pipeline whose row was written by another database does nothing but take its own location over; the base settles what was open. A later timeline of the same server
//! is a promoted replica or a recovery to a point in time, and the resync begins by itself. Another server or another database is a restored dump as well as a copy
//! for tests, which must not take the location of the living one: that resync somebody has to ask for (ADR 21).

use std::sync::Arc;

use lockstep_protocol::{
    problem::{Problem, Reason},
    takeover::Purpose,
};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::store::{AdmitTakeOver, ClaimState, DatabaseIdentity, Difference, Page, PipelineRow, StoreError};

/// Pipelines read at a time.
const PAGE: u32 = 100;

/// Looks which database this is, again and again, and at the pipelines whenever it is another one than before.
pub(super) async fn watch(services: Arc<Services>, shutdown: CancellationToken) {
    let mut settled: Option<DatabaseIdentity> = None;
    while !shutdown.is_cancelled() {
        match look(&services, settled.as_ref()).await {
            Ok(now) => settled = Some(now),
            Err(error) => {
                let problem = error.problem();
                tracing::debug!(reason = %problem.reason, "which database this is was not found out: {}", problem.message);
            }
        }
        shutdown.run_until_cancelled(tokio::time::sleep(services.options.lease)).await;
    }
}

async fn look(services: &Services, settled: Option<&DatabaseIdentity>) -> Result<DatabaseIdentity, StoreError> {
    let now = services.store.identity().await?;
    if settled == Some(&now) {
        return Ok(now);
    }
    let mut token = None;
    loop {
        let listed = services.store.list_pipelines(Page { size: PAGE, token }).await?;
        for row in listed.items.iter().filter(|row| row.claim == ClaimState::Owned && row.fenced.is_none()) {
            if row.database != now {
                stop(services, row, &now).await?;
            }
        }
        token = listed.next;
        if token.is_none() {
            return Ok(now);
        }
    }
}

/// Nothing is admitted from here on, until a take-over.
async fn stop(services: &Services, row: &PipelineRow, now: &DatabaseIdentity) -> Result<(), StoreError> {
    let caller = services.caller();
    let problem = another_database(row, now);
    tracing::warn!(pipeline.name = %row.spec.name, reason = %problem.reason, "{}", problem.message);
    services.store.note_difference((row.id, row.generation), Difference::Behind, problem, &caller).await?;
    if !is_promoted(&row.database, now) {
        return Ok(());
    }
    let ask = AdmitTakeOver {
        pipeline: row.id.into(),
        purpose: Purpose::Resync,
        request_id: None,
        retry: services.options.retry,
    };
    match services.store.admit_take_over(ask, &caller).await {
        Ok(take_over) => {
            tracing::info!(pipeline.name = %row.spec.name, take_over.id = %take_over.id, "resync begun");
            Ok(())
        }
        // Another replica was faster.
        Err(StoreError::Problem(problem)) if problem.reason == Reason::TakeOverInProgress => Ok(()),
        Err(error) => Err(error),
    }
}

/// The same server on another timeline.
fn is_promoted(wrote: &DatabaseIdentity, now: &DatabaseIdentity) -> bool {
    wrote.database == now.database && wrote.system_identifier == now.system_identifier
}

fn another_database(row: &PipelineRow, now: &DatabaseIdentity) -> Problem {
    let name = |identity: &DatabaseIdentity| {
        format!("{} (server {}, timeline {})", identity.database, identity.system_identifier, identity.timeline)
    };
    let (wrote, now) = (name(&row.database), name(now));
    Problem::new(
        Reason::DatabaseBehind,
        format!("its fence was written by database {wrote}, this is {now}: a backup or a replica, which may lack rows"),
    )
    .with("pipeline", &row.spec.name)
    .with("wrote", wrote)
    .with("database", now)
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
