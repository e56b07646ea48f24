//! What goes over the wire: a listener that answers by script and keeps what it was sent.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::TryStreamExt as _;
use lockstep_bucket::{Connector, CreateOutcome, Lookup, ObjectStore, StoreErrorKind, WriteOutcome};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::ground::{connector, location};

/// Heads and bodies that came.
type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Answers every request with `answer`; returns the store and the heads and bodies that came.
async fn scripted(answer: &'static str) -> (Arc<dyn ObjectStore>, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen: Seen = Arc::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut received = Vec::new();
                let head = loop {
                    if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                        return;
                    }
                    if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                        break String::from_utf8_lossy(&received[..end]).to_lowercase();
                    }
                };
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ").and_then(|n| n.trim().parse().ok()))
                    .unwrap_or(0_usize);
                while received.len() < head.len() + 4 + length {
                    if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                log.lock().unwrap().push((head.clone(), received.split_off(head.len() + 4)));
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (connector(&endpoint, "lockstep-secret").await.connect(&location("p")).await.unwrap(), seen)
}

const OK: &str = "HTTP/1.1 200 OK\r\netag: \"e\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

fn only(seen: &Seen) -> (String, Vec<u8>) {
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    seen[0].clone()
}

#[tokio::test]
async fn documents_are_signed_create_only_and_carry_a_digest() {
    let (store, seen) = scripted(OK).await;
    assert_eq!(store.create("key", Bytes::from_static(b"document")).await, CreateOutcome::Done);
    let (head, body) = only(&seen);
    assert!(head.starts_with("put /bucket/p/key"), "{head}");
    assert!(head.contains("\nif-none-match: *"), "{head}");
    assert!(head.contains("\ncontent-md5: "), "{head}");
    assert!(!head.contains("unsigned-payload") && !head.contains("streaming-"), "{head}");
    assert!(head.contains("signedheaders=") && head.contains("if-none-match;"), "the condition is signed: {head}");
    assert_eq!(body, b"document");
}

#[tokio::test]
async fn a_batch_of_deletes_carries_the_digest_that_older_servers_want() {
    let (store, seen) = scripted(OK).await;
    let outcomes = store.delete_many(&["a".to_owned(), "b&c".to_owned()]).await;
    for outcome in outcomes {
        assert!(matches!(outcome, WriteOutcome::Unknown(_)), "no word on a key is no success: {outcome:?}");
    }
    let (head, body) = only(&seen);
    assert!(head.starts_with("post /bucket/?delete") || head.starts_with("post /bucket?delete"), "{head}");
    assert!(head.contains("\ncontent-md5: ") && head.contains("content-md5;"), "it is signed: {head}");
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains("<Key>p/a</Key>") && body.contains("<Key>p/b&amp;c</Key>"), "{body}");
}

