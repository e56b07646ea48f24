//! The measurement: pipelines are created and pushed once, the idle system is looked at, then every pipeline is pushed on schedule.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lockstep_client::{LockstepClient, v1};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::args::{Args, Scope};
use super::counters::{Counters, postgres_transactions};
use super::fleet::pipeline_name;
use super::rig::Rig;
use crate::proc;

/// Pipelines that are created, warmed up or verified at a time.
const PARALLEL: usize = 16;

/// Checkpoints that are read back at the end.
const VERIFIED: u32 = 8;

/// How often the coordinators' files and connections are counted.
const LOOK: Duration = Duration::from_millis(500);

/// After a round: hints are told, the bucket's hint is written.
const SETTLES: Duration = Duration::from_secs(2);

/// Idle backends of Postgres tell of their transactions within 10 s.
const POSTGRES_TELLS: Duration = Duration::from_secs(11);

/// All that was found out.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) scope: Scope,
    /// Beyond the slowest agent, of committed rounds, ascending.
    pub(super) overheads: Vec<Duration>,
    /// Pushes that were due while the one before of that pipeline still ran.
    pub(super) missed: u64,
    /// Time in which pushes ran.
    pub(super) lasted: Duration,
    /// What grew in that time.
    pub(super) grown: Counters,
    /// What grew while nothing happened, and in which time.
    pub(super) idle: Counters,
    pub(super) idle_for: Duration,
    /// Transactions that Postgres counted; none: it was not waited for.
    pub(super) postgres: Option<PostgresCount>,
    pub(super) peaks: Peaks,
    pub(super) verified: u32,
    /// In words.
    pub(super) failures: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PostgresCount {
    pub(super) transactions: u64,
    pub(super) counted_for: Duration,
}

/// The most there was of each, of the coordinator that had most.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Peaks {
    pub(super) rss: u64,
    pub(super) rss_idle: u64,
    pub(super) files: usize,
    pub(super) files_idle: usize,
}

/// One push as its caller saw it.
#[derive(Debug)]
struct Pushed {
    overhead: Option<Duration>,
    failure: Option<String>,
    missed: u64,
}

/// Measures.
pub(super) async fn run(args: &Args, scope: &Scope, folder: &Path, bin_dir: &Path) -> Result<Figures> {
    let rig = Arc::new(Rig::start(args, scope, folder, bin_dir).await?);
    let figures = measure(&rig, scope).await;
    if let Err(error) = &figures
        && let Some(replica) = rig.replicas.first()
    {
        return Err(replica.process.failure(&format!("{error:#}")));
    }
    let rig = Arc::into_inner(rig).context("a push still runs")?;
    rig.stop().await?;
    figures
}

async fn measure(rig: &Arc<Rig>, scope: &Scope) -> Result<Figures> {
    say(&format!("creating {} pipelines of {} hosts", scope.pipelines, scope.hosts));
    create(rig, scope).await?;
    say("a first push of each");
    warm_up(rig, scope).await?;

    // What the last round leaves to do is not idleness.
    sleep(SETTLES).await;
    let quiet = Counters::read(rig).await?;
    sleep(if scope.quick { Duration::from_secs(1) } else { POSTGRES_TELLS }).await;
    let mut peaks = Peaks::default();
    for replica in &rig.replicas {
        let pid = replica.process.pid();
        peaks.rss_idle = peaks.rss_idle.max(proc::resident(pid)?);
        peaks.files_idle = peaks.files_idle.max(proc::open_files(pid)?);
        proc::forget_peak(pid)?;
    }
    let postgres_before = if scope.quick { 0 } else { postgres_transactions(&rig.database_url).await? };

    say(&format!("pushing each every {:?} for {:?}", scope.every, scope.lasts));
    let before = Counters::read(rig).await?;
    let pushed = push_all(rig, scope, &mut peaks).await?;
    let after = Counters::read(rig).await?;
    for replica in &rig.replicas {
        peaks.rss = peaks.rss.max(proc::peak(replica.process.pid())?);
    }
    let postgres = if scope.quick {
        None
    } else {
        sleep(POSTGRES_TELLS).await;
        let transactions = postgres_transactions(&rig.database_url).await? - postgres_before;
        Some(PostgresCount { transactions, counted_for: before.at.elapsed() })
    };
    let verified = verify(rig, scope).await?;
    let mut overheads: Vec<Duration> = pushed.iter().filter_map(|pushed| pushed.overhead).collect();
    overheads.sort_unstable();
    Ok(Figures {
        scope: *scope,
        overheads,
        missed: pushed.iter().map(|pushed| pushed.missed).sum(),
        lasted: after.at - before.at,
        grown: &after - &before,
        idle: &before - &quiet,
        idle_for: before.at - quiet.at,
        postgres,
        peaks,
        verified,
        failures: pushed.into_iter().filter_map(|pushed| pushed.failure).collect(),
    })
}

