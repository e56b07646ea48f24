//! Admission: one transaction under the pipeline's row lock (push step 1). Number, seq and base are taken together, so no two rounds share
//! one and the base can't be retired in between (R7, R10).

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    digest::Digest,
    id::{Generation, RoundId, Term},
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{Event, Kind, Participant, Phase, PullState, PushState, Round, WantedCut, decide},
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Admission, Applied, ClaimState, LastCommit, PipelineRow, RoundRecord, Trigger,
    apply::{self, Change},
    ask::{Ask, Request},
    audit::{self, Entry, event},
    differences::refuse_behind,
    ownership::round_in_progress,
    pipelines::{Lock, find},
    rows::{StoredTransfer, record, rest_of, select_records},
    session::Session,
    sqlstate::{Fail, Settling},
    standbys,
    text::{json as stored_json, optional_json, text},
};

pub(super) async fn admit(connection: &mut Session, request: &Request) -> Result<Admission, Fail> {
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, request.ask.pipeline(), Lock::ForUpdate).await?;
    let parameters = request.ask.parameters()?;
    // serde_json's maps are sorted, so equal parameters have equal text.
    let digest = Digest::of(parameters.to_string().as_bytes()).to_string();
    let known = Known::read(&mut transaction, &pipeline, request).await?;
    if let Some(admission) = known.answer(&mut transaction, &pipeline, request, &digest).await? {
        return Ok(admission);
    }
    check_admits(&pipeline, &request.ask)?;
    standbys::still_follows(&mut transaction, &pipeline, &request.ask).await?;
    if let Some(admission) = already_committed(&mut transaction, &pipeline, request, &digest, &parameters).await? {
        transaction.commit().await.settling()?;
        return Ok(admission);
    }
    if let Some(active) = &known.active {
        supersede(&mut transaction, &pipeline, active, request).await?;
    }
    let round = new_round(&pipeline, request, known.now)?;
    insert(&mut transaction, &pipeline, request, &round).await?;
    remember(&mut transaction, &pipeline, request, round.id, &digest, &parameters).await?;
    let admitted = load(&mut transaction, round.id).await?;
    reached(Point::AdmitBeforeCommit);
    transaction.commit().await.settling()?;
    reached(Point::AdmitStored);
    Ok(Admission::New(admitted))
}

/// What the database knows once the pipeline is locked.
struct Known {
    now: DateTime<Utc>,
    /// The round that answered this request id, and the digest of what was asked then.
    answered: Option<(RoundId, String)>,
    /// This call's own round, from before an answer was lost.
    own: bool,
    active: Option<Active>,
}

struct Active {
    id: Uuid,
    kind: String,
    phase: String,
    trigger: Trigger,
}

impl Known {
    async fn read(connection: &mut Session, pipeline: &PipelineRow, request: &Request) -> Result<Self, Fail> {
        let row = sqlx::query(
            "SELECT clock_timestamp() AS now, q.round_id, q.digest, o.id AS own, a.id AS active, a.kind, a.phase, a.periodic
             FROM (SELECT 1) AS one
             LEFT JOIN requests q ON q.pipeline_id = $1 AND q.request_id = $2
             LEFT JOIN rounds o ON o.id = $3
             LEFT JOIN rounds a ON a.pipeline_id = $1 AND a.ended_at IS NULL",
        )
        .bind(pipeline.id.uuid())
        .bind(request.ask.request_id().map(|id| id.uuid()))
        .bind(request.round.uuid())
        .fetch_one(connection)
        .await?;
        let answered: Option<Uuid> = row.try_get("round_id")?;
        let digest: Option<String> = row.try_get("digest")?;
        Ok(Self {
            now: row.try_get("now")?,
            answered: answered.map(RoundId::new).zip(digest),
            own: row.try_get::<Option<Uuid>, _>("own")?.is_some(),
            active: Self::active(&row)?,
        })
    }

    fn active(row: &PgRow) -> Result<Option<Active>, Fail> {
        let Some(id) = row.try_get("active")? else { return Ok(None) };
        Ok(Some(Active {
            id,
            kind: row.try_get("kind")?,
            phase: row.try_get("phase")?,
            trigger: Trigger::of(row.try_get("periodic")?),
        }))
    }

