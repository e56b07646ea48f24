//! Losses that an operator has given up: the checkpoint counts as never committed from then on, so what it held up goes on. Its round's row stays as it is.

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    id::{PipelineId, RequestId, RoundId},
    problem::{Problem, Reason},
};
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Caller, Change, Loss, PipelineRow, PipelineSelector, Store, StoreError,
    audit::{self, Entry, event},
    changes::Reach,
    differences::nothing_is_lost,
    pipelines::{Lock, find, forget_last},
    rows::{commit_ref, readable},
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    text::{from_json, json, text},
};
use crate::chance;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptLoss {
    /// Whose checkpoint.
    pub pipeline: PipelineSelector,
    /// The one that is meant; none: whichever is lost.
    pub checkpoint: Option<RoundId>,
    /// Why, for those who ask later.
    pub cause: String,
    /// Idempotency key. None: each call is a new request.
    pub request_id: Option<RequestId>,
}

/// The same with the id it will have: a call that is repeated after a lost answer finds its own row.
#[derive(Clone, Debug)]
pub(super) struct Accept {
    pub(super) ask: AcceptLoss,
    pub(super) id: Uuid,
    pub(super) caller: Caller,
}

/// A loss that was accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptedLoss {
    /// Drawn for it.
    pub id: Uuid,
    /// Whose checkpoint.
    pub pipeline: PipelineId,
    /// What is given up, and what was found in its place.
    pub loss: Loss,
    /// As the caller said.
    pub cause: String,
    /// Idempotency key of the caller.
    pub request_id: Option<RequestId>,
    /// Who accepted it.
    pub actor: String,
    /// By the database's clock.
    pub at: DateTime<Utc>,
}

impl Store {
    /// Gives up the checkpoint that the pipeline's bucket has lost. The same request id gives the same answer. `CHECKPOINT_NOT_FOUND` if nothing is lost, or another one
    /// than is meant; `REQUEST_ID_REUSED`.
    pub async fn accept_loss(&self, ask: AcceptLoss, caller: &Caller) -> Result<AcceptedLoss, StoreError> {
        let accept = Accept { ask, id: chance::id(), caller: caller.clone() };
        let accepted = settle_twice(|| self.database.accept_loss(accept.clone())).await?;
        self.hints.tell(Change::Pipeline(accepted.pipeline), Reach::Everywhere);
        Ok(accepted)
    }

    /// All that were accepted for a pipeline, the oldest first.
    pub async fn accepted_losses(&self, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, StoreError> {
        self.database.accepted_losses(pipeline).await
    }
}

impl Accept {
    /// S14: the same request id means the same loss.
    pub(super) fn check_same(&self, known: &AcceptedLoss) -> Result<(), Problem> {
        let same = self.ask.checkpoint.is_none_or(|checkpoint| checkpoint == known.loss.commit.round);
        if known.id == self.id || same && text(&self.ask.cause) == known.cause {
            return Ok(());
        }
        let asked =
            self.ask.checkpoint.map_or_else(|| "whichever is lost".to_owned(), |checkpoint| checkpoint.to_string());
        Err(Problem::new(
            Reason::RequestIdReused,
            format!(
                "this request id accepted the loss of checkpoint {} ({:?}), now it is for {asked} ({:?}): use a new request id",
                known.loss.commit.round, known.cause, self.ask.cause
            ),
        )
        .with("known", known.loss.commit.round)
        .with("known_cause", &known.cause)
        .with("requested", asked)
        .with("requested_cause", &self.ask.cause))
    }

    /// The loss that is given up.
    pub(super) fn of(&self, pipeline: &PipelineRow) -> Result<Loss, Problem> {
        let name = &pipeline.spec.name;
        let refused = |what: String| Problem::new(Reason::CheckpointNotFound, what).with("pipeline", name);
        match (&pipeline.lost, self.ask.checkpoint) {
            (Some(loss), None) => Ok(loss.clone()),
            (Some(loss), Some(meant)) if loss.commit.round == meant => Ok(loss.clone()),
            (Some(Loss { commit, .. }), Some(meant)) => Err(refused(format!(
                "of pipeline {name} checkpoint {} is to be settled before {meant} is: losses are one after the other, the newest first. \
                 Put its commit back or accept its loss, or accept every one with --all; `lockstep pipeline get {name}` shows what is lost",
                commit.round
            ))
            .with("lost", commit.round)
            .with("checkpoint", meant)),
            (None, _) => Err(refused(format!(
                "no checkpoint of pipeline {name} is known to be lost, so there is nothing to accept: `lockstep pipeline get {name}` shows one that is; \
                 locations are compared when a coordinator starts and before each collection (`lockstep gc {name}`)"
            ))),
        }
    }

