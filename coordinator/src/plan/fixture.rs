//! A bucket in memory and agents that are only asked, for the tests of planning.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use lockstep_bucket::MemoryBuckets;
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef},
    digest::Digest,
    fence::{Fence, FenceBase, Writer},
    host::Layout,
    id::{
        Attempt, DatabaseId, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName,
        RoundId, RoundNo, Seq, Step, Term,
    },
    key::{AttemptPath, Key},
    location::Location,
    round::{Kind, Participant, Phase, PullRequest, PullState, PushState, RetryPolicy, Round, WantedCut},
    selection::LocalCheckpoint,
    spec::PullSelector,
};
use uuid::Uuid;

use super::{PlanContext, PlanOptions, Right};
use crate::{
    agents::{AgentAnswer, AgentReads, Described, Host, Listing},
    convert::agent::unreachable,
};

pub(super) const HOSTS: u32 = 3;

pub(super) fn own() -> Location {
    "s3://acme/own".parse().unwrap()
}

pub(super) fn seed() -> Location {
    "s3://acme/seed".parse().unwrap()
}

pub(super) fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0000 | number)
}

pub(super) fn pipeline() -> PipelineId {
    PipelineId::new(uuid(1))
}

pub(super) fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

pub(super) fn seq(number: u64) -> Seq {
    Seq::new(number).unwrap()
}

pub(super) fn step(number: u64) -> Step {
    Step::new(number).unwrap()
}

pub(super) fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

/// The round that made the commit of this seq.
pub(super) fn round_of(number: u64) -> RoundId {
    RoundId::new(uuid(0x5000 + u128::from(number)))
}

/// The local checkpoint of one host at one step.
pub(super) fn local_id(host_idx: u32, number: u64) -> LocalCheckpointId {
    LocalCheckpointId::new(uuid(0x9000_0000 + u128::from(number) * 0x100 + u128::from(host_idx)))
}

pub(super) fn local(host_idx: u32, number: u64) -> LocalCheckpoint {
    LocalCheckpoint {
        id: local_id(host_idx, number),
        step: step(number),
        fingerprint: Some(Fingerprint(7)),
        processed_records: Some(10),
        bytes: 100,
        files: 2,
        created_at: None,
    }
}

/// One agent that is only asked.
#[derive(Debug)]
pub(super) struct FakeHost {
    pub(super) described: Described,
    pub(super) checkpoints: Vec<LocalCheckpoint>,
    /// This many calls get no answer first.
    pub(super) silent: AtomicU32,
}

#[derive(Debug)]
pub(super) struct FakeAgents(pub(super) Vec<FakeHost>);

impl FakeAgents {
    /// Local checkpoints of these steps, by host.
    pub(super) fn holding(steps: [&[u64]; HOSTS as usize]) -> Self {
        let slots = Layout::hosts(HOSTS).unwrap().slots();
        let hosts = slots.zip(steps).map(|(slot, steps)| FakeHost {
            described: Described {
                pipeline: "orders".to_owned(),
                slot,
                incarnation: Incarnation::new(uuid(0x100 + u128::from(slot.idx()))),
                version: "test".to_owned(),
                highest: None,
                free_bytes: Some(1 << 30),
            },
            checkpoints: steps.iter().map(|&number| local(slot.idx(), number)).collect(),
            silent: AtomicU32::new(0),
        });
        Self(hosts.collect())
    }

    fn ask<T>(&self, host: &Host, answer: impl FnOnce(&FakeHost) -> T) -> AgentAnswer<T> {
        // Who answers depends on the address alone, as in life.
        let idx: usize = host.address.rsplit('-').next().unwrap().parse().unwrap();
        let asked = &self.0[idx];
        let silent = asked.silent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match silent {
            Ok(_) => AgentAnswer::Unknown(unreachable(host, "connection refused")),
            Err(_) => AgentAnswer::Answer(answer(asked)),
        }
    }
}

#[async_trait]
impl AgentReads for FakeAgents {
    async fn describe(&self, host: &Host) -> AgentAnswer<Described> {
        self.ask(host, |asked| asked.described.clone())
    }

    async fn list_checkpoints(&self, host: &Host) -> AgentAnswer<Listing> {
        self.ask(host, |asked| Listing {
            incarnation: asked.described.incarnation,
            checkpoints: asked.checkpoints.clone(),
        })
    }
}

/// A bucket with nothing in it.
pub(super) fn buckets() -> MemoryBuckets {
    MemoryBuckets::new(["acme"])
}

pub(super) fn put(buckets: &MemoryBuckets, location: &Location, key: &Key, bytes: Vec<u8>) {
    buckets.tamper(location.bucket(), &location.full_key(&key.to_string()), Some(Bytes::from(bytes)));
}

