//! Creating, changing and deleting pipelines.

use chrono::SecondsFormat;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    digest::Digest,
    id::{PipelineId, PipelineName},
    location::Location,
    problem::{Problem, Reason, Retryable},
    spec::{Initial, PipelineSpec},
};
use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use super::{
    Caller, ClaimState, Created, NewPipeline, PipelineRow, PipelineSelector, Trigger,
    audit::{self, Entry, event},
    identity,
    pipelines::{Lock, find, pipeline},
    session::Session,
    sqlstate::{Fail, Settling},
    standbys,
    take_over_cancels::refuse_delete,
    text::{from_json, text},
};

/// Key of the advisory lock under which locations and names are compared and taken: "lock" and "loca" in ASCII.
const LOCATIONS: i64 = 0x6c6f_636b_6c6f_6361;

/// Parameters of a create that the same request id may not change.
pub(super) fn create_digest(new: &NewPipeline) -> String {
    Digest::of(new.spec.to_value().to_string().as_bytes()).to_string()
}

pub(super) async fn create(connection: &mut Session, (new, caller): &(NewPipeline, Caller)) -> Result<Created, Fail> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCATIONS).execute(&mut *transaction).await?;
    if let Some(known) = known_create(&mut transaction, new).await? {
        return Ok(Created::Known(known));
    }
    let name = &new.spec.name;
    let exists = find(&mut transaction, &PipelineSelector::Name(name.clone()), Lock::No).await;
    match exists {
        Ok(existing) => return Err(exists_already(name, existing.id).into()),
        Err(Fail::Refused(_)) => {}
        Err(other) => return Err(other),
    }
    check_location(&mut transaction, &new.spec, None).await?;
    let row = insert(&mut transaction, new, caller).await?;
    if row.claim == ClaimState::Standby && !new.follows {
        standbys::insert_stopped(&mut transaction, row.id).await?;
    }
    let cause = format!("{} at {}", new.spec.layout, new.spec.location);
    let entry = Entry {
        pipeline: new.id,
        round: None,
        event: event::PIPELINE_CREATED,
        from: None,
        to: Some(row.claim.as_str()),
        cause: &cause,
    };
    audit::write(&mut transaction, caller, &entry).await?;
    reached(Point::CreateBeforeCommit);
    transaction.commit().await.settling()?;
    reached(Point::CreateStored);
    Ok(Created::New(row))
}

pub(super) fn exists_already(name: &PipelineName, id: PipelineId) -> Problem {
    Problem::new(
        Reason::PipelineExists,
        format!("pipeline {name} exists already, as {id}: choose another name or update it"),
    )
    .with("name", name)
    .with("pipeline", id)
}

/// The pipeline that this request id, or this very call before a lost answer, has made.
async fn known_create(connection: &mut Session, new: &NewPipeline) -> Result<Option<PipelineRow>, Fail> {
    let row = sqlx::query("SELECT * FROM pipelines WHERE request_id = $1 OR id = $2")
        .bind(new.request_id.map(|id| id.uuid()))
        .bind(new.id.uuid())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let digest: Option<String> = row.try_get("request_digest")?;
    let known = pipeline(&row)?;
    refuse_deleted(new, &known)?;
    if digest.as_deref() == Some(create_digest(new).as_str()) {
        return Ok(Some(known));
    }
    Err(created_another(new, &known).into())
}

/// `REQUEST_ID_REUSED`.
pub(super) fn created_another(new: &NewPipeline, known: &PipelineRow) -> Problem {
    let id = new.request_id.map_or_else(|| new.id.to_string(), |id| id.to_string());
    Problem::new(
        Reason::RequestIdReused,
        format!("request id {id} created pipeline {} with another spec: use a new request id", known.spec.name),
    )
    .with("request_id", id)
    .with("pipeline", known.id)
}

/// `PIPELINE_NOT_FOUND`: a row is made anew where the database has lost it, not where it was deleted. What was deleted stays so, with its rounds (ADR 34), and a row with its UUID there is already.
pub(super) fn refuse_deleted(new: &NewPipeline, known: &PipelineRow) -> Result<(), Problem> {
    let Some(at) = known.deleted_at.filter(|_| !new.follows && known.id == new.id) else { return Ok(()) };
    let (name, location) = (&new.spec.name, &new.spec.location);
    let deleted = &known.spec.name;
    let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    Err(Problem::new(
        Reason::PipelineNotFound,
        format!(
            "{location} belongs to pipeline {deleted} ({}), which was deleted in this database at {at} and is not made anew as {name}: to go on from its newest checkpoint \
             create another pipeline with `initial: standby` on that location, of this name or another, and then `lockstep take-over {name}`",
            known.id
        ),
    )
    .with("pipeline", name)
    .with("deleted", deleted)
    .with("deleted_id", known.id)
    .with("deleted_at", at)
    .with("location", location))
}

