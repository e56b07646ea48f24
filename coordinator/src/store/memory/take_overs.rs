//! Take-overs: what `take_overs` does in SQL.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{PipelineId, RequestId, Seq, Term},
    problem::Problem,
    takeover::{Phase, TakeOver},
};
use uuid::Uuid;

use super::{audit::Line, tables::Tables, values::later};
use crate::store::{
    Applied, Caller, ClaimState, PipelineRow, PipelineSelector, TakeOverApplied,
    apply::Change,
    audit::event,
    learnt,
    sqlstate::Fail,
    take_over_cancels::none_of,
    take_overs::{
        Adoption, Move, Request, admitted_because, adopted_as, check_admits, check_same, hands_over, new_take_over,
        not_found, stored, writer_of, written_by,
    },
};

/// One row of `take_overs`.
#[derive(Clone, Debug)]
pub(super) struct StoredTakeOver {
    pub(super) value: TakeOver,
    request_id: Option<RequestId>,
    lease_until: Option<DateTime<Utc>>,
}

impl Tables {
    pub(super) fn admit_take_over(&mut self, request: &Request, now: DateTime<Utc>) -> Result<TakeOver, Fail> {
        let pipeline = self.own_pipeline(&request.ask.pipeline)?;
        let asked = request.ask.request_id;
        let mut of_pipeline = self.take_overs.values().filter(|stored| stored.value.pipeline == pipeline.id);
        let known =
            of_pipeline.find(|stored| stored.value.id == request.id || asked.is_some() && stored.request_id == asked);
        if let Some(known) = known {
            check_same(&request.ask, &known.value)?;
            return Ok(known.value.clone());
        }
        let active = self.active_take_over(pipeline.id);
        check_admits(&pipeline, (request.ask.purpose, request.ask.seen), active)?;
        let new = new_take_over(&pipeline, request, writer_of(&self.identity));
        self.take_overs.insert(
            new.id,
            StoredTakeOver { value: new.clone(), request_id: request.ask.request_id, lease_until: None },
        );
        let cause = admitted_because(&new);
        self.tell(&new, (event::TAKE_OVER_ADMITTED, None, new.phase.as_str()), &cause, &request.caller, now);
        Ok(new)
    }

    pub(super) fn active_take_over(&self, pipeline: PipelineId) -> Option<Uuid> {
        let mut active = self.take_overs.values().filter(|stored| !stored.value.phase.is_terminal());
        active.find(|stored| stored.value.pipeline == pipeline).map(|stored| stored.value.id)
    }

    /// Why the take-over that started the row's generation has failed since.
    pub(super) fn ended_fenced(&self, row: &PipelineRow) -> Option<Problem> {
        let mut of_pipeline = self.take_overs.values().map(|stored| &stored.value).filter(|one| one.pipeline == row.id);
        let failed = of_pipeline
            .find(|one| one.phase == Phase::Failed && one.generation() == Some(row.generation) && one.base.is_some());
        failed.filter(|_| row.holds_fence()).and_then(|failed| failed.problem.clone())
    }

