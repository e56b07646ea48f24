//! Ranges, large bodies and multipart uploads.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{Ground, done, ensure, kind_is, pattern, text};
use crate::{
    error::StoreErrorKind,
    store::{Lookup, PartTag, UploadId, WriteOutcome},
};

/// The smallest part that S3 takes.
const PART: usize = 5 << 20;

async fn range(ground: &Ground<'_>, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    let stream = ground.store.get_range(key, offset, length).await.map_err(text)?;
    stream
        .try_fold(Vec::new(), |mut whole, chunk| async move {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        })
        .await
        .map_err(text)
}

pub(super) async fn ranges_are_exact(ground: &Ground<'_>) -> Result<(), String> {
    let body = pattern(100_000);
    ground.put("data", body.clone()).await?;
    for (offset, length) in
        [(0_usize, 1_usize), (0, 100_000), (1, 99_999), (99_999, 1), (8190, 3), (12_345, 54_321), (7, 0)]
    {
        let found =
            range(ground, "data", u64::try_from(offset).unwrap_or(0), u64::try_from(length).unwrap_or(0)).await?;
        let right = body.get(offset..offset + length).is_some_and(|expected| expected == found);
        ensure(right, || format!("{length} bytes from {offset}: got {} other bytes", found.len()))?;
    }
    Ok(())
}

pub(super) async fn a_range_beyond_the_end_is_an_error(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("data", pattern(100)).await?;
    for (offset, length) in [(0, 101), (99, 2), (100, 1), (1000, 5)] {
        match ground.store.get_range("data", offset, length).await {
            Err(error) => kind_is(StoreErrorKind::Integrity, &error)?,
            Ok(stream) => match stream.try_collect::<Vec<Bytes>>().await {
                Err(error) => kind_is(StoreErrorKind::Integrity, &error)?,
                Ok(chunks) => return Err(format!("{length} bytes from {offset} of 100: {} chunks", chunks.len())),
            },
        }
    }
    Ok(())
}

pub(super) async fn a_range_of_a_missing_key_is_not_found(ground: &Ground<'_>) -> Result<(), String> {
    match ground.store.get_range("nothing", 0, 5).await {
        Err(error) => kind_is(StoreErrorKind::NotFound, &error),
        Ok(mut stream) => Err(format!("got {:?}", stream.next().await)),
    }
}

pub(super) async fn large_bodies_arrive_whole(ground: &Ground<'_>) -> Result<(), String> {
    let body = pattern((9 << 20) + 1);
    ground.put("large", body.clone()).await?;
    let found = range(ground, "large", 0, u64::try_from(body.len()).unwrap_or(0)).await?;
    ensure(found == body, || "the object differs".to_owned())?;
    let outcome = ground.store.create("large document", body.clone()).await;
    ensure(outcome == crate::store::CreateOutcome::Done, || format!("create: {outcome:?}"))?;
    ground.must_hold("large document", &body).await
}

async fn begin(ground: &Ground<'_>, key: &str) -> Result<(UploadId, Vec<PartTag>), String> {
    let upload = ground.store.create_multipart(key).await.map_err(text)?;
    let body = pattern(PART + 11);
    let mut tags = Vec::new();
    for (number, part) in [(1, body.slice(..PART)), (2, body.slice(PART..))] {
        tags.push(ground.store.upload_part(key, &upload, number, part.into()).await.map_err(text)?);
    }
    Ok((upload, tags))
}

pub(super) async fn multipart_makes_one_object(ground: &Ground<'_>) -> Result<(), String> {
    let (upload, tags) = begin(ground, "whole").await?;
    let before = ground.store.get("whole", 10).await;
    ensure(before == Lookup::Absent, || format!("before it is complete: {before:?}"))?;
    done("complete", ground.store.complete_multipart("whole", &upload, &tags).await)?;
    ground.must_hold("whole", &pattern(PART + 11)).await?;
    let open = ground.store.list_multipart("whole").await.map_err(text)?;
    ensure(open.is_empty(), || format!("still open: {open:?}"))
}

pub(super) async fn a_completed_multipart_may_be_completed_again(ground: &Ground<'_>) -> Result<(), String> {
    let (upload, tags) = begin(ground, "twice").await?;
    for _ in 0..2 {
        done("complete", ground.store.complete_multipart("twice", &upload, &tags).await)?;
    }
    ground.must_hold("twice", &pattern(PART + 11)).await
}

pub(super) async fn an_aborted_multipart_leaves_nothing(ground: &Ground<'_>) -> Result<(), String> {
    let (upload, tags) = begin(ground, "given up").await?;
    for _ in 0..2 {
        done("abort", ground.store.abort_multipart("given up", &upload).await)?;
    }
    let open = ground.store.list_multipart("given up").await.map_err(text)?;
    ensure(open.is_empty(), || format!("still open: {open:?}"))?;
    let outcome = ground.store.complete_multipart("given up", &upload, &tags).await;
    ensure(outcome != WriteOutcome::Done, || "it could be completed".to_owned())?;
    let found = ground.store.get("given up", 10).await;
    ensure(found == Lookup::Absent, || format!("an object: {found:?}"))
}

pub(super) async fn open_multiparts_are_listed(ground: &Ground<'_>) -> Result<(), String> {
    let mut expected = Vec::new();
    for key in ["open/a", "open/b", "other/c"] {
        expected.push((key.to_owned(), ground.store.create_multipart(key).await.map_err(text)?));
    }
    expected.pop();
    let open = ground.store.list_multipart("open/").await.map_err(text)?;
    let mut found: Vec<(String, UploadId)> = open.into_iter().map(|open| (open.key, open.upload)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    ensure(found == expected, || format!("expected {expected:?}, got {found:?}"))
}

pub(super) async fn multipart_with_a_wrong_part_is_refused(ground: &Ground<'_>) -> Result<(), String> {
    let (upload, mut tags) = begin(ground, "wrong").await?;
    if let Some(tag) = tags.last_mut() {
        tag.etag = "\"00000000000000000000000000000000\"".to_owned();
    }
    let outcome = ground.store.complete_multipart("wrong", &upload, &tags).await;
    ensure(matches!(outcome, WriteOutcome::Refused(_)), || format!("complete: {outcome:?}"))?;
    let found = ground.store.get("wrong", 10).await;
    ensure(found == Lookup::Absent, || format!("an object: {found:?}"))
}
