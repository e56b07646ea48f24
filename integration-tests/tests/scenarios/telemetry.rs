//! One trace from the caller to each S3 request, metrics on both processes.

use lockstep_client::v1;
use lockstep_integration_tests::{
    cluster::{Cluster, PIPELINE},
    wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_caller_through_coordinator_and_agents_to_each_s3_request() {
    let cluster = Cluster::start().await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", b"1")]);
    }
    cluster.s3.clear_requests();
    let round = cluster.pushed().await;
    assert_eq!(round.trace_id.len(), 32, "{round:?}");
    let requests = cluster.s3.requests();
    let by_agents: Vec<_> =
        requests.iter().filter(|r| r.access_key.as_deref().is_some_and(|key| key.starts_with("agent-"))).collect();
    assert!(!by_agents.is_empty());
    for request in by_agents {
        let traceparent = request.traceparent.as_deref().unwrap_or_default();
        assert!(traceparent.contains(&round.trace_id), "{} {:?} has {traceparent:?}", request.operation, request.key);
    }
    let commit = requests
        .iter()
        .find(|r| r.operation == "PutObject" && r.key.as_deref().is_some_and(|k| k.contains("/commits/")));
    assert!(commit.unwrap().traceparent.as_deref().unwrap_or_default().contains(&round.trace_id));
    let filter =
        v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), round: round.id.clone(), ..Default::default() };
    let events = cluster.client.list_audit_events(filter, 100).await.unwrap();
    assert!(events.iter().all(|event| event.trace_id == round.trace_id), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_are_served_by_both_processes() {
    let mut cluster = Cluster::start().await;
    let agent = cluster.restart_agent_with_http(0).await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", b"1")]);
    }
    cluster.pushed().await;
    for (address, metric) in
        [(cluster.coordinator_http(), "lockstep_rounds_total"), (agent, "lockstep_s3_requests_total")]
    {
        assert!(lockstep_integration_tests::http::get(&address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(lockstep_integration_tests::http::get(&address, "/readyz").await.starts_with("HTTP/1.1 200"));
        // A round is counted once its end is stored, which who waits for it may see before.
        let metrics = wait::until(metric, || async {
            let metrics = lockstep_integration_tests::http::get(&address, "/metrics").await;
            if metrics.contains(metric) { Ok(metrics) } else { Err(metrics) }
        })
        .await;
        let ours = metrics.lines().filter(|line| !line.starts_with('#') && line.contains(' '));
        assert!(ours.filter(|line| line.starts_with("lockstep_")).count() > 3);
    }
}

/// A canary: the secrets that the processes were started with stand in no log and no row.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_stand_in_no_log() {
    let mut cluster = Cluster::start().await;
    cluster.hosts[0].checkpoint(10, &[("a", b"1")]);
    cluster.push().await;
    cluster.kill_coordinator();
    cluster.start_coordinator_with_secret("canary-of-the-coordinator").await;
    cluster.push().await;
    let logs = [cluster.coordinator_log(), cluster.agent_log(0), cluster.agent_log(1)].concat();
    assert!(logs.contains("insecure"), "the logs are there");
    for secret in ["coordinator-secret", "agent-0-secret", "agent-1-secret", "canary-of-the-coordinator"] {
        assert!(!logs.contains(secret), "{secret} stands in a log");
    }
}
