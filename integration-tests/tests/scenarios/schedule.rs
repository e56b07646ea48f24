//! Scenarios 5, 6 and 9: pushes that nobody asks for.

use std::time::Duration;

use lockstep_client::v1::{self, RoundPhase, RoundTrigger};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key, client_of},
    wait,
};

const INTERVAL: Duration = Duration::from_secs(2);

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("{} {step}", host.idx).as_bytes())]);
    }
}

async fn periodic_cluster() -> Cluster {
    let cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    let spec = v1::PipelineSpec { push_interval: Some(INTERVAL.try_into().unwrap()), ..cluster.spec(PIPELINE) };
    let pipeline = cluster.client.create_pipeline(spec).await.unwrap();
    assert_eq!(pipeline.warnings, Vec::<String>::new());
    cluster
}

async fn rounds(cluster: &Cluster) -> Vec<v1::Round> {
    let filter = v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let mut rounds = cluster.client.list_rounds(filter, 1000).await.unwrap();
    rounds.sort_by_key(|round| round.round_no);
    rounds
}

async fn committed_step(cluster: &Cluster, step: u64) -> v1::Round {
    wait::until(&format!("step {step} is committed by itself"), || async {
        let rounds = rounds(cluster).await;
        let found = rounds.iter().find(|round| round.step == Some(step) && round.phase() == RoundPhase::Committed);
        found.cloned().ok_or_else(|| format!("{} rounds", rounds.len()))
    })
    .await
}

fn moment(time: Option<&prost_types::Timestamp>) -> Duration {
    let time = time.unwrap();
    Duration::new(time.seconds.unsigned_abs(), time.nanos.unsigned_abs())
}

