//! Push and pull rounds as pure state machines: `decide(round, event) -> Decision`.
//!
//! A round is a value. An event is something that happened outside: an agent's report, an S3 outcome, a cancel, the clock. [`decide`] says what
//! the round is afterwards and which transitions the audit trail shall show; the caller stores that in one guarded write and only then
//! carries out [`effects`]. Effects are a function of the stored round alone, so a replica that takes over after a crash finds the same ones; each
//! is idempotent on (round, host, attempt).
//!
//! An event that doesn't fit the round any more (a late attempt, another incarnation, a terminal phase) changes nothing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    commit::{CommitPart, CommitRef},
    host::Layout,
    id::{Fingerprint, Generation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step, Term},
    location::Location,
    planted::{self, Bug},
    problem::{Problem, Reason},
    selection::Wanted,
    spec::PullSelector,
};

mod effect;
mod event;
mod participant;
mod phase;
mod pull;
mod push;

pub(crate) use effect::discarding;
pub use effect::{Effect, effects, next_wake};
pub use event::{DecisionKnown, Event, FoundHost, HostReport, KeyRead};
pub(crate) use participant::later;
pub use participant::{Participant, ParticipantPhase, RetryPolicy};
pub use phase::Phase;

/// Somebody asked to stop.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub cause: String,
}

/// One push or pull of one checkpoint over a frozen set of hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// Of a committed push also the checkpoint's id.
    pub id: RoundId,
    /// Whose.
    pub pipeline: PipelineId,
    /// Name at admission.
    pub pipeline_name: PipelineName,
    /// Number in the pipeline.
    pub round_no: RoundNo,
    /// Of the pipeline's own location; 0 before it owns one.
    pub generation: Generation,
    /// Frozen at admission.
    pub layout: Layout,
    /// The pipeline's own location, frozen at admission.
    pub location: Location,
    /// Rises by one with each stored change.
    pub version: u64,
    /// Of the replica that drives it.
    pub term: Term,
    /// Where it stands.
    pub phase: Phase,
    /// Acts on the first two phases.
    pub deadline: DateTime<Utc>,
    /// Why it failed or was cancelled; while active, the last thing that went wrong for the round as a whole.
    pub problem: Option<Problem>,
    /// Asked for, maybe not decided yet.
    pub cancel: Option<CancelRequest>,
    /// One a host, by index.
    pub participants: Vec<Participant>,
    /// How attempts are retried.
    pub retry: RetryPolicy,
    /// Push or pull.
    pub kind: Kind,
}

/// What only one kind of round has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Local checkpoints to S3.
    Push(PushState),
    /// A checkpoint back to the hosts.
    Pull(PullState),
}

/// State of a push beyond what all rounds have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PushState {
    /// Place in the commit chain, given at admission.
    pub seq: Seq,
    /// Which local checkpoints were asked for.
    pub wanted: WantedCut,
    /// Push even what is already the newest commit.
    pub force: bool,
    /// Whose objects may be reused; chosen and pinned at admission.
    pub base: Option<CommitRef>,
    /// Newest counted commit when the round was planned.
    pub parent: Option<CommitRef>,
    /// Chosen by planning.
    pub step: Option<Step>,
    /// Chosen by planning.
    pub fingerprint: Option<Fingerprint>,
    /// Exact bytes of the commit document, stored before they are PUT. UTF-8, since the document is JSON.
    pub commit_bytes: Option<String>,
    /// Exact bytes of the abort record, stored before they are PUT.
    pub abort_bytes: Option<String>,
    /// The commit that stands.
    pub committed: Option<CommitRef>,
    /// Earliest time of the next try of the decision PUT, and how many were unknown.
    pub settle: SettleState,
}

impl PushState {
    /// As it is admitted: nothing was planned yet.
    pub fn asked(seq: Seq, wanted: WantedCut, force: bool, base: Option<CommitRef>) -> Self {
        Self {
            seq,
            wanted,
            force,
            base,
            parent: None,
            step: None,
            fingerprint: None,
            commit_bytes: None,
            abort_bytes: None,
            committed: None,
            settle: SettleState::default(),
        }
    }
}

