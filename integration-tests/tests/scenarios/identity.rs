//! Scenarios 17 to 19: who an agent is, and orders that are not for it.

use lockstep_client::v1::{self, RoundPhase};
use lockstep_integration_tests::{
    cluster::{Cluster, Options, PIPELINE, agent_key},
    orders,
};

fn checkpoint_all(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.iter().map(|host| host.checkpoint(10, &[("state.bin", b"x")]).to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_two_pods_started_swapped_are_refused_before_s3() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    let flags = |idx: u32| -> Vec<String> {
        ["--host-idx", &idx.to_string(), "--n-hosts", "3"].iter().map(|&s| s.to_owned()).collect()
    };
    cluster.kill_agent(0);
    cluster.kill_agent(1);
    cluster.start_agent_as(0, &flags(1), &[], "agent-0-secret").await;
    cluster.start_agent_as(1, &flags(0), &[], "agent-1-secret").await;
    cluster.s3.clear_requests();
    let push = cluster.push().await;
    let pull = cluster.pull(Cluster::pull_request()).await;
    for round in [push, pull] {
        assert_eq!(round.phase(), RoundPhase::Failed);
        let problem = round.problem.unwrap();
        assert_eq!(problem.reason, "HOST_INFO_MISMATCH", "{problem:?}");
        assert!(
            problem.message.contains("host 0 of 3") && problem.message.contains("host 1 of 3"),
            "both values: {problem:?}"
        );
    }
    for idx in 0..3 {
        assert_eq!(cluster.requests_by(&agent_key(idx)), 0, "agent {idx} asked S3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_an_order_with_swapped_host_info_sent_straight_to_an_agent_is_refused_before_s3() {
    let cluster = Cluster::start().await;
    let ids = checkpoint_all(&cluster);
    cluster.s3.clear_requests();
    let mut header = orders::header(&cluster, 0, 1).await;
    header.host_info = Some(v1::HostInfo { host_idx: 1, n_hosts: 3 });
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let problem = orders::refused(agent.push(orders::push(header, &ids[0], 10)).await);
    assert_eq!(problem.reason, "HOST_INFO_MISMATCH");
    assert_eq!((problem.metadata["ordered"].as_str(), problem.metadata["own"].as_str()), ("1/3", "0/3"));
    assert_eq!(cluster.requests_by(&agent_key(0)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s18_each_mismatch_is_refused_by_its_own_reason() {
    let cluster = Cluster::start().await;
    let ids = checkpoint_all(&cluster);
    cluster.s3.clear_requests();
    let good = orders::header(&cluster, 0, 1).await;
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let host = |host_idx, n_hosts| Some(v1::HostInfo { host_idx, n_hosts });
    let elsewhere = v1::Location { prefix: "invoices".to_owned(), ..cluster.location(PIPELINE) };
    for (header, reason) in [
        (v1::OrderHeader { host_info: host(0, 4), ..good.clone() }, "HOST_INFO_MISMATCH"),
        (v1::OrderHeader { host_info: None, ..good.clone() }, "HOST_INFO_MISMATCH"),
        (v1::OrderHeader { host_info: host(3, 3), ..good.clone() }, "HOST_INFO_INVALID"),
        (v1::OrderHeader { host_info: host(0, 0), ..good.clone() }, "HOST_INFO_INVALID"),
        (v1::OrderHeader { pipeline_name: "invoices".to_owned(), ..good.clone() }, "PIPELINE_MISMATCH"),
        (v1::OrderHeader { incarnation: uuid::Uuid::new_v4().to_string(), ..good.clone() }, "INCARNATION_MISMATCH"),
        (v1::OrderHeader { own_location: Some(elsewhere), ..good.clone() }, "LOCATION_NOT_ALLOWED"),
    ] {
        let order = orders::push(header.clone(), &ids[0], 10);
        let problem = orders::refused(agent.push(order).await);
        assert_eq!(problem.reason, reason, "push: {problem:?}");
        let problem = orders::refused(agent.cancel(v1::CancelOrder { header: Some(header.clone()) }).await);
        assert_eq!(problem.reason, reason, "cancel: {problem:?}");
        let install =
            v1::InstallOrder { header: Some(header.clone()), local_checkpoint: ids[0].clone(), step: 10, fresh: false };
        let problem = orders::refused(agent.install(install).await);
        assert_eq!(problem.reason, reason, "install: {problem:?}");
        let status = v1::StatusRequest { header: Some(header), wait: None };
        let problem = orders::refused(agent.push_status(status).await);
        assert_eq!(problem.reason, reason, "status: {problem:?}");
    }
    assert_eq!(cluster.requests_by(&agent_key(0)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s18_agents_of_another_layout_or_pipeline_fail_the_round_with_both_values() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    cluster.kill_agent(2);
    let identity: Vec<String> = ["--host-idx", "2", "--n-hosts", "4"].iter().map(|&s| s.to_owned()).collect();
    cluster.start_agent_as(2, &identity, &[], "agent-2-secret").await;
    let problem = cluster.push().await.problem.unwrap();
    assert_eq!(problem.reason, "HOST_INFO_MISMATCH", "{problem:?}");
    cluster.kill_agent(2);
    let identity: Vec<String> = ["--host-idx", "2", "--n-hosts", "3"].iter().map(|&s| s.to_owned()).collect();
    let other = ["--pipeline".to_owned(), "invoices".to_owned()];
    cluster.start_agent_as(2, &identity, &other, "agent-2-secret").await;
    let problem = cluster.push().await.problem.unwrap();
    assert_eq!(problem.reason, "PIPELINE_MISMATCH", "{problem:?}");
    assert!(problem.message.contains("orders") && problem.message.contains("invoices"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_direct_sync_is_refused_on_a_multi_host_agent() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    cluster.s3.clear_requests();
    let mut agent = orders::agent(&cluster.agents[1].address).await;
    let request = v1::SyncRequest { location: Some(cluster.location(PIPELINE)) };
    let problem = orders::refused(agent.sync(request).await);
    assert_eq!(problem.reason, "MULTIHOST_REQUIRES_COORDINATOR");
    // Before anything else, a nonsensical location included.
    let problem = orders::refused(agent.sync(v1::SyncRequest { location: None }).await);
    assert_eq!(problem.reason, "MULTIHOST_REQUIRES_COORDINATOR");
    assert_eq!(cluster.requests_by(&agent_key(1)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_number_of_hosts_or_another_program_is_refused_before_any_download() {
    let mut cluster = Cluster::start().await;
    for host in &cluster.hosts {
        let marks = lockstep_integration_tests::host::Marks {
            fingerprint: Some(11_057_525_854_332_059_820),
            ..Default::default()
        };
        host.checkpoint_with(10, &[("a", b"1")], marks);
    }
    let round = cluster.pushed().await;
    assert_eq!(round.fingerprint, "11057525854332059820");
    // The hosts now run another program.
    for host in &cluster.hosts {
        host.wipe();
        let marks = lockstep_integration_tests::host::Marks { fingerprint: Some(5), ..Default::default() };
        host.checkpoint_with(1, &[("a", b"1")], marks);
    }
    let standby = v1::StartPullRequest { standby: Some(true), ..Cluster::pull_request() };
    cluster.s3.clear_requests();
    let problem = cluster.pull(standby.clone()).await.problem.unwrap();
    assert_eq!(problem.reason, "FINGERPRINT_MISMATCH", "{problem:?}");
    assert!(problem.message.contains("11057525854332059820") && problem.message.contains('5'), "{problem:?}");
    assert_eq!(cluster.requests_by(&agent_key(0)), 0);
    let allowed = cluster.pull(v1::StartPullRequest { allow_fingerprint: true, ..standby }).await;
    assert_eq!(allowed.phase(), RoundPhase::Installed, "{:?}", allowed.problem);

    // The pipeline shrinks to two hosts.
    let mut spec = cluster.spec(PIPELINE);
    spec.hosts = 2;
    spec.agents.truncate(2);
    let request = v1::UpdatePipelineRequest { pipeline: PIPELINE.to_owned(), spec: Some(spec), ..Default::default() };
    cluster.client.update_pipeline(request).await.unwrap();
    for idx in 0..2 {
        cluster.kill_agent(idx);
        let identity: Vec<String> =
            ["--host-idx", &idx.to_string(), "--n-hosts", "2"].iter().map(|&s| s.to_owned()).collect();
        cluster.hosts[idx].wipe();
        cluster.start_agent_as(idx, &identity, &[], &format!("agent-{idx}-secret")).await;
    }
    cluster.s3.clear_requests();
    let problem = cluster.pull(Cluster::pull_request()).await.problem.unwrap();
    assert_eq!(problem.reason, "LAYOUT_MISMATCH", "{problem:?}");
    assert_eq!(cluster.requests_by(&agent_key(0)) + cluster.requests_by(&agent_key(1)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_direct_sync_works_on_a_solo_agent_and_a_location_of_a_coordinator_is_refused() {
    let mut cluster = Cluster::with(Options { hosts: 0, create: false, ..Options::default() }).await;
    cluster.hosts[0].checkpoint(3, &[("state.bin", b"solo")]);
    cluster.kill_agent(0);
    let pipeline = uuid::Uuid::new_v4().to_string();
    let flags = ["--pipeline".to_owned(), pipeline];
    cluster.start_agent_as(0, &["--solo".to_owned()], &flags, "agent-0-secret").await;
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    let request = v1::SyncRequest { location: Some(cluster.location(PIPELINE)) };
    let first = agent.sync(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.commit.unwrap().seq, 1);
    cluster.hosts[0].checkpoint(4, &[("state.bin", b"solo, later")]);
    let second = agent.sync(request).await.unwrap().into_inner();
    assert_eq!((second.commit.unwrap().seq, second.done.unwrap().step), (2, 4));
    let error = cluster.client.create_pipeline(cluster.spec(PIPELINE)).await.expect_err("the agent owns it");
    assert_eq!(error.reason(), "LOCATION_OWNED", "{error}");
}
