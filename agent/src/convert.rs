//! Between generated types and the domain; beside the service the only place that knows both.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    host::{HostInfo, Slot},
    id::{Fingerprint, Generation, LocalCheckpointId, PipelineName, RoundNo, Seq, Step, Term},
    key::{AttemptPath, Key},
    location::{Location, RawLocation},
    order::{OrderHeader, OrderMark},
    problem::{Code, Problem, Reason, Retryable},
    ready::{Role, Word},
    selection::LocalCheckpoint,
};
use lockstep_rpc::RpcProblem;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    order::{Deadline, Install, InstallWhat, PartRef, Pull, PullDone, Push, PushDone, Reach, Ready, TransferLimits},
    progress::Snapshot,
};

/// What is further away than a clock can tell.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Longest a status call waits.
const MAX_WAIT: Duration = Duration::from_secs(60);

fn missing(field: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("the order has no {field}")).with("field", field)
}

/// A call that fails: the reason's code, and everything else as `ErrorInfo`.
pub(crate) fn status(problem: &Problem) -> Status {
    let retryable = match problem.retryable() {
        Retryable::Yes => lockstep_rpc::Retryable::Yes,
        Retryable::AfterFix => lockstep_rpc::Retryable::AfterFix,
        Retryable::No => lockstep_rpc::Retryable::No,
    };
    let code = match problem.reason.code() {
        Code::Cancelled => tonic::Code::Cancelled,
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Aborted => tonic::Code::Aborted,
        Code::Internal => tonic::Code::Internal,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DataLoss => tonic::Code::DataLoss,
    };
    let rpc = RpcProblem::new(code, problem.reason.as_str(), problem.message.clone()).retryable(retryable);
    problem.metadata.iter().fold(rpc, |rpc, (key, value)| rpc.with(key, value)).into_status()
}

/// A failure that is reported as a state of a transfer.
pub(crate) fn problem(problem: &Problem) -> v1::Problem {
    let retryable = match problem.retryable() {
        Retryable::Yes => v1::Retryable::Yes,
        Retryable::AfterFix => v1::Retryable::AfterFix,
        Retryable::No => v1::Retryable::No,
    };
    v1::Problem {
        code: problem.reason.code() as i32,
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
        metadata: problem.metadata.clone().into_iter().collect(),
        retryable: retryable.into(),
    }
}

fn slot(info: Option<v1::HostInfo>) -> Result<Slot, Problem> {
    info.map_or(Ok(Slot::Solo), |info| HostInfo::new(info.host_idx, info.n_hosts).map(Slot::Host))
}

pub(crate) fn host_info(slot: Slot) -> Option<v1::HostInfo> {
    slot.host_info().map(|info| v1::HostInfo { host_idx: info.host_idx(), n_hosts: info.n_hosts() })
}

/// A location as an order or a `Sync` names it; `endpoint` is this process' default.
pub(crate) fn location(field: &str, raw: Option<v1::Location>, endpoint: Option<&str>) -> Result<Location, Problem> {
    let raw = raw.ok_or_else(|| missing(field))?;
    let location = Location::try_from(RawLocation {
        bucket: raw.bucket,
        prefix: raw.prefix,
        region: Some(raw.region),
        endpoint: Some(raw.endpoint),
        force_path_style: raw.force_path_style,
    })?;
    Ok(location.or_endpoint(endpoint))
}

pub(crate) fn location_out(location: &Location) -> v1::Location {
    v1::Location {
        bucket: location.bucket().to_owned(),
        prefix: location.prefix().to_owned(),
        region: location.region().unwrap_or_default().to_owned(),
        endpoint: location.endpoint().unwrap_or_default().to_owned(),
        force_path_style: location.force_path_style(),
    }
}

pub(crate) fn header(raw: Option<v1::OrderHeader>, endpoint: Option<&str>) -> Result<OrderHeader, Problem> {
    let raw = raw.ok_or_else(|| missing("header"))?;
    Ok(OrderHeader {
        pipeline: raw.pipeline_id.parse()?,
        pipeline_name: PipelineName::new(raw.pipeline_name)?,
        slot: slot(raw.host_info)?,
        incarnation: raw.incarnation.parse()?,
        generation: Generation::new(raw.generation)?,
        round_no: RoundNo::new(raw.round_no)?,
        term: Term::new(raw.term)?,
        round: raw.round.parse()?,
        attempt: raw.attempt.try_into()?,
        own_location: location("header.own_location", raw.own_location, endpoint)?,
    })
}

fn fingerprint(text: &str) -> Result<Option<Fingerprint>, Problem> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn fingerprint_out(fingerprint: Option<Fingerprint>) -> String {
    fingerprint.map(|fingerprint| fingerprint.to_string()).unwrap_or_default()
}

