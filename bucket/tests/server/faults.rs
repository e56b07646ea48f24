use bytes::Bytes;
use futures::TryStreamExt as _;
use lockstep_bucket::{CreateOutcome, Lookup, StoreErrorKind, WriteOutcome};
use lockstep_devkit::{DenyRule, FaultAction, FaultRule};

use crate::ground::{server, store};

fn body() -> Bytes {
    Bytes::from(vec![7; 300_000])
}

fn put(action: FaultAction) -> FaultRule {
    let mut rule = FaultRule::new(action).operation("PutObject");
    rule.times = Some(1);
    rule
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_is_unknown_and_the_second_try_says_exists() {
    let server = server().await;
    let store = store(&server).await;
    server.faults().add(put(FaultAction::ResetAfterWrite));
    match store.create("key", body()).await {
        CreateOutcome::Unknown(error) => {
            assert_eq!((error.kind, error.http_status), (StoreErrorKind::Unavailable, None), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.create("key", body()).await, CreateOutcome::Exists);
    assert_eq!(store.get("key", 1 << 20).await, Lookup::Found(body()));
    assert_eq!(server.log().count_of("PutObject"), 2, "nothing retries by itself");
}

#[tokio::test]
async fn a_create_that_never_arrives_is_unknown_and_the_second_try_is_done() {
    let server = server().await;
    let store = store(&server).await;
    for action in [FaultAction::ResetBeforeWrite, FaultAction::ResetDuringBody { after_bytes: 1000 }] {
        let key = format!("{action:?}");
        server.faults().add(put(action));
        assert!(matches!(store.create(&key, body()).await, CreateOutcome::Unknown(_)));
        assert_eq!(store.create(&key, body()).await, CreateOutcome::Done);
    }
}

#[tokio::test]
async fn every_5xx_of_a_write_is_unknown_even_if_it_says_nothing_was_done() {
    let server = server().await;
    let store = store(&server).await;
    for (action, kind) in [
        (FaultAction::SlowDown, StoreErrorKind::Throttled),
        (FaultAction::InternalError, StoreErrorKind::Unavailable),
        (FaultAction::ErrorAfterWrite { status: 500, code: "InternalError".into() }, StoreErrorKind::Unavailable),
        (FaultAction::Error { status: 409, code: "ConditionalRequestConflict".into() }, StoreErrorKind::Conflict),
    ] {
        server.faults().add(put(action.clone()));
        match store.create(&format!("{action:?}"), body()).await {
            CreateOutcome::Unknown(error) => assert_eq!(error.kind, kind, "{error}"),
            other => panic!("{action:?}: {other:?}"),
        }
        server.faults().add(put(action.clone()));
        match store.put("put", body().into()).await {
            WriteOutcome::Unknown(error) => assert_eq!(error.kind, kind, "{error}"),
            other => panic!("{action:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn errors_carry_operation_bucket_key_status_code_and_request_id() {
    let server = server().await;
    let store = store(&server).await;
    server.faults().add(put(FaultAction::Error { status: 403, code: "RequestTimeTooSkewed".into() }));
    let CreateOutcome::Unknown(error) = store.create("key", body()).await else { panic!("it may be tried again") };
    let problem = error.problem();
    assert_eq!(problem.reason.as_str(), "STORE_CLOCK_SKEW");
    for (name, value) in [
        ("operation", "create"),
        ("bucket", "bucket"),
        ("key", "p/key"),
        ("http_status", "403"),
        ("s3_code", "RequestTimeTooSkewed"),
    ] {
        assert_eq!(problem.metadata.get(name).map(String::as_str), Some(value));
        assert!(problem.message.contains(value), "{} lacks {value}", problem.message);
    }
    let id = problem.metadata.get("request_id").unwrap();
    assert!(id.starts_with("LOCKSTEP") && problem.message.contains(id), "{}", problem.message);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_never_a_short_object() {
    let server = server().await;
    let store = store(&server).await;
    assert_eq!(store.put("key", body().into()).await, WriteOutcome::Done);
    server.faults().add(FaultRule::new(FaultAction::Truncate { after_bytes: 1000 }).operation("GetObject"));
    match store.get("key", 1 << 20).await {
        Lookup::Unknown(error) => assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}"),
        other => panic!("{other:?}"),
    }
    let chunks = store.get_range("key", 10, 200_000).await.unwrap().try_collect::<Vec<Bytes>>().await;
    assert_eq!(chunks.unwrap_err().kind, StoreErrorKind::Unavailable);
}

#[tokio::test]
async fn a_refused_listing_is_an_error_and_a_refused_read_is_no_absence() {
    let server = server().await;
    let store = store(&server).await;
    server.denials().add(DenyRule { operation: Some("ListBucket".into()), ..DenyRule::default() });
    server.denials().add(DenyRule { operation: Some("GetObject".into()), ..DenyRule::default() });
    assert_eq!(store.list_all("").await.unwrap_err().kind, StoreErrorKind::Denied);
    for lookup in [store.get("nothing", 10).await.map(drop), store.head("nothing").await.map(drop)] {
        match lookup {
            Lookup::Unknown(error) => {
                assert_eq!(error.problem().reason.as_str(), "STORE_DENIED");
                assert_eq!(error.http_status, Some(403));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn without_delete_right_the_probe_passes_and_says_what_it_left() {
    let server = server().await;
    server.denials().add(DenyRule { operation: Some("DeleteObject".into()), ..DenyRule::default() });
    let report = lockstep_bucket::probe(store(&server).await.as_ref()).await.unwrap();
    assert!(!report.may_delete);
    assert_eq!(report.left.len(), 3, "{report:?}");
}

#[tokio::test]
async fn a_multipart_whose_completion_was_not_answered_is_found_complete() {
    let server = server().await;
    let store = store(&server).await;
    let upload = store.create_multipart("key").await.unwrap();
    let part = store.upload_part("key", &upload, 1, body().into()).await.unwrap();
    let mut rule = FaultRule::new(FaultAction::ResetAfterWrite).operation("CompleteMultipartUpload");
    rule.times = Some(1);
    server.faults().add(rule);
    let parts = [part];
    assert_eq!(store.complete_multipart("key", &upload, &parts).await, WriteOutcome::Done);
    assert_eq!(server.log().count_of("CompleteMultipartUpload"), 1);
    assert_eq!(store.get("key", 1 << 20).await, Lookup::Found(body()));
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    let server = server().await;
    let store = store(&server).await;
    server.stop().await;
    match store.get("key", 10).await {
        Lookup::Unknown(error) => {
            assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
            assert_eq!(error.problem().retryable().as_str(), "yes");
        }
        other => panic!("{other:?}"),
    }
}
