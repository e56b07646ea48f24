//! Differences between bucket and database: what `differences` does in SQL.

use chrono::{DateTime, Utc};

use super::{Line, Tables, as_json};
use crate::store::{Difference, differences::Note, sqlstate::Fail};

impl Tables {
    pub(super) fn note_difference(&mut self, note: &Note, now: DateTime<Utc>) -> Result<bool, Fail> {
        let problem = as_json(&note.problem)?;
        let Ok(row) = self.any_pipeline(note.id) else { return Ok(false) };
        let known = match note.difference {
            Difference::Behind => row.behind.is_some(),
            Difference::Lost => row.lost.as_ref() == Some(&problem),
        };
        if known || row.generation != note.generation || row.deleted_at.is_some() {
            return Ok(false);
        }
        self.change_pipeline(note.id, now, |row| match note.difference {
            Difference::Behind => row.behind = Some(problem),
            Difference::Lost => row.lost = Some(problem),
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
}
