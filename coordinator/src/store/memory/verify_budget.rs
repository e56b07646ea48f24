//! The budget of re-reading: what `verify_budget` does in SQL.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_protocol::id::PipelineId;

use super::{tables::Tables, values::later};
use crate::store::{ClaimState, VerifyBudget, text::as_read, verify_budget::SaveBudget};

/// The row of `verify_budget`, and the turns.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredBudget {
    allowance: Option<lockstep_protocol::verification::Allowance>,
    under_way: Option<crate::store::UnderWay>,
    version: u64,
    lease: Option<(String, DateTime<Utc>)>,
    turns: BTreeMap<PipelineId, DateTime<Utc>>,
}

impl Tables {
    pub(super) fn claim_verify_budget(
        &mut self,
        replica: &str,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Option<VerifyBudget> {
        let stored = &mut self.verify_budget;
        if stored.lease.as_ref().is_some_and(|(owner, until)| *until >= now && owner != replica) {
            return None;
        }
        stored.version += 1;
        stored.lease = Some((replica.to_owned(), later(now, lease)));
        Some(VerifyBudget { allowance: stored.allowance, under_way: stored.under_way.clone(), version: stored.version })
    }

    pub(super) fn renew_verify_budget(&mut self, replica: &str, lease: Duration, now: DateTime<Utc>) -> bool {
        match &mut self.verify_budget.lease {
            Some((owner, until)) if owner == replica => {
                *until = later(now, lease);
                true
            }
            _ => false,
        }
    }

    pub(super) fn save_verify_budget(&mut self, save: &SaveBudget, now: DateTime<Utc>) -> bool {
        let stored = &mut self.verify_budget;
        if stored.version != save.budget.version {
            return false;
        }
        stored.version += 1;
        stored.allowance = save.budget.allowance;
        stored.under_way = save.budget.under_way.clone().map(as_read);
        if let Some((_, until)) = &mut stored.lease {
            *until = later(now, save.lease);
        }
        true
    }

    pub(super) fn verify_turn(&mut self, now: DateTime<Utc>) -> Option<PipelineId> {
        let turns = &self.verify_budget.turns;
        let next = self
            .pipelines
            .values()
            .map(|stored| &stored.row)
            .filter(|row| row.deleted_at.is_none() && row.claim == ClaimState::Owned)
            .filter(|row| row.fenced.is_none() && row.behind.is_none() && self.belongs_here(row.id))
            .map(|row| (turns.get(&row.id).copied(), row.id))
            .min()
            .map(|(_, id)| id)?;
        self.verify_budget.turns.insert(next, now);
        Some(next)
    }
}
