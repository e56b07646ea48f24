//! Drives what was admitted: claims rounds and locations that nobody drives, carries their effects out and stores what comes of them.
//!
//! Any number of replicas may run this over one database. A round belongs to whoever raised its term last; each write repeats version and term, so
//! one that was paused or cut off changes nothing any more, whatever it still has under way (R4, S6). A round is driven in `driver`, one
//! screen: effects of the stored round, their events, `decide`, one guarded write, and again.
//!
//! - `driver`: one round
//! - `work`: its effects that are under way, `effects`: what each of them does, with `transfer`, `hosts`, `parts`, `settle` and `protect`
//! - `orders`: what agents are told, as it follows from the row
//! - `drive`: what effects and driver of one round share; `progress` of its hosts
//! - `rows`: how all kinds of rows are looked for and held; `leases`: which rounds this replica holds; `clock`: by whose clock; `cancels`: which of them somebody asked to stop
//! - `unsaved`: which reports may wait before they are stored
//! - `claim`: locations of new pipelines; `schedule`: pushes that nobody asks for; `follow`: pulls of standbys; `take_over`: locations that somebody owned, with the pulls of an `activation`
//! - `marks`: of damaged checkpoints; `verify`: re-reading within the daily budget; `upkeep`: pins, retirements and collections, with what they delete in `collect`
//! - `compare`: every location with the database, once at start; `identity`: whether that is still the same database
//! - `ready`: what engines are told after a pull
//! - `farewell`: what is told to agents and bucket after the end
//! - `milestone`: failpoints around what is stored

use std::{sync::Arc, time::Duration};

use lockstep_bucket::Connector;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    problem::Reason,
    round::{RetryPolicy, Round},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    agents::AgentPool,
    plan::{BackOff, Known, PlanContext, PlanOptions, Right},
    store::{Caller, Change, Difference, RoundRecord, Store},
};

mod activation;
mod cancels;
mod claim;
mod clock;
mod collect;
mod compare;
mod drive;
mod driver;
mod effects;
mod farewell;
mod follow;
mod hosts;
mod identity;
mod leases;
mod left_pins;
mod marks;
mod milestone;
mod orders;
mod parts;
mod progress;
mod protect;
mod ready;
mod rows;
mod schedule;
mod settle;
mod settling;
mod take_over;
mod transfer;
mod unsaved;
mod upkeep;
mod verify;
mod work;

use clock::DatabaseClock;
use drive::Drive;
use driver::Ended;
use leases::Leases;

/// How rounds are driven. Defaults are those of protocol.md, "Coordinators".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DispatchOptions {
    /// Name of this replica in leases and audit events.
    pub replica: String,
    /// How long a claimed round belongs to a replica that doesn't renew it. 10 s.
    pub lease: Duration,
    /// 3 s.
    pub renew_every: Duration,
    /// How often to look for rounds that nobody drives; hints make it sooner. 750 ms: the rounds of a killed replica are driven again within its lease
    /// and a second.
    pub poll_every: Duration,
    /// How long an agent may hold a status call. 20 s.
    pub long_poll: Duration,
    /// An agent without an answer for this long is unreachable. 30 s.
    pub unreachable_after: Duration,
    /// A transfer whose counters don't move for this long is stalled. 60 s.
    pub stall_after: Duration,
    /// How long planning insists with a store that fails in a way that may pass. 10 s.
    pub store_patience: Duration,
    /// How long agents of a round that is over are asked to stop. 20 s.
    pub cancel_patience: Duration,
    /// Rounds at once. 256.
    pub max_rounds: usize,
    /// Of pushes that nobody asks for. 1 h.
    pub push_deadline: Duration,
    /// Of pulls that a standby or an activation asks for. 1 h.
    pub pull_deadline: Duration,
    /// Of pushes, pulls and collections that nobody asks for.
    pub retry: RetryPolicy,
    /// Checkpoints are re-read all the time within so many bytes a day. 0: none.
    pub verify_bytes_per_day: u64,
    /// How garbage is collected.
    pub garbage: GarbageOptions,
}

/// How garbage is collected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GarbageOptions {
    /// How long what is retired keeps its objects, for readers who can't pin. 24 h.
    pub grace: Duration,
    /// How far apart collections begin that nobody asks for; none: there are none. 1 h.
    pub every: Option<Duration>,
    /// Of one collection. 200.
    pub deletes_per_second: u32,
}

