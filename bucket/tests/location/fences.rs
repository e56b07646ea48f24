use lockstep_bucket::{
    Access, Claim, FenceOutcome, Lookup, ObjectStore as _, Operation, claim_first, finish_base, latest,
    list_checkpoints, location_owned,
    memory::fault::{Fault, FaultRule},
    owner, put_fence,
};
use lockstep_protocol::{
    commit::CommitRef,
    fence::{FenceBase, LocationFormat},
    key::Key,
    problem::{Reason, Retryable},
};

use crate::sample::{Place, base, commit_ref, fence, generation, name, pipeline, seq, tombstone};

#[tokio::test]
async fn an_empty_location_is_claimed_once() {
    let place = Place::new();
    assert_eq!(owner(&place.store).await, Lookup::Absent);
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::Mine));
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::Mine), "the same bytes again");
    assert_eq!(claim_first(&place.store, &fence(1, 2)).await, Ok(Claim::OwnedBy(fence(1, 1))));
    assert_eq!(place.read(&Key::Format).unwrap(), LocationFormat::current().encode());
    assert_eq!(owner(&place.store).await, Lookup::Found(fence(1, 1)));
}

#[tokio::test]
async fn a_claim_whose_answers_are_lost_is_mine_on_the_next_try() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::LoseAnswer).operation(Operation::Create).times(2));
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::Mine));
}

#[tokio::test]
async fn a_claim_that_is_still_under_way_is_retryable_and_its_late_landing_wins_nothing() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::LandLate).operation(Operation::Create).key("fences/").times(1));
    let problem = claim_first(&place.store, &fence(1, 1)).await.unwrap_err();
    assert_eq!(problem.retryable(), Retryable::Yes);
    assert_eq!(claim_first(&place.store, &fence(1, 2)).await, Ok(Claim::Mine));
    place.buckets.land_all();
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::OwnedBy(fence(1, 2))));
}

#[tokio::test]
async fn a_location_taken_over_since_belongs_to_the_highest_fence() {
    let place = Place::new();
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::Mine));
    assert_eq!(put_fence(&place.store, &fence(2, 2)).await, FenceOutcome::Mine);
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await, Ok(Claim::OwnedBy(fence(2, 2))));
}

#[tokio::test]
async fn an_owned_location_names_both_pipelines() {
    let place = Place::new();
    let problem = location_owned(place.store.location(), pipeline(7), &name("mine"), &fence(3, 2));
    assert_eq!(problem.reason, Reason::LocationOwned);
    for part in ["pipeline-2", &pipeline(2).to_string(), "mine", &pipeline(7).to_string(), "s3://bucket/orders"] {
        assert!(problem.message.contains(part), "{} lacks {part}", problem.message);
    }
}

#[tokio::test]
async fn a_newer_format_is_refused_before_anything_is_written() {
    let place = Place::new();
    place.write(&Key::Format, "{\"format\":2,\"kind\":\"location\",\"features\":[]}");
    let problem = claim_first(&place.store, &fence(1, 1)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::ManifestInvalid);
    assert_eq!(place.read(&Key::Fence(generation(1))), None);
}

#[tokio::test]
async fn a_refused_listing_is_no_empty_location() {
    let place = Place::new();
    place.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::List));
    assert_eq!(claim_first(&place.store, &fence(1, 1)).await.unwrap_err().reason, Reason::StoreDenied);
    assert!(matches!(owner(&place.store).await, Lookup::Unknown(problem) if problem.reason == Reason::StoreDenied));
    assert_eq!(place.buckets.keys("bucket", ""), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_fence_between_others_is_found_out() {
    let place = Place::new();
    place.fence(1);
    place.fence(3);
    assert!(
        matches!(owner(&place.store).await, Lookup::Unknown(problem) if problem.reason == Reason::LocationUnsuitable)
    );
}

#[tokio::test]
async fn two_takers_never_both_own_a_generation() {
    let place = Place::new();
    place.fence(1);
    assert_eq!(put_fence(&place.store, &fence(2, 5)).await, FenceOutcome::Mine);
    assert_eq!(put_fence(&place.store, &fence(2, 6)).await, FenceOutcome::Lost(fence(2, 5)));
    assert_eq!(put_fence(&place.store, &fence(2, 5)).await, FenceOutcome::Mine);
}

#[tokio::test]
async fn a_base_names_the_greatest_commit_past_aborts_and_passes_on_what_was_before() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 2);
    place.commit(1, 3);
    place.abort(1, 4);
    place.fence(2);
    assert_eq!(finish_base(&place.store, generation(2)).await, Ok(base(2, Some(commit_ref(1, 3)))));
    // Generation 2 committed nothing: what it started from is still the newest.
    place.abort(2, 1);
    place.fence(3);
    assert_eq!(finish_base(&place.store, generation(3)).await, Ok(base(3, Some(commit_ref(1, 3)))));
}

