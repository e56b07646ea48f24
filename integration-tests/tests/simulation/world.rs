//! Everything there is in one run: a pipeline with its database, its hosts and the replicas that come and go, and the bucket; another pipeline over the same bucket has a
//! world of its own beside it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use lockstep_bucket::{MemoryBuckets, ObjectStore};
use lockstep_coordinator::{
    dispatch::{DispatchOptions, Dispatcher, GarbageOptions},
    store::{
        AdmitTakeOver, Caller, ClaimState, DatabaseIdentity, NewPipeline, PipelineRow, RoundRecord, Store,
        memory::{Gate, MemoryDatabase},
    },
};
use lockstep_protocol::{
    commit::CommitRef,
    fence::{Fence, Writer},
    host::Slot,
    id::{DatabaseId, Generation, PipelineId, PipelineName, RoundId, Term},
    location::Location,
    round::RetryPolicy,
    spec::PipelineSpec,
    takeover::Purpose,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    agent::Agent,
    bucket::FarBuckets,
    check::{Fenced, Place},
    gate::ReplicaGate,
    log,
    weather::Weather,
    wire,
};

mod asked;

pub(crate) const BUCKET: &str = "acme";

/// How often each sort of fault may come, as chances of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chances {
    pub(crate) database: f64,
    pub(crate) bucket: f64,
    pub(crate) wire: f64,
}

/// How garbage is collected, where it is.
#[derive(Clone, Debug)]
pub(crate) struct Garbage {
    pub(crate) min_count: u32,
    pub(crate) min_age: Duration,
    pub(crate) grace: Duration,
    pub(crate) every: Duration,
}

struct Replica {
    gate: Arc<ReplicaGate>,
    shutdown: CancellationToken,
    name: String,
}

pub(crate) struct World {
    pub(crate) database: MemoryDatabase,
    pub(crate) buckets: MemoryBuckets,
    pub(crate) weather: Weather,
    pub(crate) agents: Vec<Agent>,
    /// The newest commit that counted when somebody looked last (S11); of all pipelines of the location.
    pub(crate) latest: Rc<Cell<Option<Place>>>,
    /// What the pipeline's row said when somebody looked last, while it was fenced.
    pub(crate) fenced: Cell<Option<Fenced>>,
    /// Of all pipelines of the location; none: nothing is ever deleted.
    pub(crate) garbage: Option<Garbage>,
    /// Commits that somebody has asked to delete, whatever the retention says.
    pub(crate) deleted: Rc<RefCell<BTreeSet<Place>>>,
    /// Of all pipelines of the location; none: nothing is pushed by itself.
    pub(crate) push_interval: Option<Duration>,
    /// When that was switched off.
    pub(crate) scheduled_until: Cell<Option<DateTime<Utc>>>,
    /// Re-read by each replica; none: nothing rots and nothing is verified. Of all pipelines of the location.
    pub(crate) verify_bytes_per_day: Option<u64>,
    /// Objects that were lost or altered, and what they held then. A write that is late may heal one.
    pub(crate) rotten: Rc<RefCell<BTreeMap<String, Option<bytes::Bytes>>>>,
    /// When the mark of a damaged checkpoint was first seen.
    pub(crate) marked: Rc<RefCell<BTreeMap<RoundId, DateTime<Utc>>>>,
    /// Rounds of a database that was lost, as they were then.
    pub(crate) lost_rounds: RefCell<Vec<RoundRecord>>,
    /// Pins by hand that were seen to stand, and what they keep.
    pub(crate) pinned: RefCell<BTreeMap<String, CommitRef>>,
    /// Pins that somebody has asked to take away.
    pub(crate) unpinned: RefCell<BTreeSet<String>>,
    /// When the engines of any pipeline of the location made their checkpoints: no two have the same step, which is the place here.
    made: Rc<RefCell<Vec<Duration>>>,
    pub(crate) name: &'static str,
    store: OnceCell<Store>,
    replicas: RefCell<Vec<Replica>>,
    started: RefCell<u32>,
}

