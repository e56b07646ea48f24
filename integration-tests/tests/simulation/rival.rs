//! Another pipeline, with a database and a replica of its own, that takes the location over; and the owner, that takes it back.

use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
    time::Duration,
};

use lockstep_coordinator::store::{
    AdmitTakeOver, ClaimState, DatabaseIdentity, NewPipeline, Store, memory::MemoryDatabase,
};
use lockstep_protocol::{
    id::{DatabaseId, PipelineId},
    round::RetryPolicy,
    spec::PipelineSpec,
    takeover::Purpose,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::world::{self, BUCKET, Chances, Replica, World, alice};

pub(crate) struct Rival {
    world: Rc<World>,
    /// Of the pipeline that owned the location first.
    owner: PipelineId,
    heir: PipelineId,
    database: MemoryDatabase,
    store: OnceCell<Store>,
    replica: RefCell<Option<Replica>>,
    rng: RefCell<StdRng>,
}

/// Somebody who shall own the location.
pub(crate) async fn take_over(store: &Store, pipeline: PipelineId) -> bool {
    let ask = AdmitTakeOver {
        pipeline: pipeline.into(),
        request_id: None,
        retry: RetryPolicy::default(),
        purpose: Purpose::TakeOver,
    };
    let answer = store.admit_take_over(ask, &alice()).await;
    info!(%pipeline, admitted = answer.is_ok(), "take-over asked for");
    answer.is_ok()
}

impl Rival {
    /// A standby that nobody has asked for anything yet.
    pub(crate) async fn begin(world: Rc<World>, owner: PipelineId, seed: u64, chances: Chances) -> Self {
        let identity = DatabaseIdentity {
            database: DatabaseId::new(Uuid::from_u128(0xe1)),
            system_identifier: "2".to_owned(),
            timeline: 1,
        };
        let rival = Self {
            owner,
            heir: PipelineId::new(world.weather.uuid()),
            database: MemoryDatabase::new(world::now).with_identity(identity),
            store: OnceCell::new(),
            replica: RefCell::default(),
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            world,
        };
        let spec = serde_json::json!({
            "name": "heir", "initial": "standby", "solo": true, "agents": ["http://heir:7402"],
            "location": {"bucket": BUCKET, "prefix": "orders"},
        });
        let spec = PipelineSpec::from_value(spec).unwrap();
        let new = NewPipeline { id: rival.heir, spec, fence_bytes: None, request_id: None };
        rival.store().create_pipeline(new, &alice()).await.unwrap();
        assert_eq!(rival.database.pipelines()[0].claim, ClaimState::Standby);
        rival.database.random_faults(seed, chances.database);
        rival.start_replica();
        rival
    }

    fn store(&self) -> &Store {
        self.store.get_or_init(|| self.database.store())
    }

    fn start_replica(&self) {
        self.replica.borrow_mut().get_or_insert_with(|| self.world.replica_of(&self.database));
    }

    fn kill_replica(&self) {
        if let Some(replica) = self.replica.take() {
            self.world.weather.count("taker killed");
            replica.kill();
        }
    }

    fn millis(&self, most: u64) -> Duration {
        Duration::from_millis(self.rng.borrow_mut().random_range(0..most))
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        while over.run_until_cancelled(tokio::time::sleep(self.millis(20_000))).await.is_some() {
            let what = self.rng.borrow_mut().random_range(0..10);
            match what {
                0..4 => {
                    self.world.weather.count("location taken over");
                    take_over(self.store(), self.heir).await;
                    // In the middle of it, as often as not.
                    if self.rng.borrow_mut().random_bool(0.5) {
                        tokio::time::sleep(self.millis(400)).await;
                        self.kill_replica();
                    }
                }
                4..8 => {
                    self.world.weather.count("location taken back");
                    take_over(self.world.store(), self.owner).await;
                }
                _ => self.start_replica(),
            }
        }
    }

    /// From here on nothing fails that has not failed yet.
    pub(crate) fn calm_down(&self) {
        self.database.calm();
        self.start_replica();
    }

    pub(crate) fn is_taking_over(&self) -> bool {
        world::is_taking_over(&self.database)
    }
}