    async fn answer(
        &self,
        connection: &mut Session,
        pipeline: &PipelineRow,
        request: &Request,
        digest: &str,
    ) -> Result<Option<Admission>, Fail> {
        if self.own {
            return Ok(Some(Admission::New(load(connection, request.round).await?)));
        }
        let Some((round, then)) = &self.answered else { return Ok(None) };
        if then == digest {
            return Ok(Some(Admission::Known(load(connection, *round).await?)));
        }
        Err(answered_another(pipeline, request, *round).into())
    }
}

/// `REQUEST_ID_REUSED`.
pub(super) fn answered_another(pipeline: &PipelineRow, request: &Request, round: RoundId) -> Problem {
    let id = request.ask.request_id().map_or_else(String::new, |id| id.to_string());
    Problem::new(
        Reason::RequestIdReused,
        format!(
            "request id {id} of pipeline {} was answered with round {round} for other parameters: use a new request id",
            pipeline.spec.name
        ),
    )
    .with("request_id", id)
    .with("pipeline", &pipeline.spec.name)
    .with("round", round)
}

async fn load(connection: &mut Session, id: RoundId) -> Result<RoundRecord, Fail> {
    let row = sqlx::query(concat!(select_records!("rounds"), "WHERE r.id = $1"))
        .bind(id.uuid())
        .fetch_one(connection)
        .await?;
    record(&row)
}

/// Somebody else owns its location, as far as is known here.
pub(super) fn refuse_fenced(pipeline: &PipelineRow) -> Result<(), Problem> {
    let Some(fenced) = &pipeline.fenced else { return Ok(()) };
    let name = &pipeline.spec.name;
    let mut problem = Problem::new(
        Reason::Fenced,
        format!("pipeline {name} is fenced in generation {}: {}", pipeline.generation, fenced.message),
    );
    problem.metadata.clone_from(&fenced.metadata);
    Err(problem.with("pipeline", name).with("generation", pipeline.generation))
}

/// Fenced, not an owner, or not yet.
pub(super) fn check_admits(pipeline: &PipelineRow, ask: &Ask) -> Result<(), Problem> {
    if !planted::is(Bug::FencedIsAdmitted) {
        refuse_fenced(pipeline)?;
    }
    refuse_behind(pipeline)?;
    match (&pipeline.claim, ask) {
        (ClaimState::Claiming, _) => {
            Err(owns_none(pipeline, "still claims its location: wait until it owns it", Retryable::Yes))
        }
        (_, Ask::Push(_)) => check_pushes(pipeline),
        (_, Ask::Pull(_)) => Ok(()),
    }
}

/// `NOT_OWNER`: only who owns a location pushes there.
pub fn check_pushes(pipeline: &PipelineRow) -> Result<(), Problem> {
    let (why, retryable) = match pipeline.claim {
        ClaimState::Standby if pipeline.holds_fence() => (
            "is being activated, and its hosts don't all have the newest checkpoint yet: wait for that",
            Retryable::Yes,
        ),
        ClaimState::Standby => ("is a standby and owns no location: activate it to push", Retryable::AfterFix),
        _ if pipeline.generation == Generation::NONE => ("owns no location", Retryable::AfterFix),
        _ => return Ok(()),
    };
    Err(owns_none(pipeline, why, retryable))
}

fn owns_none(pipeline: &PipelineRow, why: &str, retryable: Retryable) -> Problem {
    let name = &pipeline.spec.name;
    Problem::new(Reason::NotOwner, format!("pipeline {name} {why}"))
        .with("pipeline", name)
        .with("location", &pipeline.spec.location)
        .with("claim", pipeline.claim.as_str())
        .retry(retryable)
}

/// The newest commit, if a push asks for exactly that. For "newest" only somebody who asked the hosts can tell.
pub(super) fn asks_for_newest<'p>(pipeline: &'p PipelineRow, ask: &Ask) -> Option<&'p LastCommit> {
    let (Ask::Push(push), Some(last)) = (ask, &pipeline.last_commit) else { return None };
    let same = match (&push.found, push.wanted) {
        (Some(found), _) => found.is(last),
        (None, WantedCut::Newest) => false,
        (None, WantedCut::Step(step)) => step == last.step,
        (None, WantedCut::Local(id)) => last.local_checkpoints.contains(&id),
    };
    (same && !push.force).then_some(last)
}

/// For the audit trail.
pub(super) fn pushed_already(last: &LastCommit) -> String {
    format!("asked to push step {} again: it is the newest commit already", last.step)
}

