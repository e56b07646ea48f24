//! Rows of a round to its value and back. The value is whole: what a replica reads after a crash is what the other one wrote.

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::{
    commit::{CommitPart, CommitRef},
    host::Layout,
    id::{
        Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RequestId, RoundId,
        RoundNo, Seq, Step, Term,
    },
    location::Location,
    problem::Problem,
    round::{
        CancelRequest, Kind, Participant, ParticipantPhase, Phase, PullRequest, PullState, PushState, Resolved,
        RetryPolicy, Round, SettleState, Source, WantedCut,
    },
    spec::Transfer,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    HostProgress, RoundRecord, Trigger,
    sqlstate::Fail,
    text::{as_read, from_json, json},
};

/// One statement, so one point in time: the row, its participants, their progress and a cancel request. `$from` names what
/// `r` is, from the table or from an UPDATE's RETURNING.
macro_rules! select_records {
    ($from:literal) => {
        concat!(
            "SELECT r.*, ",
            "(SELECT coalesce(jsonb_agg(to_jsonb(p) ORDER BY p.host_idx), '[]') FROM participants p WHERE p.round_id = r.id) ",
            "AS participants, ",
            "(SELECT coalesce(jsonb_agg(to_jsonb(g) ORDER BY g.host_idx), '[]') FROM progress g WHERE g.round_id = r.id) ",
            "AS progress, ",
            "c.requested_by, c.cause AS requested_cause FROM ",
            $from,
            " r LEFT JOIN cancel_requests c ON c.round_id = r.id "
        )
    };
}
pub(super) use select_records;

/// What the column `state` holds of a push: all that no other column does.
#[derive(Serialize, Deserialize)]
pub(super) struct PushRest {
    wanted: WantedCut,
    force: bool,
    parent: Option<CommitRef>,
    settle: SettleState,
}

/// What the column `state` holds of a pull.
#[derive(Serialize, Deserialize)]
pub(super) struct PullRest {
    request: PullRequest,
    resolved: Option<Resolved>,
    /// Rows of before don't have it, and those who wrote them read past it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<CommitRef>,
}

/// The column `state`.
pub(super) fn rest_of(kind: &Kind) -> Result<Value, Fail> {
    match kind {
        Kind::Push(push) => {
            json(&PushRest { wanted: push.wanted, force: push.force, parent: push.parent, settle: push.settle.clone() })
        }
        Kind::Pull(pull) => {
            json(&PullRest { request: pull.request, resolved: pull.resolved.clone(), retired: pull.retired.clone() })
        }
    }
}

/// The column `transfer`.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredTransfer {
    concurrency: u32,
    part_size: u64,
    memory: u64,
    bandwidth_limit: Option<u64>,
}

impl From<Transfer> for StoredTransfer {
    fn from(transfer: Transfer) -> Self {
        let Transfer { concurrency, part_size, memory, bandwidth_limit } = transfer;
        Self { concurrency, part_size, memory, bandwidth_limit }
    }
}

impl From<StoredTransfer> for Transfer {
    fn from(stored: StoredTransfer) -> Self {
        let StoredTransfer { concurrency, part_size, memory, bandwidth_limit } = stored;
        Self { concurrency, part_size, memory, bandwidth_limit }
    }
}

#[derive(Deserialize)]
struct StoredParticipant {
    host_idx: u32,
    address: String,
    phase: String,
    attempt: Attempt,
    incarnation: Option<Incarnation>,
    local_checkpoint: Option<LocalCheckpointId>,
    part: Option<CommitPart>,
    retry_at: Option<DateTime<Utc>>,
    problem: Option<Problem>,
}

#[derive(Deserialize)]
struct StoredProgress {
    host_idx: u32,
    attempt: Attempt,
    bytes_done: u64,
    bytes_total: Option<u64>,
    files_done: u64,
    files_total: Option<u64>,
    bytes_transferred: u64,
    bytes_per_second: u64,
}

fn unreadable(what: &str, value: impl std::fmt::Display) -> Fail {
    Fail::Unreadable(format!("{what} {value} of a row is not readable by this version"))
}

/// A number column.
pub(super) fn number<T: TryFrom<i64, Error = Problem>>(value: i64) -> Result<T, Fail> {
    T::try_from(value).map_err(|problem| Fail::Unreadable(problem.message))
}

