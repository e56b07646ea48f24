//! F3 step by step: whoever meets a fence without its base in its *own* location finishes it. Each state of [`Finish`] names one request; its answer gives the
//! next state, so nobody can list before the fence was seen. An answer that is not known ends the try: [`Finish::begin`] again, as often as it takes.
//!
//! The base is created with what was listed *after* the fence was seen, and what then stands is obeyed, not the own value: several may finish one base.

use crate::{
    commit::CommitRef,
    fence::{FenceBase, TombstoneRef},
    id::{Generation, Seq},
    planted::{self, Bug},
    problem::{Problem, Reason},
    tombstone::Tombstone,
};

/// The next request of somebody who finishes a base.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Finish {
    /// GET the fence.
    ReadFence(ReadFence),
    /// GET its base: it may stand already.
    ReadBase(ReadBase),
    /// GET the base of the generation before.
    ReadBefore(ReadBefore),
    /// The generation before has no base either: finish that one first.
    FinishBefore(ReadBefore),
    /// List all tombstones.
    ListRetired(ListRetired),
    /// GET some of them.
    ReadTombstones(ReadTombstones),
    /// List the decisions of the generation before.
    ListCommits(ListCommits),
    /// GET one of them.
    ReadDecision(ReadDecision),
    /// Create-only PUT of the base.
    Create(Create),
    /// GET the base, whatever the PUT was answered.
    ReadStanding(ReadStanding),
    /// It stands.
    Done(FenceBase),
}

/// What one decision key holds for whoever looks for the newest commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AtKey {
    /// A commit; retired and damaged ones included: F1 asks for neither.
    Commit(CommitRef),
    /// An abort record.
    Abort,
    /// It was listed, is absent now and has a tombstone: swept in between.
    Swept,
}

/// See [`Finish::ReadFence`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadFence {
    generation: Generation,
}

/// See [`Finish::ReadBase`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadBase {
    generation: Generation,
}

/// See [`Finish::ReadBefore`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadBefore {
    generation: Generation,
}

/// See [`Finish::ListRetired`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListRetired {
    generation: Generation,
    before: Option<FenceBase>,
}

/// See [`Finish::ReadTombstones`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadTombstones {
    generation: Generation,
    before: Option<FenceBase>,
    unknown: Vec<(Generation, Seq)>,
}

/// See [`Finish::ListCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListCommits {
    generation: Generation,
    before: Option<CommitRef>,
    tombstones: Vec<TombstoneRef>,
}

/// See [`Finish::ReadDecision`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadDecision {
    generation: Generation,
    before: Option<CommitRef>,
    tombstones: Vec<TombstoneRef>,
    /// Rising; the last is read next.
    seqs: Vec<Seq>,
    seq: Seq,
}

/// See [`Finish::Create`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Create {
    base: FenceBase,
}

/// See [`Finish::ReadStanding`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadStanding {
    generation: Generation,
}

impl Finish {
    /// The base of generation 2 or above.
    pub fn begin(generation: Generation) -> Result<Self, Problem> {
        if generation <= Generation::FIRST {
            return Err(Problem::new(Reason::SpecInvalid, format!("generation {generation} has no base"))
                .with("generation", generation));
        }
        if planted::is(Bug::TakerListsBeforeItsFence) {
            return Ok(Self::ReadBefore(ReadBefore { generation }));
        }
        Ok(Self::ReadFence(ReadFence { generation }))
    }

    /// A careless version: from decisions that were listed before the fence was seen.
    pub(crate) fn from_old_listing(generation: Generation, newest: Option<CommitRef>) -> Self {
        Self::Create(Create { base: FenceBase { generation, newest, tombstones: Vec::new() } })
    }
}

impl ReadFence {
    /// Whose fence.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether it stands.
    pub fn answer(self, stands: bool) -> Result<Finish, Problem> {
        let generation = self.generation;
        if stands {
            return Ok(Finish::ReadBase(ReadBase { generation }));
        }
        Err(Problem::new(
            Reason::TakeOverInProgress,
            format!("there is no fence {generation} yet, so its base can't be written"),
        )
        .with("generation", generation))
    }
}

impl ReadBase {
    /// Whose base.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// What stands.
    pub fn answer(self, base: Option<FenceBase>) -> Finish {
        let generation = self.generation;
        match base {
            Some(base) => Finish::Done(base),
            None if generation.before() == Generation::FIRST => {
                Finish::ListRetired(ListRetired { generation, before: None })
            }
            None => Finish::ReadBefore(ReadBefore { generation }),
        }
    }
}

