//! Rows of the error table that depend on what stands in bucket and database.

use std::time::Duration;

use lockstep_coordinator::api::ApiOptions;
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_proto::v1;
use lockstep_protocol::{
    fence::{Fence, FenceBase, Writer},
    id::Generation,
    key::Key,
};
use lockstep_rpc::Retryable;
use tonic::Code;
use uuid::Uuid;

use crate::{
    checkpoints::{list, put},
    harness::{BUCKET, Coordinator, refused, uuid},
    rounds::{described, pull, push},
};

fn put_raw(coordinator: &Coordinator, key: &Key, bytes: &[u8]) {
    coordinator.s3.admin().put_raw(BUCKET, &format!("orders/{key}"), bytes).unwrap();
}

fn dry_push() -> v1::StartPushRequest {
    v1::StartPushRequest { validate_only: true, ..push("orders") }
}

fn dry_pull() -> v1::StartPullRequest {
    v1::StartPullRequest { validate_only: true, discard_local: true, ..pull("orders") }
}

async fn pipeline(coordinator: &mut Coordinator) -> v1::Pipeline {
    let request = v1::GetPipelineRequest { pipeline: "orders".to_owned() };
    coordinator.client.get_pipeline(request).await.unwrap().into_inner()
}

/// Another writer's fence of generation 2.
fn fence(pipeline: &str) -> Fence {
    Fence {
        generation: Generation::FIRST.next(),
        pipeline: pipeline.parse().unwrap(),
        pipeline_name: "orders".to_owned().try_into().unwrap(),
        writer: Writer::Direct,
        take_over: Uuid::new_v4(),
        created_at: chrono::Utc::now(),
        released: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_take_over_is_said_to_be_one_and_a_finished_one_fences() {
    let (mut coordinator, _agents) = described(&[&[100], &[100]]).await;
    let generation = Generation::FIRST.next();
    put_raw(&coordinator, &Key::Fence(generation), &fence(&uuid()).encode());
    let problem = refused(coordinator.client.list_checkpoints(list(0, "")).await, "TAKE_OVER_IN_PROGRESS");
    assert_eq!((problem.code, problem.retryable), (Code::Unavailable, Retryable::Yes));
    assert_eq!(problem.metadata["generation"], "2");
    let problem = refused(coordinator.client.start_push(dry_push()).await, "TAKE_OVER_IN_PROGRESS");
    assert_eq!(problem.metadata["generation"], "2");
    // Nobody who only looks finishes it.
    assert!(coordinator.s3.admin().read(BUCKET, &format!("orders/{}", Key::FenceBase(generation))).is_err());

    let base = FenceBase { generation, newest: None, tombstones: Vec::new() };
    put_raw(&coordinator, &Key::FenceBase(generation), &base.encode());
    let problem = refused(coordinator.client.start_push(dry_push()).await, "FENCED");
    assert_eq!((problem.code, problem.retryable), (Code::FailedPrecondition, Retryable::No));
    assert_eq!(problem.metadata["newer_generation"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_knows_more_than_the_database_stops_a_push() {
    let (mut coordinator, _agents) = described(&[&[100], &[100]]).await;
    let pipeline = pipeline(&mut coordinator).await;
    let put = put(&coordinator, &pipeline, 1, 100, None);
    let problem = refused(coordinator.client.start_push(dry_push()).await, "DATABASE_BEHIND");
    assert_eq!(problem.code, Code::FailedPrecondition);
    assert_eq!(problem.metadata["other_round"], put.commit.round.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_layout_is_refused_before_any_download() {
    let (mut coordinator, _agents) = described(&[&[], &[]]).await;
    let pipeline = pipeline(&mut coordinator).await;
    // Made by one host; the pipeline has two.
    put(&coordinator, &pipeline, 1, 100, None);
    let problem = refused(coordinator.client.start_pull(dry_pull()).await, "LAYOUT_MISMATCH");
    assert_eq!((problem.code, problem.retryable), (Code::FailedPrecondition, Retryable::AfterFix));
    assert!(coordinator.s3.requests().iter().all(|r| r.key.as_deref().is_none_or(|key| !key.contains("/data-"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_breaks_its_rules_is_an_error_and_no_absence() {
    let (mut coordinator, _agents) = described(&[&[], &[]]).await;
    put_raw(&coordinator, &Key::Commit(Generation::FIRST, lockstep_protocol::id::Seq::FIRST), b"{\"format\":1}");
    let listed = coordinator.client.list_checkpoints(list(0, "")).await.unwrap().into_inner().checkpoints;
    let why = listed[0].unreadable.as_ref().unwrap();
    assert_eq!((why.reason.as_str(), listed.len()), ("MANIFEST_INVALID", 1), "{why:?}");
    let problem = refused(coordinator.client.start_pull(dry_pull()).await, "MANIFEST_INVALID");
    assert_eq!(problem.code, Code::DataLoss);
    assert!(problem.metadata["key"].contains("commits/"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_an_error_and_no_fresh_start() {
    let (mut coordinator, _agents) = described(&[&[], &[]]).await;
    let planned = coordinator.client.start_pull(dry_pull()).await.unwrap().into_inner();
    assert_eq!(planned.source(), v1::PullSource::Fresh);
    let down = FaultAction::Error { status: 503, code: "ServiceUnavailable".to_owned() };
    coordinator.s3.faults().add(FaultRule::new(down).bucket(BUCKET));
    for fail_if_none in [None, Some(true), Some(false)] {
        let request = v1::StartPullRequest { fail_if_none, ..dry_pull() };
        let problem = refused(coordinator.client.start_pull(request).await, "STORE_UNAVAILABLE");
        assert_eq!((problem.code, problem.metadata["http_status"].as_str()), (Code::Unavailable, "503"));
        assert_eq!(problem.metadata["bucket"], BUCKET);
    }
    coordinator.s3.faults().clear();
    coordinator.s3.faults().add(FaultRule::new(FaultAction::SlowDown).bucket(BUCKET));
    let problem = refused(coordinator.client.start_pull(dry_pull()).await, "STORE_THROTTLED");
    assert_eq!((problem.code, problem.retryable), (Code::ResourceExhausted, Retryable::Yes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_goes_on_after_its_caller_was_told_that_the_store_is_down() {
    let options = ApiOptions { create_wait: Duration::from_millis(1500), ..ApiOptions::default() };
    let mut coordinator = Coordinator::start_with(options).await;
    let down = FaultAction::Error { status: 503, code: "ServiceUnavailable".to_owned() };
    coordinator.s3.faults().add(FaultRule::new(down).bucket(BUCKET));
    let request =
        v1::CreatePipelineRequest { spec: Some(coordinator.spec("orders")), request_id: uuid(), validate_only: false };
    let problem = refused(coordinator.client.create_pipeline(request.clone()).await, "STORE_UNAVAILABLE");
    assert_eq!((problem.code, problem.retryable), (Code::Unavailable, Retryable::Yes));
    assert!(problem.message.contains("goes on"), "{problem}");
    let id = problem.metadata["id"].clone();
    let unowned = refused(coordinator.client.start_push(push("orders")).await, "NOT_OWNER");
    assert_eq!(unowned.code, Code::FailedPrecondition);

    coordinator.s3.faults().clear();
    let owned = loop {
        match coordinator.client.create_pipeline(request.clone()).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    };
    assert_eq!((owned.id, owned.generation), (id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_is_named() {
    let mut coordinator = Coordinator::start().await;
    let name = coordinator.database.name().to_owned();
    coordinator.database.clone().remove().await.unwrap();
    let request = v1::GetPipelineRequest { pipeline: "orders".to_owned() };
    let problem = refused(coordinator.client.get_pipeline(request).await, "DATABASE_UNAVAILABLE");
    assert_eq!(problem.code, Code::Unavailable);
    assert!(problem.message.contains(&name), "{problem}");
}
