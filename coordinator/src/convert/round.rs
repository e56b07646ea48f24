//! Rounds, participants and their progress to proto.

use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    round::{Kind, Participant, ParticipantPhase, Phase, PullState, PushState, Round, Source},
};

use super::{pipeline, status, time};
use crate::store::{HostProgress, RoundRecord, Trigger};

/// As messages carry it.
pub fn commit_ref(commit: &CommitRef) -> v1::CommitRef {
    v1::CommitRef {
        generation: commit.generation.get(),
        seq: commit.seq.get(),
        round: commit.round.to_string(),
        digest: commit.digest.to_string(),
    }
}

/// As messages carry it.
pub const fn phase(phase: Phase) -> v1::RoundPhase {
    match phase {
        Phase::Planning => v1::RoundPhase::Planning,
        Phase::Resolving => v1::RoundPhase::Resolving,
        Phase::Transferring => v1::RoundPhase::Transferring,
        Phase::Committing => v1::RoundPhase::Committing,
        Phase::Installing => v1::RoundPhase::Installing,
        Phase::Committed => v1::RoundPhase::Committed,
        Phase::Installed => v1::RoundPhase::Installed,
        Phase::Fresh => v1::RoundPhase::Fresh,
        Phase::Failed => v1::RoundPhase::Failed,
        Phase::Cancelled => v1::RoundPhase::Cancelled,
    }
}

const fn participant_phase(phase: ParticipantPhase) -> v1::ParticipantPhase {
    match phase {
        ParticipantPhase::Waiting => v1::ParticipantPhase::Waiting,
        ParticipantPhase::Ordered => v1::ParticipantPhase::Ordered,
        ParticipantPhase::BackingOff => v1::ParticipantPhase::BackingOff,
        ParticipantPhase::Done => v1::ParticipantPhase::Done,
        ParticipantPhase::Staged => v1::ParticipantPhase::Staged,
        ParticipantPhase::Installed => v1::ParticipantPhase::Installed,
        ParticipantPhase::Failed => v1::ParticipantPhase::Failed,
    }
}

const fn source(source: Source) -> v1::PullSource {
    match source {
        Source::Local => v1::PullSource::Local,
        Source::Location => v1::PullSource::Location,
        Source::ReadLocation => v1::PullSource::ReadLocation,
        Source::Fresh => v1::PullSource::Fresh,
    }
}

/// A stored round with everything around it.
pub fn round(record: &RoundRecord) -> v1::Round {
    let mut message = bare_round(&record.round, &record.progress);
    message.request_id = record.request_id.map(|id| id.to_string()).unwrap_or_default();
    message.create_time = Some(time::timestamp(record.created_at));
    message.update_time = Some(time::timestamp(record.updated_at));
    message.end_time = record.ended_at.map(time::timestamp);
    message.trace_id = record.trace_id.clone().unwrap_or_default();
    message.cancel_requested |= record.cancel_requested.is_some();
    message.trigger = match record.trigger {
        Trigger::Manual => v1::RoundTrigger::Manual,
        Trigger::Periodic => v1::RoundTrigger::Periodic,
    }
    .into();
    message
}

/// A round without what only rows know.
pub fn bare_round(round: &Round, reported: &[HostProgress]) -> v1::Round {
    let participants: Vec<_> = round.participants.iter().map(|p| participant(round, p, reported)).collect();
    let mut message = v1::Round {
        id: round.id.to_string(),
        pipeline_id: round.pipeline.to_string(),
        pipeline_name: round.pipeline_name.to_string(),
        round_no: round.round_no.get(),
        phase: phase(round.phase).into(),
        generation: round.generation.get(),
        term: round.term.get(),
        problem: round.problem.as_ref().map(status::problem),
        deadline: Some(time::timestamp(round.deadline)),
        progress: total(&participants),
        participants,
        version: round.version,
        cancel_requested: round.cancel.is_some(),
        ..v1::Round::default()
    };
    match &round.kind {
        Kind::Push(push) => fill_push(&mut message, round, push),
        Kind::Pull(pull) => fill_pull(&mut message, pull),
    }
    message
}

