//! Rounds under random events: late, duplicate, contradictory and missing ones. After each event the invariants hold; from wherever chance led,
//! a round whose faults stop reaches a terminal phase (L1).

use lockstep_protocol::{
    fence::{FenceBase, Successor},
    id::{Attempt, Generation, RoundId},
    problem::{Problem, Reason},
    round::{
        Decision, DecisionKnown, Effect, Event, HostReport, Kind, Participant, ParticipantPhase, Phase, PullState,
        Round, Source, decide, effects, next_wake,
    },
};
use proptest::prelude::*;

use super::{HOSTS, cancel, done, found, planned, present, report, resolved_to, settled, source_retired};
use crate::sample;

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
