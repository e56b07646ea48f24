//! Rounds, their participants and the audit trail.

use lockstep_client::{is_terminal, v1};
use serde_json::{Value, json};

use super::{commit, enumeration, location, maybe, optional, problem, progress, time};

pub(crate) fn phase_name(phase: v1::RoundPhase) -> String {
    enumeration(phase.as_str_name(), "ROUND_PHASE_")
}

pub(crate) fn kind_name(kind: v1::RoundKind) -> String {
    enumeration(kind.as_str_name(), "ROUND_KIND_")
}

pub(crate) fn participant_phase_name(phase: v1::ParticipantPhase) -> String {
    enumeration(phase.as_str_name(), "PARTICIPANT_PHASE_")
}

/// None while the source of a pull is not known; a push has none at all.
pub(crate) fn source_name(source: v1::PullSource) -> Option<String> {
    (source != v1::PullSource::Unspecified).then(|| enumeration(source.as_str_name(), "PULL_SOURCE_"))
}

pub(crate) fn round(round: &v1::Round) -> Value {
    json!({
        "id": optional(&round.id),
        "pipeline": {"id": round.pipeline_id, "name": round.pipeline_name},
        "kind": kind_name(round.kind()),
        "trigger": match round.trigger() {
            v1::RoundTrigger::Unspecified => None,
            v1::RoundTrigger::Manual => Some("manual"),
            v1::RoundTrigger::Periodic => Some("periodic"),
        },
        "round_no": round.round_no,
        "phase": phase_name(round.phase()),
        "terminal": is_terminal(round),
        "generation": round.generation,
        "seq": round.seq,
        "term": round.term,
        "step": round.step,
        "fingerprint": optional(&round.fingerprint),
        "participants": round.participants.iter().map(participant).collect::<Vec<_>>(),
        "problem": maybe(round.problem.as_ref(), problem),
        "request_id": optional(&round.request_id),
        "create_time": time(round.create_time.as_ref()),
        "update_time": time(round.update_time.as_ref()),
        "end_time": time(round.end_time.as_ref()),
        "deadline": time(round.deadline.as_ref()),
        "source": source_name(round.source()),
        "source_location": maybe(round.source_location.as_ref(), location),
        "commit": maybe(round.commit.as_ref(), commit),
        "base": maybe(round.base.as_ref(), commit),
        "trace_id": optional(&round.trace_id),
        "processed_records": round.processed_records,
        "progress": maybe(round.progress.as_ref(), progress),
        "version": round.version,
        "cancel_requested": round.cancel_requested,
    })
}

fn participant(participant: &v1::Participant) -> Value {
    json!({
        "host_idx": participant.host_idx,
        "address": participant.address,
        "phase": participant_phase_name(participant.phase()),
        "attempt": participant.attempt,
        "incarnation": optional(&participant.incarnation),
        "local_checkpoint": optional(&participant.local_checkpoint),
        "progress": maybe(participant.progress.as_ref(), progress),
        "problem": maybe(participant.problem.as_ref(), problem),
        "retry_time": time(participant.retry_time.as_ref()),
    })
}

pub(crate) fn audit_event(event: &v1::AuditEvent) -> Value {
    // Detail is a JSON object by contract; what isn't is shown as the text it is.
    let detail = match event.detail.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    };
    json!({
        "id": event.id,
        "time": time(event.time.as_ref()),
        "pipeline": {"id": event.pipeline_id, "name": event.pipeline_name},
        "round": optional(&event.round),
        "host_idx": event.host_idx,
        "actor": event.actor,
        "action": event.action,
        "from_phase": optional(&event.from_phase),
        "to_phase": optional(&event.to_phase),
        "cause": optional(&event.cause),
        "trace_id": optional(&event.trace_id),
        "detail": detail,
    })
}
