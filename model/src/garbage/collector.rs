//! One database's garbage collection: rows of what it marked, and a driver that retains, sweeps or collects orphans.

use std::{collections::BTreeMap, time::Duration};

use lockstep_protocol::{
    commit::CommitRef,
    garbage::{
        Candidates, CommitReach, DatabaseView, Known, LandedTombstone, ListedKey, Orphans, Plan, RoundState, Stop,
        Sweep, TombstoneKnown, candidates,
    },
    pin::Pin,
    planted::{self, Bug},
    problem::Reason,
    spec::Retention,
    takeover::PutAnswer,
};
use uuid::Uuid;

use super::{Action, Commits, Garbage, Objects, Slot, facts};
use crate::interned::Interned;

/// Rows and driver.
#[derive(Clone, Hash, Default, Debug)]
pub(super) struct Collector {
    marked: Commits,
    /// Marked, and the tombstone is known to stand.
    landed: Commits,
    /// A tombstone that doesn't count is in the way.
    occupied: Commits,
    /// It was told that it is fenced, or that its database is behind: it stops for good.
    stopped: bool,
    /// A careless version goes by pins that it listed when it marked.
    old_pins: bool,
}

/// What a driver remembers.
#[derive(Clone, Hash, Default, Debug)]
pub(super) enum Driver {
    #[default]
    Idle,
    /// What may be retired, as it was listed.
    Retain(Commits),
    Sweep(Interned<Sweep>),
    Orphans(Interned<Orphans>),
    /// Stages that are left, the next one last.
    Delete(Vec<Objects>, Commits),
}

impl Collector {
    pub(super) const fn marked(&self) -> Commits {
        self.marked
    }

    /// A taker knows the tombstones that its base lists.
    pub(super) fn adopt(&mut self, listed: Commits) {
        self.marked = listed;
        self.landed = listed;
    }

    pub(super) fn describe(&self) -> String {
        let stopped = if self.stopped { " stopped" } else { "" };
        format!("marked {:?} landed {:?}{stopped}", self.marked, self.landed)
    }
}

impl Driver {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Idle => "idle".to_owned(),
            Self::Retain(retire) => format!("would retire {retire:?}"),
            Self::Sweep(_) => "sweeps".to_owned(),
            Self::Orphans(_) => "collects orphans".to_owned(),
            Self::Delete(stages, commits) => format!("deletes {stages:?} {commits:?}"),
        }
    }
}

/// The database of a driver: the owner has two, the taker one.
const fn rows(who: u8) -> usize {
    if who == TAKER { 1 } else { 0 }
}

/// That its database holds.
const fn generation_of(who: u8) -> u8 {
    if who == TAKER { 2 } else { 1 }
}

const TAKER: u8 = 1;

impl Garbage {
    pub(super) fn collector_actions(&self, actions: &mut Vec<Action>) {
        for who in if self.bounds.twin { 0..3 } else { 0..2 } {
            let collector = &self.collectors[rows(who)];
            let owns = if who == TAKER { self.taker.has_adopted() } else { !self.fenced };
            match &self.drivers[usize::from(who)] {
                Driver::Idle if owns && !collector.stopped => {
                    if self.bounds.retire && self.may_retire(who).minus(collector.marked).any() {
                        actions.push(Action::Retain(who));
                    }
                    if collector.landed.both(self.commits).any() {
                        actions.push(Action::Sweep(who));
                    }
                    if self.bounds.orphans {
                        actions.push(Action::Orphans(who));
                    }
                }
                Driver::Idle => {}
                Driver::Retain(_) => actions.push(Action::Mark(who)),
                Driver::Sweep(step) => {
                    actions.push(Action::Sweep(who));
                    if planted::is(Bug::EmptyListingOnDenied) && matches!(**step, Sweep::ListPins(_)) {
                        actions.push(Action::PinsDenied(who));
                    }
                }
                Driver::Orphans(_) => actions.push(Action::Orphans(who)),
                Driver::Delete(..) => actions.push(Action::Delete(who)),
            }
            if self.bounds.crashes && !matches!(self.drivers[usize::from(who)], Driver::Idle) {
                actions.push(Action::CollectorDies(who));
            }
            if who > TAKER {
                continue;
            }
            for slot in collector.marked.minus(collector.landed).iter() {
                let there = self.tombstones[usize::from(slot) - 1] > 0;
                if there || planted::is(Bug::SweepBeforeTombstoneLanded) {
                    actions.push(Action::Judge(who, slot));
                }
                if !there && self.sent_tombstones[rows(who)].has(slot) {
                    actions.push(Action::TombstoneLands(slot, generation_of(who)));
                }
            }
        }
    }

