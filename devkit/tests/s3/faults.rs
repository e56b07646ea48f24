//! Each fault, as a client sees it and as it leaves the bucket.

use std::time::{Duration, Instant};

use lockstep_devkit::{FaultAction, FaultRule};
use tokio::io::AsyncReadExt as _;

use crate::client::{BUCKET, client, get, is_unknown, noise, presigning, put, refusal, send_raw, server};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn refusals_are_answered_instead_of_the_write_and_only_as_often_as_told() {
    let server = server().await;
    let client = client(&server);
    for (action, status, code) in [
        (FaultAction::SlowDown, 503, "SlowDown"),
        (FaultAction::InternalError, 500, "InternalError"),
        (FaultAction::AccessDenied, 403, "AccessDenied"),
        (
            FaultAction::Error { status: 409, code: "ConditionalRequestConflict".into() },
            409,
            "ConditionalRequestConflict",
        ),
        (FaultAction::Error { status: 403, code: "RequestTimeTooSkewed".into() }, 403, "RequestTimeTooSkewed"),
    ] {
        let rule = server.faults().add(FaultRule::new(action).operation("PutObject").times(1));
        let write =
            || client.put_object().bucket(BUCKET).key("k").if_none_match("*").body(noise(2_000_000).into()).send();
        assert_eq!(refusal(write().await), (status, code.to_owned()));
        assert!(server.admin().keys(BUCKET, "").unwrap().is_empty());
        write().await.unwrap();
        assert_eq!(server.faults().hits(rule), 1);
        server.faults().clear();
        server.admin().remove(BUCKET, "k").unwrap();
    }
}

#[tokio::test]
async fn refusal_after_the_write_leaves_the_object() {
    let server = server().await;
    let client = client(&server);
    let action = FaultAction::ErrorAfterWrite { status: 500, code: "InternalError".into() };
    server.faults().add(FaultRule::new(action).operation("PutObject"));
    let write = client.put_object().bucket(BUCKET).key("k").body(b"x".to_vec().into()).send().await;
    assert_eq!(refusal(write), (500, "InternalError".to_owned()));
    assert_eq!(get(&client, "k").await, b"x");
}

#[tokio::test]
async fn reset_before_the_write_leaves_nothing_and_after_it_the_object() {
    let server = server().await;
    let client = client(&server);
    for (action, left) in [(FaultAction::ResetBeforeWrite, 0), (FaultAction::ResetAfterWrite, 1)] {
        server.faults().add(FaultRule::new(action.clone()).operation("PutObject"));
        let write = client.put_object().bucket(BUCKET).key("k").body(noise(100_000).into()).send().await;
        assert!(is_unknown(&write), "{action:?}: {write:?}");
        assert_eq!(server.admin().keys(BUCKET, "").unwrap().len(), left, "{action:?}");
        server.faults().clear();
    }
    let log = server.requests();
    assert_eq!(log.iter().map(|request| request.status).collect::<Vec<_>>(), [None, None]);
    assert!(log.iter().all(|request| request.faults.len() == 1));
}

#[tokio::test]
async fn reset_is_a_reset_and_not_an_orderly_end() {
    let server = server().await;
    server.faults().add(FaultRule::new(FaultAction::ResetAfterWrite));
    let request = client(&server).put_object().bucket(BUCKET).key("k").presigned(presigning()).await.unwrap();
    let mut stream = send_raw(&server, &request, "content-length: 1\r\n", b"x").await;
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn reset_in_the_middle_of_a_body_leaves_nothing() {
    let server = server().await;
    let client = client(&server);
    server.faults().add(FaultRule::new(FaultAction::ResetDuringBody { after_bytes: 1_000_000 }).times(1));
    let write = || client.put_object().bucket(BUCKET).key("k").body(noise(8_000_000).into()).send();
    let first = write().await;
    assert!(is_unknown(&first), "{first:?}");
    assert!(server.admin().keys(BUCKET, "").unwrap().is_empty());
    assert_eq!(server.requests()[0].bytes_in, 1_000_000);
    write().await.unwrap();
}

#[tokio::test]
async fn delays_add_up() {
    let server = server().await;
    let client = client(&server);
    for ms in [60, 90] {
        server.faults().add(FaultRule::new(FaultAction::Delay { ms }).operation("HeadBucket"));
    }
    let begun = Instant::now();
    client.head_bucket().bucket(BUCKET).send().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn delayed_write_lands_after_its_client_has_left() {
    let server = server().await;
    let client = client(&server);
    let rule = server.faults().add(FaultRule::new(FaultAction::DelayWrite { ms: 2000 }).operation("PutObject"));
    let request = client.put_object().bucket(BUCKET).key("late").presigned(presigning()).await.unwrap();
    let stream = send_raw(&server, &request, "content-length: 4\r\n", b"late").await;
    let arrived = server.log().wait_for(1, |request| request.bytes_in == 4);
    tokio::time::timeout(PATIENCE, arrived).await.unwrap();
    assert!(server.faults().remove(rule));
    drop(stream);
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("late").send().await).0, 404);
    let landed = async {
        while client.head_object().bucket(BUCKET).key("late").send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, landed).await.unwrap();
    assert_eq!(get(&client, "late").await, b"late");
}

