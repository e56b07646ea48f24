//! The look at every location when a replica starts: does the bucket agree with the database? (protocol.md, "Coordinators")
//!
//! A pipeline whose location was taken over is fenced in the database at once (F4), and a database that was restored from a backup, or lost rows when a replica
//! was promoted, is told of before anybody pushes into it. Nothing is written to the bucket and nothing rests on the look: each round's planning looks
//! again. A few locations at a time, so that neither the store nor the database notices a replica of a thousand pipelines that starts.

use std::sync::Arc;

use futures::{StreamExt, stream};
use lockstep_protocol::problem::{Problem, Reason};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::{
    plan::{
        PlanContext, Right,
        losses::{self, Found, Since},
        place::Place,
        taken_over::check_not_taken_over,
    },
    store::{Difference, Loss, Page, PipelineRow},
};

/// Locations at a time.
const PARALLEL: usize = 4;

/// Pipelines read at a time.
const PAGE: u32 = 100;

/// Looks at each location once, or until it is told to stop.
pub(super) async fn at_start(services: Arc<Services>, stop: CancellationToken) {
    stop.run_until_cancelled(compare_all(&services)).await;
}

/// Dropped at worst between two looks or within one: reads of the bucket, and a call of the store, which comes to its end by itself.
async fn compare_all(services: &Services) {
    let mut token = None;
    let (mut looked, mut strange) = (0_u64, 0_u64);
    loop {
        let listed = match services.store.list_pipelines(Page { size: PAGE, token }).await {
            Ok(listed) => listed,
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "locations are not compared with the database: {}", problem.message);
                return;
            }
        };
        let owned = listed.items.into_iter().filter(PipelineRow::is_owner);
        let looks: Vec<_> = owned.map(|row| look(services, row)).collect();
        let mut looks = stream::iter(looks).buffer_unordered(PARALLEL);
        while let Some(as_expected) = looks.next().await {
            looked += 1;
            strange += u64::from(!as_expected);
        }
        token = listed.next;
        if token.is_none() {
            tracing::info!(looked, strange, "locations compared with the database");
            return;
        }
    }
}

/// False: there is something to be said, and it was said.
async fn look(services: &Services, row: PipelineRow) -> bool {
    let context = PlanContext { right: Right::Read, ..services.plan_context() };
    let looked_again = async {
        let Some(loss) = &row.lost else { return Ok(()) };
        let place = Place::open(&context, &row.spec.location, Right::Read).await?.impatient();
        found_again(services, &place, &row, loss).await
    };
    if let Err(problem) = looked_again.await
        && let Some(loss) = &row.lost
    {
        tracing::warn!(
            pipeline.id = %row.id, pipeline.name = %row.spec.name, reason = %problem.reason,
            "whether checkpoint {} stands again could not be found out, the next start or collection looks again: {}", loss.commit.round, problem.message
        );
    }
    let outcome = compare(services, &context, &row).await;
    let label = outcome.as_ref().map_or_else(|problem| problem.reason.as_str(), |()| "as expected");
    metrics::counter!("lockstep_locations_compared_total", "outcome" => label).increment(1);
    let Err(problem) = outcome else { return true };
    let (pipeline, caller) = ((row.id, row.generation), services.caller());
    let noted = match problem.reason {
        Reason::Fenced => services.store.fence_out(row.id, row.generation, problem.clone(), &caller).await,
        Reason::DatabaseBehind => {
            services.store.note_difference(pipeline, Difference::Behind, problem.clone(), &caller).await
        }
        _ => Ok(false),
    };
    if let Err(error) = noted {
        let reason = error.problem().reason;
        tracing::warn!(%reason, "what was found is not noted, its next round will find it: {}", error.problem().message);
    }
    tracing::warn!(
        pipeline.id = %row.id, pipeline.name = %row.spec.name, reason = %problem.reason,
        "the bucket and the database differ, or that could not be found out: {}", problem.message
    );
    false
}

async fn compare(services: &Services, context: &PlanContext, row: &PipelineRow) -> Result<(), Problem> {
    let (location, generation) = (&row.spec.location, row.generation);
    let place = Place::open(context, location, Right::Read).await?.impatient();
    let about = |reason, what: String| {
        Problem::new(reason, format!("{location} of pipeline {}: {what}", row.spec.name))
            .with("pipeline", &row.spec.name)
            .with("location", location)
            .with("generation", generation)
    };
    check_not_taken_over(&place, row).await?;
    match place.newest().await?.greatest {
        Some(newest) if newest.generation == generation && newest.seq >= row.next_seq => {
            // The bucket first, *then* the database, as in G3: what this database has admitted since the row was read is in it by now.
            let now = services.store.get_pipeline(&row.id.into()).await?;
            if now.generation != generation || newest.seq < now.next_seq {
                return Ok(());
            }
            let what = format!(
                "{generation}-{} of round {} stands, the database expects none from {} on: it is behind",
                newest.seq, newest.round, row.next_seq
            );
            Err(about(Reason::DatabaseBehind, what).with("seq", newest.seq).with("next_seq", row.next_seq))
        }
        _ => {
            let Found { lost, unreadable, .. } = losses::compare(place.look(), &services.store, row).await?;
            let known = row.lost.as_ref().map(|loss| loss.commit);
            // What a collection has noted of it, which reads every document, says more.
            if known.is_some() && known == lost.first().map(|one| one.committed.commit) {
                return losses::refuse(row, &lost);
            }
            let noted = losses::note(&services.store, row, &lost, &services.caller()).await?;
            noted.or(unreadable).map_or(Ok(()), Err)
        }
    }
}

/// What was lost at an earlier look and stands as it was, since somebody has put it back, is not lost any more. Nor is one that was retired meanwhile.
async fn found_again(services: &Services, place: &Place, row: &PipelineRow, loss: &Loss) -> Result<(), Problem> {
    if losses::since(place.look(), &loss.commit).await? != Since::Stands {
        return Ok(());
    }
    let caller = services.caller();
    if services.store.found_again((row.id, row.generation), loss.commit, &caller).await? {
        let (key, name) = (loss.commit.key(), &row.spec.name);
        tracing::info!(pipeline.id = %row.id, pipeline.name = %name, key = %key, "a checkpoint that was lost stands again");
    }
    Ok(())
}

/// Before a collection, whose row is to be read again afterwards: what was put back holds nothing up any more. What is lost, and what whoever collects must find.
pub(super) async fn before_collecting(services: &Services, row: &PipelineRow) -> Result<Found, Problem> {
    let place = Place::open(&services.plan_context(), &row.spec.location, Right::Read).await?;
    if let Some(loss) = &row.lost {
        found_again(services, &place, row, loss).await?;
    }
    losses::compare(place.look(), &services.store, row).await
}
