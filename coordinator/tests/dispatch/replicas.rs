//! More than one replica, and replicas that die.

use std::time::Duration;

use lockstep_coordinator::dispatch::DispatchOptions;
use lockstep_protocol::{
    fence::{Fence, FenceBase, Writer},
    id::Generation,
    key::Key,
    problem::Reason,
    round::Phase,
};

use crate::{
    agent::Play,
    rig::{Rig, uuid},
};

const EVEN: [&[u64]; 3] = [&[4], &[4], &[4]];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replicas_round_is_finished_by_another_with_a_higher_term() {
    let rig = Rig::new(EVEN).await;
    let first = rig.replica("first");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Hold]);
    let round = rig.start_push(&pipeline).await;
    rig.agents[0].called("push").await;
    let term = rig.agents[0].term();
    drop(first);
    let _second = rig.replica("second");
    rig.until(round, |record| record.lease_owner.as_deref() == Some("second")).await;
    rig.agents[0].release();
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    assert!(record.round.term.get() > term);
    // The transfer went on meanwhile: no attempt was lost with the replica.
    assert!(record.round.participants.iter().all(|participant| participant.attempt.get() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_told_to_stop_hands_its_rounds_over_at_once() {
    let rig = Rig::new(EVEN).await;
    let first = rig.replica("first");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Hold]);
    let round = rig.start_push(&pipeline).await;
    rig.agents[0].called("push").await;
    first.stop().await;
    assert_eq!(rig.store.get_round(round).await.unwrap().lease_owner, None);
    let _second = rig.replica("second");
    rig.agents[0].release();
    assert_eq!(rig.ended(round).await.round.phase, Phase::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_rounds_and_none_is_driven_twice() {
    let rig = Rig::new(EVEN).await;
    // No lease lapses while the machine is busy: who claims then does so by right.
    let lease = Duration::from_secs(60);
    let replica = |name| rig.replica_with(DispatchOptions { lease, ..Rig::options(name) });
    let _replicas = [replica("first"), replica("second")];
    let pipeline = rig.pipeline("orders").await;
    for _ in 0..5 {
        let record = rig.ended(rig.start_push(&pipeline).await).await;
        assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
        assert_eq!(record.round.term.get(), 1);
    }
    assert_eq!(rig.overwritten(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_outlives_a_database_that_drops_every_connection() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[1].plays([Play::Hold]);
    let round = rig.start_push(&pipeline).await;
    rig.agents[1].called("push").await;
    let cut = async || {
        let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(rig.database.url()).await.unwrap();
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .execute(&mut connection)
        .await
        .unwrap();
    };
    cut().await;
    rig.agents[1].release();
    cut().await;
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_finds_out_whose_location_was_taken_over_meanwhile() {
    let rig = Rig::new(EVEN).await;
    let first = rig.replica("first");
    let pipeline = rig.pipeline("orders").await;
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    first.stop().await;
    // While nobody looks, somebody else takes the location over, after that commit.
    let last = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap().last_commit.unwrap();
    let taken = Generation::FIRST.next();
    let fence = Fence {
        generation: taken,
        pipeline: uuid().parse().unwrap(),
        pipeline_name: pipeline.spec.name.clone(),
        writer: Writer::Direct,
        take_over: uuid().parse().unwrap(),
        created_at: chrono::Utc::now(),
        released: false,
    };
    let base = FenceBase { generation: taken, newest: Some(last.commit), tombstones: Vec::new() };
    for (key, bytes) in [(Key::Fence(taken), fence.encode()), (Key::FenceBase(taken), base.encode())] {
        rig.buckets.tamper("acme", &Rig::location().full_key(&key.to_string()), Some(bytes.into()));
    }
    let mut changes = rig.store.changes();
    let _second = rig.replica("second");
    let fenced = async {
        loop {
            if let Some(problem) = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap().fenced {
                return problem;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
        }
    };
    let problem = tokio::time::timeout(Duration::from_secs(60), fenced).await.expect("it is found out");
    assert_eq!((problem.reason, problem.metadata["newer_generation"].as_str()), (Reason::Fenced, "2"));
}
