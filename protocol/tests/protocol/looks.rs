//! F2 and F3 request by request, over a location that is a few sets.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::FenceBase,
    finish::{AtKey, Finish},
    id::{Generation, PipelineId, RoundId, Seq},
    latest::{Access, Look},
    problem::{Problem, Reason},
    tombstone::Tombstone,
};
use proptest::prelude::*;

use crate::sample::{time, uuid};

fn generation(g: u64) -> Generation {
    Generation::new(g).unwrap()
}

fn seq(s: u64) -> Seq {
    Seq::new(s).unwrap()
}

fn commit(g: u64, s: u64) -> CommitRef {
    CommitRef {
        generation: generation(g),
        seq: seq(s),
        round: RoundId::new(uuid(u128::from(g * 100 + s))),
        digest: Digest::of(&[1]),
    }
}

fn tombstone(g: u64, s: u64, retired_in: u64) -> Tombstone {
    Tombstone {
        pipeline: PipelineId::new(uuid(1)),
        commit: commit(g, s),
        retired_in: generation(retired_in),
        retired_at: time(0),
    }
}

#[derive(Clone, Default, Debug)]
struct Place {
    fences: u64,
    bases: BTreeMap<u64, FenceBase>,
    /// None: an abort record.
    decisions: BTreeMap<(u64, u64), Option<CommitRef>>,
    tombstones: BTreeMap<(u64, u64), Tombstone>,
    damaged: BTreeSet<(u64, u64)>,
}

impl Place {
    fn fence(&mut self) -> u64 {
        self.fences += 1;
        self.fences
    }

    fn commit(&mut self, g: u64, s: u64) {
        self.decisions.insert((g, s), Some(commit(g, s)));
    }

    fn seqs(&self, g: Generation) -> Vec<Seq> {
        self.decisions.keys().filter(|(of, _)| *of == g.get()).map(|(_, s)| seq(*s)).collect()
    }

    fn base(&self, g: Generation) -> Option<FenceBase> {
        self.bases.get(&g.get()).cloned()
    }

    fn at_key(&self, (g, s): (Generation, Seq)) -> AtKey {
        match self.decisions.get(&(g.get(), s.get())) {
            Some(Some(commit)) => AtKey::Commit(*commit),
            Some(None) => AtKey::Abort,
            None => AtKey::Swept,
        }
    }

    fn finish(&mut self, mut step: Finish) -> Result<FenceBase, Problem> {
        loop {
            step = match step {
                Finish::ReadFence(read) => {
                    let stands = read.generation().get() <= self.fences;
                    read.answer(stands)?
                }
                Finish::ReadBase(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)
                }
                Finish::ReadBefore(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)
                }
                Finish::FinishBefore(read) => {
                    let base = self.finish(Finish::begin(read.generation())?)?;
                    read.answer(Some(base))
                }
                Finish::ListRetired(list) => {
                    list.answer(self.tombstones.keys().map(|(g, s)| (generation(*g), seq(*s))))
                }
                Finish::ReadTombstones(read) => {
                    let places: Vec<_> = read.places().iter().map(|(g, s)| (g.get(), s.get())).collect();
                    let all: Vec<Tombstone> = places.iter().map(|place| self.tombstones[place].clone()).collect();
                    read.answer(&all)
                }
                Finish::ListCommits(list) => {
                    let seqs = self.seqs(list.generation());
                    list.answer(seqs)
                }
                Finish::ReadDecision(read) => {
                    let found = self.at_key(read.place());
                    read.answer(found)
                }
                Finish::Create(create) => {
                    let base = create.base().clone();
                    self.bases.entry(base.generation.get()).or_insert(base);
                    create.sent()
                }
                Finish::ReadStanding(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)
                }
                Finish::Done(base) => return Ok(base),
            };
        }
    }

    /// Everything that counts, newest first, damaged ones included; `before_second_look` happens once.
    fn look(
        &mut self,
        access: Access,
        mut before_second_look: Option<fn(&mut Self)>,
    ) -> Result<Vec<CommitRef>, Problem> {
        let mut look = Look::begin(access);
        let mut seen = Vec::new();
        loop {
            look = match look {
                Look::ListFences(list) => {
                    seen.clear();
                    list.answer((1..=self.fences).map(generation))?
                }
                Look::ReadBase(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)?
                }
                Look::FinishBase(missing) => {
                    let base = self.finish(missing.begin())?;
                    missing.answer(base)
                }
                Look::ListCommits(list) => {
                    let seqs = self.seqs(list.generation());
                    list.answer(seqs)
                }
                Look::ListMarks(list) => {
                    let (g, after) = (list.generation().get(), list.after().get());
                    let of = |(at, s): &(u64, u64)| (*at == g && *s > after).then(|| seq(*s));
                    list.answer(self.tombstones.keys().filter_map(of), self.damaged.iter().filter_map(of))
                }
                Look::ReadTombstones(read) => {
                    let g = read.generation().get();
                    let all: Vec<Tombstone> =
                        read.wanted().iter().map(|s| self.tombstones[&(g, s.get())].clone()).collect();
                    read.answer(&all)
                }
                Look::ReadCommits(read) => {
                    for s in read.seqs() {
                        if let AtKey::Commit(commit) = self.at_key((read.generation(), *s)) {
                            read.check(&commit)?;
                            seen.push(commit);
                        }
                    }
                    read.exhausted()
                }
                Look::ReadFollowing(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)?
                }
                Look::ReadOwnBase(read) => {
                    let base = self.base(read.generation());
                    read.answer(base)
                }
                Look::ReadSuccessor(read) => {
                    if let Some(happens) = before_second_look.take() {
                        happens(self);
                    }
                    let stands = read.generation().get() <= self.fences;
                    read.answer(stands)
                }
                Look::Done => return Ok(seen),
            };
        }
    }
}

