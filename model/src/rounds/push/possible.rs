//! What may happen in a world of push rounds.

use super::*;

/// How a decision PUT goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutFault {
    /// Executed and answered, or its answer lost and the key read after it.
    None,
    /// Executed; neither its answer nor what stands there gets through.
    Lost,
    /// Not executed.
    Dropped,
    /// Not executed yet.
    Late,
}

/// Something that may happen. `usize` is a driver, `u8` a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// A further push is admitted.
    Admit,
    /// Somebody asks to cancel the active round.
    AskCancel,
    /// A replica claims the active round.
    Claim(usize),
    /// A driver learns that its round is somebody else's or over.
    Notice(usize),
    /// A driver reads its row again.
    Reload(usize),
    /// The bucket is compared, the agents are asked, a cut is chosen.
    Plan(usize),
    /// The present attempt is ordered, or followed.
    Order(usize, u8),
    /// The order is sent and arrives later.
    OrderLate(usize, u8),
    /// A report is made and arrives later.
    ReportLate(usize, u8),
    /// An agent does not answer for too long.
    Unreachable(usize, u8),
    /// A host that backs off is asked for its process.
    Describe(usize, u8),
    /// Parts are read and compared.
    CheckParts(usize),
    /// The decision's bytes are put.
    Put(usize, PutFault),
    /// Planted: bytes are put that are not stored yet.
    PutAhead(usize),
    /// What follows the generation is read.
    Look(usize),
    /// It can't be read.
    LookFails(usize),
    /// A fence without a base was met: commits are listed (F3).
    FinishLists(usize),
    /// The base is put, and what stands is read.
    FinishPuts(usize),
    /// The driver hears of the cancel.
    TakeCancel(usize),
    /// The deadline passes.
    Expire(usize),
    /// Decide and write.
    Write(usize, WriteFault),
    /// An agent restarts.
    Restart(u8),
    /// An agent has written its part.
    Upload(u8),
    /// A transfer has stopped.
    StopEnds(u8),
    /// See [`PutFault::Late`].
    LatePutLands,
    /// See [`Act::OrderLate`].
    LateOrderArrives,
    /// See [`Act::ReportLate`].
    LateReportArrives(usize),
    /// See [`WriteFault::Late`].
    LateWriteLands,
    /// A taker writes fence g+1.
    TakerFences,
    /// It lists commits.
    TakerLists,
    /// It puts the base.
    TakerPuts,
    /// It dies.
    TakerDies,
    /// A reader of `latest` reads the highest fence.
    ReadFences,
    /// It lists commits.
    ReadCommits,
    /// It looks for a newer fence.
    ReadAgain,
}

impl Push {
    pub(super) fn possible(&self) -> Vec<Act> {
        let mut acts = Vec::with_capacity(16);
        let (now, bounds) = (&self.now, &self.set.bounds);
        let active = self.active();
        let admits = active.is_none() || planted::is(Bug::SecondRoundAdmitted);
        if admits && now.rows.admitted() < bounds.rounds && !now.rows.pipeline_fenced {
            acts.push(Act::Admit);
        }
        if let Some(round) = active {
            if bounds.cancel && !now.rows.row(round).cancel_requested && self.row_entry(round).cancellable {
                acts.push(Act::AskCancel);
            }
            if now.rows.row(round).term < bounds.claims
                && let Some(free) = now.rows.free()
            {
                acts.push(Act::Claim(free));
            }
        }
        for (index, driver) in now.rows.drivers.iter().enumerate() {
            if let Some(driver) = driver {
                self.of_driver(index, driver, &mut acts);
            }
        }
        for host in self.hosts() {
            let known = now.hosts[usize::from(host)].known.map(|known| known.state);
            if matches!(known, Some(State::Running | State::Stopping)) {
                acts.push(Act::Upload(host));
            }
            if known == Some(State::Stopping) {
                acts.push(Act::StopEnds(host));
            }
            if now.left.restarts > 0 && now.hosts[usize::from(host)].process < MOST_INCARNATIONS {
                acts.push(Act::Restart(host));
            }
        }
        acts.extend(now.late_put.map(|_| Act::LatePutLands));
        acts.extend(now.late_order.map(|_| Act::LateOrderArrives));
        if now.rows.has_late_write() {
            acts.push(Act::LateWriteLands);
        }
        match now.taker {
            Taker::Waits => acts.push(Act::TakerFences),
            Taker::Fenced => acts.extend([Act::TakerLists, Act::TakerDies]),
            Taker::Listed(_) => acts.push(Act::TakerPuts),
            Taker::Gone => {}
        }
        if bounds.reader {
            acts.push(match now.reader {
                Reader::Idle => Act::ReadFences,
                Reader::SawFirst => Act::ReadCommits,
                Reader::Listed(_) => Act::ReadAgain,
            });
        }
        acts
    }

