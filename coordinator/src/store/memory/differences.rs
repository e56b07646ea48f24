//! Differences between bucket and database: what `differences` does in SQL.

use chrono::{DateTime, Utc};
use lockstep_protocol::{commit::CommitRef, round::Kind};

use super::{audit::Line, rounds::StoredRound, tables::Tables, values::as_json};
use crate::store::{
    Difference, Loss, PipelineRow,
    audit::event,
    differences::{Found, Note, found_because},
    sqlstate::Fail,
};

fn same(one: &CommitRef, other: &CommitRef) -> bool {
    (one.round, one.digest) == (other.round, other.digest)
}

impl Tables {
    pub(super) fn note_difference(&mut self, note: &Note, now: DateTime<Utc>) -> Result<bool, Fail> {
        let problem = as_json(&note.problem)?;
        let Ok(row) = self.any_pipeline(note.id) else { return Ok(false) };
        let known = match note.difference {
            Difference::Behind => row.behind.is_some(),
            Difference::Lost(commit) => {
                let noted = |loss: &Loss| loss.problem == problem && same(&loss.commit, &commit);
                row.lost.as_ref().is_some_and(noted)
                    || self.is_given_up(note.id, &commit)
                    || !self.was_committed(&row, &commit)
            }
        };
        if known || row.generation != note.generation || row.deleted_at.is_some() {
            return Ok(false);
        }
        self.change_pipeline(note.id, now, |row| match note.difference {
            Difference::Behind => row.behind = Some(problem),
            Difference::Lost(commit) => row.lost = Some(Loss { commit, problem }),
        });
        self.write(
            now,
            &Line {
                pipeline: note.id,
                round: None,
                host_idx: None,
                event: note.difference.event(),
                from: None,
                to: None,
                cause: &note.problem.message,
                actor: &note.caller.actor,
                trace_id: note.caller.trace_id.as_ref(),
                guard: None,
            },
        );
        Ok(true)
    }

    pub(super) fn found_again(&mut self, found: &Found, now: DateTime<Utc>) -> bool {
        let Ok(row) = self.any_pipeline(found.id) else { return false };
        let noted = row.lost.is_some_and(|loss| same(&loss.commit, &found.commit));
        if !noted || row.generation != found.generation || row.deleted_at.is_some() {
            return false;
        }
        self.change_pipeline(found.id, now, |row| row.lost = None);
        self.write(
            now,
            &Line {
                pipeline: found.id,
                round: Some(found.commit.round),
                host_idx: None,
                event: event::CHECKPOINT_FOUND,
                from: None,
                to: None,
                cause: &found_because(&found.commit),
                actor: &found.caller.actor,
                trace_id: found.caller.trace_id.as_ref(),
                guard: None,
            },
        );
        true
    }

    fn was_committed(&self, row: &PipelineRow, commit: &CommitRef) -> bool {
        let round = self.rounds.get(&commit.round).map(StoredRound::round).filter(|round| round.pipeline == row.id);
        let committed = round.and_then(|round| match &round.kind {
            Kind::Push(push) => push.committed,
            Kind::Pull(_) => None,
        });
        let last = row.last_commit.as_ref().map(|last| last.commit);
        [committed, last].iter().flatten().any(|known| same(known, commit))
    }
}