fn optional_number<T: TryFrom<i64, Error = Problem>>(value: Option<i64>) -> Result<Option<T>, Fail> {
    value.map(number).transpose()
}

/// Plain unsigned numbers.
pub(super) fn unsigned(what: &str, value: i64) -> Result<u64, Fail> {
    u64::try_from(value).map_err(|_| unreadable(what, value))
}

/// A text column that a type parses.
pub(super) fn parsed<T: std::str::FromStr<Err = Problem>>(value: &str) -> Result<T, Fail> {
    value.parse().map_err(|problem: Problem| Fail::Unreadable(problem.message))
}

/// Four columns that name one commit; `prefix` begins their names.
pub(super) fn commit_ref(row: &PgRow, prefix: &str) -> Result<Option<CommitRef>, Fail> {
    let column = |name: &str| format!("{prefix}_{name}");
    let generation: Option<i64> = row.try_get(column("generation").as_str())?;
    let seq: Option<i64> = row.try_get(column("seq").as_str())?;
    let round: Option<Uuid> = row.try_get(column("round_id").as_str())?;
    let digest: Option<String> = row.try_get(column("digest").as_str())?;
    match (generation, seq, round, digest) {
        (Some(generation), Some(seq), Some(round), Some(digest)) => Ok(Some(CommitRef {
            generation: number(generation)?,
            seq: number(seq)?,
            round: RoundId::new(round),
            digest: parsed(&digest)?,
        })),
        _ => Ok(None),
    }
}

fn document(row: &PgRow, column: &str) -> Result<Option<String>, Fail> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    bytes.map(|bytes| String::from_utf8(bytes).map_err(|error| unreadable(column, error))).transpose()
}

fn optional<T: serde::de::DeserializeOwned>(row: &PgRow, column: &str) -> Result<Option<T>, Fail> {
    let value: Option<Value> = row.try_get(column)?;
    value.map(|value| from_json(column, value)).transpose()
}

fn required<T: serde::de::DeserializeOwned>(row: &PgRow, column: &str) -> Result<T, Fail> {
    from_json(column, row.try_get(column)?)
}

fn push_state(row: &PgRow, id: RoundId, generation: Generation) -> Result<PushState, Fail> {
    let rest: PushRest = required(row, "state")?;
    let seq: Seq = number(row.try_get::<Option<i64>, _>("seq")?.ok_or_else(|| unreadable("seq of push", id))?)?;
    let fingerprint: Option<String> = row.try_get("fingerprint")?;
    let digest: Option<String> = row.try_get("commit_digest")?;
    Ok(PushState {
        seq,
        wanted: rest.wanted,
        force: rest.force,
        base: commit_ref(row, "base")?,
        parent: rest.parent,
        step: optional_number::<Step>(row.try_get("step")?)?,
        fingerprint: fingerprint.as_deref().map(parsed::<Fingerprint>).transpose()?,
        commit_bytes: document(row, "commit_bytes")?,
        abort_bytes: document(row, "abort_bytes")?,
        committed: digest
            .map(|digest| Ok::<_, Fail>(CommitRef { generation, seq, round: id, digest: parsed(&digest)? }))
            .transpose()?,
        settle: rest.settle,
    })
}

fn participant(stored: StoredParticipant) -> Result<Participant, Fail> {
    Ok(Participant {
        host_idx: stored.host_idx,
        address: stored.address,
        phase: ParticipantPhase::parse(&stored.phase)
            .ok_or_else(|| unreadable("phase of a participant", &stored.phase))?,
        attempt: stored.attempt,
        incarnation: stored.incarnation,
        local_checkpoint: stored.local_checkpoint,
        part: stored.part,
        retry_at: stored.retry_at,
        problem: stored.problem,
    })
}

