//! The coordinators' database, read with statements of the auditor's own.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

/// A pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineRow {
    /// Immutable.
    pub id: Uuid,
    /// At present.
    pub name: String,
    /// Of its location, with a slash behind it.
    pub prefix: String,
    /// Of its location that it owns; 0: none.
    pub generation: u64,
    /// Generation and seq of the newest commit it knows of.
    pub last: Option<(u64, u64)>,
    /// The round that made it.
    pub last_round: Option<Uuid>,
    /// Whether somebody took its location over.
    pub fenced: bool,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundRow {
    /// Of a committed push also the checkpoint's id.
    pub id: Uuid,
    /// Whose.
    pub pipeline: Uuid,
    /// `push` or `pull`.
    pub kind: String,
    /// Number in its pipeline.
    pub round_no: i64,
    /// Of the location.
    pub generation: u64,
    /// Of a push.
    pub seq: Option<u64>,
    /// 0 is solo.
    pub n_hosts: u32,
    /// Where it stands.
    pub phase: String,
    /// Of the replica that drove it last.
    pub term: i64,
    /// Rises with each change.
    pub version: i64,
    /// Why it failed.
    pub reason: Option<String>,
    /// Of the cut.
    pub step: Option<u64>,
    /// Of the commit that stands, in hex.
    pub commit_digest: Option<String>,
    /// What was stored before it was put.
    pub commit_bytes: Option<Vec<u8>>,
    /// Generation and seq of what a pull restored.
    pub source: Option<(u64, u64)>,
    /// Tries of the decision whose outcome was unknown.
    pub unknown_tries: u64,
    /// When it was admitted.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A host in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantRow {
    /// Slot; 0 for solo.
    pub host_idx: u32,
    /// Where it stands.
    pub phase: String,
    /// Present try.
    pub attempt: u32,
    /// The process that the present try is for.
    pub incarnation: Option<Uuid>,
    /// Its share of the cut.
    pub local_checkpoint: Option<Uuid>,
}

/// An event of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Rises in the order of writing.
    pub id: i64,
    /// The database's clock.
    pub at: DateTime<Utc>,
    /// Of which pipeline.
    pub pipeline: Uuid,
    /// Of which round.
    pub round: Option<Uuid>,
    /// Of which host.
    pub host_idx: Option<u32>,
    /// What sort.
    pub event: String,
    /// Phase before.
    pub from: Option<String>,
    /// Phase after.
    pub to: Option<String>,
    /// Why.
    pub cause: String,
    /// Who.
    pub actor: String,
    /// Of the round then.
    pub term: Option<i64>,
    /// Of the round after it.
    pub version: Option<i64>,
}

/// A request id and what answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Of which pipeline.
    pub pipeline: Uuid,
    /// The idempotency key.
    pub request: Uuid,
    /// The round that answered.
    pub round: Uuid,
}

/// All that an audit reads of a database.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// By id, those that own a location or follow one.
    pub pipelines: BTreeMap<Uuid, PipelineRow>,
    /// By id.
    pub rounds: BTreeMap<Uuid, RoundRow>,
    /// By round, in the order of hosts.
    pub participants: BTreeMap<Uuid, Vec<ParticipantRow>>,
    /// In the order of writing.
    pub events: Vec<Event>,
    /// Request ids.
    pub requests: Vec<RequestRow>,
}

fn number(value: i64) -> u64 {
    u64::try_from(value).expect("no number of this database is negative")
}

fn small(value: i32) -> u32 {
    u32::try_from(value).expect("no number of this database is negative")
}

fn pair(generation: Option<i64>, seq: Option<i64>) -> Option<(u64, u64)> {
    generation.zip(seq).map(|(generation, seq)| (number(generation), number(seq)))
}

