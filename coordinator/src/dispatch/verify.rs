//! Checkpoints re-read all the time, within a number of bytes a day: one replica, one request at a time, and never while the pipeline has a round. Each step is stored, so
//! another replica goes on where this one stopped.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use lockstep_bucket::{Access, DecisionFound, ObjectStore};
use lockstep_protocol::{
    commit::{CommitDocument, DecisionObject},
    problem::{Problem, Reason, Retryable},
    verification::{Allowance, Candidate, Position, Scope, next},
};
use tokio_util::sync::CancellationToken;

use super::{
    Services,
    rows::{self, Turns},
};
use crate::store::{Finding, Page, PipelineRow, RoundFilter, StoreError, UnderWay, VerificationsOf, VerifyBudget};

/// Read in one step, or one run of files if that is more.
const STEP: u64 = 8 << 20;

/// Until it is looked again whether there is something to read, or leave to read it.
const PAUSE: Duration = Duration::from_secs(5);

/// Pipelines that are looked through in one go for something to read.
const TURNS: usize = 16;

/// Re-reads checkpoints until it is told to stop.
pub(super) async fn run(services: Arc<Services>, shutdown: CancellationToken) {
    if services.options.verify_bytes_per_day == 0 {
        return;
    }
    while !shutdown.is_cancelled() {
        let claimed = services.store.claim_verify_budget(&services.options.replica, services.options.lease).await;
        let pause = match claimed {
            Ok(None) => PAUSE,
            Ok(Some(budget)) => hold(&services, budget, &shutdown).await,
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "checkpoints are not re-read: {}", problem.message);
                PAUSE
            }
        };
        shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// The budget as long as it is this replica's: a step may read longer than a lease is. When the process stops it is let go for others to claim at once.
async fn hold(services: &Arc<Services>, budget: VerifyBudget, shutdown: &CancellationToken) -> Duration {
    let over = CancellationToken::new();
    // Also if a step panics: what is renewed for nobody would never be read on.
    let _renewed_no_longer = over.clone().drop_guard();
    let renewal = tokio::spawn({
        let (services, every) = (Arc::clone(services), services.options.renew_every);
        let renew = move || {
            let services = Arc::clone(&services);
            let (replica, lease) = (services.options.replica.clone(), services.options.lease);
            async move { services.store.renew_verify_budget(&replica, lease).await }.boxed()
        };
        rows::renewed(every, Turns::default(), over.clone(), renew)
    });
    // Database calls run in tasks of their own, and what a step has read but not saved is read again.
    let pause = tokio::select! {
        pause = work(services, budget, shutdown) => pause,
        () = shutdown.cancelled() => Duration::ZERO,
        () = over.cancelled() => PAUSE,
    };
    let mine = !over.is_cancelled();
    over.cancel();
    if let Err(error) = renewal.await {
        tracing::error!(%error, "renewing the budget of re-reading ended early");
    }
    if mine
        && shutdown.is_cancelled()
        && let Err(error) = services.store.renew_verify_budget(&services.options.replica, Duration::ZERO).await
    {
        tracing::warn!(reason = %error.problem().reason, "the lease runs out by itself: {}", error.problem().message);
    }
    pause
}

/// Step by step, until there is nothing to read or no leave to; then how long to wait.
async fn work(services: &Services, mut budget: VerifyBudget, shutdown: &CancellationToken) -> Duration {
    while !shutdown.is_cancelled() {
        match step(services, &mut budget).await {
            Ok(None) => {}
            Ok(Some(pause)) => return pause,
            Err(problem) => {
                tracing::warn!(reason = %problem.reason, "a checkpoint is not re-read now: {}", problem.message);
                give_up(services, &budget).await;
                return PAUSE;
            }
        }
    }
    Duration::ZERO
}

/// One location that doesn't answer holds nobody else up: the next one has its turn, and this checkpoint is begun anew when its own comes again.
async fn give_up(services: &Services, budget: &VerifyBudget) {
    let without = VerifyBudget { under_way: None, ..budget.clone() };
    if let Err(error) = services.store.save_verify_budget(&without, services.options.lease).await {
        let problem = error.problem();
        tracing::warn!(reason = %problem.reason, "what is re-read next was not stored: {}", problem.message);
    }
}