/// How the decision PUT is going.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SettleState {
    /// Tries without a known outcome.
    pub tries: u32,
    /// Not before this.
    pub retry_at: Option<DateTime<Utc>>,
}

/// [`Wanted`] as rows carry it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedCut {
    /// The newest common step.
    Newest,
    /// Exactly this step.
    Step(Step),
    /// The step of this local checkpoint.
    Local(LocalCheckpointId),
}

impl From<WantedCut> for Wanted {
    fn from(wanted: WantedCut) -> Self {
        match wanted {
            WantedCut::Newest => Self::Newest,
            WantedCut::Step(step) => Self::Step(step),
            WantedCut::Local(id) => Self::Local(id),
        }
    }
}

/// State of a pull beyond what all rounds have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PullState {
    /// What was asked for.
    pub request: PullRequest,
    /// Chosen once, for all hosts; anew, where its owner retires it while it is pulled (G5).
    pub resolved: Option<Resolved>,
    /// What was chosen before and retired meanwhile, the oldest first: known by its tombstone, and never chosen again. Each costs every host an attempt, which is not one that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<CommitRef>,
}

impl PullState {
    /// As it is admitted: nothing was chosen yet.
    pub const fn asked(request: PullRequest) -> Self {
        Self { request, resolved: None, retired: Vec::new() }
    }
}

/// What a caller asked of a pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PullRequest {
    /// Which checkpoint.
    #[serde(with = "selector")]
    pub selector: PullSelector,
    /// Skip the local source; a missing checkpoint is an error.
    pub standby: bool,
    /// A missing checkpoint is an error.
    pub fail_if_none: bool,
    /// Accept a checkpoint of another program.
    pub allow_fingerprint: bool,
    /// Ignore and remove local checkpoints.
    pub discard_local: bool,
}

impl PullRequest {
    /// Whether proven absence may end in a fresh start.
    pub const fn may_start_fresh(&self) -> bool {
        !self.fail_if_none && !self.standby
    }
}

mod selector {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::spec::PullSelector;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Stored {
        Latest,
        Step(crate::id::Step),
        Checkpoint(crate::id::RoundId),
        Time(chrono::DateTime<chrono::Utc>),
    }

    pub(super) fn serialize<S: Serializer>(value: &PullSelector, serializer: S) -> Result<S::Ok, S::Error> {
        match *value {
            PullSelector::Latest => Stored::Latest,
            PullSelector::Step(step) => Stored::Step(step),
            PullSelector::Checkpoint(id) => Stored::Checkpoint(id),
            PullSelector::Time(time) => Stored::Time(time),
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PullSelector, D::Error> {
        Ok(match Stored::deserialize(deserializer)? {
            Stored::Latest => PullSelector::Latest,
            Stored::Step(step) => PullSelector::Step(step),
            Stored::Checkpoint(id) => PullSelector::Checkpoint(id),
            Stored::Time(time) => PullSelector::Time(time),
        })
    }
}

/// Where a pull is served from, the same for all hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The hosts' own local checkpoints.
    Local,
    /// The pipeline's location.
    Location,
    /// The read-only location.
    ReadLocation,
    /// Nothing, proven; the engine starts from nothing.
    Fresh,
}

/// What a pull resolved to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// Which kind of source.
    pub source: Source,
    /// Where the commit lies; none for fresh, and for local unless a commit of the same cut is known.
    pub location: Option<Location>,
    /// The commit; none as above.
    pub commit: Option<CommitRef>,
    /// None for fresh.
    pub step: Option<Step>,
    /// None for fresh or where the engine has none.
    pub fingerprint: Option<Fingerprint>,
    /// Sum over hosts, if known.
    pub processed_records: Option<u64>,
    /// The commit's parts, by host; empty without a commit.
    pub parts: Vec<CommitPart>,
}

