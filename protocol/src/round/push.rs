//! A push round (protocol.md, "Push"): plan, transfer, commit, acknowledge.

use chrono::{DateTime, Utc};

use super::{
    DecisionKnown, Event, HostReport, KeyRead, Kind, ParticipantPhase, Phase, PushState, Work,
    participant::{Persistence, later},
};
use crate::{
    commit::{AbortRecord, CommitDocument, CommitRef},
    digest::Digest,
    fence::{Counts, FenceBase, Successor, counts},
    finish::AtKey,
    id::{Generation, RoundId, Seq},
    planted::{self, Bug},
    problem::{Problem, Reason},
};

fn state(work: &mut Work) -> Option<&mut PushState> {
    match &mut work.round.kind {
        Kind::Push(state) => Some(state),
        Kind::Pull(_) => None,
    }
}

pub(super) fn apply(work: &mut Work, event: &Event, now: DateTime<Utc>) {
    match (work.round.phase, event) {
        (Phase::Planning, Event::Planned { hosts, step, fingerprint, parent }) => {
            if hosts.len() != work.round.participants.len() {
                return;
            }
            if let Some(push) = state(work) {
                push.step = Some(*step);
                push.fingerprint = *fingerprint;
                push.parent = *parent;
            }
            work.enter(Phase::Transferring, format!("step {step} is on every host"));
            for (host_idx, host) in (0..).zip(hosts) {
                if let Some(participant) = work.participant(host_idx) {
                    participant.incarnation = Some(host.incarnation);
                    participant.local_checkpoint = host.local_checkpoint;
                }
                work.move_host(
                    host_idx,
                    ParticipantPhase::Ordered,
                    format!("attempt 1 for incarnation {}", host.incarnation),
                );
            }
        }
        (Phase::Planning, Event::Refused(problem)) => {
            // F4: planning reads fence g+1 too. Whoever is fenced admits nothing in that generation any more.
            work.fence_pipeline = problem.reason == Reason::Fenced;
            work.fail(problem.clone());
        }
        (phase, Event::CancelRequested(request))
            if matches!(phase, Phase::Planning | Phase::Transferring)
                || phase == Phase::Committing && planted::is(Bug::AbortOnlyInDatabase) =>
        {
            // No decision PUT can be under way: its bytes are stored only on entering Committing.
            work.round.cancel = Some(request.clone());
            work.cancelled(request);
        }
        (phase, Event::Tick)
            if matches!(phase, Phase::Planning | Phase::Transferring) || planted::is(Bug::DeadlineInCommitting) =>
        {
            work.deadline_passed(now);
        }
        (
            Phase::Transferring,
            Event::HostDone { host_idx, attempt, incarnation, report: HostReport::Part { part, step, fingerprint } },
        ) => {
            let present = work.is_present(*host_idx, *attempt, *incarnation);
            let ordered = work.participant(*host_idx).is_some_and(|p| p.phase == ParticipantPhase::Ordered);
            if !(present && ordered) {
                return;
            }
            let Some(push) = state(work) else { return };
            if push.step != Some(*step) || push.fingerprint != *fingerprint {
                // S9: one cut. The agent was told which; another answer is a defect, not something to retry.
                let expected = push.step.map_or_else(String::new, |s| s.to_string());
                work.fail(
                    Problem::new(
                        Reason::Integrity,
                        format!("host {host_idx} reports a part of step {step}, the round pushes step {expected}"),
                    )
                    .with("host_idx", host_idx)
                    .with("expected", expected)
                    .with("found", step)
                    .retry(crate::problem::Retryable::No),
                );
                return;
            }
            if let Some(participant) = work.participant(*host_idx) {
                participant.part = Some(part.clone());
                participant.problem = None;
            }
            work.move_host(
                *host_idx,
                ParticipantPhase::Done,
                format!("attempt {attempt} sent {} bytes", part.bytes_uploaded),
            );
        }
        (Phase::Transferring, Event::HostFailed { host_idx, attempt, problem, jitter }) => {
            // A part that turns out wrong after it was reported (Done) fails like the attempt that wrote it.
            let present = work.participant(*host_idx).is_some_and(|p| {
                p.attempt == *attempt
                    && matches!(
                        p.phase,
                        ParticipantPhase::Ordered | ParticipantPhase::Done | ParticipantPhase::BackingOff
                    )
            });
            if present {
                work.host_failed(*host_idx, *attempt, problem, now, *jitter, Persistence::Bounded);
            }
        }
        (Phase::Transferring, Event::HostReady { host_idx, attempt, incarnation }) => {
            work.host_ready(*host_idx, *attempt, *incarnation);
        }
        (Phase::Transferring, Event::PartsChecked { writer, trace_id }) if work.all_in(ParticipantPhase::Done) => {
            prepare_commit(work, writer, trace_id.clone(), now);
        }
        (Phase::Committing, Event::CancelRequested(request)) => {
            if work.round.cancel.is_some() {
                return;
            }
            work.round.cancel = Some(request.clone());
            let id = work.round.id;
            let (pipeline, generation) = (work.round.pipeline, work.round.generation);
            let (by, cause) = (request.by.clone(), request.cause.clone());
            if let Some(push) = state(work) {
                let record = AbortRecord {
                    pipeline,
                    generation,
                    seq: push.seq,
                    round: id,
                    aborted_by: by,
                    cause,
                    aborted_at: now,
                };
                push.abort_bytes = String::from_utf8(record.encode()).ok();
                push.settle.retry_at = None;
            }
            work.transitions.push(super::Transition {
                host_idx: None,
                from: Phase::Committing.as_str(),
                to: Phase::Committing.as_str(),
                cause: format!(
                    "cancel requested by {}: {}; whoever wins the decision key decides",
                    request.by, request.cause
                ),
            });
        }
        (Phase::Committing, Event::Settled { decision, successor, jitter }) => {
            settle(work, decision, successor.as_ref(), now, *jitter)
        }
        (_, Event::Adopted { base, key }) => adopted(work, base, *key),
        _ => {}
    }
}

