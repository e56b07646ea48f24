//! Rounds under random events: late, duplicate, contradictory and missing ones. After each event the invariants hold; from wherever chance led,
//! a round whose faults stop reaches a terminal phase (L1).

use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    digest::Digest,
    fence::{FenceBase, Successor},
    id::{Attempt, Generation, Incarnation, RoundId, Seq, Step},
    problem::{Problem, Reason},
    round::{
        CancelRequest, Decision, DecisionKnown, Effect, Event, FoundHost, HostReport, Kind, Participant,
        ParticipantPhase, Phase, PullState, Resolved, Round, Source, check_cancellable, decide, effects, next_wake,
    },
};
use proptest::prelude::*;

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

fn push_state(round: &Round) -> &lockstep_protocol::round::PushState {
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

fn installing() -> Round {
    let mut round = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Location), hosts: found(0), discard: false }],
    );
    for idx in 0..HOSTS {
        assert_eq!(round.phase, Phase::Transferring);
        round = run(round.clone(), [done(&round, idx, HostReport::Staged)]);
    }
    assert_eq!(round.phase, Phase::Installing, "stored before any install is sent");
    round
}

fn all_installed() -> Round {
    (0..HOSTS).fold(installing(), |round, idx| run(round.clone(), [done(&round, idx, HostReport::Installed)]))
}

fn present(round: &Round) -> Vec<Option<Incarnation>> {
    round.participants.iter().map(|p| p.incarnation).collect()
}

#[test]
fn a_pull_goes_from_resolving_to_installed() {
    let round = all_installed();
    assert_eq!(round.phase, Phase::Installing);
    assert_eq!(effects(&round, sample::time(0)), [Effect::Confirm]);
    let confirmed = Event::Confirmed { incarnations: present(&round), jitter: 0 };
    assert_eq!(run(round, [confirmed]).phase, Phase::Installed);
}

/// R20, S12.
#[test]
fn a_host_that_restarted_or_lost_its_disk_after_it_installed_is_asked_again() {
    let round = all_installed();
    let mut incarnations = present(&round);
    incarnations[2] = Some(sample::incarnation(102));
    let round = run(round, [Event::Confirmed { incarnations, jitter: 0 }]);
    assert_eq!((round.phase, round.participants[2].phase), (Phase::Installing, ParticipantPhase::BackingOff));
    let ready = Event::HostReady { host_idx: 2, attempt: Attempt::FIRST, incarnation: sample::incarnation(102) };
    let round = run(round, [ready]);
    assert_eq!(effects(&round, sample::time(0)), [Effect::Install { host_idx: 2, attempt: Attempt::new(2).unwrap() }]);
    let round = run(round.clone(), [failed(&round, 2, Reason::CheckpointNotFound)]);
    let p = &round.participants[2];
    let round = run(
        round.clone(),
        [Event::HostReady { host_idx: 2, attempt: p.attempt, incarnation: sample::incarnation(102) }],
    );
    assert_eq!(
        effects(&round, sample::time(0)),
        [Effect::Transfer { host_idx: 2, attempt: Attempt::new(3).unwrap() }],
        "pull again"
    );
}

#[test]
fn installing_never_gives_up_and_is_not_cancelled() {
    let mut round = installing();
    check_cancellable(&round).expect_err("only forward");
    for _ in 0..12 {
        round =
            run(round.clone(), [failed(&round, 0, Reason::StoreDenied), Event::CancelRequested(cancel()), Event::Tick]);
        let p = &round.participants[0];
        round = run(
            round.clone(),
            [Event::HostReady { host_idx: 0, attempt: p.attempt, incarnation: sample::incarnation(0) }],
        );
        assert_eq!(round.phase, Phase::Installing);
    }
    let by = RoundId::new(sample::uuid(5));
    let superseded = run(round, [Event::Superseded { by }]);
    assert_eq!((superseded.phase, superseded.problem.unwrap().reason), (Phase::Failed, Reason::Superseded));
}

#[test]
fn the_local_source_downloads_nothing() {
    let round = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Local), hosts: found(0), discard: false }],
    );
    assert_eq!(round.phase, Phase::Installing);
    let now = effects(&round, sample::time(0));
    assert!(now.iter().all(|effect| matches!(effect, Effect::Install { .. })) && now.len() == 3, "{now:?}");
}

