//! Pushes that reuse what their base reaches.

use lockstep_protocol::{
    commit::CommitRef,
    fence::{Counts, Successor, counts},
    planted::{self, Bug},
};

use super::{Action, Garbage, Objects, Slot, facts};

/// A push's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Push {
    #[default]
    NotYet,
    /// A careless version has chosen its base.
    Chosen(Slot),
    Transferring(Slot),
    Committing(Slot),
    Committed(Slot),
    Failed(Slot),
}

impl Push {
    /// Its base; 0: none.
    pub(super) const fn base(self) -> Slot {
        match self {
            Self::NotYet => 0,
            Self::Chosen(base)
            | Self::Transferring(base)
            | Self::Committing(base)
            | Self::Committed(base)
            | Self::Failed(base) => base,
        }
    }

    pub(super) const fn is_active(self) -> bool {
        matches!(self, Self::Transferring(_) | Self::Committing(_))
    }

    const fn is_admitted(self) -> bool {
        !matches!(self, Self::NotYet | Self::Chosen(_))
    }
}

impl Garbage {
    pub(super) fn push_of(&self, slot: Slot) -> Push {
        if slot < 3 { Push::NotYet } else { self.pushes[usize::from(slot) - 3] }
    }

    fn set(&mut self, slot: Slot, push: Push) {
        self.pushes[usize::from(slot) - 3] = push;
    }

    pub(super) fn is_committed(&self, slot: Slot) -> bool {
        slot < 3 || matches!(self.push_of(slot), Push::Committed(_))
    }

    /// Whose push it is: the generation.
    const fn pusher(&self, slot: Slot) -> u8 {
        if self.bounds.taken && slot == 4 { 2 } else { 1 }
    }

    /// What a database's active rounds keep: production's rule over their rows.
    pub(super) fn in_use(&self, generation: u8) -> std::collections::BTreeSet<CommitRef> {
        let mut active = Vec::new();
        for slot in [3, 4] {
            let push = self.push_of(slot);
            if push.is_active() && self.pusher(slot) == generation {
                active.push(facts::push((push.base() > 0).then(|| self.facts().commit(push.base()))));
            }
        }
        if generation == 1 && self.own.is_stored() {
            active.push(facts::pull(self.facts().commit(1)));
        }
        lockstep_protocol::garbage::in_use(&active)
    }

    /// The base that admission would choose: the newest that the database knows, neither damaged nor marked.
    fn base_now(&self, generation: u8) -> Slot {
        let marked = self.collectors[usize::from(generation) - 1].marked();
        let good = |slot: &Slot| {
            self.is_committed(*slot)
                && self.pusher(*slot) <= generation
                && !marked.has(*slot)
                && !(self.damaged && *slot == 2)
        };
        if generation == 2 {
            // A taker looks: what it knows is what its base names and what it pushed.
            return self.latest(2).unwrap_or(0);
        }
        (1..=4).rev().find(good).unwrap_or(0)
    }

    pub(super) fn push_actions(&self, actions: &mut Vec<Action>) {
        for slot in [3, 4] {
            let push = self.push_of(slot);
            let generation = self.pusher(slot);
            let open = if generation == 1 { !self.fenced } else { self.taker.has_adopted() };
            // S13, and pushes come one after the other; a careless one may choose its base early.
            let before = slot == 3 || generation == 2 || self.push_of(3).is_admitted() && !self.push_of(3).is_active();
            let wanted = slot - 2 <= self.bounds.pushes || slot == 4 && self.bounds.taken;
            match push {
                Push::NotYet if planted::is(Bug::BaseChosenOutsideAdmission) && wanted && open => {
                    actions.push(Action::ChooseBase(slot));
                }
                Push::NotYet | Push::Chosen(_) if wanted && open && before => actions.push(Action::Admit(slot)),
                Push::Transferring(_) => {
                    actions.push(Action::Fail(slot));
                    if self.present.has(facts::data(slot).and(facts::manifest(slot))) {
                        actions.push(Action::Commit(slot));
                    }
                }
                Push::Committing(_) if self.commits.has(slot) || self.taker.base().is_some() => {
                    actions.push(Action::Settle(slot));
                }
                _ => {}
            }
            let own = facts::data(slot).and(facts::manifest(slot));
            if self.sent.has(own) && !self.present.has(own) {
                actions.push(Action::UploadLands(slot));
            }
        }
        if self.sent.has(facts::DEAD) && !self.present.has(facts::DEAD) {
            actions.push(Action::DeadUploadLands);
        }
        let may_land = self.sent_commits.minus(self.commits);
        actions.extend(may_land.iter().map(Action::CommitLands));
        if self.present.both(self.deletes).any() || self.commits.both(self.delete_commits).any() {
            actions.push(Action::DeletesLand);
        }
        if self.bounds.damage && !self.damaged {
            actions.push(Action::Damage);
        }
        if self.bounds.loss && !self.lost && self.commits.has(2) {
            actions.push(Action::Lose);
        }
    }

    pub(super) fn choose_base(&mut self, slot: Slot) {
        let base = self.base_now(self.pusher(slot));
        self.set(slot, Push::Chosen(base));
    }

    pub(super) fn admit(&mut self, slot: Slot) {
        let base = match self.push_of(slot) {
            Push::Chosen(base) => base,
            _ => self.base_now(self.pusher(slot)),
        };
        if self.pusher(slot) == 2 && base < self.taker.base().and_then(|base| base.newest).unwrap_or(0) && !self.damaged
        {
            self.wrong = Some("S11: latest went back behind what the base names");
        }
        self.set(slot, Push::Transferring(base));
        let dead = if slot == 3 && self.bounds.orphans { facts::DEAD } else { Objects::default() };
        self.sent = self.sent.and(facts::data(slot)).and(facts::manifest(slot)).and(dead);
    }

    pub(super) fn fail(&mut self, slot: Slot) {
        let base = self.push_of(slot).base();
        self.set(slot, Push::Failed(base));
    }

    pub(super) fn commit(&mut self, slot: Slot) {
        let base = self.push_of(slot).base();
        self.set(slot, Push::Committing(base));
        self.sent_commits = self.sent_commits.with(slot);
    }

    /// Push steps 4 to 6; the taker has no successor.
    pub(super) fn settle(&mut self, slot: Slot) {
        let push = self.push_of(slot);
        let commit = self.facts().commit(slot);
        let successor = match (self.pusher(slot), self.base_of(2)) {
            (1, Some(base)) => Successor::Base(base),
            (1, None) if self.taker.has_fence() => Successor::FenceOnly,
            _ => Successor::Absent,
        };
        match counts(commit.generation, commit.seq, &successor) {
            Counts::No => {
                self.fenced = true;
                self.set(slot, Push::Failed(push.base()));
            }
            Counts::Yes if self.commits.has(slot) => self.set(slot, Push::Committed(push.base())),
            _ => {}
        }
    }

    pub(super) fn pushes_are_over(&self) -> bool {
        self.pushes.iter().all(|push| !push.is_active())
    }

    /// S10: what the base of an active push reaches is there, as long as the push may still commit.
    pub(super) fn check_pushes(&self) -> Result<(), String> {
        for slot in [3, 4] {
            let push = self.push_of(slot);
            let may_commit = self.pusher(slot) == 2 || self.taker.base().is_none();
            if push.is_active() && may_commit && push.base() > 0 {
                let lacks = self.needs(push.base()).minus(facts::manifest(push.base())).minus(self.present);
                if lacks.any() {
                    return Err(format!("S10: push {slot} reuses commit {}, which lacks {lacks:?}", push.base()));
                }
            }
        }
        Ok(())
    }
}