fn say(text: &str) {
    eprintln!("{text}");
}

async fn create(rig: &Arc<Rig>, scope: &Scope) -> Result<()> {
    let creations = stream::iter(0..scope.pipelines).map(|pipeline| async move {
        let spec = rig.spec(pipeline, scope.hosts);
        rig.caller(pipeline)?.create_pipeline(spec).await.with_context(|| pipeline_name(pipeline))?;
        anyhow::Ok(())
    });
    creations.buffer_unordered(PARALLEL).try_collect().await
}

/// The first push of a pipeline has no base and connects to its agents; it is like no other.
async fn warm_up(rig: &Arc<Rig>, scope: &Scope) -> Result<()> {
    let pushes = stream::iter(0..scope.pipelines).map(|pipeline| async move {
        let caller = rig.caller(pipeline)?;
        rig.fleet.checkpoint(pipeline);
        let round = push(&caller, pipeline).await?;
        if !lockstep_client::succeeded(&round) {
            bail!("the first push of {} ended as {:?}: {:?}", pipeline_name(pipeline), round.phase(), round.problem);
        }
        anyhow::Ok(())
    });
    pushes.buffer_unordered(PARALLEL).try_collect().await
}

async fn push(caller: &LockstepClient, pipeline: u32) -> Result<v1::Round> {
    let request = v1::StartPushRequest { pipeline: pipeline_name(pipeline), ..v1::StartPushRequest::default() };
    let round = caller.start_push(request).await?;
    Ok(caller.wait_round(round.id).await?)
}

/// Every pipeline on its own schedule, all of them spread over one interval.
async fn push_all(rig: &Arc<Rig>, scope: &Scope, peaks: &mut Peaks) -> Result<Vec<Pushed>> {
    let begin = Instant::now() + Duration::from_millis(100);
    let mut pushes = JoinSet::new();
    for pipeline in 0..scope.pipelines {
        let (rig, scope) = (Arc::clone(rig), *scope);
        let offset = scope.every.mul_f64(f64::from(pipeline) / f64::from(scope.pipelines));
        pushes.spawn(async move { push_on_schedule(&rig, &scope, pipeline, begin, offset).await });
    }
    let mut all = Vec::new();
    loop {
        let next = tokio::time::timeout(LOOK, pushes.join_next()).await;
        match next {
            Ok(None) => return Ok(all),
            Ok(Some(pushed)) => all.extend(pushed??),
            Err(_) => {
                for replica in &rig.replicas {
                    peaks.files = peaks.files.max(proc::open_files(replica.process.pid())?);
                }
            }
        }
    }
}

async fn push_on_schedule(
    rig: &Rig,
    scope: &Scope,
    pipeline: u32,
    begin: Instant,
    offset: Duration,
) -> Result<Vec<Pushed>> {
    let caller = rig.caller(pipeline)?;
    let mut pushed = Vec::new();
    let mut due = begin + offset;
    while due < begin + scope.lasts {
        sleep_until(due).await;
        let slowest = rig.fleet.checkpoint(pipeline);
        let started = Instant::now();
        let outcome = push(&caller, pipeline).await;
        let took = started.elapsed();
        let failure = match outcome {
            Ok(round) if lockstep_client::succeeded(&round) => None,
            Ok(round) => Some(format!("{}: {:?}: {:?}", pipeline_name(pipeline), round.phase(), round.problem)),
            Err(error) => Some(format!("{}: {error:#}", pipeline_name(pipeline))),
        };
        let overhead = failure.is_none().then(|| took.saturating_sub(slowest));
        due += scope.every;
        let mut missed = 0;
        while due < Instant::now() {
            missed += 1;
            due += scope.every;
        }
        pushed.push(Pushed { overhead, failure, missed });
    }
    Ok(pushed)
}

/// The newest checkpoints of some pipelines, every object of them read back and compared.
async fn verify(rig: &Arc<Rig>, scope: &Scope) -> Result<u32> {
    let some: Vec<u32> = (0..scope.pipelines).step_by((scope.pipelines / VERIFIED).max(1) as usize).collect();
    for pipeline in &some {
        let (caller, name) = (rig.caller(*pipeline)?, pipeline_name(*pipeline));
        let newest = caller.get_pipeline(name.as_str()).await?.last_push.context("nothing was pushed")?;
        let mut messages = caller.verify_checkpoint(name.as_str(), newest.id).await?;
        while let Some(message) = messages.next().await {
            if let Some(problem) = message?.problems.first() {
                bail!("the newest checkpoint of {name} is broken: {problem:?}");
            }
        }
    }
    Ok(u32::try_from(some.len())?)
}
