//! What follows from what happens in a world of push rounds.

use super::{possible::PutFault, *};

impl Push {
    pub(super) fn apply(&mut self, act: Act) {
        match act {
            Act::Admit => self.admit(),
            Act::AskCancel => {
                if let Some(round) = self.active() {
                    self.now.rows.request_cancel(round);
                }
            }
            Act::Claim(index) => {
                if let Some(round) = self.active() {
                    self.now.rows.claim(index, round, Task::None);
                }
            }
            Act::Restart(host) => {
                self.now.left.restarts -= 1;
                self.now.hosts[usize::from(host)].restart();
            }
            Act::Upload(host) => self.upload(host),
            Act::StopEnds(host) => {
                if let Some(known) = &mut self.now.hosts[usize::from(host)].known {
                    known.state = State::Failed;
                }
            }
            Act::LatePutLands => {
                if let Some((round, paper)) = self.now.late_put.take() {
                    self.create(round, paper);
                }
            }
            Act::LateOrderArrives => {
                if let Some(order) = self.now.late_order.take() {
                    self.deliver(&order);
                }
            }
            Act::LateWriteLands => self.now.rows.late_write_lands(&self.set.book),
            Act::TakerFences => {
                self.now.fence = Fence::Only;
                self.now.taker = Taker::Fenced;
            }
            Act::TakerLists => self.now.taker = Taker::Listed(self.newest_standing()),
            Act::TakerPuts => {
                if let Taker::Listed(newest) = self.now.taker {
                    self.put_base(newest);
                }
                self.now.taker = Taker::Gone;
            }
            Act::TakerDies => self.now.taker = Taker::Gone,
            Act::ReadFences => self.read_fences(),
            Act::ReadCommits => self.now.reader = Reader::Listed(self.newest_standing()),
            Act::ReadAgain => {
                if let (Reader::Listed(newest), Fence::None) = (self.now.reader, self.now.fence) {
                    self.answer(newest);
                }
                self.now.reader = Reader::Idle;
            }
            Act::Notice(index)
            | Act::Reload(index)
            | Act::Plan(index)
            | Act::Order(index, _)
            | Act::OrderLate(index, _)
            | Act::ReportLate(index, _)
            | Act::Unreachable(index, _)
            | Act::Describe(index, _)
            | Act::CheckParts(index)
            | Act::Put(index, _)
            | Act::PutAhead(index)
            | Act::Look(index)
            | Act::LookFails(index)
            | Act::FinishLists(index)
            | Act::FinishPuts(index)
            | Act::TakeCancel(index)
            | Act::Expire(index)
            | Act::Write(index, _)
            | Act::LateReportArrives(index) => {
                if let Some(driver) = self.now.rows.drivers[index] {
                    self.now.rows.drivers[index] = self.drive(act, driver);
                }
            }
        }
    }

    fn admit(&mut self) {
        let round = self.now.rows.admitted();
        let page = self.set.book.enter(self.set.book.cast.push(round));
        self.now.rows.admit(page);
    }

    fn upload(&mut self, host: u8) {
        let state = &mut self.now.hosts[usize::from(host)];
        let by = state.process;
        let Some(known) = &mut state.known else { return };
        known.state = State::Done;
        let wrote = Wrote {
            round: known.round,
            host,
            incarnation: known.process,
            attempt: known.attempt,
            step: known.what.step(),
            by,
        };
        self.write_part(wrote);
    }

    /// Where an attempt stands in `written`.
    fn bit(wrote: &Wrote) -> u128 {
        let hosts = u32::try_from(MOST_HOSTS).unwrap_or(u32::MAX);
        let slot = u32::from(wrote.round) * hosts + u32::from(wrote.host);
        let process = slot * u32::from(MOST_INCARNATIONS) + u32::from(wrote.incarnation) - 1;
        1 << (process * MOST_ATTEMPTS + u32::from(wrote.attempt) - 1)
    }

