//! Orders to agents and their answers. An agent's answer is checked like any other input: what can't be understood is a problem that names the
//! agent, never a default.

use std::time::Duration;

use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitPart,
    host::{HostInfo, Slot},
    id::{Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, RoundNo, Step, Term},
    key::Key,
    order::{OrderHeader, OrderMark},
    problem::{Problem, Reason, Retryable},
    ready::Word,
    selection::LocalCheckpoint,
};
use lockstep_rpc::RpcProblem;
use tonic::{Code, Status};

use super::{pipeline, ready, round, time};
use crate::agents::{
    AgentAnswer, Counters, Described, Host, InstallWhat, Listing, PullDone, PullOrder, PushDone, PushOrder, Reach,
    TransferState, TransferStatus,
};

pub(crate) fn header(header: &OrderHeader) -> v1::OrderHeader {
    v1::OrderHeader {
        pipeline_id: header.pipeline.to_string(),
        pipeline_name: header.pipeline_name.to_string(),
        host_info: header
            .slot
            .host_info()
            .map(|info| v1::HostInfo { host_idx: info.host_idx(), n_hosts: info.n_hosts() }),
        incarnation: header.incarnation.to_string(),
        generation: header.generation.get(),
        round_no: header.round_no.get(),
        term: header.term.get(),
        round: header.round.to_string(),
        attempt: header.attempt.get(),
        own_location: Some(pipeline::location(&header.own_location)),
    }
}

fn fingerprint(fingerprint: Option<Fingerprint>) -> String {
    fingerprint.map(|fingerprint| fingerprint.to_string()).unwrap_or_default()
}

fn part_ref(part: &CommitPart) -> v1::PartRef {
    v1::PartRef {
        host_idx: part.host_idx,
        key: part.manifest.clone(),
        length: part.manifest_length,
        blake3: part.manifest_blake3.to_string(),
    }
}

pub(crate) fn push_order(order: &PushOrder) -> v1::PushOrder {
    v1::PushOrder {
        header: Some(header(&order.header)),
        local_checkpoint: order.local_checkpoint.to_string(),
        step: order.step.get(),
        fingerprint: fingerprint(order.fingerprint),
        base: order.base.as_ref().map(|(base, _)| round::commit_ref(base)),
        base_parts: order.base.iter().flat_map(|(_, parts)| parts).map(part_ref).collect(),
        deadline: Some(time::timestamp(order.deadline.at)),
        time_left: Some(time::duration(order.deadline.left())),
        transfer: Some(pipeline::transfer(&order.transfer)),
    }
}

pub(crate) fn pull_order(order: &PullOrder) -> v1::PullOrder {
    v1::PullOrder {
        header: Some(header(&order.header)),
        source: Some(pipeline::location(&order.source)),
        commit: Some(round::commit_ref(&order.commit)),
        part: Some(part_ref(&order.part)),
        local_checkpoint: order.part.local_checkpoint.to_string(),
        step: order.step.get(),
        fingerprint: fingerprint(order.fingerprint),
        deadline: order.deadline.map(|deadline| time::timestamp(deadline.at)),
        time_left: order.deadline.map(|deadline| time::duration(deadline.left())),
        transfer: Some(pipeline::transfer(&order.transfer)),
    }
}

pub(crate) fn install_order(order: &OrderHeader, what: InstallWhat) -> v1::InstallOrder {
    let (local_checkpoint, step, fresh) = match what {
        InstallWhat::Fresh => (String::new(), 0, true),
        InstallWhat::Checkpoint(id, step) => (id.to_string(), step.get(), false),
    };
    v1::InstallOrder { header: Some(header(order)), local_checkpoint, step, fresh }
}

pub(crate) fn ready_order(order: &OrderHeader, word: &Word) -> v1::ReadyOrder {
    v1::ReadyOrder {
        header: Some(header(order)),
        local_checkpoint: word.checkpoint.map(|(id, _)| id.to_string()).unwrap_or_default(),
        step: word.checkpoint.map(|(_, step)| step.get()).unwrap_or_default(),
        fresh: word.checkpoint.is_none(),
        role: ready::role(word.role).into(),
    }
}

pub(crate) fn status_request(order: &OrderHeader, wait: Duration) -> v1::StatusRequest {
    v1::StatusRequest { header: Some(header(order)), wait: Some(time::duration(wait)) }
}

/// An answer that breaks the protocol: another version or another program, so asking again won't help.
fn broken(why: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::Integrity, format!("the agent's answer can't be used: {why}"))
        .with("why", why)
        .retry(Retryable::AfterFix)
}

