//! Rounds: what `admit`, `drive`, `apply` and `list` do in SQL.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{LocalCheckpointId, RoundId, Term},
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{CancelRequest, Event, Kind, Phase, Round, check_cancellable, decide},
};

use super::{
    audit::Line,
    tables::Tables,
    values::{digest_of, later, limit},
};
use crate::store::{
    Admission, Applied, Caller, HostProgress, LastCommit, Listed, Page, PipelineRow, RoundFilter, RoundKind,
    RoundRecord, Trigger,
    admit::{admitted_because, answered_another, asks_for_newest, check_admits, new_round, pushed_already},
    apply::{Change, stored},
    ask::{Ask, Request},
    audit::{TransitionColumns, event},
    differences::refuse_elsewhere,
    drive::{Cancel, Claim, Progress, round_not_found},
    learnt::learnt_because,
    list::{parse_token, token},
    ownership::round_in_progress,
    retirements::new_source,
    rows::as_stored,
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
    pub(super) fn round(&self) -> &Round {
        &self.record.round
    }

    /// Holds the guard of everything that a driver writes.
    fn is_of(&self, term: Term) -> bool {
        let careless = planted::is(Bug::NoTermInWhere) || planted::is(Bug::NoGuardInWhere);
        (self.round().term == term || careless) && self.record.ended_at.is_none()
    }
}

/// What the schema's constraints and triggers refuse: no code writes it.
fn violated(what: impl std::fmt::Display) -> Fail {
    Problem::new(Reason::DatabaseUnavailable, format!("the row breaks a constraint: {what}"))
        .retry(Retryable::AfterFix)
        .into()
}

impl Tables {
    pub(super) fn get_round(&self, id: RoundId) -> Result<RoundRecord, Fail> {
        self.rounds.get(&id).map(|stored| stored.record.clone()).ok_or_else(|| round_not_found(id).into())
    }

    pub(super) fn active_round(&self, pipeline: &PipelineRow) -> Option<&RoundRecord> {
        let mut active = self.rounds.values().filter(|stored| stored.record.ended_at.is_none());
        active.find(|stored| stored.round().pipeline == pipeline.id).map(|stored| &stored.record)
    }

    pub(super) fn admit(&mut self, request: &Request, now: DateTime<Utc>) -> Result<Admission, Fail> {
        let pipeline = self.own_pipeline(request.ask.pipeline())?;
        let digest = digest_of(&request.ask.parameters()?);
        if let Some(own) = self.rounds.get(&request.round) {
            return Ok(Admission::New(own.record.clone()));
        }
        let known = request.ask.request_id().and_then(|id| self.requests.get(&(pipeline.id, id)));
        if let Some((then, round)) = known {
            if *then == digest {
                return Ok(Admission::Known(self.get_round(*round)?));
            }
            return Err(answered_another(&pipeline, request, *round).into());
        }
        check_admits(&pipeline, &request.ask)?;
        self.still_follows(&pipeline, &request.ask)?;
        if let Some(last) =
            asks_for_newest(&pipeline, &request.ask).filter(|last| self.rounds.contains_key(&last.commit.round))
        {
            self.remember(&pipeline, request, last.commit.round, digest);
            self.write(
                now,
                &Line {
                    pipeline: pipeline.id,
                    round: Some(last.commit.round),
                    host_idx: None,
                    event: event::ROUND_NOTE,
                    from: Some(Phase::Committed.as_str()),
                    to: Some(Phase::Committed.as_str()),
                    cause: &pushed_already(last),
                    actor: &request.caller.actor,
                    trace_id: request.caller.trace_id.as_ref(),
                    guard: None,
                },
            );
            return Ok(Admission::AlreadyCommitted(self.get_round(last.commit.round)?));
        }
        let superseded = self
            .active_round(&pipeline)
            .filter(|_| !planted::is(Bug::SecondRoundAdmitted))
            .map(|active| supersede(&pipeline, active, request, now))
            .transpose()?;
        let round = new_round(&pipeline, request, now)?;
        // Nothing is refused from here on.
        if let Some(change) = superseded {
            self.apply(&change, now)?;
        }
        self.insert(&pipeline, request, round, now)?;
        self.remember(&pipeline, request, request.round, digest);
        Ok(Admission::New(self.get_round(request.round)?))
    }

    fn remember(&mut self, pipeline: &PipelineRow, request: &Request, round: RoundId, digest: String) {
        if let Some(id) = request.ask.request_id() {
            self.requests.insert((pipeline.id, id), (digest, round));
        }
    }