pub(super) fn holds(buckets: &MemoryBuckets, location: &Location, key: &Key) -> bool {
    buckets.read(location.bucket(), &location.full_key(&key.to_string())).is_some()
}

/// A fence of `owner`.
pub(super) fn fence(buckets: &MemoryBuckets, location: &Location, number: u64, owner: PipelineId) {
    let fence = Fence {
        generation: generation(number),
        pipeline: owner,
        pipeline_name: PipelineName::new(if owner == pipeline() { "orders" } else { "stranger" }).unwrap(),
        writer: Writer::Database { database: DatabaseId::new(uuid(2)), system_identifier: "1".to_owned(), timeline: 1 },
        take_over: uuid(3),
        created_at: time(0),
        released: false,
    };
    put(buckets, location, &Key::Fence(fence.generation), fence.encode());
}

pub(super) fn base(buckets: &MemoryBuckets, location: &Location, number: u64, newest: Option<CommitRef>) {
    let base = FenceBase { generation: generation(number), newest, tombstones: Vec::new() };
    put(buckets, location, &Key::FenceBase(base.generation), base.encode());
}

/// A commit of generation 1 over the local checkpoints that [`FakeAgents::holding`] has of this step.
pub(super) fn commit(buckets: &MemoryBuckets, location: &Location, number: u64, at: u64) -> CommitRef {
    commit_with(buckets, location, number, at, |_| {})
}

pub(super) fn commit_with(
    buckets: &MemoryBuckets,
    location: &Location,
    number: u64,
    at: u64,
    change: impl FnOnce(&mut CommitDocument),
) -> CommitRef {
    let round = round_of(number);
    let mut document = CommitDocument {
        pipeline: pipeline(),
        pipeline_name: PipelineName::new("orders").unwrap(),
        generation: generation(1),
        seq: seq(number),
        parent: None,
        base: None,
        round,
        round_no: RoundNo::new(number).unwrap(),
        step: step(at),
        fingerprint: Some(Fingerprint(7)),
        layout: Layout::hosts(HOSTS).unwrap(),
        created_at: time(i64::try_from(number).unwrap()),
        parts: Vec::new(),
        trace_id: None,
        writer: "test".to_owned(),
        labels: BTreeMap::new(),
        partitions: Vec::new(),
    };
    change(&mut document);
    if document.parts.is_empty() {
        document.parts = document
            .layout
            .slots()
            .map(|slot| {
                let incarnation = Incarnation::new(uuid(0x100));
                let path = AttemptPath::new(slot, generation(1), round, incarnation, Attempt::FIRST);
                CommitPart {
                    host_idx: slot.idx(),
                    local_checkpoint: local_id(slot.idx(), at),
                    manifest: path.manifest().to_string(),
                    manifest_length: 10,
                    manifest_blake3: Digest::of(b"part"),
                    files: 2,
                    bytes: 100,
                    bytes_uploaded: 100,
                    processed_records: Some(10),
                }
            })
            .collect();
    }
    let bytes = document.encode();
    let commit = CommitRef { generation: generation(1), seq: seq(number), round, digest: Digest::of(&bytes) };
    put(buckets, location, &commit.key(), bytes);
    commit
}

pub(super) fn context(buckets: &MemoryBuckets, agents: FakeAgents) -> PlanContext {
    PlanContext {
        connector: Arc::new(buckets.clone()),
        agents: Arc::new(agents),
        options: PlanOptions { unreachable_after: Duration::from_millis(200), store_patience: Duration::ZERO },
        right: Right::FinishBase,
        known: Arc::default(),
    }
}

fn round(kind: Kind, phase: Phase) -> Round {
    Round {
        id: RoundId::new(uuid(0x77)),
        pipeline: pipeline(),
        pipeline_name: PipelineName::new("orders").unwrap(),
        round_no: RoundNo::new(9).unwrap(),
        generation: generation(1),
        layout: Layout::hosts(HOSTS).unwrap(),
        location: own(),
        version: 1,
        term: Term::new(1).unwrap(),
        phase,
        deadline: time(3600),
        problem: None,
        cancel: None,
        participants: (0..HOSTS).map(|idx| Participant::waiting(idx, format!("http://orders-{idx}"))).collect(),
        retry: RetryPolicy::default(),
        kind,
    }
}

/// A push that was given this seq.
pub(super) fn push(number: u64, wanted: WantedCut, base: Option<CommitRef>) -> Round {
    let state = PushState::asked(seq(number), wanted, false, base);
    round(Kind::Push(state), Phase::Planning)
}

pub(super) fn request(selector: PullSelector) -> PullRequest {
    PullRequest { selector, standby: false, fail_if_none: false, allow_fingerprint: false, discard_local: false }
}

pub(super) fn pull(request: PullRequest) -> Round {
    round(Kind::Pull(PullState::asked(request)), Phase::Resolving)
}
