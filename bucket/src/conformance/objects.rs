//! Single objects and listings.

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{BoxFuture, join_all},
};

use super::{Ground, done, elsewhere, ensure, kind_is, pattern, text};
use crate::{
    error::StoreErrorKind,
    store::{CreateOutcome, Lookup, MAX_DELETES, MAX_PAGE, WriteOutcome},
};

pub(super) async fn a_created_object_is_read_back(ground: &Ground<'_>) -> Result<(), String> {
    let body = Bytes::from_static(b"{\"a\":1}");
    let outcome = ground.store.create("doc.json", body.clone()).await;
    ensure(outcome == CreateOutcome::Done, || format!("create: {outcome:?}"))?;
    ground.must_hold("doc.json", &body).await?;
    match ground.store.head("doc.json").await {
        Lookup::Found(meta) if meta.size == 7 => Ok(()),
        other => Err(format!("head: {other:?}")),
    }
}

pub(super) async fn create_of_an_existing_key_changes_nothing(ground: &Ground<'_>) -> Result<(), String> {
    for same in [b"first".as_slice(), b"other"] {
        let outcome = ground.store.create("key", Bytes::copy_from_slice(same)).await;
        let expected = if same == b"first" { CreateOutcome::Done } else { CreateOutcome::Exists };
        ensure(outcome == expected, || format!("expected {expected:?}, got {outcome:?}"))?;
    }
    ground.must_hold("key", b"first").await
}

pub(super) async fn a_race_of_creates_has_one_winner(ground: &Ground<'_>) -> Result<(), String> {
    for round in 0..8 {
        let key = format!("race-{round}");
        let bodies: Vec<Bytes> = (0..8).map(|racer| Bytes::from(format!("racer {racer}"))).collect();
        let creates: Vec<_> = bodies.iter().map(|body| ground.store.create(&key, body.clone())).collect();
        let outcomes = join_all(creates).await;
        let winners: Vec<&Bytes> =
            bodies.iter().zip(&outcomes).filter(|(_, o)| **o == CreateOutcome::Done).map(|(body, _)| body).collect();
        match winners.as_slice() {
            [winner] => ground.must_hold(&key, winner).await?,
            several => return Err(format!("{} winners: {outcomes:?}", several.len())),
        }
    }
    Ok(())
}

pub(super) async fn put_overwrites(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("hint", "one").await?;
    ground.put("hint", "three").await?;
    ground.must_hold("hint", b"three").await
}

pub(super) async fn an_empty_object_is_an_object(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("empty", "").await?;
    let outcome = ground.store.create("empty", Bytes::from_static(b"x")).await;
    ensure(outcome == CreateOutcome::Exists, || format!("create over it: {outcome:?}"))?;
    let outcome = ground.store.create("created empty", Bytes::new()).await;
    ensure(outcome == CreateOutcome::Done, || format!("create of an empty one: {outcome:?}"))?;
    ground.must_hold("empty", b"").await?;
    match ground.store.head("empty").await {
        Lookup::Found(meta) if meta.size == 0 => Ok(()),
        other => Err(format!("head: {other:?}")),
    }
}

pub(super) async fn a_missing_key_is_proven_absent(ground: &Ground<'_>) -> Result<(), String> {
    let get = ground.store.get("nothing", 10).await;
    ensure(get == Lookup::Absent, || format!("get: {get:?}"))?;
    let head = ground.store.head("nothing").await;
    ensure(head == Lookup::Absent, || format!("head: {head:?}"))?;
    let listed = ground.store.list_all("nothing").await.map_err(text)?;
    ensure(listed.is_empty(), || format!("list: {listed:?}"))
}

pub(super) async fn a_missing_bucket_is_never_absence(ground: &Ground<'_>) -> Result<(), String> {
    let location =
        elsewhere(&ground.location, |raw| raw.bucket = "lockstep-no-such-bucket".to_owned()).map_err(text)?;
    let store = ground.subject.connector.connect(&location).await.map_err(text)?;
    match store.get("key", 10).await {
        Lookup::Unknown(error) => kind_is(StoreErrorKind::NotFound, &error)?,
        other => return Err(format!("get: {other:?}")),
    }
    match store.head("key").await {
        Lookup::Unknown(error) => kind_is(StoreErrorKind::NotFound, &error)?,
        other => return Err(format!("head: {other:?}")),
    }
    match store.list("", None, 10).await {
        Err(error) => kind_is(StoreErrorKind::NotFound, &error)?,
        Ok(page) => return Err(format!("list: {page:?}")),
    }
    match store.create("key", Bytes::from_static(b"x")).await {
        CreateOutcome::Refused(error) => kind_is(StoreErrorKind::NotFound, &error),
        other => Err(format!("create: {other:?}")),
    }
}

