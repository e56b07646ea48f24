//! What a round's rows say, and what is asked to make or change one.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    id::{Attempt, Fingerprint, LocalCheckpointId, PipelineId, RequestId, RoundId, Step},
    location::Location,
    planted::{self, Bug},
    problem::Reason,
    round::{CancelRequest, Kind, Phase, PullRequest, RetryPolicy, Round, WantedCut},
    schedule::{LastPush, PushEnd},
    selection::Cut,
    spec::Transfer,
    standby::{LastPull, PullEnd},
};

use super::{LastCommit, PipelineSelector};

/// Who asks, for the audit trail.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// A user, a token's name or a replica.
    pub actor: String,
    /// W3C trace id, 32 hex digits.
    pub trace_id: Option<String>,
    /// Whole W3C header, so that what a replica does later belongs to the caller's trace.
    pub traceparent: Option<String>,
}

/// Who wants a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trigger {
    /// Somebody asked for it.
    #[default]
    Manual,
    /// Its pipeline itself: by its `push_interval`, or as a standby that follows.
    Periodic,
}

impl Trigger {
    /// For messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Periodic => "periodic",
        }
    }

    pub(super) const fn of(periodic: bool) -> Self {
        if periodic { Self::Periodic } else { Self::Manual }
    }
}

/// A push to admit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdmitPush {
    /// Whose.
    pub pipeline: PipelineSelector,
    /// Which local checkpoints.
    pub wanted: WantedCut,
    /// Also what is already the newest commit.
    pub force: bool,
    /// Who wants it.
    pub trigger: Trigger,
    /// What the hosts would push, where they were asked already. No parameter of the request.
    pub found: Option<FoundCut>,
    /// Idempotency key (S14). None: each call is a new request.
    pub request_id: Option<RequestId>,
    /// From admission, by the database's clock.
    pub deadline: Duration,
    /// Frozen in the row.
    pub retry: RetryPolicy,
}

/// What hosts hold in common, as they said shortly before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundCut {
    /// One for all.
    pub step: Step,
    /// One for all.
    pub fingerprint: Option<Fingerprint>,
    /// By host index.
    pub local_checkpoints: Vec<LocalCheckpointId>,
}

impl From<Cut> for FoundCut {
    fn from(cut: Cut) -> Self {
        Self {
            step: cut.step,
            fingerprint: cut.fingerprint,
            local_checkpoints: cut.checkpoints.iter().map(|own| own.id).collect(),
        }
    }
}

impl FoundCut {
    /// Whether a commit is of the very same local checkpoints.
    pub fn is(&self, last: &LastCommit) -> bool {
        !planted::is(Bug::NewestIsPushedAgain)
            && self.step == last.step
            && self.fingerprint == last.fingerprint
            && self.local_checkpoints == last.local_checkpoints
    }
}

/// A pull to admit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdmitPull {
    /// Whose.
    pub pipeline: PipelineSelector,
    /// What is wanted.
    pub request: PullRequest,
    /// A standby asks by itself: version of its row, which must be the same still. No parameter of the request.
    pub follows: Option<u64>,
    /// Idempotency key (S14). None: each call is a new request.
    pub request_id: Option<RequestId>,
    /// From admission, by the database's clock.
    pub deadline: Duration,
    /// Frozen in the row.
    pub retry: RetryPolicy,
}

/// What became of a request for a round.
#[derive(Clone, PartialEq, Debug)]
pub enum Admission {
    /// A round was made.
    New(RoundRecord),
    /// This request id was answered before with this round; it may be in any phase.
    Known(RoundRecord),
    /// Push of a step or local checkpoint that is the newest commit already, and not forced: the round that made it.
    AlreadyCommitted(RoundRecord),
}

impl Admission {
    /// The round that answers the request.
    pub const fn record(&self) -> &RoundRecord {
        match self {
            Self::New(record) | Self::Known(record) | Self::AlreadyCommitted(record) => record,
        }
    }

    /// The round that answers the request.
    pub fn into_record(self) -> RoundRecord {
        match self {
            Self::New(record) | Self::Known(record) | Self::AlreadyCommitted(record) => record,
        }
    }
}

/// How far one host is. A hint for people: no decision rests on it, and a crash of Postgres may lose it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostProgress {
    /// Which host.
    pub host_idx: u32,
    /// Of which try.
    pub attempt: Attempt,
    /// Bytes dealt with: sent, received, reused or found in place.
    pub bytes_done: u64,
    /// Of how many, if known.
    pub bytes_total: Option<u64>,
    /// Files finished.
    pub files_done: u64,
    /// Of how many, if known.
    pub files_total: Option<u64>,
    /// Bytes that went over the network.
    pub bytes_transferred: u64,
    /// Bytes a second, lately.
    pub bytes_per_second: u64,
}