impl ReadBefore {
    /// Whose base is needed.
    pub const fn generation(&self) -> Generation {
        self.generation.before()
    }

    /// What stands. A taker makes sure of it before its own fence; without it nothing of the generation before is decided.
    pub fn answer(self, base: Option<FenceBase>) -> Finish {
        let generation = self.generation;
        match base {
            None if generation.before() > Generation::FIRST => Finish::FinishBefore(self),
            before => Finish::ListRetired(ListRetired { generation, before }),
        }
    }
}

impl ListRetired {
    /// Every key in `retired/`, by the commit it retires. Those that the base before lists needn't be read again.
    pub fn answer(self, listed: impl IntoIterator<Item = (Generation, Seq)>) -> Finish {
        let Self { generation, before } = self;
        let known = before.iter().flat_map(|base| &base.tombstones).map(|known| (known.generation, known.seq));
        let known: std::collections::BTreeSet<_> = known.collect();
        let unknown: Vec<_> = listed.into_iter().filter(|place| !known.contains(place)).collect();
        let next = ReadTombstones { generation, before, unknown };
        if next.unknown.is_empty() { next.answer(&[]) } else { Finish::ReadTombstones(next) }
    }
}

impl ReadTombstones {
    /// Which ones.
    pub fn places(&self) -> &[(Generation, Seq)] {
        &self.unknown
    }

    /// All of them. Those count that the owner of the generation before wrote; late ones of earlier owners don't (ADR 6).
    pub fn answer(self, read: &[Tombstone]) -> Finish {
        let owner = self.generation.before();
        let counts =
            |tombstone: &&Tombstone| tombstone.retired_in >= owner || planted::is(Bug::TombstoneOfFencedOwnerCounts);
        let mut tombstones = self.before.as_ref().map(|base| base.tombstones.clone()).unwrap_or_default();
        tombstones.extend(read.iter().filter(counts).map(Tombstone::reference));
        tombstones.sort_unstable();
        let before = self.before.and_then(|base| base.newest);
        Finish::ListCommits(ListCommits { generation: self.generation, before, tombstones })
    }
}

impl ListCommits {
    /// Of which generation.
    pub const fn generation(&self) -> Generation {
        self.generation.before()
    }

    /// Seqs that have a decision.
    pub fn answer(self, mut seqs: Vec<Seq>) -> Finish {
        seqs.sort_unstable();
        let Self { generation, before, tombstones } = self;
        next_decision(generation, before, tombstones, seqs)
    }
}

fn next_decision(
    generation: Generation,
    before: Option<CommitRef>,
    tombstones: Vec<TombstoneRef>,
    mut seqs: Vec<Seq>,
) -> Finish {
    match seqs.pop() {
        Some(seq) => Finish::ReadDecision(ReadDecision { generation, before, tombstones, seqs, seq }),
        // Nothing was committed in that generation: what it started from is still the newest.
        None => {
            let newest = if planted::is(Bug::EmptyGenerationEndsTheChain) { None } else { before };
            Finish::Create(Create { base: FenceBase { generation, newest, tombstones } })
        }
    }
}

impl ReadDecision {
    /// Which one.
    pub const fn place(&self) -> (Generation, Seq) {
        (self.generation.before(), self.seq)
    }

    /// What its key holds.
    pub fn answer(self, found: AtKey) -> Finish {
        let Self { generation, before, tombstones, seqs, .. } = self;
        match found {
            AtKey::Commit(newest) => {
                Finish::Create(Create { base: FenceBase { generation, newest: Some(newest), tombstones } })
            }
            AtKey::Abort | AtKey::Swept => next_decision(generation, before, tombstones, seqs),
        }
    }
}

impl Create {
    /// To be put at its key if nothing stands there.
    pub const fn base(&self) -> &FenceBase {
        &self.base
    }

    /// The PUT was answered, or not: only reading tells what stands.
    pub fn sent(self) -> Finish {
        Finish::ReadStanding(ReadStanding { generation: self.base.generation })
    }
}

impl ReadStanding {
    /// Whose base.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// What stands; none: the PUT is under way or lost, so all is listed again.
    pub fn answer(self, base: Option<FenceBase>) -> Finish {
        match base {
            Some(base) => Finish::Done(base),
            None => Finish::ReadFence(ReadFence { generation: self.generation }),
        }
    }
}