    fn insert(
        &mut self,
        pipeline: &PipelineRow,
        request: &Request,
        round: Round,
        now: DateTime<Utc>,
    ) -> Result<(), Fail> {
        let caller = &request.caller;
        self.write(
            now,
            &Line {
                pipeline: pipeline.id,
                round: Some(round.id),
                host_idx: None,
                event: "round_admitted",
                from: None,
                to: Some(round.phase.as_str()),
                cause: &admitted_because(&round, request.ask.trigger()),
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: Some((round.term.get(), round.version)),
            },
        );
        let record = RoundRecord {
            request_id: request.ask.request_id(),
            actor: text(&caller.actor),
            trigger: request.ask.trigger(),
            trace_id: caller.trace_id.clone(),
            traceparent: caller.traceparent.clone(),
            created_at: now,
            updated_at: now,
            ended_at: None,
            lease_owner: None,
            progress: Vec::new(),
            transfer: pipeline.spec.transfer,
            read_location: pipeline.spec.read_location.clone(),
            cancel_requested: None,
            round: as_stored(round),
        };
        self.rounds.insert(request.round, StoredRound { record, lease_until: None });
        self.change_pipeline(pipeline.id, now, |row| {
            row.next_round_no = row.next_round_no.next();
            if matches!(request.ask, Ask::Push(_)) {
                row.next_seq = row.next_seq.next();
            }
        });
        Ok(())
    }

    /// One that a commit document tells of, unless its id, its number or its place is taken.
    pub(super) fn learn(
        &mut self,
        pipeline: &PipelineRow,
        round: Round,
        trace_id: Option<String>,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Result<(), Fail> {
        let Kind::Push(push) = &round.kind else { return Ok(()) };
        let (Some(commit), made_at) = (push.committed, round.deadline) else { return Ok(()) };
        let taken = self.rounds.values().map(|stored| stored.round()).any(|other| {
            let place = match &other.kind {
                Kind::Push(of_other) => other.generation == round.generation && of_other.seq == push.seq,
                Kind::Pull(_) => false,
            };
            other.id == round.id || other.pipeline == round.pipeline && (other.round_no == round.round_no || place)
        });
        if taken {
            return Ok(());
        }
        self.write(
            now,
            &Line {
                pipeline: pipeline.id,
                round: Some(round.id),
                host_idx: None,
                event: event::ROUND_LEARNT,
                from: None,
                to: Some(round.phase.as_str()),
                cause: &learnt_because(&commit),
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: Some((0, 1)),
            },
        );
        let record = RoundRecord {
            request_id: None,
            actor: text(&caller.actor),
            trigger: Trigger::Manual,
            trace_id,
            traceparent: None,
            created_at: made_at,
            updated_at: now,
            ended_at: Some(made_at),
            lease_owner: None,
            progress: Vec::new(),
            transfer: pipeline.spec.transfer,
            read_location: None,
            cancel_requested: None,
            round: as_stored(round),
        };
        self.rounds.insert(record.round.id, StoredRound { record, lease_until: None });
        Ok(())
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
            stored.record.lease_owner = None;
            stored.lease_until = None;
            let record = stored.record.clone();
            self.write_of(&record, "round_released", "handed back", &caller.actor, now);
        }
    }

    pub(super) fn apply(&mut self, change: &Change, now: DateTime<Utc>) -> Result<Applied, Fail> {
        let Change { before, decision, caller, settles } = change;
        let Some(stored_round) = self.rounds.get(&before.id) else { return Ok(Applied::Moved) };
        let current = stored_round.round();
        let careless = planted::is(Bug::NoVersionInWhere) || planted::is(Bug::NoGuardInWhere);
        if !(current.version == before.version || careless) || !stored_round.is_of(before.term) {
            return Ok(Applied::Moved);
        }
        if !settles && !self.belongs_here(before.pipeline) {
            return Ok(Applied::Moved);
        }
        if let Some(source) = new_source(before, &decision.next)
            && self.is_marked(before.pipeline, &source)
        {
            return Ok(Applied::SourceRetired(source));
        }
        let Some(stored_round) = self.rounds.get_mut(&before.id) else { return Ok(Applied::Moved) };
        let current = stored_round.round();
        let mut next = stored(before, decision);
        // What the statement doesn't write.
        next.version = current.version + 1;
        next.term = current.term;
        keep_bytes(current, &mut next)?;
        check_constraints(&next)?;
        let record = &mut stored_round.record;
        record.updated_at = now;
        if next.phase.is_terminal() {
            record.ended_at = Some(now);
            record.lease_owner = None;
            stored_round.lease_until = None;
        }
        record.round = next.clone();
        let events = TransitionColumns::of(&decision.transitions);
        for (index, host) in events.hosts.iter().enumerate() {
            self.write(
                now,
                &Line {
                    pipeline: next.pipeline,
                    round: Some(next.id),
                    host_idx: host.and_then(|host_idx| u32::try_from(host_idx).ok()),
                    event: events.events.get(index).copied().unwrap_or_default(),
                    from: events.from.get(index).copied(),
                    to: events.to.get(index).copied(),
                    cause: events.causes.get(index).map_or("", String::as_str),
                    actor: &caller.actor,
                    trace_id: caller.trace_id.as_ref(),
                    guard: Some((next.term.get(), next.version)),
                },
            );
        }
        if decision.fence_pipeline {
            self.fence(&next, caller, now);
        }
        self.learn_commit(&next, now);
        self.keep_word(before, &next);
        Ok(Applied::Stored(stored(before, decision)))
    }