/// A pipeline that may have the location which another one asks for.
pub(super) struct Neighbour {
    pub(super) id: PipelineId,
    pub(super) name: String,
    pub(super) standby: bool,
    pub(super) location: Location,
}

/// Two pipelines never write one place; a standby may follow the very location of a running one.
pub(super) fn check_neighbour(spec: &PipelineSpec, other: &Neighbour) -> Result<(), Problem> {
    let same = other.location.same_place(&spec.location);
    let follows = same && (spec.initial == Initial::Standby || other.standby);
    if !other.location.overlaps(&spec.location) || follows {
        return Ok(());
    }
    let how = if same { "is" } else { "overlaps" };
    Err(Problem::new(
        Reason::LocationOwned,
        format!(
            "location {} of pipeline {} {how} {}, which belongs to pipeline {}: choose another prefix",
            spec.location, spec.name, other.location, other.name
        ),
    )
    .with("location", &spec.location)
    .with("pipeline", &spec.name)
    .with("owner", &other.name)
    .with("owner_id", other.id)
    .with("owner_location", &other.location))
}

async fn check_location(connection: &mut Session, spec: &PipelineSpec, except: Option<PipelineId>) -> Result<(), Fail> {
    let rows = sqlx::query(
        // From its columns: what is wrong with the rest of another pipeline's spec is not the new one's trouble.
        "SELECT id, name, claim, jsonb_build_object('bucket', location_bucket, 'prefix', location_prefix, 'endpoint', location_endpoint)
                AS location
         FROM pipelines
         WHERE deleted_at IS NULL AND location_bucket = $1 AND id IS DISTINCT FROM $2 ORDER BY name",
    )
    .bind(spec.location.bucket())
    .bind(except.map(PipelineId::uuid))
    .fetch_all(connection)
    .await?;
    for row in rows {
        let claim: String = row.try_get("claim")?;
        let other = Neighbour {
            id: PipelineId::new(row.try_get("id")?),
            name: row.try_get("name")?,
            standby: claim == ClaimState::Standby.as_str(),
            location: from_json("location", row.try_get("location")?)?,
        };
        check_neighbour(spec, &other)?;
    }
    Ok(())
}

/// What a new pipeline begins with.
pub(super) fn first_claim(new: &NewPipeline) -> Result<ClaimState, Problem> {
    match (new.spec.initial, &new.fence_bytes) {
        // A running one without a fence of its own is made anew by a resync: it owns nothing until the take-over that follows.
        (Initial::Standby | Initial::Running, None) => Ok(ClaimState::Standby),
        (Initial::Running, Some(_)) => Ok(ClaimState::Claiming),
        (Initial::Standby, Some(_)) => Err(Problem::new(
            Reason::SpecInvalid,
            format!("pipeline {}: a standby writes no fence, so it is created without one", new.spec.name),
        )
        .with("field", "initial")
        .retry(Retryable::No)),
    }
}

async fn insert(connection: &mut Session, new: &NewPipeline, caller: &Caller) -> Result<PipelineRow, Fail> {
    let spec = &new.spec;
    let claim = first_claim(new)?;
    let identity = identity::read(connection).await?;
    let row = sqlx::query(
        "INSERT INTO pipelines (id, name, spec, n_hosts, location_endpoint, location_bucket, location_prefix, claim, fence_bytes,
                                database_id, system_identifier, timeline, request_id, request_digest, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING *",
    )
    .bind(new.id.uuid())
    .bind(spec.name.as_str())
    .bind(spec.to_value())
    .bind(i32::try_from(spec.layout.n_hosts()).unwrap_or(i32::MAX))
    .bind(spec.location.endpoint())
    .bind(spec.location.bucket())
    .bind(spec.location.prefix())
    .bind(claim.as_str())
    .bind(new.fence_bytes.as_ref().map(|bytes| bytes.as_bytes()))
    .bind(identity.database.uuid())
    .bind(&identity.system_identifier)
    .bind(i64::from(identity.timeline))
    .bind(new.request_id.map(|id| id.uuid()))
    .bind(create_digest(new))
    .bind(text(&caller.actor))
    .fetch_one(connection)
    .await?;
    pipeline(&row)
}