fn commit_ref(raw: v1::CommitRef) -> Result<CommitRef, Problem> {
    Ok(CommitRef {
        generation: Generation::new(raw.generation)?,
        seq: Seq::new(raw.seq)?,
        round: raw.round.parse()?,
        digest: raw.digest.parse()?,
    })
}

pub(crate) fn commit_ref_out(commit: &CommitRef) -> v1::CommitRef {
    v1::CommitRef {
        generation: commit.generation.get(),
        seq: commit.seq.get(),
        round: commit.round.to_string(),
        digest: commit.digest.to_string(),
    }
}

fn part_ref(raw: v1::PartRef) -> Result<PartRef, Problem> {
    let path: AttemptPath = match Key::parse(&raw.key) {
        Some(Key::PartManifest(path)) if path.host_idx.unwrap_or(0) == raw.host_idx => path,
        _ => {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!("part key {:?} is not a part manifest's of host {}", raw.key, raw.host_idx),
            )
            .with("field", "part.key")
            .with("value", raw.key)
            .with("host_idx", raw.host_idx));
        }
    };
    Ok(PartRef { path, length: raw.length, blake3: raw.blake3.parse()? })
}

fn part_ref_out(part: &PartRef) -> v1::PartRef {
    v1::PartRef { host_idx: part.host_idx(), key: part.key(), length: part.length, blake3: part.blake3.to_string() }
}

/// Counted from the arrival of the order: this machine's clock decides only if no time is told.
fn deadline(
    raw: Option<prost_types::Timestamp>,
    left: Option<prost_types::Duration>,
) -> Result<Option<Deadline>, Problem> {
    let Some(raw) = raw else { return Ok(None) };
    let no_time = |field: &str, seconds: i64, nanos: i32| {
        Problem::new(Reason::SpecInvalid, format!("{field} of {seconds} s and {nanos} ns is no time"))
            .with("field", field)
    };
    let nanos = u32::try_from(raw.nanos).ok();
    let at = nanos.and_then(|nanos| DateTime::from_timestamp(raw.seconds, nanos));
    let at = at.ok_or_else(|| no_time("deadline", raw.seconds, raw.nanos))?;
    let left = match left {
        Some(left) => Duration::try_from(left).map_err(|_| no_time("time_left", left.seconds, left.nanos))?,
        // One that has passed is zero.
        None => (at - Utc::now()).to_std().unwrap_or_default(),
    };
    let now = Instant::now();
    Ok(Some(Deadline { at, instant: now.checked_add(left).unwrap_or(now + FAR) }))
}

fn limits(raw: Option<v1::TransferOptions>, default: TransferLimits) -> Result<TransferLimits, Problem> {
    let raw = raw.unwrap_or_default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    TransferLimits {
        concurrency: if raw.concurrency == 0 { default.concurrency } else { raw.concurrency as usize },
        part_size: or(raw.part_size, default.part_size),
        memory: or(raw.memory, default.memory),
        bandwidth: if raw.bandwidth_limit == 0 { default.bandwidth } else { Some(raw.bandwidth_limit) },
    }
    .checked()
}

/// The order behind a checked header; the caller has parsed the header alone before, so that its checks come first.
pub(crate) fn push(raw: v1::PushOrder, header: OrderHeader, default: TransferLimits) -> Result<Push, Problem> {
    if raw.base.map(commit_ref).transpose()?.is_none() && !raw.base_parts.is_empty() {
        return Err(missing("base, which its base_parts belong to,"));
    }
    Ok(Push {
        header,
        local_checkpoint: raw.local_checkpoint.parse()?,
        step: Step::new(raw.step)?,
        fingerprint: fingerprint(&raw.fingerprint)?,
        base_parts: raw.base_parts.into_iter().map(part_ref).collect::<Result<_, _>>()?,
        deadline: deadline(raw.deadline, raw.time_left)?,
        limits: limits(raw.transfer, default)?,
    })
}

/// See [`push`].
pub(crate) fn pull(
    raw: v1::PullOrder,
    header: OrderHeader,
    endpoint: Option<&str>,
    default: TransferLimits,
) -> Result<Pull, Problem> {
    Ok(Pull {
        header,
        source: location("source", raw.source, endpoint)?,
        commit: raw.commit.ok_or_else(|| missing("commit")).and_then(commit_ref)?,
        part: raw.part.ok_or_else(|| missing("part")).and_then(part_ref)?,
        local_checkpoint: raw.local_checkpoint.parse()?,
        step: Step::new(raw.step)?,
        fingerprint: fingerprint(&raw.fingerprint)?,
        deadline: deadline(raw.deadline, raw.time_left)?,
        limits: limits(raw.transfer, default)?,
    })
}

