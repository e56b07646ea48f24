//! Deadlines and limits.

use std::time::Duration;

use lockstep_rpc::{ChannelOptions, RpcProblem, ServerOptions};
use tonic::Code;

use crate::probe::{Probe, start, start_with, within};

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_call_ends_at_its_callers_deadline_on_both_sides() {
    let probe = Probe::default();
    let server = start_with(ServerOptions::default(), probe.clone()).await;
    let problem = RpcProblem::from(within(server.client().check_within("hang", SHORT)).await.unwrap_err());
    assert_eq!((problem.code, problem.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    within(probe.dropped.notified()).await;
}

#[tokio::test]
async fn a_call_without_a_deadline_gets_the_servers_default() {
    let server = start(ServerOptions { default_deadline: SHORT, ..Default::default() }).await;
    let status = within(server.client().check("hang")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("the server's default deadline of 100ms"), "{status:?}");
}

#[tokio::test]
async fn the_channels_timeout_is_a_deadline_too() {
    let server = start(ServerOptions::default()).await;
    let mut client = server.client_with(&ChannelOptions { request_timeout: Some(SHORT), ..Default::default() });
    let status = within(client.check("hang")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains(&server.address), "{status:?}");
}

#[tokio::test]
async fn a_stream_outlives_the_default_deadline() {
    let server = start(ServerOptions { default_deadline: SHORT, ..Default::default() }).await;
    let mut client = server.client();
    let mut stream = within(client.watch("stay")).await.unwrap();
    // A call that begins later and runs into the same limit shows that the limit has passed.
    assert_eq!(within(client.check("hang")).await.unwrap_err().code(), Code::DeadlineExceeded);
    let next = tokio::time::timeout(Duration::from_millis(1), stream.message()).await;
    assert!(next.is_err(), "still open: {next:?}");
}

#[tokio::test]
async fn calls_over_the_stream_limit_wait_for_one_to_end() {
    let server = start(ServerOptions { max_concurrent_streams: 2, ..Default::default() }).await;
    let mut client = server.client();
    let first = within(client.watch("stay")).await.unwrap();
    let _second = within(client.watch("stay")).await.unwrap();
    let status = within(client.check_within("answer", SHORT)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(first);
    within(client.check("answer")).await.unwrap();
}