impl Default for GarbageOptions {
    fn default() -> Self {
        Self { grace: Duration::from_secs(24 * 3600), every: Some(Duration::from_secs(3600)), deletes_per_second: 200 }
    }
}

impl Default for DispatchOptions {
    fn default() -> Self {
        Self {
            replica: "coordinator".to_owned(),
            lease: Duration::from_secs(10),
            renew_every: Duration::from_secs(3),
            poll_every: Duration::from_millis(750),
            long_poll: Duration::from_secs(20),
            unreachable_after: Duration::from_secs(30),
            stall_after: Duration::from_secs(60),
            store_patience: Duration::from_secs(10),
            cancel_patience: Duration::from_secs(20),
            max_rounds: 256,
            push_deadline: Duration::from_secs(3600),
            pull_deadline: Duration::from_secs(3600),
            retry: RetryPolicy::default(),
            garbage: GarbageOptions::default(),
            verify_bytes_per_day: 0,
        }
    }
}

impl DispatchOptions {
    /// What planning is given of it.
    pub const fn plan(&self) -> PlanOptions {
        PlanOptions { unreachable_after: self.unreachable_after, store_patience: self.store_patience }
    }
}

/// What all rounds of this replica share.
#[derive(Debug)]
pub(crate) struct Services {
    store: Store,
    connector: Arc<dyn Connector>,
    agents: AgentPool,
    options: DispatchOptions,
    clock: DatabaseClock,
    leases: Leases,
    known: Arc<Known>,
}

impl Services {
    fn caller(&self) -> Caller {
        Caller { actor: format!("replica {}", self.options.replica), trace_id: None, traceparent: None }
    }

    fn plan_context(&self) -> PlanContext {
        PlanContext {
            connector: Arc::clone(&self.connector),
            agents: Arc::new(self.agents.clone()),
            options: self.options.plan(),
            right: Right::FinishBase,
            known: Arc::clone(&self.known),
        }
    }
}

/// Drives rounds and claims until it is told to stop.
#[derive(Debug)]
pub struct Dispatcher {
    store: Store,
    connector: Arc<dyn Connector>,
    agents: AgentPool,
    options: DispatchOptions,
}

impl Dispatcher {
    /// Does nothing yet.
    pub const fn new(store: Store, connector: Arc<dyn Connector>, agents: AgentPool, options: DispatchOptions) -> Self {
        Self { store, connector, agents, options }
    }

