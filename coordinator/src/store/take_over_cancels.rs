//! Stopping a take-over before its first PUT. The write is guarded like any other of a take-over: whoever stores the fence's bytes first has decided.

use lockstep_protocol::{
    problem::{Problem, Reason},
    round::CancelRequest,
    takeover::{Event, Phase, TakeOver, check_cancellable, decide},
};
use uuid::Uuid;

use super::{
    Caller, PipelineRow, PipelineSelector, Store, StoreError, TakeOverApplied,
    pipelines::{Lock, find},
    session::Session,
    sqlstate::Fail,
    take_overs::take_over,
};

/// Its driver may move it on between reading and writing, but only a few times before its fence is stored.
const TRIES: u32 = 16;

impl Store {
    /// Cancels the take-over that a pipeline has under way, or this one of it. `ROUND_NOT_CANCELLABLE` once its fence's bytes are stored, or if it has ended;
    /// `ROUND_NOT_FOUND` if there is none. The same request again gets the same answer.
    pub async fn cancel_take_over(
        &self,
        pipeline: &PipelineSelector,
        only: Option<Uuid>,
        request: CancelRequest,
        caller: &Caller,
    ) -> Result<TakeOver, StoreError> {
        let now = self.now().await?;
        for _ in 0..TRIES {
            let before = self.database.newest_take_over(pipeline.clone(), only).await?;
            if before.phase == Phase::Cancelled && before.cancel.as_ref() == Some(&request) {
                return Ok(before);
            }
            check_cancellable(&before).map_err(StoreError::Problem)?;
            let decision = decide(&before, &Event::CancelRequested(request.clone()), now);
            if let TakeOverApplied::Stored(next) = self.apply_take_over(&before, &decision, None, caller).await? {
                return Ok(next);
            }
        }
        let moves = format!("the take-over of pipeline {pipeline} moves on: try again");
        Err(StoreError::Problem(Problem::new(Reason::TakeOverInProgress, moves).with("pipeline", pipeline)))
    }
}

pub(super) fn none_of(pipeline: &PipelineRow, only: Option<Uuid>) -> Problem {
    let name = &pipeline.spec.name;
    let which = only.map_or_else(|| "no take-over".to_owned(), |only| format!("no take-over {only}"));
    let problem =
        Problem::new(Reason::RoundNotFound, format!("pipeline {name} has {which}: there is nothing to cancel"))
            .with("pipeline", name);
    match only {
        Some(only) => problem.with("take_over", only),
        None => problem,
    }
}

/// `TAKE_OVER_IN_PROGRESS` with the way out: the pipeline's row is needed until its take-over has ended.
pub(super) fn refuse_delete(pipeline: &PipelineRow, active: Option<(Uuid, &str)>) -> Result<(), Problem> {
    let Some((id, phase)) = active else { return Ok(()) };
    let name = &pipeline.spec.name;
    Err(Problem::new(
        Reason::TakeOverInProgress,
        format!(
            "pipeline {name} can't be deleted while take-over {id} of {} is {phase}: wait for it, or cancel it before its fence is put (`lockstep standby cancel {name}`)",
            pipeline.spec.location
        ),
    )
    .with("pipeline", name)
    .with("take_over", id)
    .with("phase", phase))
}

/// The one that is under way, else the newest.
pub(super) async fn newest(
    connection: &mut Session,
    (pipeline, only): &(PipelineSelector, Option<Uuid>),
) -> Result<TakeOver, Fail> {
    let pipeline = find(connection, pipeline, Lock::No).await?;
    let row = sqlx::query(
        "SELECT * FROM take_overs WHERE pipeline_id = $1 AND ($2::uuid IS NULL OR id = $2)
         ORDER BY ended_at IS NULL DESC, created_at DESC LIMIT 1",
    )
    .bind(pipeline.id.uuid())
    .bind(only)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map_or_else(|| Err(none_of(&pipeline, *only).into()), take_over)
}
