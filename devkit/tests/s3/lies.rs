//! Servers that do something else than they say, and those that break off at the worst moment.

use std::time::Duration;

use lockstep_devkit::{FaultAction, FaultRule};
use tokio::io::AsyncReadExt as _;

use crate::client::{BUCKET, client, get, noise, presigning, put, refusal, send_raw, server};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn another_range_is_sent_with_a_head_that_lies_or_admits_it() {
    let server = server().await;
    let client = client(&server);
    let body = noise(3_000_000);
    put(&client, "k", &body).await;
    for (admits, told) in [(false, "bytes 1000-1001999/3000000"), (true, "bytes 8000-1008999/3000000")] {
        server.faults().add(FaultRule::new(FaultAction::OtherRange { by: 7000, admits }).times(1));
        let range = || client.get_object().bucket(BUCKET).key("k").range("bytes=1000-1001999").send();
        let other = range().await.unwrap();
        assert_eq!(other.content_range(), Some(told));
        assert!(other.body.collect().await.unwrap().to_vec() == body[8000..1_009_000]);
        let right = range().await.unwrap();
        assert_eq!(right.content_range(), Some("bytes 1000-1001999/3000000"));
        assert!(right.body.collect().await.unwrap().to_vec() == body[1000..1_002_000]);
    }
    server.faults().add(FaultRule::new(FaultAction::OtherRange { by: 7000, admits: false }));
    assert!(get(&client, "k").await == body, "without a range there is no other");
}

#[tokio::test]
async fn wrong_length_is_announced_and_the_body_cut_there_or_broken_off() {
    let server = server().await;
    let client = client(&server);
    for size in [1000, 2_000_000] {
        let body = noise(size);
        put(&client, "k", &body).await;
        server.faults().add(FaultRule::new(FaultAction::WrongLength { by: -10 }).operation("GetObject").times(1));
        assert!(get(&client, "k").await == body[..size - 10]);
        server.faults().add(FaultRule::new(FaultAction::WrongLength { by: 10 }).operation("GetObject").times(1));
        let broken = match client.get_object().bucket(BUCKET).key("k").send().await {
            Ok(output) => output.body.collect().await.is_err(),
            Err(_) => true,
        };
        assert!(broken, "{size} bytes");
        assert!(get(&client, "k").await == body);
    }
}

#[tokio::test]
async fn headers_of_an_answer_have_the_value_that_a_rule_gives_them() {
    let server = server().await;
    let client = client(&server);
    let header = |name: &str, value: &str| {
        FaultRule::new(FaultAction::AnswerHeader { name: name.to_owned(), value: value.to_owned() }).times(1)
    };
    server.faults().add(header("x-amz-checksum-crc32", "AAAAAA=="));
    let answer = client.put_object().bucket(BUCKET).key("k").body(b"x".to_vec().into()).send().await.unwrap();
    assert_eq!(answer.checksum_crc32(), Some("AAAAAA=="));
    server.faults().add(header("content-range", "bytes 5-6/7"));
    let answer = client.get_object().bucket(BUCKET).key("k").range("bytes=0-0").send().await.unwrap();
    assert_eq!(answer.content_range(), Some("bytes 5-6/7"));
    assert_eq!(get(&client, "k").await, b"x");
}

#[tokio::test]
async fn bodies_stop_until_the_rule_is_removed() {
    let server = server().await;
    let client = client(&server);
    let body = noise(2_000_000);
    for operation in ["PutObject", "GetObject"] {
        let rule =
            server.faults().add(FaultRule::new(FaultAction::Stop { after_bytes: 1_234_567 }).operation(operation));
        server.clear_requests();
        let (other, bytes) = (client.clone(), body.clone());
        let moving = tokio::spawn(async move {
            match operation {
                "PutObject" => put(&other, "k", &bytes).await,
                _ => assert!(get(&other, "k").await == bytes),
            }
        });
        let stopped = server.log().wait_for(1, |request| request.bytes_in.max(request.bytes_out) == 1_234_567);
        tokio::time::timeout(PATIENCE, stopped).await.unwrap();
        assert!(!moving.is_finished(), "{operation}");
        server.faults().remove(rule);
        tokio::time::timeout(PATIENCE, moving).await.unwrap().unwrap();
    }
    assert!(get(&client, "k").await == body);
}

#[tokio::test]
async fn reset_after_the_last_byte_is_a_reset_and_the_answer_is_whole() {
    let server = server().await;
    let client = client(&server);
    let body = noise(100_000);
    put(&client, "k", &body).await;
    server.faults().add(FaultRule::new(FaultAction::ResetAfterAnswer).operation("GetObject").times(1));
    let request = client.get_object().bucket(BUCKET).key("k").presigned(presigning()).await.unwrap();
    let mut stream = send_raw(&server, &request, "", b"").await;
    let mut answer = Vec::new();
    let error = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(answer.ends_with(&body), "{} bytes came", answer.len());
    assert!(get(&client, "k").await == body, "the next connection is whole again");
}

#[tokio::test]
async fn a_bad_while_ends_by_itself() {
    let server = server().await;
    let client = client(&server);
    let rule = server.faults().add(FaultRule::new(FaultAction::SlowDown).lasts(Duration::from_millis(300)));
    let head = || client.head_bucket().bucket(BUCKET).send();
    let first = std::time::Instant::now();
    assert_eq!(refusal(head().await).0, 503);
    let over = async {
        while head().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap();
    assert!(first.elapsed() >= Duration::from_millis(300));
    let hits = server.faults().hits(rule);
    head().await.unwrap();
    assert_eq!(server.faults().hits(rule), hits);
}
