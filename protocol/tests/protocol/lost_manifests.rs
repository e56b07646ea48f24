//! A commit that lives loses a part manifest: nothing that it may reach goes, whatever the history is, and the rest does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    garbage::{CommitReach, DatabaseView, LandedTombstone, ListedKey, Orphans, Plan, RoundState, Sweep},
    id::{Attempt, Generation, PipelineId, RoundId, Seq},
    key::AttemptPath,
    tombstone::Tombstone,
};
use proptest::prelude::*;

use crate::sample::{self, incarnation, time, uuid};

/// What became of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Live,
    /// It lives, and its part manifest is gone or damaged.
    Lost,
    Retired,
    /// Retired before, and its commit object is gone.
    Swept,
}

/// One round: which earlier commit was its base, which of what that reached it uses, whether its manifest inherits, whether it committed, and what became of that.
#[derive(Clone, Debug)]
struct Past {
    base: prop::sample::Index,
    uses: Vec<bool>,
    inherits: bool,
    committed: bool,
    fate: Fate,
}

fn past() -> impl Strategy<Value = Past> {
    let fate = prop_oneof![
        3 => Just(Fate::Live),
        2 => Just(Fate::Lost),
        3 => Just(Fate::Retired),
        2 => Just(Fate::Swept),
    ];
    let uses = prop::collection::vec(any::<bool>(), 24);
    (any::<prop::sample::Index>(), uses, any::<bool>(), prop::bool::weighted(0.8), fate)
        .prop_map(|(base, uses, inherits, committed, fate)| Past { base, uses, inherits, committed, fate })
}

fn path(of: usize) -> AttemptPath {
    let slot = sample::layout(1).slot(0).unwrap();
    AttemptPath::new(slot, Generation::FIRST, round(of), incarnation(1), Attempt::FIRST)
}

fn round(of: usize) -> RoundId {
    RoundId::new(uuid(of as u128 + 1))
}

fn commit(of: usize) -> CommitRef {
    CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(of as u64 + 1).unwrap(),
        round: round(of),
        digest: Digest::of(&[1]),
    }
}

fn sized(keys: impl IntoIterator<Item = String>) -> BTreeMap<String, u64> {
    keys.into_iter().map(|key| (key, 1)).collect()
}

/// The location as it is: what every commit truly reaches, and every key that was ever written.
struct World {
    pasts: Vec<Past>,
    reaches: Vec<CommitReach>,
    written: BTreeSet<String>,
}

impl World {
    fn of(pasts: Vec<Past>) -> Self {
        let (mut reaches, mut written) = (Vec::<CommitReach>::new(), BTreeSet::new());
        for (of, past) in pasts.iter().enumerate() {
            let own = [0, 1].map(|n| path(of).data(n).to_string());
            let before: Vec<usize> = (0..of).filter(|earlier| pasts[*earlier].committed).collect();
            let base = (!before.is_empty()).then(|| &reaches[*past.base.get(&before)]);
            let reused = base.iter().flat_map(|base| base.data.keys()).zip(past.uses.iter().cycle());
            let reused = reused.filter(|(_, uses)| **uses).map(|(key, _)| key.clone());
            let data = sized(own.iter().cloned().chain(reused.collect::<Vec<_>>()));
            // The full manifest that its base's is or inherits.
            let full = base.filter(|_| past.inherits).map(|base| {
                let full = base.inherited.keys().chain(base.manifests.keys()).next();
                full.unwrap().clone()
            });
            let manifest = path(of).manifest().to_string();
            written.extend(own);
            written.insert(manifest.clone());
            let (manifests, inherited) = (sized([manifest]), sized(full));
            reaches.push(CommitReach { commit: commit(of), data, manifests, inherited, whole: true });
        }
        Self { pasts, reaches, written }
    }

    fn with(&self, fates: &[Fate]) -> Vec<usize> {
        let is = |of: &usize| self.pasts[*of].committed && fates.contains(&self.pasts[*of].fate);
        (0..self.pasts.len()).filter(is).collect()
    }

    /// As it can be read: of a commit that lost its manifest only that manifest's name is known.
    fn read(&self, of: usize) -> CommitReach {
        let truth = &self.reaches[of];
        match self.pasts[of].fate {
            Fate::Lost => {
                CommitReach { data: BTreeMap::new(), inherited: BTreeMap::new(), whole: false, ..truth.clone() }
            }
            _ => truth.clone(),
        }
    }

    fn counted(&self) -> Vec<usize> {
        self.with(&[Fate::Live, Fate::Lost, Fate::Retired])
    }

    /// What must stay: the truth, not what can be read.
    fn needed(&self, fates: &[Fate]) -> BTreeSet<String> {
        let reaches = self.with(fates).into_iter().map(|of| &self.reaches[of]);
        reaches
            .flat_map(|reach| [&reach.data, &reach.manifests, &reach.inherited])
            .flat_map(BTreeMap::keys)
            .cloned()
            .collect()
    }

