//! How calls and watches behave when answers are refused, lost or broken off. The server is real tonic over TCP.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scripted;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use lockstep_client::{ClientError, LockstepClient, RetryPolicy, RpcProblem, v1};
use scripted::{Answer, Scripted};
use tonic::{Code, Status};
use v1::RoundPhase::{Committed, Failed, Planning, Transferring};

fn quick() -> RetryPolicy {
    RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::default() }
}

fn client(server: &Scripted) -> LockstepClient {
    LockstepClient::builder(&server.address).actor("tester").retry(quick()).connect().unwrap()
}

fn round(version: u64, phase: v1::RoundPhase) -> v1::Round {
    v1::Round { id: "r".into(), version, phase: phase.into(), ..Default::default() }
}

fn refusal(code: Code, reason: &str) -> Status {
    RpcProblem::new(code, reason, "as scripted").into_status()
}

fn push(request_id: &str) -> v1::StartPushRequest {
    v1::StartPushRequest { pipeline: "orders".into(), request_id: request_id.into(), ..Default::default() }
}

#[tokio::test]
async fn all_tries_of_one_call_carry_one_request_id_and_the_actor() {
    let server = Scripted::start().await;
    server.on_push([
        Answer::Refuse(refusal(Code::Unavailable, "DATABASE_UNAVAILABLE")),
        Answer::Refuse(Status::unavailable("no answer")),
        Answer::Give(round(1, Planning)),
        Answer::Give(round(1, Planning)),
    ]);
    let client = client(&server);
    client.start_push(push("")).await.unwrap();
    client.start_push(push("")).await.unwrap();
    let seen = server.seen();
    let [first, second, third, other] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((first, first), (second, third));
    assert_eq!(first.0.len(), 36, "a UUID: {}", first.0);
    assert_eq!(first.1.as_deref(), Some("tester"));
    assert_ne!(first.0, other.0, "another logical call has another id");
}

#[tokio::test]
async fn an_answer_lost_with_its_connection_is_asked_for_again_under_the_same_id() {
    let server = Scripted::start().await;
    server.on_push([Answer::Swallow, Answer::Give(round(1, Planning))]);
    let client = client(&server);
    let pushing = tokio::spawn(async move { client.start_push(push("mine")).await });
    server.until_received(1).await;
    server.cut_connections();
    assert_eq!(pushing.await.unwrap().unwrap().id, "r");
    let ids: Vec<String> = server.seen().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["mine", "mine"]);
}

#[tokio::test]
async fn what_needs_a_fix_or_never_works_is_sent_once() {
    for (code, reason) in [
        (Code::FailedPrecondition, "NO_COMMON_CHECKPOINT"),
        (Code::InvalidArgument, "REQUEST_ID_REUSED"),
        (Code::Aborted, "ROUND_IN_PROGRESS"),
        (Code::Aborted, "ETAG_MISMATCH"),
    ] {
        let server = Scripted::start().await;
        server.on_push([Answer::Refuse(refusal(code, reason)), Answer::Give(round(1, Planning))]);
        let error = client(&server).start_push(push("")).await.unwrap_err();
        assert_eq!(error.reason(), reason);
        assert_eq!(server.seen().len(), 1, "{reason}");
    }
}

#[tokio::test]
async fn an_active_round_is_waited_out_when_asked() {
    let server = Scripted::start().await;
    let busy = || Answer::Refuse(refusal(Code::Aborted, "ROUND_IN_PROGRESS"));
    server.on_push((0..20).map(|_| busy()).chain([Answer::Give(round(1, Planning))]));
    let policy = RetryPolicy { wait_for_round: true, longest_pause: Duration::from_millis(2), ..quick() };
    client(&server).with_retry(policy).start_push(push("")).await.unwrap();
    assert_eq!(server.seen().len(), 21);
}