/// See [`push`].
pub(crate) fn install(raw: &v1::InstallOrder, header: OrderHeader) -> Result<Install, Problem> {
    let what = checkpoint_or_fresh(&raw.local_checkpoint, raw.step, raw.fresh)?;
    Ok(Install { header, what })
}

fn checkpoint_or_fresh(id: &str, step: u64, fresh: bool) -> Result<InstallWhat, Problem> {
    Ok(match (fresh, id) {
        (true, "") => InstallWhat::Fresh,
        (true, id) => {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!("the order says both fresh and local checkpoint {id}: it is one or the other"),
            )
            .with("field", "fresh")
            .with("local_checkpoint", id));
        }
        (false, "") => return Err(missing("local_checkpoint")),
        (false, id) => InstallWhat::Checkpoint(id.parse::<LocalCheckpointId>()?, Step::new(step)?),
    })
}

/// See [`push`].
pub(crate) fn ready(raw: &v1::ReadyOrder, header: OrderHeader) -> Result<Ready, Problem> {
    let role = match v1::Role::try_from(raw.role) {
        Ok(v1::Role::Active) => Role::Active,
        Ok(v1::Role::Standby) => Role::Standby,
        Ok(v1::Role::Unspecified) => return Err(missing("role")),
        Err(_) => {
            return Err(Problem::new(Reason::SpecInvalid, format!("role {} is neither active nor standby", raw.role))
                .with("field", "role")
                .with("value", raw.role));
        }
    };
    let checkpoint = match checkpoint_or_fresh(&raw.local_checkpoint, raw.step, raw.fresh)? {
        InstallWhat::Fresh => None,
        InstallWhat::Checkpoint(id, step) => Some((id, step)),
    };
    Ok(Ready { word: Word { round: Some(header.round), checkpoint, role }, header })
}

pub(crate) fn ready_word(word: &Word, hook_problem: Option<String>) -> v1::ReadyWord {
    let role = match word.role {
        Role::Active => v1::Role::Active,
        Role::Standby => v1::Role::Standby,
    };
    v1::ReadyWord {
        round: word.round.map(|round| round.to_string()).unwrap_or_default(),
        local_checkpoint: word.checkpoint.map(|(id, _)| id.to_string()).unwrap_or_default(),
        step: word.checkpoint.map(|(_, step)| step.get()).unwrap_or_default(),
        fresh: word.checkpoint.is_none(),
        role: role.into(),
        hook_problem: hook_problem.unwrap_or_default(),
    }
}

