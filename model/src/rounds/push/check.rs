//! The invariants of protocol.md, as far as push rounds can break them.

use super::*;

impl Push {
    pub(super) fn check_all(&self) -> Result<(), String> {
        match self.now.slip {
            None => {}
            Some(Slip::Overwritten) => return Err("S3: a decision was overwritten".to_owned()),
            Some(Slip::TwoContents) => return Err("S7: one key was written with two contents".to_owned()),
            Some(Slip::WentBack) => return Err("S11: latest went back".to_owned()),
        }
        self.now.rows.check(&self.set.book)?;
        self.now.rows.rounds().try_for_each(|round| self.check_round(round))
    }

    fn check_round(&self, round: u8) -> Result<(), String> {
        let entry = self.row_entry(round);
        if let Some(broken) = &entry.broken {
            return Err(broken.clone());
        }
        let paper = self.now.keys[usize::from(round)];
        let document = (paper != 0).then(|| self.set.book.document(paper));
        if let Some(broken) = document.and_then(|document| document.broken.as_ref()) {
            return Err(broken.clone());
        }
        let phase = entry.phase();
        let stands = document.is_some_and(|document| document.is_commit);
        match phase {
            Phase::Committed => {
                let Kind::Push(push) = &entry.round.kind else { return Ok(()) };
                if !stands || push.committed.map(|commit| commit.digest) != document.map(|document| document.digest) {
                    return Err(format!("S4: round {round} is committed in the database, its commit does not stand"));
                }
                if self.counts(round) == Counts::No {
                    return Err(format!("S15: round {round} was acknowledged and does not count"));
                }
            }
            Phase::Failed | Phase::Cancelled => {
                if stands && self.counts(round) == Counts::Yes {
                    return Err(format!("S5: round {round} was told {phase}, its commit stands and counts"));
                }
                if self.now.latest == Some(round) {
                    return Err(format!("S5: round {round} was told {phase}, a reader was given its commit"));
                }
            }
            _ if stands && entry.commit != Some(paper) => {
                return Err(format!("S4: a commit of round {round} stands whose bytes are not in its row"));
            }
            _ => {}
        }
        if phase == Phase::Committing && entry.round.participants.iter().any(|p| p.phase != ParticipantPhase::Done) {
            return Err(format!("S2: round {round} is committing without every host's part"));
        }
        Ok(())
    }

    /// Which outcomes were met.
    pub(super) fn note(&self) {
        let mut found = 0;
        let mut add = |what: Reached| found |= what as u32;
        for round in self.now.rows.rounds() {
            let entry = self.row_entry(round);
            let reason = entry.round.problem.as_ref().map(|problem| problem.reason);
            match entry.phase() {
                Phase::Committed => {
                    add(Reached::Committed);
                    if round > 0 {
                        add(Reached::Second);
                    }
                    if matches!(self.now.fence, Fence::Base(_)) {
                        add(Reached::Included);
                    }
                }
                Phase::Cancelled => add(Reached::Cancelled),
                Phase::Failed if reason == Some(Reason::Fenced) => add(Reached::Fenced),
                Phase::Failed => add(Reached::Failed),
                _ if self.stands(round) => add(Reached::CommitUnknown),
                _ => {}
            }
            let paper = self.now.keys[usize::from(round)];
            if paper != 0 && !self.stands(round) {
                add(Reached::AbortStands);
            }
        }
        self.set.met.add(found);
    }

    pub(super) fn line(&self) -> String {
        let mut text = String::new();
        for round in self.now.rows.rounds() {
            let row = self.now.rows.row(round);
            text += &format!("round {round} term {}: {}; ", row.term, self.row_entry(round).describe());
            let paper = self.now.keys[usize::from(round)];
            if paper != 0 {
                let kind = if self.stands(round) { "commit" } else { "abort" };
                text += &format!("key holds {kind} {paper}; ");
            }
        }
        for driver in self.now.rows.drivers.iter().flatten() {
            text += &format!("replica of term {} {:?} {:?}; ", driver.term, driver.copy, driver.task);
        }
        if self.now.fence != Fence::None {
            text += &format!("generation 2: {:?}; ", self.now.fence);
        }
        text
    }
}