#[test]
fn an_empty_location_holds_nothing() {
    assert_eq!(Place::default().look(Access::ReadOnly, None), Ok(Vec::new()));
}

#[test]
fn an_open_take_over_is_finished_or_unknown_never_an_older_generation() {
    let mut place = Place::default();
    place.fence();
    place.commit(1, 1);
    place.fence();
    let refused = place.look(Access::ReadOnly, None).unwrap_err();
    assert_eq!(refused.reason, Reason::TakeOverInProgress);
    assert_eq!(place.look(Access::Own, None), Ok(vec![commit(1, 1)]));
    // What lands after the base doesn't count any more.
    place.commit(1, 2);
    assert_eq!(place.look(Access::ReadOnly, None), Ok(vec![commit(1, 1)]));
}

#[test]
fn a_fence_that_came_in_between_starts_it_over() {
    let mut place = Place::default();
    place.fence();
    place.commit(1, 1);
    let taken = |place: &mut Place| {
        place.commit(1, 2);
        place.fence();
        place.finish(Finish::begin(generation(2)).unwrap()).unwrap();
        place.commit(2, 1);
    };
    assert_eq!(place.look(Access::ReadOnly, Some(taken)), Ok(vec![commit(2, 1), commit(1, 2), commit(1, 1)]));
}

#[test]
fn a_location_that_is_taken_over_without_end_is_given_up() {
    fn again(place: &mut Place) {
        place.fence();
    }
    let mut place = Place::default();
    place.fence();
    let mut look = Look::begin(Access::Own);
    let mut looks = 0;
    let problem = loop {
        look = match look {
            Look::ListFences(list) => match list.answer((1..=place.fences).map(generation)) {
                Ok(next) => next,
                Err(problem) => break problem,
            },
            Look::ReadBase(read) => read.answer(None).unwrap(),
            Look::FinishBase(missing) => {
                let base = place.finish(missing.begin()).unwrap();
                missing.answer(base)
            }
            Look::ListCommits(list) => list.answer(Vec::new()),
            Look::ReadSuccessor(read) => {
                looks += 1;
                again(&mut place);
                read.answer(true)
            }
            other => panic!("{other:?}"),
        };
    };
    assert_eq!((problem.reason, looks), (Reason::TakeOverInProgress, 8));
}

#[test]
fn a_missing_fence_is_no_shorter_location() {
    let Look::ListFences(list) = Look::begin(Access::Own) else { panic!("a look begins with the fences") };
    assert_eq!(list.answer([1, 3].map(generation)).unwrap_err().reason, Reason::LocationUnsuitable);
}

#[test]
fn there_is_no_base_before_its_fence() {
    let mut place = Place::default();
    place.fence();
    let problem = place.finish(Finish::begin(generation(2)).unwrap()).unwrap_err();
    assert_eq!(problem.reason, Reason::TakeOverInProgress);
    assert!(Finish::begin(Generation::FIRST).is_err());
}

#[test]
fn a_base_that_stands_is_obeyed() {
    let mut place = Place::default();
    place.fence();
    place.commit(1, 1);
    place.fence();
    let theirs = FenceBase { generation: generation(2), newest: None, tombstones: Vec::new() };
    place.bases.insert(2, theirs.clone());
    assert_eq!(place.finish(Finish::begin(generation(2)).unwrap()), Ok(theirs));
}

#[test]
fn a_base_lists_the_tombstones_of_the_owner_it_follows_and_no_others() {
    let mut place = Place::default();
    place.fence();
    for s in 1..=4 {
        place.commit(1, s);
    }
    place.tombstones.insert((1, 1), tombstone(1, 1, 1));
    place.fence();
    place.finish(Finish::begin(generation(2)).unwrap()).unwrap();
    // Of the fenced owner, too late; and of the present one.
    place.tombstones.insert((1, 2), tombstone(1, 2, 1));
    place.tombstones.insert((1, 3), tombstone(1, 3, 2));
    assert_eq!(place.look(Access::ReadOnly, None), Ok(vec![commit(1, 4), commit(1, 2)]));
    place.fence();
    let base = place.finish(Finish::begin(generation(3)).unwrap()).unwrap();
    let listed: Vec<u64> = base.tombstones.iter().map(|tombstone| tombstone.seq.get()).collect();
    assert_eq!((listed, base.newest), (vec![1, 3], Some(commit(1, 4))));
    assert_eq!(place.look(Access::ReadOnly, None), Ok(vec![commit(1, 4), commit(1, 2)]));
}

proptest! {
    /// Whatever was committed, aborted and fenced in whatever order: what a reader saw once counts for ever.
    #[test]
    fn what_a_reader_saw_counts_for_ever(steps in prop::collection::vec((0_u8..4, 1_u64..4), 1..25)) {
        let mut place = Place::default();
        place.fence();
        let mut next = [0, 1, 1, 1, 1, 1_u64];
        let mut seen: Vec<CommitRef> = Vec::new();
        for (what, g) in steps {
            let at = usize::try_from(g).unwrap();
            match what {
                0 if place.fences < 4 => { place.fence(); }
                1 => { place.decisions.insert((g, next[at]), None); next[at] += 1; }
                2 if g <= place.fences => { place.commit(g, next[at]); next[at] += 1; }
                _ => {
                    let now = place.look(Access::Own, None).unwrap();
                    prop_assert!(seen.iter().all(|commit| now.contains(commit)), "{seen:?} then {now:?}");
                    prop_assert!(now.is_sorted_by(|a, b| (a.generation, a.seq) > (b.generation, b.seq)));
                    seen = now;
                }
            }
        }
    }
}
