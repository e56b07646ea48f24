//! G2: the objects that only retired commits reach. Each state of [`Sweep`] names one request, its answer gives the next: tombstones known to have landed, *then* pins,
//! *then* fence g+1 read absent, *then* what live commits reach.
//!
//! Why the result stays true however late it is carried out: a tombstone that landed before fence g+1 existed is in every base to come, so no later owner uses what is
//! swept; and what a push reuses its base reaches, which was live when live commits were read or is made of such.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};

use super::{
    Doomed, Plan, Stop,
    reach::{CommitReach, check_all_read, reached},
    retire::LandedTombstone,
};
use crate::{
    commit::CommitRef,
    id::Generation,
    pin::Pin,
    planted::{self, Bug},
    problem::{Problem, Reason},
};

/// The next request of a sweep.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Sweep {
    /// List and read `pins/`.
    ListPins(ListPins),
    /// GET fence g+1.
    ReadSuccessor(ReadSuccessor),
    /// List the commits that count, retired ones included, and read what they reach.
    ReadCommits(ReadCommits),
    /// Nothing is ripe, or all that is is pinned.
    Nothing,
}

/// See [`Sweep::ListPins`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListPins {
    mine: Generation,
    retired: BTreeSet<CommitRef>,
}

/// See [`Sweep::ReadSuccessor`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadSuccessor {
    mine: Generation,
    retired: BTreeSet<CommitRef>,
}

/// See [`Sweep::ReadCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadCommits {
    retired: BTreeSet<CommitRef>,
}

impl Sweep {
    /// A sweep by the owner of generation `mine`, of those whose grace period is over.
    pub fn begin(mine: Generation, landed: &[LandedTombstone], grace: Duration, now: DateTime<Utc>) -> Self {
        let ripe = landed.iter().filter(|tombstone| tombstone.is_ripe(grace, now));
        let retired: BTreeSet<CommitRef> = ripe.map(LandedTombstone::commit).collect();
        if retired.is_empty() { Self::Nothing } else { Self::ListPins(ListPins { mine, retired }) }
    }
}

impl ListPins {
    /// Every pin there is. A retired commit that is pinned stays as long as it is.
    pub fn answer(self, pins: &[Pin]) -> Sweep {
        let Self { mine, mut retired } = self;
        for pin in pins {
            retired.remove(&pin.commit);
        }
        match retired.is_empty() {
            true => Sweep::Nothing,
            false if planted::is(Bug::SweepWithoutReadingTheNextFence) => Sweep::ReadCommits(ReadCommits { retired }),
            false => Sweep::ReadSuccessor(ReadSuccessor { mine, retired }),
        }
    }
}

impl ReadSuccessor {
    /// Whose fence.
    pub const fn generation(&self) -> Generation {
        self.mine.next()
    }

    /// Whether it stands. If so its base may not list the tombstones, so the commits may count there.
    pub fn answer(self, stands: bool) -> Result<Sweep, Stop> {
        if !stands {
            return Ok(Sweep::ReadCommits(ReadCommits { retired: self.retired }));
        }
        Err(fenced(self.mine, self.mine.next()))
    }
}

/// `FENCED`: somebody else decides now what goes.
pub(super) fn fenced(mine: Generation, found: Generation) -> Stop {
    Problem::new(
        Reason::Fenced,
        format!("generation {found} exists, the pipeline holds generation {mine}: only the new owner may delete"),
    )
    .with("generation", mine)
    .with("newer_generation", found)
    .into()
}

impl ReadCommits {
    /// What is swept: read by [`CommitReach::of_retired`].
    pub const fn retired(&self) -> &BTreeSet<CommitRef> {
        &self.retired
    }

    /// Of all commits that count, retired or not, those whose reach must be read by [`CommitReach::of`].
    pub fn live(&self, counted: &[CommitRef]) -> Vec<CommitRef> {
        counted.iter().filter(|commit| !self.retired.contains(commit)).copied().collect()
    }

    /// What goes. `commit_bytes` gives the size of a commit object that is there; none: it is gone already.
    pub fn answer(
        self,
        counted: &[CommitRef],
        live: &[CommitReach],
        retired: &[CommitReach],
        commit_bytes: impl Fn(CommitRef) -> Option<u64>,
    ) -> Result<Plan, Stop> {
        check_all_read(&self.live(counted), live)?;
        let keep = reached(live);
        let inherited: BTreeSet<&str> =
            retired.iter().flat_map(|reach| reach.inherited.keys().map(String::as_str)).collect();
        let mut plan = Plan::default();
        let mut seen = BTreeSet::new();
        let mut doom = |stage: &mut Vec<Doomed>, key: &str, bytes: u64| {
            if !keep.contains(key) && seen.insert(key.to_owned()) {
                stage.push(Doomed { key: key.to_owned(), bytes });
            }
        };
        for reach in retired.iter().filter(|reach| self.retired.contains(&reach.commit)) {
            for (key, &bytes) in &reach.data {
                doom(&mut plan.data, key, bytes);
            }
            for (key, &bytes) in &reach.manifests {
                let stage = if inherited.contains(key.as_str()) { &mut plan.inherited } else { &mut plan.manifests };
                doom(stage, key, bytes);
            }
            for (key, &bytes) in &reach.inherited {
                doom(&mut plan.inherited, key, bytes);
            }
            if let Some(bytes) = commit_bytes(reach.commit) {
                plan.commits.push(Doomed { key: reach.commit.key().to_string(), bytes });
            }
        }
        Ok(plan)
    }
}