/// Waits until the schedule has looked at the hosts at least once more and found nothing to do.
async fn looked_again(cluster: &Cluster) {
    let next = async || {
        let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
        pipeline.push_schedule.and_then(|schedule| schedule.next_time)
    };
    let before = next().await;
    wait::until("the schedule looks again", || async {
        let now = next().await;
        if now.is_some() && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_pipeline_is_pushed_by_itself_from_the_end_of_the_last_push_and_only_what_is_new() {
    let mut cluster = periodic_cluster().await;
    // Nothing to push yet: no round, no failure.
    looked_again(&cluster).await;
    assert_eq!(rounds(&cluster).await, Vec::new());

    checkpoint_all(&cluster, 10);
    let first = committed_step(&cluster, 10).await;
    assert_eq!(first.trigger(), RoundTrigger::Periodic);

    // A second replica changes nothing: each pipeline is looked at by one at a time.
    let (_replica, other) =
        cluster.another_coordinator("second", "127.0.0.1:0", &format!("{COORDINATOR_KEY}-secret")).await;
    looked_again(&cluster).await;
    looked_again(&cluster).await;
    assert_eq!(rounds(&cluster).await.len(), 1, "an unchanged step is not pushed");

    checkpoint_all(&cluster, 20);
    let second = committed_step(&cluster, 20).await;
    checkpoint_all(&cluster, 30);
    let third = committed_step(&cluster, 30).await;
    let between = moment(third.create_time.as_ref()) - moment(second.end_time.as_ref());
    assert!(between >= INTERVAL, "{between:?} from the end of one push to the next");

    // The schedule outlives the coordinator that kept it.
    cluster.kill_coordinator();
    cluster.client = client_of(&format!("http://{other}"));
    checkpoint_all(&cluster, 40);
    committed_step(&cluster, 40).await;
    let rounds = rounds(&cluster).await;
    assert_eq!(rounds.iter().map(|round| round.step).collect::<Vec<_>>(), [Some(10), Some(20), Some(30), Some(40)]);
    assert!(rounds.iter().all(|round| round.trigger() == RoundTrigger::Periodic));
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_look_between_the_checkpoints_of_two_hosts_is_told_and_makes_no_round() {
    let cluster = periodic_cluster().await;
    cluster.hosts[0].checkpoint(10, &[("state.bin", b"0 10")]);
    let told = wait::until("the schedule tells what the hosts hold", || async {
        let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
        pipeline.push_schedule.and_then(|schedule| schedule.problem).ok_or("no problem")
    })
    .await;
    assert_eq!((told.reason.as_str(), told.metadata["host0_steps"].as_str()), ("NO_COMMON_CHECKPOINT", "10"));
    assert_eq!(told.metadata["host1_steps"], "none");

    for host in &cluster.hosts[1..] {
        host.checkpoint(10, &[("state.bin", format!("{} 10", host.idx).as_bytes())]);
    }
    let pushed = committed_step(&cluster, 10).await;
    assert_eq!(rounds(&cluster).await.iter().map(|round| &round.id).collect::<Vec<_>>(), [&pushed.id]);
    let schedule = cluster.client.get_pipeline(PIPELINE).await.unwrap().push_schedule.unwrap();
    assert_eq!((schedule.failures, schedule.problem), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn s06_a_push_by_hand_while_a_periodic_one_runs_is_refused_and_names_it() {
    let cluster = periodic_cluster().await;
    // Held at the first object until the fault is lifted.
    let held = cluster.s3.faults().add(FaultRule::new(FaultAction::Hang).access_key(agent_key(1)));
    checkpoint_all(&cluster, 10);
    let running = wait::until("the periodic push runs", || async {
        let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
        pipeline.active_round.ok_or("no active round")
    })
    .await;
    assert_eq!(running.trigger(), RoundTrigger::Periodic);
    let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let refused = cluster.client.start_push(request).await.unwrap_err();
    let problem = refused.problem().unwrap();
    assert_eq!(problem.reason, "ROUND_IN_PROGRESS");
    assert_eq!((&problem.metadata["round"], problem.metadata["trigger"].as_str()), (&running.id, "periodic"));
    assert!(refused.to_string().contains("periodic push round"), "{refused}");
    assert!(cluster.s3.faults().remove(held));
    committed_step(&cluster, 10).await;

    checkpoint_all(&cluster, 20);
    let request = || v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let by_hand = wait::until("no periodic push runs", || cluster.client.start_push(request())).await;
    let by_hand = cluster.client.wait_round(&by_hand.id).await.unwrap();
    assert_eq!(by_hand.phase(), RoundPhase::Committed, "{:?}", by_hand.problem);
    // Whoever was first: the status says which.
    let listed = rounds(&cluster).await;
    assert!(listed.iter().any(|round| round.id == by_hand.id && round.trigger() == by_hand.trigger()));
    assert_ne!(by_hand.trigger(), RoundTrigger::Unspecified);
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_a_periodic_push_with_a_wrong_secret_shows_cause_and_next_attempt_and_backs_off() {
    let mut cluster = periodic_cluster().await;
    cluster.kill_agent(1);
    let identity: Vec<String> = ["--host-idx", "1", "--n-hosts", "3"].iter().map(|&s| s.to_owned()).collect();
    cluster.start_agent_as(1, &identity, &[], "not-the-secret").await;
    checkpoint_all(&cluster, 10);
    let schedule = wait::until("the periodic push has failed twice", || async {
        let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
        assert_eq!(pipeline.last_committed_step, None, "the status never shows that push as done");
        let schedule = pipeline.push_schedule.unwrap_or_default();
        if schedule.failures >= 2 && schedule.next_time.is_some() { Ok(schedule) } else { Err(schedule.failures) }
    })
    .await;
    let problem = schedule.problem.unwrap();
    assert_eq!(problem.reason, "STORE_DENIED");
    for value in ["SignatureDoesNotMatch", "403", BUCKET] {
        assert!(problem.message.contains(value), "{value} is not in {}", problem.message);
    }
    let rounds = rounds(&cluster).await;
    assert!(rounds.iter().all(|round| round.trigger() == RoundTrigger::Periodic), "{rounds:?}");
    // The next attempt may have begun, and ended, since the status was read.
    let next = moment(schedule.next_time.as_ref());
    let over = |round: &&v1::Round| round.end_time.is_some() && moment(round.end_time.as_ref()) < next;
    let failed = rounds.iter().rfind(over).unwrap();
    assert_eq!(failed.phase(), RoundPhase::Failed);
    let wait = moment(schedule.next_time.as_ref()) - moment(failed.end_time.as_ref());
    assert!(wait > INTERVAL, "after two failures the next attempt is {wait:?} later: it backs off");

    cluster.kill_agent(1);
    cluster.start_agent(1).await;
    committed_step(&cluster, 10).await;
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    let schedule = pipeline.push_schedule.unwrap();
    assert_eq!((schedule.failures, schedule.problem), (0, None));
}