#[test]
fn a_host_that_lost_the_only_copy_ends_the_pull() {
    let local = |commit: bool| {
        let mut resolved = resolved(Source::Local);
        resolved.commit = commit.then(|| commit_of(1));
        let round = run(sample::pull(HOSTS), [Event::Resolved { resolved, hosts: found(0), discard: false }]);
        let lost = failed(&round, 1, Reason::CheckpointNotFound);
        run(round, [lost])
    };
    let ended = local(false);
    assert_eq!((ended.phase, ended.problem.unwrap().reason), (Phase::Failed, Reason::CheckpointNotFound));
    let again = local(true);
    assert_eq!(
        (again.phase, again.participants[1].phase),
        (Phase::Installing, ParticipantPhase::BackingOff),
        "its part can be pulled"
    );
}

#[test]
fn a_host_that_lost_its_disk_ends_an_installing_pull_whose_source_is_damaged_by_then() {
    let resolved = Event::Resolved { resolved: resolved(Source::Location), hosts: found(0), discard: false };
    let mut round = run(sample::pull(HOSTS), [resolved]);
    for host_idx in 0..HOSTS {
        round = run(round.clone(), [done(&round, host_idx, HostReport::Staged)]);
    }
    assert_eq!(round.phase, Phase::Installing);
    let lost = failed(&round, 1, Reason::CheckpointNotFound);
    let round = run(round, [lost]);
    assert_eq!((round.phase, round.participants[1].phase), (Phase::Installing, ParticipantPhase::BackingOff));
    let tried = |reason: Reason, times: u32| {
        (0..times).fold(round.clone(), |round, _| {
            let ready = Event::HostReady {
                host_idx: 1,
                attempt: round.participants[1].attempt,
                incarnation: sample::incarnation(1),
            };
            run(round.clone(), [failed(&round, 1, reason), ready])
        })
    };
    let most = round.retry.max_attempts;
    for (reason, times, ends) in [
        (Reason::StoreUnavailable, 3 * most, false),
        (Reason::CheckpointDamaged, 1, true),
        (Reason::Integrity, 1, false),
        (Reason::Integrity, most, true),
    ] {
        let after = tried(reason, times);
        assert_eq!(after.phase, if ends { Phase::Failed } else { Phase::Installing }, "{reason}, {times} times");
        assert_eq!(after.problem.map(|problem| problem.reason), ends.then_some(reason));
    }
}

#[test]
fn a_fresh_start_with_discard_local_is_fresh_only_when_every_host_has_discarded() {
    let asked = Event::Resolved { resolved: resolved(Source::Fresh), hosts: found(0), discard: true };
    let mut round = run(sample::pull(HOSTS), [asked]);
    for idx in 0..HOSTS {
        assert_eq!(round.phase, Phase::Resolving);
        assert!(effects(&round, sample::time(0)).contains(&Effect::Install { host_idx: idx, attempt: Attempt::FIRST }));
        round = run(round.clone(), [done(&round, idx, HostReport::Installed)]);
    }
    assert_eq!(round.phase, Phase::Fresh);
    let plain = run(
        sample::pull(HOSTS),
        [Event::Resolved { resolved: resolved(Source::Fresh), hosts: found(0), discard: false }],
    );
    assert_eq!(plain.phase, Phase::Fresh);
}

pub(crate) fn source_retired(host_idx: u32, attempt: Attempt, seq: u64) -> Event {
    let problem = Problem::new(Reason::CheckpointNotFound, "retired by its owner");
    Event::SourceRetired { host_idx, attempt, commit: commit_of(seq), problem }
}

