//! Rounds that a database knows again from commit documents, in the transaction of the take-over that ends a resync. What a document doesn't say (who asked, which
//! attempts there were) stays unknown; a round whose number or place this database has given to another one since is left out: its checkpoint stands in the bucket all the same.

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    digest::Digest,
    id::{RoundNo, Term},
    round::{Kind, Participant, ParticipantPhase, Phase, PushState, Round, WantedCut},
    takeover::TakeOver,
};

use super::{
    Caller, PipelineRow,
    audit::event,
    rows::{StoredTransfer, rest_of},
    session::Session,
    sqlstate::Fail,
    text::{bigint, json, text},
};

/// A commit that counts, and its document.
#[derive(Clone, PartialEq, Debug)]
pub struct Learnt {
    /// Place and bytes.
    pub commit: CommitRef,
    /// What its key holds.
    pub document: CommitDocument,
}

/// As its row will say; none: another pipeline made it, before this one took the location over.
pub(super) fn round_of(pipeline: &PipelineRow, take_over: &TakeOver, learnt: &Learnt) -> Option<Round> {
    let Learnt { commit, document } = learnt;
    if document.pipeline != pipeline.id {
        return None;
    }
    let bytes = document.encode();
    let exact = Digest::of(&bytes) == commit.digest;
    let spec = &pipeline.spec;
    let participants = document.parts.iter().map(|part| {
        let mut participant = Participant::waiting(part.host_idx, spec.agents.of(part.host_idx));
        participant.phase = ParticipantPhase::Done;
        participant.local_checkpoint = Some(part.local_checkpoint);
        participant.part = Some(part.clone());
        participant
    });
    Some(Round {
        id: document.round,
        pipeline: pipeline.id,
        pipeline_name: document.pipeline_name.clone(),
        round_no: document.round_no,
        generation: commit.generation,
        layout: document.layout,
        location: take_over.location.clone(),
        version: 1,
        term: Term::NONE,
        phase: Phase::Committed,
        deadline: document.created_at,
        problem: None,
        cancel: None,
        participants: participants.collect(),
        retry: take_over.retry,
        kind: Kind::Push(PushState {
            parent: document.parent,
            step: Some(document.step),
            fingerprint: document.fingerprint,
            commit_bytes: exact.then(|| String::from_utf8(bytes).unwrap_or_default()),
            committed: Some(*commit),
            ..PushState::asked(commit.seq, WantedCut::Step(document.step), false, document.base)
        }),
    })
}

/// The number that no round of these documents has.
pub(super) fn next_round_no(pipeline: &PipelineRow, learnt: &[Learnt]) -> RoundNo {
    let own = learnt.iter().filter(|one| one.document.pipeline == pipeline.id);
    own.map(|one| one.document.round_no.next()).fold(pipeline.next_round_no, RoundNo::max)
}

pub(super) fn learnt_because(commit: &CommitRef) -> String {
    format!("commit {}-{} stands in the bucket; this database did not know it", commit.generation, commit.seq)
}

const INSERT: &str = "
WITH made AS (
    INSERT INTO rounds (id, pipeline_id, pipeline_name, kind, round_no, generation, n_hosts, phase, deadline, seq, step, fingerprint,
                        base_generation, base_seq, base_round_id, base_digest, commit_bytes, commit_digest, location, transfer, retry, state,
                        actor, trace_id, created_at, updated_at, ended_at)
    VALUES ($1, $2, $3, 'push', $4, $5, $6, 'committed', $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $7,
            clock_timestamp(), $7)
    ON CONFLICT DO NOTHING RETURNING id
), hosts AS (
    INSERT INTO participants (round_id, host_idx, address, phase, attempt, local_checkpoint, files, bytes, bytes_uploaded, part)
    SELECT made.id, n.host_idx, n.address, 'done', 1, n.local_checkpoint, n.files, n.bytes, n.bytes_uploaded, n.part
    FROM made, UNNEST($23::int[], $24::text[], $25::uuid[], $26::bigint[], $27::bigint[], $28::bigint[], $29::jsonb[])
         AS n (host_idx, address, local_checkpoint, files, bytes, bytes_uploaded, part)
)
INSERT INTO audit_events (pipeline_id, round_id, event, to_phase, cause, actor, trace_id, term, version)
SELECT $2, made.id, $30, 'committed', $31, $21, $32, 0, 1 FROM made";

pub(super) async fn insert(
    connection: &mut Session,
    pipeline: &PipelineRow,
    round: &Round,
    trace_id: Option<&String>,
    caller: &Caller,
) -> Result<(), Fail> {
    let Kind::Push(push) = &round.kind else { return Ok(()) };
    let Some(commit) = push.committed else { return Ok(()) };
    let hosts: Vec<_> =
        round.participants.iter().filter_map(|host| host.part.as_ref().map(|part| (host, part))).collect();
    let parts = hosts.iter().map(|(_, part)| json(part)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(INSERT)
        .bind(round.id.uuid())
        .bind(round.pipeline.uuid())
        .bind(round.pipeline_name.as_str())
        .bind(round.round_no.as_i64())
        .bind(round.generation.as_i64())
        .bind(i32::try_from(round.layout.n_hosts()).unwrap_or(i32::MAX))
        .bind(round.deadline)
        .bind(push.seq.as_i64())
        .bind(push.step.map(|step| step.as_i64()))
        .bind(push.fingerprint.map(|fingerprint| fingerprint.to_string()))
        .bind(push.base.map(|base| base.generation.as_i64()))
        .bind(push.base.map(|base| base.seq.as_i64()))
        .bind(push.base.map(|base| base.round.uuid()))
        .bind(push.base.map(|base| base.digest.to_string()))
        .bind(push.commit_bytes.as_ref().map(|bytes| bytes.as_bytes()))
        .bind(commit.digest.to_string())
        .bind(json(&round.location)?)
        .bind(json(&StoredTransfer::from(pipeline.spec.transfer))?)
        .bind(json(&round.retry)?)
        .bind(rest_of(&round.kind)?)
        .bind(text(&caller.actor))
        .bind(trace_id)
        .bind(hosts.iter().map(|(host, _)| i32::try_from(host.host_idx).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(hosts.iter().map(|(host, _)| host.address.as_str()).collect::<Vec<_>>())
        .bind(hosts.iter().map(|(_, part)| part.local_checkpoint.uuid()).collect::<Vec<_>>())
        .bind(hosts.iter().map(|(_, part)| bigint(part.files)).collect::<Vec<_>>())
        .bind(hosts.iter().map(|(_, part)| bigint(part.bytes)).collect::<Vec<_>>())
        .bind(hosts.iter().map(|(_, part)| bigint(part.bytes_uploaded)).collect::<Vec<_>>())
        .bind(parts)
        .bind(event::ROUND_LEARNT)
        .bind(learnt_because(&commit))
        .bind(&caller.trace_id)
        .execute(connection)
        .await?;
    Ok(())
}
