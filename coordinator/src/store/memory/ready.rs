//! Words that hosts are owed: what `ready` does in SQL.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::PipelineId,
    ready::{HostTold, Role, Telling},
    round::{Kind, Round},
};

use super::{
    tables::Tables,
    values::{as_json, later},
};
use crate::store::{
    ClaimState,
    ready::{SaveTelling, WordOf, activates, base_of, nobody_told, stored},
    sqlstate::Fail,
    take_overs::Move,
};

/// One row of `ready_words`.
#[derive(Clone, Debug)]
pub(super) struct StoredWord {
    value: Telling,
    lease_until: Option<DateTime<Utc>>,
}

impl Tables {
    pub(super) fn claim_words(&mut self, lease: Duration, now: DateTime<Utc>) -> Vec<Telling> {
        let owed = |(id, stored): (&PipelineId, &StoredWord)| {
            let row = self.pipelines.get(id).map(|stored| &stored.row)?;
            let due = stored.value.told_at.is_none()
                && stored.lease_until.is_none_or(|until| until < now)
                && stored.value.retry_at.is_none_or(|at| at <= now);
            let pulls = self.active_round(row).is_some_and(|record| matches!(record.round.kind, Kind::Pull(_)));
            (due && row.deleted_at.is_none() && row.fenced.is_none() && !pulls && self.belongs_here(*id)).then_some(*id)
        };
        let owed: Vec<PipelineId> = self.words.iter().filter_map(owed).take(64).collect();
        let mut claimed = Vec::new();
        for id in owed {
            if let Some(stored) = self.words.get_mut(&id) {
                stored.value.term = stored.value.term.next();
                stored.value.version += 1;
                stored.lease_until = Some(later(now, lease));
                claimed.push(stored.value.clone());
            }
        }
        claimed
    }

    pub(super) fn save_telling(&mut self, save: &SaveTelling) -> Result<bool, Fail> {
        let next = Telling { hosts: as_json(&save.next.hosts)?, ..stored(save) };
        Ok(match self.words.get_mut(&next.pipeline) {
            Some(word) if word.value.version == save.before.version && word.value.term == save.before.term => {
                *word = StoredWord { value: next, lease_until: None };
                true
            }
            _ => false,
        })
    }

    pub(super) fn word_of(&self, pipeline: PipelineId) -> Option<Telling> {
        self.words.get(&pipeline).map(|stored| stored.value.clone())
    }

    /// With a write to a round.
    pub(super) fn keep_word(&mut self, before: &Round, next: &Round) {
        match WordOf::of(before, next) {
            WordOf::Nothing => {}
            WordOf::TakesBack => {
                self.words.remove(&next.pipeline);
            }
            WordOf::Gives => {
                let claim = self.pipelines.get(&next.pipeline).map(|stored| stored.row.claim.clone());
                let role = if claim == Some(ClaimState::Owned) { Role::Active } else { Role::Standby };
                let version = self.words.get(&next.pipeline).map_or(1, |stored| stored.value.version + 1);
                let value = Telling {
                    pipeline: next.pipeline,
                    round: next.id,
                    role,
                    version,
                    term: next.term,
                    hosts: nobody_told(next),
                    tries: 0,
                    retry_at: None,
                    told_at: None,
                };
                self.words.insert(next.pipeline, StoredWord { value, lease_until: None });
            }
        }
    }

    /// With the end of an activation.
    pub(super) fn activate_word(&mut self, change: &Move) {
        let (pipeline, base) = (change.decision.next.pipeline, base_of(change));
        let Some(stored) = self.words.get(&pipeline) else { return };
        let brought = self.rounds.get(&stored.value.round).and_then(|stored| match &stored.round().kind {
            Kind::Pull(pull) => pull.resolved.as_ref()?.commit,
            Kind::Push(_) => None,
        });
        let has_base = base.is_none_or(|base| brought.is_some_and(|commit| commit.round == base));
        if !activates(change) || stored.value.role != Role::Standby || !has_base {
            return;
        }
        if let Some(stored) = self.words.get_mut(&pipeline) {
            stored.lease_until = None;
            let word = &mut stored.value;
            word.hosts = vec![HostTold::default(); word.hosts.len()];
            (word.role, word.version, word.tries) = (Role::Active, word.version + 1, 0);
            (word.retry_at, word.told_at) = (None, None);
        }
    }
}
