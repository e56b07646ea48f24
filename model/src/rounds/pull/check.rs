//! The invariants of protocol.md, as far as pull rounds can break them.

use super::*;

impl Pull {
    pub(super) fn check_all(&self) -> Result<(), String> {
        let rows = &self.now.rows;
        rows.check(&self.set.book)?;
        if self.now.torn {
            return Err("S12: a round is installed, a host had another checkpoint when it was asked last".to_owned());
        }
        if self.now.mixed {
            return Err("S8: an attempt of a host was for one checkpoint, its row is about another".to_owned());
        }
        for round in rows.rounds() {
            let entry = self.row_entry(round);
            let reason = entry.round.problem.as_ref().map(|problem| problem.reason);
            // The latter is safe because it can be told only where nothing is left to go forward to (ADR 14).
            let may_leave = matches!(reason, Some(Reason::Superseded | Reason::CheckpointNotFound));
            let given_up = matches!(entry.phase(), Phase::Failed | Phase::Cancelled) && !may_leave;
            if given_up && self.now.touched & 1 << round != 0 {
                return Err(format!("S12: round {round} was told {}, a host has installed it", entry.phase()));
            }
        }
        // A disk that was lost since is empty; anything else than what was installed last is a torn set.
        let newest = self.row_entry(rows.admitted() - 1);
        if newest.phase() == Phase::Installed {
            let step = Self::step_of(newest);
            for host in self.hosts() {
                let disk = self.now.disks[usize::from(host)];
                if !disk.has_only(step) && !disk.is_empty() {
                    return Err(format!("S12: step {step} is installed, host {host} has {}", disk.line()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn reached(&self, found: u32) {
        if self.set.reached.load(Ordering::Relaxed) & found != found {
            self.set.reached.fetch_or(found, Ordering::Relaxed);
        }
    }

    /// Which outcomes were met.
    pub(super) fn note(&self) {
        let mut found = 0;
        let mut add = |what: Reached| found |= what as u32;
        for round in self.now.rows.rounds() {
            let entry = self.row_entry(round);
            let reason = entry.round.problem.as_ref().map(|problem| problem.reason);
            match entry.phase() {
                Phase::Installed => {
                    add(Reached::Installed);
                    if matches!(&entry.round.kind, Kind::Pull(pull) if !pull.retired.is_empty()) {
                        add(Reached::ChosenAnew);
                    }
                    if round > 0 {
                        add(Reached::Second);
                    }
                }
                Phase::Cancelled => add(Reached::Cancelled),
                Phase::Failed => {
                    add(Reached::Failed);
                    if reason == Some(Reason::Superseded) {
                        add(Reached::Superseded);
                    }
                }
                Phase::Installing if entry.effects.iter().any(|effect| matches!(effect, Effect::Transfer { .. })) => {
                    add(Reached::PulledAgain);
                }
                _ => {}
            }
        }
        for driver in self.now.rows.drivers.iter().flatten() {
            if let Task::Tell { told: Told::Confirmed { processes }, .. } = driver.task {
                let entry = self.entry(driver.page);
                if self.hosts().any(|host| processes[usize::from(host)] != Some(entry.process(host))) {
                    add(Reached::NotConfirmed);
                }
            }
        }
        self.reached(found);
    }

    pub(super) fn line(&self) -> String {
        let mut text = String::new();
        for round in self.now.rows.rounds() {
            let row = self.now.rows.row(round);
            text += &format!("round {round} term {}: {}; ", row.term, self.row_entry(round).describe());
        }
        for driver in self.now.rows.drivers.iter().flatten() {
            text += &format!("replica of term {} {:?} {:?}; ", driver.term, driver.copy, driver.task);
        }
        for host in self.hosts() {
            let agent = self.now.hosts[usize::from(host)];
            let known = agent.known.map_or_else(
                || "nothing".to_owned(),
                |known| format!("round {} attempt {} {:?}", known.round, known.attempt, known.state),
            );
            let disk = self.now.disks[usize::from(host)].line();
            text += &format!("host {host} process {} knows {known}, {disk}; ", agent.process);
        }
        text
    }
}
