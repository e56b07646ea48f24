//! Connections come, are counted, and go.

use std::time::Duration;

use futures::FutureExt;
use lockstep_rpc::{ServerOptions, listen};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::probe::{Probe, next, start, start_with, within};

#[tokio::test]
async fn connections_over_the_limit_are_unavailable_until_one_closes() {
    let server = start(ServerOptions { max_connections: 1, ..Default::default() }).await;
    let (mut first, mut second) = (server.client(), server.client());
    within(first.check("answer")).await.unwrap();
    assert_eq!(within(second.check("answer")).await.unwrap_err().code(), Code::Unavailable);
    within(first.check("answer")).await.unwrap();
    drop(first);
    within(async { while second.check("answer").await.is_err() {} }).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let options = ServerOptions { greeting_timeout: Duration::from_millis(50), ..Default::default() };
    let server = start(options).await;
    let mut silent = TcpStream::connect(&server.address).await.unwrap();
    // Settings may arrive, then the end or a reset.
    let _ = within(silent.read_to_end(&mut Vec::new())).await;
    let mut client = server.client();
    within(client.check("answer")).await.unwrap();
    let _stream = within(client.watch("stay")).await.unwrap();
    within(client.check("answer")).await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_a_call_under_way() {
    let probe = Probe::default();
    let server = start_with(ServerOptions::default(), probe.clone()).await;
    let mut client = server.client();
    let call = tokio::spawn(async move { client.check("wait").await });
    within(probe.waiting.notified()).await;
    drop(server.stop);
    within(async { while TcpStream::connect(&server.address).await.is_ok() {} }).await;
    assert!(!server.served.is_finished());
    probe.go_on.notify_one();
    within(call).await.unwrap().unwrap();
    within(server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_closed() {
    let options = ServerOptions { shutdown_grace: Duration::from_millis(100), ..Default::default() };
    let server = start(options).await;
    let mut client = server.client();
    let mut stream = within(client.watch("stay")).await.unwrap();
    drop(server.stop);
    // This watch never ends by itself, so only the end of the grace period ends the server.
    within(server.served).await.unwrap().unwrap();
    let end = within(stream.message()).await;
    assert!(end.is_err(), "{end:?}");
    assert!(TcpStream::connect(&server.address).await.is_err());
}

#[tokio::test]
async fn shutdown_with_nothing_under_way_does_not_wait_for_the_grace_period() {
    let server = start(ServerOptions { shutdown_grace: Duration::from_secs(3600), ..Default::default() }).await;
    let mut client = server.client();
    within(client.check("answer")).await.unwrap();
    let stream = within(client.watch("stay")).await.unwrap();
    drop(stream);
    drop(server.stop);
    within(server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let taken = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = taken.local_addr().unwrap();
    let error = listen(addr).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {addr}: ")), "{error}");
}

#[tokio::test]
async fn a_stream_under_way_is_not_disturbed_by_other_streams_ending() {
    let server = start(ServerOptions::default()).await;
    let mut client = server.client();
    let mut staying = within(client.watch("stay")).await.unwrap();
    let failing = within(client.watch("panic")).await.unwrap();
    assert!(next(failing).await.unwrap().is_err());
    within(client.check("answer")).await.unwrap();
    assert!(staying.message().now_or_never().is_none());
}
