//! What a location holds, as the API reads it: commits that were put there as pushes would.

use lockstep_devkit::{DenyRule, FaultAction, FaultRule};
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef},
    digest::Digest,
    host::{HostInfo, Layout, Slot},
    id::{Attempt, Generation, Incarnation, LocalCheckpointId, PipelineName, RoundId, RoundNo, Seq, Step},
    key::{AttemptPath, Key},
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
};
use tokio_stream::StreamExt as _;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{BUCKET, Coordinator, refused, uuid};

const CONTENT: &[u8] = b"twelve bytes";

/// A checkpoint of one host of one, with one file.
pub(crate) struct Put {
    pub(crate) commit: CommitRef,
    data: String,
}

/// Puts a commit and all that it reaches below `orders/`.
pub(crate) fn put(
    coordinator: &Coordinator,
    pipeline: &v1::Pipeline,
    seq: u64,
    step: u64,
    parent: Option<CommitRef>,
) -> Put {
    let admin = coordinator.s3.admin();
    let (generation, attempt) = (Generation::FIRST, Attempt::FIRST);
    let (round, incarnation) = (RoundId::new(Uuid::new_v4()), Incarnation::new(Uuid::new_v4()));
    let slot = Slot::Host(HostInfo::new(0, 1).unwrap());
    let path = AttemptPath::new(slot, generation, round, incarnation, attempt);
    let (data, manifest_key) = (Key::Data(path, 0).to_string(), Key::PartManifest(path).to_string());
    let size = u64::try_from(CONTENT.len()).unwrap();
    let local_checkpoint = LocalCheckpointId::new(Uuid::new_v4());
    let manifest = PartManifest {
        pipeline: pipeline.id.parse().unwrap(),
        slot,
        generation,
        round,
        incarnation,
        attempt,
        local_checkpoint,
        step: Step::new(step).unwrap(),
        fingerprint: None,
        processed_records: Some(step),
        store_meta: String::new(),
        objects: vec![ObjectEntry { key: data.clone(), size }],
        files: vec![FileEntry {
            path: RelativePath::new("state/table.bin").unwrap(),
            size,
            blake3: Digest::of(CONTENT),
            head: None,
            object: Some(0),
            offset: 0,
            length: size,
        }],
        delta: None,
    };
    let manifest_bytes = manifest.encode();
    let document = CommitDocument {
        pipeline: manifest.pipeline,
        pipeline_name: PipelineName::new("orders").unwrap(),
        generation,
        seq: Seq::new(seq).unwrap(),
        parent,
        base: None,
        round,
        round_no: RoundNo::new(seq).unwrap(),
        step: manifest.step,
        fingerprint: None,
        layout: Layout::hosts(1).unwrap(),
        created_at: chrono::Utc::now(),
        parts: vec![CommitPart {
            host_idx: 0,
            local_checkpoint,
            manifest: manifest_key.clone(),
            manifest_length: u64::try_from(manifest_bytes.len()).unwrap(),
            manifest_blake3: Digest::of(&manifest_bytes),
            files: 1,
            bytes: size,
            bytes_uploaded: size,
            processed_records: Some(step),
        }],
        trace_id: None,
        writer: "test".to_owned(),
        labels: std::collections::BTreeMap::new(),
        partitions: Vec::new(),
    };
    let bytes = document.encode();
    let commit = CommitRef { generation, seq: document.seq, round, digest: Digest::of(&bytes) };
    let objects = [(&data, CONTENT), (&manifest_key, &manifest_bytes), (&document.key().to_string(), &bytes)];
    for (key, bytes) in objects {
        admin.put_raw(BUCKET, &format!("orders/{key}"), bytes).unwrap();
    }
    Put { commit, data: format!("orders/{data}") }
}

/// Checkpoints of steps 100, 200 and 300, oldest first.
async fn three() -> (Coordinator, Vec<Put>) {
    let mut coordinator = Coordinator::start().await;
    let mut spec = coordinator.spec("orders");
    (spec.hosts, spec.agents) = (1, vec!["http://127.0.0.1:9".to_owned()]);
    let pipeline = coordinator.create(spec).await.unwrap();
    let mut all: Vec<Put> = Vec::new();
    for (seq, step) in [(1, 100), (2, 200), (3, 300)] {
        let parent = all.last().map(|put| put.commit);
        all.push(put(&coordinator, &pipeline, seq, step, parent));
    }
    (coordinator, all)
}

pub(crate) fn list(page_size: i32, page_token: &str) -> v1::ListCheckpointsRequest {
    v1::ListCheckpointsRequest { pipeline: "orders".to_owned(), page_size, page_token: page_token.to_owned() }
}

fn get(checkpoint: &str) -> v1::GetCheckpointRequest {
    v1::GetCheckpointRequest { pipeline: "orders".to_owned(), checkpoint: checkpoint.to_owned() }
}