fn fill_push(message: &mut v1::Round, round: &Round, push: &PushState) {
    message.kind = v1::RoundKind::Push.into();
    message.seq = push.seq.get();
    message.step = push.step.map(lockstep_protocol::id::Step::get);
    message.fingerprint = push.fingerprint.map(|f| f.to_string()).unwrap_or_default();
    message.commit = push.committed.as_ref().map(commit_ref);
    message.base = push.base.as_ref().map(commit_ref);
    message.processed_records = round
        .participants
        .iter()
        .map(|p| p.part.as_ref()?.processed_records)
        .try_fold(0_u64, |sum, records| sum.checked_add(records?));
}

fn fill_pull(message: &mut v1::Round, pull: &PullState) {
    message.kind = v1::RoundKind::Pull.into();
    let Some(resolved) = &pull.resolved else { return };
    message.source = source(resolved.source).into();
    message.step = resolved.step.map(lockstep_protocol::id::Step::get);
    message.fingerprint = resolved.fingerprint.map(|f| f.to_string()).unwrap_or_default();
    message.commit = resolved.commit.as_ref().map(commit_ref);
    message.source_location = resolved.location.as_ref().map(pipeline::location);
    message.processed_records = resolved.processed_records;
}

fn participant(round: &Round, participant: &Participant, reported: &[HostProgress]) -> v1::Participant {
    let text = |value: Option<String>| value.unwrap_or_default();
    v1::Participant {
        host_idx: participant.host_idx,
        address: participant.address.clone(),
        phase: participant_phase(participant.phase).into(),
        attempt: participant.attempt.get(),
        incarnation: text(participant.incarnation.map(|id| id.to_string())),
        local_checkpoint: text(participant.local_checkpoint.map(|id| id.to_string())),
        progress: progress(round, participant, reported),
        problem: participant.problem.as_ref().map(status::problem),
        retry_time: participant.retry_at.map(time::timestamp),
    }
}

/// What the host is known to have done in its present attempt: the part it reported, the share it has staged, or its last word on the way.
fn progress(round: &Round, participant: &Participant, reported: &[HostProgress]) -> Option<v1::Progress> {
    let said = reported.iter().find(|p| p.host_idx == participant.host_idx && p.attempt == participant.attempt);
    let whole = |bytes: u64, files: u64, transferred: u64| v1::Progress {
        bytes_done: bytes,
        bytes_total: bytes,
        files_done: files,
        files_total: files,
        bytes_transferred: transferred,
        bytes_per_second: 0,
        elapsed: None,
    };
    let share = match &round.kind {
        Kind::Push(_) => None,
        Kind::Pull(pull) => pull
            .resolved
            .as_ref()
            .filter(|resolved| matches!(resolved.source, Source::Location | Source::ReadLocation))
            .and_then(|resolved| resolved.parts.iter().find(|part| part.host_idx == participant.host_idx)),
    };
    if let Some(part) = &participant.part {
        return Some(whole(part.bytes, part.files, part.bytes_uploaded));
    }
    let finished = matches!(participant.phase, ParticipantPhase::Staged | ParticipantPhase::Installed);
    if let Some(part) = share.filter(|_| finished) {
        return Some(whole(part.bytes, part.files, said.map_or(0, |p| p.bytes_transferred)));
    }
    said.map(|p| v1::Progress {
        bytes_done: p.bytes_done,
        bytes_total: p.bytes_total.or_else(|| share.map(|part| part.bytes)).unwrap_or(0),
        files_done: p.files_done,
        files_total: p.files_total.or_else(|| share.map(|part| part.files)).unwrap_or(0),
        bytes_transferred: p.bytes_transferred,
        bytes_per_second: p.bytes_per_second,
        elapsed: None,
    })
}

/// Sum over the hosts that have any; none while none has.
fn total(participants: &[v1::Participant]) -> Option<v1::Progress> {
    participants.iter().filter_map(|p| p.progress).reduce(|a, b| v1::Progress {
        bytes_done: a.bytes_done.saturating_add(b.bytes_done),
        bytes_total: a.bytes_total.saturating_add(b.bytes_total),
        files_done: a.files_done.saturating_add(b.files_done),
        files_total: a.files_total.saturating_add(b.files_total),
        bytes_transferred: a.bytes_transferred.saturating_add(b.bytes_transferred),
        bytes_per_second: a.bytes_per_second.saturating_add(b.bytes_per_second),
        elapsed: None,
    })
}