pub(crate) fn alice() -> Caller {
    Caller { actor: "alice".to_owned(), ..Caller::default() }
}

/// Of a second that is the same in each run.
fn epoch() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

pub(crate) fn location() -> Location {
    format!("s3://{BUCKET}/orders").parse().unwrap()
}

/// By everybody's clock.
fn now() -> DateTime<Utc> {
    epoch() + log::elapsed()
}

impl World {
    pub(crate) fn new(seed: u64, hosts: u32, chances: Chances) -> Self {
        let weather = Weather::new(seed.wrapping_mul(7).wrapping_add(1), chances.wire);
        let slots = lockstep_protocol::host::Layout::from_n_hosts(hosts).unwrap().slots();
        Self::over((MemoryBuckets::new([BUCKET]), weather), MemoryDatabase::new(now), "orders", slots)
    }

    pub(crate) fn collecting(self, garbage: Option<Garbage>) -> Self {
        Self { garbage, ..self }
    }

    pub(crate) fn scheduled(self, push_interval: Option<Duration>) -> Self {
        Self { push_interval, ..self }
    }

    pub(crate) fn verified(self, verify_bytes_per_day: Option<u64>) -> Self {
        Self { verify_bytes_per_day, ..self }
    }

    /// Another pipeline of as many hosts, with a database of its own.
    pub(crate) fn beside(&self, name: &'static str) -> Self {
        let identity = DatabaseIdentity {
            database: DatabaseId::new(uuid::Uuid::from_u128(0xdb2)),
            system_identifier: "2".to_owned(),
            timeline: 1,
        };
        let database = MemoryDatabase::new(now).with_identity(identity);
        let slots = self.agents.iter().map(Agent::slot);
        let beside = Self::over((self.buckets.clone(), self.weather.clone()), database, name, slots);
        let (garbage, push_interval) = (self.garbage.clone(), self.push_interval);
        let (latest, made, deleted) = (Rc::clone(&self.latest), Rc::clone(&self.made), Rc::clone(&self.deleted));
        let (rotten, marked) = (Rc::clone(&self.rotten), Rc::clone(&self.marked));
        let verify_bytes_per_day = self.verify_bytes_per_day;
        Self { latest, made, deleted, rotten, marked, garbage, push_interval, verify_bytes_per_day, ..beside }
    }

    fn over(
        (buckets, weather): (MemoryBuckets, Weather),
        database: MemoryDatabase,
        name: &'static str,
        slots: impl Iterator<Item = Slot>,
    ) -> Self {
        let always = Arc::new(ReplicaGate::new());
        let far = FarBuckets { buckets: buckets.clone(), gate: Arc::clone(&always) as _, weather: weather.clone() };
        let pipeline = PipelineName::new(name).unwrap();
        let agent = |slot| Agent::new(slot, pipeline.clone(), location(), far.store(&location()), weather.clone());
        let agents = slots.map(agent).collect();
        Self {
            database,
            buckets,
            weather,
            agents,
            latest: Rc::default(),
            fenced: Cell::default(),
            garbage: None,
            deleted: Rc::default(),
            push_interval: None,
            scheduled_until: Cell::default(),
            verify_bytes_per_day: None,
            rotten: Rc::default(),
            marked: Rc::default(),
            lost_rounds: RefCell::default(),
            pinned: RefCell::default(),
            unpinned: RefCell::default(),
            made: Rc::default(),
            name,
            store: OnceCell::new(),
            replicas: RefCell::default(),
            started: RefCell::default(),
        }
    }

    // ---- replicas

