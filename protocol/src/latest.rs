//! F2 step by step: which checkpoints of a location count, newest first. Each state of [`Look`] names one request, its answer gives the next state.
//!
//! First the highest fence h; then its base, finished on the way where the caller may write, else `TAKE_OVER_IN_PROGRESS`; then the commits of h without retired
//! and damaged ones, and those that its base names, generation by generation; and only then whether fence h+1 exists, and if so all over again.
//!
//! What was visited holds only once the look is [`Look::Done`]; whenever it is [`Look::ListFences`] again, it is to be forgotten.

use std::collections::BTreeSet;

use crate::{
    commit::CommitRef,
    fence::FenceBase,
    finish::Finish,
    id::{Generation, Seq},
    planted::{self, Bug},
    problem::{Problem, Reason},
    tombstone::Tombstone,
};

/// Whether the reader may finish a base that a dead taker left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A location that the caller owns or follows as its own: F3 is done on the way.
    Own,
    /// A foreign or read-only location is never written (G5): there an open take-over is `TAKE_OVER_IN_PROGRESS`.
    ReadOnly,
}

/// A take-over that lands between two looks makes a reader start over (F2 step 4); this many in one call are no accident.
const LOOKS: u8 = 8;

/// The next request of a reader.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Look {
    /// List `fences/`.
    ListFences(ListFences),
    /// GET the base of the highest fence.
    ReadBase(ReadBase),
    /// It is missing, and the caller may write: finish it (F3).
    FinishBase(FinishBase),
    /// List the decisions of a generation.
    ListCommits(ListCommits),
    /// List tombstones and damage marks of a generation.
    ListMarks(ListMarks),
    /// GET some tombstones, to see whether they count.
    ReadTombstones(ReadTombstones),
    /// GET decisions, newest first, until what is looked for is found.
    ReadCommits(ReadCommits),
    /// GET the base of exactly the generation that follows the one which is looked at next.
    ReadFollowing(ReadFollowing),
    /// GET the base of the generation which is looked at next.
    ReadOwnBase(ReadOwnBase),
    /// GET fence h+1.
    ReadSuccessor(ReadSuccessor),
    /// Nothing came in between: what was visited holds.
    Done,
}

/// What all states after the first know.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct At {
    access: Access,
    looks: u8,
    highest: Generation,
    /// Of the highest generation.
    base: Option<FenceBase>,
}

/// See [`Look::ListFences`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListFences {
    access: Access,
    looks: u8,
}

/// See [`Look::ReadBase`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadBase {
    at: At,
}

/// See [`Look::FinishBase`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FinishBase {
    at: At,
    begin: Finish,
}

/// One generation that is looked at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Part {
    at: At,
    generation: Generation,
    /// Of that generation.
    base: Option<FenceBase>,
    /// The last commit of it that counts; none in the highest generation, where all do.
    last: Option<CommitRef>,
}

/// See [`Look::ListCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListCommits {
    part: Part,
}

/// See [`Look::ListMarks`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListMarks {
    part: Part,
    /// Rising.
    seqs: Vec<Seq>,
}

/// See [`Look::ReadTombstones`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadTombstones {
    part: Part,
    seqs: Vec<Seq>,
    unknown: Vec<Seq>,
    damaged: BTreeSet<Seq>,
}

/// See [`Look::ReadCommits`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadCommits {
    part: Part,
    /// Falling.
    seqs: Vec<Seq>,
    damaged: BTreeSet<Seq>,
}

/// See [`Look::ReadFollowing`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadFollowing {
    at: At,
    /// The generation whose base named it.
    by: Generation,
    named: CommitRef,
}

/// See [`Look::ReadOwnBase`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadOwnBase {
    at: At,
    last: CommitRef,
}

/// See [`Look::ReadSuccessor`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadSuccessor {
    at: At,
    /// The newest decision that was listed in the highest generation.
    listed: Option<CommitRef>,
}

impl Look {
    /// A look at a location.
    pub const fn begin(access: Access) -> Self {
        Self::ListFences(ListFences { access, looks: 0 })
    }
}

/// The highest of the fences that a listing shows; none: nobody owned the location ever.
pub fn highest_fence(fences: impl IntoIterator<Item = Generation>) -> Result<Option<Generation>, Problem> {
    let fences: BTreeSet<Generation> = fences.into_iter().collect();
    let Some(&highest) = fences.last() else { return Ok(None) };
    // Fences are contiguous and never deleted: a gap means that somebody else deletes here, or that the listing lies.
    if fences.first() != Some(&Generation::FIRST) || u64::try_from(fences.len()) != Ok(highest.get()) {
        return Err(Problem::new(
            Reason::LocationUnsuitable,
            format!("the location has {} fences, the highest is {highest}: one is missing", fences.len()),
        )
        .with("fences", fences.len())
        .with("highest", highest));
    }
    Ok(Some(highest))
}

