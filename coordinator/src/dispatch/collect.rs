//! A collection carried out: what retention permits is retired (G1), what was retired is swept (G2), what nothing reaches is deleted (G3). Plans come from
//! [`crate::plan::garbage`]; carried out they stay right however late that is, and as often as it is repeated.

use std::collections::BTreeMap;

use lockstep_bucket::{MAX_DELETES, ObjectStore, Pace, StoreError, UploadId, WriteOutcome, garbage};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{Doomed, HeldUp, OpenUpload, Plan, TombstoneKnown},
    problem::{Problem, Retryable},
    upkeep::Upkeep,
};

use super::{Services, compare, left_pins, upkeep::Counting};
use crate::{
    plan::{
        BackOff,
        garbage::{Collector, Ground, NO_LIMITS, Survey, check_may_go, stays},
        losses::{self, Found},
        patiently,
    },
    store::{Marking, PipelineRow, refuse_lost},
};

/// Tries of one delete whose outcome is unknown, before it is put off.
const TRIES: u32 = 4;

/// How fast a collection may delete, and how much of it at once: no batch is larger than what a second permits.
struct Deletes {
    pace: Pace,
    batch: usize,
}

impl Deletes {
    fn at(per_second: u32) -> Self {
        let batch = usize::try_from(per_second).unwrap_or(MAX_DELETES).clamp(1, MAX_DELETES);
        Self { pace: Pace::new(u64::from(per_second)), batch }
    }

    async fn take(&self, deletes: usize) {
        self.pace.take(u64::try_from(deletes).unwrap_or(u64::MAX)).await;
    }
}

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
    let Found { lost, listed, .. } = compare::before_collecting(services, &row).await?;
    let collector = open(services, upkeep).await?.expecting(&row, listed);
    let (store, caller) = (&services.store, services.caller());
    if !lost.is_empty() {
        // Noted while its objects are still there. Whether or not that is taken: the newest may have been given up meanwhile, and the others are lost all the same.
        let lost = losses::together(lost, collector.look_for_missing().await?);
        losses::note(store, &row, &lost, &caller).await?;
        return losses::refuse(&row, &lost).map(|()| None);
    }
    let row = store.get_pipeline(&upkeep.pipeline.into()).await?;
    refuse_lost(&row)?;
    let collected = carried_out(services, &row, &collector, counting).await;
    losses::note(store, &row, &collector.missing(), &caller).await?;
    collected
}

