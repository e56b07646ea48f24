//! The world of garbage: an owner that retires, sweeps and collects orphans while it pushes with reuse and pulls; another database that pulls with a pin; a taker that
//! starts generation 2, pushes and collects too; around the production decisions of `garbage`, `finish`, `tombstone` and `fence::counts`.
//!
//! Two checkpoints stand at the start: the second shares a pack with the first and its manifest inherits the first one's. Create-only PUTs of commits and
//! tombstones, uploads and deletes are late, lost and doubled at once: once sent they may land at any time, as often as they make a difference.
//!
//! - `objects`: sets of objects; `facts`: their keys and documents
//! - `pushes`, `pulls`; `collector`: one database's garbage collection; `taker`: the take-over

mod collector;
mod facts;
mod objects;
mod pulls;
mod pushes;
mod taker;

use lockstep_protocol::tombstone::Tombstone;

use self::{
    collector::{Collector, Driver},
    objects::{Commits, Objects},
    pulls::{Foreign, Own},
    pushes::Push,
    taker::Taker,
};
use crate::explore::World;

/// A commit's number: 1 and 2 stand at the start, 3 and 4 are pushed.
type Slot = u8;

/// How large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Pushes of the owner, at most 2, and 1 if the taker pushes.
    pub pushes: u8,
    /// Whether the taker pushes once it took over.
    pub taken: bool,
    /// Whether there is a taker.
    pub taker: bool,
    /// The owner's database pulls the first checkpoint.
    pub own_pull: bool,
    /// Another database does, with a pin.
    pub foreign_pull: bool,
    /// The second checkpoint may be found damaged.
    pub damage: bool,
    /// The second checkpoint's part manifest may be lost.
    pub loss: bool,
    /// Commits are retired and swept.
    pub retire: bool,
    /// Orphans are collected.
    pub orphans: bool,
    /// The owner has a second driver, on another replica: no lease keeps them apart (G4).
    pub twin: bool,
    /// Drivers lose what they remember and go on from their rows.
    pub crashes: bool,
}

impl Bounds {
    /// Nothing happens.
    pub const NOTHING: Self = Self {
        pushes: 0,
        taken: false,
        taker: false,
        own_pull: false,
        foreign_pull: false,
        damage: false,
        loss: false,
        retire: false,
        orphans: false,
        twin: false,
        crashes: false,
    };
}

/// Everything.
#[derive(Clone, Hash, Debug)]
pub struct Garbage {
    bounds: Bounds,
    present: Objects,
    /// Uploads that may land.
    sent: Objects,
    /// Deletes that may land, again too.
    deletes: Objects,
    delete_commits: Commits,
    commits: Commits,
    sent_commits: Commits,
    /// Who wrote the tombstone of each commit: the generation, 0 for none.
    tombstones: [u8; 4],
    /// By generation of the writer.
    sent_tombstones: [Commits; 2],
    damaged: bool,
    /// The second checkpoint's part manifest was destroyed from outside.
    lost: bool,
    pinned: bool,
    pushes: [Push; 2],
    own: Own,
    foreign: Foreign,
    /// Of the owner and of the taker.
    collectors: [Collector; 2],
    /// Of the owner, of the taker, and the owner's second one.
    drivers: [Driver; 3],
    taker: Taker,
    /// The owner knows that it is fenced.
    fenced: bool,
    wrong: Option<&'static str>,
}

/// Something that may happen.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A careless version chooses the base of its next push before it is admitted.
    ChooseBase(Slot),
    /// Admission of a push; its agents upload.
    Admit(Slot),
    /// It fails while it transfers.
    Fail(Slot),
    /// All parts are in: its commit is stored and put.
    Commit(Slot),
    /// Its key and what follows its generation are read.
    Settle(Slot),
    /// What the agents of a push sent lands.
    UploadLands(Slot),
    /// What a dead attempt of the first push sent lands.
    DeadUploadLands,
    /// A commit's PUT lands.
    CommitLands(Slot),
    /// A tombstone's PUT lands: of which commit, by the owner of which generation.
    TombstoneLands(Slot, u8),
    /// Deletes land again.
    DeletesLand,
    /// The second checkpoint is found damaged.
    Damage,
    /// The second checkpoint's part manifest is destroyed from outside.
    Lose,
    /// The owner's pull goes on.
    OwnPull,
    /// The other database's pull goes on.
    ForeignPull,
    /// Retention lists what may be retired.
    Retain(u8),
    /// It marks under the lock.
    Mark(u8),
    /// The key of a marked commit's tombstone is read.
    Judge(u8, Slot),
    /// A sweep begins, or goes on with its next request.
    Sweep(u8),
    /// The listing of pins is refused.
    PinsDenied(u8),
    /// A collection of orphans begins, or goes on with its next request.
    Orphans(u8),
    /// The next stage of deletes.
    Delete(u8),
    /// A collector's driver dies.
    CollectorDies(u8),
    /// The take-over goes on.
    Take,
}