    /// A process of a name that no process had before.
    pub(crate) fn start_replica(&self) {
        let name = self.next_name();
        info!(replica = name, "starts");
        let gate = Arc::new(ReplicaGate::new());
        let dynamic: Arc<dyn Gate> = Arc::clone(&gate) as _;
        let connector =
            FarBuckets { buckets: self.buckets.clone(), gate: Arc::clone(&dynamic), weather: self.weather.clone() };
        let agents = wire::pool(&self.agents, &dynamic, &self.weather);
        let garbage = match &self.garbage {
            Some(garbage) => {
                GarbageOptions { grace: garbage.grace, every: Some(garbage.every), ..GarbageOptions::default() }
            }
            None => GarbageOptions { every: None, ..GarbageOptions::default() },
        };
        let verify_bytes_per_day = self.verify_bytes_per_day.unwrap_or(0);
        let options =
            DispatchOptions { replica: name.clone(), garbage, verify_bytes_per_day, ..DispatchOptions::default() };
        let store = self.database.store_behind(dynamic);
        let shutdown = CancellationToken::new();
        tokio::spawn(Dispatcher::new(store, Arc::new(connector), agents, options).run(shutdown.clone()));
        self.replicas.borrow_mut().push(Replica { gate, shutdown, name });
    }

    pub(crate) fn next_name(&self) -> String {
        *self.started.borrow_mut() += 1;
        format!("{}-r{}", self.name, self.started.borrow())
    }

    pub(crate) fn kill_replica(&self, which: usize) {
        let mut replicas = self.replicas.borrow_mut();
        if which < replicas.len() {
            let replica = replicas.remove(which);
            info!(replica = replica.name, "killed");
            self.weather.count("replica killed");
            if self.database.upkeep().iter().any(|upkeep| !upkeep.phase.is_terminal() && upkeep.term > Term::NONE) {
                self.weather.count("replica killed during a collection");
            }
            replica.gate.kill();
        }
    }

    pub(crate) fn pause_replica(&self, which: usize, pause: Duration) {
        if let Some(replica) = self.replicas.borrow().get(which) {
            info!(replica = replica.name, ?pause, "stopped for a while");
            self.weather.count(if pause > Duration::from_secs(10) {
                "replica stopped beyond its lease"
            } else {
                "replica stopped"
            });
            replica.gate.stop_until(Instant::now() + pause);
        }
    }

    /// As on SIGTERM; one that is stopped obeys when it goes on.
    pub(crate) fn shut_replica_down(&self, which: usize) {
        let mut replicas = self.replicas.borrow_mut();
        if which < replicas.len() {
            let replica = replicas.remove(which);
            info!(replica = replica.name, "told to stop");
            self.weather.count("replica shut down");
            replica.shutdown.cancel();
        }
    }

    pub(crate) fn replicas(&self) -> usize {
        self.replicas.borrow().len()
    }

    /// All that are stopped go on now.
    pub(crate) fn wake_replicas(&self) {
        self.replicas.borrow().iter().for_each(|replica| replica.gate.stop_until(Instant::now()));
    }

    // ---- the rest

    /// As users see the location.
    pub(crate) fn far_store(&self) -> Arc<dyn ObjectStore> {
        let gate: Arc<dyn Gate> = Arc::new(ReplicaGate::new());
        FarBuckets { buckets: self.buckets.clone(), gate, weather: self.weather.clone() }.store(&location())
    }

    /// By everybody's clock.
    pub(crate) fn time(&self) -> DateTime<Utc> {
        now()
    }

    /// What users and their API see of the database. Inside a runtime only.
    pub(crate) fn store(&self) -> &Store {
        self.store.get_or_init(|| self.database.store())
    }

    /// As every pipeline of this location says it.
    fn spec(&self) -> serde_json::Value {
        let agents: Vec<_> = self.agents.iter().map(Agent::address).collect();
        let mut spec = serde_json::json!({
            "name": self.name, "agents": agents, "location": {"bucket": BUCKET, "prefix": "orders"}, "pull_interval": "5s",
        });
        match self.agents.first().and_then(|agent| agent.host_info()) {
            None => spec["solo"] = true.into(),
            Some(_) => spec["hosts"] = agents.len().into(),
        }
        if let Some(garbage) = &self.garbage {
            let min_age = format!("{}s", garbage.min_age.as_secs());
            spec["retention"] = serde_json::json!({"min_count": garbage.min_count, "min_age": min_age});
        }
        if let Some(interval) = self.push_interval {
            spec["push_interval"] = format!("{}s", interval.as_secs()).into();
        }
        spec
    }

