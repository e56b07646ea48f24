//! What follows from what happens in a world of pull rounds.

use super::*;

impl Pull {
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
            Act::Download(host) => self.download(host),
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
            (Answered::Known(known), What::Install(_)) if matches!(known.state, State::Done | State::Failed) => {
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
            _ => (From::Location, LOCAL_STEP + 1 + driver.round),
        };
        Task::tell(Told::Resolved { source, step, processes })
    }

    fn follow(&mut self, order: &Order) -> Task {
        match self.deliver(order) {
            Answered::Refused(Reason::TransferInProgress) | Answered::Started => Task::None,
            Answered::Refused(reason) => failed(order.host, order.attempt, Trouble::of(reason)),
            Answered::Known(known) => match known.state {
                // Installed is staged too, and more.
                State::Done | State::Installed => {
                    Task::tell(Told::Staged { host: order.host, attempt: order.attempt, process: order.process })
                }
                State::Failed => failed(order.host, order.attempt, Trouble::Stopped),
                State::NotFound => failed(order.host, order.attempt, Trouble::NotFound),
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
