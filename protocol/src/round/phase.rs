//! Where a round stands.

use serde::{Deserialize, Serialize};

/// Where a round stands.
///
/// ```text
/// push: Planning -> Transferring -> Committing -> Committed      Failed from the first three;
///                                                                Cancelled from the first two, and from Committing by an abort that won the key
/// pull: Resolving -> Transferring -> Installing -> Installed     Failed from the first three (from Installing SUPERSEDED, or what a
///              <-                                                host has lost can be had nowhere any more);
///                 \-> Fresh                                      Cancelled from the first two; back where the source was retired (G5)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Push was admitted: `round_no`, seq and base are taken. Remains until the agents were asked and a common step chosen, or that failed. No order was
    /// sent yet. Next: `Transferring`, `Failed`, `Cancelled`.
    Planning,
    /// Pull was admitted, or its source was retired by its owner before every host had it. Remains until one source was chosen for all hosts. Next: `Transferring`, `Fresh`,
    /// `Failed`, `Cancelled`.
    Resolving,
    /// Orders stand for every host. Remains until all parts are reported and checked (push) or all are staged (pull), one host failed for
    /// good, the deadline passed or somebody cancelled. Next: `Committing` or `Installing`, `Failed`, `Cancelled`; of a pull also `Resolving`, if its source was retired.
    Transferring,
    /// The exact bytes of the commit document are stored in the row. Remains until the decision object is known, and if it is ours, until fence g+1 was
    /// read. Deadline has no effect; a cancel tries to win the key. Next: `Committed`, `Failed`, `Cancelled`.
    Committing,
    /// Every host is staged. Remains until every host's present incarnation says it has this checkpoint. Only forward: `Installed`, or `Failed` with
    /// `SUPERSEDED` in the transaction that admits a newer pull, or `Failed` with `CHECKPOINT_NOT_FOUND` if a host has lost its own and nobody can give it again: the local source
    /// was chosen and no commit of its cut is known, or its owner has retired that commit since; or with `CHECKPOINT_DAMAGED` or `INTEGRITY` if the store
    /// has lost it since (ADR 14).
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