    fn of_driver(&self, index: usize, driver: &Driver<Task>, acts: &mut Vec<Act>) {
        let (now, bounds) = (&self.now, &self.set.bounds);
        if driver.term != now.rows.row(driver.round).term {
            acts.push(Act::Notice(index));
        }
        if driver.copy == Copy::Reload {
            acts.push(Act::Reload(index));
            return;
        }
        let entry = self.entry(driver.page);
        let idle = driver.task == Task::None;
        if !matches!(driver.task, Task::Tell(_))
            && now.rows.row(driver.round).cancel_requested
            && entry.round.cancel.is_none()
            && entry.cancellable
        {
            acts.push(Act::TakeCancel(index));
        }
        match driver.task {
            Task::None => {}
            Task::Decided(_) => {
                acts.push(Act::Look(index));
                if now.left.puts > 0 {
                    acts.push(Act::LookFails(index));
                }
                if now.fence == Fence::Only {
                    acts.push(Act::FinishLists(index));
                }
            }
            Task::Finishing(..) => acts.push(Act::FinishPuts(index)),
            Task::LookedEarly(_) => self.puts(index, acts),
            Task::Tell(_) => {
                if planted::is(Bug::EffectsBeforeStored) {
                    acts.push(Act::PutAhead(index));
                }
                acts.extend(now.rows.write_faults().into_iter().map(|fault| Act::Write(index, fault)));
            }
        }
        if !idle {
            return;
        }
        if bounds.deadline {
            acts.push(Act::Expire(index));
        }
        if now.late_report.is_some_and(|(round, _)| round == driver.round) {
            acts.push(Act::LateReportArrives(index));
        }
        for effect in &entry.effects {
            match effect {
                Effect::Plan => acts.push(Act::Plan(index)),
                Effect::Transfer { host_idx, .. } => {
                    let host = u8::try_from(*host_idx).unwrap_or(u8::MAX);
                    acts.push(Act::Order(index, host));
                    if now.left.late_orders > 0 && now.late_order.is_none() {
                        acts.push(Act::OrderLate(index, host));
                    }
                    if now.left.late_reports > 0 && now.late_report.is_none() && self.is_done(driver, host) {
                        acts.push(Act::ReportLate(index, host));
                    }
                    if now.left.unreachable > 0 {
                        acts.push(Act::Unreachable(index, host));
                    }
                }
                Effect::Describe { host_idx, .. } => {
                    let host = u8::try_from(*host_idx).unwrap_or(u8::MAX);
                    acts.push(Act::Describe(index, host));
                    if now.left.unreachable > 0 {
                        acts.push(Act::Unreachable(index, host));
                    }
                }
                Effect::CheckParts => acts.push(Act::CheckParts(index)),
                Effect::SettleCommit | Effect::SettleAbort => {
                    if planted::is(Bug::FenceCheckBeforeCommit) {
                        acts.push(Act::Look(index));
                    } else {
                        self.puts(index, acts);
                    }
                }
                Effect::Resolve | Effect::Install { .. } | Effect::Confirm => {}
            }
        }
    }

    fn puts(&self, index: usize, acts: &mut Vec<Act>) {
        acts.push(Act::Put(index, PutFault::None));
        if self.now.left.puts > 0 {
            acts.extend([Act::Put(index, PutFault::Lost), Act::Put(index, PutFault::Dropped)]);
            if self.now.late_put.is_none() {
                acts.push(Act::Put(index, PutFault::Late));
            }
        }
    }

    fn is_done(&self, driver: &Driver<Task>, host: u8) -> bool {
        let order = self.order_of(driver, host);
        self.now.hosts[usize::from(host)].known.is_some_and(|known| {
            known.state == State::Done
                && (known.round, known.attempt, known.process) == (order.round, order.attempt, order.process)
        })
    }
}
