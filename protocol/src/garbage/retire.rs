//! The tombstone of a commit that is marked: put with stored bytes until something is known to stand at its key. Only what is *known* to have landed may be swept.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    commit::CommitRef,
    fence::FenceBase,
    id::Generation,
    planted::{self, Bug},
    problem::Problem,
    takeover::PutAnswer,
    tombstone::Tombstone,
};

/// A commit that is marked in the database: no base and no source any more. Its tombstone may or may not stand.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Retiring {
    tombstone: Tombstone,
}

/// A tombstone that counts and is known to stand.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LandedTombstone {
    commit: CommitRef,
    retired_at: DateTime<Utc>,
}

/// What is known of a tombstone's key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TombstoneKnown {
    /// One that counts stands.
    Landed(LandedTombstone),
    /// One stands that doesn't count: an owner that was fenced wrote it too late. The commit stays for ever (ADR 12); the mark is taken back.
    Occupied,
    /// Put the same bytes again.
    Unknown,
}

impl Retiring {
    pub(super) const fn new(tombstone: Tombstone) -> Self {
        Self { tombstone }
    }

    /// From the bytes that were stored with the mark.
    pub fn stored(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        Ok(Self::new(Tombstone::parse(key, bytes)?))
    }

    /// What is put, create-only, and where.
    pub const fn tombstone(&self) -> &Tombstone {
        &self.tombstone
    }

    /// Judges the PUT by what was read at its key *after* the answer; after [`PutAnswer::Created`] nothing needs to be read. `base`: of the generation that the tombstone was
    /// written in.
    pub fn judge(&self, answer: PutAnswer, found: Option<&Tombstone>, base: Option<&FenceBase>) -> TombstoneKnown {
        let mine = || TombstoneKnown::Landed(LandedTombstone::new(&self.tombstone));
        match (answer, found) {
            (PutAnswer::Created, _) => mine(),
            (PutAnswer::Unknown, None) if planted::is(Bug::SweepBeforeTombstoneLanded) => mine(),
            (PutAnswer::Exists | PutAnswer::Unknown, None) => TombstoneKnown::Unknown,
            (_, Some(found)) => LandedTombstone::read(found, self.tombstone.retired_in, base)
                .map_or(TombstoneKnown::Occupied, TombstoneKnown::Landed),
        }
    }
}

impl LandedTombstone {
    const fn new(tombstone: &Tombstone) -> Self {
        Self { commit: tombstone.commit, retired_at: tombstone.retired_at }
    }

    /// Of a tombstone that was read at its key, if it counts where `highest` is the highest generation and `base` its base.
    pub fn read(tombstone: &Tombstone, highest: Generation, base: Option<&FenceBase>) -> Option<Self> {
        tombstone.counts(highest, base).then(|| Self::new(tombstone))
    }

    /// What is retired.
    pub const fn commit(&self) -> CommitRef {
        self.commit
    }

    /// Whether the grace period is over.
    pub fn is_ripe(&self, grace: Duration, now: DateTime<Utc>) -> bool {
        TimeDelta::from_std(grace)
            .ok()
            .and_then(|grace| self.retired_at.checked_add_signed(grace))
            .is_some_and(|at| at <= now)
    }
}
