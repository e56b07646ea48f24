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
    fence::Successor,
    host::Layout,
    id::{
        Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo,
        Seq, Step, Term,
    },
    location::Location,
    problem::{Problem, Reason},
    selection::Wanted,
    spec::PullSelector,
};

mod effect;
mod participant;
mod pull;
mod push;

pub use effect::{Effect, effects, next_wake};
pub use participant::{Participant, ParticipantPhase, RetryPolicy};

/// Where a round stands.
///
/// ```text
/// push: Planning -> Transferring -> Committing -> Committed      Failed from the first three;
///                                                                Cancelled from the first two, and from Committing by an abort that won the key
/// pull: Resolving -> Transferring -> Installing -> Installed     Failed from the first three (from Installing only SUPERSEDED);
///                 \-> Fresh                                      Cancelled from the first two
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Push was admitted: `round_no`, seq and base are taken. Remains until the agents were asked and a common step chosen, or that failed. No order was
    /// sent yet. Next: `Transferring`, `Failed`, `Cancelled`.
    Planning,
    /// Pull was admitted. Remains until one source was chosen for all hosts. Next: `Transferring`, `Fresh`, `Failed`, `Cancelled`.
    Resolving,
    /// Orders stand for every host. Remains until all parts are reported and checked (push) or all are staged (pull), one host failed for
    /// good, the deadline passed or somebody cancelled. Next: `Committing` or `Installing`, `Failed`, `Cancelled`.
    Transferring,
    /// The exact bytes of the commit document are stored in the row. Remains until the decision object is known, and if it is ours, until fence g+1 was
    /// read. Deadline has no effect; a cancel tries to win the key. Next: `Committed`, `Failed`, `Cancelled`.
    Committing,
    /// Every host is staged. Remains until every host's present incarnation says it has this checkpoint. Only forward: `Installed`, or `Failed` with
    /// `SUPERSEDED` in the transaction that admits a newer pull.
    Installing,
    /// The commit stands in S3 and no fence excludes it. Terminal.
    Committed,
    /// Every host has the same checkpoint; engines may start. Terminal.
    Installed,
    /// Nothing to restore, proven; engines start from nothing. Terminal.
    Fresh,
    /// It did not happen and never will; the problem says why. Terminal.
    Failed,
    /// Somebody cancelled it in time. Terminal.
    Cancelled,
}

impl Phase {
    /// No event changes it any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Committed | Self::Installed | Self::Fresh | Self::Failed | Self::Cancelled)
    }

    /// As rows and audit events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Resolving => "resolving",
            Self::Transferring => "transferring",
            Self::Committing => "committing",
            Self::Installing => "installing",
            Self::Committed => "committed",
            Self::Installed => "installed",
            Self::Fresh => "fresh",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Every phase.
    pub const ALL: [Self; 10] = [
        Self::Planning,
        Self::Resolving,
        Self::Transferring,
        Self::Committing,
        Self::Installing,
        Self::Committed,
        Self::Installed,
        Self::Fresh,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Back from [`Phase::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Somebody asked to stop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    /// Chosen once, for all hosts.
    pub resolved: Option<Resolved>,
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

/// One host as planning or resolving found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundHost {
    /// Of its present process.
    pub incarnation: Incarnation,
    /// Its share of the chosen cut; none for a fresh start.
    pub local_checkpoint: Option<LocalCheckpointId>,
}

/// What a host reports when its attempt is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostReport {
    /// Push: the part is in S3.
    Part {
        /// As the commit will name it.
        part: CommitPart,
        /// Step of the local checkpoint it holds.
        step: Step,
        /// Fingerprint of the local checkpoint it holds.
        fingerprint: Option<Fingerprint>,
    },
    /// Pull: verified and synced, not yet visible.
    Staged,
    /// Pull: visible to the engine, the only one.
    Installed,
}

/// What became known of the decision key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DecisionKnown {
    /// Our commit's bytes stand.
    CommitStands,
    /// An abort record of this round stands.
    AbortStands,
    /// Something of another round stands: never mine.
    OtherRound(RoundId),
    /// Not known; try the same bytes again. Carries what went wrong.
    Unknown(Problem),
}

/// Something that happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Push: the bucket agrees with the database and the hosts have a common cut.
    Planned {
        /// By host index.
        hosts: Vec<FoundHost>,
        /// One for all.
        step: Step,
        /// One for all.
        fingerprint: Option<Fingerprint>,
        /// Newest counted commit.
        parent: Option<CommitRef>,
    },
    /// Pull: one source serves all hosts.
    Resolved {
        /// The source.
        resolved: Resolved,
        /// By host index.
        hosts: Vec<FoundHost>,
        /// Fresh only: some host has local checkpoints that must go first (`discard_local`).
        discard: bool,
    },
    /// Planning or resolving failed for good.
    Refused(Problem),
    /// An attempt is done.
    HostDone {
        /// Which host.
        host_idx: u32,
        /// Which try.
        attempt: Attempt,
        /// Which process.
        incarnation: Incarnation,
        /// With what.
        report: HostReport,
    },
    /// An attempt failed, could not be started or its process is gone.
    HostFailed {
        /// Which host.
        host_idx: u32,
        /// Which try.
        attempt: Attempt,
        /// Why.
        problem: Problem,
        /// Random in 0..=1000, for the back-off's jitter.
        jitter: u32,
    },
    /// A host that backs off was described: its present process.
    HostReady {
        /// Which host.
        host_idx: u32,
        /// The try that backs off.
        attempt: Attempt,
        /// Its present process.
        incarnation: Incarnation,
    },
    /// Push: every part manifest was read and agrees with its report, layout and base.
    PartsChecked {
        /// For the commit document.
        writer: String,
        /// For the commit document.
        trace_id: Option<String>,
    },
    /// Push: the decision key and what follows this generation.
    Settled {
        /// The key.
        decision: DecisionKnown,
        /// Fence g+1 and its base; none: not known.
        successor: Option<Successor>,
        /// Random in 0..=1000, for the back-off's jitter.
        jitter: u32,
    },
    /// Pull: every host was described again after all installed.
    Confirmed {
        /// Present process of each host, by index; none: no answer.
        incarnations: Vec<Option<Incarnation>>,
        /// Random in 0..=1000, for the back-off's jitter.
        jitter: u32,
    },
    /// Somebody asked to stop.
    CancelRequested(CancelRequest),
    /// A newer pull was admitted.
    Superseded {
        /// The newer pull.
        by: RoundId,
    },
    /// Time passed.
    Tick,
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
    let refused = round.phase.is_terminal() || round.phase == Phase::Installing;
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
