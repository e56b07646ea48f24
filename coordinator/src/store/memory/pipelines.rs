//! Pipelines: what `ownership`, `claims` and `pipelines` do in SQL.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    id::{Generation, PipelineId, PipelineName, RequestId, RoundNo, Seq, Term},
    planted::{self, Bug},
    problem::Problem,
};

use super::{
    audit::Line,
    standbys::StoredStandby,
    tables::Tables,
    values::{as_json, later, limit},
};
use crate::store::{
    Caller, ClaimOutcome, ClaimSettled, ClaimState, Created, LastCommit, Listed, NewPipeline, Page, PipelineRow,
    PipelineSelector, RoundKind,
    audit::{bad_token, event},
    claims::{FenceOut, Settle, settled_because},
    identity::{is_foreign, seen_from},
    ownership::{
        Delete, FROZEN, Neighbour, Update, changed_fields, check_etag, check_neighbour, check_update, create_digest,
        created_another, exists_already, first_claim, name_taken, refuse_deleted, round_in_progress,
    },
    pipelines::not_found,
    sqlstate::Fail,
    take_over_cancels::refuse_delete,
    text::as_read,
};

/// One row of `pipelines`.
#[derive(Clone, Debug)]
pub(super) struct StoredPipeline {
    pub(super) row: PipelineRow,
    lease_until: Option<DateTime<Utc>>,
    request_id: Option<RequestId>,
    request_digest: String,
}

impl Tables {
    fn named(&self, name: &PipelineName) -> Option<&StoredPipeline> {
        self.pipelines.values().find(|stored| stored.row.deleted_at.is_none() && stored.row.spec.name == *name)
    }

    fn find(&self, selector: &PipelineSelector, refused_too: bool) -> Result<&StoredPipeline, Fail> {
        let shown = |stored: &&StoredPipeline| {
            stored.row.deleted_at.is_none() || refused_too && matches!(stored.row.claim, ClaimState::Refused(_))
        };
        let found = match selector {
            PipelineSelector::Id(id) => self.pipelines.get(id).filter(shown),
            PipelineSelector::Name(name) => self.named(name),
        };
        found.ok_or_else(|| not_found(selector).into())
    }

    /// For readers.
    pub(super) fn shown_pipeline(&self, selector: &PipelineSelector) -> Result<PipelineRow, Fail> {
        Ok(seen_from(&self.identity, self.find(selector, true)?.row.clone()))
    }

    /// For writers, who would lock it.
    pub(super) fn own_pipeline(&self, selector: &PipelineSelector) -> Result<PipelineRow, Fail> {
        Ok(seen_from(&self.identity, self.find(selector, false)?.row.clone()))
    }

    /// Whether this very database wrote its row, or it owns nothing.
    pub(super) fn belongs_here(&self, id: PipelineId) -> bool {
        let foreign = self.pipelines.get(&id).is_some_and(|stored| is_foreign(&stored.row, &self.identity));
        !foreign || planted::is(Bug::BehindIsDriven)
    }

    pub(super) fn any_pipeline(&self, id: PipelineId) -> Result<PipelineRow, Fail> {
        let found = self.pipelines.get(&id).map(|stored| stored.row.clone());
        found.ok_or_else(|| not_found(&PipelineSelector::Id(id)).into())
    }

    /// A write to the row; its version rises.
    pub(super) fn change_pipeline(
        &mut self,
        id: PipelineId,
        now: DateTime<Utc>,
        change: impl FnOnce(&mut PipelineRow),
    ) {
        if let Some(stored) = self.pipelines.get_mut(&id) {
            change(&mut stored.row);
            stored.row.version += 1;
            stored.row.updated_at = now;
        }
    }

    pub(super) fn forget_last(&mut self, id: PipelineId, commit: &CommitRef, now: DateTime<Utc>) {
        let is_last = |last: &LastCommit| (last.commit.generation, last.commit.seq) == (commit.generation, commit.seq);
        if self.pipelines.get(&id).and_then(|stored| stored.row.last_commit.as_ref()).is_some_and(is_last) {
            self.change_pipeline(id, now, |row| row.last_commit = None);
        }
    }

