//! What driver and effects of one round share.

use std::{sync::Arc, time::Duration};

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    location::Location,
    problem::Problem,
    round::{Kind, Round},
    spec::Transfer,
};
use tokio::sync::{Mutex, OnceCell};

use super::{Services, progress::ProgressBoard};
use crate::{
    chance,
    plan::{
        BackOff, Right,
        place::{Base, Place},
    },
    store::{Caller, RoundRecord},
};

/// One round while this replica drives it.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) services: Arc<Services>,
    pub(super) progress: ProgressBoard,
    /// Frozen at admission.
    pub(super) transfer: Transfer,
    /// Frozen at admission.
    pub(super) read_location: Option<Location>,
    pub(super) trace_id: Option<String>,
    traceparent: Option<String>,
    created_at: chrono::DateTime<chrono::Utc>,
    base: Mutex<BaseChoice>,
    follows: OnceCell<bool>,
}

/// Whether orders name the base.
#[derive(Debug)]
enum BaseChoice {
    NotRead,
    Use(CommitRef, Arc<CommitDocument>),
    /// There is none, or it turned out to be broken: everything is sent.
    Without,
}

impl Drive {
    pub(super) fn new(services: Arc<Services>, record: &RoundRecord) -> Self {
        Self {
            services,
            progress: ProgressBoard::default(),
            transfer: record.transfer,
            read_location: record.read_location.clone(),
            trace_id: record.trace_id.clone(),
            traceparent: record.traceparent.clone(),
            created_at: record.created_at,
            base: Mutex::new(BaseChoice::NotRead),
            follows: OnceCell::new(),
        }
    }

    /// Who writes, for the audit trail.
    pub(super) fn caller(&self) -> Caller {
        Caller { trace_id: self.trace_id.clone(), traceparent: self.traceparent.clone(), ..self.services.caller() }
    }

    /// Opens the pipeline's own location.
    pub(super) async fn own_place(&self, round: &Round) -> Result<Place, Problem> {
        Place::open(&self.services.plan_context(), &round.location, Right::FinishBase).await
    }

    /// Whether what stands in its own location is another pipeline's. Read once: it changes under no round, since whoever begins to follow has none, and who takes over settles
    /// the one it has.
    pub(super) async fn follows(&self, round: &Round) -> Result<bool, Problem> {
        let read = async || -> Result<bool, Problem> {
            Ok(!self.services.store.get_pipeline(&round.pipeline.into()).await?.holds_fence())
        };
        self.follows.get_or_try_init(read).await.copied()
    }

    /// The base that orders of this push name. Read once; a base that is of no use is left out, and everything is sent.
    pub(super) async fn base(&self, round: &Round) -> Result<Option<(CommitRef, Arc<CommitDocument>)>, Problem> {
        let mut choice = self.base.lock().await;
        if let BaseChoice::NotRead = *choice {
            *choice = Box::pin(self.read_base(round)).await?;
        }
        Ok(match &*choice {
            BaseChoice::Use(commit, document) => Some((*commit, Arc::clone(document))),
            BaseChoice::NotRead | BaseChoice::Without => None,
        })
    }

    async fn read_base(&self, round: &Round) -> Result<BaseChoice, Problem> {
        let base = match &round.kind {
            Kind::Push(push) => push.base,
            Kind::Pull(_) => None,
        };
        let Some(commit) = base else { return Ok(BaseChoice::Without) };
        Ok(match self.own_place(round).await?.base(&commit).await? {
            Base::Usable(document) => BaseChoice::Use(commit, document),
            Base::Unusable(_) => BaseChoice::Without,
        })
    }

    /// What planning found out about the base need not be read again.
    pub(super) async fn planned(&self, round: &Round, base: Option<Arc<CommitDocument>>) {
        let commit = match &round.kind {
            Kind::Push(push) => push.base,
            Kind::Pull(_) => None,
        };
        *self.base.lock().await = match commit.zip(base) {
            Some((commit, document)) => BaseChoice::Use(commit, document),
            None => BaseChoice::Without,
        };
    }

    /// Something of the base is broken: from here on orders don't name it.
    pub(super) async fn give_up_base(&self, why: &Problem) {
        let mut choice = self.base.lock().await;
        if !matches!(*choice, BaseChoice::Without) {
            tracing::warn!(reason = %why.reason, "the base is broken, everything is sent: {}", why.message);
            *choice = BaseChoice::Without;
        }
    }

    /// Writes what moved since the last time. Nothing rests on it.
    pub(super) async fn save_progress(&self, round: &Round) {
        let Some(hosts) = self.progress.take_unsaved() else { return };
        if let Err(error) = self.services.store.save_progress(round.id, round.term, &hosts).await {
            let problem = error.problem();
            tracing::debug!(reason = %problem.reason, "progress was not saved: {}", problem.message);
        }
    }

    /// The round is over.
    pub(super) fn observe_end(&self, after: &Round) {
        let (kind, phase) = (kind_name(after), after.phase.as_str());
        metrics::counter!("lockstep_rounds_total", "kind" => kind, "phase" => phase).increment(1);
        let took = (self.services.clock.now() - self.created_at).to_std().unwrap_or_default();
        metrics::histogram!("lockstep_round_duration_seconds", "kind" => kind, "phase" => phase)
            .record(took.as_secs_f64());
        match &after.problem {
            None => tracing::info!(phase, seconds = took.as_secs_f64(), "round ended"),
            Some(problem) => {
                tracing::warn!(phase, reason = %problem.reason, seconds = took.as_secs_f64(), "round ended: {}", problem.message);
            }
        }
    }
}

/// `push` or `pull`.
pub(super) const fn kind_name(round: &Round) -> &'static str {
    match round.kind {
        Kind::Push(_) => "push",
        Kind::Pull(_) => "pull",
    }
}

/// Counts the rounds that are being driven.
#[derive(Debug)]
pub(super) struct Active(());

impl Active {
    pub(super) fn begin() -> Self {
        metrics::gauge!("lockstep_rounds_active").increment(1.0);
        Self(())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        metrics::gauge!("lockstep_rounds_active").decrement(1.0);
    }
}

/// For the back-offs that `protocol` computes, which has no randomness of its own.
pub(super) fn jitter() -> u32 {
    chance::between(0..=1000)
}

/// Pauses between orders that an agent puts off.
pub(super) const fn order_again() -> BackOff {
    BackOff::new(Duration::from_millis(200), Duration::from_secs(1))
}

/// Writer in the commit document.
pub(super) const WRITER: &str = concat!("lockstep-coordinator ", env!("CARGO_PKG_VERSION"));
