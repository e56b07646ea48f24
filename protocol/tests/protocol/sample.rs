//! Values that several tests start from.

use chrono::{DateTime, TimeZone, Utc};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart},
    digest::Digest,
    host::Layout,
    id::{
        Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo,
        Seq, Step, Term,
    },
    key::AttemptPath,
    location::Location,
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
    order::OrderHeader,
    round::{Kind, Participant, Phase, PullRequest, PullState, PushState, RetryPolicy, Round, WantedCut},
    spec::PullSelector,
};
use uuid::Uuid;

pub(crate) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(crate) fn time(seconds: i64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_790_000_000 + seconds, 0).unwrap()
}

pub(crate) fn incarnation(n: u128) -> Incarnation {
    Incarnation::new(uuid(0x1000 + n))
}

pub(crate) fn local(n: u128) -> LocalCheckpointId {
    LocalCheckpointId::new(uuid(0x2000 + n))
}

pub(crate) fn round_id() -> RoundId {
    RoundId::new(uuid(0x3000))
}

pub(crate) fn location() -> Location {
    "s3://acme-ckpt/orders?endpoint=http://127.0.0.1:9000".parse().unwrap()
}

pub(crate) fn layout(hosts: u32) -> Layout {
    Layout::from_n_hosts(hosts).unwrap()
}

pub(crate) fn path(host_idx: u32, n_hosts: u32, attempt: u32) -> AttemptPath {
    AttemptPath::new(
        layout(n_hosts).slot(host_idx).unwrap(),
        Generation::FIRST,
        round_id(),
        incarnation(host_idx.into()),
        Attempt::new(attempt).unwrap(),
    )
}

pub(crate) fn commit_part(host_idx: u32, n_hosts: u32, attempt: u32) -> CommitPart {
    CommitPart {
        host_idx,
        local_checkpoint: local(host_idx.into()),
        manifest: path(host_idx, n_hosts, attempt).manifest().to_string(),
        manifest_length: 700,
        manifest_blake3: Digest::of(&host_idx.to_le_bytes()),
        files: 3,
        bytes: 1000,
        bytes_uploaded: 900,
        processed_records: Some(10),
    }
}

pub(crate) fn commit(n_hosts: u32) -> CommitDocument {
    CommitDocument {
        pipeline: PipelineId::new(uuid(1)),
        pipeline_name: PipelineName::new("orders").unwrap(),
        generation: Generation::FIRST,
        seq: Seq::FIRST,
        parent: None,
        base: None,
        round: round_id(),
        round_no: RoundNo::new(1).unwrap(),
        step: Step::new(12).unwrap(),
        fingerprint: Some(Fingerprint(11_057_525_854_332_059_820)),
        layout: layout(n_hosts),
        created_at: time(0),
        parts: (0..layout(n_hosts).len()).map(|host| commit_part(host, n_hosts, 1)).collect(),
        trace_id: None,
        writer: "lockstep 0.1.0".to_owned(),
        labels: std::collections::BTreeMap::new(),
        partitions: Vec::new(),
    }
}

pub(crate) fn part() -> PartManifest {
    let path = path(1, 3, 1);
    PartManifest {
        pipeline: PipelineId::new(uuid(1)),
        slot: layout(3).slot(1).unwrap(),
        generation: path.generation,
        round: path.round,
        incarnation: path.incarnation,
        attempt: path.attempt,
        local_checkpoint: local(1),
        step: Step::new(12).unwrap(),
        fingerprint: None,
        processed_records: Some(10),
        store_meta: String::new(),
        objects: vec![ObjectEntry { key: path.data(0).to_string(), size: 30 }],
        files: vec![
            FileEntry {
                path: RelativePath::new("a/b").unwrap(),
                size: 10,
                blake3: Digest::of(b"b"),
                head: None,
                object: Some(0),
                offset: 20,
                length: 10,
            },
            FileEntry {
                path: RelativePath::new("empty").unwrap(),
                size: 0,
                blake3: Digest::of(b""),
                head: None,
                object: None,
                offset: 0,
                length: 0,
            },
        ],
        delta: None,
    }
}

pub(crate) fn header() -> OrderHeader {
    OrderHeader {
        pipeline: PipelineId::new(uuid(1)),
        pipeline_name: PipelineName::new("orders").unwrap(),
        slot: layout(3).slot(1).unwrap(),
        incarnation: incarnation(1),
        generation: Generation::FIRST,
        round_no: RoundNo::new(5).unwrap(),
        term: Term::new(2).unwrap(),
        round: round_id(),
        attempt: Attempt::new(2).unwrap(),
        own_location: location(),
    }
}

fn round(hosts: u32, phase: Phase, kind: Kind) -> Round {
    Round {
        id: round_id(),
        pipeline: PipelineId::new(uuid(1)),
        pipeline_name: PipelineName::new("orders").unwrap(),
        round_no: RoundNo::new(1).unwrap(),
        generation: Generation::FIRST,
        layout: layout(hosts),
        location: location(),
        version: 1,
        term: Term::new(1).unwrap(),
        phase,
        deadline: time(3600),
        problem: None,
        cancel: None,
        participants: (0..layout(hosts).len())
            .map(|idx| Participant::waiting(idx, format!("http://host-{idx}:7402")))
            .collect(),
        retry: RetryPolicy::default(),
        kind,
    }
}

pub(crate) fn push(hosts: u32) -> Round {
    let state = PushState::asked(Seq::FIRST, WantedCut::Newest, false, None);
    round(hosts, Phase::Planning, Kind::Push(state))
}

pub(crate) fn pull(hosts: u32) -> Round {
    let request = PullRequest {
        selector: PullSelector::Latest,
        standby: false,
        fail_if_none: false,
        allow_fingerprint: false,
        discard_local: false,
    };
    round(hosts, Phase::Resolving, Kind::Pull(PullState::asked(request)))
}
