//! A collection carried out: what retention permits is retired (G1), what was retired is swept (G2), what nothing reaches is deleted (G3). Plans come from
//! [`crate::plan::garbage`]; carried out they stay right however late that is, and as often as it is repeated.

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use lockstep_bucket::{ObjectStore, Pace, StoreError, UploadId, WriteOutcome, garbage};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{Doomed, OpenUpload, Plan, TombstoneKnown},
    problem::{Problem, Retryable},
    upkeep::Upkeep,
};

use super::{Services, upkeep::Counting};
use crate::{
    plan::{
        BackOff,
        garbage::{Collector, Ground, NO_LIMITS, Survey, check_may_go, stays},
        patiently,
    },
    store::Marking,
};

/// Deletes under way at once.
const PARALLEL: usize = 16;

/// Tries of one delete whose outcome is unknown, before it is put off.
const TRIES: u32 = 4;

async fn open(services: &Services, upkeep: &Upkeep) -> Result<Collector, Problem> {
    let ground = Ground {
        pipeline: upkeep.pipeline,
        location: upkeep.location.clone(),
        generation: upkeep.generation,
        grace: services.options.garbage.grace,
        patience: services.options.store_patience,
    };
    Collector::open(services.connector.as_ref(), &services.store, ground).await
}

/// The whole of it. A problem in an `Ok` is why something was put off.
pub(super) async fn collect(
    services: &Services,
    upkeep: &Upkeep,
    counting: &Counting,
) -> Result<Option<Problem>, Problem> {
    let row = services.store.get_pipeline(&upkeep.pipeline.into()).await?;
    let collector = open(services, upkeep).await?;
    let survey = collector.survey(row.spec.retention).await?;
    retire(services, &collector, &survey, "retention permits it", counting).await?;
    let pace = Pace::new(u64::from(services.options.garbage.deletes_per_second));
    let sweep = collector.sweep(&[]).await?;
    reached(Point::SweepPlanned);
    let swept = carry_out(&collector, &sweep, &pace, counting).await;
    let orphans = collector.orphans().await?;
    reached(Point::OrphansPlanned);
    let deleted = carry_out(&collector, &orphans, &pace, counting).await;
    Ok(swept.or(deleted))
}

/// `DeleteCheckpoint`: past `min_age` and `min_count`, and nothing else.
pub(super) async fn retire_one(
    services: &Services,
    upkeep: &Upkeep,
    commit: &CommitRef,
    counting: &Counting,
) -> Result<(), Problem> {
    let collector = open(services, upkeep).await?;
    let mut survey = collector.survey(Some(NO_LIMITS)).await?;
    if survey.decisions.landed.iter().any(|landed| landed.commit() == *commit) {
        // By an earlier try.
        return Ok(());
    }
    check_may_go(&survey, commit)?;
    survey.candidates.retire.retain(|candidate| candidate == commit);
    let done = retire(services, &collector, &survey, "somebody asked to delete it", counting).await?;
    if done.contains(commit) {
        return Ok(());
    }
    Err(stays(commit, "it has become the base or source of a round, or is pinned"))
}

/// G1: marks under the lock, with the bytes of the tombstones; only then they are put, until it is known what stands at their keys. Those are told that are retired now.
async fn retire(
    services: &Services,
    collector: &Collector,
    survey: &Survey,
    cause: &str,
    counting: &Counting,
) -> Result<Vec<CommitRef>, Problem> {
    let ground = collector.ground();
    let marking = Marking {
        pipeline: ground.pipeline,
        generation: ground.generation,
        candidates: survey.candidates.clone(),
        since: survey.since,
        caller: services.caller(),
        cause: cause.to_owned(),
    };
    reached(Point::RetireBeforeMark);
    let open = services.store.mark_retired(marking).await?;
    reached(Point::RetireMarked);
    let mut done = Vec::new();
    for retiring in open {
        let commit = retiring.tombstone().commit;
        let (bucket, one) = (collector.bucket(), &retiring);
        let known = patiently(ground.patience, || garbage::put_tombstone(bucket, one, ground.generation)).await?;
        reached(Point::TombstoneAfterPut);
        match known {
            TombstoneKnown::Landed(_) => {
                services.store.retirement_landed(ground.pipeline, commit).await?;
                counting.add(|tally| tally.retired = tally.retired.saturating_add(1));
                tracing::info!(checkpoint = %commit.round, "retired");
                done.push(commit);
            }
            TombstoneKnown::Occupied => services.store.take_mark_back(ground.pipeline, commit).await?,
            // Read right after it was said to exist: it may be seen at the next collection.
            TombstoneKnown::Unknown => {
                tracing::info!(checkpoint = %commit.round, "whether it is retired is not known yet");
            }
        }
        reached(Point::TombstoneStored);
    }
    Ok(done)
}

