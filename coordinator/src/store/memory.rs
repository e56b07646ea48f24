//! The in-memory twin of Postgres, for simulations: one [`MemoryDatabase`] is a whole database that any number of replicas' [`Store`]s look into, with
//! a clock that the simulation owns and faults drawn from a seed.
//!
//! It stands below what `Store` makes of a transaction's outcome, so that production code meets every fault. Its behaviour is held to that of the
//! statements in this module's parent by the conformance test (`coordinator/tests/store/conformance.rs`); what both must say in the same words is
//! written once, beside the statements. Builds without debug assertions don't have it: no process of a release can be told to forget its database.

mod differences;
mod faults;
mod losses;
mod pipelines;
mod ready;
mod rounds;
mod schedules;
mod standbys;
mod take_overs;
mod upkeep;
mod verifications;
mod verify_budget;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, SubsecRound, Utc};
use futures::future::BoxFuture;
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    garbage::Retiring,
    id::{DatabaseId, Generation, PipelineId, RequestId, RoundId, Seq, Term},
    problem::Problem,
    ready::Telling,
    round::CancelRequest,
    schedule::PushSchedule,
    takeover::TakeOver,
    upkeep::{Tally, Upkeep},
};
use tokio::sync::broadcast;
use uuid::Uuid;

pub use faults::StoreFault;

use super::{
    Admission, Applied, AuditFilter, AuditRow, Caller, ClaimSettled, CollectionView, Created, DatabaseIdentity,
    DuePushes, DueStandbys, Listed, Marking, NewPipeline, Page, PipelineRow, PipelineSelector, RoundFilter,
    RoundRecord, StandbyRow, Store, StoreError, TakeOverApplied, UpkeepApplied, Verification, VerificationsOf,
    VerifyBudget, apply,
    ask::Request,
    claims::{FenceOut, Settle},
    committed::Committed,
    differences::{Found, Note},
    drive::{Cancel, Claim, Progress},
    losses::{Accept, AcceptedLoss},
    ownership::{Delete, Update},
    pool::Access,
    ready::SaveTelling,
    schedules::SaveSchedule,
    schema::Schema,
    sqlstate::{Fail, Place},
    standbys::{SaveFollowState, Steer},
    take_overs as take_overs_of,
    transactions::Transactions,
    upkeep as upkeep_of,
    verifications::{Keep, SettleMark},
    verify_budget::SaveBudget,
};
use faults::Faults;
use pipelines::StoredPipeline;
use ready::StoredWord;
use rounds::StoredRound;
use schedules::StoredSchedule;
use standbys::StoredStandby;
use take_overs::StoredTakeOver;
use upkeep::{StoredRetirement, StoredUpkeep};
use verifications::StoredVerification;
use verify_budget::StoredBudget;

/// Stands between one replica and everything outside of it. A gate that never opens again is a replica that was killed; one that opens late is a
/// replica that was stopped, or whose machine slept.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Passed once before a request goes out, and once before its answer is seen.
    fn pass(&self) -> BoxFuture<'static, ()>;
}

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

/// Every row as it was at one time.
#[derive(Clone, Debug)]
pub struct Backup(Tables);

#[derive(Clone, Debug)]
struct Tables {
    identity: DatabaseIdentity,
    /// How often the database was lost: requests to the one before are never carried out.
    losses: u32,
    pipelines: BTreeMap<PipelineId, StoredPipeline>,
    rounds: BTreeMap<RoundId, StoredRound>,
    /// Digest of the parameters, and the round that answered.
    requests: BTreeMap<(PipelineId, RequestId), (String, RoundId)>,
    schedules: BTreeMap<PipelineId, StoredSchedule>,
    standbys: BTreeMap<PipelineId, StoredStandby>,
    words: BTreeMap<PipelineId, StoredWord>,
    take_overs: BTreeMap<Uuid, StoredTakeOver>,
    upkeep: BTreeMap<Uuid, StoredUpkeep>,
    retirements: BTreeMap<(PipelineId, Generation, Seq), StoredRetirement>,
    verifications: BTreeMap<Uuid, StoredVerification>,
    verify_budget: StoredBudget,
    accepted_losses: Vec<AcceptedLoss>,
    audit: Vec<AuditRow>,
}

