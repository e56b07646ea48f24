//! Standbys: what they follow, and since when they do not. The calls change a row; dispatch reads it.

use lockstep_proto::v1;
use lockstep_protocol::{
    id::RoundId,
    problem::{Problem, Reason},
    round::{CancelRequest, check_cancellable},
    standby::{DEFAULT_INTERVAL, Look, look},
};

use super::{Api, pipelines::MIDDLE_JITTER, request::required};
use crate::{
    convert,
    plan::{Right, place::Place, taken_over::check_not_taken_over},
    store::{
        Caller, ClaimState, Page, PipelineRow, PipelineSelector, RoundFilter, RoundKind, RoundRecord, Trigger,
        is_no_standby,
    },
};

impl Api {
    pub(super) async fn do_start_standby(
        &self,
        caller: Caller,
        message: v1::StartStandbyRequest,
    ) -> Result<v1::Pipeline, Problem> {
        let selector: PipelineSelector = required("pipeline", &message.pipeline)?;
        let pinned = if message.checkpoint.is_empty() { None } else { Some(message.checkpoint.parse::<RoundId>()?) };
        let row = self.store.get_pipeline(&selector).await?;
        self.notice_take_over(&row, &caller).await?;
        let row = self.store.start_standby(&selector, pinned, &caller).await?;
        self.shown(&row).await
    }

    /// Who owned its location follows it only once another pipeline has taken it over, and its row may not know of that yet: the bucket is asked first.
    async fn notice_take_over(&self, row: &PipelineRow, caller: &Caller) -> Result<(), Problem> {
        // Who follows, has no fence; a claim that is not settled is refused by the store.
        if !row.holds_fence() || row.claim == ClaimState::Claiming {
            return Ok(());
        }
        let place = Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?;
        match check_not_taken_over(&place, row).await {
            // Fenced off for it by its own activation.
            Ok(()) if row.claim == ClaimState::Standby => Ok(()),
            // Database and bucket agree.
            Ok(()) => Err(is_no_standby(row).with("newest_fence", row.generation)),
            Err(problem) if problem.reason == Reason::Fenced => {
                // It may be fenced already, by its own push.
                self.store.fence_out(row.id, row.generation, problem, caller).await?;
                Ok(())
            }
            Err(problem) => Err(problem),
        }
    }

    pub(super) async fn do_stop_standby(
        &self,
        caller: Caller,
        message: v1::StopStandbyRequest,
    ) -> Result<v1::Pipeline, Problem> {
        let selector: PipelineSelector = required("pipeline", &message.pipeline)?;
        let row = self.store.stop_standby(&selector, &caller).await?;
        // None is admitted any more; one that can't be cancelled ends by itself, and is shown as the active round.
        if let Some(active) = self.newest_pull(&row, true).await?
            && active.trigger == Trigger::Periodic
            && check_cancellable(&active.round).is_ok()
        {
            let request = CancelRequest { by: caller.actor.clone(), cause: "the standby was stopped".to_owned() };
            match self.store.request_cancel(active.round.id, request, &caller).await {
                Ok(_) => {
                    let over = |record: &RoundRecord| check_cancellable(&record.round).is_err();
                    self.round_when(active.round.id, self.options.cancel_wait, over).await?;
                }
                Err(error) => {
                    let problem = error.problem();
                    tracing::debug!(reason = %problem.reason, "not cancelled: {}", problem.message);
                }
            }
        }
        self.shown(&row).await
    }

    /// As it will be at the next look: a pull that has ended is reckoned in already.
    pub(super) async fn standby(&self, row: &PipelineRow) -> Result<Option<v1::Standby>, Problem> {
        let Some(mut standby) = self.store.standbys(Some(row.id)).await?.pop() else { return Ok(None) };
        let last = self.newest_pull(row, false).await?.map(|record| record.as_last_pull());
        let active = last.as_ref().is_some_and(|last| last.end.is_none());
        let now = self.store.now().await?;
        let interval = row.spec.pull_interval.unwrap_or(DEFAULT_INTERVAL);
        standby.state = standby.state.map(|state| {
            let (Look::Now(state) | Look::Lag(state) | Look::Wait(state)) =
                look(state, last.as_ref(), interval, now, MIDDLE_JITTER);
            state
        });
        Ok(Some(convert::standby::standby(&standby, active, now)))
    }

    async fn newest_pull(&self, row: &PipelineRow, active_only: bool) -> Result<Option<RoundRecord>, Problem> {
        let filter = RoundFilter { pipeline: Some(row.id), active_only, kind: Some(RoundKind::Pull) };
        Ok(self.store.list_rounds(filter, Page { size: 1, token: None }).await?.items.pop())
    }
}