impl Garbage {
    /// Two checkpoints stand, generation 1 is the owner's.
    pub fn new(bounds: Bounds) -> Self {
        let both = Commits::default().with(1).with(2);
        let present =
            facts::PACK.and(facts::data(1)).and(facts::data(2)).and(facts::manifest(1)).and(facts::manifest(2));
        Self {
            bounds,
            present,
            sent: Objects::default(),
            deletes: Objects::default(),
            delete_commits: Commits::default(),
            commits: both,
            sent_commits: both,
            tombstones: [0; 4],
            sent_tombstones: [Commits::default(); 2],
            damaged: false,
            lost: false,
            pinned: false,
            pushes: [Push::default(); 2],
            own: Own::Idle,
            foreign: Foreign::Idle,
            collectors: [Collector::default(), Collector::default()],
            drivers: [Driver::Idle, Driver::Idle, Driver::Idle],
            taker: Taker::Idle,
            fenced: false,
            wrong: None,
        }
    }

    /// What a commit needs to be whole, spelled out once more: data, its manifest, and what that inherits.
    fn needs(&self, slot: Slot) -> Objects {
        let own = facts::data(slot).and(facts::manifest(slot));
        let own = own.and(facts::manifest(self.full_form(slot)));
        match slot {
            1 | 2 => own.and(facts::PACK),
            _ => match self.push_of(slot).base() {
                0 => own,
                base => own.and(self.needs(base).minus(facts::MANIFESTS)),
            },
        }
    }

    /// The full manifest that its own one is or inherits.
    fn full_form(&self, slot: Slot) -> Slot {
        match (slot, self.push_of(slot).base()) {
            (1 | 2, _) => 1,
            (_, 0) => slot,
            (_, base) => self.full_form(base),
        }
    }

    /// F1, spelled out once more.
    fn counts(&self, slot: Slot) -> bool {
        match self.taker.base() {
            Some(base) if !self.is_taken(slot) => base.newest.is_some_and(|newest| slot <= newest),
            _ => true,
        }
    }

    /// Whether the commit is of generation 2.
    fn is_taken(&self, slot: Slot) -> bool {
        self.bounds.taken && slot == 4
    }

    /// Whether a tombstone that counts stands, spelled out once more: of the present owner, or listed by its base.
    fn is_retired(&self, slot: Slot) -> bool {
        let by = self.tombstones[usize::from(slot) - 1];
        match self.taker.base() {
            None => by > 0,
            Some(base) => by == 2 || base.retired.has(slot),
        }
    }

    /// The same as a reader in this generation sees it, by production's rule.
    fn seen_retired(&self, slot: Slot, generation: u8) -> bool {
        let by = self.tombstones[usize::from(slot) - 1];
        let commit = self.facts().commit(slot);
        let tombstone: Tombstone = facts::tombstone(commit, by.max(1));
        by > 0 && tombstone.counts(facts::generation(generation), self.base_of(generation).as_ref())
    }

    fn base_of(&self, generation: u8) -> Option<lockstep_protocol::fence::FenceBase> {
        let base = self.taker.base().filter(|_| generation == 2)?;
        let newest = base.newest.map(|slot| self.facts().commit(slot));
        Some(facts::base(newest, base.retired.iter().map(|slot| self.facts().commit(slot))))
    }

    fn facts(&self) -> &'static facts::Facts {
        facts::facts(self.bounds.taken)
    }

    /// Commits that count for the owner of this generation, newest first, retired ones included. The first owner may have looked before it was fenced.
    fn counted(&self, generation: u8) -> Vec<Slot> {
        let counts = |slot: &Slot| match (generation, self.is_taken(*slot)) {
            (1, taken) => !taken,
            (_, true) => true,
            (_, false) => self.counts(*slot),
        };
        let mut counted: Vec<Slot> = self.commits.iter().filter(counts).collect();
        counted.reverse();
        counted
    }

    /// The newest that counts, is not retired and not damaged.
    fn latest(&self, generation: u8) -> Option<Slot> {
        let good = |slot: &Slot| !(self.seen_retired(*slot, generation) || self.damaged && *slot == 2);
        self.counted(generation).into_iter().find(good)
    }
}