/// All parts are in and checked: store the exact bytes of the commit document, only then may they be PUT (push step 4).
fn prepare_commit(work: &mut Work, writer: &str, trace_id: Option<String>, now: DateTime<Utc>) {
    let round = &work.round;
    let Kind::Push(push) = &round.kind else { return };
    let (Some(step), Some(parts)) =
        (push.step, round.participants.iter().map(|p| p.part.clone()).collect::<Option<Vec<_>>>())
    else {
        return;
    };
    let document = CommitDocument {
        pipeline: round.pipeline,
        pipeline_name: round.pipeline_name.clone(),
        generation: round.generation,
        seq: push.seq,
        parent: push.parent,
        base: push.base,
        round: round.id,
        round_no: round.round_no,
        step,
        fingerprint: push.fingerprint,
        layout: round.layout,
        created_at: now,
        parts,
        trace_id,
        writer: writer.to_owned(),
        labels: std::collections::BTreeMap::new(),
        partitions: Vec::new(),
    };
    let bytes = document.encode();
    if let Some(push) = state(work) {
        push.commit_bytes = String::from_utf8(bytes).ok();
    }
    work.enter(Phase::Committing, "all parts are in and checked; commit document stored");
}

/// The round's pipeline adopts a newer generation: nothing more is committed in this one. A commit of this round that the base names or includes stands, whatever
/// the row knew of it: the database may be a restored one (R13).
fn adopted(work: &mut Work, base: &FenceBase, key: KeyRead) {
    let (id, generation, phase) = (work.round.id, work.round.generation, work.round.phase);
    let Some(push) = state(work) else { return };
    let seq = push.seq;
    if base.generation != generation.next() {
        return;
    }
    let Some(newest) = base.newest.filter(|_| base.includes(generation, seq)) else {
        let problem = fenced(id, generation, seq, base);
        work.fail(problem);
        return;
    };
    let found = if newest.seq == seq { KeyRead::Holds(AtKey::Commit(newest)) } else { key };
    match found {
        KeyRead::Holds(AtKey::Commit(commit)) if commit.round == id => {
            push.committed = Some(commit);
            work.round.problem = None;
            work.enter(
                Phase::Committed,
                format!("commit {generation}-{seq} stands, base {} counts it", base.generation),
            );
        }
        KeyRead::Holds(AtKey::Commit(commit)) => {
            let problem = other_round(id, generation, seq, &commit.round);
            work.fail(problem);
        }
        KeyRead::Holds(AtKey::Swept) => {
            let problem = other_round(id, generation, seq, &"that was retired since");
            work.fail(problem);
        }
        KeyRead::Holds(AtKey::Abort) => abort_stands(work),
        // Its bytes were never stored, so nobody puts them.
        KeyRead::Absent if phase != Phase::Committing => {
            let problem = fenced(id, generation, seq, base);
            work.fail(problem);
        }
        // It counts if it stands: to be read, or put until known.
        KeyRead::NotYet | KeyRead::Absent => {}
    }
}

