//! The database's rows and those who drive them, as `coordinator/src/store` and `coordinator/src/dispatch` treat them.
//!
//! Versions only rise and are only compared for being the same, so what a driver remembers of one is whether it is the row's still. Two replicas that
//! may claim at any time, since a lease that runs out only permits it: one that is paused, crashed or cut off is one that doesn't act.

use lockstep_protocol::planted::{self, Bug};

use super::book::{Answer, Book, Page};

pub(super) const MOST_ROWS: usize = 2;
const REPLICAS: usize = 2;

/// One round in the database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Row {
    pub(super) page: Page,
    pub(super) term: u8,
    /// Somebody's wish, beside the round.
    pub(super) cancel_requested: bool,
}

/// How a driver's copy relates to the row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Copy {
    /// The row has this version.
    Current,
    /// The row has moved; the driver does not know.
    Stale,
    /// A write found the row moved, or its outcome is unknown (R6): the driver reads the row again before anything else.
    Reload,
}

/// A replica that drives a round. Its task outlives a reload: the event is decided on again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Driver<T> {
    pub(super) round: u8,
    pub(super) term: u8,
    pub(super) page: Page,
    pub(super) copy: Copy,
    pub(super) task: T,
}

/// How a database write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteFault {
    /// Executed and answered.
    None,
    /// Executed; the answer to the COMMIT is lost.
    Lost,
    /// Not executed, and that is not known.
    Dropped,
    /// Not executed yet.
    Late,
}

/// A statement whose answer was lost and that is executed later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct LateWrite {
    round: u8,
    term: u8,
    current: bool,
    next: Page,
    fence_pipeline: bool,
}

/// The pipeline's rounds in the database, and the replicas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Rows<T> {
    admitted: u8,
    rows: [Row; MOST_ROWS],
    pub(super) pipeline_fenced: bool,
    pub(super) drivers: [Option<Driver<T>>; REPLICAS],
    late_write: Option<LateWrite>,
    /// Writes that may still go wrong.
    faults_left: u8,
    /// S6 was broken.
    unguarded: bool,
}

impl<T: std::marker::Copy + Ord> Rows<T> {
    /// The first round was admitted, nobody drives it yet.
    pub(super) const fn new(first: Page, faults_left: u8) -> Self {
        Self {
            admitted: 1,
            rows: [Row { page: first, term: 0, cancel_requested: false }; MOST_ROWS],
            pipeline_fenced: false,
            drivers: [None; REPLICAS],
            late_write: None,
            faults_left,
            unguarded: false,
        }
    }

    pub(super) const fn admitted(&self) -> u8 {
        self.admitted
    }

    pub(super) const fn rounds(&self) -> std::ops::Range<u8> {
        0..self.admitted
    }

    pub(super) fn row(&self, round: u8) -> &Row {
        &self.rows[usize::from(round)]
    }

    fn ended(&self, book: &Book, round: u8) -> bool {
        book.entry(self.row(round).page).phase().is_terminal()
    }

    pub(super) fn active(&self, book: &Book) -> Option<u8> {
        self.rounds().find(|&round| !self.ended(book, round))
    }

    /// S6 and S13.
    pub(super) fn check(&self, book: &Book) -> Result<(), String> {
        if self.unguarded {
            return Err("S6: a row changed under a writer whose version and term are not current".to_owned());
        }
        if self.rounds().filter(|&round| !self.ended(book, round)).count() > 1 {
            return Err("S13: two active rounds".to_owned());
        }
        Ok(())
    }

    pub(super) fn admit(&mut self, page: Page) {
        self.rows[usize::from(self.admitted)] = Row { page, term: 0, cancel_requested: false };
        self.admitted += 1;
    }

    pub(super) fn request_cancel(&mut self, round: u8) {
        self.rows[usize::from(round)].cancel_requested = true;
    }

    /// The place of a replica that drives nothing.
    pub(super) fn free(&self) -> Option<usize> {
        self.drivers.iter().position(Option::is_none)
    }