/// The same for a value that one of the domain's constructors refused.
fn read<T>(value: Result<T, Problem>) -> Result<T, Problem> {
    value.map_err(|problem| broken(problem.message))
}

fn fingerprint_of(text: &str) -> Result<Option<Fingerprint>, Problem> {
    if text.is_empty() { Ok(None) } else { read(text.parse()).map(Some) }
}

pub(crate) fn described_of(answer: v1::DescribeResponse) -> Result<Described, Problem> {
    let slot = match answer.host_info {
        None => Slot::Solo,
        Some(info) => Slot::Host(read(HostInfo::new(info.host_idx, info.n_hosts))?),
    };
    let highest = answer.highest.map(|mark| {
        Ok::<_, Problem>(OrderMark {
            generation: Generation::new(mark.generation)?,
            round_no: RoundNo::new(mark.round_no)?,
            term: Term::new(mark.term)?,
        })
    });
    Ok(Described {
        pipeline: answer.pipeline,
        slot,
        incarnation: read(answer.incarnation.parse())?,
        version: answer.version,
        highest: read(highest.transpose())?,
        // An agent that can't tell says 0, and so does a full disk: both are found out when bytes are written.
        free_bytes: (answer.free_bytes > 0).then_some(answer.free_bytes),
    })
}

pub(crate) fn listing_of(answer: v1::ListLocalCheckpointsResponse) -> Result<Listing, Problem> {
    let checkpoints = answer.checkpoints.into_iter().map(|raw| {
        Ok::<_, Problem>(LocalCheckpoint {
            id: read(raw.uuid.parse())?,
            step: read(Step::new(raw.step))?,
            fingerprint: fingerprint_of(&raw.fingerprint)?,
            processed_records: raw.processed_records,
            bytes: raw.bytes,
            files: raw.files,
            created_at: raw.created_at.map(|at| read(time::time_of("created_at", &at))).transpose()?,
        })
    });
    Ok(Listing { incarnation: read(answer.incarnation.parse())?, checkpoints: checkpoints.collect::<Result<_, _>>()? })
}

fn counters(progress: &v1::Progress, throttled: u64) -> Counters {
    Counters {
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        files_done: progress.files_done,
        files_total: progress.files_total,
        bytes_transferred: progress.bytes_transferred,
        throttled,
        bytes_per_second: progress.bytes_per_second,
    }
}

/// A failure that an agent reports as a state of a transfer.
fn problem_of(raw: v1::Problem) -> Problem {
    let Some(reason) = Reason::parse(&raw.reason) else {
        // A newer agent may have reasons that we don't know: what it says still counts.
        return Problem {
            message: format!("{}: {}", raw.reason, raw.message),
            metadata: raw.metadata.into_iter().collect(),
            ..Problem::new(Reason::AgentPanic, "")
        };
    };
    let class = match v1::Retryable::try_from(raw.retryable) {
        Ok(v1::Retryable::Yes) => Some(Retryable::Yes),
        Ok(v1::Retryable::AfterFix) => Some(Retryable::AfterFix),
        Ok(v1::Retryable::No) => Some(Retryable::No),
        Ok(v1::Retryable::Unspecified) | Err(_) => None,
    };
    Problem {
        reason,
        message: raw.message,
        metadata: raw.metadata.into_iter().collect(),
        retryable_override: class.filter(|class| *class != reason.retryable()),
    }
}

fn part_of(host: &Host, done: &v1::PushDone) -> Result<CommitPart, Problem> {
    let raw = done.part.as_ref().ok_or_else(|| broken("done without a part"))?;
    let slot = host.slot;
    let named = match Key::parse(&raw.key) {
        Some(Key::PartManifest(path)) => path.host_idx == slot.host_info().map(|info| info.host_idx()),
        _ => false,
    };
    if !named || raw.host_idx != slot.idx() {
        return Err(broken(format!("{:?} is no part manifest of {slot}", raw.key)));
    }
    Ok(CommitPart {
        host_idx: slot.idx(),
        local_checkpoint: read(done.local_checkpoint.parse::<LocalCheckpointId>())?,
        manifest: raw.key.clone(),
        manifest_length: raw.length,
        manifest_blake3: read(raw.blake3.parse())?,
        files: done.files,
        bytes: done.bytes,
        bytes_uploaded: done.bytes_uploaded,
        processed_records: done.processed_records,
    })
}

fn status_of<D>(
    incarnation: &str,
    round: &str,
    attempt: u32,
    state: TransferState<D>,
) -> Result<TransferStatus<D>, Problem> {
    Ok(TransferStatus {
        incarnation: read(incarnation.parse::<Incarnation>())?,
        round: read(round.parse())?,
        attempt: read(Attempt::new(attempt))?,
        state,
    })
}