/// How long a status call may wait; absent: not at all.
pub(crate) fn wait(raw: Option<prost_types::Duration>) -> Result<Duration, Problem> {
    let Some(raw) = raw else { return Ok(Duration::ZERO) };
    Duration::try_from(raw).map(|wait| wait.min(MAX_WAIT)).map_err(|error| {
        Problem::new(Reason::SpecInvalid, format!("wait of {} s and {} ns: {error}", raw.seconds, raw.nanos))
            .with("field", "wait")
    })
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

pub(crate) fn progress(snapshot: &Snapshot) -> v1::Progress {
    v1::Progress {
        bytes_done: snapshot.bytes_done,
        bytes_total: snapshot.bytes_total,
        files_done: snapshot.files_done,
        files_total: snapshot.files_total,
        bytes_transferred: snapshot.bytes_transferred,
        bytes_per_second: snapshot.bytes_per_second,
        elapsed: duration(snapshot.elapsed),
    }
}

pub(crate) fn push_done(done: &PushDone) -> v1::PushDone {
    v1::PushDone {
        part: Some(part_ref_out(&done.part)),
        local_checkpoint: done.local_checkpoint.to_string(),
        step: done.step.get(),
        fingerprint: fingerprint_out(done.fingerprint),
        files: done.files,
        bytes: done.bytes,
        bytes_uploaded: done.bytes_uploaded,
        processed_records: done.processed_records,
        elapsed: duration(done.elapsed),
    }
}

pub(crate) fn pull_done(done: &PullDone) -> v1::PullDone {
    let reach = match done.reach {
        Reach::Staged => v1::PullReach::Staged,
        Reach::Installed => v1::PullReach::Installed,
    };
    v1::PullDone {
        reach: reach.into(),
        local_checkpoint: done.local_checkpoint.map(|id| id.to_string()).unwrap_or_default(),
        step: done.step.map(Step::get).unwrap_or_default(),
        files: done.files,
        bytes: done.bytes,
        bytes_downloaded: done.bytes_downloaded,
        bytes_reused: done.bytes_reused,
        elapsed: duration(done.elapsed),
    }
}

pub(crate) fn local_checkpoint(checkpoint: &LocalCheckpoint) -> v1::LocalCheckpoint {
    v1::LocalCheckpoint {
        uuid: checkpoint.id.to_string(),
        step: checkpoint.step.get(),
        fingerprint: fingerprint_out(checkpoint.fingerprint),
        bytes: checkpoint.bytes,
        files: checkpoint.files,
        processed_records: checkpoint.processed_records,
        created_at: checkpoint.created_at.map(|time| prost_types::Timestamp {
            seconds: time.timestamp(),
            // Below 2e9 even in a leap second.
            nanos: time.timestamp_subsec_nanos().cast_signed(),
        }),
    }
}

pub(crate) fn mark(mark: OrderMark) -> v1::OrderMark {
    v1::OrderMark { generation: mark.generation.get(), round_no: mark.round_no.get(), term: mark.term.get() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw_header() -> v1::OrderHeader {
        v1::OrderHeader {
            pipeline_id: "11111111-1111-4111-8111-111111111111".to_owned(),
            pipeline_name: "orders".to_owned(),
            host_info: Some(v1::HostInfo { host_idx: 1, n_hosts: 3 }),
            incarnation: "22222222-2222-4222-8222-222222222222".to_owned(),
            generation: 1,
            round_no: 2,
            term: 3,
            round: "33333333-3333-4333-8333-333333333333".to_owned(),
            attempt: 1,
            own_location: Some(v1::Location {
                bucket: "acme".to_owned(),
                prefix: "orders".to_owned(),
                ..Default::default()
            }),
        }
    }

    fn reason(change: impl FnOnce(&mut v1::OrderHeader)) -> Reason {
        let mut raw = raw_header();
        change(&mut raw);
        header(Some(raw), None).unwrap_err().reason
    }

    #[test]
    fn a_header_takes_the_process_endpoint_where_it_names_none() {
        let header = header(Some(raw_header()), Some("http://127.0.0.1:9000/")).unwrap();
        assert_eq!(header.own_location.endpoint(), Some("http://127.0.0.1:9000"));
    }

    #[test]
    fn a_malformed_header_is_refused_by_the_reason_of_its_field() {
        assert_eq!(
            reason(|raw| raw.host_info = Some(v1::HostInfo { host_idx: 3, n_hosts: 3 })),
            Reason::HostInfoInvalid
        );
        assert_eq!(reason(|raw| raw.host_info = Some(v1::HostInfo::default())), Reason::HostInfoInvalid);
        assert_eq!(reason(|raw| raw.round = "latest".to_owned()), Reason::SpecInvalid);
        assert_eq!(reason(|raw| raw.attempt = 0), Reason::SpecInvalid);
        assert_eq!(reason(|raw| raw.generation = u64::MAX), Reason::SpecInvalid);
        assert_eq!(reason(|raw| raw.own_location = None), Reason::SpecInvalid);
        assert_eq!(header(None, None).unwrap_err().reason, Reason::SpecInvalid);
    }

    #[test]
    fn a_part_key_must_be_the_manifest_of_the_host_it_names() {
        let key = "host1/1/33333333-3333-4333-8333-333333333333/22222222-2222-4222-8222-222222222222-1/part.json";
        let raw =
            |host_idx, key: &str| v1::PartRef { host_idx, key: key.to_owned(), length: 1, blake3: "0".repeat(64) };
        assert_eq!(part_ref(raw(1, key)).unwrap().key(), key);
        assert!(part_ref(raw(2, key)).is_err());
        assert!(part_ref(raw(1, "commits/../../etc/passwd")).is_err());
    }

    #[test]
    fn a_wait_is_cut_at_a_minute_and_never_negative() {
        assert_eq!(wait(Some(prost_types::Duration { seconds: 900, nanos: 0 })).unwrap(), MAX_WAIT);
        assert!(wait(Some(prost_types::Duration { seconds: -1, nanos: 0 })).is_err());
        assert_eq!(wait(None).unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_problem_travels_with_code_reason_metadata_and_retry_class() {
        let sent = Problem::new(Reason::StaleRound, "the order has round_no 1, this agent has accepted round_no 2")
            .with("ordered", 1)
            .with("own", 2);
        let received = RpcProblem::from_status(&status(&sent));
        assert_eq!((received.code, received.reason.as_str()), (tonic::Code::FailedPrecondition, "STALE_ROUND"));
        assert_eq!((received.metadata["own"].as_str(), received.retryable), ("2", lockstep_rpc::Retryable::No));
    }
}