pub(super) fn check_etag(row: &PipelineRow, etag: Option<&str>) -> Result<(), Problem> {
    match etag {
        Some(etag) if etag != row.etag => Err(Problem::new(
            Reason::EtagMismatch,
            format!("pipeline {} has etag {}, the request was made for {etag}: read it again", row.spec.name, row.etag),
        )
        .with("pipeline", &row.spec.name)
        .with("etag", &row.etag)
        .with("requested", etag)),
        _ => Ok(()),
    }
}

/// `ROUND_IN_PROGRESS`, naming the active round.
pub(super) async fn refuse_active(connection: &mut Session, row: &PipelineRow, wants: &str) -> Result<(), Fail> {
    let active =
        sqlx::query("SELECT id, kind, phase, periodic FROM rounds WHERE pipeline_id = $1 AND ended_at IS NULL")
            .bind(row.id.uuid())
            .fetch_optional(connection)
            .await?;
    let Some(active) = active else { return Ok(()) };
    let (id, kind, phase): (Uuid, String, String) =
        (active.try_get("id")?, active.try_get("kind")?, active.try_get("phase")?);
    let trigger = Trigger::of(active.try_get("periodic")?);
    Err(round_in_progress(row, wants, id, (&kind, trigger), &phase).into())
}

pub(super) fn round_in_progress(
    row: &PipelineRow,
    wants: &str,
    id: Uuid,
    (kind, trigger): (&str, Trigger),
    phase: &str,
) -> Problem {
    let which = trigger.as_str();
    Problem::new(
        Reason::RoundInProgress,
        format!(
            "pipeline {}: {wants} while {which} {kind} round {id} is {phase}: wait for it or cancel it",
            row.spec.name
        ),
    )
    .with("pipeline", &row.spec.name)
    .with("round", id)
    .with("kind", kind)
    .with("trigger", which)
    .with("phase", phase)
}

/// What an update asks for.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) selector: PipelineSelector,
    pub(super) spec: PipelineSpec,
    pub(super) etag: Option<String>,
    pub(super) caller: Caller,
}

fn unchangeable(field: &str, old: impl std::fmt::Display, new: impl std::fmt::Display, how: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {old} can't become {new} by an update: {how}"))
        .with("field", field)
        .with("old", old)
        .with("value", new)
}

/// Etags count the changes of a spec.
fn precedes(etag: &str, current: &str) -> bool {
    etag.parse::<i64>()
        .ok()
        .zip(current.parse::<i64>().ok())
        .is_some_and(|(etag, current)| etag.checked_add(1) == Some(current))
}

/// What an update changes, beyond what may change at any time.
pub(super) struct SpecChange {
    /// Something that active rounds have frozen.
    pub(super) frozen: bool,
    pub(super) renamed: bool,
}

/// What can't change while a round is active.
pub(super) const FROZEN: &str = "layout, agents and location can't change";

/// None: the spec is that already.
pub(super) fn check_update(
    row: &PipelineRow,
    spec: &PipelineSpec,
    etag: Option<&str>,
) -> Result<Option<SpecChange>, Problem> {
    // An update that is repeated after a lost answer names the etag before its own work.
    let repeated = row.spec == *spec && etag.is_some_and(|etag| precedes(etag, &row.etag));
    if !repeated {
        check_etag(row, etag)?;
    }
    if row.spec == *spec {
        return Ok(None);
    }
    if !row.spec.location.same_place(&spec.location) {
        let how =
            "its checkpoints and its fence stay where they are; create a pipeline there and pull with read_location";
        return Err(unchangeable("location", &row.spec.location, &spec.location, how));
    }
    if row.spec.initial != spec.initial {
        let name = |initial| if initial == Initial::Standby { "standby" } else { "running" };
        let how = "it says how a pipeline begins; a standby is activated instead";
        return Err(unchangeable("initial", name(row.spec.initial), name(spec.initial), how));
    }
    Ok(Some(SpecChange {
        frozen: row.spec.layout != spec.layout || row.spec.agents != spec.agents || row.spec.location != spec.location,
        renamed: row.spec.name != spec.name,
    }))
}

