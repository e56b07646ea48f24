//! Taking a location over. The call admits a row that dispatch drives and waits for its end; what it asked for happens whether or not anybody waits.

use lockstep_bucket::Lookup;
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    fence::Fence,
    id::Generation,
    problem::{Problem, Reason},
    round::CancelRequest,
    spec::PullSelector,
    takeover::{Chosen, Phase, Purpose, TakeOver, Warmth, exact_base, to_pull},
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Api, request, rounds::cause_of};
use crate::{
    convert,
    plan::{Right, activate, place::Place},
    store::{AdmitTakeOver, Caller, Change, PipelineRow},
};

impl Api {
    pub(super) async fn do_take_over(
        &self,
        caller: Caller,
        message: v1::TakeOverRequest,
    ) -> Result<v1::TakeOverResponse, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        let request_id = request::request_id(&message.request_id)?;
        // Who can't be asked can't be fenced either: said at once, before anything is written.
        let before = self.owner_of(&row).await?;
        if message.validate_only {
            let generation = before.as_ref().map_or(Generation::FIRST, |fence| fence.generation.next());
            return self.taken_over(&row, before, None, generation).await;
        }
        let ask = AdmitTakeOver {
            pipeline: row.id.into(),
            purpose: Purpose::TakeOver,
            chosen: None,
            request_id,
            seen: None,
            retry: self.options.retry,
        };
        self.carried_out(&row, before, ask, &caller).await
    }

    /// A standby becomes the owner of its location. One that is already is told so: two operators who activate at once both learn what came of it.
    pub(super) async fn do_activate(
        &self,
        caller: Caller,
        message: v1::ActivateRequest,
    ) -> Result<v1::TakeOverResponse, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        let request_id = request::request_id(&message.request_id)?;
        let chosen = convert::pipeline::chosen_of(message.selector.as_ref())?;
        let before = self.owner_of(&row).await?;
        // Whoever chose a checkpoint is not told that all is well where the hosts may run another one.
        let owned = |row: &PipelineRow| row.is_owner() && chosen.is_none();
        // With an id it may be a call that is made again: its own activation answers, if there is one.
        if owned(&row) && (message.validate_only || request_id.is_none()) {
            return self.taken_over(&row, before, None, row.generation).await;
        }
        if message.validate_only {
            let pulled = self.foresee_activation(&row, chosen).await?;
            let generation = before.as_ref().map_or(Generation::FIRST, |fence| fence.generation.next());
            let foreseen = self.taken_over(&row, before, None, generation).await?;
            return Ok(v1::TakeOverResponse { pulled: pulled.as_ref().map(convert::round::commit_ref), ..foreseen });
        }
        let ask = AdmitTakeOver {
            pipeline: row.id.into(),
            purpose: Purpose::Activate,
            chosen,
            request_id,
            seen: None,
            retry: self.options.retry,
        };
        match self.carried_out(&row, before.clone(), ask, &caller).await {
            Err(problem) if problem.reason == Reason::LocationOwned => {
                let row = self.store.get_pipeline(&row.id.into()).await?;
                if owned(&row) { self.taken_over(&row, before, None, row.generation).await } else { Err(problem) }
            }
            done => done,
        }
    }

    /// What the warm pull would bring now, or why the activation would end with it; found in the same way. A standby's own pull that is under way is not in its way: it waits
    /// for that.
    async fn foresee_activation(
        &self,
        row: &PipelineRow,
        chosen: Option<Chosen>,
    ) -> Result<Option<CommitRef>, Problem> {
        self.store.check_take_over(row, Purpose::Activate).await?;
        let found = async {
            if chosen.is_none() {
                activate::newest_is_whole(self.connector.as_ref(), &row.spec.location).await?;
            }
            self.found_source(row, chosen.map_or(PullSelector::Latest, Chosen::selector)).await
        };
        match Warmth::of(found.await, chosen) {
            Warmth::Warmed(commit) => Ok(commit),
            Warmth::Again(problem) | Warmth::Refused(problem) => Err(problem),
            Warmth::Damaged(problem) => {
                let what = format!("it would not be activated, and nothing fenced: {}", problem.message);
                let about = (&row.spec.name, &row.spec.location);
                Err(activate::with_way_out(about, Reason::CheckpointDamaged, &what, &problem))
            }
        }
    }

    pub(super) async fn do_cancel_take_over(
        &self,
        caller: Caller,
        message: v1::CancelTakeOverRequest,
    ) -> Result<v1::CancelTakeOverResponse, Problem> {
        let selector = request::required("pipeline", &message.pipeline)?;
        let only = match message.take_over.as_str() {
            "" => None,
            id => Some(Uuid::parse_str(id).map_err(|_| request::refuse("take_over", id, "is no UUID"))?),
        };
        let request = CancelRequest { by: caller.actor.clone(), cause: cause_of(message.cause)? };
        let cancelled = self.store.cancel_take_over(&selector, only, request, &caller).await?;
        let row = self.store.get_pipeline(&cancelled.pipeline.into()).await?;
        Ok(v1::CancelTakeOverResponse { pipeline: Some(self.shown(&row).await?), take_over: cancelled.id.to_string() })
    }

    async fn carried_out(
        &self,
        row: &PipelineRow,
        before: Option<Fence>,
        ask: AdmitTakeOver,
        caller: &Caller,
    ) -> Result<v1::TakeOverResponse, Problem> {
        let admitted = self.store.admit_take_over(ask, caller).await?;
        let now = self.take_over_ended(admitted).await?;
        match (now.phase, &now.problem) {
            (Phase::Done, _) => {
                let generation = now.generation().unwrap_or(Generation::FIRST);
                // A call that is made again may find the fence that it has put.
                let before = match before {
                    Some(fence) if fence.generation >= generation => self.owner_before(row, generation).await?,
                    before => before,
                };
                let row = self.store.get_pipeline(&row.id.into()).await?;
                self.taken_over(&row, before, Some(&now), generation).await
            }
            (Phase::Failed | Phase::Cancelled, Some(problem)) => Err(problem.clone()),
            _ => Err(still_under_way(row, &now)),
        }
    }

    async fn owner_of(&self, row: &PipelineRow) -> Result<Option<Fence>, Problem> {
        let store = self.connector.connect(&row.spec.location).await?;
        match lockstep_bucket::owner(store.as_ref()).await {
            Lookup::Found(fence) => Ok(Some(fence)),
            Lookup::Absent => Ok(None),
            Lookup::Unknown(problem) => Err(problem),
        }
    }

    /// Whose fence the one of this generation came after.
    async fn owner_before(&self, row: &PipelineRow, generation: Generation) -> Result<Option<Fence>, Problem> {
        let before = generation.before();
        if before == Generation::NONE {
            return Ok(None);
        }
        Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?.fence(before).await
    }

    /// As it is when it has ended, or after the longest wait.
    pub(super) async fn take_over_ended(&self, mut now: TakeOver) -> Result<TakeOver, Problem> {
        let until = Instant::now() + self.options.create_wait;
        let mut changes = self.store.changes();
        let pipeline = now.pipeline;
        let concerns = move |change| change == Change::Pipeline(pipeline) || change == Change::Anything;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if now.phase.is_terminal() || left.is_zero() || self.stopping.is_cancelled() {
                return Ok(now);
            }
            self.sleep_until_change(&mut changes, concerns, left).await;
            now = self.store.get_take_over(now.id).await?;
        }
    }

    async fn taken_over(
        &self,
        row: &PipelineRow,
        before: Option<Fence>,
        now: Option<&TakeOver>,
        generation: Generation,
    ) -> Result<v1::TakeOverResponse, Problem> {
        Ok(v1::TakeOverResponse {
            pipeline: Some(self.shown(row).await?),
            take_over: now.map(|now| now.id.to_string()).unwrap_or_default(),
            generation: generation.get(),
            previous_generation: before.as_ref().map_or(0, |fence| fence.generation.get()),
            previous_owner: before.as_ref().map(|fence| fence.pipeline.to_string()).unwrap_or_default(),
            previous_owner_name: before.as_ref().map(|fence| fence.pipeline_name.to_string()).unwrap_or_default(),
            newest: now.and_then(exact_base).as_ref().map(convert::round::commit_ref),
            pulled: now
                .filter(|now| now.purpose == Purpose::Activate)
                .and_then(to_pull)
                .as_ref()
                .map(convert::round::commit_ref),
        })
    }
}

pub(super) fn still_under_way(row: &PipelineRow, now: &TakeOver) -> Problem {
    let name = &row.spec.name;
    let last = now.problem.as_ref().map_or_else(String::new, |problem| format!(" ({problem})"));
    Problem::new(
        Reason::TakeOverInProgress,
        format!(
            "pipeline {name} does not own {} yet: take-over {} is {}{last}; it goes on, the same call with the same request_id tells how it ends",
            row.spec.location, now.id, now.phase
        ),
    )
    .with("pipeline", name)
    .with("take_over", now.id)
    .with("phase", now.phase)
}
