//! Scenarios 20 and 21: one transfer at a time, and pods that restart in the middle of one.

use lockstep_client::v1::{self, ParticipantPhase, RoundPhase, push_status_response::State};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{Cluster, PIPELINE, agent_key},
    orders, wait,
};

const MIB: usize = 1 << 20;

fn checkpoint_all(cluster: &Cluster) -> Vec<String> {
    cluster
        .hosts
        .iter()
        .map(|host| {
            let bytes: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8 ^ host.idx.to_le_bytes()[0]).collect();
            host.checkpoint(10, &[("state.bin", &bytes)]).to_string()
        })
        .collect()
}

/// Until it is removed, this host's uploads or downloads don't get on.
fn hold_up(cluster: &Cluster, host_idx: u32, operation: &str) -> u64 {
    let rule = FaultRule::new(FaultAction::Hang).access_key(agent_key(host_idx)).operation(operation);
    cluster.s3.faults().add(rule)
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_a_second_order_is_the_same_one_or_waits_or_is_stale() {
    let cluster = Cluster::start().await;
    let ids = checkpoint_all(&cluster);
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let fault = hold_up(&cluster, 0, "PutObject");
    let header = orders::header(&cluster, 0, 5).await;
    let order = orders::push(header.clone(), &ids[0], 10);
    let first = agent.push(order.clone()).await.unwrap().into_inner();
    assert_eq!((first.round.as_str(), first.attempt), (header.round.as_str(), 1));

    // The same attempt again: its status.
    let again = agent.push(order).await.unwrap().into_inner();
    assert!(matches!(again.state, Some(State::InProgress(_))), "{again:?}");

    // Lower ones are stale, each by its own reason.
    let higher_attempt = v1::OrderHeader { attempt: 2, ..header.clone() };
    for (header, reason) in [
        (v1::OrderHeader { round_no: 4, round: uuid::Uuid::new_v4().to_string(), ..header.clone() }, "STALE_ROUND"),
        (v1::OrderHeader { generation: header.generation - 1, round_no: 9, ..header.clone() }, "STALE_GENERATION"),
        (v1::OrderHeader { term: 0, ..header.clone() }, "STALE_TERM"),
    ] {
        let problem = orders::refused(agent.push(orders::push(header, &ids[0], 10)).await);
        assert_eq!(problem.reason, reason, "{problem:?}");
    }

    // A higher attempt and a newer round: refused until the old one has stopped, then accepted.
    let mut previous = header.round.clone();
    for newer in
        [higher_attempt, v1::OrderHeader { round_no: 6, round: uuid::Uuid::new_v4().to_string(), ..header.clone() }]
    {
        let order = orders::push(newer.clone(), &ids[0], 10);
        let problem = orders::refused(agent.push(order.clone()).await);
        assert_eq!(problem.reason, "TRANSFER_IN_PROGRESS", "{problem:?}");
        assert_eq!(problem.metadata["round"], previous, "names the one that runs");
        let accepted = wait::until("the newer order is accepted", || {
            let (mut agent, order) = (agent.clone(), order.clone());
            async move { agent.push(order).await }
        })
        .await
        .into_inner();
        assert_eq!((accepted.round.as_str(), accepted.attempt), (newer.round.as_str(), newer.attempt));
        previous = newer.round;
    }
    let problem = orders::refused(agent.push(orders::push(header.clone(), &ids[0], 10)).await);
    assert_eq!(problem.reason, "STALE_ROUND");
    cluster.s3.faults().remove(fault);
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_a_stale_attempt_is_refused_and_the_highest_order_survives_a_restart() {
    let mut cluster = Cluster::start().await;
    let ids = checkpoint_all(&cluster);
    let header = orders::header(&cluster, 0, 7).await;
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let second = v1::OrderHeader { attempt: 2, ..header.clone() };
    agent.push(orders::push(second, &ids[0], 10)).await.unwrap();
    let problem = orders::refused(agent.push(orders::push(header, &ids[0], 10)).await);
    assert_eq!(problem.reason, "STALE_ATTEMPT", "{problem:?}");
    cluster.kill_agent(0);
    cluster.start_agent(0).await;
    let older = orders::header(&cluster, 0, 6).await;
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let problem = orders::refused(agent.push(orders::push(older, &ids[0], 10)).await);
    assert_eq!((problem.reason.as_str(), problem.metadata["own"].as_str()), ("STALE_ROUND", "7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s21_a_pod_that_restarts_in_the_middle_of_a_push_is_seen_and_retried() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let fault = hold_up(&cluster, 1, "PutObject");
    let round = cluster.start_push().await;
    let before = cluster
        .round_when(&round.id, "host 1 is at work", |round| {
            round.participants.iter().any(|p| p.host_idx == 1 && p.phase() == ParticipantPhase::Ordered)
        })
        .await;
    cluster.s3.log().wait_for(1, |request| request.access_key.as_deref() == Some("agent-1")).await;
    cluster.kill_agent(1);
    cluster.s3.faults().remove(fault);
    cluster.start_agent(1).await;
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);
    let (was, is) = (&before.participants[1], &round.participants[1]);
    assert!(is.attempt > was.attempt && is.incarnation != was.incarnation, "{is:?}");
    assert_eq!(round.participants[0].attempt, 1, "the others were not disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn s21_a_pod_that_restarts_in_the_middle_of_a_pull_is_seen_and_retried() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let fault = hold_up(&cluster, 2, "GetObject");
    cluster.s3.clear_requests();
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    cluster.s3.log().wait_for(1, |request| request.access_key.as_deref() == Some("agent-2")).await;
    cluster.kill_agent(2);
    cluster.s3.faults().remove(fault);
    cluster.start_agent(2).await;
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
    assert!(round.participants[2].attempt > 1);
    let after: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    assert_eq!(after, before);
}

/// Its part stands and counts, whoever wrote it: nothing is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn s21_a_pod_that_restarts_after_its_part_was_reported_is_not_asked_again() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let fault = hold_up(&cluster, 1, "PutObject");
    let round = cluster.start_push().await;
    let before = cluster
        .round_when(&round.id, "host 0 is done", |round| {
            round.participants.iter().any(|p| p.host_idx == 0 && p.phase() == ParticipantPhase::Done)
        })
        .await;
    cluster.kill_agent(0);
    cluster.start_agent(0).await;
    cluster.s3.faults().remove(fault);
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);
    assert_eq!(round.participants[0].attempt, 1);
    assert_eq!(round.participants[0].incarnation, before.participants[0].incarnation, "the part's own");
}

/// S12: what the process of before said of itself is no answer of the present one.
#[tokio::test(flavor = "multi_thread")]
async fn s21_a_pod_that_restarts_after_it_has_installed_is_asked_again_before_the_round_ends() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.pushed().await;
    let go = cluster.scratch().join("go");
    for idx in 0..3 {
        // Host 2 waits before it installs, until the file is there.
        cluster.arm(if idx == 2 { format!("install.begun=wait:{}", go.display()) } else { String::new() });
        cluster.lose_disk(idx).await;
    }
    cluster.arm("");
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    let then = cluster
        .round_when(&round.id, "host 0 has installed", |round| {
            round.participants.iter().any(|p| p.host_idx == 0 && p.phase() == ParticipantPhase::Installed)
        })
        .await;
    assert_eq!(then.phase(), RoundPhase::Installing);
    cluster.kill_agent(0);
    cluster.start_agent(0).await;
    std::fs::write(go, "").unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
    let (was, is) = (&then.participants[0], &round.participants[0]);
    assert!(is.attempt > was.attempt && is.incarnation != was.incarnation, "{is:?}");
    let after: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    assert_eq!(after, before);
}

/// R20: a host that reported staged and then lost its disk gets the pull again.
#[tokio::test(flavor = "multi_thread")]
async fn s21_a_host_that_was_staged_and_lost_its_disk_is_pulled_again() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let fault = hold_up(&cluster, 2, "GetObject");
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    cluster
        .round_when(&round.id, "host 0 is staged", |round| {
            round.participants.iter().any(|p| p.host_idx == 0 && p.phase() == ParticipantPhase::Staged)
        })
        .await;
    cluster.lose_disk(0).await;
    cluster.s3.faults().remove(fault);
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
    let after: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s21_a_host_that_stays_away_fails_the_round_by_name_instead_of_hanging() {
    let options = lockstep_integration_tests::cluster::Options {
        coordinator_flags: vec!["--max-attempts", "1"],
        ..Default::default()
    };
    let mut cluster = Cluster::with(options).await;
    checkpoint_all(&cluster);
    cluster.kill_agent(1);
    let round = cluster.push().await;
    let problem = round.problem.unwrap();
    assert_eq!((round.phase, problem.reason.as_str()), (RoundPhase::Failed as i32, "AGENT_UNREACHABLE"), "{problem:?}");
    let address = cluster.agents[1].address.trim_start_matches("http://").to_owned();
    assert!(problem.message.contains(&address), "names host and address: {problem:?}");
    cluster.start_agent(1).await;
    cluster.pushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_while_another_runs_is_refused_and_names_it_and_a_cancel_ends_it() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let fault = hold_up(&cluster, 1, "PutObject");
    let first = cluster.start_push().await;
    let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() };
    let error = cluster.client.start_push(request).await.expect_err("one at a time");
    assert_eq!(error.reason(), "ROUND_IN_PROGRESS");
    assert_eq!(error.problem().unwrap().metadata["round"], first.id);
    let error = cluster.client.start_pull(Cluster::pull_request()).await.expect_err("one at a time");
    assert_eq!(error.reason(), "ROUND_IN_PROGRESS");
    cluster.round_when(&first.id, "hosts are ordered", |round| round.phase() == RoundPhase::Transferring).await;
    cluster.client.cancel_round(&first.id, "test").await.unwrap();
    let ended = cluster.client.wait_round(&first.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Cancelled);
    assert_eq!(ended.problem.unwrap().reason, "CANCELLED");
    cluster.s3.faults().remove(fault);
    // The same request again is the same answer, as after a lost one; another one comes too late.
    assert_eq!(cluster.client.cancel_round(&first.id, "test").await.unwrap().phase(), RoundPhase::Cancelled);
    let error = cluster.client.cancel_round(&first.id, "another").await.expect_err("too late");
    assert_eq!(error.reason(), "ROUND_NOT_CANCELLABLE");
    cluster.pushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_past_its_deadline_fails_and_names_the_hosts_that_were_not_done() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let fault = hold_up(&cluster, 1, "PutObject");
    let request = v1::StartPushRequest {
        pipeline: PIPELINE.to_owned(),
        deadline: Some(prost_types::Duration { seconds: 15, nanos: 0 }),
        ..v1::StartPushRequest::default()
    };
    let round = cluster.client.start_push(request).await.unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    let problem = round.problem.unwrap();
    assert_eq!((problem.reason.as_str(), problem.metadata["hosts"].as_str()), ("ROUND_DEADLINE", "1"), "{problem:?}");
    cluster.s3.faults().remove(fault);
    cluster.pushed().await;
}
