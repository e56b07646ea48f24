//! G3: objects that nothing reaches: what dead attempts, failed rounds and vanished hosts left. Each state of [`Orphans`] names one request, its answer gives the next: keys
//! are listed, *then* the database is read, *then* what commits reach, and *then* fence g+1 read absent: a new owner may have swept commits of which its own still use objects
//! (ADR 12). No clock: what was not listed is not touched.
//!
//! Commits that are retired but not swept yet keep what they reach: what they had goes by the sweep's rules, after pins and the next fence were looked at, not past them (ADR 12).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Doomed, Plan, Stop,
    lost::Lost,
    reach::{CommitReach, check_all_read, reached},
    sweep::fenced,
};
use crate::{
    commit::CommitRef,
    id::{Generation, RoundId},
    key::{AttemptPath, Key},
    planted::{self, Bug},
    problem::{Problem, Reason},
};

/// The next request of a collection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Orphans {
    /// List every key below `host<idx>/` and `solo/`, and open multipart uploads.
    ListKeys(ListKeys),
    /// In one transaction: what the database knows of the rounds that were listed.
    ReadDatabase(ReadDatabase),
    /// List the commits that count, retired ones included, and read what they reach.
    ReadCommits(ReadCommits),
    /// GET fence g+1.
    ReadSuccessor(ReadSuccessor),
    /// This goes.
    Delete(Plan),
}

/// A key as it was listed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListedKey {
    /// Relative to the location's prefix.
    pub key: String,
    /// Bytes.
    pub bytes: u64,
}

/// A multipart upload as it was listed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpenUpload {
    /// Relative to the location's prefix.
    pub key: String,
    /// As the store names it.
    pub upload: String,
}

/// What the database knows of one round.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RoundState {
    /// It may still commit.
    Undecided,
    /// It has committed, or that is not known; it will write nothing more.
    Terminal,
    /// It will write nothing more, and never committed: no commit that counts reaches what it wrote.
    Void,
}

/// What one transaction read, *after* the listing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DatabaseView {
    /// That the pipeline's row holds.
    pub generation: Generation,
    /// The row is fenced.
    pub fenced: bool,
    /// Every round of [`ReadDatabase::rounds`] that it knows.
    pub rounds: BTreeMap<RoundId, RoundState>,
    /// Bases and sources of active rounds in the own location ([`super::in_use`]).
    pub in_use: BTreeSet<CommitRef>,
}

/// See [`Orphans::ListKeys`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListKeys {
    mine: Generation,
    /// A careless version has it before the listing.
    view: Option<DatabaseView>,
}

/// See [`Orphans::ReadDatabase`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadDatabase {
    mine: Generation,
    listed: Option<Vec<(AttemptPath, Doomed)>>,
    uploads: Vec<(AttemptPath, OpenUpload)>,
}

/// See [`Orphans::ReadSuccessor`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadSuccessor {
    mine: Generation,
    plan: Plan,
}

/// See [`Orphans::ReadCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadCommits {
    mine: Generation,
    dead: Vec<Doomed>,
    void: BTreeSet<RoundId>,
    uploads: Vec<OpenUpload>,
    in_use: Vec<CommitRef>,
}

impl Orphans {
    /// A collection by the owner of generation `mine`, whose own base stands.
    pub fn begin(mine: Generation) -> Self {
        if planted::is(Bug::OrphansByDatabaseBeforeListing) {
            return Self::ReadDatabase(ReadDatabase { mine, listed: None, uploads: Vec::new() });
        }
        Self::ListKeys(ListKeys { mine, view: None })
    }
}

/// The attempt that a key belongs to; none: not one of Lockstep's data objects or part manifests, which is left alone.
fn attempt_of(key: &str) -> Option<AttemptPath> {
    match Key::parse(key)? {
        Key::PartManifest(path) | Key::Data(path, _) => Some(path),
        _ => None,
    }
}

