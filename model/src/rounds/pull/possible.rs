//! What may happen in a world of pull rounds.

use super::*;

/// Something that may happen. `usize` is a driver, `u8` a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// A further pull is admitted; one that is installing is superseded in the same transaction.
    Admit,
    /// Somebody asks to cancel the active round.
    AskCancel,
    /// A replica claims the active round.
    Claim(usize),
    /// A driver learns that its round is somebody else's or over.
    Notice(usize),
    /// A driver reads its row again.
    Reload(usize),
    /// One source is chosen for all hosts.
    Resolve(usize),
    /// The present attempt is ordered, or followed.
    Order(usize, u8),
    /// The order is sent and arrives later.
    OrderLate(usize, u8),
    /// The install is ordered, or followed.
    Install(usize, u8),
    /// The install is ordered and arrives later.
    InstallLate(usize, u8),
    /// Planted: an install is ordered by what is not stored yet.
    InstallAhead(usize, u8),
    /// An agent does not answer for too long.
    Unreachable(usize, u8),
    /// A host that backs off is asked for its process.
    Describe(usize, u8),
    /// A host is asked for its process once more.
    Confirm(usize, u8),
    /// It does not answer.
    ConfirmFails(usize, u8),
    /// Planted: nobody is asked.
    ConfirmSkipped(usize),
    /// The driver hears of the cancel.
    TakeCancel(usize),
    /// The deadline passes.
    Expire(usize),
    /// Decide and write.
    Write(usize, WriteFault),
    /// An agent restarts.
    Restart(u8),
    /// An agent restarts elsewhere, with an empty disk.
    LoseDisk(u8),
    /// An agent has staged its part.
    Download(u8),
    /// A transfer has stopped.
    StopEnds(u8),
    /// A step of an install.
    Place(u8),
    /// See [`Act::OrderLate`].
    LateOrderArrives,
    /// See [`WriteFault::Late`].
    LateWriteLands,
}

impl Pull {
    pub(super) fn possible(&self) -> Vec<Act> {
        let mut acts = Vec::with_capacity(16);
        let (now, bounds, book) = (&self.now, &self.set.bounds, &self.set.book);
        let active = now.rows.active(book);
        let admits = active.is_none_or(|round| self.row_entry(round).phase() == Phase::Installing);
        if admits && now.rows.admitted() < bounds.rounds {
            acts.push(Act::Admit);
        }
        if let Some(round) = active {
            let row = now.rows.row(round);
            if bounds.cancel && !row.cancel_requested && self.row_entry(round).cancellable {
                acts.push(Act::AskCancel);
            }
            if row.term < bounds.claims
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
            self.of_host(host, &mut acts);
        }
        acts.extend(now.late_order.map(|_| Act::LateOrderArrives));
        if now.rows.has_late_write() {
            acts.push(Act::LateWriteLands);
        }
        acts
    }

    fn of_host(&self, host: u8, acts: &mut Vec<Act>) {
        let (left, agent) = (&self.now.left, &self.now.hosts[usize::from(host)]);
        match agent.known.map(|known| known.state) {
            Some(State::Running) => acts.push(Act::Download(host)),
            Some(State::Stopping) => acts.extend([Act::Download(host), Act::StopEnds(host)]),
            Some(State::Installing) => acts.push(Act::Place(host)),
            Some(State::Done | State::Installed | State::Failed | State::NotFound) | None => {}
        }
        if agent.process < MOST_INCARNATIONS {
            if left.restarts > 0 {
                acts.push(Act::Restart(host));
            }
            if left.lost_disks > 0 {
                acts.push(Act::LoseDisk(host));
            }
        }
    }

    fn of_driver(&self, index: usize, driver: &Driver<Task>, acts: &mut Vec<Act>) {
        let (now, bounds) = (&self.now, &self.set.bounds);
        let row = now.rows.row(driver.round);
        if driver.term != row.term {
            acts.push(Act::Notice(index));
        }
        if driver.copy == Copy::Reload {
            acts.push(Act::Reload(index));
            return;
        }
        let entry = self.entry(driver.page);
        if !matches!(driver.task, Task::Tell { .. })
            && row.cancel_requested
            && entry.round.cancel.is_none()
            && entry.cancellable
        {
            acts.push(Act::TakeCancel(index));
        }
        match driver.task {
            Task::Tell { .. } => {
                if planted::is(Bug::EffectsBeforeStored) {
                    acts.extend(self.hosts().map(|host| Act::InstallAhead(index, host)));
                }
                acts.extend(now.rows.write_faults().into_iter().map(|fault| Act::Write(index, fault)));
            }
            Task::Confirming { asked, .. } => self.confirms(index, asked, acts),
            Task::None => {
                if bounds.deadline {
                    acts.push(Act::Expire(index));
                }
                for effect in &entry.effects {
                    self.of_effect(index, driver, effect, acts);
                }
            }
        }
    }

    fn confirms(&self, index: usize, asked: u8, acts: &mut Vec<Act>) {
        for host in self.hosts().filter(|host| asked & 1 << host == 0) {
            acts.push(Act::Confirm(index, host));
            if self.now.left.unreachable > 0 {
                acts.push(Act::ConfirmFails(index, host));
            }
        }
    }

    fn of_effect(&self, index: usize, driver: &Driver<Task>, effect: &Effect, acts: &mut Vec<Act>) {
        let left = &self.now.left;
        let number = |host_idx: u32| u8::try_from(host_idx).unwrap_or(u8::MAX);
        let late = left.late_orders > 0 && self.now.late_order.is_none();
        match *effect {
            Effect::Resolve => acts.push(Act::Resolve(index)),
            Effect::Transfer { host_idx, .. } => {
                acts.push(Act::Order(index, number(host_idx)));
                if late {
                    acts.push(Act::OrderLate(index, number(host_idx)));
                }
                if left.unreachable > 0 {
                    acts.push(Act::Unreachable(index, number(host_idx)));
                }
            }
            Effect::Install { host_idx, .. } => {
                acts.push(Act::Install(index, number(host_idx)));
                if late {
                    acts.push(Act::InstallLate(index, number(host_idx)));
                }
                if left.unreachable > 0 {
                    acts.push(Act::Unreachable(index, number(host_idx)));
                }
            }
            Effect::Describe { host_idx, .. } => {
                let host = number(host_idx);
                if self.entry(driver.page).attempt(host) < MOST_ATTEMPTS {
                    acts.push(Act::Describe(index, host));
                } else {
                    self.set.met.add(Reached::Capped as u32);
                }
                if left.unreachable > 0 {
                    acts.push(Act::Unreachable(index, host));
                }
            }
            Effect::Confirm if planted::is(Bug::ConfirmSkipped) => acts.push(Act::ConfirmSkipped(index)),
            Effect::Confirm => self.confirms(index, 0, acts),
            Effect::Plan | Effect::CheckParts | Effect::SettleCommit | Effect::SettleAbort => {}
        }
    }
}
