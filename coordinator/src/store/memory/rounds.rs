//! Rounds as rows, who drives them, and looks at them: what `drive` and `list` do in SQL.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{RoundId, Term},
    planted::{self, Bug},
    round::{CancelRequest, Round, check_cancellable},
};

use super::{
    audit::Line,
    tables::Tables,
    values::{later, limit},
};
use crate::store::{
    Caller, HostProgress, Listed, Page, PipelineRow, RoundFilter, RoundKind, RoundRecord,
    audit::event,
    differences::refuse_elsewhere,
    drive::{Cancel, Claim, Progress, round_not_found},
    list::{parse_token, token},
    sqlstate::Fail,
    text::text,
};

/// One row of `rounds` with all that hangs on it.
#[derive(Clone, Debug)]
pub(super) struct StoredRound {
    pub(super) record: RoundRecord,
    lease_until: Option<DateTime<Utc>>,
}

impl StoredRound {
    /// That nobody drives.
    pub(super) const fn new(record: RoundRecord) -> Self {
        Self { record, lease_until: None }
    }

    pub(super) fn round(&self) -> &Round {
        &self.record.round
    }

    /// Nobody drives it any more.
    pub(super) fn let_go(&mut self) {
        self.record.lease_owner = None;
        self.lease_until = None;
    }

    /// Holds the guard of everything that a driver writes.
    pub(super) fn is_of(&self, term: Term) -> bool {
        let careless = planted::is(Bug::NoTermInWhere) || planted::is(Bug::NoGuardInWhere);
        (self.round().term == term || careless) && self.record.ended_at.is_none()
    }
}

impl Tables {
    pub(super) fn get_round(&self, id: RoundId) -> Result<RoundRecord, Fail> {
        self.rounds.get(&id).map(|stored| stored.record.clone()).ok_or_else(|| round_not_found(id).into())
    }

    pub(super) fn active_round(&self, pipeline: &PipelineRow) -> Option<&RoundRecord> {
        let mut active = self.rounds.values().filter(|stored| stored.record.ended_at.is_none());
        active.find(|stored| stored.round().pipeline == pipeline.id).map(|stored| &stored.record)
    }

    pub(super) fn claim(&mut self, claim: &Claim, now: DateTime<Utc>) -> Vec<RoundRecord> {
        let due = |stored: &&StoredRound| {
            stored.record.ended_at.is_none()
                && stored.lease_until.is_none_or(|until| until < now)
                && self.belongs_here(stored.round().pipeline)
        };
        let mut due: Vec<_> =
            self.rounds.values().filter(due).map(|stored| (stored.record.created_at, stored.round().id)).collect();
        due.sort_unstable();
        due.truncate(usize::try_from(claim.at_most).unwrap_or(usize::MAX));
        due.into_iter().filter_map(|(_, id)| self.claim_one(id, claim, now)).collect()
    }

    fn claim_one(&mut self, id: RoundId, claim: &Claim, now: DateTime<Utc>) -> Option<RoundRecord> {
        let stored = self.rounds.get_mut(&id)?;
        let record = &mut stored.record;
        let cause = record
            .lease_owner
            .as_ref()
            .map_or_else(|| "nobody drove it".to_owned(), |owner| format!("the lease of {owner} expired"));
        record.round.term = record.round.term.next();
        record.round.version += 1;
        record.lease_owner = Some(text(&claim.replica));
        record.updated_at = now;
        stored.lease_until = Some(later(now, claim.lease));
        let record = record.clone();
        self.write_of(&record, "round_claimed", &cause, &format!("replica {}", text(&claim.replica)), now);
        Some(record)
    }

    /// A line about a round whose phase stays, in the trace of whoever asked for it.
    fn write_of(&mut self, record: &RoundRecord, event: &str, cause: &str, actor: &str, now: DateTime<Utc>) {
        let round = &record.round;
        self.write(
            now,
            &Line {
                pipeline: round.pipeline,
                round: Some(round.id),
                host_idx: None,
                event,
                from: Some(round.phase.as_str()),
                to: Some(round.phase.as_str()),
                cause,
                actor,
                trace_id: record.trace_id.as_ref(),
                guard: Some((round.term.get(), round.version)),
            },
        );
    }

