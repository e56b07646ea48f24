//! Scenario 37, the part of SIGSTOP: who sleeps beyond its lease or its deadline does no harm when it wakes. kill -9 of agents in every phase: `--test kill`.

use lockstep_client::v1::{self, ParticipantPhase, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key, client_of},
    host::Host,
    wait,
};

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("a", format!("{} {step}", host.idx).as_bytes())]);
    }
}

async fn impatient() -> Cluster {
    Cluster::with(Options { unreachable_after: "3s", ..Options::default() }).await
}

fn commits(cluster: &Cluster) -> Vec<String> {
    cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap()
}

fn with_deadline(seconds: i64) -> v1::StartPushRequest {
    let deadline = Some(prost_types::Duration { seconds, nanos: 0 });
    v1::StartPushRequest { pipeline: PIPELINE.to_owned(), deadline, ..v1::StartPushRequest::default() }
}

/// Held in its transfer of host 1 until the fault is removed: its id.
fn hold_host_1(cluster: &Cluster, operation: &str) -> u64 {
    cluster.s3.faults().add(FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation(operation))
}

async fn backs_off(cluster: &Cluster, round: &v1::Round) {
    let off = |round: &v1::Round| round.participants[1].phase() == ParticipantPhase::BackingOff;
    cluster.round_when(&round.id, "the silent host's attempt has failed", off).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_an_agent_that_is_stopped_for_longer_than_it_may_be_silent_goes_on_and_the_push_commits() {
    let cluster = impatient().await;
    checkpoint_all(&cluster, 10);
    let hang = hold_host_1(&cluster, "PutObject");
    let round = cluster.start_push().await;
    wait::until("host 1 transfers", || async {
        if cluster.s3.faults().hits(hang) > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    cluster.pause_agent(1, true);
    cluster.s3.faults().remove(hang);
    backs_off(&cluster, &round).await;
    cluster.pause_agent(1, false);
    let ended = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Committed, "{:?}", ended.problem);
    // What the first attempt still sent after it woke is no part of the checkpoint.
    assert_eq!(commits(&cluster).len(), 1);
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
    assert!(cluster.verify(&checkpoint.id).await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_an_agent_that_is_stopped_while_it_installs_is_waited_for() {
    let mut cluster = impatient().await;
    checkpoint_all(&cluster, 10);
    let before: Vec<_> = cluster.hosts.iter().map(Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let hang = hold_host_1(&cluster, "GetObject");
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    let two = |round: &v1::Round| {
        round.participants.iter().filter(|host| host.phase() == ParticipantPhase::Staged).count() == 2
    };
    cluster.round_when(&round.id, "two hosts are staged", two).await;
    cluster.pause_agent(0, true);
    cluster.s3.faults().remove(hang);
    let installing = |round: &v1::Round| round.phase() == RoundPhase::Installing;
    cluster.round_when(&round.id, "it installs", installing).await;
    let silent = |round: &v1::Round| round.participants[0].phase() == ParticipantPhase::BackingOff;
    cluster.round_when(&round.id, "the silent host is noticed", silent).await;
    cluster.pause_agent(0, false);
    let ended = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Installed, "{:?}", ended.problem);
    let after: Vec<_> = cluster.hosts.iter().map(Host::state).collect();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_an_agent_that_wakes_after_the_deadline_changes_nothing_and_obeys_the_next_round() {
    let cluster = impatient().await;
    checkpoint_all(&cluster, 10);
    let hang = hold_host_1(&cluster, "PutObject");
    let round = cluster.client.start_push(with_deadline(10)).await.unwrap();
    wait::until("host 1 transfers", || async {
        if cluster.s3.faults().hits(hang) > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    cluster.pause_agent(1, true);
    let ended = cluster.client.wait_round(&round.id).await.unwrap();
    let reason = ended.problem.as_ref().map(|problem| problem.reason.as_str());
    assert_eq!((ended.phase(), reason), (RoundPhase::Failed, Some("ROUND_DEADLINE")));
    cluster.s3.faults().remove(hang);
    cluster.pause_agent(1, false);
    let next = cluster.pushed().await;
    assert_eq!(commits(&cluster).len(), 1);
    assert_eq!(cluster.client.get_round(&round.id).await.unwrap(), ended, "a round that has ended stays as it was");
    assert_eq!(cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap().id, next.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_a_coordinator_that_wakes_after_lease_and_deadline_changes_nothing() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let hang = hold_host_1(&cluster, "PutObject");
    let round = cluster.client.start_push(with_deadline(15)).await.unwrap();
    let transfers = |round: &v1::Round| round.phase() == RoundPhase::Transferring;
    cluster.round_when(&round.id, "it transfers", transfers).await;
    cluster.pause_coordinator(true);
    let (_second, address) = cluster.another_coordinator("second", "127.0.0.1:0", "coordinator-secret").await;
    let second = client_of(&format!("http://{address}"));
    let ended = second.wait_round(&round.id).await.unwrap();
    let reason = ended.problem.as_ref().map(|problem| problem.reason.as_str());
    assert_eq!((ended.phase(), reason), (RoundPhase::Failed, Some("ROUND_DEADLINE")));
    // All parts come in now, and the old driver wakes with everything it needs for a commit.
    cluster.s3.faults().remove(hang);
    cluster.pause_coordinator(false);
    let seen = wait::until("the first replica answers again", || async {
        cluster.client.get_round(&round.id).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(seen, ended);
    checkpoint_all(&cluster, 20);
    let next = cluster.pushed().await;
    assert_eq!(commits(&cluster).len(), 1, "only the second push has decided: {:?}", commits(&cluster));
    assert_eq!(cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap().id, next.id);
    assert_eq!(second.get_round(&round.id).await.unwrap(), ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_two_coordinators_that_both_sleep_through_the_commit_end_in_one_commit() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let rule = FaultRule::new(FaultAction::Hang).access_key(COORDINATOR_KEY).operation("PutObject");
    let hang = cluster.s3.faults().add(rule.key_contains("/commits/"));
    let round = cluster.start_push().await;
    let put = |number| {
        let faults = cluster.s3.faults();
        async move {
            wait::until("the commit is put", || async {
                if faults.hits(hang) >= number { Ok(()) } else { Err("not yet") }
            })
            .await;
        }
    };
    put(1).await;
    // The first sleeps in the middle of its PUT, the second in the middle of the same.
    cluster.pause_coordinator(true);
    let (second, address) = cluster.another_coordinator("second", "127.0.0.1:0", "coordinator-secret").await;
    put(2).await;
    second.pause(true);
    cluster.s3.faults().remove(hang);
    wait::until("a commit stands", || async { if commits(&cluster).is_empty() { Err("none") } else { Ok(()) } }).await;
    second.pause(false);
    cluster.pause_coordinator(false);
    for client in [cluster.client.clone(), client_of(&format!("http://{address}"))] {
        let ended = wait::until("the replica answers", || async {
            client.wait_round(&round.id).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(ended.phase(), RoundPhase::Committed, "{:?}", ended.problem);
    }
    assert_eq!(commits(&cluster).len(), 1);
    checkpoint_all(&cluster, 20);
    cluster.pushed().await;
}
