//! Pushes from planning to their decision: the commit, the abort, a fence, what nobody knows.

use lockstep_protocol::{
    commit::DecisionObject,
    digest::Digest,
    fence::{FenceBase, Successor},
    id::{Attempt, Generation, RoundId},
    problem::{Problem, Reason},
    round::{
        DecisionKnown, Effect, Event, Kind, ParticipantPhase, Phase, PushState, Round, decide, effects, next_wake,
    },
};

use super::{HOSTS, cancel, committing, done, failed, planned, report, run, settled, step};
use crate::sample;

fn push_state(round: &Round) -> &PushState {
    match &round.kind {
        Kind::Push(push) => push,
        Kind::Pull(_) => panic!("a pull"),
    }
}

#[test]
fn a_push_goes_from_planning_to_committed() {
    let round = committing();
    assert_eq!(round.phase, Phase::Committing);
    assert_eq!(effects(&round, sample::time(0)), [Effect::SettleCommit]);
    let bytes = push_state(&round).commit_bytes.clone().expect("stored before the PUT");
    let DecisionObject::Commit(document) =
        DecisionObject::parse("commits/00000000000000000001-00000000000000000001.json", bytes.as_bytes()).unwrap()
    else {
        panic!("not a commit")
    };
    assert_eq!((document.step, document.parts.len(), document.created_at), (step(12), 3, sample::time(0)));
    let round = run(round, [settled(DecisionKnown::CommitStands, Some(Successor::Absent))]);
    assert_eq!(round.phase, Phase::Committed);
    assert_eq!(push_state(&round).committed.unwrap().digest, Digest::of(bytes.as_bytes()));
    assert!(effects(&round, sample::time(0)).is_empty());
}

#[test]
fn no_acknowledgement_before_the_next_fence_was_read() {
    for successor in [None, Some(Successor::FenceOnly)] {
        let round = run(committing(), [settled(DecisionKnown::CommitStands, successor)]);
        assert_eq!(round.phase, Phase::Committing);
        assert!(next_wake(&round).is_some(), "it is tried again");
    }
}

#[test]
fn a_base_that_excludes_the_round_fences_it_whatever_the_key_holds() {
    let base = FenceBase { generation: Generation::new(2).unwrap(), newest: None, tombstones: Vec::new() };
    for decision in [
        DecisionKnown::CommitStands,
        DecisionKnown::AbortStands,
        DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "lost")),
    ] {
        let outcome = decide(&committing(), &settled(decision, Some(Successor::Base(base.clone()))), sample::time(0));
        assert_eq!(outcome.next.phase, Phase::Failed);
        assert_eq!(outcome.next.problem.unwrap().reason, Reason::Fenced);
        assert!(outcome.fence_pipeline);
    }
}

/// F4: planning reads fence g+1 before any order; what it finds there ends the pipeline's generation, other refusals only the round.
#[test]
fn a_plan_that_finds_the_pipeline_fenced_fences_its_row_and_no_other_refusal_does() {
    for (reason, fences) in
        [(Reason::Fenced, true), (Reason::NoCommonCheckpoint, false), (Reason::DatabaseBehind, false)]
    {
        let outcome = decide(&sample::push(HOSTS), &Event::Refused(Problem::new(reason, "test")), sample::time(0));
        assert_eq!((outcome.next.phase, outcome.fence_pipeline), (Phase::Failed, fences), "{reason}");
    }
}

#[test]
fn an_unknown_outcome_is_retried_with_the_same_bytes_and_never_taken_as_failed() {
    let mut round = committing();
    let bytes = push_state(&round).commit_bytes.clone();
    for _ in 0..20 {
        round = run(
            round,
            [settled(DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "lost")), Some(Successor::Absent))],
        );
        assert_eq!(round.phase, Phase::Committing);
        assert_eq!(push_state(&round).commit_bytes, bytes);
        let wake = next_wake(&round).expect("a retry is due");
        assert_eq!(effects(&round, wake), [Effect::SettleCommit]);
    }
}

#[test]
fn a_foreign_round_at_the_key_is_never_mine() {
    let other = RoundId::new(sample::uuid(77));
    let round = run(committing(), [settled(DecisionKnown::OtherRound(other), Some(Successor::Absent))]);
    assert_eq!((round.phase, round.problem.unwrap().reason), (Phase::Failed, Reason::DatabaseBehind));
}

/// R1, R5: in Committing nothing but the decision object says how it ends.
#[test]
fn a_cancel_while_committing_tries_the_abort_and_obeys_what_stands() {
    let asked = run(committing(), [Event::CancelRequested(cancel()), Event::Tick]);
    assert_eq!(asked.phase, Phase::Committing);
    assert_eq!(effects(&asked, sample::time(0)), [Effect::SettleAbort]);
    let won = run(asked.clone(), [settled(DecisionKnown::AbortStands, Some(Successor::Absent))]);
    assert_eq!(won.phase, Phase::Cancelled);
    let lost = run(asked, [settled(DecisionKnown::CommitStands, Some(Successor::Absent))]);
    assert_eq!(lost.phase, Phase::Committed);
}

#[test]
fn a_late_part_of_a_superseded_attempt_is_ignored() {
    let round = run(sample::push(HOSTS), [planned()]);
    let late = done(&round, 0, report(0, 1));
    let again = run(round.clone(), [failed(&round, 0, Reason::AgentRestarted)]);
    assert_eq!(again.participants[0].phase, ParticipantPhase::BackingOff);
    let ready = Event::HostReady { host_idx: 0, attempt: Attempt::FIRST, incarnation: sample::incarnation(100) };
    let again = run(again, [ready]);
    assert_eq!((again.participants[0].attempt.get(), again.participants[0].phase), (2, ParticipantPhase::Ordered));
    assert_eq!(run(again.clone(), [late]), again, "attempt 1 speaks no more");
    let wrong_process = Event::HostDone {
        host_idx: 0,
        attempt: Attempt::new(2).unwrap(),
        incarnation: sample::incarnation(0),
        report: report(0, 2),
    };
    assert_eq!(run(again.clone(), [wrong_process]), again, "the old process speaks no more");
}

#[test]
fn what_a_retry_cannot_help_fails_the_round_at_once_and_the_rest_after_five_attempts() {
    let round = run(sample::push(HOSTS), [planned()]);
    let denied = run(round.clone(), [failed(&round, 1, Reason::StoreDenied)]);
    assert_eq!(denied.phase, Phase::Failed);
    let problem = denied.problem.unwrap();
    assert_eq!((problem.reason, problem.metadata["host_idx"].as_str()), (Reason::StoreDenied, "1"));
    let mut round = round;
    for attempt in 1..=5 {
        assert_eq!(round.phase, Phase::Transferring, "attempt {attempt}");
        round = run(round.clone(), [failed(&round, 1, Reason::StoreUnavailable)]);
        let p = &round.participants[1];
        round = run(
            round.clone(),
            [Event::HostReady { host_idx: 1, attempt: p.attempt, incarnation: sample::incarnation(1) }],
        );
    }
    assert_eq!((round.phase, round.problem.unwrap().reason), (Phase::Failed, Reason::StoreUnavailable));
}