#[tokio::test]
async fn throttle_holds_both_directions_to_its_rate() {
    let server = server().await;
    let client = client(&server);
    let body = noise(100_000);
    server.faults().add(FaultRule::new(FaultAction::Throttle { bytes_per_second: 200_000 }));
    let begun = Instant::now();
    put(&client, "k", &body).await;
    assert!(begun.elapsed() >= Duration::from_millis(400), "put took {:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(get(&client, "k").await == body);
    assert!(begun.elapsed() >= Duration::from_millis(400), "get took {:?}", begun.elapsed());
}

#[tokio::test]
async fn truncated_answer_is_an_error_and_not_a_shorter_object() {
    let server = server().await;
    let client = client(&server);
    for size in [100_000, 3_000_000] {
        put(&client, "k", &noise(size)).await;
        server
            .faults()
            .add(FaultRule::new(FaultAction::Truncate { after_bytes: 50_000 }).operation("GetObject").times(1));
        let cut = match client.get_object().bucket(BUCKET).key("k").send().await {
            Ok(output) => output.body.collect().await.is_err(),
            Err(_) => true,
        };
        assert!(cut, "{size} bytes");
        assert_eq!(server.requests().last().unwrap().bytes_out, 50_000);
        assert_eq!(get(&client, "k").await.len(), size);
    }
}

#[tokio::test]
async fn corrupted_answer_differs_in_one_bit() {
    let server = server().await;
    let client = client(&server);
    let body = noise(2_000_000);
    put(&client, "k", &body).await;
    let rule = server.faults().add(FaultRule::new(FaultAction::Corrupt { at: 1_234_567 }).operation("GetObject"));
    let mut bent = get(&client, "k").await;
    assert!(bent != body);
    bent[1_234_567] ^= 1;
    assert!(bent == body);
    server.faults().remove(rule);
    assert!(get(&client, "k").await == body);
}

#[tokio::test]
async fn hanging_request_goes_on_when_its_rule_is_removed() {
    let server = server().await;
    for (action, meanwhile) in [(FaultAction::Hang, 0), (FaultAction::HangAfterWrite, 1)] {
        let rule = server.faults().add(FaultRule::new(action.clone()).operation("PutObject"));
        let client = client(&server);
        server.clear_requests();
        let write =
            tokio::spawn(
                async move { client.put_object().bucket(BUCKET).key("k").body(b"x".to_vec().into()).send().await },
            );
        let landed = async {
            let waiting = server.log().wait_for(1, |request| request.operation == "PutObject").await;
            while server.admin().keys(BUCKET, "").unwrap().len() != meanwhile {
                tokio::task::yield_now().await;
            }
            waiting
        };
        let waiting = tokio::time::timeout(PATIENCE, landed).await.unwrap();
        assert_eq!(waiting[0].status, None, "{action:?}");
        assert!(!write.is_finished(), "{action:?}");
        assert!(server.faults().remove(rule));
        tokio::time::timeout(PATIENCE, write).await.unwrap().unwrap().unwrap();
        assert!(server.admin().remove(BUCKET, "k").unwrap());
    }
}

#[tokio::test]
async fn listing_can_be_denied_while_writes_go_on() {
    let server = server().await;
    let client = client(&server);
    server.faults().add(FaultRule::new(FaultAction::AccessDenied).operation("ListObjectsV2").key_prefix("p/"));
    put(&client, "p/k", b"x").await;
    let denied = client.list_objects_v2().bucket(BUCKET).prefix("p/").send().await;
    assert_eq!(refusal(denied), (403, "AccessDenied".to_owned()));
    client.list_objects_v2().bucket(BUCKET).prefix("q/").send().await.unwrap();
}