    /// Runs until `shutdown`; then hands its rounds back, for others to claim at once. What is under way at agents goes on there.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { store, connector, agents, options } = self;
        let Some(clock) = first_reading(&store, &shutdown).await else { return };
        let services = Arc::new(Services {
            store,
            connector,
            agents,
            options,
            clock,
            leases: Leases::default(),
            known: Arc::default(),
        });
        let tasks = TaskTracker::new();
        // Leases are renewed until the last round was handed back, not only until the shutdown begins.
        let renewing = CancellationToken::new();
        let renewal = tokio::spawn(leases::keep(Arc::clone(&services), renewing.clone()));
        tasks.spawn(claim::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(compare::at_start(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(cancels::watch(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(schedule::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(follow::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(ready::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(take_over::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(identity::watch(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(upkeep::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(upkeep::schedule(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(verify::run(Arc::clone(&services), shutdown.clone()));
        tasks.spawn(marks::run(Arc::clone(&services), shutdown.clone()));
        claim_rounds(&services, &tasks, &shutdown).await;
        tasks.close();
        tasks.wait().await;
        renewing.cancel();
        if let Err(error) = renewal.await {
            tracing::error!(%error, "renewing leases ended early");
        }
    }
}

/// The database may come up later than this process.
async fn first_reading(store: &Store, shutdown: &CancellationToken) -> Option<DatabaseClock> {
    let mut back_off = BackOff::of_calls();
    loop {
        match DatabaseClock::read(store).await {
            Ok(clock) => return Some(clock),
            Err(error) => {
                tracing::warn!(reason = %error.problem().reason, "rounds are not driven yet: {}", error.problem().message);
            }
        }
        shutdown.run_until_cancelled(back_off.pause()).await?;
    }
}

/// Rounds that are claimed in one transaction.
const BATCH: usize = 64;

/// Claims rounds that nobody drives and drives each in a task of its own.
async fn claim_rounds(services: &Arc<Services>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let options = &services.options;
    let places = Arc::new(Semaphore::new(options.max_rounds.max(1)));
    let mut changes = services.store.changes();
    let mut back_off = BackOff::of_calls();
    while !shutdown.is_cancelled() {
        let Some(Some(mut free)) = shutdown.run_until_cancelled(free_places(&places)).await else { return };
        let at_most = free.num_permits();
        let looked = Instant::now();
        let batch = u32::try_from(at_most).unwrap_or(u32::MAX);
        match services.store.claim_rounds(&options.replica, options.lease, batch).await {
            Ok(records) => {
                back_off = BackOff::of_calls();
                let all_due = records.len() < at_most;
                for record in records {
                    let place = free.split(1);
                    let (services, shutdown) = (Arc::clone(services), shutdown.clone());
                    tasks.spawn(async move {
                        drive_round(services, record, &shutdown).await;
                        drop(place);
                    });
                }
                drop(free);
                if all_due {
                    let look = rows::next_look(services, &mut changes, Change::RoundWaits, looked);
                    shutdown.run_until_cancelled(look).await;
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error.problem().reason, "no round could be claimed: {}", error.problem().message);
                shutdown.run_until_cancelled(back_off.pause()).await;
            }
        }
    }
}

/// At least one place for a round, and as many more as are free. None never comes: the semaphore is not closed.
async fn free_places(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let mut free = Arc::clone(places).acquire_owned().await.ok()?;
    let more = u32::try_from(places.available_permits().min(BATCH - 1)).unwrap_or(0);
    if let Ok(more) = Arc::clone(places).try_acquire_many_owned(more) {
        free.merge(more);
    }
    Some(free)
}

/// A round that met what the database doesn't know stops the pipeline. If that can't be noted, the next round meets the same.
async fn note_behind(services: &Services, round: &Round) {
    let Some(problem) = round.problem.as_ref().filter(|problem| problem.reason == Reason::DatabaseBehind) else {
        return;
    };
    let row = (round.pipeline, round.generation);
    let noted = services.store.note_difference(row, Difference::Behind, problem.clone(), &services.caller()).await;
    if let Err(error) = noted {
        tracing::warn!(reason = %error.problem().reason, "the database is behind, which is not noted: {}", error.problem().message);
    }
}

/// One round, from its claim to its end or to the loss of its lease. All of it belongs to the trace of whoever asked for the round.
async fn drive_round(services: Arc<Services>, record: RoundRecord, shutdown: &CancellationToken) {
    let round = &record.round;
    let span = tracing::info_span!(
        "round",
        otel.name = drive::kind_name(round),
        round.id = %round.id,
        pipeline.name = %round.pipeline_name,
        round.no = %round.round_no,
        round.term = %round.term,
    );
    if let Some(traceparent) = &record.traceparent
        && let Err(error) = lockstep_telemetry::resume_trace(&span, traceparent)
    {
        tracing::debug!(round.id = %round.id, %error, "a stored trace is not continued");
    }
    async {
        let (round, term) = (record.round.id, record.round.term);
        reached(Point::RoundClaimed);
        let mut hold = services.leases.hold(round, term, record.cancel_requested.clone());
        let driven = services.leases.while_driven(round, term);
        let drive = Arc::new(Drive::new(Arc::clone(&services), &record));
        tracing::info!(phase = %record.round.phase, "round claimed");
        let active = drive::Active::begin();
        let ended = Box::pin(driver::drive(&drive, record.round, shutdown, &mut hold)).await;
        drop(active);
        drop(driven);
        match ended {
            Ended::Terminal(round) => {
                note_behind(&drive.services, &round).await;
                farewell::bid(&drive, &round, shutdown).await;
            }
            Ended::Shutdown => {
                reached(Point::HandBackBefore);
                if let Err(error) = services.store.release(round, term, &services.caller()).await {
                    tracing::warn!(reason = %error.problem().reason, "the lease runs out by itself: {}", error.problem().message);
                }
                reached(Point::HandBackStored);
            }
            Ended::Lost => tracing::info!("the round is somebody else's now"),
        }
    }
    .instrument(span)
    .await;
}