async fn carried_out(
    services: &Services,
    row: &PipelineRow,
    collector: &Collector,
    counting: &Counting,
) -> Result<Option<Problem>, Problem> {
    let survey = collector.survey(row.spec.retention).await?;
    retire(services, collector, &survey, "retention permits it", counting).await?;
    let pace = Deletes::at(services.options.garbage.deletes_per_second);
    let sweep = collector.sweep(&[]).await?;
    reached(Point::SweepPlanned);
    let swept = carry_out(collector, &sweep, &pace, counting).await;
    let orphans = collector.orphans().await?;
    reached(Point::OrphansPlanned);
    let deleted = carry_out(collector, &orphans, &pace, counting).await;
    // Last: what a dry run foretold is what this collection did. The next one retires what they kept.
    left_pins::remove(services, collector.bucket(), &survey.pins).await;
    Ok(swept.or(deleted).or_else(|| collector.lost()))
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

/// Stage by stage; the next one begins when every delete of the one before was tried, without what belongs to an owner of which something is left. Why something was put off, if
/// anything was.
async fn carry_out(collector: &Collector, plan: &Plan, pace: &Deletes, counting: &Counting) -> Option<Problem> {
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
    let (mut held, mut gone) = (HeldUp::default(), 0);
    for stage in plan.stages() {
        let (due, waiting) = held.stage(stage);
        let left = delete_all(bucket, &due, pace, counting).await;
        for (doomed, error) in &left {
            held.left(doomed);
            why.get_or_insert_with(|| error.problem());
        }
        let put_off = u64::try_from(waiting + left.len()).unwrap_or(u64::MAX);
        counting.add(|tally| tally.put_off = tally.put_off.saturating_add(put_off));
        gone = u64::try_from(due.len().saturating_sub(left.len())).unwrap_or(u64::MAX);
        if !due.is_empty() {
            reached(Point::StageDeleted);
        }
    }
    // Commit objects are the last stage.
    counting.add(|tally| tally.swept = tally.swept.saturating_add(gone));
    why
}

/// Batch by batch. Those that are put off, and why.
async fn delete_all<'p>(
    bucket: &dyn ObjectStore,
    stage: &[&'p Doomed],
    pace: &Deletes,
    counting: &Counting,
) -> Vec<(&'p Doomed, StoreError)> {
    let mut left = Vec::new();
    for batch in stage.chunks(pace.batch) {
        pace.take(batch.len()).await;
        reached(Point::DeleteBefore);
        let kept = delete_batch(bucket, batch).await;
        counting.add(|tally| {
            for doomed in batch.iter().filter(|doomed| !kept.contains_key(doomed.key.as_str())) {
                tally.objects = tally.objects.saturating_add(1);
                tally.bytes = tally.bytes.saturating_add(doomed.bytes);
            }
        });
        left.extend(batch.iter().filter_map(|&doomed| Some((doomed, kept.get(doomed.key.as_str())?.clone()))));
    }
    left
}

/// Why some of them are not known to be gone, by key. What may pass by itself is tried again, without those that are gone.
async fn delete_batch<'p>(bucket: &dyn ObjectStore, batch: &[&'p Doomed]) -> BTreeMap<&'p str, StoreError> {
    let mut back_off = BackOff::of_calls();
    let mut kept = BTreeMap::new();
    let mut due: Vec<&'p str> = batch.iter().map(|doomed| doomed.key.as_str()).collect();
    for tries in 1.. {
        let keys: Vec<String> = due.iter().map(|&key| key.to_owned()).collect();
        let mut again = Vec::new();
        for (key, outcome) in due.into_iter().zip(bucket.delete_many(&keys).await) {
            match outcome.done() {
                Err(error) if tries < TRIES && error.problem().retryable() == Retryable::Yes => again.push(key),
                Err(error) => drop(kept.insert(key, error)),
                Ok(()) => {}
            }
        }
        if again.is_empty() {
            break;
        }
        due = again;
        back_off.pause().await;
    }
    kept
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

#[cfg(test)]
mod tests {
    use lockstep_bucket::{
        MemoryBuckets, Operation,
        memory::fault::{Fault, FaultRule},
    };
    use lockstep_protocol::id::RoundId;

    use super::*;

    fn doomed(key: &str) -> Doomed {
        Doomed { key: key.to_owned(), bytes: 10, owners: vec![RoundId::new(uuid::Uuid::nil())] }
    }

    #[test]
    fn no_batch_is_larger_than_what_a_second_permits_or_a_store_takes() {
        let batches = [0, 1, 200, 1000, 5000].map(|per_second| Deletes::at(per_second).batch);
        assert_eq!(batches, [1, 1, 200, 1000, 1000]);
    }

    #[tokio::test]
    async fn of_a_batch_what_is_refused_stays_and_what_failed_in_passing_is_tried_again() {
        let buckets = MemoryBuckets::new(["acme"]);
        let store = buckets.store("s3://acme/p".parse().unwrap());
        let all = ["a", "locked", "busy", "b"].map(doomed);
        for doomed in &all {
            buckets.tamper("acme", &format!("p/{}", doomed.key), Some(bytes::Bytes::from_static(b"x")));
        }
        buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Delete).key("locked"));
        buckets.inject(FaultRule::new(Fault::FailBefore).operation(Operation::Delete).key("busy").times(1));
        buckets.inject(FaultRule::new(Fault::LoseAnswer).operation(Operation::DeleteMany).times(1));
        let (counting, pace) = (Counting::default(), Deletes::at(1000));
        let left = delete_all(&store, &all.iter().collect::<Vec<_>>(), &pace, &counting).await;
        let left: Vec<&str> = left.iter().map(|(doomed, _)| doomed.key.as_str()).collect();
        assert_eq!(left, ["locked"]);
        assert_eq!(buckets.keys("acme", ""), ["p/locked"]);
        assert_eq!((counting.so_far().objects, counting.so_far().bytes), (3, 30));
    }
}