    /// Raises the term, and the version with it.
    pub(super) fn claim(&mut self, index: usize, round: u8, task: T) {
        self.moved(round);
        let row = &mut self.rows[usize::from(round)];
        row.term += 1;
        self.drivers[index] = Some(Driver { round, term: row.term, page: row.page, copy: Copy::Current, task });
    }

    /// The row has another version than anybody remembers.
    fn moved(&mut self, round: u8) {
        for driver in self.drivers.iter_mut().flatten() {
            if driver.round == round && driver.copy == Copy::Current {
                driver.copy = Copy::Stale;
            }
        }
        if let Some(late) = &mut self.late_write
            && late.round == round
        {
            late.current = false;
        }
    }

    /// `WHERE id = .. AND version = .. AND term = .. AND ended_at IS NULL`, as `store/apply.rs` has it. False: nothing was written.
    fn store(&mut self, book: &Book, write: LateWrite) -> bool {
        let row = *self.row(write.round);
        let unguarded = planted::is(Bug::NoGuardInWhere);
        let version = write.current || unguarded || planted::is(Bug::NoVersionInWhere);
        let term = write.term == row.term || unguarded || planted::is(Bug::NoTermInWhere);
        if self.ended(book, write.round) || !version || !term {
            return false;
        }
        self.unguarded |= write.term != row.term || !write.current;
        self.moved(write.round);
        self.rows[usize::from(write.round)].page = write.next;
        self.pipeline_fenced |= write.fence_pipeline;
        true
    }

    /// A decision is written inside the transaction that admits another round, under the row's lock.
    pub(super) fn write_locked(&mut self, round: u8, next: Page) {
        self.moved(round);
        self.rows[usize::from(round)].page = next;
    }

    /// A driver writes what it decided.
    pub(super) fn write(
        &mut self,
        book: &Book,
        mut driver: Driver<T>,
        answer: Answer,
        (fault, idle): (WriteFault, T),
    ) -> Driver<T> {
        if !answer.changes {
            driver.task = idle;
            return driver;
        }
        let current = driver.copy == Copy::Current;
        let Answer { next, fence_pipeline, .. } = answer;
        let write = LateWrite { round: driver.round, term: driver.term, current, next, fence_pipeline };
        match fault {
            WriteFault::None => {
                if self.store(book, write) {
                    return Driver { page: next, copy: Copy::Current, task: idle, ..driver };
                }
                driver.copy = Copy::Reload;
                return driver;
            }
            WriteFault::Lost => {
                self.store(book, write);
            }
            WriteFault::Dropped => {}
            WriteFault::Late => self.late_write = Some(write),
        }
        self.faults_left -= 1;
        driver.copy = Copy::Reload;
        driver
    }

    /// How a write may go now.
    pub(super) fn write_faults(&self) -> Vec<WriteFault> {
        let mut faults = vec![WriteFault::None];
        if self.faults_left > 0 {
            faults.extend([WriteFault::Lost, WriteFault::Dropped]);
            if self.late_write.is_none() {
                faults.push(WriteFault::Late);
            }
        }
        faults
    }

    pub(super) const fn has_late_write(&self) -> bool {
        self.late_write.is_some()
    }

    pub(super) fn late_write_lands(&mut self, book: &Book) {
        if let Some(late) = self.late_write.take() {
            self.store(book, late);
        }
    }

    /// None: the round is somebody else's.
    pub(super) fn reload(&self, mut driver: Driver<T>) -> Option<Driver<T>> {
        let row = self.row(driver.round);
        if row.term != driver.term {
            return None;
        }
        driver.page = row.page;
        driver.copy = Copy::Current;
        Some(driver)
    }

    /// What doesn't matter any more is forgotten, and the replicas are alike: states that differ in that only are one.
    pub(super) fn tidy(&mut self, book: &Book) {
        for driver in &mut self.drivers {
            if driver.is_some_and(|driver| book.entry(driver.page).phase().is_terminal()) {
                *driver = None;
            }
        }
        self.drivers.sort_unstable_by(|a, b| b.cmp(a));
        let late = self.late_write;
        self.late_write = late.filter(|late| !self.ended(book, late.round));
    }
}