pub(super) fn name_taken(row: &PipelineRow, name: &PipelineName, other: PipelineId) -> Problem {
    Problem::new(Reason::PipelineExists, format!("pipeline {} can't be named {name}: that is {other}", row.spec.name))
        .with("name", name)
        .with("pipeline", other)
}

pub(super) async fn update(connection: &mut Session, update: &Update) -> Result<PipelineRow, Fail> {
    let Update { selector, spec, etag, caller } = update;
    let mut transaction = connection.begin().await?;
    // Before the row's lock: a create holds the two in the same order.
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCATIONS).execute(&mut *transaction).await?;
    let row = find(&mut transaction, selector, Lock::ForUpdate).await?;
    let Some(change) = check_update(&row, spec, etag.as_deref())? else { return Ok(row) };
    if change.frozen {
        refuse_active(&mut transaction, &row, FROZEN).await?;
    }
    if change.renamed
        && let Ok(other) = find(&mut transaction, &PipelineSelector::Name(spec.name.clone()), Lock::No).await
    {
        return Err(name_taken(&row, &spec.name, other.id).into());
    }
    let updated = sqlx::query(
        "UPDATE pipelines SET name = $2, spec = $3, n_hosts = $4, spec_version = spec_version + 1, version = version + 1,
                              updated_at = clock_timestamp()
         WHERE id = $1 RETURNING *",
    )
    .bind(row.id.uuid())
    .bind(spec.name.as_str())
    .bind(spec.to_value())
    .bind(i32::try_from(spec.layout.n_hosts()).unwrap_or(i32::MAX))
    .fetch_one(&mut *transaction)
    .await?;
    let updated = pipeline(&updated)?;
    let cause = changed_fields(&row.spec, spec);
    let entry =
        Entry { pipeline: row.id, round: None, event: event::PIPELINE_UPDATED, from: None, to: None, cause: &cause };
    audit::write(&mut transaction, caller, &entry).await?;
    transaction.commit().await.settling()?;
    Ok(updated)
}

/// For the audit trail: each field with both values.
pub(super) fn changed_fields(old: &PipelineSpec, new: &PipelineSpec) -> String {
    let (old, new) = (old.to_value(), new.to_value());
    let fields = ["name", "solo", "hosts", "agents", "location", "read_location", "start", "push_interval"];
    let more = ["pull_interval", "retention", "transfer"];
    let null = json!(null);
    let changed = fields.iter().chain(&more).filter_map(|field| {
        let (old, new) = (old.get(field).unwrap_or(&null), new.get(field).unwrap_or(&null));
        (old != new).then(|| format!("{field}: {old} -> {new}"))
    });
    changed.collect::<Vec<_>>().join("; ")
}

/// What a delete asks for.
#[derive(Clone, Debug)]
pub(super) struct Delete {
    pub(super) selector: PipelineSelector,
    pub(super) etag: Option<String>,
    pub(super) caller: Caller,
}

pub(super) async fn delete(connection: &mut Session, delete: &Delete) -> Result<PipelineId, Fail> {
    let Delete { selector, etag, caller } = delete;
    let mut transaction = connection.begin().await?;
    let row = find(&mut transaction, selector, Lock::ForUpdate).await?;
    check_etag(&row, etag.as_deref())?;
    refuse_active(&mut transaction, &row, "it can't be deleted").await?;
    let active: Option<(Uuid, String)> =
        sqlx::query_as("SELECT id, phase FROM take_overs WHERE pipeline_id = $1 AND ended_at IS NULL")
            .bind(row.id.uuid())
            .fetch_optional(&mut *transaction)
            .await?;
    refuse_delete(&row, active.as_ref().map(|(id, phase)| (*id, phase.as_str())))?;
    sqlx::query("UPDATE pipelines SET deleted_at = clock_timestamp(), version = version + 1, updated_at = clock_timestamp() WHERE id = $1")
        .bind(row.id.uuid())
        .execute(&mut *transaction)
        .await?;
    let cause = format!("deleted; the bucket keeps what stands at {}", row.spec.location);
    let entry = Entry {
        pipeline: row.id,
        round: None,
        event: event::PIPELINE_DELETED,
        from: Some(row.claim.as_str()),
        to: None,
        cause: &cause,
    };
    audit::write(&mut transaction, caller, &entry).await?;
    transaction.commit().await.settling()?;
    Ok(row.id)
}
