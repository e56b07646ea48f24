//! The tombstone of a retired commit: whoever reads a commit key reads its tombstone, and a tombstoned key is retired whatever it holds (G1).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    commit::CommitRef,
    document::{self, FORMAT, check_format, invalid, kind},
    fence::{FenceBase, TombstoneRef},
    id::{Generation, PipelineId},
    key::Key,
    planted::{self, Bug},
    problem::Problem,
};

kind!(TombstoneKind, "tombstone");

/// `retired/<g>-<seq>.json`: create-only, never deleted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tombstone {
    /// The owner that retired it.
    pub pipeline: PipelineId,
    /// What is retired.
    pub commit: CommitRef,
    /// The generation of the writer, never below the commit's: says which base decides whether this tombstone counts.
    pub retired_in: Generation,
    /// When.
    pub retired_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTombstone {
    format: u32,
    kind: TombstoneKind,
    pipeline: PipelineId,
    commit: CommitRef,
    retired_in: Generation,
    retired_at: DateTime<Utc>,
}

impl Tombstone {
    /// Key of this tombstone.
    pub const fn key(&self) -> Key {
        Key::Retired(self.commit.generation, self.commit.seq)
    }

    /// As a base lists it.
    pub const fn reference(&self) -> TombstoneRef {
        TombstoneRef { generation: self.commit.generation, seq: self.commit.seq, digest: self.commit.digest }
    }

    /// The exact bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawTombstone {
            format: FORMAT,
            kind: TombstoneKind::Kind,
            pipeline: self.pipeline,
            commit: self.commit,
            retired_in: self.retired_in,
            retired_at: self.retired_at,
        })
    }

    /// Parses bytes read at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawTombstone = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let own = Key::Retired(raw.commit.generation, raw.commit.seq).to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        if raw.retired_in < raw.commit.generation {
            return Err(invalid(key, format!("was written in generation {}, before its commit", raw.retired_in)));
        }
        Ok(Self { pipeline: raw.pipeline, commit: raw.commit, retired_in: raw.retired_in, retired_at: raw.retired_at })
    }

    /// Whether it counts where `highest` is the highest generation and `base` its base: the present owner wrote it, or the base
    /// lists it. A late one of an earlier owner doesn't count (take-over, step 4).
    pub fn counts(&self, highest: Generation, base: Option<&FenceBase>) -> bool {
        self.retired_in >= highest
            || planted::is(Bug::TombstoneOfFencedOwnerCounts)
            || base.is_some_and(|base| {
                base.tombstones
                    .iter()
                    .any(|listed| listed.generation == self.commit.generation && listed.seq == self.commit.seq)
            })
    }
}
