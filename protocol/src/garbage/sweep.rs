//! G2: the objects that only retired commits reach. Each state of [`Sweep`] names one request, its answer gives the next: tombstones known to have landed, *then* pins,
//! *then* what live commits reach, and *then* fence g+1 read absent (ADR 12: read before the commits it proves nothing about what a new owner has swept since).
//!
//! Why the result stays true however late it is carried out: when fence g+1 was read absent, nobody else had written or deleted anything, so what was read is the whole truth; a
//! tombstone that landed before is in every base to come, so no later owner uses what is swept; and what a push reuses its base reaches, which was live then or is made of such.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::{
    Doomed, Plan, Stop,
    lost::Lost,
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
    /// List the commits that count, retired ones included, and read what they reach.
    ReadCommits(ReadCommits),
    /// GET fence g+1.
    ReadSuccessor(ReadSuccessor),
    /// This goes.
    Delete(Plan),
    /// Nothing is ripe, or all that is is pinned.
    Nothing,
}

/// See [`Sweep::ListPins`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListPins {
    mine: Generation,
    retired: BTreeSet<CommitRef>,
}

/// See [`Sweep::ReadCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadCommits {
    mine: Generation,
    retired: BTreeSet<CommitRef>,
    /// A careless version has looked at the fence already.
    looked: bool,
}

/// See [`Sweep::ReadSuccessor`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadSuccessor {
    mine: Generation,
    next: Box<Sweep>,
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
        let pinned: BTreeSet<_> = pins.iter().map(|pin| pin.commit.place()).collect();
        retired.retain(|commit| !pinned.contains(&commit.place()));
        if retired.is_empty() {
            return Sweep::Nothing;
        }
        let looked = planted::is(Bug::SweepReadsTheNextFenceTooEarly);
        let next = Sweep::ReadCommits(ReadCommits { mine, retired, looked });
        if looked { Sweep::ReadSuccessor(ReadSuccessor { mine, next: Box::new(next) }) } else { next }
    }
}

impl ReadSuccessor {
    /// Whose fence.
    pub const fn generation(&self) -> Generation {
        self.mine.next()
    }

    /// Whether it stands. If so its base may not list the tombstones, so the commits may count there; and what was read may lack what its owner deleted.
    pub fn answer(self, stands: bool) -> Result<Sweep, Stop> {
        if !stands || planted::is(Bug::SweepWithoutReadingTheNextFence) {
            return Ok(*self.next);
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

/// By key.
type Stage = BTreeMap<String, Doomed>;

impl ReadCommits {
    /// What is swept: read by [`CommitReach::of_retired`].
    pub const fn retired(&self) -> &BTreeSet<CommitRef> {
        &self.retired
    }

    /// Of all commits that count, retired or not, those whose reach must be read by [`CommitReach::of`], or by [`CommitReach::of_broken`] where a manifest is lost: then whatever
    /// it may reach stays. One that was not read stops the sweep.
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
    ) -> Result<Sweep, Stop> {
        check_all_read(&self.live(counted), live)?;
        let keep = reached(live);
        let lost = Lost::among(live, counted, &BTreeSet::new());
        let may_go = |commit: &CommitRef| {
            self.retired.contains(commit) && !lost.as_ref().is_some_and(|lost| lost.covers(commit))
        };
        let inherited: BTreeSet<&str> =
            retired.iter().flat_map(|reach| reach.inherited.keys().map(String::as_str)).collect();
        let (mut data, mut full, mut other, mut commits) = (Stage::new(), Stage::new(), Stage::new(), Vec::new());
        for reach in retired.iter().filter(|reach| may_go(&reach.commit)) {
            let owner = reach.commit.round;
            let doom = |stage: &mut Stage, key: &str, bytes: u64| {
                if !keep.contains(key) && !lost.as_ref().is_some_and(|lost| lost.may_reach(key)) {
                    let doomed = || Doomed { key: key.to_owned(), bytes, owners: Vec::new() };
                    let owners = &mut stage.entry(key.to_owned()).or_insert_with(doomed).owners;
                    // A manifest may be a commit's own and inherited by another part of it.
                    if owners.last() != Some(&owner) {
                        owners.push(owner);
                    }
                }
            };
            for (key, &bytes) in &reach.data {
                doom(&mut data, key, bytes);
            }
            for (key, &bytes) in &reach.manifests {
                doom(if inherited.contains(key.as_str()) { &mut full } else { &mut other }, key, bytes);
            }
            for (key, &bytes) in &reach.inherited {
                doom(&mut full, key, bytes);
            }
            if let Some(bytes) = commit_bytes(reach.commit) {
                commits.push(Doomed { key: reach.commit.key().to_string(), bytes, owners: vec![owner] });
            }
        }
        let all = |stage: Stage| stage.into_values().collect();
        let delete = Sweep::Delete(Plan {
            uploads: Vec::new(),
            data: all(data),
            manifests: all(other),
            inherited: all(full),
            commits,
        });
        if self.looked {
            return Ok(delete);
        }
        Ok(Sweep::ReadSuccessor(ReadSuccessor { mine: self.mine, next: Box::new(delete) }))
    }
}