pub(super) async fn a_wrong_secret_is_denied(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("key", "value").await?;
    let Some(connector) = ground.subject.wrong_secret else { return Ok(()) };
    let store = connector.connect(&ground.location).await.map_err(text)?;
    for key in ["key", "nothing"] {
        match store.get(key, 10).await {
            Lookup::Unknown(error) => kind_is(StoreErrorKind::Denied, &error)?,
            other => return Err(format!("get of {key}: {other:?}")),
        }
        match store.head(key).await {
            Lookup::Unknown(error) => kind_is(StoreErrorKind::Denied, &error)?,
            other => return Err(format!("head of {key}: {other:?}")),
        }
    }
    match store.list("", None, 10).await {
        Err(error) => kind_is(StoreErrorKind::Denied, &error)?,
        Ok(page) => return Err(format!("list: {page:?}")),
    }
    match store.create("key", Bytes::from_static(b"x")).await {
        CreateOutcome::Refused(error) => kind_is(StoreErrorKind::Denied, &error)?,
        other => return Err(format!("create: {other:?}")),
    }
    ground.must_hold("key", b"value").await
}

pub(super) async fn a_document_above_the_limit_is_not_read(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("doc", "0123456789").await?;
    ground.must_hold("doc", b"0123456789").await?;
    match ground.store.get("doc", 9).await {
        Lookup::Unknown(error) => kind_is(StoreErrorKind::TooLarge, &error),
        other => Err(format!("get: {other:?}")),
    }
}

pub(super) async fn delete_removes_and_may_be_repeated(ground: &Ground<'_>) -> Result<(), String> {
    ground.put("gone", "x").await?;
    for _ in 0..2 {
        done("delete", ground.store.delete("gone").await)?;
        let get = ground.store.get("gone", 10).await;
        ensure(get == Lookup::Absent, || format!("get after delete: {get:?}"))?;
    }
    let outcome = ground.store.create("gone", Bytes::from_static(b"again")).await;
    ensure(outcome == CreateOutcome::Done, || format!("create after delete: {outcome:?}"))
}

pub(super) async fn a_batch_of_deletes_removes_what_it_names_and_nothing_else(
    ground: &Ground<'_>,
) -> Result<(), String> {
    let there = ["a", "a/b", "sp ace", "plus+and%25", "amp&er<sand>", "ä=1'()~", "stays", "a/stays"];
    for key in there {
        ground.put(key, "x").await?;
    }
    let mut batch: Vec<String> =
        there.iter().filter(|key| !key.ends_with("stays")).map(|key| (*key).to_owned()).collect();
    batch.insert(2, "never there".to_owned());
    for _ in 0..2 {
        let outcomes = ground.store.delete_many(&batch).await;
        ensure(outcomes == vec![WriteOutcome::Done; batch.len()], || format!("of {batch:?}: {outcomes:?}"))?;
    }
    let left = ground.store.list_all("").await.map_err(text)?;
    let left: Vec<&str> = left.iter().map(|object| object.key.as_str()).collect();
    ensure(left == ["a/stays", "stays"], || format!("left: {left:?}"))?;
    let of_none = ground.store.delete_many(&[]).await;
    ensure(of_none.is_empty(), || format!("of none: {of_none:?}"))?;
    let of_one = ground.store.delete_many(&["stays".to_owned()]).await;
    ensure(of_one == [WriteOutcome::Done], || format!("of one: {of_one:?}"))
}

pub(super) async fn a_batch_for_a_missing_bucket_is_refused_key_by_key(ground: &Ground<'_>) -> Result<(), String> {
    let location =
        elsewhere(&ground.location, |raw| raw.bucket = "lockstep-no-such-bucket".to_owned()).map_err(text)?;
    let store = ground.subject.connector.connect(&location).await.map_err(text)?;
    let outcomes = store.delete_many(&["a".to_owned(), "b".to_owned()]).await;
    ensure(outcomes.len() == 2, || format!("{outcomes:?}"))?;
    for (key, outcome) in ["a", "b"].into_iter().zip(outcomes) {
        match outcome {
            WriteOutcome::Refused(error) => {
                kind_is(StoreErrorKind::NotFound, &error)?;
                ensure(error.key == location.full_key(key), || format!("{key}: {error}"))?;
            }
            other => return Err(format!("{key}: {other:?}")),
        }
    }
    Ok(())
}

