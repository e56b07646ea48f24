//! What is asked of an agent and what it answers, as checked values: generated types stop at `convert::agent`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::{CommitPart, CommitRef},
    host::Slot,
    id::{Attempt, Fingerprint, Incarnation, LocalCheckpointId, RoundId, Step},
    location::Location,
    order::{OrderHeader, OrderMark},
    problem::Problem,
    selection::LocalCheckpoint,
    spec::Transfer,
};
use tokio::time::Instant;

/// When a round is over, by the database's clock and by this process's: agents are told how much time is left, since their own clocks may be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadline {
    /// As the round's row says.
    pub at: DateTime<Utc>,
    /// The same moment here.
    pub instant: Instant,
}

impl Deadline {
    /// From now.
    pub fn left(&self) -> Duration {
        self.instant.saturating_duration_since(Instant::now())
    }
}

/// A host and where its agent is said to be. Who answers there is compared with the slot, never the other way round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Which host.
    pub slot: Slot,
    /// Where its agent is.
    pub address: String,
}

/// Who an agent says it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// What `--pipeline` was: a name or a UUID.
    pub pipeline: String,
    /// What `--host-idx` and `--n-hosts` were.
    pub slot: Slot,
    /// Of its present process.
    pub incarnation: Incarnation,
    /// Version of the agent.
    pub version: String,
    /// Highest order it has accepted.
    pub highest: Option<OrderMark>,
    /// Of the file system that holds the checkpoints, if known.
    pub free_bytes: Option<u64>,
}

/// The local checkpoints of one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Of the process that answered.
    pub incarnation: Incarnation,
    /// Oldest first.
    pub checkpoints: Vec<LocalCheckpoint>,
}

/// Upload one local checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushOrder {
    /// Checked first.
    pub header: OrderHeader,
    /// Which local checkpoint.
    pub local_checkpoint: LocalCheckpointId,
    /// What it must be at.
    pub step: Step,
    /// What it must be of.
    pub fingerprint: Option<Fingerprint>,
    /// The commit whose objects may be reused, with the parts of all its hosts.
    pub base: Option<(CommitRef, Vec<CommitPart>)>,
    /// When the round is over.
    pub deadline: Deadline,
    /// Limits.
    pub transfer: Transfer,
}

/// Download one part into staging.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullOrder {
    /// Checked first.
    pub header: OrderHeader,
    /// Where the commit lies.
    pub source: Location,
    /// The commit.
    pub commit: CommitRef,
    /// This host's part of it.
    pub part: CommitPart,
    /// What it must be at.
    pub step: Step,
    /// What it must be of.
    pub fingerprint: Option<Fingerprint>,
    /// When the round is over. None once it is only forward.
    pub deadline: Option<Deadline>,
    /// Limits.
    pub transfer: Transfer,
}

/// What shall be the only local checkpoint of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstallWhat {
    /// None at all.
    Fresh,
    /// This one, staged or local.
    Checkpoint(LocalCheckpointId, Step),
}

/// Where a transfer stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TransferState<D> {
    /// The agent knows nothing of this round and attempt.
    NotRequested,
    /// It runs.
    InProgress(Counters),
    /// It ended well.
    Done(D),
    /// It failed.
    Failed(Problem),
}

/// Answer to an order or a status call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransferStatus<D> {
    /// Of the process that answered.
    pub incarnation: Incarnation,
    /// Which round it speaks of.
    pub round: RoundId,
    /// Which try it speaks of.
    pub attempt: Attempt,
    /// Where it stands.
    pub state: TransferState<D>,
}

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Bytes dealt with.
    pub bytes_done: u64,
    /// Of how many; 0 while not known.
    pub bytes_total: u64,
    /// Files dealt with.
    pub files_done: u64,
    /// Of how many; 0 while not known.
    pub files_total: u64,
    /// Bytes that went over the network.
    pub bytes_transferred: u64,
    /// How often the store asked to slow down.
    pub throttled: u64,
    /// Lately.
    pub bytes_per_second: u64,
}

impl Counters {
    /// Whether anything moved since `before`; the rate alone is no progress.
    pub const fn moved_since(&self, before: &Self) -> bool {
        self.bytes_done != before.bytes_done
            || self.bytes_total != before.bytes_total
            || self.files_done != before.files_done
            || self.files_total != before.files_total
            || self.bytes_transferred != before.bytes_transferred
            // A store that asks to slow down answers, and is obeyed.
            || self.throttled != before.throttled
    }
}

/// A part is in S3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushDone {
    /// As the commit will name it.
    pub part: CommitPart,
    /// Of the local checkpoint it holds.
    pub step: Step,
    /// Of the local checkpoint it holds.
    pub fingerprint: Option<Fingerprint>,
}

/// How far a pull came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Verified and synced, not visible to the engine.
    Staged,
    /// The only checkpoint the engine sees.
    Installed,
}

/// A part is on the host's disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullDone {
    /// How far it came.
    pub reach: Reach,
    /// None after a fresh start.
    pub local_checkpoint: Option<LocalCheckpointId>,
    /// As the last progress would say it.
    pub counters: Counters,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_asks_to_slow_down_is_movement_and_a_rate_is_none() {
        let before = Counters { bytes_done: 1, throttled: 1, ..Counters::default() };
        assert!(Counters { throttled: 2, ..before }.moved_since(&before));
        assert!(Counters { bytes_transferred: 1, ..before }.moved_since(&before));
        assert!(!Counters { bytes_per_second: 9, ..before }.moved_since(&before));
    }
}
