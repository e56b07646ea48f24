//! What a delete that did not happen holds up: the later stages of the checkpoints or the round that its object belongs to, so that what is left of them can still be read. Everything else goes
//! on: one object under a lock must not keep a location from becoming smaller.

use std::collections::BTreeSet;

use super::Doomed;
use crate::id::RoundId;

/// The owners of which something is left, while a [`super::Plan`] is carried out stage by stage.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeldUp(BTreeSet<RoundId>);

impl HeldUp {
    /// Of the next stage: what may go now, and how many wait. What waits is left of *all* its owners: a manifest that two commits need keeps both of their commit objects.
    pub fn stage<'p>(&mut self, stage: &'p [Doomed]) -> (Vec<&'p Doomed>, usize) {
        let (wait, due): (Vec<&Doomed>, Vec<&Doomed>) = stage.iter().partition(|doomed| self.holds(doomed));
        for doomed in &wait {
            self.left(doomed);
        }
        (due, wait.len())
    }

    /// The store did not let go of it, or nobody knows.
    pub fn left(&mut self, doomed: &Doomed) {
        self.0.extend(&doomed.owners);
    }

    fn holds(&self, doomed: &Doomed) -> bool {
        doomed.owners.iter().any(|owner| self.0.contains(owner))
    }
}