impl ListKeys {
    /// Complete listings. A higher generation among them: fenced.
    pub fn answer(self, keys: Vec<ListedKey>, uploads: Vec<OpenUpload>) -> Result<Orphans, Stop> {
        let mine = self.mine;
        let listed: Vec<(AttemptPath, Doomed)> = keys
            .into_iter()
            .filter_map(|key| {
                let path = attempt_of(&key.key)?;
                let owners = vec![path.round];
                Some((path, Doomed { key: key.key, bytes: key.bytes, owners }))
            })
            .collect();
        let uploads: Vec<(AttemptPath, OpenUpload)> =
            uploads.into_iter().filter_map(|upload| Some((attempt_of(&upload.key)?, upload))).collect();
        let paths = listed.iter().map(|(path, _)| path).chain(uploads.iter().map(|(path, _)| path));
        if let Some(newer) = paths.map(|path| path.generation).filter(|&generation| generation > mine).max() {
            return Err(fenced(mine, newer));
        }
        let next = ReadDatabase { mine, listed: Some(listed), uploads };
        match self.view {
            Some(view) => next.answer(view),
            None => Ok(Orphans::ReadDatabase(next)),
        }
    }
}

impl ReadDatabase {
    /// The rounds of the own generation that were listed.
    pub fn rounds(&self) -> BTreeSet<RoundId> {
        let paths = self.listed.iter().flatten().map(|(path, _)| path).chain(self.uploads.iter().map(|(path, _)| path));
        paths.filter(|path| path.generation == self.mine).map(|path| path.round).collect()
    }

    /// What the database knows. A round of the own generation that it doesn't know: it is behind the bucket, and nobody can say what is dead.
    pub fn answer(self, view: DatabaseView) -> Result<Orphans, Stop> {
        let mine = self.mine;
        if view.fenced || view.generation != mine {
            return Err(fenced(mine, view.generation.max(mine.next())));
        }
        let Some(listed) = self.listed else {
            return Ok(Orphans::ListKeys(ListKeys { mine, view: Some(view) }));
        };
        let dead = |path: &AttemptPath| match view.rounds.get(&path.round) {
            Some(RoundState::Undecided) => Ok(false),
            Some(RoundState::Terminal | RoundState::Void) => Ok(true),
            // A round of an older generation can't commit any more: the base of this one stands.
            None if path.generation < mine => Ok(true),
            None => Err(behind(path)),
        };
        let mut keys = Vec::new();
        for (path, key) in listed {
            if dead(&path)? {
                keys.push(key);
            }
        }
        let mut uploads = Vec::new();
        for (path, upload) in self.uploads {
            if dead(&path)? {
                uploads.push(upload);
            }
        }
        let void =
            view.rounds.iter().filter(|(_, state)| **state == RoundState::Void).map(|(round, _)| *round).collect();
        let in_use = view.in_use.into_iter().collect();
        Ok(Orphans::ReadCommits(ReadCommits { mine, dead: keys, void, uploads, in_use }))
    }
}

fn behind(path: &AttemptPath) -> Stop {
    Problem::new(
        Reason::DatabaseBehind,
        format!(
            "round {} of generation {} has objects in the location and no row: the database is behind the bucket; resync the pipeline",
            path.round, path.generation
        ),
    )
    .with("round", path.round)
    .with("generation", path.generation)
    .into()
}

impl ReadCommits {
    /// What goes. `counted`: every commit that counts, retired or not. `reach`: what each of them reaches; of a retired one by [`CommitReach::of_retired`], of one with a lost manifest
    /// by [`CommitReach::of_broken`]: then whatever it may reach stays.
    pub fn answer(self, counted: &[CommitRef], reach: &[CommitReach]) -> Result<Orphans, Stop> {
        check_all_read(counted, reach)?;
        check_all_read(&self.in_use, reach)?;
        let keep = reached(reach);
        let lost = Lost::among(reach, counted, &self.void);
        let mut plan = Plan { uploads: self.uploads, ..Plan::default() };
        for doomed in self.dead {
            if keep.contains(doomed.key.as_str()) || lost.as_ref().is_some_and(|lost| lost.may_reach(&doomed.key)) {
                continue;
            }
            let is_data = matches!(Key::parse(&doomed.key), Some(Key::Data(..)));
            if is_data { plan.data.push(doomed) } else { plan.manifests.push(doomed) }
        }
        if planted::is(Bug::OrphansWithoutReadingTheNextFence) {
            return Ok(Orphans::Delete(plan));
        }
        Ok(Orphans::ReadSuccessor(ReadSuccessor { mine: self.mine, plan }))
    }
}

impl ReadSuccessor {
    /// Whose fence.
    pub const fn generation(&self) -> Generation {
        self.mine.next()
    }

    /// Whether it stands.
    pub fn answer(self, stands: bool) -> Result<Orphans, Stop> {
        if stands { Err(fenced(self.mine, self.mine.next())) } else { Ok(Orphans::Delete(self.plan)) }
    }
}