#[tokio::test]
async fn data_goes_unsigned_with_a_checksum_and_never_in_chunk_frames() {
    for size in [1000, 3 << 20] {
        let (store, seen) = scripted(OK).await;
        let data = Bytes::from(vec![5; size]);
        assert_eq!(store.put("key", data.clone().into()).await, WriteOutcome::Done);
        let (head, body) = only(&seen);
        assert!(head.contains("x-amz-content-sha256: unsigned-payload"), "{head}");
        assert!(!head.contains("aws-chunked") && !head.contains("x-amz-trailer"), "{head}");
        assert!(head.contains(&format!("content-length: {size}")), "{head}");
        assert!(head.contains("content-md5: ") || head.contains("x-amz-checksum-crc32: "), "{head}");
        assert!(!head.contains("if-none-match"), "{head}");
        assert!(body == data, "the body is the data as it is");
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_range_is_found_out() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n01234";
    let (store, _) = scripted(whole).await;
    assert_eq!(store.get_range("key", 0, 3).await.err().unwrap().kind, StoreErrorKind::Integrity);
}

#[tokio::test]
async fn a_server_that_sends_another_range_is_found_out() {
    for answer in [
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 1-3/9\r\ncontent-length: 3\r\nconnection: close\r\n\r\n123",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-1/9\r\ncontent-length: 2\r\nconnection: close\r\n\r\n01",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-2/9\r\ncontent-length: 4\r\nconnection: close\r\n\r\n0123",
        // Without a length only the stream itself shows it.
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-2/9\r\nconnection: close\r\n\r\n01",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-2/9\r\nconnection: close\r\n\r\n0123",
    ] {
        let (store, _) = scripted(answer).await;
        let result = match store.get_range("key", 0, 3).await {
            Ok(stream) => stream.try_collect::<Vec<Bytes>>().await,
            Err(error) => Err(error),
        };
        assert_eq!(result.unwrap_err().kind, StoreErrorKind::Integrity, "{answer}");
    }
}

#[tokio::test]
async fn a_404_without_a_code_proves_nothing() {
    let (store, _) = scripted("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert!(matches!(store.get("key", 10).await, Lookup::Unknown(error) if error.kind == StoreErrorKind::NotFound));
    assert!(matches!(store.head("key").await, Lookup::Unknown(error) if error.kind == StoreErrorKind::NotFound));
}

#[tokio::test]
async fn a_proxy_page_is_no_success() {
    let page =
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<html>hi</html>";
    let (store, _) = scripted(page).await;
    assert!(store.list_all("").await.is_err());
}

#[tokio::test]
async fn a_listing_that_does_not_say_it_is_whole_is_an_error() {
    for (keys, why) in [
        ("", "no IsTruncated"),
        ("<IsTruncated>true</IsTruncated>", "more, but nothing listed"),
        ("<IsTruncated>false</IsTruncated><Contents><Key>q/a</Key><Size>1</Size></Contents>", "outside of the prefix"),
        (
            "<IsTruncated>false</IsTruncated><Contents><Key>p/b</Key><Size>1</Size></Contents><Contents><Key>p/a</Key><Size>1</Size></Contents>",
            "out of order",
        ),
    ] {
        let body = format!(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{keys}</ListBucketResult>"
        );
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let (store, _) = scripted(answer.leak()).await;
        assert_eq!(store.list("", None, 10).await.unwrap_err().kind, StoreErrorKind::Integrity, "{why}");
    }
}

#[tokio::test]
async fn each_request_carries_the_trace_of_whoever_asks() {
    use tracing::Instrument as _;

    let options = lockstep_telemetry::TelemetryOptions {
        log_filter: Some("off".to_owned()),
        ..lockstep_telemetry::TelemetryOptions::new("lockstep-test")
    };
    let telemetry = lockstep_telemetry::init(options).unwrap();
    let (store, seen) = scripted(OK).await;
    let span = tracing::info_span!("push");
    let trace = lockstep_telemetry::traceparent_of(&span).unwrap();
    assert_eq!(store.put("key", Bytes::from_static(b"x").into()).instrument(span).await, WriteOutcome::Done);
    let (head, _) = only(&seen);
    let sent = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap().to_owned();
    assert_eq!(sent.split('-').nth(1), trace.split('-').nth(1), "the same trace");
    assert_ne!(sent.split('-').nth(2), trace.split('-').nth(2), "a span of its own");
    assert!(
        !head.contains("traceparent;") && !head.contains(";traceparent"),
        "what proxies change is not signed: {head}"
    );
    // Metrics are the process', and other tests of it send requests too: each series is there and has counted.
    let metrics = telemetry.prometheus().render();
    for series in [
        "lockstep_s3_requests_total{operation=\"put\",outcome=\"ok\"} ",
        "lockstep_s3_bytes_total{direction=\"sent\"} ",
    ] {
        let value =
            metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {metrics}"));
        assert!(value.parse::<u64>().unwrap() >= 1, "{series}: {metrics}");
    }
    assert!(metrics.contains("lockstep_s3_request_duration_seconds"), "{metrics}");
}

#[tokio::test]
async fn no_secret_is_in_an_error_or_in_what_is_printed_of_a_connector() {
    let (store, _) = scripted("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let CreateOutcome::Refused(error) = store.create("key", Bytes::new()).await else { panic!("not refused") };
    let connector = connector("http://127.0.0.1:1", "lockstep-secret").await;
    let given = lockstep_bucket::StaticCredentials {
        access_key_id: "id".to_owned(),
        secret_access_key: "lockstep-secret".to_owned(),
    };
    for shown in [format!("{error} {error:?} {:?}", error.problem()), format!("{store:?} {connector:?} {given:?}")] {
        assert!(!shown.contains("lockstep-secret"), "{shown}");
    }
}
