//! Losses that were accepted: what `losses` does in SQL.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use lockstep_protocol::{commit::CommitRef, id::PipelineId, round::Kind};

use super::{audit::Line, rounds::StoredRound, tables::Tables};
use crate::store::{
    audit::event,
    committed::{AT_MOST, Committed},
    losses::{Accept, AcceptedLoss},
    sqlstate::Fail,
    text::text,
};

impl Tables {
    pub(super) fn accept_loss(&mut self, accept: &Accept, now: DateTime<Utc>) -> Result<AcceptedLoss, Fail> {
        let Accept { ask, id, caller } = accept;
        let pipeline = self.own_pipeline(&ask.pipeline)?;
        let own = self.accepted_losses.iter().find(|known| known.id == *id);
        let asked = |known: &&AcceptedLoss| {
            known.pipeline == pipeline.id && ask.request_id.is_some() && known.request_id == ask.request_id
        };
        if let Some(known) = own.or_else(|| self.accepted_losses.iter().find(asked)) {
            accept.check_same(known)?;
            return Ok(known.clone());
        }
        let loss = accept.of(&pipeline)?;
        let accepted = AcceptedLoss {
            id: *id,
            pipeline: pipeline.id,
            loss: loss.clone(),
            cause: text(&ask.cause),
            request_id: ask.request_id,
            actor: text(&caller.actor),
            at: now,
        };
        self.accepted_losses.push(accepted.clone());
        self.change_pipeline(pipeline.id, now, |row| row.lost = None);
        self.forget_last(pipeline.id, &loss.commit, now);
        self.write(
            now,
            &Line {
                pipeline: pipeline.id,
                round: Some(loss.commit.round),
                host_idx: None,
                event: event::LOSS_ACCEPTED,
                from: None,
                to: None,
                cause: &accept.because(&loss),
                actor: &caller.actor,
                trace_id: caller.trace_id.as_ref(),
                guard: None,
            },
        );
        Ok(accepted)
    }

    pub(super) fn accepted_losses(&self, pipeline: PipelineId) -> Vec<AcceptedLoss> {
        self.accepted_losses.iter().filter(|accepted| accepted.pipeline == pipeline).cloned().collect()
    }

    /// Whether its loss was accepted.
    pub(super) fn is_given_up(&self, pipeline: PipelineId, commit: &CommitRef) -> bool {
        let same =
            |accepted: &AcceptedLoss| accepted.pipeline == pipeline && accepted.loss.commit.round == commit.round;
        self.accepted_losses.iter().any(same)
    }

    pub(super) fn committed(&self, pipeline: PipelineId) -> Vec<Committed> {
        let given_up = |commit: &CommitRef| self.is_given_up(pipeline, commit);
        let retired = |commit: &CommitRef| self.retirements.contains_key(&(pipeline, commit.generation, commit.seq));
        let mut committed: Vec<Committed> = self
            .rounds
            .values()
            .map(StoredRound::round)
            .filter(|round| round.pipeline == pipeline)
            .filter_map(|round| match &round.kind {
                Kind::Push(push) => Some(Committed { commit: push.committed?, step: push.step? }),
                Kind::Pull(_) => None,
            })
            .filter(|committed| !retired(&committed.commit) && !given_up(&committed.commit))
            .collect();
        committed.sort_by_key(|committed| Reverse((committed.commit.generation, committed.commit.seq)));
        committed.truncate(usize::try_from(AT_MOST).unwrap_or(usize::MAX));
        committed
    }
}
