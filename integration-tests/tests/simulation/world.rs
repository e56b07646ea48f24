//! Everything there is in one run: the database and the bucket as their twins, hosts, and the replicas that come and go.

use std::{
    cell::{Cell, OnceCell, RefCell},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use lockstep_bucket::MemoryBuckets;
use lockstep_coordinator::{
    dispatch::{DispatchOptions, Dispatcher},
    store::{
        Caller, ClaimState, NewPipeline, PipelineRow, RoundRecord, Store,
        memory::{Gate, MemoryDatabase},
    },
};
use lockstep_protocol::{
    fence::{Fence, Writer},
    id::{Generation, PipelineId, PipelineName},
    location::Location,
    spec::PipelineSpec,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{agent::Agent, bucket::FarBuckets, check::Place, gate::ReplicaGate, log, weather::Weather, wire};

pub(crate) const BUCKET: &str = "acme";

/// How often each sort of fault may come, as chances of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chances {
    pub(crate) database: f64,
    pub(crate) bucket: f64,
    pub(crate) wire: f64,
}

pub(crate) struct Replica {
    gate: Arc<ReplicaGate>,
    shutdown: CancellationToken,
    name: String,
}

impl Replica {
    pub(crate) fn kill(&self) {
        info!(replica = self.name, "killed");
        self.gate.kill();
    }
}

pub(crate) struct World {
    pub(crate) database: MemoryDatabase,
    pub(crate) buckets: MemoryBuckets,
    pub(crate) weather: Weather,
    pub(crate) agents: Vec<Agent>,
    store: OnceCell<Store>,
    replicas: RefCell<Vec<Replica>>,
    started: RefCell<u32>,
    /// The newest commit that counted when somebody looked last (S11).
    pub(crate) latest: Cell<Option<Place>>,
}

pub(crate) fn alice() -> Caller {
    Caller { actor: "alice".to_owned(), ..Caller::default() }
}

/// Of a second that is the same in each run.
fn epoch() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// By everybody's clock.
pub(crate) fn now() -> DateTime<Utc> {
    epoch() + log::elapsed()
}

pub(crate) fn is_taking_over(database: &MemoryDatabase) -> bool {
    database.take_overs().iter().any(|take_over| !take_over.phase.is_terminal())
}

pub(crate) fn location() -> Location {
    format!("s3://{BUCKET}/orders").parse().unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, hosts: u32, chances: Chances) -> Self {
        let database = MemoryDatabase::new(now);
        let buckets = MemoryBuckets::new([BUCKET]);
        let weather = Weather::new(seed.wrapping_mul(7).wrapping_add(1), chances.wire);
        let always = Arc::new(ReplicaGate::new());
        let mut agents = Vec::new();
        for slot in lockstep_protocol::host::Layout::from_n_hosts(hosts).unwrap().slots() {
            let far = FarBuckets { buckets: buckets.clone(), gate: Arc::clone(&always) as _, weather: weather.clone() };
            let bucket = far.store(&location());
            agents.push(Agent::new(slot, name(), location(), bucket, weather.clone()));
        }
        Self {
            database,
            buckets,
            weather,
            agents,
            store: OnceCell::new(),
            replicas: RefCell::default(),
            started: RefCell::default(),
            latest: Cell::default(),
        }
    }

    // ---- replicas

    /// A process of a name that no process had before.
    pub(crate) fn start_replica(&self) {
        let replica = self.replica_of(&self.database);
        self.replicas.borrow_mut().push(replica);
    }

    /// The same over another database.
    pub(crate) fn replica_of(&self, database: &MemoryDatabase) -> Replica {
        let name = self.next_name();
        info!(replica = name, "starts");
        let gate = Arc::new(ReplicaGate::new());
        let dynamic: Arc<dyn Gate> = Arc::clone(&gate) as _;
        let connector =
            FarBuckets { buckets: self.buckets.clone(), gate: Arc::clone(&dynamic), weather: self.weather.clone() };
        let agents = wire::pool(&self.agents, &dynamic, &self.weather);
        let options = DispatchOptions { replica: name.clone(), ..DispatchOptions::default() };
        let store = database.store_behind(dynamic);
        let shutdown = CancellationToken::new();
        tokio::spawn(Dispatcher::new(store, Arc::new(connector), agents, options).run(shutdown.clone()));
        Replica { gate, shutdown, name }
    }

    pub(crate) fn next_name(&self) -> String {
        *self.started.borrow_mut() += 1;
        format!("r{}", self.started.borrow())
    }

    pub(crate) fn kill_replica(&self, which: usize) {
        let mut replicas = self.replicas.borrow_mut();
        if which < replicas.len() {
            let replica = replicas.remove(which);
            self.weather.count("replica killed");
            replica.kill();
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

    /// What users and their API see of the database. Inside a runtime only.
    pub(crate) fn store(&self) -> &Store {
        self.store.get_or_init(|| self.database.store())
    }

    pub(crate) async fn create_pipeline(&self) -> PipelineRow {
        let agents: Vec<_> = self.agents.iter().map(Agent::address).collect();
        let mut spec = serde_json::json!({
            "name": name().as_str(), "agents": agents, "location": {"bucket": BUCKET, "prefix": "orders"},
        });
        match self.agents.first().and_then(|agent| agent.host_info()) {
            None => spec["solo"] = true.into(),
            Some(_) => spec["hosts"] = agents.len().into(),
        }
        let spec = PipelineSpec::from_value(spec).unwrap();
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
        let new = NewPipeline { id, spec, fence_bytes, request_id: None };
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

pub(crate) fn name() -> PipelineName {
    PipelineName::new("orders").unwrap()
}
