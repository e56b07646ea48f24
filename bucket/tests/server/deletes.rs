//! Batches of deletes: what each key is told, and servers that take none.

use bytes::Bytes;
use lockstep_bucket::{ObjectStore, StoreErrorKind, WriteOutcome};
use lockstep_devkit::{DenyRule, FaultAction, FaultRule, s3::S3Server};

use crate::ground::{server, store};

async fn filled(server: &S3Server) -> (std::sync::Arc<dyn ObjectStore>, Vec<String>) {
    let store = store(server).await;
    let keys: Vec<String> = (0..40).map(|n| format!("batch/{n:02}")).collect();
    for key in &keys {
        assert_eq!(store.put(key, Bytes::from_static(b"x").into()).await, WriteOutcome::Done);
    }
    server.clear_requests();
    (store, keys)
}

async fn left(store: &dyn ObjectStore) -> usize {
    store.list_all("batch/").await.unwrap().len()
}

#[tokio::test]
async fn a_batch_is_one_request() {
    let server = server().await;
    let (store, keys) = filled(&server).await;
    assert_eq!(store.delete_many(&keys).await, vec![WriteOutcome::Done; keys.len()]);
    assert_eq!(server.requests().len(), 1, "{:?}", server.requests());
    assert_eq!((server.log().count_of("DeleteObjects"), left(store.as_ref()).await), (1, 0));
}

#[tokio::test]
async fn a_key_that_is_refused_keeps_none_of_the_others() {
    let server = server().await;
    let (store, keys) = filled(&server).await;
    let locked = DenyRule {
        operation: Some("DeleteObject".into()),
        key_prefix: Some("p/batch/07".into()),
        ..DenyRule::default()
    };
    server.denials().add(locked);
    for (key, outcome) in keys.iter().zip(store.delete_many(&keys).await) {
        match outcome {
            WriteOutcome::Done => assert_ne!(key, "batch/07"),
            WriteOutcome::Refused(error) => {
                assert_eq!((key.as_str(), error.key.as_str()), ("batch/07", "p/batch/07"));
                assert_eq!((error.kind, error.s3_code.as_deref()), (StoreErrorKind::Denied, Some("AccessDenied")));
            }
            WriteOutcome::Unknown(error) => panic!("{error}"),
        }
    }
    assert_eq!((server.log().count_of("DeleteObjects"), left(store.as_ref()).await), (1, 1));
}

#[tokio::test]
async fn a_server_that_knows_no_batches_is_asked_once_and_then_key_by_key() {
    for (status, code) in [(501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "MalformedXML")] {
        let server = server().await;
        let (store, keys) = filled(&server).await;
        let action = FaultAction::Error { status, code: code.to_owned() };
        server.faults().add(FaultRule::new(action).operation("DeleteObjects"));
        for half in keys.chunks(20) {
            assert_eq!(store.delete_many(half).await, vec![WriteOutcome::Done; half.len()], "{code}");
        }
        let log = server.log();
        assert_eq!((log.count_of("DeleteObjects"), log.count_of("DeleteObject")), (1, 40), "{code}");
        assert_eq!(left(store.as_ref()).await, 0, "{code}");
    }
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_is_tried_key_by_key_and_the_next_one_is_a_batch_again() {
    let server = server().await;
    let (store, keys) = filled(&server).await;
    server.faults().add(FaultRule::new(FaultAction::AccessDenied).operation("DeleteObjects").times(1));
    for half in keys.chunks(20) {
        assert_eq!(store.delete_many(half).await, vec![WriteOutcome::Done; half.len()]);
    }
    let log = server.log();
    assert_eq!((log.count_of("DeleteObjects"), log.count_of("DeleteObject")), (2, 20));
    assert_eq!(left(store.as_ref()).await, 0);
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_unknown_key_by_key_and_may_be_repeated() {
    let server = server().await;
    let (store, keys) = filled(&server).await;
    server.faults().add(FaultRule::new(FaultAction::ResetAfterWrite).operation("DeleteObjects").times(1));
    for (key, outcome) in keys.iter().zip(store.delete_many(&keys).await) {
        let WriteOutcome::Unknown(error) = outcome else { panic!("{key}: {outcome:?}") };
        assert!(error.is_retryable() && error.key.ends_with(key), "{error}");
    }
    assert_eq!(store.delete_many(&keys).await, vec![WriteOutcome::Done; keys.len()]);
    assert_eq!(server.log().count_of("DeleteObject"), 0, "what is not known is no reason to ask key by key");
}
