//! Rounds, one event after the other: what both kinds have in common, and the events that their tests are made of.

mod chance;
mod pulls;
mod pushes;

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::Successor,
    id::{Attempt, Generation, Incarnation, RoundId, Seq, Step},
    problem::{Problem, Reason},
    round::{
        CancelRequest, DecisionKnown, Effect, Event, FoundHost, HostReport, Phase, Resolved, RetryPolicy, Round,
        Source, check_cancellable, decide, effects,
    },
};

use crate::sample;

const HOSTS: u32 = 3;

pub(crate) fn step(n: u64) -> Step {
    Step::new(n).unwrap()
}

pub(crate) fn found(generation_of_process: u128) -> Vec<FoundHost> {
    (0..HOSTS)
        .map(|idx| FoundHost {
            incarnation: sample::incarnation(u128::from(idx) + 100 * generation_of_process),
            local_checkpoint: Some(sample::local(idx.into())),
        })
        .collect()
}

fn planned() -> Event {
    Event::Planned { hosts: found(0), step: step(12), fingerprint: None, parent: None }
}

pub(crate) fn resolved(source: Source) -> Resolved {
    resolved_to(source, 1)
}

pub(crate) fn commit_of(seq: u64) -> CommitRef {
    let round = RoundId::new(sample::uuid(0x4000 + u128::from(seq)));
    CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(seq).unwrap(),
        round,
        digest: Digest::of(&seq.to_le_bytes()),
    }
}

/// To the commit with this seq, if that source has any.
pub(crate) fn resolved_to(source: Source, seq: u64) -> Resolved {
    let fresh = source == Source::Fresh;
    Resolved {
        source,
        location: None,
        commit: (!fresh && source != Source::Local).then(|| commit_of(seq)),
        step: (!fresh).then(|| step(12)),
        fingerprint: None,
        processed_records: None,
        parts: Vec::new(),
    }
}

fn report(idx: u32, attempt: u32) -> HostReport {
    HostReport::Part { part: sample::commit_part(idx, HOSTS, attempt), step: step(12), fingerprint: None }
}

fn done(round: &Round, idx: u32, report: HostReport) -> Event {
    let p = &round.participants[idx as usize];
    Event::HostDone { host_idx: idx, attempt: p.attempt, incarnation: p.incarnation.expect("ordered"), report }
}

fn failed(round: &Round, idx: u32, reason: Reason) -> Event {
    let p = &round.participants[idx as usize];
    Event::HostFailed { host_idx: idx, attempt: p.attempt, problem: Problem::new(reason, "test"), jitter: 500 }
}

fn cancel() -> CancelRequest {
    CancelRequest { by: "ops".to_owned(), cause: "test".to_owned() }
}

fn settled(decision: DecisionKnown, successor: Option<Successor>) -> Event {
    Event::Settled { decision, successor, jitter: 500 }
}

fn run(round: Round, events: impl IntoIterator<Item = Event>) -> Round {
    events.into_iter().fold(round, |round, event| decide(&round, &event, sample::time(0)).next)
}

fn committing() -> Round {
    let mut round = run(sample::push(HOSTS), [planned()]);
    for idx in 0..HOSTS {
        let event = done(&round, idx, report(idx, 1));
        round = run(round, [event]);
    }
    assert_eq!(effects(&round, sample::time(0)), [Effect::CheckParts]);
    run(round, [Event::PartsChecked { writer: "test".to_owned(), trace_id: None }])
}

fn present(round: &Round) -> Vec<Option<Incarnation>> {
    round.participants.iter().map(|p| p.incarnation).collect()
}

pub(crate) fn source_retired(host_idx: u32, attempt: Attempt, seq: u64) -> Event {
    let problem = Problem::new(Reason::CheckpointNotFound, "retired by its owner");
    Event::SourceRetired { host_idx, attempt, commit: commit_of(seq), problem }
}

#[test]
fn cancel_and_deadline_end_the_first_two_phases() {
    for round in [sample::push(HOSTS), run(sample::push(HOSTS), [planned()]), sample::pull(HOSTS)] {
        assert_eq!(run(round.clone(), [Event::CancelRequested(cancel())]).phase, Phase::Cancelled);
        let late = decide(&round, &Event::Tick, sample::time(3600)).next;
        assert_eq!((late.phase, late.problem.unwrap().reason), (Phase::Failed, Reason::RoundDeadline));
        check_cancellable(&round).unwrap();
    }
    let late = decide(&committing(), &Event::Tick, sample::time(9999)).next;
    assert_eq!(late.phase, Phase::Committing, "the deadline doesn't act on a commit");
}

#[test]
fn back_off_grows_is_jittered_and_bounded() {
    let policy = RetryPolicy::default();
    let ms = |failures, jitter| policy.delay(failures, jitter).as_millis();
    assert_eq!((ms(1, 1000), ms(1, 0)), (500, 250));
    assert_eq!((ms(2, 1000), ms(3, 1000)), (1000, 2000));
    assert_eq!(ms(60, 1000), 30_000);
}
