//! Direct sync, without a coordinator.

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::{CommitDocument, DecisionObject},
    digest::Digest,
    fence::{Fence, Writer},
    host::Layout,
    id::{DatabaseId, Generation, PipelineId, PipelineName, Seq},
    key::Key,
};
use lockstep_rpc::RpcProblem;

use crate::harness::{BUCKET, Files, Host, PREFIX, files, noise, object, proto_location, refusal, s3, until};

async fn sync(host: &Host) -> Result<v1::SyncResponse, RpcProblem> {
    let request = v1::SyncRequest { location: Some(proto_location(&host.location)) };
    host.client.clone().sync(request).await.map(tonic::Response::into_inner).map_err(RpcProblem::from)
}

fn committed(s3: &S3Server, commit: &v1::CommitRef) -> CommitDocument {
    let key = Key::Commit(Generation::new(commit.generation).unwrap(), Seq::new(commit.seq).unwrap()).to_string();
    let bytes = object(s3, &key);
    assert_eq!(Digest::of(&bytes).to_string(), commit.digest);
    match DecisionObject::parse(&key, &bytes).unwrap() {
        DecisionObject::Commit(document) => *document,
        DecisionObject::Abort(record) => panic!("aborted: {record:?}"),
    }
}

#[tokio::test]
async fn a_multi_host_agent_refuses_a_direct_sync_before_anything_else() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    host.checkpoint(4, &Files::new());
    // Not even the location is looked at.
    let problem = refusal(host.client.clone().sync(v1::SyncRequest { location: None }).await);
    assert_eq!(
        (problem.reason.as_str(), problem.code),
        ("MULTIHOST_REQUIRES_COORDINATOR", tonic::Code::FailedPrecondition)
    );
    let problem =
        refusal(host.client.clone().sync(v1::SyncRequest { location: Some(proto_location(&host.location)) }).await);
    assert_eq!(problem.reason, "MULTIHOST_REQUIRES_COORDINATOR");
    assert_eq!(s3.requests(), []);
}

#[tokio::test]
async fn a_solo_agent_commits_what_anybody_with_the_bucket_can_read() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    let first = host.checkpoint(4, &files(&[("a", noise("a", 50_000)), ("b", noise("b", 3))]));
    let synced = sync(&host).await.unwrap();
    let done = synced.done.unwrap();
    assert_eq!((done.local_checkpoint.clone(), done.step), (first.to_string(), 4));
    let commit = committed(&s3, &synced.commit.unwrap());
    assert_eq!((commit.step.get(), commit.layout, commit.parent), (4, Layout::Solo, None));
    assert_eq!(commit.parts[0].manifest, done.part.unwrap().key);

    // Nothing new: the same commit, nothing sent.
    let again = sync(&host).await.unwrap();
    assert_eq!(again.commit.as_ref().unwrap().seq, 1);
    assert_eq!(again.done.unwrap().bytes_uploaded, 0);

    // The next one reuses its base and names its parent.
    host.checkpoint(8, &files(&[("a", noise("a", 50_000)), ("b", noise("b2", 3))]));
    let next = sync(&host).await.unwrap();
    assert!(next.done.unwrap().bytes_uploaded < 50_000);
    let reference = next.commit.unwrap();
    let commit = committed(&s3, &reference);
    assert_eq!((commit.seq.get(), commit.parent.unwrap().seq.get(), commit.base), (2, 1, commit.parent));
}

#[tokio::test]
async fn a_sync_whose_commit_was_lost_on_the_way_is_finished_by_the_next_one() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    // The commit lands, no answer comes, and neither can it be read.
    s3.faults().add(
        FaultRule::new(FaultAction::ErrorAfterWrite { status: 500, code: "InternalError".to_owned() })
            .key_contains("commits/")
            .operation("PutObject"),
    );
    let unreadable =
        s3.faults().add(FaultRule::new(FaultAction::InternalError).key_contains("commits/").operation("GetObject"));
    let problem = sync(&host).await.unwrap_err();
    assert_eq!(problem.reason, "STORE_UNAVAILABLE");
    assert!(s3.faults().hits(unreadable) > 0);
    s3.faults().clear();

    let host = host.restart(&s3).await;
    let synced = sync(&host).await.unwrap();
    assert_eq!(synced.commit.unwrap().seq, 1);
    assert_eq!(synced.done.unwrap().bytes_uploaded, 0);
}

#[tokio::test]
async fn a_location_that_a_coordinator_owns_is_not_synced_to() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    host.checkpoint(4, &Files::new());
    let fence = Fence {
        generation: Generation::FIRST,
        pipeline: PipelineId::new(uuid::Uuid::new_v4()),
        pipeline_name: PipelineName::new("invoices").unwrap(),
        writer: Writer::Database {
            database: DatabaseId::new(uuid::Uuid::new_v4()),
            system_identifier: "7".to_owned(),
            timeline: 1,
        },
        take_over: uuid::Uuid::new_v4(),
        created_at: chrono::Utc::now(),
        released: false,
    };
    s3.admin().put_raw(BUCKET, &format!("{PREFIX}/{}", Key::Fence(fence.generation)), fence.encode()).unwrap();
    let problem = sync(&host).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["owner_name"].as_str()), ("LOCATION_OWNED", "invoices"));
    assert_eq!(s3.admin().keys(BUCKET, "").unwrap().len(), 1);
}

#[tokio::test]
async fn orders_wait_while_a_sync_runs() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("PutObject").key_contains("data-"));
    let syncing = tokio::spawn({
        let (client, location) = (host.client.clone(), proto_location(&host.location));
        async move { client.clone().sync(v1::SyncRequest { location: Some(location) }).await }
    });
    until("the sync to hang", async || s3.faults().hits(hang) > 0).await;
    let problem = refusal(host.client.clone().push(host.push_order(1, checkpoint, 4)).await);
    assert_eq!((problem.reason.as_str(), problem.metadata["kind"].as_str()), ("TRANSFER_IN_PROGRESS", "sync"));
    let problem =
        refusal(host.client.clone().sync(v1::SyncRequest { location: Some(proto_location(&host.location)) }).await);
    assert_eq!(problem.reason, "TRANSFER_IN_PROGRESS");
    s3.faults().clear();
    syncing.await.unwrap().unwrap();
    host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
}

#[tokio::test]
async fn a_sync_to_a_location_that_is_not_allowed_makes_no_request() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    let mut other = proto_location(&host.location);
    other.bucket = "other".to_owned();
    let problem = refusal(host.client.clone().sync(v1::SyncRequest { location: Some(other) }).await);
    assert_eq!(problem.reason, "LOCATION_NOT_ALLOWED");
    assert_eq!(s3.requests(), []);
}
