//! Which commits are marked as retired (G1): under the pipeline's row lock, the same under which pushes choose their base and pulls store their source; and
//! what the database knows where garbage is collected (G3).

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{Candidates, DatabaseView, Locked, Retiring, RoundState, in_use},
    id::{Generation, PipelineId, RoundId, Seq},
    key::Key,
    problem::{Problem, Reason, Retryable},
    round::{Kind, Phase, Round, Source},
};
use sqlx::Row;
use uuid::Uuid;

use super::{
    Caller, DatabaseIdentity, PipelineRow, Store, StoreError,
    audit::{self, Entry, event},
    identity,
    pipelines::{Lock, find},
    rows::{number, record, select_records},
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    upkeep::check_owns,
};

/// Commits that shall be marked.
#[derive(Clone, Debug)]
pub struct Marking {
    /// Whose.
    pub pipeline: PipelineId,
    /// That the collector believes to own.
    pub generation: Generation,
    /// As listings told.
    pub candidates: Candidates,
    /// Taken from the database before pins were listed: what was pinned since is not in the listing.
    pub since: DateTime<Utc>,
    /// Who marks.
    pub caller: Caller,
    /// Why, for the audit trail.
    pub cause: String,
}

/// What the database knows where garbage is collected.
#[derive(Clone, PartialEq, Debug)]
pub struct CollectionView {
    /// The pipeline.
    pub pipeline: PipelineRow,
    /// This database, as it is now.
    pub identity: DatabaseIdentity,
    /// By its clock.
    pub now: DateTime<Utc>,
    /// Rounds that were asked for, and what active ones use.
    pub rounds: DatabaseView,
}

impl Store {
    /// Marks what may be retired still, and returns every mark whose tombstone is not known to stand. `FENCED`, `NOT_OWNER`.
    pub async fn mark_retired(&self, marking: Marking) -> Result<Vec<Retiring>, StoreError> {
        settle_twice(|| self.database.mark_retired(marking.clone())).await
    }

    /// A tombstone of this commit that counts is known to stand.
    pub async fn retirement_landed(&self, pipeline: PipelineId, commit: CommitRef) -> Result<(), StoreError> {
        settle_twice(|| self.database.settle_retirement(pipeline, commit, true)).await
    }

    /// The commit can't be retired by this mark: it stays, and may be a base or source again (ADR 12).
    pub async fn take_mark_back(&self, pipeline: PipelineId, commit: CommitRef) -> Result<(), StoreError> {
        settle_twice(|| self.database.settle_retirement(pipeline, commit, false)).await
    }

    /// The pipeline, what these rounds have come to, and what active ones use.
    pub async fn collection_view(
        &self,
        pipeline: PipelineId,
        rounds: BTreeSet<RoundId>,
    ) -> Result<CollectionView, StoreError> {
        self.database.collection_view(pipeline, rounds).await
    }
}

/// `FENCED`: the row is not what the collector believes.
pub(super) fn check_generation(pipeline: &PipelineRow, generation: Generation) -> Result<(), Problem> {
    check_owns(pipeline)?;
    if pipeline.generation == generation {
        return Ok(());
    }
    Err(Problem::new(
        Reason::Fenced,
        format!(
            "pipeline {} holds generation {} now, garbage was looked for in generation {generation}: look again",
            pipeline.spec.name, pipeline.generation
        ),
    )
    .with("pipeline", &pipeline.spec.name)
    .with("generation", pipeline.generation)
    .with("looked_in", generation)
    .retry(Retryable::Yes))
}

/// What is marked now. `pinned`: what was pinned since the listing, or is about to be.
pub(super) fn marks(
    marking: &Marking,
    pipeline: &PipelineRow,
    active: Option<&Round>,
    pinned: &BTreeSet<(Generation, Seq)>,
    now: DateTime<Utc>,
) -> Vec<Retiring> {
    let locked = Locked {
        pipeline: pipeline.id,
        generation: pipeline.generation,
        last: pipeline.last_commit.as_ref().map(|last| last.commit),
        in_use: in_use(active),
        now,
    };
    let mut candidates = marking.candidates.clone();
    candidates.retire.retain(|commit| !pinned.contains(&(commit.generation, commit.seq)));
    candidates.mark(&locked)
}

/// The commit of the own location that this decision makes a pull's source.
pub(super) fn new_source(before: &Round, next: &Round) -> Option<CommitRef> {
    let source = |round: &Round| match &round.kind {
        Kind::Pull(pull) => {
            pull.resolved.as_ref().filter(|from| from.source != Source::ReadLocation).and_then(|from| from.commit)
        }
        Kind::Push(_) => None,
    };
    source(next).filter(|commit| source(before) != Some(*commit))
}

pub(super) fn state_of(phase: Phase) -> RoundState {
    match phase {
        Phase::Failed | Phase::Cancelled => RoundState::Void,
        phase if phase.is_terminal() => RoundState::Terminal,
        _ => RoundState::Undecided,
    }
}

pub(super) async fn is_marked(
    connection: &mut Session,
    pipeline: PipelineId,
    commit: &CommitRef,
) -> Result<bool, Fail> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM retirements WHERE pipeline_id = $1 AND generation = $2 AND seq = $3)",
    )
    .bind(pipeline.uuid())
    .bind(commit.generation.as_i64())
    .bind(commit.seq.as_i64())
    .fetch_one(connection)
    .await?)
}