/// A push of exactly what is the newest commit is answered with that commit.
async fn already_committed(
    connection: &mut Session,
    pipeline: &PipelineRow,
    request: &Request,
    digest: &str,
    parameters: &Value,
) -> Result<Option<Admission>, Fail> {
    let Some(last) = asks_for_newest(pipeline, &request.ask) else { return Ok(None) };
    // A commit of a base from before a take-over may have no round here.
    let here: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM rounds WHERE id = $1)")
        .bind(last.commit.round.uuid())
        .fetch_one(&mut *connection)
        .await?;
    if !here {
        return Ok(None);
    }
    remember(connection, pipeline, request, last.commit.round, digest, parameters).await?;
    let cause = pushed_already(last);
    let entry = Entry {
        pipeline: pipeline.id,
        round: Some(last.commit.round),
        event: event::ROUND_NOTE,
        from: Some(Phase::Committed.as_str()),
        to: Some(Phase::Committed.as_str()),
        cause: &cause,
    };
    audit::write(connection, &request.caller, &entry).await?;
    Ok(Some(Admission::AlreadyCommitted(load(connection, last.commit.round).await?)))
}

/// A newer pull ends one that is installing, in this very transaction; everything else that is active refuses.
async fn supersede(
    connection: &mut Session,
    pipeline: &PipelineRow,
    active: &Active,
    request: &Request,
) -> Result<(), Fail> {
    let refused =
        || round_in_progress(pipeline, request.ask.wants(), active.id, (&active.kind, active.trigger), &active.phase);
    if active.kind != "pull" || !matches!(request.ask, Ask::Pull(_)) {
        return Err(refused().into());
    }
    // The lock keeps the replica that drives it from moving it meanwhile.
    let still: Option<DateTime<Utc>> =
        sqlx::query_scalar("SELECT clock_timestamp() FROM rounds WHERE id = $1 AND phase = 'installing' FOR UPDATE")
            .bind(active.id)
            .fetch_optional(&mut *connection)
            .await?;
    let Some(now) = still else { return Err(refused().into()) };
    let before = load(connection, RoundId::new(active.id)).await?.round;
    let decision = decide(&before, &Event::Superseded { by: request.round }, now);
    if !decision.next.phase.is_terminal() {
        return Err(refused().into());
    }
    let change = Change { before, decision, caller: request.caller.clone(), settles: false };
    match apply::apply(connection, &change).await? {
        Applied::Stored(_) => Ok(()),
        Applied::Moved | Applied::SourceRetired(_) => Err(refused().into()),
    }
}

pub(super) fn new_round(pipeline: &PipelineRow, request: &Request, now: DateTime<Utc>) -> Result<Round, Problem> {
    let spec = &pipeline.spec;
    let (phase, kind) = match &request.ask {
        Ask::Push(push) => (
            Phase::Planning,
            Kind::Push(PushState::asked(
                pipeline.next_seq,
                push.wanted,
                push.force,
                pipeline.last_commit.as_ref().map(|last| last.commit),
            )),
        ),
        Ask::Pull(pull) => (Phase::Resolving, Kind::Pull(PullState::asked(pull.request))),
    };
    let deadline = TimeDelta::from_std(request.ask.deadline())
        .ok()
        .and_then(|delta| now.checked_add_signed(delta))
        .ok_or_else(|| {
            let seconds = request.ask.deadline().as_secs();
            Problem::new(Reason::SpecInvalid, format!("deadline {seconds} s is out of range"))
                .with("field", "deadline")
                .with("value", seconds)
        })?;
    Ok(Round {
        id: request.round,
        pipeline: pipeline.id,
        pipeline_name: spec.name.clone(),
        round_no: pipeline.next_round_no,
        generation: pipeline.generation,
        layout: spec.layout,
        location: spec.location.clone(),
        version: 1,
        term: Term::NONE,
        phase,
        deadline,
        problem: None,
        cancel: None,
        participants: (0..spec.layout.len())
            .map(|host_idx| Participant::waiting(host_idx, spec.agents.of(host_idx)))
            .collect(),
        retry: request.ask.retry(),
        kind,
    })
}

