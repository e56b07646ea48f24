//! The one error table (interfaces.md, "Errors"): every reason with its gRPC code and retry class. Handlers and loops never pick a code or
//! guess whether a retry is worth it; they ask the reason.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// gRPC status codes that reasons map to; the numbers are gRPC's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Code {
    /// CANCELLED
    Cancelled = 1,
    /// INVALID_ARGUMENT
    InvalidArgument = 3,
    /// DEADLINE_EXCEEDED
    DeadlineExceeded = 4,
    /// NOT_FOUND
    NotFound = 5,
    /// ALREADY_EXISTS
    AlreadyExists = 6,
    /// PERMISSION_DENIED
    PermissionDenied = 7,
    /// RESOURCE_EXHAUSTED
    ResourceExhausted = 8,
    /// FAILED_PRECONDITION
    FailedPrecondition = 9,
    /// ABORTED
    Aborted = 10,
    /// INTERNAL
    Internal = 13,
    /// UNAVAILABLE
    Unavailable = 14,
    /// DATA_LOSS
    DataLoss = 15,
}

/// Whether the same call can succeed later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retryable {
    /// The same call may succeed later.
    Yes,
    /// Something must change first; the message says what.
    AfterFix,
    /// Never.
    No,
}

impl Retryable {
    /// As it stands in `ErrorInfo.metadata`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::AfterFix => "after_fix",
            Self::No => "no",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident, $retry:ident;)*) => {
        /// Why something was refused or failed.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Reason {
            /// Every reason there is, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As it stands in `ErrorInfo.reason`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The gRPC code it travels with.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// Whether the same call can succeed later.
            pub const fn retryable(self) -> Retryable {
                match self { $(Self::$name => Retryable::$retry,)* }
            }
        }
    };
}