/// A round with everything that stands around it.
#[derive(Clone, PartialEq, Debug)]
pub struct RoundRecord {
    /// The state machine.
    pub round: Round,
    /// Under which it was admitted.
    pub request_id: Option<RequestId>,
    /// Who asked for it.
    pub actor: String,
    /// Of a pull: periodic if a standby asked for it by itself.
    pub trigger: Trigger,
    /// Of the request.
    pub trace_id: Option<String>,
    /// Of the request: effects continue this trace.
    pub traceparent: Option<String>,
    /// By the database's clock.
    pub created_at: DateTime<Utc>,
    /// By the database's clock.
    pub updated_at: DateTime<Utc>,
    /// When it became terminal.
    pub ended_at: Option<DateTime<Utc>>,
    /// Which replica drives it.
    pub lease_owner: Option<String>,
    /// One a host that has reported any, by index.
    pub progress: Vec<HostProgress>,
    /// Limits, frozen from the spec at admission.
    pub transfer: Transfer,
    /// Read-only fallback, frozen from the spec at admission.
    pub read_location: Option<Location>,
    /// Asked for; the round may not have taken notice yet.
    pub cancel_requested: Option<CancelRequest>,
}

impl RoundRecord {
    /// What a schedule reckons with, of a push.
    pub fn as_last_push(&self) -> LastPush {
        let end = self.ended_at.map(|at| {
            let end = match (self.round.phase, &self.round.problem) {
                (Phase::Failed, Some(problem)) => PushEnd::Failed(problem.clone()),
                (Phase::Cancelled, _) => PushEnd::Cancelled,
                _ => PushEnd::Committed,
            };
            (at, end)
        });
        LastPush { round: self.round.id, periodic: self.trigger == Trigger::Periodic, end }
    }

    /// What a standby reckons with, of a pull.
    pub fn as_last_pull(&self) -> LastPull {
        let end = self.ended_at.map(|at| {
            let end = match (self.round.phase, &self.round.problem) {
                (Phase::Failed, Some(problem)) if problem.reason != Reason::Superseded => {
                    PullEnd::Failed(problem.clone())
                }
                (Phase::Failed | Phase::Cancelled, _) => PullEnd::GivenUp,
                _ => PullEnd::Installed,
            };
            (at, end)
        });
        LastPull { round: self.round.id, followed: self.trigger == Trigger::Periodic, end }
    }
}

/// Outcome of a guarded write.
#[expect(clippy::large_enum_variant, reason = "returned once and taken apart at once, never kept in numbers")]
#[derive(Clone, PartialEq, Debug)]
pub enum Applied {
    /// Written; the round with its new version.
    Stored(Round),
    /// Version or term are not current: nothing was written. Reload or let go, never insist (S6).
    Moved,
    /// The source that a pull was to be given is retired (R8): nothing was written. Resolve anew.
    SourceRetired(CommitRef),
}

/// Push or pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoundKind {
    /// Local checkpoints to S3.
    Push,
    /// A checkpoint back to the hosts.
    Pull,
}

impl RoundKind {
    /// Of a round.
    pub const fn of(round: &Round) -> Self {
        match round.kind {
            Kind::Push(_) => Self::Push,
            Kind::Pull(_) => Self::Pull,
        }
    }

    /// As rows carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
        }
    }
}

/// Which rounds to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoundFilter {
    /// Only of this pipeline.
    pub pipeline: Option<PipelineId>,
    /// Only such that are not terminal.
    pub active_only: bool,
    /// Only of this kind.
    pub kind: Option<RoundKind>,
}

/// Which audit events to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuditFilter {
    /// Only of this pipeline.
    pub pipeline: Option<PipelineId>,
    /// Only of this round.
    pub round: Option<RoundId>,
}

/// One line of the audit trail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditRow {
    /// Rises in the order of writing, with gaps.
    pub id: u64,
    /// By the database's clock.
    pub at: DateTime<Utc>,
    /// Of which pipeline.
    pub pipeline: PipelineId,
    /// None: the pipeline as a whole.
    pub round: Option<RoundId>,
    /// None: the round as a whole.
    pub host_idx: Option<u32>,
    /// What sort of event; docs/audit.md lists them.
    pub event: String,
    /// Phase before, if one changed.
    pub from: Option<String>,
    /// Phase after, if one changed.
    pub to: Option<String>,
    /// Why, for a reader.
    pub cause: String,
    /// Who.
    pub actor: String,
    /// Of the request or of the replica's work.
    pub trace_id: Option<String>,
    /// Term of the round at that time.
    pub term: Option<u64>,
    /// Version of the round after the change.
    pub version: Option<u64>,
}

/// Part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// At most this many; held to 1..=1000.
    pub size: u32,
    /// From [`Listed::next`] of the page before; empty or none for the first.
    pub token: Option<String>,
}

impl Default for Page {
    fn default() -> Self {
        Self { size: 100, token: None }
    }
}

impl Page {
    pub(super) fn limit(&self) -> i64 {
        i64::from(self.size.clamp(1, 1000))
    }
}

/// One page.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed<T> {
    /// In order.
    pub items: Vec<T>,
    /// Of the next page; none: this was the last.
    pub next: Option<String>,
}