pub(crate) fn push_status_of(host: &Host, answer: v1::PushStatusResponse) -> Result<TransferStatus<PushDone>, Problem> {
    use v1::push_status_response::State;
    let state = match answer.state {
        None => return Err(broken("a push status without a state")),
        Some(State::NotRequested(v1::NotRequested {})) => TransferState::NotRequested,
        Some(State::InProgress(progress)) => TransferState::InProgress(counters(&progress, answer.throttled)),
        Some(State::Failed(problem)) => TransferState::Failed(problem_of(problem)),
        Some(State::Done(done)) => TransferState::Done(PushDone {
            part: part_of(host, &done)?,
            step: read(Step::new(done.step))?,
            fingerprint: fingerprint_of(&done.fingerprint)?,
        }),
    };
    status_of(&answer.incarnation, &answer.round, answer.attempt, state)
}

pub(crate) fn pull_status_of(answer: v1::PullStatusResponse) -> Result<TransferStatus<PullDone>, Problem> {
    use v1::pull_status_response::State;
    let state = match answer.state {
        None => return Err(broken("a pull status without a state")),
        Some(State::NotRequested(v1::NotRequested {})) => TransferState::NotRequested,
        Some(State::InProgress(progress)) => TransferState::InProgress(counters(&progress, answer.throttled)),
        Some(State::Failed(problem)) => TransferState::Failed(problem_of(problem)),
        Some(State::Done(done)) => TransferState::Done(PullDone {
            reach: match done.reach() {
                v1::PullReach::Staged => Reach::Staged,
                v1::PullReach::Installed => Reach::Installed,
                v1::PullReach::Unspecified => return Err(broken("a finished pull that does not say how far it is")),
            },
            local_checkpoint: match done.local_checkpoint.as_str() {
                "" => None,
                id => Some(read(id.parse())?),
            },
            counters: Counters {
                bytes_done: done.bytes,
                bytes_total: done.bytes,
                files_done: done.files,
                files_total: done.files,
                bytes_transferred: done.bytes_downloaded,
                bytes_per_second: 0,
                throttled: 0,
            },
        }),
    };
    status_of(&answer.incarnation, &answer.round, answer.attempt, state)
}

/// `AGENT_UNREACHABLE` of one host.
pub(crate) fn unreachable(host: &Host, why: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::AgentUnreachable, format!("{} at {} does not answer: {why}", host.slot, host.address))
        .with("host_idx", host.slot.idx())
        .with("address", &host.address)
        .with("why", why)
}

fn of_host(host: &Host, problem: Problem) -> Problem {
    let mut problem = problem.with("host_idx", host.slot.idx()).with("address", &host.address);
    problem.message = format!("{} at {}: {}", host.slot, host.address, problem.message);
    problem
}

/// What became of a call. A status that carries one of our reasons is the agent's own word; anything else was lost on the way and may have happened.
pub(crate) fn answer_of<M, T>(
    host: &Host,
    outcome: Result<M, Status>,
    convert: impl FnOnce(M) -> Result<T, Problem>,
) -> AgentAnswer<T> {
    match outcome {
        Ok(message) => match convert(message) {
            Ok(value) => AgentAnswer::Answer(value),
            Err(problem) => AgentAnswer::Refused(of_host(host, problem)),
        },
        Err(status) => {
            let rpc = RpcProblem::from_status(&status);
            match Reason::parse(&rpc.reason) {
                // The name of a code, too: a cancelled call says nothing of what was cancelled.
                Some(Reason::Cancelled) | None if rpc.code != Code::Unimplemented => {
                    AgentAnswer::Unknown(unreachable(host, format!("{} ({})", rpc.message, rpc.reason)))
                }
                Some(reason) => {
                    let class = match rpc.retryable {
                        lockstep_rpc::Retryable::Yes => Retryable::Yes,
                        lockstep_rpc::Retryable::AfterFix => Retryable::AfterFix,
                        lockstep_rpc::Retryable::No => Retryable::No,
                    };
                    let problem = Problem {
                        reason,
                        message: rpc.message,
                        metadata: rpc.metadata,
                        retryable_override: (class != reason.retryable()).then_some(class),
                    };
                    AgentAnswer::Refused(of_host(host, problem))
                }
                None => AgentAnswer::Refused(
                    unreachable(
                        host,
                        format!("what listens there is no lockstep agent of this version: {}", rpc.message),
                    )
                    .retry(Retryable::AfterFix),
                ),
            }
        }
    }
}