    /// S7: what else was written under the same key must be the same.
    fn write_part(&mut self, wrote: Wrote) {
        let cast = &self.set.book.cast;
        let key = cast.path(wrote).manifest().to_string();
        let others = (1..=MOST_INCARNATIONS)
            .flat_map(|incarnation| (1..=MOST_ATTEMPTS).map(move |attempt| (incarnation, attempt)))
            .map(|(incarnation, attempt)| Wrote {
                incarnation,
                attempt: u8::try_from(attempt).unwrap_or(u8::MAX),
                by: incarnation,
                ..wrote
            });
        let clash = others
            .filter(|other| *other != wrote && self.now.written & Self::bit(other) != 0)
            .any(|other| cast.path(other).manifest().to_string() == key);
        if clash {
            self.now.slip = Some(Slip::TwoContents);
        }
        self.now.written |= Self::bit(&wrote);
    }

    fn put_base(&mut self, newest: Option<u8>) {
        if self.now.fence == Fence::Only {
            self.now.fence = Fence::Base(newest);
        }
    }

    fn read_fences(&mut self) {
        match self.now.fence {
            Fence::None => self.now.reader = Reader::SawFirst,
            // Unknown, not an answer.
            Fence::Only => {}
            Fence::Base(newest) => self.answer(newest),
        }
    }

    fn answer(&mut self, newest: Option<u8>) {
        if newest < self.now.latest {
            self.now.slip = Some(Slip::WentBack);
        }
        self.now.latest = newest;
    }

    fn deliver(&mut self, order: &Order) -> Answered {
        let host = &mut self.now.hosts[usize::from(order.host)];
        let answered = host.order(&self.set.book.cast, order);
        if answered == Answered::Started {
            host.begin(order, State::Running);
        }
        answered
    }

    /// A create-only PUT. False: the key existed.
    fn create(&mut self, round: u8, paper: Paper) -> bool {
        let key = &mut self.now.keys[usize::from(round)];
        if *key == 0 {
            *key = paper;
            return true;
        }
        if planted::is(Bug::UnconditionalCommitPut) {
            if *key != paper {
                self.now.slip = Some(Slip::Overwritten);
            }
            *key = paper;
            return true;
        }
        false
    }

    /// `put_decision`: what is known of the key after a try.
    fn put(&mut self, driver: &Driver<Task>, paper: Paper, fault: PutFault) -> Known {
        let mine = if self.set.book.document(paper).is_commit { Known::Commit } else { Known::Abort };
        match fault {
            PutFault::None => {
                if self.create(driver.round, paper) {
                    return mine;
                }
                if planted::is(Bug::ExistsTakenAsFailed) {
                    return Known::Other;
                }
                if planted::is(Bug::ExistsTakenAsMine) {
                    return mine;
                }
            }
            PutFault::Lost => {
                self.now.left.puts -= 1;
                self.create(driver.round, paper);
                return Known::Unknown;
            }
            PutFault::Dropped => self.now.left.puts -= 1,
            PutFault::Late => {
                self.now.left.puts -= 1;
                self.now.late_put = Some((driver.round, paper));
            }
        }
        self.judge(driver, paper)
    }

    /// Bytes are compared first (R2).
    fn judge(&self, driver: &Driver<Task>, mine: Paper) -> Known {
        let found = self.now.keys[usize::from(driver.round)];
        if found == 0 {
            return Known::Unknown;
        }
        let document = self.set.book.document(found);
        match (document.round == driver.round, document.is_commit) {
            (false, _) => Known::Other,
            (true, false) => Known::Abort,
            (true, true) if found == mine || self.entry(driver.page).commit == Some(found) => Known::Commit,
            // Bytes of this round that its row never held.
            (true, true) => Known::Unknown,
        }
    }

