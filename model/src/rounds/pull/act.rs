//! What may happen in a world of pull rounds, and what follows.

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
    /// The owner of the location has a newer checkpoint and retires those before.
    Retire,
    /// An agent has staged its part.
    Download(u8),
    /// An agent finds something of a retired checkpoint gone.
    Miss(u8),
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
        if now.left.retired > 0 {
            acts.push(Act::Retire);
        }
        acts.extend(now.late_order.map(|_| Act::LateOrderArrives));
        if now.rows.has_late_write() {
            acts.push(Act::LateWriteLands);
        }
        acts
    }

    fn of_host(&self, host: u8, acts: &mut Vec<Act>) {
        let (left, agent) = (&self.now.left, &self.now.hosts[usize::from(host)]);
        if let Some(Transfer { state: State::Running, what: What::Pull(step), round, .. }) = agent.known
            && self.is_retired(round, step)
        {
            acts.push(Act::Miss(host));
        }
        match agent.known.map(|known| known.state) {
            Some(State::Running) => acts.push(Act::Download(host)),
            Some(State::Stopping) => acts.extend([Act::Download(host), Act::StopEnds(host)]),
            Some(State::Installing) => acts.push(Act::Place(host)),
            Some(State::Done | State::Installed | State::Failed | State::NotFound | State::Gone) | None => {}
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
                    self.reached(Reached::Capped as u32);
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

    pub(super) fn apply(&mut self, act: Act) {
        let active = self.now.rows.active(&self.set.book);
        match act {
            Act::Admit => self.admit(active),
            Act::AskCancel => {
                if let Some(round) = active {
                    self.now.rows.request_cancel(round);
                }
            }
            Act::Claim(index) => {
                if let Some(round) = active {
                    self.now.rows.claim(index, round, Task::None);
                }
            }
            Act::Restart(host) => {
                self.now.left.restarts -= 1;
                self.restart(host);
            }
            Act::LoseDisk(host) => {
                self.now.left.lost_disks -= 1;
                self.restart(host);
                self.now.hosts[usize::from(host)].mark = None;
                self.now.disks[usize::from(host)] = Disk::with(&[]);
            }
            Act::Retire => self.now.left.retired -= 1,
            Act::Download(host) => self.download(host),
            Act::Miss(host) => self.end(host, State::Gone),
            Act::StopEnds(host) => self.end(host, State::Failed),
            Act::Place(host) => self.place(host),
            Act::LateOrderArrives => {
                if let Some(order) = self.now.late_order.take() {
                    self.deliver(&order);
                }
            }
            Act::LateWriteLands => self.now.rows.late_write_lands(&self.set.book),
            Act::Notice(index)
            | Act::Reload(index)
            | Act::Resolve(index)
            | Act::Order(index, _)
            | Act::OrderLate(index, _)
            | Act::Install(index, _)
            | Act::InstallLate(index, _)
            | Act::InstallAhead(index, _)
            | Act::Unreachable(index, _)
            | Act::Describe(index, _)
            | Act::Confirm(index, _)
            | Act::ConfirmFails(index, _)
            | Act::ConfirmSkipped(index)
            | Act::TakeCancel(index)
            | Act::Expire(index)
            | Act::Write(index, _) => {
                if let Some(driver) = self.now.rows.drivers[index] {
                    self.now.rows.drivers[index] = self.drive(act, driver);
                }
            }
        }
    }

    /// One transaction: the pull that is installing ends, the new one begins (`store/admit.rs`).
    fn admit(&mut self, active: Option<u8>) {
        let round = self.now.rows.admitted();
        if let Some(before) = active {
            let answer = self.set.book.decide(self.now.rows.row(before).page, Told::Superseded { by: round }, 0);
            self.now.rows.write_locked(before, answer.next);
        }
        let page = self.set.book.enter(self.set.book.cast.pull(round));
        self.now.rows.admit(page);
    }

    /// Staging doesn't outlive its process.
    fn restart(&mut self, host: u8) {
        self.now.hosts[usize::from(host)].restart();
        self.now.disks[usize::from(host)].staged = None;
    }

    fn end(&mut self, host: u8, state: State) {
        if let Some(known) = &mut self.now.hosts[usize::from(host)].known {
            known.state = state;
        }
    }

    fn download(&mut self, host: u8) {
        let Some(known) = self.now.hosts[usize::from(host)].known else { return };
        self.now.disks[usize::from(host)].staged = Some((known.round, known.what.step()));
        self.end(host, State::Done);
    }

    /// `install::place`, in its two steps.
    fn place(&mut self, host: u8) {
        let Some(known) = self.now.hosts[usize::from(host)].known else { return };
        let disk = &mut self.now.disks[usize::from(host)];
        let step = known.what.step();
        self.now.touched |= 1 << known.round;
        if disk.has(step) {
            if !planted::is(Bug::OtherCheckpointsStay) {
                disk.keep_only(step);
            }
            disk.staged = None;
            self.end(host, State::Installed);
        } else if disk.staged == Some((known.round, step)) {
            disk.show(step);
        } else {
            self.end(host, State::NotFound);
        }
    }

    fn deliver(&mut self, order: &Order) -> Answered {
        let index = usize::from(order.host);
        let answered = self.now.hosts[index].order(&self.set.book.cast, order);
        match (answered, order.what) {
            (Answered::Started, What::Install(_)) => {
                // What a later attempt of the same round installs may have been staged by an earlier one.
                if self.now.disks[index].staged.is_some_and(|(round, _)| round != order.round) {
                    self.now.disks[index].staged = None;
                }
                self.now.hosts[index].begin(order, State::Installing);
            }
            (Answered::Started, _) => {
                self.now.disks[index].staged = None;
                self.now.hosts[index].begin(order, State::Running);
            }
            (Answered::Known(known), What::Install(_))
                if matches!(known.state, State::Done | State::Failed | State::Gone) =>
            {
                self.now.hosts[index].begin(order, State::Installing);
            }
            _ => {}
        }
        answered
    }

    fn drive(&mut self, act: Act, mut driver: Driver<Task>) -> Option<Driver<Task>> {
        // The same entry throughout: pages never change.
        let set = Arc::clone(&self.set);
        let entry = set.book.entry(driver.page);
        let process = |now: &Now, host: u8| now.hosts[usize::from(host)].process;
        driver.task = match (act, driver.task) {
            (Act::Notice(_), _) => return None,
            (Act::Reload(_), _) => return self.now.rows.reload(driver),
            (Act::Resolve(_), _) => self.resolve(&driver),
            (Act::Order(_, host), _) => self.follow(&Self::order(&driver, entry, host, false)),
            (Act::Install(_, host), _) => self.follow_install(&Self::order(&driver, entry, host, true)),
            (Act::OrderLate(_, host), task) => {
                self.now.left.late_orders -= 1;
                self.now.late_order = Some(Self::order(&driver, entry, host, false));
                task
            }
            (Act::InstallLate(_, host), task) => {
                self.now.left.late_orders -= 1;
                self.now.late_order = Some(Self::order(&driver, entry, host, true));
                task
            }
            (Act::InstallAhead(_, host), Task::Tell { told, .. }) => {
                let next = set.book.entry(set.book.decide(driver.page, told, 0).next);
                if next.phase() == Phase::Installing {
                    self.deliver(&Self::order(&driver, next, host, true));
                }
                driver.task
            }
            (Act::Unreachable(_, host), _) => {
                self.now.left.unreachable -= 1;
                failed(host, entry.attempt(host), Trouble::Unreachable)
            }
            (Act::Describe(_, host), _) => {
                Task::tell(Told::HostReady { host, attempt: entry.attempt(host), process: process(&self.now, host) })
            }
            (Act::Confirm(_, host), task) => self.confirmed(task, entry, host, Some(process(&self.now, host))),
            (Act::ConfirmFails(_, host), task) => {
                self.now.left.unreachable -= 1;
                self.confirmed(task, entry, host, None)
            }
            (Act::ConfirmSkipped(_), task) => {
                self.hosts().fold(task, |task, host| self.confirmed(task, entry, host, Some(entry.process(host))))
            }
            (Act::TakeCancel(_), _) => Task::tell(Told::Cancel),
            (Act::Expire(_), _) => Task::tell(Told::Deadline),
            (Act::Write(_, fault), Task::Tell { told, torn }) => {
                let answer = set.book.decide(driver.page, told, driver.term);
                let before = self.row_entry(driver.round).phase();
                let written = self.now.rows.write(&set.book, driver, answer, (fault, Task::None));
                let after = self.row_entry(driver.round).phase();
                self.now.torn |= torn && before != after && after == Phase::Installed;
                return Some(written);
            }
            (_, task) => task,
        };
        Some(driver)
    }

    fn resolve(&self, driver: &Driver<Task>) -> Task {
        let mut processes: Processes = [None; MOST_HOSTS];
        for host in self.hosts() {
            processes[usize::from(host)] = Some(self.now.hosts[usize::from(host)].process);
        }
        let local = self.hosts().all(|host| self.now.disks[usize::from(host)].has(LOCAL_STEP));
        let (source, step) = match self.set.bounds.sources[usize::from(driver.round)] {
            source @ (From::Local | From::LocalAndCommit) if local => (source, LOCAL_STEP),
            _ => (From::Location, self.newest(driver.round)),
        };
        Task::tell(Told::Resolved { source, step, processes })
    }

    fn follow(&mut self, order: &Order) -> Task {
        match self.deliver(order) {
            Answered::Refused(Reason::TransferInProgress) | Answered::Started => Task::None,
            Answered::Refused(reason) => failed(order.host, order.attempt, Trouble::of(reason)),
            Answered::Known(known) if known.what.step() != order.what.step() => {
                // Where the agent has done it, the dispatcher refuses what it did.
                self.now.mixed = true;
                Task::None
            }
            Answered::Known(known) => match known.state {
                // Installed is staged too, and more.
                State::Done | State::Installed => {
                    Task::tell(Told::Staged { host: order.host, attempt: order.attempt, process: order.process })
                }
                State::Failed => failed(order.host, order.attempt, Trouble::Stopped),
                State::NotFound => failed(order.host, order.attempt, Trouble::NotFound),
                State::Gone => {
                    let step = order.what.step();
                    Task::tell(Told::SourceRetired { host: order.host, attempt: order.attempt, step })
                }
                State::Running | State::Stopping | State::Installing => Task::None,
            },
        }
    }

    fn follow_install(&mut self, order: &Order) -> Task {
        let installed =
            Task::tell(Told::Installed { host: order.host, attempt: order.attempt, process: order.process });
        match self.deliver(order) {
            Answered::Started | Answered::Known(_) if planted::is(Bug::AcceptedTakenAsInstalled) => installed,
            Answered::Refused(Reason::TransferInProgress) | Answered::Started => Task::None,
            Answered::Refused(reason) => failed(order.host, order.attempt, Trouble::of(reason)),
            Answered::Known(known) => match known.state {
                State::Installed if known.what.step() == order.what.step() => installed,
                State::NotFound => failed(order.host, order.attempt, Trouble::NotFound),
                _ => Task::None,
            },
        }
    }

    fn confirmed(&self, task: Task, entry: &Entry, host: u8, process: Option<u8>) -> Task {
        let (asked, mut processes, torn) = match task {
            Task::Confirming { asked, processes, torn } => (asked, processes, torn),
            _ => (0, [None; MOST_HOSTS], false),
        };
        let asked = asked | 1 << host;
        processes[usize::from(host)] = process;
        let torn = torn || !self.now.disks[usize::from(host)].has_only(Self::step_of(entry));
        if self.hosts().all(|host| asked & 1 << host != 0) {
            Task::Tell { told: Told::Confirmed { processes }, torn }
        } else {
            Task::Confirming { asked, processes, torn }
        }
    }
}

const fn failed(host: u8, attempt: u8, why: Trouble) -> Task {
    Task::tell(Told::HostFailed { host, attempt, why })
}