/// A fence stands without its base: what counts is not known.
pub fn take_over_in_progress(generation: Generation) -> Problem {
    Problem::new(
        Reason::TakeOverInProgress,
        format!("the location is being taken over: generation {generation} has no base yet"),
    )
    .with("generation", generation)
}

impl ListFences {
    /// Every fence there is.
    pub fn answer(self, fences: impl IntoIterator<Item = Generation>) -> Result<Look, Problem> {
        let Some(highest) = highest_fence(fences)? else { return Ok(Look::Done) };
        if self.looks >= LOOKS {
            return Err(take_over_in_progress(highest));
        }
        let at = At { access: self.access, looks: self.looks + 1, highest, base: None };
        Ok(if highest == Generation::FIRST { at.newest(None) } else { Look::ReadBase(ReadBase { at }) })
    }
}

impl At {
    fn newest(self, base: Option<FenceBase>) -> Look {
        let at = Self { base: base.clone(), ..self };
        Look::ListCommits(ListCommits { part: Part { generation: at.highest, base, last: None, at } })
    }

    fn second_look(self, listed: Option<CommitRef>) -> Look {
        if planted::is(Bug::ReaderWithoutSecondLook) {
            return Look::Done;
        }
        Look::ReadSuccessor(ReadSuccessor { at: self, listed })
    }
}

impl ReadBase {
    /// Whose base.
    pub const fn generation(&self) -> Generation {
        self.at.highest
    }

    /// What stands. Without a base nothing is known, least of all what an older generation says.
    pub fn answer(self, base: Option<FenceBase>) -> Result<Look, Problem> {
        let at = self.at;
        match base {
            Some(base) => Ok(at.newest(Some(base))),
            None if at.access == Access::Own => {
                Ok(Look::FinishBase(FinishBase { begin: Finish::begin(at.highest)?, at }))
            }
            None => Err(take_over_in_progress(at.highest)),
        }
    }
}

impl FinishBase {
    /// How.
    pub fn begin(&self) -> Finish {
        self.begin.clone()
    }

    /// Whose base.
    pub const fn generation(&self) -> Generation {
        self.at.highest
    }

    /// The base that stands now.
    pub fn answer(self, base: FenceBase) -> Look {
        self.at.newest(Some(base))
    }
}

impl ListCommits {
    /// Of which generation.
    pub const fn generation(&self) -> Generation {
        self.part.generation
    }

    /// Seqs that have a decision.
    pub fn answer(self, mut seqs: Vec<Seq>) -> Look {
        seqs.sort_unstable();
        if let Some(last) = self.part.last {
            seqs.retain(|&seq| seq <= last.seq);
        }
        let next = ListMarks { part: self.part, seqs };
        if next.seqs.is_empty() { next.answer([], []) } else { Look::ListMarks(next) }
    }
}

impl ListMarks {
    /// Of which generation.
    pub const fn generation(&self) -> Generation {
        self.part.generation
    }

    /// The seq before the oldest decision: tombstones are never deleted, so there may be any number of older ones.
    pub fn after(&self) -> Seq {
        self.seqs.first().copied().unwrap_or(Seq::FIRST).before()
    }

    /// Seqs that have a tombstone, and those that have a damage mark.
    pub fn answer(self, retired: impl IntoIterator<Item = Seq>, damaged: impl IntoIterator<Item = Seq>) -> Look {
        let Self { part, mut seqs } = self;
        let mut retired: BTreeSet<Seq> = retired.into_iter().collect();
        let damaged = damaged.into_iter().collect();
        retired.retain(|seq| seqs.binary_search(seq).is_ok());
        if part.generation == part.at.highest || retired.is_empty() {
            // In the highest generation only its own owner can have written it.
            seqs.retain(|seq| !retired.contains(seq));
            seqs.reverse();
            return ReadCommits { part, seqs, damaged }.begin();
        }
        Look::ReadTombstones(ReadTombstones { part, seqs, unknown: retired.into_iter().collect(), damaged })
    }
}

impl ReadTombstones {
    /// Of which generation.
    pub const fn generation(&self) -> Generation {
        self.part.generation
    }

