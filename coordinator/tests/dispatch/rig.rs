//! A database, a bucket in memory, three agents and any number of dispatchers.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use lockstep_bucket::{AwsConnector, AwsOptions, Connector, MemoryBuckets, StaticCredentials};
use lockstep_coordinator::{
    agents::{AgentPool, AgentPoolOptions},
    dispatch::{DispatchOptions, Dispatcher},
    store::{
        Admission, AdmitPull, AdmitPush, Caller, ClaimState, NewPipeline, PipelineRow, RoundRecord, Store, StoreError,
        StoreOptions, Trigger,
    },
};
use lockstep_devkit::{TestDatabase, s3::S3Server};
use lockstep_protocol::{
    fence::{Fence, Writer},
    id::{Generation, PipelineId, RoundId},
    key::Key,
    location::Location,
    problem::Problem,
    round::{CancelRequest, PullRequest, RetryPolicy, WantedCut},
    spec::{PipelineSpec, PullSelector},
};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::{Agent, Behind};

pub(crate) fn uuid() -> String {
    Uuid::new_v4().to_string()
}

fn alice() -> Caller {
    Caller { actor: "alice".to_owned(), ..Caller::default() }
}

pub(crate) fn latest() -> PullRequest {
    PullRequest {
        selector: PullSelector::Latest,
        standby: false,
        fail_if_none: true,
        allow_fingerprint: false,
        discard_local: false,
    }
}

/// A replica under way, in a runtime of its own. Dropping it is a crash: everything in it ends wherever it is, and nothing is handed back.
pub(crate) struct Replica {
    shutdown: CancellationToken,
    running: Option<JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Replica {
    /// With a pool of its own, since a pool's connections live in the runtime that opened them.
    fn start(url: String, options: DispatchOptions, connector: Arc<dyn Connector>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let running = runtime.spawn(async move {
            let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
            let agents = AgentPool::new(AgentPoolOptions {
                poll_grace: Duration::from_secs(1),
                keepalive_interval: Duration::from_secs(1),
                keepalive_timeout: Duration::from_secs(1),
                ..Default::default()
            });
            Dispatcher::new(store, connector, agents, options).run(stop).await;
        });
        Self { shutdown, running: Some(running), runtime: Some(runtime) }
    }

    /// As on SIGTERM.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            running.await.unwrap();
        }
    }
}

pub(crate) struct Rig {
    // Before the database, so that nobody uses it while it goes.
    pub(crate) store: Store,
    pub(crate) buckets: MemoryBuckets,
    /// Where replicas find the bucket instead, if not in memory.
    pub(crate) served: Option<Arc<dyn Connector>>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) database: TestDatabase,
}

impl Rig {
    /// Three hosts that hold local checkpoints of these steps.
    pub(crate) async fn new(steps: [&[u64]; 3]) -> Self {
        let database = TestDatabase::create().await.unwrap();
        let store = Store::connect(database.url(), StoreOptions::default()).await.unwrap();
        store.migrate().await.unwrap();
        let buckets = MemoryBuckets::new(["acme"]);
        let mut agents = Vec::new();
        for (host_idx, steps) in (0..).zip(steps) {
            agents.push(Agent::start(host_idx, 3, steps, &buckets).await);
        }
        Self { store, served: None, buckets, agents, database }
    }

    /// Hosts with parts of so many files, and a real server that counts what the coordinator asks it, and nothing else.
    pub(crate) async fn on(server: &S3Server, hosts: u32, files: u32) -> Self {
        let database = TestDatabase::create().await.unwrap();
        let store = Store::connect(database.url(), StoreOptions::default()).await.unwrap();
        store.migrate().await.unwrap();
        let mut agents = Vec::new();
        for host_idx in 0..hosts {
            agents.push(Agent::with_files(host_idx, hosts, &[4], files, Behind::Server(server.admin())).await);
        }
        let mut rig = Self { store, served: None, buckets: MemoryBuckets::new(["acme"]), agents, database };
        rig.connect_as(server, "lockstep").await;
        rig
    }

    /// Replicas that are started from here on ask this server, with this access key.
    pub(crate) async fn connect_as(&mut self, server: &S3Server, access_key: &str) {
        let credentials = StaticCredentials {
            access_key_id: access_key.to_owned(),
            secret_access_key: format!("{access_key}-secret"),
        };
        let options = AwsOptions {
            credentials: Some(credentials),
            endpoint: Some(server.endpoint()),
            region: Some("us-east-1".to_owned()),
            ..AwsOptions::default()
        };
        self.served = Some(Arc::new(AwsConnector::with(options).await));
    }

    pub(crate) fn location() -> Location {
        "s3://acme/orders".parse().unwrap()
    }

    pub(crate) fn options(name: &str) -> DispatchOptions {
        DispatchOptions {
            replica: name.to_owned(),
            lease: Duration::from_millis(1500),
            renew_every: Duration::from_millis(300),
            poll_every: Duration::from_millis(200),
            long_poll: Duration::from_secs(2),
            unreachable_after: Duration::from_secs(3),
            stall_after: Duration::from_millis(1500),
            store_patience: Duration::from_secs(2),
            cancel_patience: Duration::from_secs(5),
            ..DispatchOptions::default()
        }
    }

