//! What stands at the places of the chain, and what a look for one checkpoint makes of them.

use lockstep_protocol::{
    commit::CommitRef,
    problem::{Problem, Reason},
};

use super::{Checkpoint, Next, Selector};
use crate::store::ObjectStore;

/// A commit that counts and is not retired, and can't be read: its key holds bytes that are no decision, or others than the base of the next generation names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its place, the digest of what is there, and an id that stands in for its round.
    pub commit: CommitRef,
    /// Why, with the key.
    pub problem: Problem,
    /// It bears a mark: somebody has given it up.
    pub damaged: bool,
}

impl Unreadable {
    /// The answer to whoever looked for something that may be this one.
    pub(super) fn in_the_way(&self, store: &dyn ObjectStore, what: &str) -> Problem {
        let CommitRef { generation, seq, .. } = self.commit;
        let (way_out, damaged) = if self.damaged {
            ("it is marked damaged; name another one by its id or step".to_owned(), " is marked damaged and")
        } else {
            (
                format!(
                    "name another one by its id or step (checkpoint list shows them), bring the document back, or give it up: checkpoint verify PIPELINE \
                     {generation}-{seq} marks it damaged, and then it is passed over"
                ),
                "",
            )
        };
        let location = store.location();
        let mut problem = self.problem.clone();
        problem.message = format!(
            "{location}: {what} {generation}-{seq}, which{damaged} can't be read: {}; {way_out}",
            self.problem.message
        );
        if self.damaged {
            problem.reason = Reason::CheckpointDamaged;
        }
        problem.with("location", location)
    }
}

/// What stands at a place of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A checkpoint.
    Whole(Box<Checkpoint>),
    /// It counts, and nobody can tell what it is.
    Unreadable(Box<Unreadable>),
}

impl Entry {
    /// Its place and digest.
    pub const fn commit(&self) -> CommitRef {
        match self {
            Self::Whole(checkpoint) => checkpoint.commit,
            Self::Unreadable(unreadable) => unreadable.commit,
        }
    }

    /// Whether it bears a mark.
    pub const fn damaged(&self) -> bool {
        match self {
            Self::Whole(checkpoint) => checkpoint.damaged,
            Self::Unreadable(unreadable) => unreadable.damaged,
        }
    }

    /// The checkpoint, or why there is none.
    pub fn whole(self) -> Result<Checkpoint, Problem> {
        match self {
            Self::Whole(checkpoint) => Ok(*checkpoint),
            Self::Unreadable(unreadable) => Err(unreadable.problem),
        }
    }
}

/// What a look for one checkpoint has come by, newest first.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) found: Option<Entry>,
    /// Marked, and fits.
    pub(super) damaged: Option<CommitRef>,
    /// Can't be read, and may be the one if nothing else is.
    pub(super) instead: Option<Unreadable>,
}

impl Seen {
    pub(super) fn visit(&mut self, selector: Selector, entry: Entry) -> Next {
        let commit = entry.commit();
        let named = match selector {
            Selector::Round(round) => commit.round == round,
            Selector::Place(generation, seq) => (commit.generation, commit.seq) == (generation, seq),
            Selector::Latest | Selector::Step(_) | Selector::Time(_) => false,
        };
        if named {
            self.found = Some(entry);
            return Next::Stop;
        }
        match entry {
            Entry::Unreadable(unreadable) => self.passed(selector, *unreadable),
            Entry::Whole(checkpoint) => {
                let fits = match selector {
                    Selector::Latest => true,
                    Selector::Step(step) => checkpoint.document.step == step,
                    Selector::Time(time) => checkpoint.document.created_at <= time,
                    Selector::Round(_) | Selector::Place(..) => false,
                };
                if !fits {
                    // What is newer than this one was created later: too late as well.
                    if matches!(selector, Selector::Time(_)) {
                        self.instead = None;
                    }
                    return Next::Go;
                }
                if checkpoint.damaged {
                    self.damaged.get_or_insert(commit);
                    return Next::Go;
                }
                // The newest before a time: one that can't be read may be newer still and before it. A step is what was asked for, whichever commit has it.
                let older =
                    self.instead.as_ref().is_some_and(|one| !one.damaged) && matches!(selector, Selector::Time(_));
                if !older {
                    self.found = Some(Entry::Whole(checkpoint));
                }
                Next::Stop
            }
        }
    }

    fn passed(&mut self, selector: Selector, unreadable: Unreadable) -> Next {
        if matches!(selector, Selector::Place(..)) {
            return Next::Go;
        }
        // One that nobody has given up comes first: it is what somebody must see to.
        let stays = self.instead.as_ref().is_some_and(|known| !known.damaged || unreadable.damaged);
        let newest = selector == Selector::Latest && !unreadable.damaged;
        if !stays {
            self.instead = Some(unreadable);
        }
        // Whatever is older is no latest.
        if newest { Next::Stop } else { Next::Go }
    }
}

pub(super) fn all_damaged(store: &dyn ObjectStore, commit: &CommitRef) -> Problem {
    Problem::new(
        Reason::CheckpointDamaged,
        format!(
            "{}: every checkpoint that fits is marked damaged, the newest of them is {} ({}-{})",
            store.location(),
            commit.round,
            commit.generation,
            commit.seq
        ),
    )
    .with("location", store.location())
    .with("checkpoint", commit.round)
    .with("generation", commit.generation)
    .with("seq", commit.seq)
}