    /// For the audit trail.
    pub(super) fn because(&self, loss: &Loss) -> String {
        let commit = &loss.commit;
        format!("checkpoint {} ({}-{}) is given up: {}", commit.round, commit.generation, commit.seq, self.ask.cause)
    }
}

pub(super) async fn accept(connection: &mut Session, accept: &Accept) -> Result<AcceptedLoss, Fail> {
    let Accept { ask, id, caller } = accept;
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &ask.pipeline, Lock::ForUpdate).await?;
    let known =
        sqlx::query("SELECT * FROM accepted_losses WHERE id = $1 OR (pipeline_id = $2 AND request_id = $3) ORDER BY id = $1 DESC LIMIT 1")
            .bind(id)
            .bind(pipeline.id.uuid())
            .bind(ask.request_id.map(|id| id.uuid()))
            .fetch_optional(&mut *transaction)
            .await?;
    if let Some(known) = known {
        let known = accepted(&known)?;
        accept.check_same(&known)?;
        return Ok(known);
    }
    let loss = accept.of(&pipeline)?;
    let row = sqlx::query(
        "INSERT INTO accepted_losses (id, pipeline_id, lost_generation, lost_seq, lost_round_id, lost_digest, problem, cause, request_id, actor, trace_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING *",
    )
    .bind(id)
    .bind(pipeline.id.uuid())
    .bind(loss.commit.generation.as_i64())
    .bind(loss.commit.seq.as_i64())
    .bind(loss.commit.round.uuid())
    .bind(loss.commit.digest.to_string())
    .bind(json(&loss.problem)?)
    .bind(text(&ask.cause))
    .bind(ask.request_id.map(|id| id.uuid()))
    .bind(text(&caller.actor))
    .bind(&caller.trace_id)
    .fetch_one(&mut *transaction)
    .await?;
    sqlx::query(concat!("UPDATE pipelines SET ", nothing_is_lost!(), " WHERE id = $1"))
        .bind(pipeline.id.uuid())
        .execute(&mut *transaction)
        .await?;
    forget_last(&mut transaction, pipeline.id, &loss.commit).await?;
    let cause = accept.because(&loss);
    let entry = Entry {
        pipeline: pipeline.id,
        round: Some(loss.commit.round),
        event: event::LOSS_ACCEPTED,
        from: None,
        to: None,
        cause: &cause,
    };
    audit::write(&mut transaction, caller, &entry).await?;
    let accepted = accepted(&row)?;
    transaction.commit().await.settling()?;
    Ok(accepted)
}

pub(super) async fn list(connection: &mut Session, pipeline: PipelineId) -> Result<Vec<AcceptedLoss>, Fail> {
    let rows = sqlx::query("SELECT * FROM accepted_losses WHERE pipeline_id = $1 ORDER BY accepted_at, id")
        .bind(pipeline.uuid())
        .fetch_all(connection)
        .await?;
    Ok(readable(&rows, accepted))
}

fn accepted(row: &PgRow) -> Result<AcceptedLoss, Fail> {
    let commit: Option<CommitRef> = commit_ref(row, "lost")?;
    let commit = commit.ok_or_else(|| Fail::Unreadable("an accepted loss names no commit".to_owned()))?;
    Ok(AcceptedLoss {
        id: row.try_get("id")?,
        pipeline: PipelineId::new(row.try_get("pipeline_id")?),
        loss: Loss { commit, problem: from_json("problem", row.try_get("problem")?)? },
        cause: row.try_get("cause")?,
        request_id: row.try_get::<Option<Uuid>, _>("request_id")?.map(RequestId::new),
        actor: row.try_get("actor")?,
        at: row.try_get("accepted_at")?,
    })
}
