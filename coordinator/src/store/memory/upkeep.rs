//! Upkeep and retirements: what `upkeep` and `retirements` do in SQL.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{DatabaseView, Retiring, in_use},
    id::{Generation, PipelineId, RequestId, RoundId, Seq, Term},
    upkeep::{Phase, Tally, Upkeep, Work},
};
use uuid::Uuid;

use super::{
    audit::Line,
    tables::Tables,
    values::{as_json, later},
};
use crate::store::{
    ClaimState, CollectionView, Marking, UpkeepApplied,
    audit::event,
    retirements::{check_generation, marks, state_of},
    sqlstate::Fail,
    upkeep::{KEPT_DAYS, Move, Request, admitted_because, check_owns, ended_because, not_found, retired_already},
};

/// One row of `upkeep`.
#[derive(Clone, Debug)]
pub(super) struct StoredUpkeep {
    pub(super) value: Upkeep,
    request_id: Option<RequestId>,
    lease_until: Option<DateTime<Utc>>,
}

/// One row of `retirements`.
#[derive(Clone, Debug)]
pub(super) struct StoredRetirement {
    pub(super) retiring: Retiring,
    pub(super) landed_at: Option<DateTime<Utc>>,
}

impl Tables {
    pub(super) fn is_marked(&self, pipeline: PipelineId, commit: &CommitRef) -> bool {
        self.retirements.contains_key(&(pipeline, commit.generation, commit.seq))
    }