fn verify(checkpoint: &str) -> v1::VerifyCheckpointRequest {
    v1::VerifyCheckpointRequest {
        pipeline: "orders".to_owned(),
        checkpoint: checkpoint.to_owned(),
        structure_only: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_listed_newest_first_and_found_by_uuid_step_and_latest() {
    let (mut coordinator, put) = three().await;
    let client = &mut coordinator.client;
    let (mut steps, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list_checkpoints(list(2, &token)).await.unwrap().into_inner();
        assert!(page.checkpoints.len() <= 2);
        steps.extend(page.checkpoints.iter().map(|checkpoint| checkpoint.step));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(steps, [300, 200, 100]);

    let latest = client.get_checkpoint(get("latest")).await.unwrap().into_inner();
    assert_eq!((latest.step, latest.n_hosts, latest.processed_records), (300, 1, Some(300)));
    assert_eq!((latest.files, latest.bytes), (1, 12));
    assert_eq!(latest.commit.as_ref().unwrap().digest, put[2].commit.digest.to_string());
    let named = client.get_checkpoint(get(&put[0].commit.round.to_string())).await.unwrap().into_inner();
    assert_eq!((named.step, named.id), (100, put[0].commit.round.to_string()));
    assert_eq!(client.get_checkpoint(get("200")).await.unwrap().into_inner().step, 200);

    for absent in [uuid(), "250".to_owned()] {
        let problem = refused(client.get_checkpoint(get(&absent)).await, "CHECKPOINT_NOT_FOUND");
        assert_eq!((problem.code, problem.metadata["checkpoint"].as_str()), (Code::NotFound, absent.as_str()));
    }
    assert_eq!(refused(client.get_checkpoint(get("newest")).await, "SPEC_INVALID").metadata["field"], "checkpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_location_is_an_empty_list_and_a_denied_one_is_an_error() {
    let mut coordinator = Coordinator::start().await;
    coordinator.create(coordinator.spec("orders")).await.unwrap();
    let empty = coordinator.client.list_checkpoints(list(0, "")).await.unwrap().into_inner();
    assert_eq!(empty, v1::ListCheckpointsResponse::default());

    coordinator.s3.denials().add(DenyRule { bucket: Some(BUCKET.to_owned()), ..DenyRule::default() });
    let problem = refused(coordinator.client.list_checkpoints(list(0, "")).await, "STORE_DENIED");
    assert_eq!((problem.code, problem.metadata["http_status"].as_str()), (Code::PermissionDenied, "403"));
    assert_eq!(problem.metadata["bucket"], BUCKET);
    coordinator.s3.denials().clear();

    // What passes by itself is waited out.
    let rule =
        coordinator.s3.faults().add(FaultRule::new(FaultAction::InternalError).operation("ListObjectsV2").times(1));
    assert!(coordinator.client.list_checkpoints(list(0, "")).await.is_ok());
    assert_eq!(coordinator.s3.faults().hits(rule), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_reads_everything_and_names_what_is_broken() {
    let (mut coordinator, put) = three().await;
    let last = |messages: Vec<v1::VerifyCheckpointResponse>| {
        assert!(messages.iter().rev().skip(1).all(|message| !message.done), "{messages:#?}");
        messages.last().cloned().unwrap()
    };
    let stream = coordinator.client.verify_checkpoint(verify("latest")).await.unwrap().into_inner();
    let whole = last(stream.map(Result::unwrap).collect().await);
    assert!(whole.done && whole.problems.is_empty(), "{whole:#?}");
    assert_eq!(whole.progress.unwrap().bytes_done, 12);
    assert_eq!(whole.checkpoint.unwrap().step, 300);

    coordinator.s3.admin().flip_byte(BUCKET, &put[1].data, 3).unwrap();
    let stream = coordinator.client.verify_checkpoint(verify("200")).await.unwrap().into_inner();
    let broken = last(stream.map(Result::unwrap).collect().await);
    assert_eq!(broken.problems.len(), 1, "{broken:#?}");
    assert_eq!((broken.problems[0].reason.as_str(), broken.problems[0].code), ("INTEGRITY", Code::DataLoss as i32));
    assert_eq!(broken.problems[0].metadata["file"], "state/table.bin");
    assert_eq!(broken.problems[0].metadata["host_idx"], "0");

    coordinator.s3.admin().remove(BUCKET, &put[0].data).unwrap();
    let stream = coordinator.client.verify_checkpoint(verify("100")).await.unwrap().into_inner();
    let missing = last(stream.map(Result::unwrap).collect().await);
    assert_eq!(missing.problems[0].reason, "CHECKPOINT_DAMAGED");
    refused(
        coordinator.client.verify_checkpoint(verify("400")).await.map(|_| tonic::Response::new(())),
        "CHECKPOINT_NOT_FOUND",
    );
}