/// One step; a duration: wait so long.
async fn step(services: &Services, budget: &mut VerifyBudget) -> Result<Option<Duration>, Problem> {
    let (store, a_day) = (&services.store, services.options.verify_bytes_per_day);
    let now = store.now().await?;
    let allowance = budget.allowance.unwrap_or_else(|| Allowance::first(a_day, now)).grown(a_day, now);
    if let Some(wait) = allowance.wait(a_day) {
        return Ok(Some(wait.min(Duration::from_secs(60))));
    }
    let under_way = match budget.under_way.take() {
        Some(under_way) => under_way,
        None => match choose(services, now).await? {
            Some(chosen) => chosen,
            None => return Ok(Some(PAUSE)),
        },
    };
    let row = match store.get_pipeline(&under_way.pipeline.into()).await.map_err(Problem::from) {
        Ok(row) => row,
        Err(problem) if problem.reason == Reason::PipelineNotFound => {
            return save(services, budget, allowance, None).await;
        }
        Err(problem) => return Err(problem),
    };
    if has_round(services, &row).await? {
        return Ok(Some(Duration::from_millis(500)));
    }
    let bucket = services.connector.connect(&row.spec.location).await?;
    let left = u64::try_from(allowance.left).unwrap_or(0);
    let Some(document) = document(bucket.as_ref(), &under_way).await? else {
        return save(services, budget, allowance, None).await;
    };
    let read =
        lockstep_bucket::verify_some(bucket.as_ref(), &document, under_way.position, STEP.min(left.max(1))).await?;
    metrics::counter!("lockstep_verified_bytes_total").increment(read.bytes);
    let allowance = allowance.spent(read.bytes);
    let before = under_way.clone();
    let mut under_way = UnderWay { bytes: under_way.bytes.saturating_add(read.bytes), ..under_way };
    under_way.problems.extend(read.broken);
    if let Some(position) = read.next {
        return save(services, budget, allowance, Some(UnderWay { position, ..under_way })).await;
    }
    // Spent before anything else: what is kept is not read again, so that nobody would account for it later.
    if let Some(pause) = save(services, budget, allowance, Some(before)).await? {
        return Ok(Some(pause));
    }
    if !under_way.problems.is_empty()
        && let Err(problem) = lockstep_bucket::still_stands(bucket.as_ref(), &under_way.commit).await
    {
        // Retired meanwhile, or nobody knows: what seemed broken is told of by the next reading, if it is.
        if problem.retryable() == Retryable::Yes {
            return Err(problem);
        }
        return save(services, budget, allowance, None).await;
    }
    finish(services, under_way).await?;
    save(services, budget, allowance, None).await
}

async fn save(
    services: &Services,
    budget: &mut VerifyBudget,
    allowance: Allowance,
    under_way: Option<UnderWay>,
) -> Result<Option<Duration>, Problem> {
    let next = VerifyBudget { allowance: Some(allowance), under_way, version: budget.version };
    match services.store.save_verify_budget(&next, services.options.lease).await? {
        Some(saved) => {
            *budget = saved;
            Ok(None)
        }
        // Another replica has it now.
        None => Ok(Some(PAUSE)),
    }
}

/// Kept twice at worst, if the budget can't be saved afterwards.
async fn finish(services: &Services, read: UnderWay) -> Result<(), StoreError> {
    let outcome = if read.problems.is_empty() { "intact" } else { "damaged" };
    metrics::counter!("lockstep_verified_checkpoints_total", "outcome" => outcome).increment(1);
    tracing::info!(checkpoint = %read.commit.round, bytes = read.bytes, outcome, "checkpoint re-read within the daily budget");
    let finding = Finding {
        pipeline: read.pipeline,
        commit: read.commit,
        scope: Scope::All,
        rolling: true,
        bytes: read.bytes,
        problems: read.problems,
        started_at: read.started_at,
    };
    services.store.keep_verification(finding, &services.caller()).await.map(|_| ())
}

async fn has_round(services: &Services, row: &PipelineRow) -> Result<bool, StoreError> {
    let filter = RoundFilter { pipeline: Some(row.id), active_only: true, kind: None };
    Ok(!services.store.list_rounds(filter, Page { size: 1, token: None }).await?.items.is_empty())
}

/// None: it was retired since, or never was.
async fn document(bucket: &dyn ObjectStore, under_way: &UnderWay) -> Result<Option<CommitDocument>, Problem> {
    let commit = &under_way.commit;
    Ok(match lockstep_bucket::read_decision(bucket, commit.generation, commit.seq).await.known()? {
        Some(DecisionFound::Decision(DecisionObject::Commit(document), digest)) if digest == commit.digest => {
            Some(*document)
        }
        _ => None,
    })
}

/// Of the pipelines whose turn it is, the first that has something to read.
async fn choose(services: &Services, now: chrono::DateTime<chrono::Utc>) -> Result<Option<UnderWay>, Problem> {
    let mut seen = Vec::new();
    while let Some(id) = services.store.verify_turn().await?.filter(|id| seen.len() < TURNS && !seen.contains(id)) {
        seen.push(id);
        let row = services.store.get_pipeline(&id.into()).await?;
        let bucket = services.connector.connect(&row.spec.location).await?;
        let found = lockstep_bucket::list_checkpoints(bucket.as_ref(), Access::ReadOnly, usize::MAX).await?;
        // What can't be read has no bytes to compare; to give it up is for people.
        let found = lockstep_bucket::whole(found);
        let checkpoints = found.iter().map(|one| one.commit.round).collect();
        let of = VerificationsOf { pipeline: id, checkpoints, scope: Some(Scope::All) };
        let verified = services.store.verifications(of).await?;
        let candidates: Vec<Candidate> = found
            .iter()
            .map(|one| {
                let last = verified.iter().find(|known| known.finding.commit.round == one.commit.round);
                Candidate {
                    commit: one.commit,
                    created_at: one.document.created_at,
                    verified_at: last.map(|known| known.ended_at),
                    damaged: one.damaged,
                }
            })
            .collect();
        if let Some(commit) = next(&candidates, now) {
            let (position, problems) = (Position::default(), Vec::new());
            return Ok(Some(UnderWay { pipeline: id, commit, position, bytes: 0, problems, started_at: now }));
        }
    }
    Ok(None)
}
