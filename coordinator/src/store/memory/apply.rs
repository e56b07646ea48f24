//! What a driver writes of a round: what `apply` does in SQL.

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::LocalCheckpointId,
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{Kind, Phase, Round},
};

use super::{audit::Line, rounds::StoredRound, tables::Tables};
use crate::store::{
    Applied, Caller, LastCommit, PipelineRow,
    apply::{Change, stored},
    audit::TransitionColumns,
    retirements::new_source,
    sqlstate::Fail,
};

impl Tables {
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
        record.round = next.clone();
        if next.phase.is_terminal() {
            record.ended_at = Some(now);
            stored_round.let_go();
        }
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
}

/// What the schema's constraints and triggers refuse: no code writes it.
fn violated(what: impl std::fmt::Display) -> Fail {
    Problem::new(Reason::DatabaseUnavailable, format!("the row breaks a constraint: {what}"))
        .retry(Retryable::AfterFix)
        .into()
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
