//! Install without a pull before it, repeated, and cancelled.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use lockstep_agent::store::{directory::DirectoryStore, engine::EngineCheck};
use lockstep_proto::v1;

use crate::harness::{Files, Host, files, noise, read_tree, s3};

#[tokio::test]
async fn installing_a_local_checkpoint_keeps_it_and_removes_the_others() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let chosen = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let abandoned = host.checkpoint(8, &files(&[("a", noise("b", 10))]));
    let before = read_tree(&host.folder(chosen));
    let order = host.install_order(1, &chosen.to_string(), 4);
    let done = host.install(order.clone()).await.unwrap();
    assert_eq!((done.reach(), done.step, done.bytes_downloaded), (v1::PullReach::Installed, 4, 0));
    assert_eq!(read_tree(&host.folder(chosen)), before);
    assert!(!host.folder(abandoned).exists());
    assert_eq!(host.install(order).await.unwrap(), done);
    assert_eq!(s3.requests(), []);
}

#[tokio::test]
async fn a_fresh_install_removes_every_local_checkpoint() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let old = host.checkpoint(4, &Files::new());
    let mut order = host.install_order(1, "", 0);
    order.fresh = true;
    let done = host.install(order).await.unwrap();
    assert_eq!((done.reach(), done.local_checkpoint.as_str()), (v1::PullReach::Installed, ""));
    assert!(!host.folder(old).exists());
}

#[tokio::test]
async fn a_checkpoint_that_is_neither_staged_nor_local_needs_a_pull_and_nothing_is_removed() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let present = host.checkpoint(4, &Files::new());
    let problem = host.install(host.install_order(1, &uuid::Uuid::new_v4().to_string(), 8)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.code), ("CHECKPOINT_NOT_FOUND", tonic::Code::NotFound));
    assert!(problem.message.contains("order Pull again"), "{}", problem.message);
    assert!(host.folder(present).exists());
}

#[tokio::test]
async fn cancel_removes_what_was_staged() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    host.pull(host.pull_order(2, &done, 1)).await.unwrap();
    assert_eq!(host.stagings().len(), 1);
    let header = host.header(2);
    let answer =
        host.client.clone().cancel(v1::CancelOrder { header: Some(header.clone()) }).await.unwrap().into_inner();
    assert!(answer.stopped);
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
    assert!(matches!(host.pull_state(header, 0).await, v1::pull_status_response::State::Failed(_)));
}

#[tokio::test]
async fn a_newer_round_removes_what_an_older_one_staged() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    host.pull(host.pull_order(2, &done, 1)).await.unwrap();
    host.push(host.push_order(3, checkpoint, 4)).await.unwrap();
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn under_a_running_engine_nothing_is_pulled_or_installed_and_what_is_staged_stays() {
    let s3 = s3().await;
    let pusher = Host::start(&s3).await;
    let checkpoint = pusher.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let pushed = pusher.push(pusher.push_order(1, checkpoint, 4)).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let check = EngineCheck::new({
        let running = Arc::clone(&running);
        move || Ok(running.load(Ordering::SeqCst))
    });
    let store = DirectoryStore::open(dir.path()).unwrap().with_engine_check(check);
    let host = Host::over(&s3, dir, Arc::new(store)).await;
    s3.clear_requests();
    let problem = host.pull(host.pull_order(2, &pushed, 1)).await.unwrap_err();
    assert_eq!(problem.reason, "ENGINE_RUNNING");
    assert_eq!(s3.requests(), []);

    running.store(false, Ordering::SeqCst);
    host.pull(host.pull_order(3, &pushed, 1)).await.unwrap();
    running.store(true, Ordering::SeqCst);
    let order = host.install_order(3, &pushed.local_checkpoint, 4);
    let problem = host.install(order.clone()).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.code), ("ENGINE_RUNNING", tonic::Code::FailedPrecondition));
    let state = host.pull_state(host.header(3), 0).await;
    assert!(
        matches!(&state, v1::pull_status_response::State::Done(done) if done.reach() == v1::PullReach::Staged),
        "{state:?}"
    );

    running.store(false, Ordering::SeqCst);
    let done = host.install(order).await.unwrap();
    assert_eq!(done.reach(), v1::PullReach::Installed);
    assert!(host.folder(checkpoint).join("a").exists());
}