    fn tell(
        &mut self,
        take_over: &TakeOver,
        (event, from, to): (&'static str, Option<&'static str>, &'static str),
        cause: &str,
        caller: &Caller,
        now: DateTime<Utc>,
    ) {
        self.write(
            now,
            &Line {
                pipeline: take_over.pipeline,
                round: None,
                host_idx: None,
                event,
                from,
                to: Some(to),
                cause,
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
    }

    pub(super) fn claim_take_overs(&mut self, lease: Duration, now: DateTime<Utc>) -> Vec<TakeOver> {
        let due = |stored: &&mut StoredTakeOver| {
            !stored.value.phase.is_terminal() && stored.lease_until.is_none_or(|until| until < now)
        };
        let claim = |stored: &mut StoredTakeOver| {
            stored.value.term = stored.value.term.next();
            stored.value.version += 1;
            stored.lease_until = Some(later(now, lease));
            stored.value.clone()
        };
        self.take_overs.values_mut().filter(due).map(claim).collect()
    }

    pub(super) fn renew_take_over(&mut self, id: Uuid, term: Term, lease: Duration, now: DateTime<Utc>) -> bool {
        match self.take_overs.get_mut(&id) {
            Some(stored) if stored.value.term == term && !stored.value.phase.is_terminal() => {
                stored.lease_until = Some(later(now, lease));
                true
            }
            _ => false,
        }
    }

    pub(super) fn get_take_over(&self, id: Uuid) -> Result<TakeOver, Fail> {
        self.take_overs.get(&id).map(|stored| stored.value.clone()).ok_or_else(|| not_found(id).into())
    }

    pub(super) fn newest_take_over(&self, pipeline: &PipelineSelector, only: Option<Uuid>) -> Result<TakeOver, Fail> {
        let row = self.own_pipeline(pipeline)?;
        let of_pipeline = self
            .take_overs
            .values()
            .filter(|stored| stored.value.pipeline == row.id && only.is_none_or(|only| only == stored.value.id));
        // Ids are drawn in the order of time; which of several ended ones it is decides nothing.
        let newest = of_pipeline.max_by_key(|stored| (!stored.value.phase.is_terminal(), stored.value.id));
        newest.map(|stored| stored.value.clone()).ok_or_else(|| none_of(&row, only).into())
    }

    pub(super) fn apply_take_over(&mut self, change: &Move, now: DateTime<Utc>) -> Result<TakeOverApplied, Fail> {
        let before = &change.before;
        if change.adoption.is_some() && change.decision.next.fence.is_some() {
            // Its row is locked before anything else.
            self.own_pipeline(&before.pipeline.into())?;
        }
        let current = self.take_overs.get(&before.id).is_some_and(|stored| {
            let value = &stored.value;
            value.version == before.version && value.term == before.term && !value.phase.is_terminal()
        });
        if !current {
            return Ok(TakeOverApplied::Moved);
        }
        if let Some(adoption) = &change.adoption
            && !self.adopt(change, adoption, now)?
        {
            return Ok(TakeOverApplied::Moved);
        }
        let next = stored(change);
        if hands_over(change) {
            self.change_pipeline(next.pipeline, now, |row| {
                if row.claim == ClaimState::Standby && Some(row.generation) == next.generation() {
                    row.claim = ClaimState::Owned;
                }
            });
        }
        self.activate_word(change);
        if change.decision.fence_pipeline {
            let (holds, problem) = (next.holds, next.problem.clone());
            let row = self.any_pipeline(next.pipeline)?;
            if row.generation == holds && row.holds_fence() && row.fenced.is_none() {
                self.change_pipeline(next.pipeline, now, |row| row.fenced = problem);
            }
        }
        for transition in &change.decision.transitions {
            let phases = (event::TAKE_OVER_PHASE, Some(transition.from), transition.to);
            self.tell(&next, phases, &transition.cause, &change.caller, now);
        }
        if let Some(stored) = self.take_overs.get_mut(&next.id) {
            stored.value = next.clone();
        }
        Ok(TakeOverApplied::Stored(next))
    }

    fn adopt(&mut self, change: &Move, adoption: &Adoption, now: DateTime<Utc>) -> Result<bool, Fail> {
        let next = &change.decision.next;
        let Some(fence) = next.fence.clone() else { return Ok(false) };
        let pipeline = self.own_pipeline(&next.pipeline.into())?;
        let open = self.active_round(&pipeline).map(|record| record.round.id);
        if open != adoption.round.as_ref().map(|(round, _)| round.id) {
            return Ok(false);
        }
        if let Some((before, decision)) = &adoption.round {
            let caller = change.caller.clone();
            let settled = Change { before: before.clone(), decision: decision.clone(), caller, settles: true };
            if !matches!(self.apply(&settled, now)?, Applied::Stored(_)) {
                return Ok(false);
            }
        }
        for known_again in &adoption.learnt {
            if let Some(round) = learnt::round_of(&pipeline, next, known_again) {
                self.learn(&pipeline, round, known_again.document.trace_id.clone(), &change.caller, now)?;
            }
        }
        let next_round_no = learnt::next_round_no(&pipeline, &adoption.learnt);
        let identity = written_by(next).unwrap_or_else(|| self.identity.clone());
        self.change_pipeline(next.pipeline, now, |row| {
            row.claim = adopted_as(next);
            row.claim_problem = None;
            row.generation = fence.generation;
            row.fence_bytes = Some(fence.bytes);
            row.fenced = None;
            row.behind = None;
            row.next_seq = Seq::FIRST;
            row.next_round_no = next_round_no;
            row.last_commit.clone_from(&adoption.last);
            row.database = identity;
        });
        Ok(true)
    }
}
