//! Who drives upkeep or a take-over stores its end in its own turn: the row is not renewed, and so not taken for somebody else's, before the driver has
//! its answer.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use lockstep_bucket::MemoryBuckets;
use lockstep_protocol::{
    id::{Generation, PipelineId},
    round::RetryPolicy,
    spec::PipelineSpec,
    takeover::Purpose,
    upkeep::Work,
};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    agents::{AgentPool, AgentPoolOptions},
    dispatch::{DispatchOptions, Leases, Services, clock::DatabaseClock, take_over, upkeep},
    store::{
        AdmitTakeOver, AdmitUpkeep, Caller, ClaimOutcome, NewPipeline,
        memory::{Gate, MemoryDatabase},
    },
};

const EVERY: Duration = Duration::from_secs(1);

/// The answer to the write of the end takes as long as many renewals.
#[derive(Debug)]
struct SlowAnswer {
    database: MemoryDatabase,
    has_ended: fn(&MemoryDatabase) -> bool,
    /// When the answer comes.
    until: OnceLock<Instant>,
    /// What passed before that.
    meanwhile: Arc<AtomicU32>,
    came: CancellationToken,
}

impl Gate for SlowAnswer {
    fn pass(&self) -> BoxFuture<'static, ()> {
        if let Some(until) = self.until.get() {
            self.meanwhile.fetch_add(u32::from(Instant::now() < *until), Ordering::SeqCst);
        } else if (self.has_ended)(&self.database) {
            // The first to pass after the write is its answer.
            self.until.get_or_init(|| Instant::now() + EVERY * 10);
            let came = self.came.clone();
            return async move {
                sleep(EVERY * 10).await;
                came.cancel();
            }
            .boxed();
        }
        std::future::ready(()).boxed()
    }
}

/// A database with a pipeline that owns its location.
async fn owned() -> (MemoryDatabase, PipelineId) {
    let begun = Instant::now();
    let database = MemoryDatabase::new(move || DateTime::<Utc>::UNIX_EPOCH + begun.elapsed());
    let (store, caller) = (database.store(), Caller::default());
    let spec = PipelineSpec::from_value(serde_json::json!({
        "name": "orders", "hosts": 3, "agents": "http://agent-{host}:7402", "location": {"bucket": "acme", "prefix": "orders"},
    }));
    let new = NewPipeline {
        id: PipelineId::new(Uuid::from_u128(1)),
        spec: spec.unwrap(),
        fence_bytes: Some("{}\n".to_owned()),
        follows: true,
        request_id: None,
    };
    store.create_pipeline(new, &caller).await.unwrap();
    let row = store.claim_claiming("one", EVERY).await.unwrap().pop().unwrap();
    let outcome = ClaimOutcome::Owned(Generation::FIRST);
    store.settle_claim(row.id, row.version, row.claim_term, outcome, &caller).await.unwrap();
    (database, row.id)
}

/// How often the database was asked anything while the answer to the write of the end was on its way.
async fn asked_meanwhile(
    database: &MemoryDatabase,
    has_ended: fn(&MemoryDatabase) -> bool,
    run: impl FnOnce(Arc<Services>, CancellationToken) -> BoxFuture<'static, ()>,
) -> u32 {
    let (meanwhile, came) = (Arc::<AtomicU32>::default(), CancellationToken::new());
    let gate = SlowAnswer {
        database: database.clone(),
        has_ended,
        until: OnceLock::new(),
        meanwhile: Arc::clone(&meanwhile),
        came: came.clone(),
    };
    let store = database.store_behind(Arc::new(gate));
    let services = Services {
        clock: DatabaseClock::read(&store).await.unwrap(),
        store,
        connector: Arc::new(MemoryBuckets::new(["acme"])),
        agents: AgentPool::new(AgentPoolOptions::default()),
        // Nothing but the drive asks the database again.
        options: DispatchOptions { renew_every: EVERY, poll_every: EVERY * 1000, ..DispatchOptions::default() },
        leases: Leases::default(),
        known: Arc::default(),
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(Arc::new(services), shutdown.clone()));
    came.cancelled().await;
    shutdown.cancel();
    running.await.unwrap();
    meanwhile.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn upkeep_is_not_renewed_while_its_end_is_stored() {
    let (database, pipeline) = owned().await;
    let ask = AdmitUpkeep {
        pipeline: pipeline.into(),
        work: Work::Unpin { keys: Vec::new(), documents: Vec::new() },
        request_id: None,
        at_least_apart: None,
        retry: RetryPolicy::default(),
    };
    database.store().admit_upkeep(ask, &Caller::default()).await.unwrap();
    let has_ended = |database: &MemoryDatabase| database.upkeep().iter().any(|upkeep| upkeep.phase.is_terminal());
    let asked = asked_meanwhile(&database, has_ended, |services, stop| upkeep::run(services, stop).boxed()).await;
    assert_eq!(asked, 0);
}

#[tokio::test(start_paused = true)]
async fn a_take_over_is_not_renewed_while_its_end_is_stored() {
    let (database, pipeline) = owned().await;
    let ask = AdmitTakeOver {
        pipeline: pipeline.into(),
        purpose: Purpose::TakeOver,
        chosen: None,
        request_id: None,
        seen: None,
        retry: RetryPolicy::default(),
    };
    database.store().admit_take_over(ask, &Caller::default()).await.unwrap();
    let has_ended = |database: &MemoryDatabase| database.take_overs().iter().any(|one| one.phase.is_terminal());
    let asked = asked_meanwhile(&database, has_ended, |services, stop| take_over::run(services, stop).boxed()).await;
    assert_eq!(asked, 0);
}