fn round(row: &PgRow) -> Result<Round, Fail> {
    let id = RoundId::new(row.try_get("id")?);
    let generation: Generation = number(row.try_get("generation")?)?;
    let n_hosts: i32 = row.try_get("n_hosts")?;
    let phase: String = row.try_get("phase")?;
    let kind: String = row.try_get("kind")?;
    let participants: Vec<StoredParticipant> = required(row, "participants")?;
    let by: Option<String> = row.try_get("cancelled_by")?;
    let cause: Option<String> = row.try_get("cancel_cause")?;
    let round = Round {
        id,
        pipeline: PipelineId::new(row.try_get("pipeline_id")?),
        pipeline_name: PipelineName::new(row.try_get::<String, _>("pipeline_name")?)
            .map_err(|problem| Fail::Unreadable(problem.message))?,
        round_no: number::<RoundNo>(row.try_get("round_no")?)?,
        generation,
        layout: u32::try_from(n_hosts)
            .ok()
            .and_then(|n_hosts| Layout::from_n_hosts(n_hosts).ok())
            .ok_or_else(|| unreadable("n_hosts", n_hosts))?,
        location: required(row, "location")?,
        version: unsigned("version", row.try_get("version")?)?,
        term: number::<Term>(row.try_get("term")?)?,
        phase: Phase::parse(&phase).ok_or_else(|| unreadable("phase", &phase))?,
        deadline: row.try_get("deadline")?,
        problem: optional(row, "problem")?,
        cancel: by.zip(cause).map(|(by, cause)| CancelRequest { by, cause }),
        participants: participants.into_iter().map(participant).collect::<Result<_, _>>()?,
        retry: required::<RetryPolicy>(row, "retry")?,
        kind: match kind.as_str() {
            "push" => Kind::Push(push_state(row, id, generation)?),
            "pull" => {
                let rest: PullRest = required(row, "state")?;
                Kind::Pull(PullState { request: rest.request, resolved: rest.resolved, retired: rest.retired })
            }
            other => return Err(unreadable("kind", other)),
        },
    };
    check_whole(&round)?;
    Ok(round)
}

/// What the columns say of each other; whoever drives a round relies on it.
fn check_whole(round: &Round) -> Result<(), Fail> {
    let hosts = round.participants.iter().map(|participant| participant.host_idx);
    if !hosts.eq(0..round.layout.len()) {
        return Err(unreadable(
            "participants",
            format!("of {}, which are not one each of {},", round.id, round.layout),
        ));
    }
    let fits = match &round.kind {
        Kind::Push(push) => {
            if round.phase == Phase::Committing && push.commit_bytes.is_none() {
                return Err(unreadable("commit_bytes", "missing while committing"));
            }
            !matches!(round.phase, Phase::Resolving | Phase::Installing | Phase::Installed | Phase::Fresh)
        }
        Kind::Pull(pull) => {
            let resolved = pull.resolved.is_some();
            let needs = matches!(round.phase, Phase::Transferring | Phase::Installing | Phase::Installed);
            (resolved || !needs) && !matches!(round.phase, Phase::Planning | Phase::Committing | Phase::Committed)
        }
    };
    if fits { Ok(()) } else { Err(unreadable("phase", format!("{} that doesn't fit the rest", round.phase))) }
}

/// One row of [`select_records`]. One that can't be read says which round it is.
pub(super) fn record(row: &PgRow) -> Result<RoundRecord, Fail> {
    whole_record(row).map_err(|fail| unreadable_row("round", row, "pipeline_name", &fail))
}

/// Which row it is that somebody must look at.
pub(super) fn unreadable_row(what: &str, row: &PgRow, name: &str, fail: &Fail) -> Fail {
    let id: Option<Uuid> = row.try_get("id").ok();
    let name: Option<String> = row.try_get(name).ok();
    let (id, name) = (id.map_or_else(|| "?".to_owned(), |id| id.to_string()), name.unwrap_or_else(|| "?".to_owned()));
    let why = match fail {
        Fail::Unreadable(why) => why.clone(),
        Fail::Statement(error) | Fail::Settling(error) => error.to_string(),
        Fail::Refused(problem) => problem.message.clone(),
        Fail::Standby => "read from a standby".to_owned(),
    };
    Fail::Unreadable(format!("{what} {id} of {name}: {why}"))
}

/// Those that can be read. One that somebody has edited to what no code writes, or that a newer version wrote, must not keep the others from whoever
/// asked for many: it is told of here and to whoever asks for it.
pub(super) fn readable<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, Fail>) -> Vec<T> {
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        match read(row) {
            Ok(item) => items.push(item),
            Err(fail) => {
                metrics::counter!("lockstep_store_unreadable_rows_total").increment(1);
                tracing::error!(?fail, "a row is left out because it can't be read: set it right");
            }
        }
    }
    items
}

