//! A database that owns a generation and pushes: from the stored bytes of a commit to what its caller is told (push steps 4 to 6, F4).

use lockstep_protocol::{
    fence::{FenceBase, Successor},
    finish::Finish,
    planted::{self, Bug},
    problem::{Problem, Reason},
    round::{DecisionKnown, Event, Phase, decide},
};

use super::{Finishing, Place, SEQS, TakeOvers, facts, finish_begin, finish_step};
use crate::interned::Interned;

/// Row and driver.
#[derive(Clone, Hash, Debug)]
pub(super) struct Writer {
    database: u8,
    /// That the row holds; 0: none.
    generation: u8,
    fenced: bool,
    /// The last pull of an activation is not done, so nothing is pushed (ADR 19).
    standby: bool,
    next_seq: u8,
    left: u8,
    /// The push in `Committing`.
    open: Option<Place>,
    driver: Driver,
}

/// What the driver of the open push remembers.
#[derive(Clone, Hash, Debug)]
enum Driver {
    /// Next: read the key.
    Start,
    /// The key was read: whether the commit stands. Next: read fence g+1.
    KeyRead(bool),
    /// Fence g+1 stands. Next: read its base, or that of this generation.
    FenceRead(bool, u8),
    /// It has none. Next: finish it.
    Finishing(bool, Finishing),
}

impl Writer {
    pub(super) const fn new(database: u8, pushes: u8) -> Self {
        let generation = if database == 0 { 1 } else { 0 };
        let standby = generation == 0;
        Self {
            database,
            generation,
            fenced: false,
            standby,
            next_seq: 1,
            left: pushes,
            open: None,
            driver: Driver::Start,
        }
    }

    pub(super) const fn database(&self) -> u8 {
        self.database
    }

    pub(super) const fn may_push(&self) -> bool {
        !self.standby && !self.fenced && self.open.is_none() && self.left > 0 && self.next_seq <= SEQS
    }

    /// That its row holds; 0: none.
    pub(super) const fn generation(&self) -> u8 {
        self.generation
    }

    pub(super) const fn is_standby(&self) -> bool {
        self.standby
    }

    /// Anything in the generation that its row holds.
    pub(super) const fn has_pushed(&self) -> bool {
        self.next_seq > 1
    }

    pub(super) const fn has_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) const fn open(&self) -> Option<Place> {
        self.open
    }

    pub(super) const fn remembers(&self) -> bool {
        !matches!(self.driver, Driver::Start)
    }

    pub(super) fn forget(&mut self) {
        self.driver = Driver::Start;
    }

    pub(super) fn fence(&mut self) {
        self.fenced = true;
    }

    /// The adopting transaction, before it is said whether there is something to pull; the open push was settled in it.
    pub(super) fn adopt(&mut self, generation: u8) {
        self.generation = generation;
        self.fenced = false;
        self.standby = true;
        self.next_seq = 1;
        self.close();
    }

    /// Nothing is left to pull.
    pub(super) fn own(&mut self) {
        self.standby = false;
    }

    fn close(&mut self) {
        self.open = None;
        self.driver = Driver::Start;
    }

    pub(super) fn describe(&self) -> String {
        let fenced = if self.fenced { ", fenced" } else { "" };
        let standby = if self.standby { ", standby" } else { "" };
        format!("database {} generation {}{fenced}{standby}, pushes {:?}", self.database, self.generation, self.open)
    }
}

impl TakeOvers {
    pub(super) fn push(&mut self, database: u8) {
        let writer = &mut self.writers[usize::from(database)];
        let place = (writer.generation, writer.next_seq);
        writer.next_seq += 1;
        writer.left -= 1;
        writer.open = Some(place);
        self.bucket.send_commit(place);
    }

    pub(super) fn writer_step(&mut self, database: u8) {
        let writer = &self.writers[usize::from(database)];
        let Some(place) = writer.open else { return };
        let next = match writer.driver.clone() {
            Driver::Start => Driver::KeyRead(self.bucket.has_commit(place)),
            Driver::KeyRead(stands) => {
                let highest = self.bucket.highest();
                let deciding = if planted::is(Bug::LaterBaseDecides) { highest } else { place.0 + 1 };
                if !self.bucket.has_fence(place.0 + 1) {
                    return self.told(database, place, stands, Successor::Absent);
                }
                Driver::FenceRead(stands, deciding)
            }
            Driver::FenceRead(stands, deciding) => match self.bucket.base_document(deciding) {
                Some(base) => return self.told(database, place, stands, Successor::Base(base)),
                None => match finish_begin(&mut self.bucket, deciding) {
                    Some(step) => Driver::Finishing(stands, Finishing::from(step)),
                    None => Driver::Start,
                },
            },
            Driver::Finishing(stands, Finishing::Done(base)) => {
                return self.told(database, place, stands, Successor::Base(FenceBase::clone(&base)));
            }
            Driver::Finishing(stands, Finishing::At(step)) => match finish_step(&mut self.bucket, &step) {
                Some(Finish::Done(base)) => Driver::Finishing(stands, Finishing::Done(Interned::new(base))),
                Some(step) => Driver::Finishing(stands, Finishing::At(Interned::new(step))),
                None => Driver::Start,
            },
        };
        self.writers[usize::from(database)].driver = next;
    }

    /// What production makes of it, and what the caller is told.
    fn told(&mut self, database: u8, place: Place, stands: bool, successor: Successor) {
        let decision = if stands {
            DecisionKnown::CommitStands
        } else {
            DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "no answer"))
        };
        let event = Event::Settled { decision, successor: Some(successor), jitter: 0 };
        let decision = decide(&facts::round(place), &event, facts::now());
        let writer = &mut self.writers[usize::from(database)];
        writer.driver = Driver::Start;
        writer.fenced |= decision.fence_pipeline;
        self.conclude(database, place, decision.next.phase);
    }

    pub(super) fn conclude(&mut self, database: u8, place: Place, phase: Phase) {
        match phase {
            Phase::Committed => self.acknowledged.add(place),
            Phase::Failed | Phase::Cancelled => self.failed.add(place),
            _ => return,
        }
        self.writers[usize::from(database)].close();
    }
}
