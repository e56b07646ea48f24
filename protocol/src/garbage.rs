//! What may go from a location, and when (G1 to G3). Pure: whoever carries it out lists, reads and deletes; a dry run shows the very [`Plan`].
//!
//! - [`retain`]: which commits may be retired (G1), in two steps: candidates from what was listed, then the mark under the pipeline's row lock
//! - [`retire`]: the tombstone: put until it is known to stand; only a [`LandedTombstone`] leads on
//! - [`sweep`]: objects that only retired commits reach (G2), request by request: pins, what live commits reach, fence g+1
//! - `lost`: what a commit may reach of which a part manifest can't be read
//! - [`orphan`]: objects that nothing reaches (G3), request by request: keys, *then* the database, *then* what commits reach,
//!   fence g+1
//! - [`held`]: a delete that was refused holds up what belongs to the same checkpoint or round, and nothing else
//! - [`reach`]: what a commit reaches: objects, part manifests, and what these inherit (ADR 8)
//!
//! Nothing here needs a lease or a clock to be safe; the grace period is a kindness to readers who can't pin.

pub mod held;
mod lost;
pub mod orphan;
pub mod reach;
pub mod retain;
pub mod retire;
pub mod sweep;

pub use held::HeldUp;
pub use orphan::{DatabaseView, ListedKey, OpenUpload, Orphans, RoundState};
pub use reach::CommitReach;
pub use retain::{Candidates, Kept, Known, Locked, WhyKept, candidates, in_use};
pub use retire::{LandedTombstone, Retiring, TombstoneKnown};
pub use sweep::Sweep;

use crate::{
    id::{Generation, RoundId, Seq},
    problem::{Problem, Reason},
};

/// An object that goes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Doomed {
    /// Relative to the location's prefix.
    pub key: String,
    /// As it was listed or named.
    pub bytes: u64,
    /// Whose it is: the rounds of the retired commits that reach it, or the dead round that left it. Never empty.
    pub owners: Vec<RoundId>,
}

/// What goes, in this order: each stage begins when every delete of the one before has been tried, and leaves out what belongs to an owner of which something is left ([`HeldUp`]): so
/// what is left after a crash, or because the store does not let go of it, can still be read by whoever goes on. Deletes within a stage need no order. Repeating a plan that was made once is safe for ever: nothing that it names can be reached again.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Plan {
    /// Multipart uploads to abort.
    pub uploads: Vec<OpenUpload>,
    /// Data objects.
    pub data: Vec<Doomed>,
    /// Part manifests that no other one inherits.
    pub manifests: Vec<Doomed>,
    /// Part manifests that others inherit.
    pub inherited: Vec<Doomed>,
    /// Commit objects; tombstones stand for them.
    pub commits: Vec<Doomed>,
}

/// Sums of a plan, for a dry run and for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Objects that go.
    pub objects: u64,
    /// Their bytes; those of open uploads are not known.
    pub bytes: u64,
    /// Multipart uploads that are aborted.
    pub uploads: u64,
}

impl Plan {
    /// Deletes by stage, in order. Uploads may be aborted at any time.
    pub fn stages(&self) -> [&[Doomed]; 4] {
        [&self.data, &self.manifests, &self.inherited, &self.commits]
    }

    /// Objects and bytes of all stages.
    pub fn totals(&self) -> Totals {
        let all = || self.stages().into_iter().flatten();
        Totals {
            objects: u64::try_from(all().count()).unwrap_or(u64::MAX),
            bytes: all().fold(0, |sum, doomed| doomed.bytes.saturating_add(sum)),
            uploads: u64::try_from(self.uploads.len()).unwrap_or(u64::MAX),
        }
    }

    /// Nothing goes.
    pub fn is_empty(&self) -> bool {
        self.uploads.is_empty() && self.stages().into_iter().all(<[_]>::is_empty)
    }
}

/// Why nothing may be deleted now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    /// `FENCED`: somebody took the location over; `DATABASE_BEHIND`: resync; anything else: later.
    pub problem: Problem,
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self { problem }
    }
}

/// Whether the database may say what is garbage. `newest`: the greatest place of a decision that was listed; `next_seq`: what the database would give the next push of generation
/// `mine`, read *after* the listing.
pub fn check_owner(mine: Generation, next_seq: Seq, newest: Option<(Generation, Seq)>) -> Result<(), Stop> {
    match newest {
        Some((generation, _)) if generation > mine => Err(sweep::fenced(mine, generation)),
        Some((generation, seq)) if generation == mine && seq >= next_seq => Err(Problem::new(
            Reason::DatabaseBehind,
            format!(
                "decision {generation}-{seq} stands, the database expects none from {next_seq} on: it is behind the bucket; resync the pipeline"
            ),
        )
        .with("generation", generation)
        .with("seq", seq)
        .with("next_seq", next_seq)
        .into()),
        _ => Ok(()),
    }
}