    fn fence(&mut self, round: &Round, caller: &Caller, now: DateTime<Utc>) {
        let open = |row: &PipelineRow| row.generation == round.generation && row.fenced.is_none();
        let Some(problem) = &round.problem else { return };
        if !self.pipelines.get(&round.pipeline).is_some_and(|stored| open(&stored.row)) {
            return;
        }
        self.change_pipeline(round.pipeline, now, |row| row.fenced = Some(problem.clone()));
        self.write(
            now,
            &Line {
                pipeline: round.pipeline,
                round: Some(round.id),
                host_idx: None,
                event: "pipeline_fenced",
                from: None,
                to: None,
                cause: &problem.message,
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
    }

    fn learn_commit(&mut self, round: &Round, now: DateTime<Utc>) {
        let Kind::Push(push) = &round.kind else { return };
        let (Phase::Committed, Some(commit), Some(step)) = (round.phase, push.committed, push.step) else { return };
        let newer = |last: &LastCommit| (last.commit.generation, last.commit.seq) < (commit.generation, commit.seq);
        let last = self.pipelines.get(&round.pipeline).and_then(|stored| stored.row.last_commit.as_ref());
        if !last.is_none_or(newer) {
            return;
        }
        let local: Vec<LocalCheckpointId> = round.participants.iter().filter_map(|p| p.local_checkpoint).collect();
        self.change_pipeline(round.pipeline, now, |row| {
            row.last_commit =
                Some(LastCommit { commit, step, fingerprint: push.fingerprint, local_checkpoints: local, at: now });
        });
    }

    pub(super) fn look(&self, change: &Change) -> Option<Applied> {
        let Some(found) = self.rounds.get(&change.before.id).map(StoredRound::round) else {
            return Some(Applied::Moved);
        };
        if *found == stored(&change.before, &change.decision) {
            return Some(Applied::Stored(found.clone()));
        }
        let unmoved = found.version == change.before.version && found.term == change.before.term;
        if unmoved { None } else { Some(Applied::Moved) }
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

/// A newer pull ends one that is installing; everything else that is active refuses.
fn supersede(
    pipeline: &PipelineRow,
    record: &RoundRecord,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<Change, Problem> {
    let active = &record.round;
    let pulls = matches!((&active.kind, &request.ask), (Kind::Pull(_), Ask::Pull(_)));
    let decision = decide(active, &Event::Superseded { by: request.round }, now);
    if !pulls || active.phase != Phase::Installing || !decision.next.phase.is_terminal() {
        let kind = (RoundKind::of(active).as_str(), record.trigger);
        return Err(round_in_progress(pipeline, request.ask.wants(), active.id.uuid(), kind, active.phase.as_str()));
    }
    Ok(Change { before: active.clone(), decision, caller: request.caller.clone(), settles: false })
}

/// Decision bytes are written once; a write that has none leaves them.
fn keep_bytes(current: &Round, next: &mut Round) -> Result<(), Fail> {
    let (Kind::Push(current), Kind::Push(next)) = (&current.kind, &mut next.kind) else { return Ok(()) };
    for (old, new) in [(&current.commit_bytes, &mut next.commit_bytes), (&current.abort_bytes, &mut next.abort_bytes)] {
        match (old, new.as_ref()) {
            (Some(old), Some(new)) if old != new => return Err(violated("stored decision bytes never change")),
            (Some(old), None) => *new = Some(old.clone()),
            _ => {}
        }
    }
    Ok(())
}

fn check_constraints(round: &Round) -> Result<(), Fail> {
    let (commit_bytes, committed) = match &round.kind {
        Kind::Push(push) => (push.commit_bytes.is_some(), push.committed.is_some()),
        Kind::Pull(_) => (false, false),
    };
    if round.phase == Phase::Committing && !commit_bytes {
        return Err(violated("rounds_decision"));
    }
    if (round.phase == Phase::Committed) != committed {
        return Err(violated("rounds_committed"));
    }
    if matches!(round.phase, Phase::Failed | Phase::Cancelled) && round.problem.is_none() {
        return Err(violated("rounds_why"));
    }
    Ok(())
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
