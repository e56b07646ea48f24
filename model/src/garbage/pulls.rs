//! Pulls of the first checkpoint: by the owner's own database, and by another one that follows the location.

use super::{Action, Garbage};

/// Of the owner's database: the row keeps the source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Own {
    Idle,
    /// Read in the bucket, not stored.
    Resolved,
    /// Stored under the row lock: the row pins it.
    Pulling,
    Over,
}

impl Own {
    pub(super) fn is_stored(self) -> bool {
        self == Self::Pulling
    }
}

/// Of another database: a pin keeps the source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Foreign {
    Idle,
    /// Read in the bucket, no pin yet.
    Resolved,
    /// The pin stands, the tombstone was not looked for.
    Pinned,
    /// There was none: it pulls.
    Pulling,
    Over,
}

impl Garbage {
    pub(super) fn pull_actions(&self, actions: &mut Vec<Action>) {
        let there = self.commits.has(1) && self.tombstones[0] == 0;
        if self.bounds.own_pull && self.own != Own::Over && !self.fenced && (self.own != Own::Idle || there) {
            actions.push(Action::OwnPull);
        }
        if self.bounds.foreign_pull && self.foreign != Foreign::Over && (self.foreign != Foreign::Idle || there) {
            actions.push(Action::ForeignPull);
        }
    }

    pub(super) fn own_pull(&mut self) {
        self.own = match self.own {
            Own::Idle => Own::Resolved,
            // Under the row lock: a marked commit is resolved anew, and this world has no other.
            Own::Resolved if self.collectors[0].marked().has(1) => Own::Over,
            Own::Resolved => Own::Pulling,
            Own::Pulling | Own::Over => Own::Over,
        };
    }

    /// G5: a pin, *then* no tombstone, then the pull.
    pub(super) fn foreign_pull(&mut self) {
        (self.foreign, self.pinned) = match self.foreign {
            Foreign::Idle => (Foreign::Resolved, false),
            Foreign::Resolved => (Foreign::Pinned, true),
            Foreign::Pinned if self.tombstones[0] > 0 => (Foreign::Over, false),
            Foreign::Pinned => (Foreign::Pulling, true),
            Foreign::Pulling | Foreign::Over => (Foreign::Over, false),
        };
    }

    pub(super) fn pulls_are_over(&self) -> bool {
        !self.pinned && self.own != Own::Pulling
    }

    /// S10. Once it was taken over, the old owner's rows keep nothing any more.
    pub(super) fn check_pulls(&self) -> Result<(), String> {
        let lacks = self.needs(1).minus(self.present);
        if self.own == Own::Pulling && self.taker.base().is_none() && lacks.any() {
            return Err(format!("S10: the owner pulls commit 1, which lacks {lacks:?}"));
        }
        if self.foreign == Foreign::Pulling && lacks.any() {
            return Err(format!("S10: another database pulls commit 1, which lacks {lacks:?}"));
        }
        Ok(())
    }
}
