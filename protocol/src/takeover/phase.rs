//! Where a take-over stands.

use serde::{Deserialize, Serialize};

/// Where a take-over stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Activate only: a pull of the newest checkpoint while the old owner still writes. Next: `Preparing`, `Failed`, `Cancelled`.
    Warming,
    /// Nothing was put. Remains until the highest fence is known and has its base. Next: `Fencing`, `Failed`, `Cancelled`.
    Preparing,
    /// The fence's exact bytes are stored. Remains until they or others are known to stand. Next: `Basing` (`Adopting` in generation 1), `Failed`.
    Fencing,
    /// The fence stands. Remains until its base does. Next: `Adopting`.
    Basing,
    /// The base stands. Remains until every open round is settled by it and the pipeline's row holds the generation, in one transaction. Next: `Pulling`, `Done`.
    Adopting,
    /// Activate only: fenced, not started. Remains until every host has exactly the base, or what was chosen, however often that takes. Next: `Done`; `Failed` where a newer
    /// fence stands, or what is pulled is damaged or gone.
    Pulling,
    /// The pipeline owns the location, or has released it. Terminal.
    Done,
    /// It doesn't and this take-over never will; the problem says why. Terminal.
    Failed,
    /// Somebody cancelled it in time. Terminal.
    Cancelled,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 9] = [
        Self::Warming,
        Self::Preparing,
        Self::Fencing,
        Self::Basing,
        Self::Adopting,
        Self::Pulling,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// No event changes it any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// As rows and audit events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Preparing => "preparing",
            Self::Fencing => "fencing",
            Self::Basing => "basing",
            Self::Adopting => "adopting",
            Self::Pulling => "pulling",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

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
