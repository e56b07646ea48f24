//! Orders as the agent works with them: checked values, no generated types.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Fingerprint, LocalCheckpointId, Step},
    key::AttemptPath,
    location::Location,
    order::OrderHeader,
    problem::{Problem, Reason},
    ready::Word,
};
use tokio::time::Instant;

/// When a round is over: as it was told, and by the clock of this process that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// By the coordinator's database.
    pub(crate) at: DateTime<Utc>,
    /// The same moment here.
    pub(crate) instant: Instant,
}

/// How much of its machine a transfer may use. The builder's are the defaults, an order may say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferLimits {
    /// Requests in flight at most, 1 to 256; fewer where memory does not suffice. 16.
    pub concurrency: usize,
    /// Bytes of one part of a multipart upload or one ranged read, 5 MiB to 5 GiB. 16 MiB.
    pub part_size: u64,
    /// Bytes of buffers of a transfer, at least 5 MiB. 64 MiB.
    pub memory: u64,
    /// Bytes a second; None: unlimited.
    pub bandwidth: Option<u64>,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self { concurrency: 16, part_size: 16 << 20, memory: 64 << 20, bandwidth: None }
    }
}

/// S3's smallest part of a multipart upload, and the least memory a transfer can work with.
const MIN_PART: u64 = 5 << 20;
/// S3's greatest part.
const MAX_PART: u64 = 5 << 30;
/// Far above what helps.
const MAX_CONCURRENCY: usize = 256;

impl TransferLimits {
    /// Refuses values outside their ranges. A part never exceeds the memory: it is made smaller.
    pub fn checked(mut self) -> Result<Self, Problem> {
        let refuse = |field: &str, value: u64, range: String| {
            Err(Problem::new(Reason::SpecInvalid, format!("transfer {field} {value} is outside of {range}"))
                .with("field", format!("transfer.{field}"))
                .with("value", value))
        };
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            return refuse("concurrency", self.concurrency as u64, format!("1 to {MAX_CONCURRENCY}"));
        }
        if !(MIN_PART..=MAX_PART).contains(&self.part_size) {
            return refuse("part_size", self.part_size, format!("{MIN_PART} to {MAX_PART} bytes"));
        }
        if self.memory < MIN_PART {
            return refuse("memory", self.memory, format!("at least {MIN_PART} bytes"));
        }
        self.part_size = self.part_size.min(self.memory);
        Ok(self)
    }
}

/// Names one part manifest: key, length and digest of its exact bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartRef {
    /// The attempt that wrote it; its manifest's key follows from it.
    pub(crate) path: AttemptPath,
    /// Bytes.
    pub(crate) length: u64,
    /// Of the bytes.
    pub(crate) blake3: Digest,
}

impl PartRef {
    /// Slot that the part belongs to; 0 for solo.
    pub(crate) fn host_idx(&self) -> u32 {
        self.path.host_idx.unwrap_or(0)
    }

    /// Relative key of the manifest.
    pub(crate) fn key(&self) -> String {
        self.path.manifest().to_string()
    }
}

/// Upload one local checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// Checked first.
    pub(crate) header: OrderHeader,
    /// Which local checkpoint.
    pub(crate) local_checkpoint: LocalCheckpointId,
    /// What it must be at.
    pub(crate) step: Step,
    /// What it must be of.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// All hosts' parts of the base, the commit whose objects may be reused; none: no base.
    pub(crate) base_parts: Vec<PartRef>,
    /// When the round is over.
    pub(crate) deadline: Option<Deadline>,
    /// How to go about it.
    pub(crate) limits: TransferLimits,
}

/// Download one part into staging.
#[derive(Clone, Debug)]
pub(crate) struct Pull {
    /// Checked first.
    pub(crate) header: OrderHeader,
    /// Where the commit lies.
    pub(crate) source: Location,
    /// The commit.
    pub(crate) commit: CommitRef,
    /// This host's part of it.
    pub(crate) part: PartRef,
    /// What the part must hold.
    pub(crate) local_checkpoint: LocalCheckpointId,
    /// What it must be at.
    pub(crate) step: Step,
    /// What it must be of.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// When the round is over.
    pub(crate) deadline: Option<Deadline>,
    /// How to go about it.
    pub(crate) limits: TransferLimits,
}

/// What shall be the only local checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InstallWhat {
    /// None at all: the engine starts from nothing.
    Fresh,
    /// This one, staged or local.
    Checkpoint(LocalCheckpointId, Step),
}

/// Make a checkpoint the only one the engine sees.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    /// Checked first.
    pub(crate) header: OrderHeader,
    /// Which.
    pub(crate) what: InstallWhat,
}

/// Tell the engine what it may do.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// Checked first.
    pub(crate) header: OrderHeader,
    /// What.
    pub(crate) word: Word,
}

/// What a finished push reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PushDone {
    /// The manifest it wrote last.
    pub(crate) part: PartRef,
    /// What it holds.
    pub(crate) local_checkpoint: LocalCheckpointId,
    /// Of it.
    pub(crate) step: Step,
    /// Of it.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Number of files.
    pub(crate) files: u64,
    /// Bytes of the checkpoint.
    pub(crate) bytes: u64,
    /// Bytes of files that were sent; the manifest is not counted.
    pub(crate) bytes_uploaded: u64,
    /// Of this host, if known.
    pub(crate) processed_records: Option<u64>,
    /// From acceptance.
    pub(crate) elapsed: Duration,
}

/// How far a pull came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// Verified and synced, not visible to the engine.
    Staged,
    /// The only checkpoint the engine sees.
    Installed,
}

/// What a finished pull or install reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PullDone {
    /// How far it came.
    pub(crate) reach: Reach,
    /// None after a fresh start.
    pub(crate) local_checkpoint: Option<LocalCheckpointId>,
    /// Of it; None after a fresh start.
    pub(crate) step: Option<Step>,
    /// Number of files.
    pub(crate) files: u64,
    /// Bytes of the checkpoint.
    pub(crate) bytes: u64,
    /// Bytes of files that came over the network.
    pub(crate) bytes_downloaded: u64,
    /// Bytes that local files already held.
    pub(crate) bytes_reused: u64,
    /// From acceptance.
    pub(crate) elapsed: Duration,
}