    /// What production would retire, as far as listings tell.
    fn may_retire(&self, who: u8) -> Commits {
        let generation = generation_of(who);
        let collector = &self.collectors[rows(who)];
        let known: Vec<Known> = self
            .counted(generation)
            .into_iter()
            .filter(|slot| !self.seen_retired(*slot, generation))
            .map(|slot| Known {
                commit: self.facts().commit(slot),
                created_at: facts::now(),
                damaged: self.damaged && slot == 2,
                unreadable: false,
                occupied: collector.occupied.has(slot),
            })
            .collect();
        let limits = Retention { min_age: Duration::ZERO, min_count: 1 };
        let free = candidates(&known, &[], &self.in_use(generation), limits, facts::now());
        self.slots(&free.retire)
    }

    fn slots(&self, commits: &[CommitRef]) -> Commits {
        Commits::of(commits.iter().map(|commit| self.facts().slot(*commit)))
    }

    fn refs(&self, slots: impl IntoIterator<Item = Slot>) -> Vec<CommitRef> {
        slots.into_iter().map(|slot| self.facts().commit(slot)).collect()
    }

    pub(super) fn retain(&mut self, who: u8) {
        let retire = self.may_retire(who).minus(self.collectors[rows(who)].marked);
        self.drivers[usize::from(who)] = Driver::Retain(retire);
    }

    /// In one transaction, under the pipeline's row lock.
    pub(super) fn mark(&mut self, who: u8) {
        let Driver::Retain(retire) = self.drivers[usize::from(who)] else { return };
        self.forget(who);
        if who != TAKER && self.fenced {
            return;
        }
        let newest = (1..=4).rev().find(|slot| self.is_committed(*slot) && self.is_taken(*slot) == (who == TAKER));
        let last = newest.map(|slot| self.facts().commit(slot));
        let free = Candidates { retire: self.refs(retire.iter()), kept: Vec::new() };
        let marked: Vec<CommitRef> = free
            .mark(&facts::locked(generation_of(who), last, self.in_use(generation_of(who))))
            .iter()
            .map(|retiring| retiring.tombstone().commit)
            .collect();
        let marked = self.slots(&marked);
        let collector = &mut self.collectors[rows(who)];
        collector.marked = collector.marked.and(marked);
        collector.old_pins = planted::is(Bug::PinsListedBeforeTombstone);
        let sent = &mut self.sent_tombstones[rows(who)];
        *sent = sent.and(marked);
    }

    pub(super) fn judge(&mut self, who: u8, slot: Slot) {
        let by = self.tombstones[usize::from(slot) - 1];
        let commit = self.facts().commit(slot);
        let Some(retiring) = facts::retiring(commit, generation_of(who)) else { return };
        let found = (by > 0).then(|| facts::tombstone(commit, by));
        let known = retiring.judge(PutAnswer::Unknown, found.as_ref(), self.base_of(generation_of(who)).as_ref());
        let collector = &mut self.collectors[rows(who)];
        match known {
            TombstoneKnown::Landed(_) => collector.landed = collector.landed.with(slot),
            TombstoneKnown::Occupied => {
                collector.marked = collector.marked.minus(Commits::of([slot]));
                collector.occupied = collector.occupied.with(slot);
            }
            TombstoneKnown::Unknown => {}
        }
    }

