//! What is refused, as the error table has it.

use bytes::Bytes;
use lockstep_bucket::{Connector as _, CreateOutcome, Lookup, ObjectStore, StoreError, WriteOutcome};
use lockstep_protocol::problem::Reason;

use crate::{
    deviations::{Trap, deviates},
    ground::Ground,
};

/// What each kind of request is answered with; `None` where it is not refused.
async fn refusals(store: &dyn ObjectStore) -> Vec<(&'static str, Option<StoreError>)> {
    let created = match store.create("created", Bytes::from_static(b"x")).await {
        CreateOutcome::Refused(error) => Some(error),
        _ => None,
    };
    let put = match store.put("put", Bytes::from_static(b"x").into()).await {
        WriteOutcome::Refused(error) => Some(error),
        _ => None,
    };
    let got = match store.get("present", 100).await {
        Lookup::Unknown(error) => Some(error),
        _ => None,
    };
    vec![
        ("create", created),
        ("put", put),
        ("get", got),
        ("range", store.get_range("present", 0, 1).await.err()),
        ("list", store.list("", None, 10).await.err()),
        ("create multipart", store.create_multipart("multipart").await.err()),
        ("list multipart", store.list_multipart("").await.err()),
    ]
}

fn assert_all(refusals: &[(&str, Option<StoreError>)], reason: Reason, codes: &[&str]) {
    for (request, error) in refusals {
        let Some(error) = error else { panic!("{request} is not refused") };
        let code = error.s3_code.as_deref();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{request}: {error}");
        assert_eq!(error.problem().reason, reason, "{request}: {error}");
    }
}

pub(crate) async fn a_missing_bucket_is_store_not_found(ground: Ground) {
    let location = "s3://lockstep-no-such-bucket/prefix".parse().unwrap();
    let store = ground.connector.connect(&location).await.unwrap();
    assert_all(&refusals(store.as_ref()).await, Reason::StoreNotFound, &["NoSuchBucket"]);
    match store.head("present").await {
        Lookup::Unknown(error) => assert_eq!(error.problem().reason, Reason::StoreNotFound, "{error}"),
        other => panic!("{other:?}: a missing bucket proves nothing about a key"),
    }
}

async fn is_denied(ground: &Ground, key: &str, secret: &str, trap: Trap, code: &str) {
    let store = ground.store().await;
    assert_eq!(store.put("present", Bytes::from_static(b"x").into()).await, WriteOutcome::Done);
    let stranger = ground.asked_by(key, secret).await.connect(&ground.location()).await.unwrap();
    let refusals = refusals(stranger.as_ref()).await;
    let objects = store.list_all("").await.unwrap().len();
    if deviates(ground.kind, trap) {
        assert!(refusals.iter().all(|(_, error)| error.is_none()), "no longer deviates: {refusals:?}");
        return;
    }
    assert_all(&refusals, Reason::StoreDenied, &[code]);
    assert_eq!(objects, 1, "a stranger wrote something");
    match stranger.head("present").await {
        Lookup::Unknown(error) => assert_eq!(error.problem().reason, Reason::StoreDenied, "{error}"),
        other => panic!("{other:?}: a refusal proves nothing about a key"),
    }
}

pub(crate) async fn a_wrong_secret_is_store_denied(ground: Ground) {
    is_denied(&ground, crate::ground::ACCOUNT.key, "another-secret", Trap::AnySecret, "SignatureDoesNotMatch").await;
}

pub(crate) async fn an_unknown_access_key_is_store_denied(ground: Ground) {
    is_denied(&ground, "NOBODY", "another-secret", Trap::AnySecret, "InvalidAccessKeyId").await;
}