    fn drive(&mut self, act: Act, mut driver: Driver<Task>) -> Option<Driver<Task>> {
        let next = self.next_generation();
        let entry = |page| self.set.book.entry(page);
        driver.task = match (act, driver.task) {
            (Act::Notice(_), _) => return None,
            (Act::Reload(_), _) => return self.now.rows.reload(driver),
            (Act::Plan(_), _) => self.plan(&driver),
            (Act::Order(_, host), _) => {
                let order = self.order_of(&driver, host);
                match self.deliver(&order) {
                    Answered::Refused(Reason::TransferInProgress) | Answered::Started => Task::None,
                    Answered::Refused(reason) => failed(&order, Trouble::of(reason)),
                    Answered::Known(known) => match known.state {
                        State::Done => Task::Tell(self.report(&driver, host)),
                        State::Failed => failed(&order, Trouble::Stopped),
                        _ => Task::None,
                    },
                }
            }
            (Act::OrderLate(_, host), task) => {
                self.now.left.late_orders -= 1;
                self.now.late_order = Some(self.order_of(&driver, host));
                task
            }
            (Act::ReportLate(_, host), task) => {
                self.now.left.late_reports -= 1;
                self.now.late_report = Some((driver.round, self.report(&driver, host)));
                task
            }
            (Act::LateReportArrives(_), task) => self.now.late_report.take().map_or(task, |(_, told)| Task::Tell(told)),
            (Act::Unreachable(_, host), _) => {
                self.now.left.unreachable -= 1;
                failed(&self.order_of(&driver, host), Trouble::Unreachable)
            }
            (Act::Describe(_, host), _) => Task::Tell(Told::HostReady {
                host,
                attempt: entry(driver.page).attempt(host),
                process: self.now.hosts[usize::from(host)].process,
            }),
            (Act::CheckParts(_), _) => Task::Tell(Told::PartsChecked),
            (Act::Put(_, fault), task) => {
                let entry = entry(driver.page);
                let Some(paper) = entry.abort.or(entry.commit) else { return Some(driver) };
                let known = self.put(&driver, paper, fault);
                match task {
                    Task::LookedEarly(next) => Task::Tell(Told::Settled { known, next }),
                    _ => Task::Decided(known),
                }
            }
            (Act::PutAhead(_), Task::Tell(told)) => {
                let answer = self.set.book.decide(driver.page, told, driver.term);
                if let Some(paper) = entry(answer.next).commit {
                    self.create(driver.round, paper);
                }
                driver.task
            }
            (Act::Look(_), Task::Decided(known)) => Task::Tell(Told::Settled { known, next: Some(next) }),
            (Act::Look(_), Task::None) => Task::LookedEarly(Some(next)),
            (Act::LookFails(_), Task::Decided(known)) => {
                self.now.left.puts -= 1;
                Task::Tell(Told::Settled { known, next: None })
            }
            (Act::FinishLists(_), Task::Decided(known)) => Task::Finishing(known, self.newest_standing()),
            (Act::FinishPuts(_), Task::Finishing(known, newest)) => {
                self.put_base(newest);
                Task::Tell(Told::Settled { known, next: Some(self.next_generation()) })
            }
            (Act::TakeCancel(_), _) => Task::Tell(Told::Cancel),
            (Act::Expire(_), _) => Task::Tell(Told::Deadline),
            (Act::Write(_, fault), Task::Tell(told)) => {
                let answer = self.set.book.decide(driver.page, told, driver.term);
                return Some(self.now.rows.write(&self.set.book, driver, answer, (fault, Task::None)));
            }
            (_, task) => task,
        };
        Some(driver)
    }

    fn plan(&self, driver: &Driver<Task>) -> Task {
        match self.now.fence {
            Fence::None => {
                let mut processes: Processes = [None; MOST_HOSTS];
                for host in self.hosts() {
                    processes[usize::from(host)] = Some(self.now.hosts[usize::from(host)].process);
                }
                // The engines go on between two claims: another replica finds a newer cut.
                Task::Tell(Told::Planned { processes, step: driver.round * self.set.bounds.claims + driver.term })
            }
            Fence::Only => Task::Tell(Told::Refused(Refusal::TakeOver)),
            Fence::Base(_) => Task::Tell(Told::Refused(Refusal::Fenced)),
        }
    }

    fn report(&self, driver: &Driver<Task>, host: u8) -> Told {
        let order = self.order_of(driver, host);
        let wrote = Wrote {
            round: order.round,
            host,
            incarnation: order.process,
            attempt: order.attempt,
            step: order.what.step(),
            by: self.now.hosts[usize::from(host)].process,
        };
        Told::Part { host, attempt: order.attempt, process: order.process, wrote }
    }

    /// What doesn't matter any more is forgotten.
    pub(super) fn tidy(&mut self) {
        self.now.rows.tidy(&self.set.book);
        let late = self.now.late_report;
        self.now.late_report = late.filter(|(round, _)| !self.row_entry(*round).phase().is_terminal());
    }
}

const fn failed(order: &Order, why: Trouble) -> Task {
    Task::Tell(Told::HostFailed { host: order.host, attempt: order.attempt, why })
}