fn whole_record(row: &PgRow) -> Result<RoundRecord, Fail> {
    let progress: Vec<StoredProgress> = required(row, "progress")?;
    let by: Option<String> = row.try_get("requested_by")?;
    let cause: Option<String> = row.try_get("requested_cause")?;
    let request_id: Option<Uuid> = row.try_get("request_id")?;
    Ok(RoundRecord {
        round: round(row)?,
        request_id: request_id.map(RequestId::new),
        actor: row.try_get("actor")?,
        trigger: Trigger::of(row.try_get("periodic")?),
        trace_id: row.try_get("trace_id")?,
        traceparent: row.try_get("traceparent")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        ended_at: row.try_get("ended_at")?,
        lease_owner: row.try_get("lease_owner")?,
        progress: progress
            .into_iter()
            .map(|p| HostProgress {
                host_idx: p.host_idx,
                attempt: p.attempt,
                bytes_done: p.bytes_done,
                bytes_total: p.bytes_total,
                files_done: p.files_done,
                files_total: p.files_total,
                bytes_transferred: p.bytes_transferred,
                bytes_per_second: p.bytes_per_second,
            })
            .collect(),
        transfer: required::<StoredTransfer>(row, "transfer")?.into(),
        read_location: optional::<Location>(row, "read_location")?,
        cancel_requested: by.zip(cause).map(|(by, cause)| CancelRequest { by, cause }),
    })
}

/// The round as the database will give it back: its timestamps have microseconds, and what was reported has no character that Postgres hasn't. Whoever looks after a lost
/// answer compares with this, and the twin stores it.
pub(super) fn as_stored(mut round: Round) -> Round {
    round.problem = round.problem.map(as_read);
    round.cancel = round.cancel.map(as_read);
    round.kind = as_read(round.kind);
    for participant in &mut round.participants {
        participant.retry_at = participant.retry_at.map(|at| at.trunc_subsecs(6));
        participant.problem = participant.problem.take().map(as_read);
        participant.part = participant.part.take().map(as_read);
    }
    round
}

/// The plain columns that mirror a pull's source.
pub(super) struct SourceColumns {
    pub(super) source: Option<&'static str>,
    pub(super) location: Option<String>,
    pub(super) commit: Option<CommitRef>,
    pub(super) step: Option<Step>,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// Step, fingerprint and source of either kind.
pub(super) fn source_columns(kind: &Kind) -> SourceColumns {
    match kind {
        Kind::Push(push) => {
            SourceColumns { source: None, location: None, commit: None, step: push.step, fingerprint: push.fingerprint }
        }
        Kind::Pull(pull) => match &pull.resolved {
            None => SourceColumns { source: None, location: None, commit: None, step: None, fingerprint: None },
            Some(resolved) => SourceColumns {
                source: Some(match resolved.source {
                    Source::Local => "local",
                    Source::Location => "location",
                    Source::ReadLocation => "read_location",
                    Source::Fresh => "fresh",
                }),
                location: resolved.location.as_ref().map(ToString::to_string),
                commit: resolved.commit,
                step: resolved.step,
                fingerprint: resolved.fingerprint,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::spec::PullSelector;

    use super::*;
    use crate::plan::draft::of_standby;

    /// Replicas are upgraded one after the other.
    #[test]
    fn a_pull_whose_source_was_retired_is_read_by_replicas_of_before_and_theirs_by_ours() {
        #[derive(Deserialize)]
        struct OfBefore {
            resolved: Option<Resolved>,
        }
        let request = of_standby(PullSelector::Latest);
        let digest = lockstep_protocol::digest::Digest::of(b"commit");
        let (round, seq) = (RoundId::new(Uuid::from_u128(5)), Seq::FIRST);
        let retired = vec![CommitRef { generation: Generation::FIRST, seq, round, digest }];
        let stored = rest_of(&Kind::Pull(PullState { retired: retired.clone(), ..PullState::asked(request) })).unwrap();
        assert!(from_json::<OfBefore>("state", stored.clone()).unwrap().resolved.is_none());
        assert_eq!(from_json::<PullRest>("state", stored).unwrap().retired, retired);
        let of_before = rest_of(&Kind::Pull(PullState::asked(request))).unwrap();
        assert_eq!(of_before.get("retired"), None, "{of_before}");
        assert_eq!(from_json::<PullRest>("state", of_before).unwrap().retired, []);
    }
}