/// A line of the audit trail, but for its number and time.
struct Line<'l> {
    pipeline: PipelineId,
    round: Option<RoundId>,
    host_idx: Option<u32>,
    event: &'l str,
    from: Option<&'l str>,
    to: Option<&'l str>,
    cause: &'l str,
    actor: &'l str,
    trace_id: Option<&'l String>,
    guard: Option<(u64, u64)>,
}

impl Tables {
    fn write(&mut self, now: DateTime<Utc>, line: &Line<'_>) {
        let id = u64::try_from(self.audit.len()).unwrap_or(u64::MAX).saturating_add(1);
        self.audit.push(AuditRow {
            id,
            at: now,
            pipeline: line.pipeline,
            round: line.round,
            host_idx: line.host_idx,
            event: line.event.to_owned(),
            from: line.from.map(str::to_owned),
            to: line.to.map(str::to_owned),
            cause: super::text::text(line.cause),
            actor: super::text::text(line.actor),
            trace_id: line.trace_id.cloned(),
            term: line.guard.map(|(term, _)| term),
            version: line.guard.map(|(_, version)| version),
        });
    }

    fn list_audit(&self, filter: &AuditFilter, page: &Page) -> Result<Listed<AuditRow>, Fail> {
        let after = match page.token.as_deref() {
            None | Some("") => 0,
            Some(token) => token.parse::<i64>().map_err(|_| super::audit::bad_token(token))?,
        };
        let after = u64::try_from(after).unwrap_or_default();
        let fits = |row: &&AuditRow| {
            row.id > after
                && filter.pipeline.is_none_or(|id| row.pipeline == id)
                && filter.round.is_none_or(|id| row.round == Some(id))
        };
        let items: Vec<_> = self.audit.iter().filter(fits).take(limit(page)).cloned().collect();
        let next = items.last().filter(|_| items.len() == limit(page)).map(|row| row.id.to_string());
        Ok(Listed { items, next })
    }
}

fn limit(page: &Page) -> usize {
    usize::try_from(page.limit()).unwrap_or(usize::MAX)
}

/// As a jsonb column gives a value back.
fn as_json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> Result<T, Fail> {
    super::text::from_json("a value", super::text::json(value)?)
}

