//! Connections that stand still are noticed by what moves, long before any other time-out; slow ones are left alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use lockstep_bucket::{
    AwsConnector, AwsOptions, Connector as _, CreateOutcome, Lookup, ObjectStore, Pace, Payload, StoreError,
    StoreErrorKind, WriteOutcome,
};
use lockstep_devkit::{FaultAction, FaultRule, S3Server};

use crate::ground::{location, options, server};

const STALL: Duration = Duration::from_secs(1);

/// More than sockets take while nobody reads.
const LARGE: usize = 24 << 20;

async fn impatient(server: &S3Server) -> Arc<dyn ObjectStore> {
    waiting(server, STALL).await
}

async fn waiting(server: &S3Server, stall: Duration) -> Arc<dyn ObjectStore> {
    let options = AwsOptions { stall, ..options(&server.endpoint(), "lockstep-secret") };
    AwsConnector::with(options).await.connect(&location("p")).await.unwrap()
}

/// For what shall succeed, however long the server takes to store it.
async fn patient(server: &S3Server) -> Arc<dyn ObjectStore> {
    waiting(server, AwsOptions::default().stall).await
}

fn large() -> Payload {
    Bytes::from(vec![7; LARGE]).into()
}

/// It took the longest silence, not much less nor many times more, and says so.
fn noticed(error: &StoreError, begun: Instant, word: &str) {
    let took = begun.elapsed();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable() && error.to_string().contains(word), "{error}");
    assert!(took >= STALL && took < 10 * STALL, "{took:?}: {error}");
}

#[tokio::test]
async fn an_upload_that_nobody_reads_is_given_up() {
    let server = server().await;
    let store = impatient(&server).await;
    for action in [FaultAction::Hang, FaultAction::Stop { after_bytes: 1 << 20 }] {
        let rule = server.faults().add(FaultRule::new(action.clone()).method("PUT"));
        let begun = Instant::now();
        let WriteOutcome::Unknown(error) = store.put("key", large()).await else { panic!("{action:?}") };
        noticed(&error, begun, "stalled after");
        server.faults().remove(rule);
    }
    assert_eq!(patient(&server).await.put("key", large()).await, WriteOutcome::Done);
}

#[tokio::test]
async fn an_answer_that_never_comes_is_not_waited_for() {
    let server = server().await;
    let store = impatient(&server).await;
    let upload = store.create_multipart("parts").await.unwrap();
    server.faults().add(FaultRule::new(FaultAction::HangAfterWrite));
    let small = || Bytes::from_static(b"small");
    let begun = Instant::now();
    let WriteOutcome::Unknown(error) = store.put("key", small().into()).await else { panic!("answered") };
    noticed(&error, begun, "stalled after 5 of 5 bytes");
    let begun = Instant::now();
    let error = store.upload_part("parts", &upload, 1, small().into()).await.unwrap_err();
    noticed(&error, begun, "stalled after 5 of 5 bytes");
    let begun = Instant::now();
    let CreateOutcome::Unknown(error) = store.create("document", small()).await else { panic!("answered") };
    noticed(&error, begun, "not answered within 1s");
    let begun = Instant::now();
    let Lookup::Unknown(error) = store.get("key", 10).await else { panic!("answered") };
    noticed(&error, begun, "not answered within 1s");
    let begun = Instant::now();
    let error = store.get_range("key", 0, 5).await.err().unwrap();
    noticed(&error, begun, "not answered within 1s");
}

#[tokio::test]
async fn a_download_that_stops_is_given_up_after_the_bytes_that_came() {
    let server = server().await;
    let store = impatient(&server).await;
    assert_eq!(patient(&server).await.put("key", large()).await, WriteOutcome::Done);
    server.faults().add(FaultRule::new(FaultAction::Stop { after_bytes: 3_000_000 }).operation("GetObject"));
    let begun = Instant::now();
    let mut stream = store.get_range("key", 0, LARGE as u64).await.unwrap();
    let mut came = 0;
    let error = loop {
        match stream.try_next().await {
            Ok(chunk) => came += chunk.unwrap().len(),
            Err(error) => break error,
        }
    };
    noticed(&error, begun, "the answer stalled");
    assert_eq!(came, 3_000_000);
    let begun = Instant::now();
    let Lookup::Unknown(error) = store.get("key", LARGE).await else { panic!("whole") };
    noticed(&error, begun, "the answer stalled");
}

#[tokio::test]
async fn a_slow_transfer_that_moves_is_not_given_up() {
    const SIZE: usize = 64 << 20;
    const BYTES_PER_SECOND: u64 = 8 << 20;
    // What sockets hold back is sent in the eyes of the client, and takes the server a part of a second; then it stores all of it before it answers.
    let stall = 4 * STALL;
    let server = server().await;
    let store = waiting(&server, stall).await;
    server.faults().add(FaultRule::new(FaultAction::Throttle { bytes_per_second: BYTES_PER_SECOND }));
    let begun = Instant::now();
    assert_eq!(store.put("key", Bytes::from(vec![7; SIZE]).into()).await, WriteOutcome::Done);
    let uploaded = begun.elapsed();
    let chunks: Vec<Bytes> = store.get_range("key", 0, SIZE as u64).await.unwrap().try_collect().await.unwrap();
    assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), SIZE);
    let downloaded = begun.elapsed() - uploaded;
    assert!(uploaded.min(downloaded) > stall * 3 / 2, "{uploaded:?}, {downloaded:?}");
}

#[tokio::test]
async fn an_upload_that_we_hold_back_ourselves_does_not_stand_still() {
    let server = server().await;
    let store = impatient(&server).await;
    let pace = Arc::new(Pace::new(1000));
    // The line is taken for longer than the longest silence, and so is a single frame's turn.
    let elsewhere = Arc::clone(&pace);
    let other = tokio::spawn(async move { elsewhere.take(1500).await });
    let begun = Instant::now();
    let body = Payload::from(Bytes::from(vec![1; 1500])).with_pace(Some(pace));
    assert_eq!(store.put("key", body).await, WriteOutcome::Done);
    assert!(begun.elapsed() > STALL, "{:?}", begun.elapsed());
    other.await.unwrap();
}