/// One random event; numbers may or may not fit the round.
fn any_event(push: bool) -> impl Strategy<Value = Event> {
    let attempt = || (1_u32..4).prop_map(|n| Attempt::new(n).unwrap());
    let process = || prop_oneof![4 => 0_u128..3, 1 => 100_u128..103].prop_map(sample::incarnation);
    let reason = || {
        prop::sample::select(vec![
            Reason::StoreUnavailable,
            Reason::AgentRestarted,
            Reason::CheckpointNotFound,
            Reason::Integrity,
        ])
    };
    let host = || 0..HOSTS + 1;
    let report_kind = move || {
        (0_u32..HOSTS, 1_u32..4, 0_u8..6).prop_map(move |(idx, attempt, kind)| match kind {
            0 => HostReport::Staged,
            1 => HostReport::Installed,
            2 if push => HostReport::Staged,
            _ if push => report(idx, attempt),
            3 | 4 => HostReport::Staged,
            _ => HostReport::Installed,
        })
    };
    let successor = || {
        prop::option::of(prop::sample::select(vec![
            Successor::Absent,
            Successor::FenceOnly,
            Successor::Base(FenceBase {
                generation: Generation::new(2).unwrap(),
                newest: None,
                tombstones: Vec::new(),
            }),
        ]))
    };
    let decision = || {
        prop::sample::select(vec![
            DecisionKnown::CommitStands,
            DecisionKnown::AbortStands,
            DecisionKnown::OtherRound(RoundId::new(sample::uuid(77))),
            DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "lost")),
        ])
    };
    prop_oneof![
        3 => (1_u64..4).prop_map(move |seq| if push { planned() } else {
            Event::Resolved { resolved: resolved_to(Source::Location, seq), hosts: found(0), discard: false }
        }),
        3 => (host(), attempt(), 1_u64..4).prop_map(|(host_idx, attempt, seq)| source_retired(host_idx, attempt, seq)),
        12 => (host(), attempt(), process(), report_kind()).prop_map(|(host_idx, attempt, incarnation, report)| {
            Event::HostDone { host_idx, attempt, incarnation, report }
        }),
        4 => (host(), attempt(), reason(), 0_u32..=1000).prop_map(|(host_idx, attempt, reason, jitter)| {
            Event::HostFailed { host_idx, attempt, problem: Problem::new(reason, "test"), jitter }
        }),
        6 => (host(), attempt(), process()).prop_map(|(host_idx, attempt, incarnation)| Event::HostReady { host_idx, attempt, incarnation }),
        3 => Just(Event::PartsChecked { writer: "test".to_owned(), trace_id: None }),
        3 => (decision(), successor()).prop_map(|(decision, successor)| settled(decision, successor)),
        2 => prop::collection::vec(prop::option::weighted(0.9, process()), HOSTS as usize)
            .prop_map(|incarnations| Event::Confirmed { incarnations, jitter: 0 }),
        1 => Just(Event::CancelRequested(cancel())),
        1 => Just(Event::Refused(Problem::new(Reason::NoCommonCheckpoint, "test"))),
        2 => Just(Event::Tick),
    ]
}

fn check(before: &Round, event: &Event, decision: &Decision) -> Result<(), TestCaseError> {
    let after = &decision.next;
    if before.phase.is_terminal() {
        prop_assert_eq!(before, after, "S5: a terminal round changed on {:?}", event);
    }
    prop_assert_eq!(decision.changes(before), !decision.transitions.is_empty() || before != after);
    if before.phase != after.phase {
        prop_assert!(
            decision.transitions.iter().any(|t| t.host_idx.is_none() && t.to == after.phase.as_str()),
            "unaudited"
        );
    }
    for (b, a) in before.participants.iter().zip(&after.participants) {
        prop_assert!(a.attempt >= b.attempt, "attempts only rise");
        prop_assert!(
            a.attempt > b.attempt || a.incarnation == b.incarnation || b.phase == ParticipantPhase::Waiting,
            "S8: one process an attempt"
        );
        if a.phase == ParticipantPhase::Done && b.phase != ParticipantPhase::Done {
            let Event::HostDone { attempt, incarnation, .. } = event else { panic!("done by {event:?}") };
            prop_assert!(*attempt == a.attempt && Some(*incarnation) == a.incarnation, "S8");
        }
    }
    if let (Kind::Push(b), Kind::Push(a)) = (&before.kind, &after.kind) {
        prop_assert!(b.commit_bytes.is_none() || b.commit_bytes == a.commit_bytes, "the stored bytes never change");
        prop_assert!(b.abort_bytes.is_none() || b.abort_bytes == a.abort_bytes, "the stored bytes never change");
        if after.phase == Phase::Committing {
            prop_assert!(a.commit_bytes.is_some(), "stored before the PUT");
            prop_assert!(after.participants.iter().all(|p| p.phase == ParticipantPhase::Done), "S2: all hosts");
        }
        if after.phase == Phase::Committed && before.phase != Phase::Committed {
            let fits = matches!(
                event,
                Event::Settled { decision: DecisionKnown::CommitStands, successor: Some(Successor::Absent), .. }
            );
            prop_assert!(fits, "S4, S15: committed by {:?}", event);
        }
        if before.phase == Phase::Committing && after.phase != Phase::Committing {
            prop_assert!(
                matches!(event, Event::Settled { .. }),
                "only the decision object or a base leads out of committing"
            );
        }
    }
    if let (Kind::Pull(b), Kind::Pull(a)) = (&before.kind, &after.kind) {
        let chosen = |pull: &PullState| pull.resolved.as_ref().map(|from| from.commit);
        let staged = |p: &Participant| matches!(p.phase, ParticipantPhase::Staged | ParticipantPhase::Installed);
        if b.resolved.is_some() && chosen(a) != chosen(b) {
            prop_assert!(after.phase == Phase::Resolving && !after.participants.iter().any(staged), "S8");
            prop_assert!(after.participants.iter().zip(&before.participants).all(|(a, b)| a.attempt > b.attempt), "S8");
        }
        let again = a.resolved.as_ref().and_then(|from| from.commit).is_some_and(|commit| a.retired.contains(&commit));
        prop_assert!(!again, "what is retired is chosen again");
    }
    if after.phase == Phase::Installed && before.phase != Phase::Installed {
        let Event::Confirmed { incarnations, .. } = event else { panic!("installed by {event:?}") };
        prop_assert!(after.participants.iter().zip(incarnations).all(|(p, now)| p.incarnation == *now), "S12");
    }
    if before.phase == Phase::Installing {
        let reason = after.problem.as_ref().map(|problem| problem.reason);
        let gone = after.phase == Phase::Failed && reason == Some(Reason::CheckpointNotFound);
        let forward = matches!(after.phase, Phase::Installing | Phase::Installed);
        let nowhere = has_no_commit(before) || matches!(event, Event::SourceRetired { .. });
        prop_assert!(forward || gone && nowhere, "from installing only forward");
    }
    Ok(())
}