impl MemoryDatabase {
    /// An empty one. `clock` says what its time is; nothing in it asks another clock.
    pub fn new(clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        let identity = DatabaseIdentity {
            database: DatabaseId::new(Uuid::from_u128(0xdb)),
            system_identifier: "1".to_owned(),
            timeline: 1,
        };
        let tables = Tables {
            identity,
            losses: 0,
            pipelines: BTreeMap::new(),
            rounds: BTreeMap::new(),
            requests: BTreeMap::new(),
            schedules: BTreeMap::new(),
            standbys: BTreeMap::new(),
            words: BTreeMap::new(),
            take_overs: BTreeMap::new(),
            upkeep: BTreeMap::new(),
            retirements: BTreeMap::new(),
            verifications: BTreeMap::new(),
            verify_budget: StoredBudget::default(),
            accepted_losses: Vec::new(),
            audit: Vec::new(),
        };
        Self(Arc::new(Shared {
            clock: Box::new(clock),
            tables: Mutex::new(tables),
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

    /// What a backup or a standby server has.
    pub fn backup(&self) -> Backup {
        Backup(self.tables().clone())
    }

    /// The database is lost, and what goes on is that backup, as another server or timeline has it.
    pub fn restore(&self, backup: &Backup, identity: DatabaseIdentity) {
        let mut tables = self.tables();
        let losses = tables.losses.saturating_add(1);
        *tables = Tables { identity, losses, ..backup.0.clone() };
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

#[derive(Debug)]
struct Open;

impl Gate for Open {
    fn pass(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One replica's way to the database.
#[derive(Clone, Debug)]
struct Link {
    database: MemoryDatabase,
    gate: Arc<dyn Gate>,
}

fn place() -> Place {
    Place { host: "memory".to_owned(), port: 0, database: "twin".to_owned() }
}

impl Link {
    /// One transaction, in a task of its own as in production. A body that refuses has changed nothing.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        body: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, StoreError> {
        let link = self.clone();
        let work = async move {
            link.gate.pass().await;
            let (fault, before, after) = link.database.faults().draw(access);
            pause(before).await;
            let outcome = link.carry(operation, access, fault, body);
            pause(after).await;
            link.gate.pass().await;
            outcome
        };
        match tokio::spawn(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(StoreError::UnknownOutcome(place().problem(operation, format!("ended early: {error}")))),
        }
    }

    fn carry<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        fault: Option<StoreFault>,
        body: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database.clone();
        let act = move || {
            let now = database.now();
            body(&mut database.tables(), now).map_err(|fail| place().error(operation, &fail))
        };
        let lost = || {
            let problem = place().problem(operation, "fault: the answer was lost");
            Err(match access {
                Access::Read => StoreError::Unavailable(problem),
                Access::Write => StoreError::UnknownOutcome(problem),
            })
        };
        match fault {
            None => act(),
            Some(StoreFault::Unavailable) => {
                Err(StoreError::Unavailable(place().problem(operation, "fault: unavailable")))
            }
            Some(StoreFault::LostBefore) => lost(),
            Some(StoreFault::LostAfter) => {
                // A refusal that nobody hears changed nothing.
                let _ = act();
                lost()
            }
            Some(StoreFault::LandsLate(after)) => {
                let (database, losses) = (self.database.clone(), self.database.tables().losses);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    if database.tables().losses == losses {
                        let _ = act();
                    }
                });
                lost()
            }
        }
    }
}

async fn pause(duration: Duration) {
    if duration.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(duration).await;
    }
}

#[async_trait]
impl Transactions for Link {
    async fn migrate(&self, _: Schema) -> Result<(), Problem> {
        Ok(())
    }

    async fn close(&self) {}

    async fn identity(&self) -> Result<DatabaseIdentity, StoreError> {
        self.run("identity", Access::Read, |tables, _| Ok(tables.identity.clone())).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.run("now", Access::Read, |_, now| Ok(now)).await
    }

    async fn admit(&self, operation: &'static str, request: Request) -> Result<Admission, StoreError> {
        self.run(operation, Access::Write, move |tables, now| tables.admit(&request, now)).await
    }

    async fn claim_rounds(&self, claim: Claim) -> Result<Vec<RoundRecord>, StoreError> {
        self.run("claim_rounds", Access::Write, move |tables, now| Ok(tables.claim(&claim, now))).await
    }

    async fn renew(&self, held: Vec<(RoundId, Term)>, lease: Duration) -> Result<Vec<RoundId>, StoreError> {
        self.run("renew", Access::Write, move |tables, now| Ok(tables.renew(&held, lease, now))).await
    }

    async fn release(&self, held: Vec<(RoundId, Term)>, caller: Caller) -> Result<(), StoreError> {
        self.run("release", Access::Write, move |tables, now| {
            tables.release(&held, &caller, now);
            Ok(())
        })
        .await
    }

    async fn apply(&self, change: Arc<apply::Change>) -> Result<Applied, StoreError> {
        self.run("apply", Access::Write, move |tables, now| tables.apply(&change, now)).await
    }

    async fn look(&self, change: Arc<apply::Change>) -> Result<Option<Applied>, StoreError> {
        self.run("look", Access::Read, move |tables, _| Ok(tables.look(&change))).await
    }

    async fn request_cancel(&self, cancel: Cancel) -> Result<RoundRecord, StoreError> {
        self.run("request_cancel", Access::Write, move |tables, now| tables.request_cancel(&cancel, now)).await
    }

    async fn pending_cancels(&self, rounds: Vec<RoundId>) -> Result<Vec<(RoundId, CancelRequest)>, StoreError> {
        self.run("pending_cancels", Access::Read, move |tables, _| {
            let request = |id: &RoundId| Some((*id, tables.rounds.get(id)?.record.cancel_requested.clone()?));
            Ok(rounds.iter().filter_map(request).collect())
        })
        .await
    }

    async fn save_progress(&self, progress: Progress) -> Result<bool, StoreError> {
        self.run("save_progress", Access::Write, move |tables, _| Ok(tables.save_progress(&progress))).await
    }

    async fn get_round(&self, round: RoundId) -> Result<RoundRecord, StoreError> {
        self.run("get_round", Access::Read, move |tables, _| tables.get_round(round)).await
    }

    async fn list_rounds(&self, filter: RoundFilter, page: Page) -> Result<Listed<RoundRecord>, StoreError> {
        self.run("list_rounds", Access::Read, move |tables, _| tables.list_rounds(&filter, &page)).await
    }

    async fn active_rounds(&self) -> Result<u64, StoreError> {
        self.run("active_rounds", Access::Read, |tables, _| {
            let active = tables.rounds.values().filter(|stored| stored.record.ended_at.is_none()).count();
            Ok(u64::try_from(active).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn list_audit(&self, filter: AuditFilter, page: Page) -> Result<Listed<AuditRow>, StoreError> {
        self.run("list_audit", Access::Read, move |tables, _| tables.list_audit(&filter, &page)).await
    }

    async fn create_pipeline(&self, new: NewPipeline, caller: Caller) -> Result<Created, StoreError> {
        self.run("create_pipeline", Access::Write, move |tables, now| tables.create_pipeline(&new, &caller, now)).await
    }

    async fn get_pipeline(&self, selector: PipelineSelector) -> Result<PipelineRow, StoreError> {
        self.run("get_pipeline", Access::Read, move |tables, _| tables.shown_pipeline(&selector)).await
    }

    async fn list_pipelines(&self, page: Page) -> Result<Listed<PipelineRow>, StoreError> {
        self.run("list_pipelines", Access::Read, move |tables, _| tables.list_pipelines(&page)).await
    }

    async fn update_pipeline(&self, update: Update) -> Result<PipelineRow, StoreError> {
        self.run("update_pipeline", Access::Write, move |tables, now| tables.update_pipeline(&update, now)).await
    }

    async fn delete_pipeline(&self, delete: Delete) -> Result<PipelineId, StoreError> {
        self.run("delete_pipeline", Access::Write, move |tables, now| tables.delete_pipeline(&delete, now)).await
    }

    async fn claim_claiming(&self, _: String, lease: Duration) -> Result<Vec<PipelineRow>, StoreError> {
        self.run("claim_claiming", Access::Write, move |tables, now| Ok(tables.claim_claiming(lease, now))).await
    }

    async fn renew_claim(&self, id: PipelineId, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_claim", Access::Write, move |tables, now| Ok(tables.renew_claim(id, term, lease, now))).await
    }

    async fn settle_claim(&self, settle: Settle) -> Result<ClaimSettled, StoreError> {
        self.run("settle_claim", Access::Write, move |tables, now| tables.settle_claim(&settle, now)).await
    }

    async fn look_at_claim(&self, id: PipelineId) -> Result<PipelineRow, StoreError> {
        self.run("settle_claim", Access::Read, move |tables, _| tables.any_pipeline(id)).await
    }

    async fn due_pushes(&self, lease: Duration, at_most: u32) -> Result<DuePushes, StoreError> {
        self.run("due_pushes", Access::Write, move |tables, now| Ok(tables.due_pushes(lease, at_most, now))).await
    }

    async fn save_push_schedule(&self, save: SaveSchedule) -> Result<bool, StoreError> {
        self.run("save_push_schedule", Access::Write, move |tables, _| tables.save_push_schedule(&save)).await
    }

    async fn push_schedule(&self, id: PipelineId) -> Result<Option<PushSchedule>, StoreError> {
        self.run("push_schedule", Access::Read, move |tables, _| Ok(tables.push_schedule(id))).await
    }

    async fn claim_words(&self, lease: Duration) -> Result<Vec<Telling>, StoreError> {
        self.run("claim_words", Access::Write, move |tables, now| Ok(tables.claim_words(lease, now))).await
    }

    async fn save_telling(&self, save: SaveTelling) -> Result<bool, StoreError> {
        self.run("save_telling", Access::Write, move |tables, _| tables.save_telling(&save)).await
    }

    async fn word_of(&self, id: PipelineId) -> Result<Option<Telling>, StoreError> {
        self.run("word_of", Access::Read, move |tables, _| Ok(tables.word_of(id))).await
    }

    async fn due_standbys(&self, lease: Duration, at_most: u32) -> Result<DueStandbys, StoreError> {
        self.run("due_standbys", Access::Write, move |tables, now| Ok(tables.due_standbys(lease, at_most, now))).await
    }

    async fn save_follow_state(&self, save: SaveFollowState) -> Result<bool, StoreError> {
        self.run("save_follow_state", Access::Write, move |tables, _| tables.save_follow_state(&save)).await
    }

    async fn steer_standby(&self, steer: Steer) -> Result<PipelineRow, StoreError> {
        self.run("steer_standby", Access::Write, move |tables, now| tables.steer_standby(&steer, now)).await
    }

    async fn standbys(&self, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, StoreError> {
        self.run("standbys", Access::Read, move |tables, _| Ok(tables.list_standbys(only))).await
    }

    async fn admit_take_over(&self, request: take_overs_of::Request) -> Result<TakeOver, StoreError> {
        self.run("admit_take_over", Access::Write, move |tables, now| tables.admit_take_over(&request, now)).await
    }

    async fn claim_take_overs(&self, _: String, lease: Duration) -> Result<Vec<TakeOver>, StoreError> {
        self.run("claim_take_overs", Access::Write, move |tables, now| Ok(tables.claim_take_overs(lease, now))).await
    }

    async fn renew_take_over(&self, id: Uuid, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.run("renew_take_over", Access::Write, move |tables, now| Ok(tables.renew_take_over(id, term, lease, now)))
            .await
    }

    async fn apply_take_over(&self, change: Arc<take_overs_of::Move>) -> Result<TakeOverApplied, StoreError> {
        self.run("apply_take_over", Access::Write, move |tables, now| tables.apply_take_over(&change, now)).await
    }

    async fn get_take_over(&self, id: Uuid) -> Result<TakeOver, StoreError> {
        self.run("get_take_over", Access::Read, move |tables, _| tables.get_take_over(id)).await
    }

    async fn newest_take_over(&self, pipeline: PipelineSelector, only: Option<Uuid>) -> Result<TakeOver, StoreError> {
        self.run("newest_take_over", Access::Read, move |tables, _| tables.newest_take_over(&pipeline, only)).await
    }

    async fn keep_verification(&self, keep: Keep) -> Result<Verification, StoreError> {
        self.run("keep_verification", Access::Write, move |tables, now| tables.keep_verification(&keep, now)).await
    }

    async fn owed_marks(&self, lease: Duration) -> Result<Vec<Verification>, StoreError> {
        self.run("owed_marks", Access::Write, move |tables, now| Ok(tables.owed_marks(lease, now))).await
    }

    async fn settle_mark(&self, settle: SettleMark) -> Result<bool, StoreError> {
        self.run("settle_mark", Access::Write, move |tables, now| tables.settle_mark(&settle, now)).await
    }

    async fn get_verification(&self, id: Uuid) -> Result<Verification, StoreError> {
        self.run("get_verification", Access::Read, move |tables, _| tables.get_verification(id)).await
    }

    async fn claim_verify_budget(&self, replica: String, lease: Duration) -> Result<Option<VerifyBudget>, StoreError> {
        let claim = move |tables: &mut Tables, now| Ok(tables.claim_verify_budget(&replica, lease, now));
        self.run("claim_verify_budget", Access::Write, claim).await
    }

    async fn renew_verify_budget(&self, replica: String, lease: Duration) -> Result<bool, StoreError> {
        let renew = move |tables: &mut Tables, now| Ok(tables.renew_verify_budget(&replica, lease, now));
        self.run("renew_verify_budget", Access::Write, renew).await
    }

    async fn save_verify_budget(&self, save: SaveBudget) -> Result<bool, StoreError> {
        self.run("save_verify_budget", Access::Write, move |tables, now| Ok(tables.save_verify_budget(&save, now)))
            .await
    }

    async fn verify_turn(&self) -> Result<Option<PipelineId>, StoreError> {
        self.run("verify_turn", Access::Write, |tables, now| Ok(tables.verify_turn(now))).await
    }

    async fn verifications(&self, of: VerificationsOf) -> Result<Vec<Verification>, StoreError> {
        self.run("verifications", Access::Read, move |tables, _| Ok(tables.newest_verifications(&of))).await
    }

    async fn admit_upkeep(&self, request: upkeep_of::Request) -> Result<Upkeep, StoreError> {
        self.run("admit_upkeep", Access::Write, move |tables, now| tables.admit_upkeep(&request, now)).await
    }

    async fn claim_upkeep(&self, _: String, lease: Duration, at_most: u32) -> Result<Vec<Upkeep>, StoreError> {
        self.run("claim_upkeep", Access::Write, move |tables, now| Ok(tables.claim_upkeep(lease, at_most, now))).await
    }

    async fn renew_upkeep(&self, id: Uuid, term: Term, lease: Duration, tally: Tally) -> Result<bool, StoreError> {
        let renewal = (id, term, lease, tally);
        self.run("renew_upkeep", Access::Write, move |tables, now| Ok(tables.renew_upkeep(&renewal, now))).await
    }

    async fn apply_upkeep(&self, change: Arc<upkeep_of::Move>) -> Result<UpkeepApplied, StoreError> {
        self.run("apply_upkeep", Access::Write, move |tables, now| tables.apply_upkeep(&change, now)).await
    }

    async fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, StoreError> {
        self.run("get_upkeep", Access::Read, move |tables, _| tables.get_upkeep(id)).await
    }

    async fn asked_upkeep(&self, pipeline: PipelineId, request_id: RequestId) -> Result<Option<Upkeep>, StoreError> {
        self.run("asked_upkeep", Access::Read, move |tables, _| Ok(tables.asked_upkeep(pipeline, request_id))).await
    }

    async fn last_collection(&self, pipeline: PipelineId) -> Result<Option<Upkeep>, StoreError> {
        self.run("last_collection", Access::Read, move |tables, _| Ok(tables.last_collection(pipeline))).await
    }

    async fn due_collections(&self, every: Duration, at_most: u32) -> Result<Vec<PipelineId>, StoreError> {
        self.run("due_collections", Access::Read, move |tables, now| Ok(tables.due_collections(every, at_most, now)))
            .await
    }

    async fn mark_retired(&self, marking: Marking) -> Result<Vec<Retiring>, StoreError> {
        self.run("mark_retired", Access::Write, move |tables, now| tables.mark_retired(&marking, now)).await
    }

    async fn settle_retirement(&self, pipeline: PipelineId, commit: CommitRef, landed: bool) -> Result<(), StoreError> {
        self.run("settle_retirement", Access::Write, move |tables, now| {
            tables.settle_retirement(pipeline, &commit, landed, now);
            Ok(())
        })
        .await
    }

    async fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: BTreeSet<RoundId>,
    ) -> Result<CollectionView, StoreError> {
        self.run("collection_view", Access::Read, move |tables, now| tables.collection_view(pipeline, &rounds, now))
            .await
    }

    async fn fence_out(&self, fence: FenceOut) -> Result<bool, StoreError> {
        self.run("fence_out", Access::Write, move |tables, now| Ok(tables.fence_out(&fence, now))).await
    }

    async fn note_difference(&self, note: Note) -> Result<bool, StoreError> {
        self.run("note_difference", Access::Write, move |tables, now| tables.note_difference(&note, now)).await
    }

    async fn found_again(&self, found: Found) -> Result<bool, StoreError> {
        self.run("found_again", Access::Write, move |tables, now| Ok(tables.found_again(&found, now))).await
    }

    async fn accept_loss(&self, accept: Accept) -> Result<AcceptedLoss, StoreError> {
        self.run("accept_loss", Access::Write, move |tables, now| tables.accept_loss(&accept, now)).await
    }

    async fn accepted_losses(&self, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, StoreError> {
        self.run("accepted_losses", Access::Read, move |tables, _| Ok(tables.accepted_losses(pipeline))).await
    }

    async fn committed(&self, pipeline: PipelineId) -> Result<Vec<Committed>, StoreError> {
        self.run("committed", Access::Read, move |tables, _| Ok(tables.committed(pipeline))).await
    }

    async fn notify(&self, payloads: Vec<String>) -> Result<(), StoreError> {
        let told = self.database.0.told.clone();
        self.run("notify", Access::Read, move |_, _| {
            for payload in payloads {
                // Nobody listens: a hint is not owed.
                let _ = told.send(payload);
            }
            Ok(())
        })
        .await
    }

    async fn follow(&self, heard: broadcast::Sender<String>) -> Result<(), StoreError> {
        let mut told = self.database.0.told.subscribe();
        let _ = heard.send(String::new());
        loop {
            let payload = told.recv().await.unwrap_or_default();
            self.gate.pass().await;
            let _ = heard.send(payload);
        }
    }
}

/// Of a request's parameters.
fn digest_of(value: &serde_json::Value) -> String {
    Digest::of(value.to_string().as_bytes()).to_string()
}

/// Added to the database's clock.
fn later(now: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    chrono::TimeDelta::from_std(by).ok().and_then(|by| now.checked_add_signed(by)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
