//! Somebody who takes the location over, and lists what is retired.

use std::fmt;

use lockstep_protocol::finish::{AtKey, Finish};

use super::{Action, Commits, Garbage, Slot, facts};
use crate::interned::Interned;

/// The base that stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Base {
    pub(super) newest: Option<Slot>,
    pub(super) retired: Commits,
}

/// Where it stands.
#[derive(Clone, Hash)]
pub(super) enum Taker {
    Idle,
    /// Its fence stands.
    Fenced(Interned<Finish>),
    /// Its base does too, and it owns the location.
    Owner(Base),
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Fenced(_) => f.write_str("has its fence"),
            Self::Owner(base) => write!(f, "owns, base {base:?}"),
        }
    }
}

impl Taker {
    pub(super) const fn base(&self) -> Option<Base> {
        match self {
            Self::Owner(base) => Some(*base),
            Self::Idle | Self::Fenced(_) => None,
        }
    }

    pub(super) const fn has_fence(&self) -> bool {
        !matches!(self, Self::Idle)
    }

    pub(super) const fn has_adopted(&self) -> bool {
        matches!(self, Self::Owner(_))
    }

    pub(super) const fn is_over(&self) -> bool {
        !matches!(self, Self::Fenced(_))
    }
}

impl Garbage {
    pub(super) fn taker_actions(&self, actions: &mut Vec<Action>) {
        if self.bounds.taker && !self.taker.has_adopted() {
            actions.push(Action::Take);
        }
    }

    pub(super) fn take(&mut self) {
        let mut next = match self.taker.clone() {
            Taker::Idle => Finish::begin(facts::generation(2)).ok(),
            Taker::Fenced(step) => self.answer((*step).clone()),
            Taker::Owner(_) => None,
        };
        // Its fence stands, its base doesn't, and what was listed needs no second request.
        while let Some(step) = next {
            next = match step {
                Finish::ReadFence(_) | Finish::ReadBase(_) | Finish::ReadTombstones(_) => self.answer(step),
                Finish::Done(base) => {
                    let facts = self.facts();
                    let retired = base.tombstones.iter().filter_map(|listed| {
                        let at = |commit: &&lockstep_protocol::commit::CommitRef| {
                            (commit.generation, commit.seq) == (listed.generation, listed.seq)
                        };
                        facts.commits.iter().find(at).map(|commit| facts.slot(*commit))
                    });
                    let retired = Commits::of(retired);
                    self.taker = Taker::Owner(Base { newest: base.newest.map(|newest| facts.slot(newest)), retired });
                    self.collectors[1].adopt(retired);
                    return;
                }
                other => {
                    self.taker = Taker::Fenced(Interned::new(other));
                    return;
                }
            };
        }
    }

    fn answer(&self, step: Finish) -> Option<Finish> {
        let facts = self.facts();
        Some(match step {
            Finish::ReadFence(read) => read.answer(true).ok()?,
            Finish::ReadBase(read) => read.answer(None),
            Finish::ListRetired(list) => {
                let there = (1..=4).filter(|slot: &Slot| self.tombstones[usize::from(*slot) - 1] > 0);
                list.answer(there.map(|slot| (facts.commit(slot).generation, facts.commit(slot).seq)))
            }
            Finish::ReadTombstones(read) => {
                let there = (1..=4).filter(|slot: &Slot| {
                    read.places().contains(&(facts.commit(*slot).generation, facts.commit(*slot).seq))
                });
                let all: Vec<_> = there
                    .map(|slot| facts::tombstone(facts.commit(slot), self.tombstones[usize::from(slot) - 1]))
                    .collect();
                read.answer(&all)
            }
            Finish::ListCommits(list) => {
                let of_first = self.commits.iter().filter(|slot| !self.is_taken(*slot));
                list.answer(of_first.map(|slot| facts.commit(slot).seq).collect())
            }
            Finish::ReadDecision(read) => {
                let slot =
                    (1..=4).find(|slot| (facts.commit(*slot).generation, facts.commit(*slot).seq) == read.place());
                let there = slot.filter(|slot| self.commits.has(*slot));
                read.answer(there.map_or(AtKey::Swept, |slot| AtKey::Commit(facts.commit(slot))))
            }
            // Lost, late and doubled PUTs of bases are the world of take-overs.
            Finish::Create(create) => Finish::Done(create.base().clone()),
            other @ (Finish::ReadBefore(_) | Finish::FinishBefore(_) | Finish::ReadStanding(_) | Finish::Done(_)) => {
                other
            }
        })
    }
}
