//! Verifications: what `verifications` does in SQL.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::id::{PipelineId, RoundId};
use uuid::Uuid;

use super::{
    audit::Line,
    tables::Tables,
    values::{as_json, later},
};
use crate::store::{
    Verification, VerificationsOf,
    audit::event,
    sqlstate::Fail,
    verifications::{Keep, SettleMark, found_because, marked_because, new_verification, not_found, outcome},
};

/// One row of `verifications`.
#[derive(Clone, Debug)]
pub(super) struct StoredVerification {
    pub(super) value: Verification,
    lease_until: Option<DateTime<Utc>>,
}

impl Tables {
    pub(super) fn keep_verification(&mut self, keep: &Keep, now: DateTime<Utc>) -> Result<Verification, Fail> {
        let finding = &keep.finding;
        let pipeline = self.own_pipeline(&finding.pipeline.into())?;
        if let Some(known) = self.verifications.get(&keep.id) {
            return Ok(known.value.clone());
        }
        let mut new = new_verification(keep, &pipeline, now);
        new.finding.started_at = new.finding.started_at.trunc_subsecs(6);
        new.finding.problems = as_json(&new.finding.problems)?;
        self.verifications.insert(new.id, StoredVerification { value: new.clone(), lease_until: None });
        if !finding.problems.is_empty() {
            self.forget_last(pipeline.id, &finding.commit, now);
        }
        if let Some(cause) = found_because(finding) {
            self.tell_of(&new, event::CHECKPOINT_VERIFIED, outcome(finding), &cause, &keep.caller, now);
        }
        Ok(new)
    }

    fn tell_of(
        &mut self,
        of: &Verification,
        event: &'static str,
        to: &'static str,
        cause: &str,
        caller: &crate::store::Caller,
        now: DateTime<Utc>,
    ) {
        self.write(
            now,
            &Line {
                pipeline: of.finding.pipeline,
                round: None,
                host_idx: None,
                event,
                from: None,
                to: Some(to),
                cause,
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
    }

    pub(super) fn owed_marks(&mut self, lease: Duration, now: DateTime<Utc>) -> Vec<Verification> {
        let here: BTreeSet<PipelineId> = self.pipelines.keys().copied().filter(|id| self.belongs_here(*id)).collect();
        let owed = |stored: &&mut StoredVerification| {
            stored.value.owes_mark()
                && stored.lease_until.is_none_or(|until| until < now)
                && here.contains(&stored.value.finding.pipeline)
        };
        let take = |stored: &mut StoredVerification| {
            stored.lease_until = Some(later(now, lease));
            stored.value.clone()
        };
        self.verifications.values_mut().filter(owed).map(take).collect()
    }

    pub(super) fn settle_mark(&mut self, settle: &SettleMark, now: DateTime<Utc>) -> Result<bool, Fail> {
        let problem = settle.problem.as_ref().map(as_json).transpose()?;
        let Some(stored) = self.verifications.get_mut(&settle.id).filter(|stored| stored.value.owes_mark()) else {
            return Ok(false);
        };
        stored.value.marked_at = problem.is_none().then_some(now);
        stored.value.mark_problem = problem;
        stored.lease_until = Some(later(now, settle.after));
        let value = stored.value.clone();
        if settle.problem.is_none() {
            let cause = marked_because(&value.finding.commit);
            self.tell_of(&value, event::CHECKPOINT_MARKED, "damaged", &cause, &settle.caller, now);
        }
        Ok(true)
    }

    pub(super) fn get_verification(&self, id: Uuid) -> Result<Verification, Fail> {
        self.verifications.get(&id).map(|stored| stored.value.clone()).ok_or_else(|| not_found(id).into())
    }

    pub(super) fn newest_verifications(&self, of: &VerificationsOf) -> Vec<Verification> {
        let mut newest: BTreeMap<RoundId, Verification> = BTreeMap::new();
        for value in self.verifications.values().map(|stored| &stored.value) {
            let finding = &value.finding;
            if finding.pipeline == of.pipeline
                && of.checkpoints.contains(&finding.commit.round)
                && of.scope.is_none_or(|scope| finding.scope == scope)
                && newest.get(&finding.commit.round).is_none_or(|known| known.ended_at <= value.ended_at)
            {
                newest.insert(finding.commit.round, value.clone());
            }
        }
        newest.into_values().collect()
    }
}