    pub(super) fn forget(&mut self, who: u8) {
        self.drivers[usize::from(who)] = Driver::Idle;
    }

    fn stop(&mut self, who: u8, stop: &Stop) {
        // Anything else means later: what another replica did meanwhile.
        let for_good = matches!(stop.problem.reason, Reason::Fenced | Reason::DatabaseBehind);
        self.collectors[rows(who)].stopped |= for_good;
        self.forget(who);
        if stop.problem.reason == Reason::DatabaseBehind {
            self.wrong = Some("G3: the database was said to be behind the bucket, and it is not");
        }
    }

    fn pins(&self) -> Vec<Pin> {
        let pin = || Pin {
            name: "pull".to_owned(),
            id: Uuid::from_u128(1),
            commit: self.facts().commit(1),
            pinned_by: String::new(),
            pinned_at: facts::now(),
        };
        self.pinned.then(pin).into_iter().collect()
    }

    /// What the commits that count reach, as it can be read now. Of a live one that lacks its manifest nobody knows what else it reaches.
    fn read_reach(&self, slots: &[Slot], retired: Commits) -> Option<Vec<CommitReach>> {
        let read = |slot: &Slot| {
            let needed = self.needs(*slot).both(facts::MANIFESTS);
            let readable = self.present.has(needed);
            let live = !retired.has(*slot);
            self.facts().reach(*slot, self.needs(*slot), self.full_form(*slot), readable, live)
        };
        slots.iter().map(read).collect()
    }

    pub(super) fn sweep(&mut self, who: u8, denied: bool) {
        let (generation, collector) = (generation_of(who), self.collectors[rows(who)].clone());
        let step = match self.drivers[usize::from(who)].clone() {
            Driver::Sweep(step) => (*step).clone(),
            _ => {
                let landed: Vec<LandedTombstone> = collector
                    .landed
                    .both(self.commits)
                    .iter()
                    .filter_map(|slot| {
                        let tombstone = facts::tombstone(self.facts().commit(slot), generation);
                        LandedTombstone::read(&tombstone, facts::generation(generation), None)
                    })
                    .collect();
                let begun = Sweep::begin(facts::generation(generation), &landed, Duration::ZERO, facts::now());
                self.drivers[usize::from(who)] = Driver::Sweep(Interned::new(begun));
                return;
            }
        };
        let next = match step {
            Sweep::ListPins(list) => {
                let pins = if denied || collector.old_pins { Vec::new() } else { self.pins() };
                list.answer(&pins)
            }
            Sweep::ReadSuccessor(read) => match read.answer(generation == 1 && self.taker.has_fence()) {
                Ok(next) => next,
                Err(stop) => return self.stop(who, &stop),
            },
            Sweep::ReadCommits(read) => {
                let counted = self.counted(generation);
                let gone = self.slots(&read.retired().iter().copied().collect::<Vec<_>>());
                let live: Vec<Slot> = counted.iter().copied().filter(|slot| !gone.has(*slot)).collect();
                let also_retired =
                    Commits::of(live.iter().copied().filter(|slot| self.seen_retired(*slot, generation)));
                let (Some(live), Some(retired)) = (
                    self.read_reach(&live, also_retired),
                    self.read_reach(&gone.both(self.commits).iter().collect::<Vec<_>>(), gone),
                ) else {
                    return self.forget(who);
                };
                let there = self.commits;
                let facts = self.facts();
                let bytes = |commit: CommitRef| there.has(facts.slot(commit)).then_some(1);
                match read.answer(&self.refs(counted), &live, &retired, bytes) {
                    Ok(next) => next,
                    Err(stop) => return self.stop(who, &stop),
                }
            }
            Sweep::Delete(plan) => return self.carry_out(who, &plan),
            Sweep::Nothing => return self.forget(who),
        };
        self.drivers[usize::from(who)] = match next {
            Sweep::Nothing => Driver::Idle,
            Sweep::Delete(plan) => return self.carry_out(who, &plan),
            next => Driver::Sweep(Interned::new(next)),
        };
    }