    pub(super) fn renew(&mut self, held: &[(RoundId, Term)], lease: Duration, now: DateTime<Utc>) -> Vec<RoundId> {
        let mut kept = Vec::new();
        for (id, term) in held {
            let here = self.rounds.get(id).is_some_and(|stored| self.belongs_here(stored.round().pipeline));
            if let Some(stored) = self.rounds.get_mut(id).filter(|stored| here && stored.is_of(*term)) {
                stored.lease_until = Some(later(now, lease));
                kept.push(*id);
            }
        }
        kept
    }

    pub(super) fn release(&mut self, held: &[(RoundId, Term)], caller: &Caller, now: DateTime<Utc>) {
        for (id, term) in held {
            let Some(stored) = self.rounds.get_mut(id).filter(|stored| stored.is_of(*term)) else { continue };
            stored.let_go();
            let record = stored.record.clone();
            self.write_of(&record, "round_released", "handed back", &caller.actor, now);
        }
    }

    pub(super) fn request_cancel(&mut self, cancel: &Cancel, now: DateTime<Utc>) -> Result<RoundRecord, Fail> {
        let found = self.get_round(cancel.round)?;
        if found.cancel_requested.is_some() {
            return Ok(found);
        }
        check_cancellable(&found.round)?;
        if !self.belongs_here(found.round.pipeline) {
            refuse_elsewhere(&self.any_pipeline(found.round.pipeline)?, &self.identity)?;
        }
        if let Some(stored) = self.rounds.get_mut(&cancel.round) {
            let request = CancelRequest { by: text(&cancel.request.by), cause: text(&cancel.request.cause) };
            stored.record.cancel_requested = Some(request);
        }
        self.write(
            now,
            &Line {
                pipeline: found.round.pipeline,
                round: Some(cancel.round),
                host_idx: None,
                event: event::CANCEL_REQUESTED,
                from: Some(found.round.phase.as_str()),
                to: None,
                cause: &cancel.request.cause,
                actor: &cancel.caller.actor,
                trace_id: cancel.caller.trace_id.as_ref(),
                guard: None,
            },
        );
        self.get_round(cancel.round)
    }

    pub(super) fn save_progress(&mut self, progress: &Progress) -> bool {
        let Some(stored) = self.rounds.get_mut(&progress.round).filter(|stored| stored.is_of(progress.term)) else {
            return false;
        };
        for new in &progress.hosts {
            save_host(&mut stored.record.progress, *new);
        }
        true
    }

    pub(super) fn list_rounds(&self, filter: &RoundFilter, page: &Page) -> Result<Listed<RoundRecord>, Fail> {
        let before = parse_token(page.token.as_deref())?;
        let place = |record: &RoundRecord| (record.created_at, record.round.id.uuid());
        let fits = |record: &&RoundRecord| {
            filter.pipeline.is_none_or(|id| record.round.pipeline == id)
                && (!filter.active_only || record.ended_at.is_none())
                && filter.kind.is_none_or(|wanted| RoundKind::of(&record.round) == wanted)
                && before.is_none_or(|before| place(record) < before)
        };
        let mut items: Vec<_> = self.rounds.values().map(|stored| &stored.record).filter(fits).cloned().collect();
        items.sort_by_key(|record| std::cmp::Reverse(place(record)));
        items.truncate(limit(page));
        let next = items.last().filter(|_| items.len() == limit(page)).map(token);
        Ok(Listed { items, next })
    }
}

fn save_host(hosts: &mut Vec<HostProgress>, new: HostProgress) {
    match hosts.binary_search_by_key(&new.host_idx, |host| host.host_idx) {
        Ok(place) => {
            if let Some(old) = hosts.get_mut(place).filter(|old| old.attempt <= new.attempt) {
                *old = new;
            }
        }
        Err(place) => hosts.insert(place, new),
    }
}
