//! The in-memory twin of Postgres, for simulations: one [`MemoryDatabase`] is a whole database that any number of replicas' [`Store`]s look into, with
//! a clock that the simulation owns and faults drawn from a seed.
//!
//! It stands below what `Store` makes of a transaction's outcome, so that production code meets every fault. Its behaviour is held to that of the
//! statements in this module's parent by the conformance test (`coordinator/tests/store/conformance.rs`); what both must say in the same words is
//! written once, beside the statements. Builds without debug assertions don't have it: no process of a release can be told to forget its database.

mod admit;
mod apply;
mod audit;
mod backup;
mod differences;
mod faults;
mod link;
mod losses;
mod pipelines;
mod ready;
mod rounds;
mod schedules;
mod standbys;
mod tables;
mod take_overs;
mod transactions;
mod upkeep;
mod values;
mod verifications;
mod verify_budget;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::{commit::CommitRef, id::DatabaseId, takeover::TakeOver, upkeep::Upkeep};
use tokio::sync::broadcast;
use uuid::Uuid;

pub use backup::Backup;
pub use faults::StoreFault;
pub use link::Gate;

use super::{AuditRow, DatabaseIdentity, PipelineRow, RoundRecord, Store, Verification};
use faults::Faults;
use link::{Link, Open};
use tables::Tables;

/// Hints on their way to one replica; one that lags is told to look at everything.
const HINTS: usize = 1024;

/// A whole database in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryDatabase(Arc<Shared>);

struct Shared {
    clock: Box<dyn Fn() -> DateTime<Utc> + Send + Sync>,
    tables: Mutex<Tables>,
    faults: Mutex<Faults>,
    told: broadcast::Sender<String>,
}

impl fmt::Debug for MemoryDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDatabase").finish_non_exhaustive()
    }
}

impl MemoryDatabase {
    /// An empty one. `clock` says what its time is; nothing in it asks another clock.
    pub fn new(clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        let identity = DatabaseIdentity {
            database: DatabaseId::new(Uuid::from_u128(0xdb)),
            system_identifier: "1".to_owned(),
            timeline: 1,
        };
        Self(Arc::new(Shared {
            clock: Box::new(clock),
            tables: Mutex::new(Tables::empty(identity)),
            faults: Mutex::default(),
            told: broadcast::Sender::new(HINTS),
        }))
    }

    /// As if another server had made it.
    #[must_use]
    pub fn with_identity(self, identity: DatabaseIdentity) -> Self {
        self.tables().identity = identity;
        self
    }

    /// Which database it is, past all faults.
    pub fn identity(&self) -> DatabaseIdentity {
        self.tables().identity.clone()
    }

    /// Every verification, past all faults, in the order of their ids.
    pub fn verifications(&self) -> Vec<Verification> {
        self.tables().verifications.values().map(|stored| stored.value.clone()).collect()
    }

    /// A replica's own store. Must be called inside a tokio runtime, as [`Store::connect`].
    pub fn store(&self) -> Store {
        self.store_behind(Arc::new(Open))
    }

    /// One of a replica that is killed and stopped by its gate.
    pub fn store_behind(&self, gate: Arc<dyn Gate>) -> Store {
        Store::over(Arc::new(Link { database: self.clone(), gate }))
    }

    /// From now on each transaction takes some milliseconds and fails with this chance, in a way drawn from `seed`.
    pub fn random_faults(&self, seed: u64, chance: f64) {
        self.faults().random(seed, chance);
    }

    /// No more faults. What is late still lands.
    pub fn calm(&self) {
        self.faults().calm();
    }

    /// How often each fault happened.
    pub fn fault_counts(&self) -> BTreeMap<StoreFault, u64> {
        self.faults().counts.clone()
    }

    /// Every round, past all faults, the oldest first.
    pub fn rounds(&self) -> Vec<RoundRecord> {
        let tables = self.tables();
        let mut rounds: Vec<_> = tables.rounds.values().map(|stored| stored.record.clone()).collect();
        rounds.sort_by_key(|record| (record.created_at, record.round.id));
        rounds
    }

    /// Every pipeline, past all faults, deleted ones included.
    pub fn pipelines(&self) -> Vec<PipelineRow> {
        self.tables().pipelines.values().map(|stored| stored.row.clone()).collect()
    }

    /// Every take-over, past all faults, in the order of their ids.
    pub fn take_overs(&self) -> Vec<TakeOver> {
        self.tables().take_overs.values().map(|stored| stored.value.clone()).collect()
    }

    /// Every piece of upkeep, past all faults, in the order of their ids.
    pub fn upkeep(&self) -> Vec<Upkeep> {
        self.tables().upkeep.values().map(|stored| stored.value.clone()).collect()
    }

    /// Commits whose tombstones are known to have landed, past all faults.
    pub fn retired(&self) -> Vec<CommitRef> {
        let tables = self.tables();
        let landed = tables.retirements.values().filter(|stored| stored.landed_at.is_some());
        landed.map(|stored| stored.retiring.tombstone().commit).collect()
    }

    /// The whole audit trail, past all faults.
    pub fn audit(&self) -> Vec<AuditRow> {
        self.tables().audit.clone()
    }

    fn now(&self) -> DateTime<Utc> {
        // As timestamptz has it.
        (self.0.clock)().trunc_subsecs(6)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