    fn view(&self, generation: u8) -> DatabaseView {
        let mut rounds = BTreeMap::new();
        for slot in 1..=4 {
            let mine = self.is_taken(slot) == (generation == 2);
            let push = self.push_of(slot);
            let state = match (slot, push) {
                (1 | 2, _) => RoundState::Terminal,
                _ if push.is_active() => RoundState::Undecided,
                (_, super::Push::Failed(_)) => RoundState::Void,
                (_, super::Push::Committed(_)) => RoundState::Terminal,
                _ => continue,
            };
            if mine {
                rounds.insert(self.facts().commit(slot).round, state);
            }
        }
        let fenced = generation == 1 && self.fenced;
        DatabaseView { generation: facts::generation(generation), fenced, rounds, in_use: self.in_use(generation) }
    }

    pub(super) fn orphans(&mut self, who: u8) {
        let generation = generation_of(who);
        let step = match self.drivers[usize::from(who)].clone() {
            Driver::Orphans(step) => (*step).clone(),
            _ => Orphans::begin(facts::generation(generation)),
        };
        let next = match step {
            Orphans::ListKeys(list) => {
                let keys = self.present.bits().map(|bit| ListedKey { key: self.facts().keys[bit].clone(), bytes: 1 });
                list.answer(keys.collect(), Vec::new())
            }
            Orphans::ReadDatabase(read) => read.answer(self.view(generation)),
            Orphans::ReadCommits(read) => {
                let counted = self.counted(generation);
                let retired = Commits::of(counted.iter().copied().filter(|slot| self.seen_retired(*slot, generation)));
                let Some(reach) = self.read_reach(&counted, retired) else {
                    return self.forget(who);
                };
                read.answer(&self.refs(counted), &reach)
            }
            Orphans::ReadSuccessor(read) => read.answer(generation == 1 && self.taker.has_fence()),
            Orphans::Delete(plan) => return self.carry_out(who, &plan),
        };
        match next {
            Ok(Orphans::Delete(plan)) => self.carry_out(who, &plan),
            Ok(next) => self.drivers[usize::from(who)] = Driver::Orphans(Interned::new(next)),
            Err(stop) => self.stop(who, &stop),
        }
    }

    fn carry_out(&mut self, who: u8, plan: &Plan) {
        let facts = self.facts();
        let keys = |stage: &[lockstep_protocol::garbage::Doomed]| {
            facts.objects(stage.iter().map(|doomed| doomed.key.as_str()))
        };
        let [data, manifests, inherited, commits] = plan.stages();
        let commits = facts.commits.iter().filter(|commit| {
            let key = commit.key().to_string();
            commits.iter().any(|doomed| doomed.key == key)
        });
        let commits = Commits::of(commits.map(|commit| facts.slot(*commit)));
        let mut stages = vec![keys(inherited), keys(manifests), keys(data)];
        stages.retain(|stage| stage.any());
        let nothing = stages.is_empty() && !commits.any();
        self.drivers[usize::from(who)] = if nothing { Driver::Idle } else { Driver::Delete(stages, commits) };
    }

    /// The next stage; its deletes may land again at any time.
    pub(super) fn delete(&mut self, who: u8) {
        let Driver::Delete(mut stages, commits) = self.drivers[usize::from(who)].clone() else { return };
        match stages.pop() {
            Some(stage) => {
                self.present = self.present.minus(stage);
                self.deletes = self.deletes.and(stage);
            }
            None => {
                self.commits = self.commits.minus(commits);
                self.delete_commits = self.delete_commits.and(commits);
                self.drivers[usize::from(who)] = Driver::Idle;
                return;
            }
        }
        let done = stages.is_empty() && !commits.any();
        self.drivers[usize::from(who)] = if done { Driver::Idle } else { Driver::Delete(stages, commits) };
    }
}