pub(super) async fn listings_are_whole_ordered_and_bounded(ground: &Ground<'_>) -> Result<(), String> {
    let keys: Vec<String> = (0..10).map(|n| format!("list/{n:02}")).collect();
    for (n, key) in keys.iter().enumerate().rev() {
        ground.put(key, pattern(n)).await?;
    }
    for max in [1, 3, 9, 10, 11] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = ground.store.list("list/", after.as_deref(), max).await.map_err(text)?;
            ensure(page.objects.len() <= usize::from(max), || {
                format!("{} keys on a page of {max}", page.objects.len())
            })?;
            seen.extend(page.objects);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let right = seen.iter().map(|o| &o.key).eq(&keys) && seen.iter().map(|o| o.size).eq(0..10);
        ensure(right, || format!("pages of {max}: {seen:?}"))?;
    }
    // After a key that is not there, too.
    let page = ground.store.list("list/", Some("list/045"), 2).await.map_err(text)?;
    let found: Vec<&str> = page.objects.iter().map(|o| o.key.as_str()).collect();
    ensure(found == ["list/05", "list/06"], || format!("after list/045: {found:?}"))
}

pub(super) async fn more_than_one_thousand_keys_are_listed(ground: &Ground<'_>) -> Result<(), String> {
    let count = usize::from(MAX_PAGE) + 5;
    let keys: Vec<String> = (0..count).map(|n| format!("many/{n:05}")).collect();
    let puts: Vec<BoxFuture<'_, Result<(), String>>> = keys.iter().map(|key| ground.put(key, "x").boxed()).collect();
    futures::stream::iter(puts).buffer_unordered(16).try_collect::<()>().await?;
    let listed = ground.store.list_all("many/").await.map_err(text)?;
    ensure(listed.iter().map(|o| &o.key).eq(&keys), || format!("{} of {count} keys", listed.len()))?;
    let outcomes = ground.store.delete_many(keys.get(..MAX_DELETES).unwrap_or_default()).await;
    let done = outcomes.iter().filter(|outcome| **outcome == WriteOutcome::Done).count();
    ensure(done == MAX_DELETES, || format!("{done} of a batch of {MAX_DELETES} were deleted"))?;
    let left = ground.store.list_all("many/").await.map_err(text)?;
    ensure(left.iter().map(|o| &o.key).eq(keys.iter().skip(MAX_DELETES)), || format!("{} are left", left.len()))
}

pub(super) async fn prefixes_end_where_they_end(ground: &Ground<'_>) -> Result<(), String> {
    for key in ["host1/a", "host10/a", "host1", "host1/b/c"] {
        ground.put(key, "x").await?;
    }
    let listed = ground.store.list_all("host1/").await.map_err(text)?;
    let found: Vec<&str> = listed.iter().map(|o| o.key.as_str()).collect();
    ensure(found == ["host1/a", "host1/b/c"], || format!("host1/: {found:?}"))?;
    let all = ground.store.list_all("").await.map_err(text)?;
    ensure(all.len() == 4, || format!("everything: {all:?}"))
}

pub(super) async fn unusual_prefixes_work(ground: &Ground<'_>) -> Result<(), String> {
    let prefix = ground.location.full_key("sp ace/plus+and%25&ä=1'()~");
    let location = elsewhere(&ground.location, |raw| raw.prefix = prefix).map_err(text)?;
    let store = ground.subject.connector.connect(&location).await.map_err(text)?;
    for key in ["b/1", "a/1"] {
        let outcome = store.create(key, Bytes::from_static(b"x")).await;
        ensure(outcome == CreateOutcome::Done, || format!("create: {outcome:?}"))?;
    }
    let listed = store.list_all("").await.map_err(text)?;
    let found: Vec<&str> = listed.iter().map(|o| o.key.as_str()).collect();
    ensure(found == ["a/1", "b/1"], || format!("list: {found:?}"))?;
    let after = store.list("", Some("a/1"), 10).await.map_err(text)?;
    ensure(after.objects.len() == 1, || format!("list after a/1: {after:?}"))?;
    match store.get("a/1", 10).await {
        Lookup::Found(found) if found == b"x".as_slice() => Ok(()),
        other => Err(format!("get: {other:?}")),
    }
}
