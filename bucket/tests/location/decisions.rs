use bytes::Bytes;
use lockstep_bucket::{
    DecisionOutcome, MemoryStore, Operation, StoreErrorKind, acknowledge,
    memory::fault::{Fault, FaultRule},
    put_decision, successor,
};
use lockstep_protocol::{
    digest::Digest,
    fence::{Counts, Successor},
    key::Key,
    problem::Reason,
};

use crate::sample::{Place, abort, base, commit, commit_bytes, commit_ref, generation, round, seq};

async fn put_commit(store: &MemoryStore) -> DecisionOutcome {
    put_decision(store, (generation(1), seq(4)), commit_bytes(1, 4), round(1, 4)).await
}

async fn put_abort(store: &MemoryStore) -> DecisionOutcome {
    put_decision(store, (generation(1), seq(4)), Bytes::from(abort(1, 4).encode()), round(1, 4)).await
}

#[tokio::test]
async fn the_first_to_write_the_key_decides_for_both() {
    let place = Place::new();
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands);
    let late = DecisionOutcome::Committed { document: Box::new(commit(1, 4)), digest: Digest::of(&commit_bytes(1, 4)) };
    assert_eq!(put_abort(&place.store).await, late);

    let place = Place::new();
    assert_eq!(put_abort(&place.store).await, DecisionOutcome::Stands);
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Aborted(abort(1, 4)));
}

#[tokio::test]
async fn the_own_bytes_found_on_a_retry_stand() {
    let place = Place::new();
    for fault in [Fault::LoseAnswer, Fault::Duplicate] {
        place.buckets.inject(FaultRule::new(fault).operation(Operation::Create).times(1));
        assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands, "{fault:?}: the read tells");
        assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands, "{fault:?}: again");
    }
    place.buckets.land_all();
    assert_eq!(place.buckets.overwritten(), Vec::<String>::new());
}

#[tokio::test]
async fn an_abort_written_by_another_replica_is_an_abort() {
    let place = Place::new();
    let mut other = abort(1, 4);
    other.aborted_by = "another replica".to_owned();
    place.write(&other.key(), other.encode());
    assert_eq!(put_abort(&place.store).await, DecisionOutcome::Aborted(other));
}

#[tokio::test]
async fn what_names_another_round_is_never_mine() {
    let place = Place::new();
    place.commit(1, 4);
    let outcome = put_decision(&place.store, (generation(1), seq(4)), commit_bytes(1, 5), round(1, 5)).await;
    assert_eq!(outcome, DecisionOutcome::OtherRound { round: round(1, 4) });
}

#[tokio::test]
async fn a_timed_out_commit_that_lands_after_the_abort_changes_nothing() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::LandLate).operation(Operation::Create).times(1));
    assert!(matches!(put_commit(&place.store).await, DecisionOutcome::Unknown(_)));
    assert_eq!(put_abort(&place.store).await, DecisionOutcome::Stands);
    place.buckets.land_all();
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Aborted(abort(1, 4)));
}

#[tokio::test]
async fn a_timed_out_abort_that_lands_after_the_commit_changes_nothing() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::LandLate).operation(Operation::Create).times(1));
    assert!(matches!(put_abort(&place.store).await, DecisionOutcome::Unknown(_)));
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands);
    place.buckets.land_all();
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands);
}

#[tokio::test]
async fn nothing_is_refused_while_the_key_cannot_be_read() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::Deny));
    match put_commit(&place.store).await {
        DecisionOutcome::Unknown(error) => assert_eq!(error.kind, StoreErrorKind::Denied),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refused_try_still_finds_the_earlier_one_that_landed() {
    let place = Place::new();
    place.commit(1, 4);
    place.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Create));
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands);
    place.remove(&Key::Commit(generation(1), seq(4)));
    assert!(matches!(put_commit(&place.store).await, DecisionOutcome::Refused(_)));
}

#[tokio::test]
async fn a_conflict_is_tried_again() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::Conflict).operation(Operation::Create).times(1));
    assert!(matches!(put_commit(&place.store).await, DecisionOutcome::Unknown(_)));
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Stands);
}

#[tokio::test]
async fn a_tombstoned_key_is_retired_whatever_it_holds() {
    let place = Place::new();
    place.retire(1, 4, 1);
    place.commit(1, 4);
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Retired);
    assert_eq!(put_abort(&place.store).await, DecisionOutcome::Retired);
    place.remove(&Key::Commit(generation(1), seq(4)));
    place.buckets.inject(FaultRule::new(Fault::FailBefore).operation(Operation::Create).times(1));
    assert_eq!(put_commit(&place.store).await, DecisionOutcome::Retired, "swept in the meantime");
}

#[tokio::test]
async fn garbage_at_the_key_decides_nothing() {
    let place = Place::new();
    place.write(&Key::Commit(generation(1), seq(4)), "{\"kind\":\"commit\"}");
    match put_commit(&place.store).await {
        DecisionOutcome::Unreadable(problem) => assert_eq!(problem.reason, Reason::ManifestInvalid),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_successor_is_absent_alone_or_with_its_base() {
    let place = Place::new();
    place.fence(1);
    assert_eq!(successor(&place.store, generation(1)).await, Ok(Successor::Absent));
    place.fence(2);
    assert_eq!(successor(&place.store, generation(1)).await, Ok(Successor::FenceOnly));
    place.fence_with_base(2, Some(commit_ref(1, 3)));
    assert_eq!(successor(&place.store, generation(1)).await, Ok(Successor::Base(base(2, Some(commit_ref(1, 3))))));
}

#[tokio::test]
async fn a_fence_that_cannot_be_read_is_no_absent_fence() {
    let place = Place::new();
    place.fence(1);
    place.buckets.inject(FaultRule::new(Fault::Deny).key("fences/"));
    assert_eq!(successor(&place.store, generation(1)).await.unwrap_err().reason, Reason::StoreDenied);
}

#[tokio::test]
async fn a_commit_is_acknowledged_only_if_it_counts() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 4);
    assert_eq!(acknowledge(&place.store, generation(1), seq(4)).await, Ok(Counts::Yes));
    // The taker died after its fence: whoever acknowledges finishes the base, which includes what stands.
    place.fence(2);
    assert_eq!(acknowledge(&place.store, generation(1), seq(4)).await, Ok(Counts::Yes));
    assert!(place.read(&Key::FenceBase(generation(2))).is_some());
    // What lands after the base doesn't count any more.
    place.commit(1, 5);
    assert_eq!(acknowledge(&place.store, generation(1), seq(5)).await, Ok(Counts::No));
}