    pub(super) fn write_about(
        &mut self,
        id: PipelineId,
        (event, from, to): (&str, Option<&str>, Option<&str>),
        cause: &str,
        caller: &Caller,
        now: DateTime<Utc>,
    ) {
        self.write(
            now,
            &Line {
                pipeline: id,
                round: None,
                host_idx: None,
                event,
                from,
                to,
                cause,
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
    }

    pub(super) fn create_pipeline(
        &mut self,
        new: &NewPipeline,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Result<Created, Fail> {
        let digest = create_digest(new);
        let asked = |stored: &&StoredPipeline| {
            stored.row.id == new.id || new.request_id.is_some() && stored.request_id == new.request_id
        };
        if let Some(known) = self.pipelines.values().find(asked) {
            refuse_deleted(new, &known.row)?;
            if known.request_digest == digest {
                return Ok(Created::Known(known.row.clone()));
            }
            return Err(created_another(new, &known.row).into());
        }
        if let Some(existing) = self.named(&new.spec.name) {
            return Err(exists_already(&new.spec.name, existing.row.id).into());
        }
        self.check_neighbours(new)?;
        let row = PipelineRow {
            id: new.id,
            spec: new.spec.clone(),
            etag: "1".to_owned(),
            version: 1,
            generation: Generation::NONE,
            claim: first_claim(new)?,
            claim_problem: None,
            claim_term: Term::NONE,
            fence_bytes: new.fence_bytes.clone(),
            fenced: None,
            behind: None,
            lost: None,
            database: self.identity.clone(),
            last_commit: None,
            next_round_no: RoundNo::FIRST,
            next_seq: Seq::FIRST,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        };
        let cause = format!("{} at {}", new.spec.layout, new.spec.location);
        let about = (event::PIPELINE_CREATED, None, Some(row.claim.as_str()));
        self.write_about(new.id, about, &cause, caller, now);
        let stored =
            StoredPipeline { row: row.clone(), lease_until: None, request_id: new.request_id, request_digest: digest };
        self.pipelines.insert(new.id, stored);
        if row.claim == ClaimState::Standby && !new.follows {
            self.standbys.insert(new.id, StoredStandby::stopped(now));
        }
        Ok(Created::New(row))
    }

    fn check_neighbours(&self, new: &NewPipeline) -> Result<(), Problem> {
        let mut others: Vec<_> = self.pipelines.values().map(|stored| &stored.row).collect();
        others.retain(|row| row.deleted_at.is_none() && row.spec.location.bucket() == new.spec.location.bucket());
        others.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        others.into_iter().try_for_each(|row| {
            let other = Neighbour {
                id: row.id,
                name: row.spec.name.to_string(),
                standby: row.claim == ClaimState::Standby,
                location: row.spec.location.clone(),
            };
            check_neighbour(&new.spec, &other)
        })
    }

    pub(super) fn list_pipelines(&self, page: &Page) -> Result<Listed<PipelineRow>, Fail> {
        let after = page.token.as_deref().unwrap_or_default();
        if after.contains('\0') {
            return Err(bad_token(after).into());
        }
        let seen = |stored: &StoredPipeline| seen_from(&self.identity, stored.row.clone());
        let mut items: Vec<_> = self.pipelines.values().map(seen).collect();
        items.retain(|row| row.deleted_at.is_none() && row.spec.name.as_str() > after);
        items.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        items.truncate(limit(page));
        let next = items.last().filter(|_| items.len() == limit(page)).map(|row| row.spec.name.to_string());
        Ok(Listed { items, next })
    }

    pub(super) fn refuse_active(&self, row: &PipelineRow, wants: &str) -> Result<(), Problem> {
        let Some(active) = self.active_round(row) else { return Ok(()) };
        let (round, kind) = (&active.round, RoundKind::of(&active.round).as_str());
        Err(round_in_progress(row, wants, round.id.uuid(), (kind, active.trigger), round.phase.as_str()))
    }

    pub(super) fn update_pipeline(&mut self, update: &Update, now: DateTime<Utc>) -> Result<PipelineRow, Fail> {
        let row = self.own_pipeline(&update.selector)?;
        let Some(change) = check_update(&row, &update.spec, update.etag.as_deref())? else { return Ok(row) };
        if change.frozen {
            self.refuse_active(&row, FROZEN)?;
        }
        if change.renamed
            && let Some(other) = self.named(&update.spec.name)
        {
            return Err(name_taken(&row, &update.spec.name, other.row.id).into());
        }
        let etag = row.etag.parse::<u64>().unwrap_or_default().saturating_add(1).to_string();
        self.change_pipeline(row.id, now, |row| {
            row.spec = update.spec.clone();
            row.etag = etag;
        });
        let cause = changed_fields(&row.spec, &update.spec);
        self.write_about(row.id, (event::PIPELINE_UPDATED, None, None), &cause, &update.caller, now);
        self.any_pipeline(row.id)
    }

    pub(super) fn delete_pipeline(&mut self, delete: &Delete, now: DateTime<Utc>) -> Result<PipelineId, Fail> {
        let row = self.own_pipeline(&delete.selector)?;
        check_etag(&row, delete.etag.as_deref())?;
        self.refuse_active(&row, "it can't be deleted")?;
        let active = self.active_take_over(row.id).map(|id| self.get_take_over(id)).transpose()?;
        refuse_delete(&row, active.as_ref().map(|active| (active.id, active.phase.as_str())))?;
        self.change_pipeline(row.id, now, |row| row.deleted_at = Some(now));
        let cause = format!("deleted; the bucket keeps what stands at {}", row.spec.location);
        let about = (event::PIPELINE_DELETED, Some(row.claim.as_str()), None);
        self.write_about(row.id, about, &cause, &delete.caller, now);
        Ok(row.id)
    }

    pub(super) fn claim_claiming(&mut self, lease: Duration, now: DateTime<Utc>) -> Vec<PipelineRow> {
        const AT_MOST: usize = 64;
        let due = |stored: &&mut StoredPipeline| {
            stored.row.claim == ClaimState::Claiming
                && stored.row.deleted_at.is_none()
                && stored.lease_until.is_none_or(|until| until < now)
        };
        let claim = |stored: &mut StoredPipeline| {
            stored.row.claim_term = stored.row.claim_term.next();
            stored.row.version += 1;
            stored.row.updated_at = now;
            stored.lease_until = Some(later(now, lease));
            stored.row.clone()
        };
        self.pipelines.values_mut().filter(due).take(AT_MOST).map(claim).collect()
    }

    fn claimed(&mut self, id: PipelineId, term: Term) -> Option<&mut StoredPipeline> {
        self.pipelines.get_mut(&id).filter(|stored| {
            let row = &stored.row;
            row.claim_term == term && row.claim == ClaimState::Claiming && row.deleted_at.is_none()
        })
    }

    pub(super) fn renew_claim(&mut self, id: PipelineId, term: Term, lease: Duration, now: DateTime<Utc>) -> bool {
        self.claimed(id, term).map(|stored| stored.lease_until = Some(later(now, lease))).is_some()
    }

    pub(super) fn fence_out(&mut self, fence: &FenceOut, now: DateTime<Utc>) -> bool {
        let open = |row: &PipelineRow| {
            let same = row.generation == fence.generation && row.holds_fence();
            same && row.fenced.is_none() && row.deleted_at.is_none()
        };
        if !self.pipelines.get(&fence.id).is_some_and(|stored| open(&stored.row)) {
            return false;
        }
        self.change_pipeline(fence.id, now, |row| row.fenced = Some(as_read(fence.problem.clone())));
        self.write_about(fence.id, ("pipeline_fenced", None, None), &fence.problem.message, &fence.caller, now);
        true
    }

    pub(super) fn settle_claim(&mut self, settle: &Settle, now: DateTime<Utc>) -> Result<ClaimSettled, Fail> {
        let (claim, generation, problem, after) = match &settle.outcome {
            ClaimOutcome::Owned(generation) => (ClaimState::Owned, *generation, None, None),
            ClaimOutcome::Refused(problem) => (ClaimState::Refused(as_json(problem)?), Generation::NONE, None, None),
            ClaimOutcome::Again { problem, after } => {
                (ClaimState::Claiming, Generation::NONE, Some(as_json(problem)?), Some(*after))
            }
        };
        let Some(stored) = self.claimed(settle.id, settle.term).filter(|stored| stored.row.version == settle.version)
        else {
            return Ok(ClaimSettled::Moved);
        };
        stored.lease_until = after.map(|after| later(now, after));
        let row = &mut stored.row;
        row.claim = claim;
        row.generation = generation;
        row.claim_problem = problem;
        row.deleted_at = matches!(row.claim, ClaimState::Refused(_)).then_some(now);
        row.version += 1;
        row.updated_at = now;
        let row = row.clone();
        let cause = settled_because(&settle.outcome, &row);
        let about = (event::PIPELINE_CLAIM, Some("claiming"), Some(row.claim.as_str()));
        self.write_about(row.id, about, &cause, &settle.caller, now);
        Ok(ClaimSettled::Stored(row))
    }
}
