//! Re-reading within the daily budget.

use std::time::{Duration, Instant};

use lockstep_bucket::memory::fault::{Fault, FaultRule};
use lockstep_coordinator::{
    dispatch::DispatchOptions,
    store::{UnderWay, Verification, VerificationsOf, VerifyBudget},
};
use lockstep_devkit::{
    FaultAction, FaultRule as ServerRule,
    s3::{S3Options, S3Server},
};
use lockstep_protocol::{commit::CommitRef, id::PipelineId, round::Phase, verification::Position};

use crate::rig::Rig;

async fn verified(rig: &Rig, pipeline: PipelineId, commit: CommitRef) -> Vec<Verification> {
    let of = VerificationsOf { pipeline, checkpoints: vec![commit.round], scope: None };
    rig.store.verifications(of).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_that_does_not_answer_holds_up_no_other_ones_re_reading() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let replica = rig.replica("one");
    let (silent, orders) =
        (rig.new_pipeline("silent", &"s3://acme/silent".parse().unwrap()), rig.pipeline("orders").await);
    let silent = rig.create(silent).await;
    let pushed = rig.ended(rig.start_push(&orders).await).await;
    assert_eq!(pushed.round.phase, Phase::Committed, "{:?}", pushed.round.problem);
    let commit = rig.store.get_pipeline(&orders.id.into()).await.unwrap().last_commit.unwrap().commit;
    replica.stop().await;

    // It was under way when its location went away.
    let budget = rig.store.claim_verify_budget("one", Duration::ZERO).await.unwrap().unwrap();
    let (position, problems) = (Position::default(), Vec::new());
    let started_at = rig.store.now().await.unwrap();
    let under_way = UnderWay { pipeline: silent.id, commit, position, bytes: 0, problems, started_at };
    let budget = VerifyBudget { under_way: Some(under_way), ..budget };
    assert!(rig.store.save_verify_budget(&budget, Duration::ZERO).await.unwrap().is_some());
    rig.buckets.inject(FaultRule::new(Fault::Deny).key("silent/"));

    let options = DispatchOptions { verify_bytes_per_day: 1 << 40, ..Rig::options("two") };
    let _replica = rig.replica_with(options);
    let waiting = async {
        while verified(&rig, orders.id, commit).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the other checkpoint is read");
    assert!(verified(&rig, orders.id, commit).await[0].finding.problems.is_empty());
    assert_eq!(verified(&rig, silent.id, commit).await, [], "what was not read is not judged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_takes_longer_than_a_lease_stays_with_its_replica_and_is_taken_over_once_that_is_killed() {
    let server = S3Server::start(S3Options { buckets: vec!["acme".to_owned()], ..S3Options::default() }).await.unwrap();
    let rig = Rig::on(&server, 1, 4).await;
    let replica = rig.replica("one");
    let orders = rig.pipeline("orders").await;
    let pushed = rig.ended(rig.start_push(&orders).await).await;
    assert_eq!(pushed.round.phase, Phase::Committed, "{:?}", pushed.round.problem);
    let commit = rig.store.get_pipeline(&orders.id.into()).await.unwrap().last_commit.unwrap().commit;
    replica.stop().await;

    let data = "orders/host0/";
    let hangs = server.faults().add(ServerRule::new(FaultAction::Hang).method("GET").key_prefix(data));
    server.clear_requests();
    let lease = Duration::from_secs(5);
    let reads = |name| DispatchOptions { verify_bytes_per_day: 1 << 40, lease, ..Rig::options(name) };
    let first = rig.replica_with(reads("one"));
    server.log().wait_for(1, |request| request.key.as_deref().is_some_and(|key| key.starts_with(data))).await;
    let until = Instant::now() + lease * 2;
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    while Instant::now() < until {
        looks.tick().await;
        assert_eq!(rig.store.claim_verify_budget("watcher", lease).await.unwrap(), None, "it is read still");
    }
    drop(first);
    server.faults().remove(hangs);
    let _second = rig.replica_with(reads("two"));
    let waiting = async {
        while verified(&rig, orders.id, commit).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    // It looks every five seconds.
    tokio::time::timeout(lease + Duration::from_secs(20), waiting).await.expect("the other replica reads on");
    assert!(verified(&rig, orders.id, commit).await[0].finding.problems.is_empty());
}
