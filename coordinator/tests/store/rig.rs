//! A database a test, and pipelines to use it with.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::{
    Admission, AdmitPull, AdmitPush, Applied, Caller, ClaimOutcome, ClaimSettled, NewPipeline, PipelineRow,
    RoundRecord, Store, StoreError, Trigger, memory::MemoryDatabase,
};
use lockstep_devkit::TestDatabase;
use lockstep_protocol::{
    commit::CommitPart,
    digest::Digest,
    fence::Successor,
    id::{Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, RequestId, RoundId, Step},
    problem::Reason,
    round::{
        DecisionKnown, Event, FoundHost, HostReport, Phase, PullRequest, Resolved, RetryPolicy, Round, Source,
        WantedCut, decide,
    },
    spec::{PipelineSpec, PullSelector},
};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::ground;

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const FINGERPRINT: Fingerprint = Fingerprint(u64::MAX);

pub(crate) struct Rig {
    pub(crate) database: TestDatabase,
    pub(crate) store: Store,
}

pub(crate) fn alice() -> Caller {
    Caller {
        actor: "alice".to_owned(),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

pub(crate) fn replica() -> Caller {
    Caller { actor: "replica one".to_owned(), ..Caller::default() }
}

pub(crate) fn spec(name: &str, prefix: &str) -> PipelineSpec {
    PipelineSpec::from_value(serde_json::json!({
        "name": name, "hosts": 3, "agents": "http://agent-{host}:7402",
        "location": {"bucket": "checkpoints", "prefix": prefix, "endpoint": "http://s3:9000"},
        "read_location": {"bucket": "archive", "prefix": "old"},
    }))
    .unwrap()
}

pub(crate) fn new_pipeline(spec: PipelineSpec) -> NewPipeline {
    NewPipeline {
        id: PipelineId::new(Uuid::now_v7()),
        spec,
        fence_bytes: Some("{\"kind\":\"fence\"}\n".to_owned()),
        follows: true,
        request_id: None,
    }
}

pub(crate) fn request_id() -> RequestId {
    RequestId::new(Uuid::now_v7())
}

pub(crate) fn push(pipeline: &PipelineRow) -> AdmitPush {
    AdmitPush {
        pipeline: pipeline.id.into(),
        wanted: WantedCut::Newest,
        force: false,
        trigger: Trigger::Manual,
        found: None,
        request_id: None,
        deadline: Duration::from_secs(3600),
        retry: RetryPolicy::default(),
    }
}

pub(crate) fn pull(pipeline: &PipelineRow) -> AdmitPull {
    AdmitPull {
        follows: None,
        pipeline: pipeline.id.into(),
        request: PullRequest {
            selector: PullSelector::Latest,
            standby: false,
            fail_if_none: false,
            allow_fingerprint: false,
            discard_local: false,
        },
        request_id: None,
        deadline: Duration::from_secs(3600),
        retry: RetryPolicy::default(),
    }
}

pub(crate) fn admitted(admission: Admission) -> RoundRecord {
    match admission {
        Admission::New(record) => record,
        other => panic!("not a new round: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn refused(error: StoreError, reason: Reason) -> lockstep_protocol::problem::Problem {
    match error {
        StoreError::Problem(problem) if problem.reason == reason => problem,
        other => panic!("expected {reason}, got {other:?}"),
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::create().await.unwrap();
        let store = ground::connect(&database).await;
        store.migrate().await.unwrap();
        Self { database, store }
    }

    /// A second replica on the same database.
    pub(crate) async fn another(&self) -> Store {
        ground::connect(&self.database).await
    }

    /// For what only somebody else would do.
    pub(crate) async fn sql(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.unwrap()
    }

    /// A pipeline of three hosts that owns generation 1 of its location.
    pub(crate) async fn pipeline(&self, name: &str) -> PipelineRow {
        self.pipeline_of(new_pipeline(spec(name, name))).await
    }

    /// The same from whatever it is to be.
    pub(crate) async fn pipeline_of(&self, new: NewPipeline) -> PipelineRow {
        let created = self.store.create_pipeline(new, &alice()).await.unwrap().into_row();
        let mut claimed = self.store.claim_claiming("one", LEASE).await.unwrap();
        claimed.retain(|row| row.id == created.id);
        let row = claimed.pop().expect("the new pipeline is due");
        let outcome = ClaimOutcome::Owned(Generation::FIRST);
        match self.store.settle_claim(row.id, row.version, row.claim_term, outcome, &replica()).await.unwrap() {
            ClaimSettled::Stored(row) => row,
            ClaimSettled::Moved => panic!("nobody else settles it"),
        }
    }

    pub(crate) async fn claim(&self) -> Round {
        self.store.claim_round("one", LEASE).await.unwrap().expect("a round is due").round
    }

    pub(crate) async fn step(&self, round: Round, event: Event) -> Round {
        let decision = decide(&round, &event, Utc::now());
        assert!(decision.changes(&round), "{event:?} changes nothing in {}", round.phase);
        match self.store.apply(&round, &decision, &replica()).await.unwrap() {
            Applied::Stored(next) => next,
            refused => panic!("{refused:?} by {event:?}"),
        }
    }

    /// Admits, claims and drives a push of `step` until it is committed.
    pub(crate) async fn commit(&self, pipeline: &PipelineRow, step: u64) -> Round {
        admitted(self.store.admit_push(push(pipeline), &alice()).await.unwrap());
        let mut round = self.claim().await;
        for event in events_of_a_push(&round, step) {
            round = self.step(round, event).await;
        }
        assert_eq!(round.phase, Phase::Committed);
        round
    }
}

pub(crate) fn incarnation(host_idx: u32) -> Incarnation {
    Incarnation::new(Uuid::from_u128(0xa0 + u128::from(host_idx)))
}

pub(crate) fn local(step: u64, host_idx: u32) -> LocalCheckpointId {
    LocalCheckpointId::new(Uuid::from_u128(u128::from(step) << 32 | u128::from(host_idx)))
}

pub(crate) fn planned(round: &Round, step: u64) -> Event {
    Event::Planned {
        hosts: found(round, step),
        step: Step::new(step).unwrap(),
        fingerprint: Some(FINGERPRINT),
        parent: None,
    }
}

pub(crate) fn found(round: &Round, step: u64) -> Vec<FoundHost> {
    (0..round.layout.len())
        .map(|host_idx| FoundHost { incarnation: incarnation(host_idx), local_checkpoint: Some(local(step, host_idx)) })
        .collect()
}

pub(crate) fn part(round: &Round, step: u64, host_idx: u32) -> CommitPart {
    part_of(round.id, step, host_idx)
}

/// Its part by a round of which no more is known.
pub(crate) fn part_of(round: RoundId, step: u64, host_idx: u32) -> CommitPart {
    CommitPart {
        host_idx,
        local_checkpoint: local(step, host_idx),
        manifest: format!("host{host_idx}/1/{round}/{}-1/part.json", incarnation(host_idx)),
        manifest_length: 10,
        manifest_blake3: Digest::of(b"manifest"),
        files: 2,
        bytes: 100,
        bytes_uploaded: 40,
        processed_records: Some(7),
    }
}

pub(crate) fn part_done(round: &Round, step: u64, host_idx: u32) -> Event {
    Event::HostDone {
        host_idx,
        attempt: lockstep_protocol::id::Attempt::FIRST,
        incarnation: incarnation(host_idx),
        report: HostReport::Part {
            part: part(round, step, host_idx),
            step: Step::new(step).unwrap(),
            fingerprint: Some(FINGERPRINT),
        },
    }
}

pub(crate) fn events_of_a_push(round: &Round, step: u64) -> Vec<Event> {
    let mut events = vec![planned(round, step)];
    events.extend((0..round.layout.len()).map(|host_idx| part_done(round, step, host_idx)));
    events.push(Event::PartsChecked { writer: "test".to_owned(), trace_id: None });
    events.push(Event::Settled {
        decision: DecisionKnown::CommitStands,
        successor: Some(Successor::Absent),
        jitter: 0,
    });
    events
}

/// The local source: the pull is installing at once.
pub(crate) fn resolved_locally(round: &Round, step: u64) -> Event {
    Event::Resolved {
        resolved: Resolved {
            source: Source::Local,
            location: None,
            commit: None,
            step: Some(Step::new(step).unwrap()),
            fingerprint: Some(FINGERPRINT),
            processed_records: None,
            parts: Vec::new(),
        },
        hosts: found(round, step),
        discard: false,
    }
}

/// On the twin, and on Postgres.
pub(crate) async fn rigs() -> [Rig; 2] {
    let twin = MemoryDatabase::new(Utc::now).store();
    [Rig { database: TestDatabase::create().await.unwrap(), store: twin }, Rig::new().await]
}

/// On the twin, then on Postgres: they do the same.
pub(crate) async fn both(run: impl AsyncFn(Rig)) {
    for rig in rigs().await {
        run(rig).await;
    }
}
