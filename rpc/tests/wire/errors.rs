//! Errors arrive as they were meant.

use lockstep_rpc::{ChannelOptions, Retryable, RpcProblem, ServerOptions, connect_lazy, listen};
use tonic::Code;

use crate::probe::{Client, SECRET, next, round_in_progress, start, within};

#[tokio::test]
async fn an_error_arrives_with_reason_metadata_and_retryable() {
    let server = start(ServerOptions::default()).await;
    let status = within(server.client().check("fail")).await.unwrap_err();
    assert_eq!(RpcProblem::from_status(&status), round_in_progress());
}

#[tokio::test]
async fn a_lengthy_error_is_cut_and_not_lost() {
    let server = start(ServerOptions::default()).await;
    let problem = RpcProblem::from(within(server.client().check("fail at length")).await.unwrap_err());
    assert_eq!((problem.code, problem.reason.as_str()), (Code::DataLoss, "INTEGRITY"));
    assert!(problem.message.ends_with("漢..."), "{}", problem.message);
    assert!(problem.metadata["file"].ends_with("x..."));
}

#[tokio::test]
async fn a_panic_is_that_calls_internal_error_and_is_not_told() {
    let server = start(ServerOptions::default()).await;
    let mut client = server.client();
    let status = within(client.check("panic")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().starts_with("lockstep.test.Probe/Check failed inside the server"), "{status:?}");
    assert!(!format!("{status:?}").contains(SECRET));
    within(client.check("answer")).await.unwrap();
}

#[tokio::test]
async fn a_panic_in_a_stream_is_that_streams_last_word() {
    let server = start(ServerOptions::default()).await;
    let mut client = server.client();
    let stream = within(client.watch("panic")).await.unwrap();
    let status = next(stream).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!format!("{status:?}").contains(SECRET));
    within(client.check("answer")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_named() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut client = Client::new(connect_lazy(&address, &ChannelOptions::default()).unwrap());
    let problem = RpcProblem::from(within(client.check("answer")).await.unwrap_err());
    assert_eq!((problem.code, problem.retryable), (Code::Unavailable, Retryable::Yes));
    assert!(problem.message.starts_with(&format!("{address}: lockstep.test.Probe/Check got no answer: ")));
    assert!(problem.message.to_lowercase().contains("refused"), "{}", problem.message);
}

#[tokio::test]
async fn a_channel_finds_a_server_that_comes_back() {
    let first = start(ServerOptions::default()).await;
    let mut client = first.client();
    within(client.check("answer")).await.unwrap();
    drop(first.stop);
    within(first.served).await.unwrap().unwrap();
    assert_eq!(within(client.check("answer")).await.unwrap_err().code(), Code::Unavailable);

    let listener = listen(first.address.parse().unwrap()).await.unwrap();
    let server = lockstep_rpc::GrpcServer::new(ServerOptions::default());
    tokio::spawn(server.serve(listener, std::future::pending()));
    // The probe is not served here: that somebody says so is the sign of life.
    assert_eq!(within(client.check("answer")).await.unwrap_err().code(), Code::Unimplemented);
}
