//! What a commit may reach of which a part manifest is lost: missing or damaged, so that nobody can read it (ADR 17).
//!
//! A part uses objects of its own round and such as its base reached, and inherits from its base (`PartManifest::check_closure`). A base is an older commit that counts, and so is that one's base. So
//! whatever a commit reaches was written by its own round or by the round of an *older* commit, and keys name rounds: what a newer commit's round wrote it can't reach, nor what a round
//! wrote that never committed.

use std::collections::BTreeSet;

use super::reach::CommitReach;
use crate::{
    commit::CommitRef,
    id::{Generation, RoundId, Seq},
    key::Key,
    planted::{self, Bug},
};

/// Of the newest such commit; it covers those before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    place: (Generation, Seq),
    /// Rounds of which it can reach nothing: of newer commits, and those that never committed.
    others: BTreeSet<RoundId>,
}

const fn place(commit: &CommitRef) -> (Generation, Seq) {
    (commit.generation, commit.seq)
}

impl Lost {
    /// None: every one of these was read whole. `counted`: every commit that counts and is there; `void`: rounds that never committed.
    pub(super) fn among(live: &[CommitReach], counted: &[CommitRef], void: &BTreeSet<RoundId>) -> Option<Self> {
        let newest = live.iter().filter(|reach| !reach.whole).map(|reach| place(&reach.commit)).max()?;
        if planted::is(Bug::LostManifestReachesNothing) {
            return None;
        }
        let newer = counted.iter().filter(|commit| place(commit) > newest).map(|commit| commit.round);
        Some(Self { place: newest, others: newer.chain(void.iter().copied()).collect() })
    }

    /// Whether it may reach an object.
    pub(super) fn may_reach(&self, key: &str) -> bool {
        match Key::parse(key) {
            Some(Key::PartManifest(path) | Key::Data(path, _)) => !self.others.contains(&path.round),
            _ => true,
        }
    }

    /// Whether a commit is that one or older, so that nothing of its own may go.
    pub(super) fn covers(&self, commit: &CommitRef) -> bool {
        place(commit) <= self.place
    }
}
