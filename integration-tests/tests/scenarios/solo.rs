//! A solo pipeline with a coordinator: everything a pipeline of many hosts can do, below `solo/`.

use std::time::Duration;

use lockstep_client::v1::{self, RoundPhase, RoundTrigger};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key, client_of},
    wait,
};

const HEIR: &str = "heir";

fn checkpoint(cluster: &Cluster, step: u64) {
    cluster.hosts[0].checkpoint(step, &[("state.bin", format!("solo at step {step}").as_bytes())]);
}

async fn committed(cluster: &Cluster, step: u64) -> v1::Round {
    wait::until(&format!("step {step} is committed by itself"), || async {
        let filter = v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
        let rounds = cluster.client.list_rounds(filter, 1000).await.unwrap();
        let found = rounds.iter().find(|round| round.step == Some(step) && round.phase() == RoundPhase::Committed);
        found.cloned().ok_or_else(|| format!("{} rounds", rounds.len()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solo_pipeline_is_pushed_by_itself_restored_handed_to_another_replica_and_taken_over() {
    let mut cluster = Cluster::with(Options { hosts: 0, create: false, ..Options::default() }).await;
    let interval = Some(Duration::from_secs(1).try_into().unwrap());
    let spec = v1::PipelineSpec { push_interval: interval, ..cluster.spec(PIPELINE) };
    cluster.client.create_pipeline(spec).await.unwrap();
    checkpoint(&cluster, 10);
    let round = committed(&cluster, 10).await;
    assert_eq!((round.trigger(), round.participants.len()), (RoundTrigger::Periodic, 1));
    let keys = cluster.s3.admin().keys(BUCKET, "").unwrap();
    assert!(keys.iter().any(|key| key.starts_with("orders/solo/")), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("/host")), "{keys:?}");

    let ten = cluster.hosts[0].state();
    cluster.lose_disk(0).await;
    assert_eq!(cluster.pulled().await.step, Some(10));
    assert_eq!(cluster.hosts[0].state(), ten);

    // The coordinator dies in the middle of a push.
    let held = FaultRule::new(FaultAction::Hang).access_key(agent_key(0)).operation("PutObject");
    let held = cluster.s3.faults().add(held);
    checkpoint(&cluster, 20);
    let running = wait::until("the push runs", || async {
        let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
        pipeline.active_round.filter(|round| round.phase() == RoundPhase::Transferring).ok_or("no transfer yet")
    })
    .await;
    cluster.kill_coordinator();
    let secret = format!("{COORDINATOR_KEY}-secret");
    let (_replica, address) = cluster.another_coordinator("second", "127.0.0.1:0", &secret).await;
    cluster.client = client_of(&format!("http://{address}"));
    cluster.s3.faults().remove(held);
    let ended = cluster.client.wait_round(&running.id).await.unwrap();
    assert_eq!((ended.phase(), ended.step), (RoundPhase::Committed, Some(20)), "{:?}", ended.problem);

    // Another pipeline on the same location, a standby at first.
    let heir = v1::PipelineSpec {
        initial: v1::Initial::Standby.into(),
        location: Some(cluster.location(PIPELINE)),
        ..cluster.spec(HEIR)
    };
    cluster.client.create_pipeline(heir).await.unwrap();
    let twenty = cluster.hosts[0].state_of(cluster.hosts[0].checkpoints().pop().unwrap().parse().unwrap());
    cluster.kill_agent(0);
    cluster.hosts[0].wipe();
    let flags = ["--pipeline".to_owned(), HEIR.to_owned()];
    cluster.start_agent_as(0, &["--solo".to_owned()], &flags, &format!("{}-secret", agent_key(0))).await;
    // It also looks by itself, and one pull runs at a time.
    let pull = || v1::StartPullRequest { pipeline: HEIR.to_owned(), standby: Some(true), ..Default::default() };
    let pulled = wait::until("a pull is admitted", || cluster.client.start_pull(pull())).await;
    let pulled = cluster.client.wait_round(&pulled.id).await.unwrap();
    assert_eq!(pulled.phase(), RoundPhase::Installed, "{:?}", pulled.problem);
    assert_eq!(cluster.hosts[0].state(), twenty, "a standby restores what the owner acknowledged");
    let taken = v1::TakeOverRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    assert_eq!(cluster.client.take_over(taken).await.unwrap().generation, 2);
    checkpoint(&cluster, 30);
    let push = v1::StartPushRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let pushed = cluster.client.start_push(push).await.unwrap();
    let pushed = cluster.client.wait_round(&pushed.id).await.unwrap();
    assert_eq!((pushed.phase(), pushed.generation), (RoundPhase::Committed, 2), "{:?}", pushed.problem);
}