    /// Which ones.
    pub fn wanted(&self) -> &[Seq] {
        &self.unknown
    }

    /// All of them.
    pub fn answer(self, read: &[Tombstone]) -> Look {
        let Self { part, mut seqs, damaged, .. } = self;
        let counts = |tombstone: &&Tombstone| tombstone.counts(part.at.highest, part.at.base.as_ref());
        let retired: BTreeSet<Seq> = read.iter().filter(counts).map(|tombstone| tombstone.commit.seq).collect();
        seqs.retain(|seq| !retired.contains(seq));
        seqs.reverse();
        ReadCommits { part, seqs, damaged }.begin()
    }
}

impl ReadCommits {
    fn begin(self) -> Look {
        if self.seqs.is_empty() { self.exhausted() } else { Look::ReadCommits(self) }
    }

    /// Of which generation.
    pub const fn generation(&self) -> Generation {
        self.part.generation
    }

    /// Which ones, newest first.
    pub fn seqs(&self) -> &[Seq] {
        &self.seqs
    }

    /// Whether a commit bears a damage mark: no base, not `latest`.
    pub fn is_damaged(&self, seq: Seq) -> bool {
        self.damaged.contains(&seq) && !planted::is(Bug::MarkedIsLatest)
    }

    /// The commit that a base names must be the very one.
    pub fn check(&self, commit: &CommitRef) -> Result<(), Problem> {
        match self.part.last {
            Some(last) if last.seq == commit.seq && last.digest != commit.digest => Err(Problem::new(
                Reason::CheckpointDamaged,
                format!(
                    "{} has digest {}, the base of the next generation says {}",
                    last.key(),
                    commit.digest,
                    last.digest
                ),
            )
            .with("key", last.key())
            .with("found", commit.digest)
            .with("expected", last.digest)),
            _ => Ok(()),
        }
    }

    /// What was looked for is found.
    pub fn found(self, commit: CommitRef) -> Look {
        self.part.at.second_look(Some(commit))
    }

    /// It is none of these: on to what the base of this generation names.
    pub fn exhausted(self) -> Look {
        let Part { at, generation: by, base, .. } = self.part;
        match base.and_then(|base| base.newest) {
            None => at.second_look(None),
            Some(named) if named.generation.next() == by => ReadOwnBase { at, last: named }.begin(),
            Some(named) => Look::ReadFollowing(ReadFollowing { at, by, named }),
        }
    }
}

impl ReadFollowing {
    /// F1: what counts of the generation that a base names is said by the base of exactly the following generation.
    pub const fn generation(&self) -> Generation {
        self.named.generation.next()
    }

    /// What stands.
    pub fn answer(self, base: Option<FenceBase>) -> Result<Look, Problem> {
        let Self { at, by, named } = self;
        match base.and_then(|base| base.newest).filter(|newest| newest.generation == named.generation) {
            Some(last) => Ok(ReadOwnBase { at, last }.begin()),
            None => Err(Problem::new(
                Reason::ManifestInvalid,
                format!(
                    "base {by} names commit {}-{}, base {} does not",
                    named.generation,
                    named.seq,
                    named.generation.next()
                ),
            )
            .with("generation", named.generation)
            .with("seq", named.seq)),
        }
    }
}

impl ReadOwnBase {
    /// The first generation has no base to read.
    fn begin(self) -> Look {
        if self.last.generation <= Generation::FIRST { self.answer(None) } else { Look::ReadOwnBase(self) }
    }

    /// Whose base.
    pub const fn generation(&self) -> Generation {
        self.last.generation
    }

    /// What stands; generation 1 has none.
    pub fn answer(self, base: Option<FenceBase>) -> Look {
        let Self { at, last } = self;
        Look::ListCommits(ListCommits { part: Part { at, generation: last.generation, base, last: Some(last) } })
    }
}

impl ReadSuccessor {
    /// Whose fence: a fence that came before the listing would have made it incomplete.
    pub const fn generation(&self) -> Generation {
        self.at.highest.next()
    }

    /// Whether it stands.
    pub fn answer(self, stands: bool) -> Look {
        let Self { at, listed } = self;
        if !stands {
            return Look::Done;
        }
        if planted::is(Bug::BaseFromOldListing) && at.access == Access::Own {
            let begin = Finish::from_old_listing(at.highest.next(), listed);
            return Look::FinishBase(FinishBase { at: At { highest: at.highest.next(), ..at }, begin });
        }
        Look::ListFences(ListFences { access: at.access, looks: at.looks })
    }
}