async fn active_round(connection: &mut Session, pipeline: PipelineId) -> Result<Option<Round>, Fail> {
    let row = sqlx::query(concat!(select_records!("rounds"), "WHERE r.pipeline_id = $1 AND r.ended_at IS NULL"))
        .bind(pipeline.uuid())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(|row| record(row).map(|record| record.round)).transpose()
}

async fn clock(connection: &mut Session) -> Result<DateTime<Utc>, Fail> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await?)
}

pub(super) async fn mark(connection: &mut Session, marking: &Marking) -> Result<Vec<Retiring>, Fail> {
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &marking.pipeline.into(), Lock::ForUpdate).await?;
    check_generation(&pipeline, marking.generation)?;
    let active = active_round(&mut transaction, pipeline.id).await?;
    let pinned = sqlx::query(
        "SELECT commit_generation, commit_seq FROM upkeep
         WHERE pipeline_id = $1 AND kind = 'pin' AND phase <> 'failed' AND (ended_at IS NULL OR ended_at > $2)",
    )
    .bind(pipeline.id.uuid())
    .bind(marking.since)
    .fetch_all(&mut *transaction)
    .await?;
    let pinned: BTreeSet<(Generation, Seq)> = pinned
        .iter()
        .map(|row| Ok::<_, Fail>((number(row.try_get("commit_generation")?)?, number(row.try_get("commit_seq")?)?)))
        .collect::<Result<_, _>>()?;
    let now = clock(&mut transaction).await?;
    for retiring in marks(marking, &pipeline, active.as_ref(), &pinned, now) {
        let tombstone = retiring.tombstone();
        let commit = tombstone.commit;
        let made = sqlx::query(
            "INSERT INTO retirements (pipeline_id, generation, seq, round_id, digest, tombstone) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
        )
        .bind(pipeline.id.uuid())
        .bind(commit.generation.as_i64())
        .bind(commit.seq.as_i64())
        .bind(commit.round.uuid())
        .bind(commit.digest.to_string())
        .bind(tombstone.encode())
        .execute(&mut *transaction)
        .await?;
        if made.rows_affected() == 0 {
            continue;
        }
        let entry = Entry {
            pipeline: pipeline.id,
            round: Some(commit.round),
            event: event::CHECKPOINT_RETIRED,
            from: None,
            to: None,
            cause: &marking.cause,
        };
        audit::write(&mut transaction, &marking.caller, &entry).await?;
    }
    let open = sqlx::query(
        "SELECT generation, seq, tombstone FROM retirements WHERE pipeline_id = $1 AND landed_at IS NULL ORDER BY generation, seq",
    )
    .bind(pipeline.id.uuid())
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await.settling()?;
    open.iter()
        .map(|row| {
            let key = Key::Retired(number(row.try_get("generation")?)?, number(row.try_get("seq")?)?).to_string();
            let bytes: Vec<u8> = row.try_get("tombstone")?;
            Retiring::stored(&key, &bytes).map_err(|problem| Fail::Unreadable(format!("tombstone of {key}: {problem}")))
        })
        .collect()
}

pub(super) async fn settle(
    connection: &mut Session,
    (pipeline, commit, landed): &(PipelineId, CommitRef, bool),
) -> Result<(), Fail> {
    let statement = if *landed {
        "UPDATE retirements SET landed_at = clock_timestamp() WHERE pipeline_id = $1 AND generation = $2 AND seq = $3 AND landed_at IS NULL"
    } else {
        "DELETE FROM retirements WHERE pipeline_id = $1 AND generation = $2 AND seq = $3 AND landed_at IS NULL"
    };
    sqlx::query(statement)
        .bind(pipeline.uuid())
        .bind(commit.generation.as_i64())
        .bind(commit.seq.as_i64())
        .execute(connection)
        .await
        .settling()?;
    Ok(())
}

pub(super) async fn view(
    connection: &mut Session,
    (pipeline, rounds): &(PipelineId, BTreeSet<RoundId>),
) -> Result<CollectionView, Fail> {
    let pipeline = find(connection, &(*pipeline).into(), Lock::No).await?;
    let active = active_round(connection, pipeline.id).await?;
    let wanted: Vec<Uuid> = rounds.iter().map(|round| round.uuid()).collect();
    let known = sqlx::query("SELECT id, phase FROM rounds WHERE pipeline_id = $1 AND id = ANY($2)")
        .bind(pipeline.id.uuid())
        .bind(wanted)
        .fetch_all(&mut *connection)
        .await?;
    let mut states = BTreeMap::new();
    for row in &known {
        let (id, phase): (Uuid, String) = (row.try_get("id")?, row.try_get("phase")?);
        let phase = Phase::parse(&phase).ok_or_else(|| Fail::Unreadable(format!("phase {phase} of round {id}")))?;
        states.insert(RoundId::new(id), state_of(phase));
    }
    let identity = identity::read(connection).await?;
    Ok(CollectionView {
        identity,
        now: clock(connection).await?,
        rounds: DatabaseView {
            generation: pipeline.generation,
            // Who follows collects nothing either, whatever its generation.
            fenced: pipeline.fenced.is_some() || !pipeline.holds_fence(),
            rounds: states,
            in_use: in_use(active.as_ref()),
        },
        pipeline,
    })
}