fn abort_stands(work: &mut Work) {
    let request = work.round.cancel.clone().unwrap_or_else(|| super::CancelRequest {
        by: "unknown".to_owned(),
        cause: "an abort record of this round stands at the decision key".to_owned(),
    });
    work.cancelled(&request);
}

fn fenced(id: RoundId, generation: Generation, seq: Seq, base: &FenceBase) -> Problem {
    let newest = base.newest.map_or_else(|| "none".to_owned(), |c| format!("{}-{}", c.generation, c.seq));
    Problem::new(
        Reason::Fenced,
        format!(
            "generation {} took the location over from generation {generation}; the last commit it counts is {newest}, \
             round {id} is {generation}-{seq}",
            base.generation
        ),
    )
    .with("round", id)
    .with("generation", generation)
    .with("seq", seq)
    .with("newer_generation", base.generation)
    .with("newest_counted", newest)
}

fn other_round(id: RoundId, generation: Generation, seq: Seq, other: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        Reason::DatabaseBehind,
        format!(
            "the decision key {generation}-{seq} of round {id} holds round {other}: the database is behind the bucket; \
             resync the pipeline"
        ),
    )
    .with("round", id)
    .with("other_round", other)
    .with("generation", generation)
    .with("seq", seq)
}

/// What the decision key and the successor generation say (push steps 4 to 6, F4).
fn settle(work: &mut Work, decision: &DecisionKnown, successor: Option<&Successor>, now: DateTime<Utc>, jitter: u32) {
    let id = work.round.id;
    let generation = work.round.generation;
    let policy = work.round.retry;
    let Some(push) = state(work) else { return };
    let seq = push.seq;
    // F4: base g+1 without (g, seq) decides, even if the key is empty: what lands there can't count any more.
    if let Some(successor @ Successor::Base(base)) = successor
        && counts(generation, seq, successor) == Counts::No
    {
        work.fence_pipeline = true;
        let problem = fenced(work.round.id, generation, seq, base);
        work.fail(problem);
        return;
    }
    if successor == Some(&Successor::FenceOnly) && planted::is(Bug::FencedWithoutReadingTheBase) {
        work.fence_pipeline = true;
        work.fail(Problem::new(Reason::Fenced, "planted: a fence alone decides"));
        return;
    }
    let unknown = |push: &mut PushState, problem: &Problem| {
        push.settle.tries = push.settle.tries.saturating_add(1);
        push.settle.retry_at = Some(later(now, policy.delay(push.settle.tries, jitter)));
        problem.clone()
    };
    match decision {
        DecisionKnown::CommitStands => {
            let Some(bytes) = &push.commit_bytes else { return };
            let digest = Digest::of(bytes.as_bytes());
            let settled = successor.is_some_and(|successor| counts(generation, seq, successor) == Counts::Yes)
                || planted::is(Bug::AckWithoutFenceCheck);
            if !settled {
                // Acknowledge only after fence g+1 was read as absent or its base includes us (push step 6).
                let problem = Problem::new(
                    Reason::TakeOverInProgress,
                    format!(
                        "the commit of round {id} stands, but what follows generation {generation} is not known yet"
                    ),
                )
                .with("round", id)
                .with("generation", generation);
                let problem = unknown(push, &problem);
                work.round.problem = Some(problem);
                return;
            }
            push.committed = Some(CommitRef { generation, seq, round: id, digest });
            work.round.problem = None;
            work.enter(Phase::Committed, format!("commit {generation}-{seq} stands and counts"));
        }
        DecisionKnown::AbortStands => abort_stands(work),
        DecisionKnown::OtherRound(other) => work.fail(other_round(id, generation, seq, other)),
        DecisionKnown::Unknown(problem) if planted::is(Bug::UnknownTakenAsFailed) => work.fail(problem.clone()),
        DecisionKnown::Unknown(problem) => {
            let problem = unknown(push, problem);
            work.round.problem = Some(problem);
        }
    }
}