impl Rows {
    /// Reads everything, in one snapshot.
    pub async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *connection).await?;
        let mut rows = Self::default();
        rows.read_pipelines(connection).await?;
        rows.read_rounds(connection).await?;
        rows.read_participants(connection).await?;
        rows.read_events(connection).await?;
        sqlx::query("COMMIT").execute(connection).await?;
        Ok(rows)
    }

    async fn read_pipelines(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = "SELECT id, name, location_prefix, generation, last_generation, last_seq, last_round_id, fenced_at IS NOT NULL AS fenced
                         FROM pipelines WHERE claim IN ('owned', 'standby')";
        for row in sqlx::query(statement).fetch_all(connection).await? {
            let id = row.try_get("id")?;
            let prefix: String = row.try_get("location_prefix")?;
            let pipeline = PipelineRow {
                id,
                name: row.try_get("name")?,
                prefix: if prefix.is_empty() { prefix } else { format!("{prefix}/") },
                generation: number(row.try_get("generation")?),
                last: pair(row.try_get("last_generation")?, row.try_get("last_seq")?),
                last_round: row.try_get("last_round_id")?,
                fenced: row.try_get("fenced")?,
            };
            self.pipelines.insert(id, pipeline);
        }
        Ok(())
    }

    async fn read_rounds(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = "SELECT id, pipeline_id, kind, round_no, generation, seq, n_hosts, phase, term, version, problem_reason, step,
                                commit_digest, commit_bytes, source_generation, source_seq, created_at, ended_at,
                                coalesce((state #>> '{settle,tries}')::bigint, 0) AS unknown_tries
                         FROM rounds";
        for row in sqlx::query(statement).fetch_all(connection).await? {
            let id = row.try_get("id")?;
            let round = RoundRow {
                id,
                pipeline: row.try_get("pipeline_id")?,
                kind: row.try_get("kind")?,
                round_no: row.try_get("round_no")?,
                generation: number(row.try_get("generation")?),
                seq: row.try_get::<Option<i64>, _>("seq")?.map(number),
                n_hosts: small(row.try_get("n_hosts")?),
                phase: row.try_get("phase")?,
                term: row.try_get("term")?,
                version: row.try_get("version")?,
                reason: row.try_get("problem_reason")?,
                step: row.try_get::<Option<i64>, _>("step")?.map(number),
                commit_digest: row.try_get("commit_digest")?,
                commit_bytes: row.try_get("commit_bytes")?,
                source: pair(row.try_get("source_generation")?, row.try_get("source_seq")?),
                unknown_tries: number(row.try_get("unknown_tries")?),
                created_at: row.try_get("created_at")?,
                ended_at: row.try_get("ended_at")?,
            };
            self.rounds.insert(id, round);
        }
        Ok(())
    }

    async fn read_participants(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = "SELECT round_id, host_idx, phase, attempt, incarnation, local_checkpoint FROM participants
                         ORDER BY round_id, host_idx";
        for row in sqlx::query(statement).fetch_all(connection).await? {
            let participant = ParticipantRow {
                host_idx: small(row.try_get("host_idx")?),
                phase: row.try_get("phase")?,
                attempt: small(row.try_get("attempt")?),
                incarnation: row.try_get("incarnation")?,
                local_checkpoint: row.try_get("local_checkpoint")?,
            };
            self.participants.entry(row.try_get("round_id")?).or_default().push(participant);
        }
        Ok(())
    }

    async fn read_events(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement =
            "SELECT id, at, pipeline_id, round_id, host_idx, event, from_phase, to_phase, cause, actor, term, version
                         FROM audit_events ORDER BY id";
        for row in sqlx::query(statement).fetch_all(&mut *connection).await? {
            self.events.push(Event {
                id: row.try_get("id")?,
                at: row.try_get("at")?,
                pipeline: row.try_get("pipeline_id")?,
                round: row.try_get("round_id")?,
                host_idx: row.try_get::<Option<i32>, _>("host_idx")?.map(small),
                event: row.try_get("event")?,
                from: row.try_get("from_phase")?,
                to: row.try_get("to_phase")?,
                cause: row.try_get("cause")?,
                actor: row.try_get("actor")?,
                term: row.try_get("term")?,
                version: row.try_get("version")?,
            });
        }
        for row in sqlx::query("SELECT pipeline_id, request_id, round_id FROM requests").fetch_all(connection).await? {
            let request = RequestRow {
                pipeline: row.try_get("pipeline_id")?,
                request: row.try_get("request_id")?,
                round: row.try_get("round_id")?,
            };
            self.requests.push(request);
        }
        Ok(())
    }

    /// Participants of a round.
    pub fn hosts(&self, round: Uuid) -> &[ParticipantRow] {
        self.participants.get(&round).map_or(&[], Vec::as_slice)
    }
}