reasons! {
    /// host_idx >= n_hosts, or n_hosts 0.
    HostInfoInvalid = "HOST_INFO_INVALID", InvalidArgument, AfterFix;
    /// The order is for another host or layout than the agent was started with.
    HostInfoMismatch = "HOST_INFO_MISMATCH", FailedPrecondition, AfterFix;
    /// The order is for another pipeline than the agent was started with.
    PipelineMismatch = "PIPELINE_MISMATCH", FailedPrecondition, AfterFix;
    /// The order is for another start of the agent: the host restarted.
    IncarnationMismatch = "INCARNATION_MISMATCH", FailedPrecondition, AfterFix;
    /// Direct Sync on a multi-host layout.
    MultihostRequiresCoordinator = "MULTIHOST_REQUIRES_COORDINATOR", FailedPrecondition, AfterFix;
    /// Lower generation than the agent has persisted.
    StaleGeneration = "STALE_GENERATION", FailedPrecondition, No;
    /// Lower round_no than the agent has persisted.
    StaleRound = "STALE_ROUND", FailedPrecondition, No;
    /// Lower term than the agent has persisted.
    StaleTerm = "STALE_TERM", FailedPrecondition, No;
    /// Lower attempt than the one the agent runs or ran.
    StaleAttempt = "STALE_ATTEMPT", FailedPrecondition, No;
    /// The agent is busy with another round.
    TransferInProgress = "TRANSFER_IN_PROGRESS", Aborted, Yes;
    /// The pipeline has an active round.
    RoundInProgress = "ROUND_IN_PROGRESS", Aborted, Yes;
    /// No step that every host has with one fingerprint.
    NoCommonCheckpoint = "NO_COMMON_CHECKPOINT", FailedPrecondition, AfterFix;
    /// Proven absent everywhere it was looked for.
    CheckpointNotFound = "CHECKPOINT_NOT_FOUND", NotFound, AfterFix;
    /// It is the newest, pinned, or base or source of a round.
    CheckpointInUse = "CHECKPOINT_IN_USE", FailedPrecondition, AfterFix;
    /// An object that the checkpoint needs is missing or differs.
    CheckpointDamaged = "CHECKPOINT_DAMAGED", DataLoss, AfterFix;
    /// The checkpoint was made by another number of hosts.
    LayoutMismatch = "LAYOUT_MISMATCH", FailedPrecondition, AfterFix;
    /// The checkpoint was made by another program.
    FingerprintMismatch = "FINGERPRINT_MISMATCH", FailedPrecondition, AfterFix;
    /// The agent's allow-list has no such location.
    LocationNotAllowed = "LOCATION_NOT_ALLOWED", PermissionDenied, AfterFix;
    /// Another pipeline owns the location.
    LocationOwned = "LOCATION_OWNED", FailedPrecondition, AfterFix;
    /// A newer generation took the location over.
    Fenced = "FENCED", FailedPrecondition, No;
    /// A newer pull was admitted.
    Superseded = "SUPERSEDED", Aborted, Yes;
    /// A fence has no base yet and we may not write it.
    TakeOverInProgress = "TAKE_OVER_IN_PROGRESS", Unavailable, Yes;
    /// The store failed the probe.
    LocationUnsuitable = "LOCATION_UNSUITABLE", FailedPrecondition, AfterFix;
    /// The store refused: 401 or 403.
    StoreDenied = "STORE_DENIED", PermissionDenied, AfterFix;
    /// No such bucket or key.
    StoreNotFound = "STORE_NOT_FOUND", NotFound, AfterFix;
    /// The store asks to slow down.
    StoreThrottled = "STORE_THROTTLED", ResourceExhausted, Yes;
    /// 5xx, no connection, time-out.
    StoreUnavailable = "STORE_UNAVAILABLE", Unavailable, Yes;
    /// RequestTimeTooSkewed.
    StoreClockSkew = "STORE_CLOCK_SKEW", FailedPrecondition, AfterFix;
    /// A digest or size differs.
    Integrity = "INTEGRITY", DataLoss, Yes;
    /// A local disk is full.
    NoSpace = "NO_SPACE", ResourceExhausted, Yes;
    /// A local disk failed.
    LocalIo = "LOCAL_IO", Internal, AfterFix;
    /// No answer from an agent.
    AgentUnreachable = "AGENT_UNREACHABLE", Unavailable, Yes;
    /// The agent's process is another one than the order was for.
    AgentRestarted = "AGENT_RESTARTED", Unavailable, Yes;
    /// No progress for too long.
    TransferStalled = "TRANSFER_STALLED", Unavailable, Yes;
    /// Postgres does not answer.
    DatabaseUnavailable = "DATABASE_UNAVAILABLE", Unavailable, Yes;
    /// No such pipeline.
    PipelineNotFound = "PIPELINE_NOT_FOUND", NotFound, AfterFix;
    /// No such round.
    RoundNotFound = "ROUND_NOT_FOUND", NotFound, AfterFix;
    /// A pipeline of that name exists.
    PipelineExists = "PIPELINE_EXISTS", AlreadyExists, AfterFix;
    /// The pipeline changed since it was read.
    EtagMismatch = "ETAG_MISMATCH", Aborted, Yes;
    /// A value of a request or spec is not allowed.
    SpecInvalid = "SPEC_INVALID", InvalidArgument, AfterFix;
    /// A pull without `standby`.
    StandbyUnset = "STANDBY_UNSET", InvalidArgument, AfterFix;
    /// Same request id, other parameters.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument, AfterFix;
    /// The pipeline owns no location.
    NotOwner = "NOT_OWNER", FailedPrecondition, AfterFix;
    /// The phase can't be cancelled any more.
    RoundNotCancellable = "ROUND_NOT_CANCELLABLE", FailedPrecondition, No;
    /// The engine's lock is held.
    EngineRunning = "ENGINE_RUNNING", FailedPrecondition, AfterFix;
    /// The bucket knows more than the database.
    DatabaseBehind = "DATABASE_BEHIND", FailedPrecondition, AfterFix;
    /// A file changed or vanished while it was read.
    SourceChanged = "SOURCE_CHANGED", FailedPrecondition, Yes;
    /// A symlink, FIFO or device in a checkpoint.
    SourceUnsupported = "SOURCE_UNSUPPORTED", FailedPrecondition, AfterFix;
    /// A part manifest, commit document or catalog that breaks its rules.
    ManifestInvalid = "MANIFEST_INVALID", DataLoss, AfterFix;
    /// The agent's transfer panicked.
    AgentPanic = "AGENT_PANIC", Internal, Yes;
    /// The round's deadline passed.
    RoundDeadline = "ROUND_DEADLINE", DeadlineExceeded, Yes;
    /// Somebody cancelled it.
    Cancelled = "CANCELLED", Cancelled, Yes;
    /// A spec with the old `standby` flag.
    StandbyFieldRemoved = "STANDBY_FIELD_REMOVED", InvalidArgument, AfterFix;
}

impl Reason {
    /// Finds a reason by its text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A typed error: the reason, a message that names the thing and says what to do, and every value the message shows.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Which row of the table.
    pub reason: Reason,
    /// Lower case, no full stop.
    pub message: String,
    /// Every value the message shows.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Overrides the reason's class where the site knows better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable_override: Option<Retryable>,
}

impl Problem {
    /// A problem without values yet.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new(), retryable_override: None }
    }

    /// Adds a value that the message shows.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.into(), value.to_string());
        self
    }

    /// Says that the reason's retry class does not hold here.
    #[must_use]
    pub fn retry(mut self, class: Retryable) -> Self {
        self.retryable_override = Some(class);
        self
    }

    /// Whether the same call can succeed later.
    pub fn retryable(&self) -> Retryable {
        self.retryable_override.unwrap_or_else(|| self.reason.retryable())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Problem {}
