//! When pipelines are pushed by themselves: what `schedules` does in SQL.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::{id::PipelineId, schedule::PushSchedule};

use super::{
    tables::Tables,
    values::{as_json, later},
};
use crate::store::{DuePush, DuePushes, schedules::SaveSchedule, sqlstate::Fail};

/// One row of `push_schedules`.
#[derive(Clone, Debug)]
pub(super) struct StoredSchedule {
    schedule: PushSchedule,
    version: u64,
    looking_until: Option<DateTime<Utc>>,
}

impl StoredSchedule {
    fn next_look(&self) -> DateTime<Utc> {
        self.looking_until.map_or(self.schedule.due_at, |until| until.max(self.schedule.due_at))
    }
}

impl Tables {
    pub(super) fn due_pushes(&mut self, lease: Duration, at_most: u32, now: DateTime<Utc>) -> DuePushes {
        let wanted: Vec<PipelineId> = self
            .pipelines
            .values()
            .map(|stored| &stored.row)
            .filter(|row| row.deleted_at.is_none() && row.is_owner())
            .filter(|row| row.spec.push_interval.is_some() && self.belongs_here(row.id))
            .map(|row| row.id)
            .collect();
        let before = self.schedules.clone();
        let mut due: Vec<(DateTime<Utc>, PipelineId)> = wanted
            .iter()
            .filter_map(|id| Some((before.get(id)?, *id)))
            .filter(|(stored, _)| stored.next_look() <= now)
            .map(|(stored, id)| (stored.schedule.due_at, id))
            .collect();
        due.sort_unstable();
        due.truncate(usize::try_from(at_most).unwrap_or(usize::MAX));
        let mut found = DuePushes { due: Vec::new(), next: None };
        for (_, id) in due {
            if let Some(stored) = self.schedules.get_mut(&id) {
                stored.version += 1;
                stored.looking_until = Some(later(now, lease));
                found.due.push(DuePush { pipeline: id, schedule: stored.schedule.clone(), version: stored.version });
            }
        }
        let others = wanted.iter().filter(|id| !found.due.iter().any(|due| due.pipeline == **id));
        // A row that is made now is due at once, at the next call.
        found.next = others
            .map(|id| {
                before.get(id).map_or(Duration::ZERO, |stored| (stored.next_look() - now).to_std().unwrap_or_default())
            })
            .min();
        for id in wanted {
            self.schedules.entry(id).or_insert_with(|| StoredSchedule {
                schedule: PushSchedule::new(now),
                version: 0,
                looking_until: None,
            });
        }
        found
    }

    pub(super) fn save_push_schedule(&mut self, save: &SaveSchedule) -> Result<bool, Fail> {
        let problem = as_json(&save.schedule.problem)?;
        Ok(match self.schedules.get_mut(&save.pipeline) {
            Some(stored) if stored.version == save.version => {
                let due_at = save.schedule.due_at.trunc_subsecs(6);
                stored.schedule = PushSchedule { due_at, problem, ..save.schedule.clone() };
                stored.looking_until = None;
                true
            }
            _ => false,
        })
    }

    pub(super) fn push_schedule(&self, id: PipelineId) -> Option<PushSchedule> {
        self.schedules.get(&id).map(|stored| stored.schedule.clone())
    }
}
