//! Servers that answer something else than they did, or break off at the worst moment.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use lockstep_bucket::{Lookup, ObjectStore, Payload, StoreErrorKind, WriteOutcome};
use lockstep_devkit::{FaultAction, FaultRule};

use crate::ground::{server, store};

fn body() -> Bytes {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

async fn range(store: &dyn ObjectStore, offset: u64, length: u64) -> Result<Bytes, lockstep_bucket::StoreError> {
    let chunks: BytesMut = store.get_range("key", offset, length).await?.try_collect().await?;
    Ok(chunks.freeze())
}

#[tokio::test]
async fn another_range_is_found_out_if_the_head_says_so_and_else_left_to_the_digest() {
    let server = server().await;
    let store = store(&server).await;
    assert_eq!(store.put("key", body().into()).await, WriteOutcome::Done);
    server.faults().add(FaultRule::new(FaultAction::OtherRange { by: 1, admits: true }).times(1));
    assert_eq!(range(store.as_ref(), 10, 100_000).await.unwrap_err().kind, StoreErrorKind::Integrity);
    server.faults().add(FaultRule::new(FaultAction::OtherRange { by: 1, admits: false }).times(1));
    assert_eq!(range(store.as_ref(), 10, 100_000).await.unwrap(), body().slice(11..100_011));
    assert_eq!(range(store.as_ref(), 10, 100_000).await.unwrap(), body().slice(10..100_010));
}

#[tokio::test]
async fn a_wrong_length_or_range_in_the_head_is_found_out() {
    let server = server().await;
    let store = store(&server).await;
    assert_eq!(store.put("key", body().into()).await, WriteOutcome::Done);
    let content_range = |value: &str| FaultAction::AnswerHeader { name: "content-range".into(), value: value.into() };
    for action in [
        FaultAction::WrongLength { by: 1 },
        FaultAction::WrongLength { by: -1 },
        content_range("bytes 0-9/1200000"),
        content_range("bytes 10-100008/1200000"),
        content_range("nonsense"),
    ] {
        server.faults().add(FaultRule::new(action.clone()).operation("GetObject").times(1));
        let error = range(store.as_ref(), 10, 100_000).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Integrity, "{action:?}: {error}");
        assert!(error.is_retryable());
    }
    assert_eq!(range(store.as_ref(), 10, 100_000).await.unwrap(), body().slice(10..100_010));
}

#[tokio::test]
async fn a_store_that_says_it_stored_other_bytes_is_not_believed_to_have_stored_ours() {
    let server = server().await;
    let store = store(&server).await;
    let upload = store.create_multipart("parts").await.unwrap();
    let told = FaultAction::AnswerHeader { name: "x-amz-checksum-crc32".into(), value: "AAAAAA==".into() };
    server.faults().add(FaultRule::new(told));
    match store.put("key", body().into()).await {
        WriteOutcome::Unknown(error) => assert_eq!(error.kind, StoreErrorKind::Integrity, "{error}"),
        other => panic!("{other:?}"),
    }
    let part = store.upload_part("parts", &upload, 1, body().into()).await;
    assert_eq!(part.unwrap_err().kind, StoreErrorKind::Integrity);
}

#[tokio::test]
async fn a_body_that_is_not_what_its_checksum_says_is_refused_by_the_store() {
    let server = server().await;
    let store = store(&server).await;
    let wrong = Payload::from(body()).with_crc32(7);
    match store.put("key", wrong.clone()).await {
        WriteOutcome::Unknown(error) => assert_eq!(error.kind, StoreErrorKind::Integrity, "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get("key", 10).await, Lookup::Absent);
    let upload = store.create_multipart("parts").await.unwrap();
    let part = store.upload_part("parts", &upload, 1, wrong).await;
    assert_eq!(part.unwrap_err().kind, StoreErrorKind::Integrity);
}

#[tokio::test]
async fn a_reset_after_the_last_byte_loses_nothing_that_came_and_the_next_request_works() {
    let server = server().await;
    let store = store(&server).await;
    assert_eq!(store.put("key", body().into()).await, WriteOutcome::Done);
    server.faults().add(FaultRule::new(FaultAction::ResetAfterAnswer).operation("GetObject"));
    for _ in 0..20 {
        match range(store.as_ref(), 0, 1_200_000).await {
            Ok(whole) => assert_eq!(whole, body()),
            // What the network still held may be lost with the connection; that is no short answer.
            Err(error) => assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}"),
        }
    }
    server.faults().clear();
    assert_eq!(range(store.as_ref(), 0, 1_200_000).await.unwrap(), body());
}

#[tokio::test]
async fn chunks_arrive_as_one_body_whatever_their_sizes() {
    let server = server().await;
    let store = store(&server).await;
    let whole = body();
    let mut left = whole.clone();
    let mut chunks = Vec::new();
    for size in [0, 1, 100_000, 128 << 10, 500_000, 0, 3] {
        chunks.push(left.split_to(size));
    }
    chunks.push(left);
    assert_eq!(store.put("key", Payload::new(chunks.clone())).await, WriteOutcome::Done);
    assert_eq!(store.get("key", 2_000_000).await, Lookup::Found(whole.clone()));
    let upload = store.create_multipart("parts").await.unwrap();
    let part = store.upload_part("parts", &upload, 1, Payload::new(chunks)).await.unwrap();
    assert_eq!(store.complete_multipart("parts", &upload, &[part]).await, WriteOutcome::Done);
    assert_eq!(store.get("parts", 2_000_000).await, Lookup::Found(whole));
}