fn has_no_commit(round: &Round) -> bool {
    matches!(&round.kind, Kind::Pull(pull) if pull.resolved.as_ref().is_some_and(|resolved| resolved.commit.is_none()))
}

/// Drives a round with a world in which nothing fails any more.
fn finish(mut round: Round) -> Result<Round, TestCaseError> {
    let mut now = sample::time(0);
    for _ in 0..100 {
        let Some(effect) = effects(&round, now).into_iter().next() else {
            match next_wake(&round) {
                Some(wake) if wake > now => {
                    now = wake;
                    round = decide(&round, &Event::Tick, now).next;
                    continue;
                }
                _ => return Ok(round),
            }
        };
        let event = match effect {
            Effect::Plan => planned(),
            Effect::Resolve => {
                let Kind::Pull(pull) = &round.kind else { panic!("a push resolves") };
                // Another one than all that were retired.
                let seq = 10 + pull.retired.len() as u64;
                Event::Resolved { resolved: resolved_to(Source::Location, seq), hosts: found(0), discard: false }
            }
            Effect::Transfer { host_idx, attempt } => {
                let staged = matches!(round.kind, Kind::Pull(_));
                done(&round, host_idx, if staged { HostReport::Staged } else { report(host_idx, attempt.get()) })
            }
            Effect::Install { host_idx, .. } => done(&round, host_idx, HostReport::Installed),
            Effect::Describe { host_idx, attempt } => {
                Event::HostReady { host_idx, attempt, incarnation: sample::incarnation(u128::from(host_idx) + 100) }
            }
            Effect::CheckParts => Event::PartsChecked { writer: "test".to_owned(), trace_id: None },
            Effect::SettleCommit => settled(DecisionKnown::CommitStands, Some(Successor::Absent)),
            Effect::SettleAbort => settled(DecisionKnown::AbortStands, Some(Successor::Absent)),
            Effect::Confirm => Event::Confirmed { incarnations: present(&round), jitter: 0 },
        };
        let decision = decide(&round, &event, now);
        check(&round, &event, &decision)?;
        prop_assert!(decision.changes(&round), "an effect's success changes nothing: {:?} in {:?}", event, round);
        round = decision.next;
    }
    Err(TestCaseError::fail(format!("still {} after 100 successes", round.phase)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_push_keeps_its_invariants_and_always_ends(events in prop::collection::vec(any_event(true), 0..60)) {
        explore(sample::push(HOSTS), &events)?;
    }

    #[test]
    fn a_pull_keeps_its_invariants_and_always_ends(events in prop::collection::vec(any_event(false), 0..60)) {
        explore(sample::pull(HOSTS), &events)?;
    }
}

fn explore(start: Round, events: &[Event]) -> Result<(), TestCaseError> {
    let mut round = start;
    for event in events {
        let decision = decide(&round, event, sample::time(0));
        check(&round, event, &decision)?;
        round = decision.next;
    }
    let end = finish(round)?;
    prop_assert!(end.phase.is_terminal(), "{:?} has no way on", end);
    Ok(())
}

#[test]
fn back_off_grows_is_jittered_and_bounded() {
    let policy = lockstep_protocol::round::RetryPolicy::default();
    let ms = |failures, jitter| policy.delay(failures, jitter).as_millis();
    assert_eq!((ms(1, 1000), ms(1, 0)), (500, 250));
    assert_eq!((ms(2, 1000), ms(3, 1000)), (1000, 2000));
    assert_eq!(ms(60, 1000), 30_000);
}
