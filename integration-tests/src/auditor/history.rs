//! What was seen from outside: by engines, by clients, on disks.

use std::{collections::BTreeMap, time::Instant};

use uuid::Uuid;

use crate::content::Identity;

/// A local checkpoint as its engine made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Of which host.
    pub host_idx: u32,
    /// Its step.
    pub step: u64,
    /// Every file of it.
    pub files: Identity,
}

/// A round whose end a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub round: Uuid,
    /// As the database spells it: `committed`, `failed`, ...
    pub phase: String,
    /// Reason of the problem; empty without one.
    pub reason: String,
    /// When the answer was there.
    pub at: Instant,
}

/// A call that was answered with a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Of which pipeline.
    pub pipeline: Uuid,
    /// Idempotency key of the call.
    pub request: Uuid,
    /// What it was answered with.
    pub round: Uuid,
}

/// An answer to what the newest checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// Of which pipeline.
    pub pipeline: Uuid,
    /// Generation and seq.
    pub place: (u64, u64),
    /// When it was asked.
    pub asked: Instant,
    /// When the answer was there.
    pub answered: Instant,
}

/// What lay on the disks of a pipeline when it was told that a pull is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The pull.
    pub round: Uuid,
    /// By host index: local checkpoints that its engine sees, with every file.
    pub hosts: Vec<BTreeMap<Uuid, Identity>>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By id of the local checkpoint.
    pub made: BTreeMap<Uuid, Made>,
    /// Calls that were answered with a round, retries included.
    pub admitted: Vec<Admitted>,
    /// Rounds whose end was told, as often as it was.
    pub told: Vec<Told>,
    /// What `latest` was, as often as it was asked.
    pub latest: Vec<Latest>,
    /// What pulls left on disks.
    pub installed: Vec<Installed>,
}
