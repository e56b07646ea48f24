//! What a pipeline's row says.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    id::{Fingerprint, Generation, LocalCheckpointId, PipelineId, PipelineName, RequestId, RoundNo, Seq, Step, Term},
    problem::Problem,
    spec::PipelineSpec,
};

use super::DatabaseIdentity;

/// How callers name a pipeline. A name is never a UUID, so the two can't be confused.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PipelineSelector {
    /// The immutable one.
    Id(PipelineId),
    /// The present one.
    Name(PipelineName),
}

impl From<PipelineId> for PipelineSelector {
    fn from(id: PipelineId) -> Self {
        Self::Id(id)
    }
}

impl From<PipelineName> for PipelineSelector {
    fn from(name: PipelineName) -> Self {
        Self::Name(name)
    }
}

impl FromStr for PipelineSelector {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<PipelineId>() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => PipelineName::new(text).map(Self::Name),
        }
    }
}

impl fmt::Display for PipelineSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A pipeline to create.
#[derive(Clone, Debug)]
pub struct NewPipeline {
    /// Drawn by the caller, since it stands in the fence's bytes.
    pub id: PipelineId,
    /// Checked.
    pub spec: PipelineSpec,
    /// Exact bytes of fence 1 of the location, stored before they are PUT. None for `initial: standby`, which writes no fence.
    pub fence_bytes: Option<String>,
    /// Whether a row without a fence follows its location from now on, as a new standby does. A row that is made anew must not: its hosts may hold checkpoints that
    /// were never pushed, which following would replace.
    pub follows: bool,
    /// Idempotency key of the caller.
    pub request_id: Option<RequestId>,
}

/// What became of a create.
#[derive(Clone, PartialEq, Debug)]
pub enum Created {
    /// The row was written now.
    New(PipelineRow),
    /// This request id created it before; it may have been settled meanwhile.
    Known(PipelineRow),
}

impl Created {
    /// The row, new or known.
    pub fn into_row(self) -> PipelineRow {
        match self {
            Self::New(row) | Self::Known(row) => row,
        }
    }
}

/// Whether the pipeline owns its location.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimState {
    /// The fence's bytes are stored; dispatch puts them. Remains until their outcome is known. Next: `Owned`, `Refused`.
    Claiming,
    /// Our fence stands; the row's generation is the location's.
    Owned,
    /// Somebody else's location or an unsuitable store. The row is deleted with it; only its id still finds it.
    Refused(Problem),
    /// Owns nothing: it began as a standby (generation 0), or owned its location until another pipeline took it over and follows it since (its last generation is kept).
    /// With a fence ([`PipelineRow::holds_fence`]) its activation has fenced the location and not yet brought the base to every host: nothing is pushed before that is done.
    Standby,
}

impl ClaimState {
    /// As the row carries it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Owned => "owned",
            Self::Refused(_) => "refused",
            Self::Standby => "standby",
        }
    }
}

/// What the claim of a location came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimOutcome {
    /// Our fence of this generation stands.
    Owned(Generation),
    /// For good; the row is deleted and its name free.
    Refused(Problem),
    /// Not known or not possible yet: the claim is due again after this time, and the problem shows meanwhile.
    Again {
        /// Why.
        problem: Problem,
        /// By the database's clock.
        after: Duration,
    },
}

/// What became of [`super::Store::settle_claim`].
#[expect(clippy::large_enum_variant, reason = "returned once and taken apart at once, never kept in numbers")]
#[derive(Clone, PartialEq, Debug)]
pub enum ClaimSettled {
    /// Written.
    Stored(PipelineRow),
    /// Somebody else has claimed, changed or deleted the row since: nothing was written.
    Moved,
}

/// The newest commit of a pipeline that the database knows to stand (S4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastCommit {
    /// Place and bytes.
    pub commit: CommitRef,
    /// Of the cut.
    pub step: Step,
    /// Of the program, if the engine has one.
    pub fingerprint: Option<Fingerprint>,
    /// The local checkpoints it was made of, by host index.
    pub local_checkpoints: Vec<LocalCheckpointId>,
    /// When it was acknowledged.
    pub at: DateTime<Utc>,
}

/// A commit that the database knows to have stood and the bucket doesn't hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Which one.
    pub commit: CommitRef,
    /// What was found in its place.
    pub problem: Problem,
}

/// One pipeline.
#[derive(Clone, PartialEq, Debug)]
pub struct PipelineRow {
    /// Immutable.
    pub id: PipelineId,
    /// As last written.
    pub spec: PipelineSpec,
    /// Changes with the spec and with nothing else.
    pub etag: String,
    /// Rises with each write to the row.
    pub version: u64,
    /// The last one in which the own location was owned; 0 before that. It never falls, since agents obey nothing older than what they have seen: it does not say whether
    /// the location is owned now.
    pub generation: Generation,
    /// Whether the location is owned.
    pub claim: ClaimState,
    /// While claiming: what went wrong last.
    pub claim_problem: Option<Problem>,
    /// Of the replica that drives the claim.
    pub claim_term: Term,
    /// Exact bytes of the fence; none: it owns nothing.
    pub fence_bytes: Option<String>,
    /// A newer generation took the location over: admits nothing (F4).
    pub fenced: Option<Problem>,
    /// The bucket holds what this database doesn't know: admits nothing and collects nothing until a take-over ([`super::refuse_behind`]).
    pub behind: Option<Problem>,
    /// The bucket doesn't hold what this database knows as committed: collects nothing until it is found again or accepted ([`super::refuse_lost`]).
    pub lost: Option<Loss>,
    /// The database that wrote the fence's bytes.
    pub database: DatabaseIdentity,
    /// Newest commit known to stand.
    pub last_commit: Option<LastCommit>,
    /// Of the next round.
    pub next_round_no: RoundNo,
    /// Of the next push in this generation.
    pub next_seq: Seq,
    /// By the database's clock.
    pub created_at: DateTime<Utc>,
    /// By the database's clock.
    pub updated_at: DateTime<Utc>,
    /// Deleted, or never came to be (`Refused`).
    pub deleted_at: Option<DateTime<Utc>>,
}

impl PipelineRow {
    /// Whether the location was claimed or taken over for it, as far as the database knows. Without a fence it follows: what stands in its location is another's, who may retire it.
    pub const fn holds_fence(&self) -> bool {
        self.fence_bytes.is_some()
    }

    /// Whether its location is its own as far as the database knows, and nobody has taken it over: only then does it write there and is compared with what stands there.
    pub const fn is_owner(&self) -> bool {
        matches!(self.claim, ClaimState::Owned) && self.fenced.is_none()
    }
}
