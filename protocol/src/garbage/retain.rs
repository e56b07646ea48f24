//! G1: which commits may be retired. [`candidates`] works on what was listed and is what a dry run shows; [`Candidates::mark`] decides again under the pipeline's row
//! lock, the same under which pushes choose their base and pulls store their source.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    commit::CommitRef,
    id::{Generation, PipelineId},
    pin::Pin,
    planted::{self, Bug},
    round::{Kind, Round, Source},
    spec::Retention,
    tombstone::Tombstone,
};

use super::retire::Retiring;

/// A commit that counts and is not retired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Which.
    pub commit: CommitRef,
    /// By the database's clock.
    pub created_at: DateTime<Utc>,
    /// It bears a mark.
    pub damaged: bool,
    /// Its document can't be read; `created_at` is not before it was made.
    pub unreadable: bool,
    /// The key of its tombstone holds one that doesn't count, of an owner that was fenced: it can't be retired any more (ADR 12).
    pub occupied: bool,
}

/// Why a commit stays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WhyKept {
    /// The newest of all, or the newest that is not damaged: `latest`, and the base of pushes.
    Newest,
    /// One of the newest `min_count`.
    Count,
    /// Younger than `min_age`.
    Age,
    /// Somebody pinned it.
    Pinned,
    /// Base or source of an active round.
    InUse,
    /// Its document can't be read, and nobody has given it up by a mark.
    Unreadable,
    /// See [`Known::occupied`].
    Occupied,
}

/// A commit that stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Which.
    pub commit: CommitRef,
    /// The first reason that holds.
    pub why: WhyKept,
}

/// What retention would do, before the lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidates {
    /// Oldest first.
    pub retire: Vec<CommitRef>,
    /// Newest first.
    pub kept: Vec<Kept>,
}

/// Bases and sources of active rounds in their pipeline's own location. Read under the row lock, they keep a commit; so the base of a push is chosen, and the source of
/// a pull is stored, under that lock too, and neither may be a commit that is marked.
pub fn in_use<'r>(active: impl IntoIterator<Item = &'r Round>) -> BTreeSet<CommitRef> {
    active
        .into_iter()
        .filter(|round| !round.phase.is_terminal())
        .filter_map(|round| match &round.kind {
            Kind::Push(_) if planted::is(Bug::BaseNotPinned) => None,
            Kind::Push(push) => push.base,
            Kind::Pull(pull) => {
                pull.resolved.as_ref().filter(|from| from.source != Source::ReadLocation).and_then(|from| from.commit)
            }
        })
        .collect()
}

/// What may be retired, as far as listings tell. `known`: every commit that counts and is not retired, newest first. `in_use`: as of now, for the preview.
pub fn candidates(
    known: &[Known],
    pins: &[Pin],
    in_use: &BTreeSet<CommitRef>,
    limits: Retention,
    now: DateTime<Utc>,
) -> Candidates {
    // By their places: of one that can't be read any more pins and rounds know more than what is there.
    let pinned: BTreeSet<_> = pins.iter().map(|pin| pin.commit.place()).collect();
    let in_use: BTreeSet<_> = in_use.iter().map(CommitRef::place).collect();
    let good_one = |one: &Known| !one.damaged && !one.unreadable;
    let latest = known.iter().find(|one| good_one(one)).map(|one| one.commit);
    let old = TimeDelta::from_std(limits.min_age).ok().and_then(|age| now.checked_sub_signed(age));
    let (mut retire, mut kept, mut good) = (Vec::new(), Vec::new(), 0_u32);
    for (position, one) in known.iter().enumerate() {
        good = good.saturating_add(u32::from(good_one(one)));
        let why = if position == 0 || Some(one.commit) == latest {
            Some(WhyKept::Newest)
        } else if one.unreadable && !one.damaged {
            Some(WhyKept::Unreadable)
        } else if !one.damaged && good <= limits.min_count {
            Some(WhyKept::Count)
        } else if old.is_none_or(|old| one.created_at > old) {
            Some(WhyKept::Age)
        } else if pinned.contains(&one.commit.place()) {
            Some(WhyKept::Pinned)
        } else if in_use.contains(&one.commit.place()) {
            Some(WhyKept::InUse)
        } else {
            one.occupied.then_some(WhyKept::Occupied)
        };
        match why {
            Some(why) => kept.push(Kept { commit: one.commit, why }),
            None => retire.push(one.commit),
        }
    }
    retire.reverse();
    Candidates { retire, kept }
}

/// What the transaction that marks has read under the pipeline's row lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Locked {
    /// Whose.
    pub pipeline: PipelineId,
    /// That its row holds; the row is not fenced.
    pub generation: Generation,
    /// The last commit that the row knows.
    pub last: Option<CommitRef>,
    /// [`in_use`] of the rounds that are active now.
    pub in_use: BTreeSet<CommitRef>,
    /// By the database's clock.
    pub now: DateTime<Utc>,
}

impl Candidates {
    /// Those that are marked in this transaction, each with the exact bytes of its tombstone to store in the row. They are put only after it.
    pub fn mark(&self, locked: &Locked) -> Vec<Retiring> {
        let in_use: BTreeSet<_> = locked.in_use.iter().map(CommitRef::place).collect();
        let last = locked.last.as_ref().map(CommitRef::place);
        let free = |commit: &&CommitRef| {
            planted::is(Bug::RetireWithoutTheLock)
                || (!in_use.contains(&commit.place())
                    && last != Some(commit.place())
                    && commit.generation <= locked.generation)
        };
        let tombstone = |commit: &CommitRef| Tombstone {
            pipeline: locked.pipeline,
            commit: *commit,
            retired_in: locked.generation,
            retired_at: locked.now,
        };
        self.retire.iter().filter(free).map(|commit| Retiring::new(tombstone(commit))).collect()
    }
}
