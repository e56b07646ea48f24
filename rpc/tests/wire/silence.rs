//! Connections that go dead without being closed.

use std::time::Duration;

use lockstep_devkit::line::Line;
use lockstep_rpc::{ChannelOptions, ServerOptions, connect_lazy};
use tonic::{Code, Status};

use crate::probe::{Client, Running, start, within};

const SHORT: Duration = Duration::from_millis(200);

async fn over(server: &Running) -> (Line, Client) {
    let line = Line::to(server.address.parse().unwrap()).await.unwrap();
    let options = ChannelOptions { keepalive_interval: SHORT, keepalive_timeout: SHORT, ..Default::default() };
    let client = Client::new(connect_lazy(&line.address().to_string(), &options).unwrap());
    (line, client)
}

/// It may or may not have happened. A stream that breaks in the middle is `UNKNOWN` with its source, by which clients tell it from a word of the server.
fn is_lost(status: &Status) -> bool {
    let broken = status.code() == Code::Unknown && std::error::Error::source(status).is_some();
    broken || matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}

#[tokio::test]
async fn a_stream_over_a_dead_connection_ends_as_lost_and_the_next_call_works() {
    let server = start(ServerOptions::default()).await;
    let (line, mut client) = over(&server).await;
    let mut stream = within(client.watch("stay")).await.unwrap();
    line.go_dead();
    let status = within(stream.message()).await.unwrap_err();
    assert!(is_lost(&status), "{status:?}");
    within(client.check("answer")).await.unwrap();
}

#[tokio::test]
async fn a_call_without_a_deadline_over_a_dead_connection_ends_as_lost() {
    let server = start(ServerOptions::default()).await;
    let (line, mut client) = over(&server).await;
    let _stream = within(client.watch("stay")).await.unwrap();
    line.go_dead();
    let status = within(client.check("hang")).await.unwrap_err();
    assert!(is_lost(&status), "{status:?}");
}

#[tokio::test]
async fn a_server_gives_a_dead_connection_up() {
    let options = ServerOptions {
        max_connections: 1,
        keepalive_interval: SHORT,
        keepalive_timeout: SHORT,
        ..ServerOptions::default()
    };
    let server = start(options).await;
    let line = Line::to(server.address.parse().unwrap()).await.unwrap();
    let mut dead = Client::new(connect_lazy(&line.address().to_string(), &Default::default()).unwrap());
    let _stream = within(dead.watch("stay")).await.unwrap();
    let mut other = server.client();
    assert_eq!(within(other.check("answer")).await.unwrap_err().code(), Code::Unavailable);
    line.go_dead();
    within(async { while other.check("answer").await.is_err() {} }).await;
}