#[tokio::test]
async fn nobody_there_is_unreachable_after_all_tries() {
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let client = LockstepClient::builder(&address).retry(RetryPolicy { tries: 3, ..quick() }).connect().unwrap();
    match client.start_push(push("")).await.unwrap_err() {
        ClientError::Unreachable { address: shown, tries, .. } => assert_eq!((shown, tries), (address, 3)),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_silent_coordinator_is_unreachable_after_the_deadline() {
    let server = Scripted::start().await;
    server.on_push([Answer::Swallow]);
    let client = LockstepClient::builder(&server.address)
        .deadline(Duration::from_millis(50))
        .retry(RetryPolicy::never())
        .connect()
        .unwrap();
    assert!(client.start_push(push("")).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn a_deletion_whose_answer_was_lost_is_done_when_the_pipeline_is_gone() {
    let server = Scripted::start().await;
    let gone = || Answer::Refuse(refusal(Code::NotFound, "PIPELINE_NOT_FOUND"));
    server.on_delete([Answer::Swallow, gone(), gone()]);
    let client = client(&server);
    let deleting = tokio::spawn({
        let client = client.clone();
        async move { client.delete_pipeline("orders", "").await }
    });
    server.until_received(1).await;
    server.cut_connections();
    deleting.await.unwrap().unwrap();
    assert!(client.delete_pipeline("orders", "").await.unwrap_err().is_not_found(), "here nothing was lost");
}

#[tokio::test]
async fn a_watch_goes_on_after_its_connection_broke_and_repeats_nothing() {
    let server = Scripted::start().await;
    server.on_watch([Ok(round(1, Planning)), Ok(round(3, Transferring))], true);
    // Reopened: first a replica that is behind, then a server that goes away, then one that fails, then the rest.
    server.on_watch([Ok(round(2, Planning)), Ok(round(3, Transferring))], false);
    server.on_watch([Err(refusal(Code::Unavailable, "DATABASE_UNAVAILABLE"))], false);
    server.on_watch([Ok(round(3, Transferring)), Ok(round(5, Committed)), Ok(round(6, Committed))], true);
    let mut watch = client(&server).watch_round("r");
    assert_eq!(watch.next().await.unwrap().unwrap().version, 1);
    assert_eq!(watch.next().await.unwrap().unwrap().version, 3);
    server.cut_connections();
    let rest: Vec<_> = watch.map_ok(|round| round.version).try_collect().await.unwrap();
    assert_eq!(rest, [5], "ends at the terminal round");
}

#[tokio::test]
async fn progress_under_one_version_is_shown() {
    let server = Scripted::start().await;
    let at = |bytes_done| {
        let progress = Some(v1::Progress { bytes_done, ..Default::default() });
        v1::Round { progress, ..round(3, Transferring) }
    };
    server.on_watch([Ok(at(1)), Ok(at(1)), Ok(at(2)), Ok(round(4, Committed))], false);
    let seen: Vec<v1::Round> = client(&server).watch_round("r").try_collect().await.unwrap();
    let bytes: Vec<u64> = seen.iter().map(|round| round.progress.unwrap_or_default().bytes_done).collect();
    assert_eq!(bytes, [1, 2, 0]);
}

#[tokio::test]
async fn waiting_for_a_round_that_fails_is_an_answer_and_for_none_an_error() {
    let server = Scripted::start().await;
    server.on_watch([Ok(round(1, Planning)), Ok(round(2, Failed))], false);
    server.on_watch([Err(refusal(Code::NotFound, "ROUND_NOT_FOUND"))], false);
    let client = client(&server);
    assert_eq!(client.wait_round("r").await.unwrap().phase(), Failed);
    assert!(client.wait_round("r").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_watch_gives_up_when_its_patience_ends() {
    let server = Scripted::start().await;
    for _ in 0..3 {
        server.on_watch([], false);
    }
    let client =
        LockstepClient::builder(&server.address).retry(quick()).reconnect_for(Duration::ZERO).connect().unwrap();
    assert!(client.wait_round("r").await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn lists_walk_through_pages_up_to_their_limit() {
    let server = Scripted::start().await;
    server.hold_rounds((1..=5).map(|version| round(version, Planning)).collect());
    let client = client(&server);
    for (limit, expected) in [(3, 3), (100, 5), (0, 0)] {
        let rounds = client.list_rounds(v1::ListRoundsRequest::default(), limit).await.unwrap();
        assert_eq!(rounds.len(), expected);
    }
    assert_eq!(server.page_sizes(), [3, 1, 100, 98, 96]);
}

#[tokio::test]
async fn an_actor_that_fits_no_header_is_refused() {
    for actor in ["", "zoë", "line\nbreak"] {
        let error = LockstepClient::builder("http://127.0.0.1:1").actor(actor).connect().unwrap_err();
        assert_eq!(error.reason(), "ACTOR_INVALID", "{actor:?}");
    }
}