#[tokio::test]
async fn a_base_over_nothing_names_nothing() {
    let place = Place::new();
    place.fence(1);
    place.fence(2);
    assert_eq!(finish_base(&place.store, generation(2)).await, Ok(base(2, None)));
}

#[tokio::test]
async fn the_base_that_stands_is_obeyed_not_the_own_value() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 2);
    place.fence_with_base(2, Some(commit_ref(1, 2)));
    place.commit(1, 3);
    assert_eq!(finish_base(&place.store, generation(2)).await, Ok(base(2, Some(commit_ref(1, 2)))));
}

#[tokio::test]
async fn a_base_is_not_written_before_its_fence() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 2);
    assert!(finish_base(&place.store, generation(2)).await.is_err());
    assert_eq!(place.read(&Key::FenceBase(generation(2))), None);
}

#[tokio::test]
async fn a_missing_base_below_is_finished_first() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 2);
    place.fence(2);
    place.fence(3);
    assert_eq!(finish_base(&place.store, generation(3)).await, Ok(base(3, Some(commit_ref(1, 2)))));
    assert_eq!(place.read(&Key::FenceBase(generation(2))).unwrap(), base(2, Some(commit_ref(1, 2))).encode());
}

#[tokio::test]
async fn a_base_lists_the_tombstones_that_count_and_only_those() {
    let place = Place::new();
    place.fence(1);
    for s in 1..=4 {
        place.commit(1, s);
    }
    place.retire(1, 1, 1);
    place.fence(2);
    let first = finish_base(&place.store, generation(2)).await.unwrap();
    assert_eq!(first.tombstones, vec![tombstone(1, 1, 1).reference()]);
    // Too late, by the old owner; and one by the new owner.
    place.retire(1, 2, 1);
    place.retire(1, 3, 2);
    place.fence(3);
    let second = finish_base(&place.store, generation(3)).await.unwrap();
    let expected = vec![tombstone(1, 1, 1).reference(), tombstone(1, 3, 2).reference()];
    assert_eq!(second, FenceBase { tombstones: expected, ..base(3, Some(commit_ref(1, 4))) });
}

#[tokio::test]
async fn a_commit_that_cant_be_read_is_named_by_its_place_and_stays_what_it_is() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 2);
    place.write(&Key::Commit(generation(1), seq(3)), "no commit");
    place.fence(2);
    let named = CommitRef::unreadable(generation(1), seq(3), b"no commit");
    assert_eq!(finish_base(&place.store, generation(2)).await.unwrap(), base(2, Some(named)));
    let reason = async |access| match latest(&place.store, access).await {
        Lookup::Unknown(problem) => problem.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(Access::ReadOnly).await, Reason::ManifestInvalid, "nothing older in silence");
    // The new owner gives it up, and what was before it counts.
    place.mark_damaged(1, 3);
    match latest(&place.store, Access::Own).await {
        Lookup::Found(older) => assert_eq!(older.commit, commit_ref(1, 2)),
        other => panic!("{other:?}"),
    }
    // Brought back now, it is not what the base names, and stays given up.
    place.commit(1, 3);
    assert!(list_checkpoints(&place.store, Access::Own, 1).await.unwrap()[0].damaged());
}

#[tokio::test]
async fn an_unreadable_listing_leaves_the_base_unwritten() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 3);
    place.fence(2);
    for folder in ["commits/", "retired/"] {
        place.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::List).key(folder));
        assert_eq!(finish_base(&place.store, generation(2)).await.unwrap_err().reason, Reason::StoreDenied);
        place.buckets.calm();
    }
    assert_eq!(place.read(&Key::FenceBase(generation(2))), None);
}
