//! How a round comes to be: what `admit` and `learnt` do in SQL.

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::RoundId,
    planted::{self, Bug},
    problem::Problem,
    round::{Event, Kind, Phase, Round, decide},
};

use super::{audit::Line, rounds::StoredRound, tables::Tables, values::digest_of};
use crate::store::{
    Admission, Caller, PipelineRow, RoundKind, RoundRecord, Trigger,
    admit::{admitted_because, answered_another, asks_for_newest, check_admits, new_round, pushed_already},
    apply::Change,
    ask::{Ask, Request},
    audit::event,
    learnt::learnt_because,
    ownership::round_in_progress,
    rows::as_stored,
    sqlstate::Fail,
    text::text,
};

impl Tables {
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
        self.rounds.insert(request.round, StoredRound::new(record));
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
        self.rounds.insert(record.round.id, StoredRound::new(record));
        Ok(())
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
