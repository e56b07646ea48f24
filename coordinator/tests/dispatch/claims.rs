//! Locations of new pipelines.

use lockstep_bucket::{
    MemoryBuckets, Operation,
    memory::{
        Flaws,
        fault::{Fault, FaultRule},
    },
};
use lockstep_coordinator::store::{ClaimState, PipelineRow};
use lockstep_protocol::{
    id::Generation,
    key::Key,
    problem::{Problem, Reason},
};

use crate::rig::Rig;

fn refused(row: &PipelineRow) -> &Problem {
    match &row.claim {
        ClaimState::Refused(problem) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owned_location_is_refused_naming_both_and_its_owner_is_undisturbed() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let _replica = rig.replica("one");
    rig.pipeline("orders").await;
    let before = rig.buckets.read("acme", &Rig::location().full_key(&Key::Fence(Generation::FIRST).to_string()));
    // Of another database: this one would refuse the place by itself.
    let other = Rig::new([&[4], &[4], &[4]]).await;
    let other = Rig { buckets: rig.buckets.clone(), ..other };
    let _other_replica = other.replica("two");
    let row = other.pipeline("payments").await;
    let problem = refused(&row);
    assert_eq!(problem.reason, Reason::LocationOwned);
    assert!(problem.message.contains("orders") && problem.message.contains("payments"), "{}", problem.message);
    let after = rig.buckets.read("acme", &Rig::location().full_key(&Key::Fence(Generation::FIRST).to_string()));
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_overwrites_is_refused_before_any_fence() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let flawed = MemoryBuckets::new(["acme"]).with_flaws(Flaws { create_overwrites: true, ..Flaws::default() });
    let rig = Rig { buckets: flawed, ..rig };
    let _replica = rig.replica("one");
    assert_eq!(refused(&rig.pipeline("orders").await).reason, Reason::LocationUnsuitable);
    assert!(!rig.holds(&Key::Fence(Generation::FIRST)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_refused_at_once() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let rig = Rig { buckets: MemoryBuckets::new([]), ..rig };
    let _replica = rig.replica("one");
    let row = rig.pipeline("orders").await;
    assert_eq!(refused(&row).reason, Reason::StoreNotFound);
    assert_eq!(refused(&row).metadata["s3_code"], "NoSuchBucket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_fence_ends_as_ours() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    // The answer is lost and the first read after it is, too: nobody knows until the next try.
    rig.buckets.inject(FaultRule::new(Fault::LoseAnswer).operation(Operation::Create).key("/fences/").times(1));
    rig.buckets.inject(FaultRule::new(Fault::FailBefore).operation(Operation::Get).key("/fences/").times(1));
    let _replica = rig.replica("one");
    let row = rig.pipeline("orders").await;
    assert_eq!((&row.claim, row.generation), (&ClaimState::Owned, Generation::FIRST));
    assert!(row.claim_term.get() >= 2, "the first try could not know");
}