    /// One that owns nothing and follows the location.
    pub(crate) async fn create_standby(&self) -> PipelineId {
        let mut spec = self.spec();
        spec["initial"] = "standby".into();
        let spec = PipelineSpec::from_value(spec).unwrap();
        let id = PipelineId::new(self.weather.uuid());
        let new = NewPipeline { id, spec, fence_bytes: None, follows: true, request_id: None };
        self.store().create_pipeline(new, &alice()).await.unwrap();
        id
    }

    pub(crate) async fn create_pipeline(&self) -> PipelineRow {
        let spec = PipelineSpec::from_value(self.spec()).unwrap();
        let id = PipelineId::new(self.weather.uuid());
        let identity = self.store().identity().await.unwrap();
        let fence = Fence {
            generation: Generation::FIRST,
            pipeline: id,
            pipeline_name: spec.name.clone(),
            writer: Writer::Database {
                database: identity.database,
                system_identifier: identity.system_identifier,
                timeline: identity.timeline,
            },
            take_over: self.weather.uuid(),
            created_at: epoch(),
            released: false,
        };
        let fence_bytes = Some(String::from_utf8(fence.encode()).unwrap());
        let new = NewPipeline { id, spec, fence_bytes, follows: true, request_id: None };
        self.store().create_pipeline(new, &alice()).await.unwrap();
        let mut changes = self.store().changes();
        loop {
            let row = self.store().get_pipeline(&id.into()).await.unwrap();
            match row.claim {
                ClaimState::Owned => return row,
                ClaimState::Claiming => changes.next().await,
                other => panic!("the location was not claimed: {other:?}"),
            };
        }
    }

    /// Of the database before it was ever lost.
    pub(crate) fn first_identity() -> DatabaseIdentity {
        MemoryDatabase::new(now).identity()
    }

    /// The engines of all hosts make one.
    pub(crate) fn checkpoint(&self) -> u64 {
        self.made.borrow_mut().push(log::elapsed());
        let step = u64::try_from(self.made.borrow().len()).unwrap();
        info!(step, pipeline = self.name, "checkpoint");
        self.agents.iter().for_each(|agent| agent.checkpoint(step));
        step
    }

    /// When that was.
    pub(crate) fn made(&self, step: u64) -> Option<Duration> {
        self.made.borrow().get(usize::try_from(step).ok()?.checked_sub(1)?).copied()
    }

    /// The pipeline as its row is now, past all faults.
    pub(crate) fn row(&self) -> Option<PipelineRow> {
        self.database.pipelines().into_iter().next()
    }

    /// It shall own the location, whoever does now.
    pub(crate) async fn take_over(&self, purpose: Purpose) {
        let Some(row) = self.row() else { return };
        let ask = AdmitTakeOver {
            pipeline: row.id.into(),
            purpose,
            chosen: None,
            request_id: None,
            seen: None,
            retry: RetryPolicy::default(),
        };
        let answer = self.store().admit_take_over(ask, &alice()).await;
        info!(pipeline = self.name, ?purpose, admitted = answer.is_ok(), "take-over asked for");
    }

    pub(crate) fn is_taking_over(&self) -> bool {
        self.database.take_overs().iter().any(|take_over| !take_over.phase.is_terminal())
    }

    pub(crate) fn active(&self) -> Option<RoundRecord> {
        self.database.rounds().into_iter().find(|record| record.ended_at.is_none())
    }

    /// Late writes land at any time until the weather is calm.
    pub(crate) async fn land_late_writes(buckets: MemoryBuckets, weather: Weather, over: CancellationToken) {
        while over.run_until_cancelled(tokio::time::sleep(weather.millis(100..4_000))).await.is_some() {
            let late = u64::try_from(buckets.late()).unwrap();
            if late > 0 {
                let index = weather.millis(0..late).as_millis();
                buckets.land(usize::try_from(index).unwrap());
            }
        }
        buckets.land_all();
    }
}