/// For the audit trail: what changed from where to where, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transition {
    /// None: the round as a whole.
    pub host_idx: Option<u32>,
    /// Phase before.
    pub from: &'static str,
    /// Phase after.
    pub to: &'static str,
    /// Why, for a reader.
    pub cause: String,
}

/// The outcome of [`decide`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The round afterwards; its version is unchanged, the store raises it.
    pub next: Round,
    /// For the audit trail. Empty together with an unchanged `next`: the event said nothing new.
    pub transitions: Vec<Transition>,
    /// A newer owner fenced the location: the pipeline's row is fenced in the same transaction (F4).
    pub fence_pipeline: bool,
}

impl Decision {
    /// Whether anything must be stored.
    pub fn changes(&self, before: &Round) -> bool {
        self.next != *before
    }
}

/// Applies one event. `now` is the database's clock.
pub fn decide(round: &Round, event: &Event, now: DateTime<Utc>) -> Decision {
    let mut work = Work { round: round.clone(), transitions: Vec::new(), fence_pipeline: false };
    if !round.phase.is_terminal() {
        match round.kind {
            Kind::Push(_) => push::apply(&mut work, event, now),
            Kind::Pull(_) => pull::apply(&mut work, event, now),
        }
    }
    Decision { next: work.round, transitions: work.transitions, fence_pipeline: work.fence_pipeline }
}

/// A cancel of a round that can't be cancelled any more is refused before it is recorded.
pub fn check_cancellable(round: &Round) -> Result<(), Problem> {
    let installing = round.phase == Phase::Installing && !planted::is(Bug::CancelWhileInstalling);
    let refused = round.phase.is_terminal() || installing;
    if !refused {
        return Ok(());
    }
    Err(Problem::new(
        Reason::RoundNotCancellable,
        format!(
            "round {} is {}: only planning, resolving, transferring and committing can be cancelled",
            round.id, round.phase
        ),
    )
    .with("round", round.id)
    .with("phase", round.phase))
}

/// A round while an event is applied to it.
struct Work {
    round: Round,
    transitions: Vec<Transition>,
    fence_pipeline: bool,
}

impl Work {
    fn enter(&mut self, phase: Phase, cause: impl Into<String>) {
        let from = self.round.phase.as_str();
        self.round.phase = phase;
        self.transitions.push(Transition { host_idx: None, from, to: phase.as_str(), cause: cause.into() });
    }

    fn fail(&mut self, problem: Problem) {
        let cause = problem.to_string();
        self.round.problem = Some(problem);
        self.enter(Phase::Failed, cause);
    }

    fn cancelled(&mut self, request: &CancelRequest) {
        self.round.problem = Some(
            Problem::new(
                Reason::Cancelled,
                format!("round {} was cancelled by {}: {}", self.round.id, request.by, request.cause),
            )
            .with("round", self.round.id)
            .with("by", &request.by)
            .with("cause", &request.cause),
        );
        self.enter(Phase::Cancelled, format!("cancelled by {}: {}", request.by, request.cause));
    }

    /// Deadline and cancel, which act on the first two phases of both kinds.
    fn deadline_passed(&mut self, now: DateTime<Utc>) -> bool {
        if now < self.round.deadline {
            return false;
        }
        let waiting: Vec<String> = self
            .round
            .participants
            .iter()
            .filter(|p| !matches!(p.phase, ParticipantPhase::Done | ParticipantPhase::Staged))
            .map(|p| p.host_idx.to_string())
            .collect();
        self.fail(
            Problem::new(
                Reason::RoundDeadline,
                format!(
                    "round {} passed its deadline {} in phase {}; hosts not done: {}",
                    self.round.id,
                    self.round.deadline.to_rfc3339(),
                    self.round.phase,
                    waiting.join(", ")
                ),
            )
            .with("round", self.round.id)
            .with("deadline", self.round.deadline.to_rfc3339())
            .with("phase", self.round.phase)
            .with("hosts", waiting.join(",")),
        );
        true
    }
}