/// Stage by stage; the next one begins only when every delete of the one before is known done. Why something was put off, if anything was.
async fn carry_out(collector: &Collector, plan: &Plan, pace: &Pace, counting: &Counting) -> Option<Problem> {
    let bucket = collector.bucket();
    let mut why = None;
    for upload in &plan.uploads {
        pace.take(1).await;
        match until_known(|| abort(bucket, upload)).await {
            Ok(()) => counting.add(|tally| tally.uploads = tally.uploads.saturating_add(1)),
            Err(error) => {
                counting.add(|tally| tally.put_off = tally.put_off.saturating_add(1));
                why.get_or_insert(error.problem());
            }
        }
    }
    let mut stages = plan.stages().into_iter();
    for stage in stages.by_ref() {
        let failed = delete_all(bucket, stage, pace, counting).await;
        if let Some(error) = failed {
            why.get_or_insert(error.problem());
            break;
        }
        if !stage.is_empty() {
            reached(Point::StageDeleted);
        }
    }
    let swept = if why.is_none() { plan.commits.len() } else { 0 };
    let left = stages.map(<[Doomed]>::len).sum::<usize>();
    counting.add(|tally| {
        tally.swept = tally.swept.saturating_add(u64::try_from(swept).unwrap_or(u64::MAX));
        tally.put_off = tally.put_off.saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
    });
    why
}

/// A few at a time. The first error of those that were put off.
async fn delete_all(
    bucket: &dyn ObjectStore,
    stage: &[Doomed],
    pace: &Pace,
    counting: &Counting,
) -> Option<StoreError> {
    // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
    let deletes: Vec<BoxFuture<'_, Option<StoreError>>> = stage
        .iter()
        .map(|doomed| {
            async move {
                pace.take(1).await;
                reached(Point::DeleteBefore);
                match until_known(|| async { bucket.delete(&doomed.key).await }).await {
                    Ok(()) => {
                        counting.add(|tally| {
                            tally.objects = tally.objects.saturating_add(1);
                            tally.bytes = tally.bytes.saturating_add(doomed.bytes);
                        });
                        None
                    }
                    Err(error) => {
                        counting.add(|tally| tally.put_off = tally.put_off.saturating_add(1));
                        Some(error)
                    }
                }
            }
            .boxed()
        })
        .collect();
    let mut results = futures::stream::iter(deletes).buffer_unordered(PARALLEL);
    let mut first = None;
    while let Some(result) = results.next().await {
        first = first.or(result);
    }
    first
}

async fn abort(bucket: &dyn ObjectStore, upload: &OpenUpload) -> WriteOutcome {
    bucket.abort_multipart(&upload.key, &UploadId(upload.upload.clone())).await
}

/// What is refused, by an object lock or missing rights, means later, as does what stays unknown.
async fn until_known<F>(mut delete: impl FnMut() -> F) -> Result<(), StoreError>
where
    F: Future<Output = WriteOutcome>,
{
    let mut back_off = BackOff::of_calls();
    let mut tries = 1;
    loop {
        match delete().await.done() {
            Err(error) if tries < TRIES && error.problem().retryable() == Retryable::Yes => {
                tries += 1;
                back_off.pause().await;
            }
            outcome => return outcome,
        }
    }
}
