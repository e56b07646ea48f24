//! What may happen to a round.

use super::{CancelRequest, Resolved};
use crate::{
    commit::{CommitPart, CommitRef},
    fence::{FenceBase, Successor},
    finish::AtKey,
    id::{Attempt, Fingerprint, Incarnation, LocalCheckpointId, RoundId, Step},
    problem::Problem,
};

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

/// What is known of a push's decision key when its pipeline adopts a newer generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyRead {
    /// Nothing: it was not read yet.
    NotYet,
    /// It was read after the base stood and is absent, without a tombstone.
    Absent,
    /// It was read after the base stood.
    Holds(AtKey),
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
    /// Pull: something of the source is missing, and its tombstone says that its owner has retired it (G5).
    SourceRetired {
        /// The host that missed it.
        host_idx: u32,
        /// Which try.
        attempt: Attempt,
        /// The source of that try.
        commit: CommitRef,
        /// `CHECKPOINT_NOT_FOUND`, for a round that has nothing else to choose.
        problem: Problem,
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
    /// The pipeline adopts a newer generation of its own location (F4); see [`crate::takeover::settle`].
    Adopted {
        /// Of exactly the generation after the round's own.
        base: FenceBase,
        /// Push: its decision key.
        key: KeyRead,
    },
    /// Time passed.
    Tick,
}