    fn sweep(&self) -> Option<Plan> {
        let tombstone = |of: usize| Tombstone {
            pipeline: PipelineId::new(uuid(1)),
            commit: commit(of),
            retired_in: Generation::FIRST,
            retired_at: time(0),
        };
        let retired = self.with(&[Fate::Retired]);
        let landed: Vec<LandedTombstone> =
            retired.iter().filter_map(|of| LandedTombstone::read(&tombstone(*of), Generation::FIRST, None)).collect();
        let Sweep::ListPins(list) = Sweep::begin(Generation::FIRST, &landed, Duration::ZERO, time(9)) else {
            return None;
        };
        let Sweep::ReadCommits(read) = list.answer(&[]) else { panic!("nothing is pinned") };
        let live: Vec<CommitReach> = self.with(&[Fate::Live, Fate::Lost]).into_iter().map(|of| self.read(of)).collect();
        let gone: Vec<CommitReach> = retired.into_iter().map(|of| self.read(of)).collect();
        let counted: Vec<CommitRef> = self.counted().into_iter().map(commit).collect();
        let Sweep::ReadSuccessor(read) = read.answer(&counted, &live, &gone, |_| Some(1)).unwrap() else {
            panic!("the fence is read last")
        };
        let Sweep::Delete(plan) = read.answer(false).unwrap() else { panic!("nothing stops it") };
        Some(plan)
    }

    fn orphans(&self) -> Plan {
        let Orphans::ListKeys(list) = Orphans::begin(Generation::FIRST) else { panic!("keys are listed first") };
        let listed = self.written.iter().map(|key| ListedKey { key: key.clone(), bytes: 1 }).collect();
        let Orphans::ReadDatabase(read) = list.answer(listed, Vec::new()).unwrap() else { panic!("then the database") };
        let state = |past: &Past| if past.committed { RoundState::Terminal } else { RoundState::Void };
        let view = DatabaseView {
            generation: Generation::FIRST,
            fenced: false,
            rounds: self.pasts.iter().enumerate().map(|(of, past)| (round(of), state(past))).collect(),
            in_use: BTreeSet::new(),
        };
        let Orphans::ReadCommits(read) = read.answer(view).unwrap() else { panic!("then what commits reach") };
        let counted: Vec<CommitRef> = self.counted().into_iter().map(commit).collect();
        let reach: Vec<CommitReach> = self.counted().into_iter().map(|of| self.read(of)).collect();
        let Orphans::ReadSuccessor(read) = read.answer(&counted, &reach).unwrap() else { panic!("the fence is last") };
        let Orphans::Delete(plan) = read.answer(false).unwrap() else { panic!("nothing stops it") };
        plan
    }
}

fn keys(plan: &Plan) -> BTreeSet<String> {
    plan.stages().into_iter().flatten().map(|doomed| doomed.key.clone()).collect()
}

proptest! {
    #[test]
    fn nothing_that_a_commit_with_a_lost_manifest_reaches_goes(pasts in prop::collection::vec(past(), 1..9)) {
        let world = World::of(pasts);
        let swept = world.sweep().map(|plan| keys(&plan)).unwrap_or_default();
        let needed = world.needed(&[Fate::Live, Fate::Lost]);
        prop_assert!(swept.is_disjoint(&needed), "{:?}", swept.intersection(&needed).collect::<Vec<_>>());
        let orphans = keys(&world.orphans());
        let needed = world.needed(&[Fate::Live, Fate::Lost, Fate::Retired]);
        prop_assert!(orphans.is_disjoint(&needed), "{:?}", orphans.intersection(&needed).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_newer_or_never_committed_goes_all_the_same(pasts in prop::collection::vec(past(), 1..9)) {
        let world = World::of(pasts);
        let newest = world.with(&[Fate::Lost]).into_iter().max();
        let swept = world.sweep().map(|plan| keys(&plan)).unwrap_or_default();
        let live = world.needed(&[Fate::Live]);
        for of in world.with(&[Fate::Retired]).into_iter().filter(|of| newest.is_none_or(|newest| *of > newest)) {
            prop_assert!(swept.contains(&commit(of).key().to_string()), "commit {of}");
            for key in [path(of).data(0), path(of).data(1), path(of).manifest()].map(|key| key.to_string()) {
                prop_assert!(swept.contains(&key) || live.contains(&key), "{key}");
            }
        }
        let orphans = keys(&world.orphans());
        for (of, _) in world.pasts.iter().enumerate().filter(|(_, past)| !past.committed) {
            prop_assert!(orphans.contains(&path(of).data(0).to_string()), "of round {of}, which never committed");
        }
    }
}
