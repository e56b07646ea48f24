//! One trace through client and server, and what both count.

use std::sync::LazyLock;

use lockstep_rpc::{RpcProblem, ServerOptions};
use lockstep_telemetry::{TelemetryGuard, TelemetryOptions, current_trace_id, init};
use tonic::{Code, IntoRequest};
use tonic_health::pb::HealthCheckRequest;
use tracing::{Instrument, info_span};

use crate::probe::{Client, Running, start, within};

static TELEMETRY: LazyLock<TelemetryGuard> = LazyLock::new(|| {
    init(TelemetryOptions { log_filter: Some("off".to_owned()), ..TelemetryOptions::new("lockstep-test") }).unwrap()
});

async fn start_traced() -> Running {
    assert!(TELEMETRY.owns_tracing());
    start(ServerOptions::default()).await
}

/// The trace that the server's handler finds itself in.
async fn trace_told(mut client: Client) -> String {
    let response = within(client.check("tell trace")).await.unwrap();
    response.metadata().get("trace-id").unwrap().to_str().unwrap().to_owned()
}

/// The value of the metric whose line begins with `name` and has all `labels`; 0 if there is none.
fn count(name: &str, labels: &[&str]) -> u64 {
    let metrics = TELEMETRY.prometheus().render();
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label)));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn the_servers_span_is_in_the_callers_trace() {
    let server = start_traced().await;
    for name in ["push", "pull"] {
        let (ours, theirs) = async { (current_trace_id().unwrap(), trace_told(server.client()).await) }
            .instrument(info_span!("caller", name))
            .await;
        assert_eq!(theirs, ours);
    }
}

#[tokio::test]
async fn a_call_outside_of_any_span_begins_a_trace() {
    let server = start_traced().await;
    assert_eq!(trace_told(server.client()).await.len(), 32);
}

#[tokio::test]
async fn calls_of_different_traces_on_one_connection_stay_apart() {
    let server = start_traced().await;
    let client = server.client();
    let calls = (0..20).map(|_| {
        let client = client.clone();
        async move {
            assert_eq!(trace_told(client).await, current_trace_id().unwrap());
            current_trace_id().unwrap()
        }
        .instrument(info_span!("caller"))
    });
    let traces: std::collections::HashSet<_> = futures::future::join_all(calls).await.into_iter().collect();
    assert_eq!(traces.len(), 20);
}

#[tokio::test]
async fn a_panic_tells_the_trace_to_look_for() {
    let server = start_traced().await;
    async {
        let problem = RpcProblem::from(within(server.client().check("panic")).await.unwrap_err());
        assert_eq!(problem.metadata["trace_id"], current_trace_id().unwrap());
    }
    .instrument(info_span!("caller"))
    .await;
}

#[tokio::test]
async fn both_sides_count_calls_by_their_outcome() {
    let server = start_traced().await;
    let labels = [r#"service="lockstep.test.Probe""#, r#"method="Check""#, r#"code="DATA_LOSS""#];
    assert_eq!(within(server.client().check("fail at length")).await.unwrap_err().code(), Code::DataLoss);
    for side in ["server", "client"] {
        assert_eq!(count(&format!("lockstep_rpc_{side}_requests_total"), &labels), 1, "{side}");
        assert_eq!(count(&format!("lockstep_rpc_{side}_duration_seconds_count"), &labels), 1, "{side}");
    }
}

#[tokio::test]
async fn a_watch_counts_once_and_when_it_ends() {
    let server = start_traced().await;
    let labels = [r#"method="Watch""#, r#"code="CANCELLED""#];
    let stream = within(server.client().watch("stay")).await.unwrap();
    assert_eq!(count("lockstep_rpc_client_requests_total", &labels), 0);
    drop(stream);
    assert_eq!(count("lockstep_rpc_client_requests_total", &labels), 1);
    within(async {
        while count("lockstep_rpc_server_requests_total", &labels) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn made_up_methods_are_counted_as_unknown() {
    let server = start_traced().await;
    let status = server.client().send(HealthCheckRequest::default().into_request(), "/made.Up/Method").await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
    assert!(count("lockstep_rpc_server_requests_total", &[r#"service="unknown""#, r#"code="UNIMPLEMENTED""#]) > 0);
    assert_eq!(count("lockstep_rpc_server_requests_total", &[r#"service="made.Up""#]), 0);
}