/// The row, its participants, the numbers it took and its first audit event, in one statement.
const INSERT: &str = "
WITH made AS (
    INSERT INTO rounds (id, pipeline_id, pipeline_name, kind, round_no, generation, n_hosts, phase, deadline, seq,
                        base_generation, base_seq, base_round_id, base_digest, location, read_location, transfer, retry, state,
                        request_id, actor, trace_id, traceparent, periodic)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $27)
), hosts AS (
    INSERT INTO participants (round_id, host_idx, address, phase, attempt)
    SELECT $1, n.host_idx, n.address, 'waiting', 1 FROM UNNEST($24::int[], $25::text[]) AS n (host_idx, address)
), taken AS (
    UPDATE pipelines SET next_round_no = next_round_no + 1, next_seq = next_seq + CASE WHEN $4 = 'push' THEN 1 ELSE 0 END,
                         version = version + 1, updated_at = clock_timestamp()
    WHERE id = $2
)
INSERT INTO audit_events (pipeline_id, round_id, event, to_phase, cause, actor, trace_id, term, version)
VALUES ($2, $1, 'round_admitted', $8, $26, $21, $22, 0, 1)";

async fn insert(
    connection: &mut Session,
    pipeline: &PipelineRow,
    request: &Request,
    round: &Round,
) -> Result<(), Fail> {
    let spec = &pipeline.spec;
    let (kind, seq, base) = match &round.kind {
        Kind::Push(push) => ("push", Some(push.seq.as_i64()), push.base),
        Kind::Pull(_) => ("pull", None, None),
    };
    let hosts: Vec<i32> =
        round.participants.iter().filter_map(|participant| i32::try_from(participant.host_idx).ok()).collect();
    let addresses: Vec<&str> = round.participants.iter().map(|participant| participant.address.as_str()).collect();
    sqlx::query(INSERT)
        .bind(round.id.uuid())
        .bind(round.pipeline.uuid())
        .bind(round.pipeline_name.as_str())
        .bind(kind)
        .bind(round.round_no.as_i64())
        .bind(round.generation.as_i64())
        .bind(i32::try_from(round.layout.n_hosts()).unwrap_or(i32::MAX))
        .bind(round.phase.as_str())
        .bind(round.deadline)
        .bind(seq)
        .bind(base.map(|base| base.generation.as_i64()))
        .bind(base.map(|base| base.seq.as_i64()))
        .bind(base.map(|base| base.round.uuid()))
        .bind(base.map(|base| base.digest.to_string()))
        .bind(stored_json(&round.location)?)
        .bind(optional_json(spec.read_location.as_ref())?)
        .bind(stored_json(&StoredTransfer::from(spec.transfer))?)
        .bind(stored_json(&round.retry)?)
        .bind(rest_of(&round.kind)?)
        .bind(request.ask.request_id().map(|id| id.uuid()))
        .bind(text(&request.caller.actor))
        .bind(&request.caller.trace_id)
        .bind(&request.caller.traceparent)
        .bind(hosts)
        .bind(addresses)
        .bind(admitted_because(round, request.ask.trigger()))
        .bind(request.ask.trigger() == Trigger::Periodic)
        .execute(connection)
        .await?;
    Ok(())
}

/// For the audit trail.
pub(super) fn admitted_because(round: &Round, trigger: Trigger) -> String {
    match &round.kind {
        Kind::Push(push) => format!(
            "{} push of {} as {}-{}, base {}",
            trigger.as_str(),
            wanted_text(push.wanted),
            round.generation,
            push.seq,
            push.base.map_or_else(|| "none".to_owned(), |base| format!("{}-{}", base.generation, base.seq))
        ),
        Kind::Pull(pull) => {
            format!("{} pull of {}, standby {}", trigger.as_str(), pull.request.selector, pull.request.standby)
        }
    }
}

fn wanted_text(wanted: WantedCut) -> String {
    match wanted {
        WantedCut::Newest => "the newest common step".to_owned(),
        WantedCut::Step(step) => format!("step {step}"),
        WantedCut::Local(id) => format!("local checkpoint {id}"),
    }
}

async fn remember(
    connection: &mut Session,
    pipeline: &PipelineRow,
    request: &Request,
    round: RoundId,
    digest: &str,
    parameters: &Value,
) -> Result<(), Fail> {
    let Some(request_id) = request.ask.request_id() else { return Ok(()) };
    sqlx::query(
        "INSERT INTO requests (pipeline_id, request_id, digest, parameters, round_id) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(pipeline.id.uuid())
    .bind(request_id.uuid())
    .bind(digest)
    .bind(parameters)
    .bind(round.uuid())
    .execute(connection)
    .await?;
    Ok(())
}