    pub(crate) fn replica(&self, name: &str) -> Replica {
        self.replica_with(Self::options(name))
    }

    pub(crate) fn replica_with(&self, options: DispatchOptions) -> Replica {
        let connector = self.served.clone().unwrap_or_else(|| Arc::new(self.buckets.clone()));
        Replica::start(self.database.url().to_owned(), options, connector)
    }

    pub(crate) fn new_pipeline(&self, name: &str, location: &Location) -> NewPipeline {
        let agents: Vec<_> = self.agents.iter().map(|agent| agent.address.clone()).collect();
        let spec = PipelineSpec::from_value(serde_json::json!({
            "name": name, "hosts": agents.len(), "agents": agents,
            "location": {"bucket": location.bucket(), "prefix": location.prefix()},
        }))
        .unwrap();
        let id = PipelineId::new(Uuid::now_v7());
        let fence = Fence {
            generation: Generation::FIRST,
            pipeline: id,
            pipeline_name: spec.name.clone(),
            writer: Writer::Database {
                database: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
                system_identifier: "1".to_owned(),
                timeline: 1,
            },
            take_over: Uuid::new_v4(),
            created_at: Utc::now(),
            released: false,
        };
        NewPipeline {
            id,
            spec,
            fence_bytes: Some(String::from_utf8(fence.encode()).unwrap()),
            follows: true,
            request_id: None,
        }
    }

    /// Creates a pipeline and waits for what its claim comes to.
    pub(crate) async fn pipeline(&self, name: &str) -> PipelineRow {
        self.create(self.new_pipeline(name, &Self::location())).await
    }

    pub(crate) async fn create(&self, new: NewPipeline) -> PipelineRow {
        let created = self.store.create_pipeline(new, &alice()).await.unwrap().into_row();
        let mut changes = self.store.changes();
        loop {
            let row = self.store.get_pipeline(&created.id.into()).await.unwrap();
            if row.claim != ClaimState::Claiming {
                return row;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
        }
    }

    pub(crate) async fn start_push(&self, pipeline: &PipelineRow) -> RoundId {
        self.start_push_within(pipeline, Duration::from_secs(60)).await
    }

    pub(crate) async fn start_push_within(&self, pipeline: &PipelineRow, deadline: Duration) -> RoundId {
        let push = AdmitPush {
            pipeline: pipeline.id.into(),
            wanted: WantedCut::Newest,
            force: true,
            trigger: Trigger::Manual,
            found: None,
            request_id: None,
            deadline,
            retry: RetryPolicy { base: Duration::from_millis(50), ..RetryPolicy::default() },
        };
        match self.store.admit_push(push, &alice()).await.unwrap() {
            Admission::New(record) => record.round.id,
            other => panic!("not a new round: {other:?}"),
        }
    }

    pub(crate) async fn start_pull(&self, pipeline: &PipelineRow, request: PullRequest) -> RoundId {
        let pull = AdmitPull {
            follows: None,
            pipeline: pipeline.id.into(),
            request,
            request_id: None,
            deadline: Duration::from_secs(60),
            retry: RetryPolicy { base: Duration::from_millis(50), ..RetryPolicy::default() },
        };
        match self.store.admit_pull(pull, &alice()).await.unwrap() {
            Admission::New(record) => record.round.id,
            other => panic!("not a new round: {other:?}"),
        }
    }

    pub(crate) async fn cancel(&self, round: RoundId) {
        let request = CancelRequest { by: "alice".to_owned(), cause: "a better idea".to_owned() };
        self.store.request_cancel(round, request, &alice()).await.unwrap();
    }

    /// Until the round looks so.
    pub(crate) async fn until(&self, round: RoundId, done: impl Fn(&RoundRecord) -> bool) -> RoundRecord {
        let mut changes = self.store.changes();
        let waiting = async {
            loop {
                match self.store.get_round(round).await {
                    Ok(record) if done(&record) => return record,
                    Ok(_) | Err(StoreError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                // What a replica does in between is told to others at its end only.
                let _ = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(record) => record,
            Err(_) => panic!("still waiting: {:#?}", self.store.get_round(round).await),
        }
    }

    pub(crate) async fn ended(&self, round: RoundId) -> RoundRecord {
        self.until(round, |record| record.round.phase.is_terminal()).await
    }

    /// What went wrong in a host's last failed attempt, and how many attempts it took.
    pub(crate) async fn causes(&self, round: RoundId) -> Vec<String> {
        let filter = lockstep_coordinator::store::AuditFilter { round: Some(round), ..Default::default() };
        let rows = self.store.list_audit(filter, lockstep_coordinator::store::Page::default()).await.unwrap().items;
        rows.into_iter().map(|row| row.cause).collect()
    }

    /// Keys that held two contents; the hint is one that may (S7).
    pub(crate) fn overwritten(&self) -> Vec<String> {
        self.buckets.overwritten().into_iter().filter(|key| !key.ends_with("/head.json")).collect()
    }

    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.buckets.read("acme", &Self::location().full_key(&key.to_string())).is_some()
    }
}

/// The problem of a round that did not end well.
pub(crate) fn problem(record: &RoundRecord) -> &Problem {
    record.round.problem.as_ref().unwrap_or_else(|| panic!("it ended well: {record:#?}"))
}
