//! Listings: whole, in order, and never behind.

use bytes::Bytes;
use lockstep_bucket::{ListPage, ObjectStore, WriteOutcome};

use crate::ground::Ground;

async fn put(store: &dyn ObjectStore, key: &str) {
    assert_eq!(store.put(key, Bytes::copy_from_slice(key.as_bytes()).into()).await, WriteOutcome::Done, "{key}");
}

fn keys(page: &ListPage) -> Vec<&str> {
    page.objects.iter().map(|listed| listed.key.as_str()).collect()
}

async fn all(store: &dyn ObjectStore, prefix: &str) -> Vec<String> {
    store.list_all(prefix).await.unwrap().into_iter().map(|listed| listed.key).collect()
}

pub(crate) async fn twenty_five_keys_come_in_three_pages_of_ten(ground: Ground) {
    let store = ground.store().await;
    let expected: Vec<String> = (0..25).map(|n| format!("commits/{n:020}.json")).collect();
    for key in expected.iter().rev() {
        put(store.as_ref(), key).await;
    }
    let first = store.list("commits/", None, 10).await.unwrap();
    let second = store.list("commits/", first.next.as_deref(), 10).await.unwrap();
    let third = store.list("commits/", second.next.as_deref(), 10).await.unwrap();
    assert_eq!([keys(&first), keys(&second), keys(&third)].concat(), expected);
    assert_eq!([first.objects.len(), second.objects.len(), third.objects.len()], [10, 10, 5]);
    assert_eq!(third.next, None);

    let after = store.list("commits/", Some(&expected[19]), 10).await.unwrap();
    assert_eq!((keys(&after), after.next.as_deref()), (expected[20..].iter().map(String::as_str).collect(), None));
    let exactly = store.list("commits/", Some(&expected[14]), 10).await.unwrap();
    assert_eq!((exactly.objects.len(), exactly.next), (10, None), "a full page may be the last");
    let nothing = store.list("commits/", Some(&expected[24]), 10).await.unwrap();
    assert_eq!(nothing, ListPage::default());
}

pub(crate) async fn every_write_and_delete_is_listed_at_once(ground: Ground) {
    let store = ground.store().await;
    let mut expected = Vec::new();
    for n in 0..20 {
        let key = format!("key-{n:02}");
        put(store.as_ref(), &key).await;
        expected.push(key);
        assert_eq!(all(store.as_ref(), "").await, expected);
    }
    while let Some(key) = expected.pop() {
        assert_eq!(store.delete(&key).await, WriteOutcome::Done);
        assert_eq!(all(store.as_ref(), "").await, expected);
    }
}

pub(crate) async fn a_host_is_not_listed_with_another_whose_number_it_begins(ground: Ground) {
    let store = ground.store().await;
    for key in ["data/host1/a", "data/host10/a", "data/host1", "data/host100", "data/host1/b/c"] {
        put(store.as_ref(), key).await;
    }
    assert_eq!(all(store.as_ref(), "data/host1/").await, ["data/host1/a", "data/host1/b/c"]);
    assert_eq!(all(store.as_ref(), "data/host10/").await, ["data/host10/a"]);
    assert_eq!(all(store.as_ref(), "data/host1").await.len(), 5);
    // A location is a folder too: its neighbour's keys are not its own.
    let neighbour = format!("s3://{}/{}0", crate::ground::BUCKET, ground.location().prefix()).parse().unwrap();
    let neighbour = lockstep_bucket::Connector::connect(&ground.connector, &neighbour).await.unwrap();
    put(neighbour.as_ref(), "data/host1/z").await;
    assert_eq!(all(store.as_ref(), "").await.len(), 5);
    assert_eq!(all(neighbour.as_ref(), "").await, ["data/host1/z"]);
}