    pub(super) fn admit_upkeep(&mut self, request: &Request, now: DateTime<Utc>) -> Result<Upkeep, Fail> {
        let Request { ask, id, caller } = request;
        let pipeline = self.own_pipeline(&ask.pipeline)?;
        let apart = ask.at_least_apart.unwrap_or_default();
        let of_pipeline = || self.upkeep.values().filter(|stored| stored.value.pipeline == pipeline.id);
        let own = of_pipeline().find(|stored| stored.value.id == *id);
        let asked = of_pipeline().find(|stored| ask.request_id.is_some() && stored.request_id == ask.request_id);
        let collection = of_pipeline()
            .filter(|stored| ask.work == Work::Collect && stored.value.work == Work::Collect)
            .filter(|stored| stored.value.ended_at.is_none() || later(stored.value.created_at, apart) > now)
            .max_by_key(|stored| stored.value.created_at);
        if let Some(known) = own.or(asked).or(collection) {
            return Ok(known.value.clone());
        }
        check_owns(&pipeline)?;
        let commit = ask.work.commit();
        if let Some(commit) = commit.filter(|commit| self.is_marked(pipeline.id, commit)) {
            return Err(retired_already(&commit).into());
        }
        let oldest = now - TimeDelta::days(KEPT_DAYS);
        self.upkeep.retain(|_, stored| {
            stored.value.pipeline != pipeline.id || stored.value.ended_at.is_none_or(|ended| ended >= oldest)
        });
        let admitted = Upkeep {
            id: *id,
            pipeline: pipeline.id,
            pipeline_name: pipeline.spec.name,
            location: pipeline.spec.location,
            generation: pipeline.generation,
            work: as_json(&ask.work)?,
            version: 1,
            term: Term::NONE,
            phase: Phase::Waiting,
            tally: Tally::default(),
            problem: None,
            tries: 0,
            retry_at: None,
            retry: ask.retry,
            created_at: now,
            ended_at: None,
        };
        self.upkeep
            .insert(*id, StoredUpkeep { value: admitted.clone(), request_id: ask.request_id, lease_until: None });
        self.write(
            now,
            &Line {
                pipeline: admitted.pipeline,
                round: commit.map(|commit| commit.round),
                host_idx: None,
                event: event::UPKEEP_ADMITTED,
                from: None,
                to: Some(admitted.work.as_str()),
                cause: &admitted_because(&admitted),
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
        Ok(admitted)
    }

    pub(super) fn claim_upkeep(&mut self, lease: Duration, at_most: u32, now: DateTime<Utc>) -> Vec<Upkeep> {
        let due = |stored: &&StoredUpkeep| {
            stored.value.ended_at.is_none()
                && stored.lease_until.is_none_or(|until| until < now)
                && self.belongs_here(stored.value.pipeline)
        };
        let mut due: Vec<_> =
            self.upkeep.values().filter(due).map(|stored| (stored.value.created_at, stored.value.id)).collect();
        due.sort_unstable();
        due.truncate(usize::try_from(at_most).unwrap_or(usize::MAX));
        let mut claimed = Vec::new();
        for (_, id) in due {
            if let Some(stored) = self.upkeep.get_mut(&id) {
                stored.value.term = stored.value.term.next();
                stored.value.version += 1;
                stored.lease_until = Some(later(now, lease));
                claimed.push(stored.value.clone());
            }
        }
        claimed
    }

    pub(super) fn renew_upkeep(
        &mut self,
        (id, term, lease, tally): &(Uuid, Term, Duration, Tally),
        now: DateTime<Utc>,
    ) -> bool {
        let here = self.upkeep.get(id).is_some_and(|stored| self.belongs_here(stored.value.pipeline));
        match self.upkeep.get_mut(id) {
            Some(stored) if here && stored.value.term == *term && stored.value.ended_at.is_none() => {
                stored.lease_until = Some(later(now, *lease));
                stored.value.tally = *tally;
                true
            }
            _ => false,
        }
    }

    pub(super) fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, Fail> {
        self.upkeep.get(&id).map(|stored| stored.value.clone()).ok_or_else(|| not_found(id).into())
    }

    pub(super) fn asked_upkeep(&self, pipeline: PipelineId, request_id: RequestId) -> Option<Upkeep> {
        let mut of_pipeline = self.upkeep.values().filter(|stored| stored.value.pipeline == pipeline);
        of_pipeline.find(|stored| stored.request_id == Some(request_id)).map(|stored| stored.value.clone())
    }

    pub(super) fn last_collection(&self, pipeline: PipelineId) -> Option<Upkeep> {
        let collections = self
            .upkeep
            .values()
            .map(|stored| &stored.value)
            .filter(|value| value.pipeline == pipeline && value.work == Work::Collect);
        collections.max_by_key(|value| value.created_at).cloned()
    }

    pub(super) fn due_collections(&self, every: Duration, at_most: u32, now: DateTime<Utc>) -> Vec<PipelineId> {
        let owners = self.pipelines.values().map(|stored| &stored.row).filter(|row| {
            row.deleted_at.is_none()
                && row.claim == ClaimState::Owned
                && row.fenced.is_none()
                && row.behind.is_none()
                && self.belongs_here(row.id)
        });
        let mut due: Vec<(DateTime<Utc>, PipelineId)> = owners
            .filter_map(|row| {
                let last = self.last_collection(row.id);
                if last.as_ref().is_some_and(|last| last.ended_at.is_none()) {
                    return None;
                }
                let since = last.map_or(row.created_at, |last| last.created_at);
                (later(since, every) < now).then_some((since, row.id))
            })
            .collect();
        due.sort_unstable();
        due.truncate(usize::try_from(at_most).unwrap_or(usize::MAX));
        due.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn apply_upkeep(&mut self, change: &Move, now: DateTime<Utc>) -> Result<UpkeepApplied, Fail> {
        let (before, next) = (&change.before, &change.next);
        let here = self.belongs_here(before.pipeline);
        let Some(stored) = self.upkeep.get_mut(&before.id).filter(|_| here) else { return Ok(UpkeepApplied::Moved) };
        let value = &mut stored.value;
        if value.version != before.version || value.term != before.term || value.ended_at.is_some() {
            return Ok(UpkeepApplied::Moved);
        }
        value.version += 1;
        value.phase = next.phase;
        value.tally = next.tally;
        value.problem = as_json(&next.problem)?;
        value.tries = next.tries;
        value.retry_at = next.retry_at.map(|at| at.trunc_subsecs(6));
        if next.phase.is_terminal() {
            value.ended_at = Some(now);
            stored.lease_until = None;
        }
        let value = value.clone();
        if value.phase.is_terminal() {
            self.write(
                now,
                &Line {
                    pipeline: value.pipeline,
                    round: value.work.commit().map(|commit| commit.round),
                    host_idx: None,
                    event: event::UPKEEP_ENDED,
                    from: Some(value.work.as_str()),
                    to: Some(value.phase.as_str()),
                    cause: &ended_because(&value),
                    actor: &change.caller.actor,
                    trace_id: change.caller.trace_id.as_ref(),
                    guard: None,
                },
            );
        }
        Ok(UpkeepApplied::Stored(value))
    }

    pub(super) fn mark_retired(&mut self, marking: &Marking, now: DateTime<Utc>) -> Result<Vec<Retiring>, Fail> {
        let pipeline = self.own_pipeline(&marking.pipeline.into())?;
        check_generation(&pipeline, marking.generation)?;
        let pins = self.upkeep.values().map(|stored| &stored.value).filter(|value| {
            value.pipeline == pipeline.id
                && matches!(value.work, Work::Pin { .. })
                && value.phase != Phase::Failed
                && value.ended_at.is_none_or(|ended| ended > marking.since)
        });
        let pinned: BTreeSet<(Generation, Seq)> =
            pins.filter_map(|value| value.work.commit()).map(|commit| (commit.generation, commit.seq)).collect();
        let active = self.active_round(&pipeline).map(|record| record.round.clone());
        for retiring in marks(marking, &pipeline, active.as_ref(), &pinned, now) {
            let commit = retiring.tombstone().commit;
            if self.is_marked(pipeline.id, &commit) {
                continue;
            }
            let place = (pipeline.id, commit.generation, commit.seq);
            self.retirements.insert(place, StoredRetirement { retiring, landed_at: None });
            self.write(
                now,
                &Line {
                    pipeline: pipeline.id,
                    round: Some(commit.round),
                    host_idx: None,
                    event: event::CHECKPOINT_RETIRED,
                    from: None,
                    to: None,
                    cause: &marking.cause,
                    actor: &marking.caller.actor,
                    trace_id: marking.caller.trace_id.as_ref(),
                    guard: None,
                },
            );
        }
        let of_pipeline = self.retirements.iter().filter(|((of, ..), _)| *of == pipeline.id);
        Ok(of_pipeline
            .filter(|(_, stored)| stored.landed_at.is_none())
            .map(|(_, stored)| stored.retiring.clone())
            .collect())
    }

    pub(super) fn settle_retirement(
        &mut self,
        pipeline: PipelineId,
        commit: &CommitRef,
        landed: bool,
        now: DateTime<Utc>,
    ) {
        let place = (pipeline, commit.generation, commit.seq);
        let Some(stored) = self.retirements.get_mut(&place).filter(|stored| stored.landed_at.is_none()) else { return };
        if landed {
            stored.landed_at = Some(now);
        } else {
            self.retirements.remove(&place);
        }
    }

    pub(super) fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: &BTreeSet<RoundId>,
        now: DateTime<Utc>,
    ) -> Result<CollectionView, Fail> {
        let pipeline = self.shown_pipeline(&pipeline.into())?;
        let known = rounds.iter().filter_map(|id| {
            let round = &self.rounds.get(id)?.record.round;
            (round.pipeline == pipeline.id).then(|| (*id, state_of(round.phase)))
        });
        Ok(CollectionView {
            identity: self.identity.clone(),
            now,
            rounds: DatabaseView {
                generation: pipeline.generation,
                fenced: pipeline.fenced.is_some() || !pipeline.holds_fence(),
                rounds: known.collect(),
                in_use: in_use(self.active_round(&pipeline).map(|record| &record.round)),
            },
            pipeline,
        })
    }
}