impl World for Garbage {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.push_actions(&mut actions);
        self.pull_actions(&mut actions);
        self.collector_actions(&mut actions);
        self.taker_actions(&mut actions);
        actions
    }

    fn after(&self, action: &Action) -> Self {
        let mut next = self.clone();
        match *action {
            Action::ChooseBase(slot) => next.choose_base(slot),
            Action::Admit(slot) => next.admit(slot),
            Action::Fail(slot) => next.fail(slot),
            Action::Commit(slot) => next.commit(slot),
            Action::Settle(slot) => next.settle(slot),
            Action::UploadLands(slot) => {
                next.present = next.present.and(facts::data(slot)).and(facts::manifest(slot));
            }
            Action::DeadUploadLands => next.present = next.present.and(facts::DEAD),
            Action::CommitLands(slot) => next.commits = next.commits.with(slot),
            Action::TombstoneLands(slot, generation) => next.tombstones[usize::from(slot) - 1] = generation,
            Action::DeletesLand => {
                next.present = next.present.minus(next.deletes);
                next.commits = next.commits.minus(next.delete_commits);
            }
            Action::Damage => next.damaged = true,
            Action::Lose => {
                next.lost = true;
                next.present = next.present.minus(facts::manifest(2));
            }
            Action::OwnPull => next.own_pull(),
            Action::ForeignPull => next.foreign_pull(),
            Action::Retain(who) => next.retain(who),
            Action::Mark(who) => next.mark(who),
            Action::Judge(who, slot) => next.judge(who, slot),
            Action::Sweep(who) => next.sweep(who, false),
            Action::PinsDenied(who) => next.sweep(who, true),
            Action::Orphans(who) => next.orphans(who),
            Action::Delete(who) => next.delete(who),
            Action::CollectorDies(who) => next.forget(who),
            Action::Take => next.take(),
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if let Some(wrong) = self.wrong {
            return Err(wrong.to_owned());
        }
        for slot in 1..=4 {
            let destroyed = if self.lost && slot == 2 { facts::manifest(2) } else { Objects::default() };
            let lacks = self.needs(slot).minus(destroyed).minus(self.present);
            let committed = self.is_committed(slot);
            if (self.commits.has(slot) || committed) && self.counts(slot) && !self.is_retired(slot) && lacks.any() {
                return Err(format!("S1: commit {slot} counts, is not retired, and lacks {lacks:?}"));
            }
            if committed && !self.counts(slot) {
                return Err(format!("S15: commit {slot} was acknowledged and does not count"));
            }
            if committed && !self.commits.has(slot) && !self.is_retired(slot) {
                return Err(format!("S15: commit {slot} was acknowledged and is gone"));
            }
        }
        self.check_pulls()?;
        self.check_pushes()
    }

    fn is_goal(&self) -> bool {
        let live = (1..=4).filter(|slot| self.commits.has(*slot) && self.counts(*slot) && !self.is_retired(*slot));
        let reached = live.fold(Objects::default(), |reached, slot| reached.and(self.needs(slot)));
        let gone = (1..=4).all(|slot| !self.commits.has(slot) || !self.is_retired(slot) || !self.bounds.retire);
        let kept = if self.bounds.retire { Objects::default() } else { self.needs(1).and(self.needs(2)) };
        let orphans = if self.bounds.orphans { self.present.minus(reached).minus(kept).any() } else { false };
        // What a lost manifest may reach stays as long as its commit does, and that may be the newest.
        let clean = self.lost || gone && !orphans;
        self.pushes_are_over() && self.pulls_are_over() && self.taker.is_over() && clean
    }

    fn describe(&self) -> String {
        let fenced = if self.fenced { ", owner fenced" } else { "" };
        let damaged = if self.damaged { ", 2 damaged" } else { "" };
        let lost = if self.lost { ", a manifest of 2 lost" } else { "" };
        let pinned = if self.pinned { ", 1 pinned" } else { "" };
        format!(
            "commits {:?}{damaged}{lost}{pinned}, tombstones {:?}, objects {:?}; pushes {:?}; pulls {:?}, {:?}; collectors {}, {}, {:?}; taker {:?}{fenced}",
            self.commits,
            self.tombstones,
            self.present,
            self.pushes,
            self.own,
            self.foreign,
            self.collectors[0].describe(),
            self.collectors[1].describe(),
            self.drivers.iter().map(Driver::describe).collect::<Vec<_>>(),
            self.taker
        )
    }
}
