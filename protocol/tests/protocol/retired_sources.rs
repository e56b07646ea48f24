//! G5: the source of a pull is retired by its owner while it is pulled.

use lockstep_protocol::{
    id::Attempt,
    problem::{Problem, Reason},
    round::{Decision, Effect, Event, Kind, ParticipantPhase, Phase, PullState, Round, Source, decide, effects},
    spec::PullSelector,
};

use crate::{
    rounds::{commit_of, found, resolved, resolved_to, source_retired, step},
    sample,
};

const HOSTS: u32 = 3;

fn pull(selector: PullSelector) -> Round {
    let mut round = sample::pull(HOSTS);
    pull_of(&mut round).request.selector = selector;
    round
}

fn pull_of(round: &mut Round) -> &mut PullState {
    match &mut round.kind {
        Kind::Pull(pull) => pull,
        Kind::Push(_) => panic!("a push"),
    }
}

fn after(round: &Round, event: &Event) -> Decision {
    decide(round, event, sample::time(0))
}

/// Chosen from a location: the commit with this seq.
fn chosen(round: &Round, source: Source, seq: u64) -> Round {
    after(round, &Event::Resolved { resolved: resolved_to(source, seq), hosts: found(0), discard: false }).next
}

fn attempts(round: &Round) -> Vec<u32> {
    round.participants.iter().map(|p| p.attempt.get()).collect()
}

fn reported(round: &Round, host_idx: u32, attempt: u32) -> Round {
    use lockstep_protocol::round::HostReport::Staged;
    let (attempt, incarnation) = (Attempt::new(attempt).unwrap(), sample::incarnation(host_idx.into()));
    after(round, &Event::HostDone { host_idx, attempt, incarnation, report: Staged }).next
}

#[test]
fn another_checkpoint_is_chosen_in_the_same_round_and_ordered_in_a_later_attempt() {
    for source in [Source::Location, Source::ReadLocation] {
        let round = reported(&chosen(&pull(PullSelector::Latest), source, 1), 0, 1);
        assert_eq!(round.participants[0].phase, ParticipantPhase::Staged);
        let Decision { next: round, transitions, .. } = after(&round, &source_retired(1, Attempt::FIRST, 1));
        assert_eq!((round.phase, attempts(&round)), (Phase::Resolving, vec![2, 2, 2]), "{source:?}");
        assert!(
            round.participants.iter().all(|p| p.phase == ParticipantPhase::Waiting && p.local_checkpoint.is_none())
        );
        assert_eq!(effects(&round, sample::time(0)), [Effect::Resolve]);
        let why = transitions.last().unwrap();
        assert_eq!((why.host_idx, why.from, why.to), (None, "transferring", "resolving"));
        assert!(why.cause.contains("host 1, attempt 1: CHECKPOINT_NOT_FOUND: retired by its owner"), "{}", why.cause);
        assert_eq!(round.problem.as_ref().unwrap().reason, Reason::CheckpointNotFound, "until another one is chosen");

        let mut round = chosen(&round, source, 2);
        assert_eq!((round.phase, &round.problem), (Phase::Transferring, &None));
        assert_eq!(pull_of(&mut round).retired, [commit_of(1)]);
        let orders = (0..HOSTS).map(|host_idx| Effect::Transfer { host_idx, attempt: Attempt::new(2).unwrap() });
        assert_eq!(effects(&round, sample::time(0)), orders.collect::<Vec<_>>(), "the staged one too");
        // What was under way for the retired one says nothing about the other one.
        assert_eq!(reported(&round, 2, 1), round);
        for late in [source_retired(1, Attempt::FIRST, 1), source_retired(1, Attempt::new(2).unwrap(), 1)] {
            assert!(!after(&round, &late).changes(&round), "{late:?}");
        }
        let round = (0..HOSTS).fold(round, |round, host_idx| reported(&round, host_idx, 2));
        assert_eq!(round.phase, Phase::Installing);
    }
}

#[test]
fn an_attempt_whose_source_was_retired_is_none_that_failed() {
    let mut round = chosen(&pull(PullSelector::Latest), Source::Location, 1);
    for seq in 1..=6 {
        round = after(&round, &source_retired(0, Attempt::new(u32::try_from(seq).unwrap()).unwrap(), seq)).next;
        round = chosen(&round, Source::Location, seq + 1);
    }
    assert_eq!(attempts(&round), [7, 7, 7]);
    for failures in 1..=5 {
        assert_eq!(round.phase, Phase::Transferring, "after {} failures", failures - 1);
        let attempt = round.participants[2].attempt;
        let problem = Problem::new(Reason::StoreUnavailable, "down");
        round = after(&round, &Event::HostFailed { host_idx: 2, attempt, problem, jitter: 0 }).next;
        let incarnation = sample::incarnation(2);
        round = after(&round, &Event::HostReady { host_idx: 2, attempt, incarnation }).next;
    }
    assert_eq!(round.phase, Phase::Failed);
}

#[test]
fn what_is_asked_for_by_its_id_is_that_or_nothing() {
    let asked = PullSelector::Checkpoint(commit_of(1).round);
    let round = after(&chosen(&pull(asked), Source::Location, 1), &source_retired(1, Attempt::FIRST, 1)).next;
    let problem = round.problem.unwrap();
    assert_eq!((round.phase, problem.reason), (Phase::Failed, Reason::CheckpointNotFound));
    assert!(problem.message.contains("retired by its owner; pull another one"), "{}", problem.message);
}

#[test]
fn a_step_that_nothing_else_has_is_not_found_and_the_retired_one_is_named() {
    let round = chosen(&pull(PullSelector::Step(step(12))), Source::Location, 1);
    let round = after(&round, &source_retired(1, Attempt::FIRST, 1)).next;
    assert_eq!(round.phase, Phase::Resolving, "another commit may have it");
    let nowhere = Problem::new(Reason::CheckpointNotFound, "no checkpoint for step 12");
    let problem = after(&round, &Event::Refused(nowhere)).next.problem.unwrap();
    assert_eq!(problem.metadata["retired"], commit_of(1).round.to_string());
    assert!(problem.message.contains("was chosen before, and was retired by its owner"), "{}", problem.message);
}

#[test]
fn what_is_retired_is_never_chosen_again() {
    let round = chosen(&pull(PullSelector::Latest), Source::Location, 1);
    let round = after(&round, &source_retired(1, Attempt::FIRST, 1)).next;
    let round = chosen(&round, Source::Location, 1);
    assert_eq!((round.phase, round.problem.unwrap().reason), (Phase::Failed, Reason::CheckpointNotFound));
}

#[test]
fn deadline_and_cancel_act_while_another_one_is_chosen() {
    let round = chosen(&pull(PullSelector::Latest), Source::Location, 1);
    let round = after(&round, &source_retired(1, Attempt::FIRST, 1)).next;
    assert_eq!(decide(&round, &Event::Tick, round.deadline).next.phase, Phase::Failed);
}

/// ADR 14: some hosts may have it already, and nobody can give it to the one that has lost it.
#[test]
fn once_hosts_install_there_is_no_other_one_to_go_forward_to() {
    let round = chosen(&pull(PullSelector::Latest), Source::Location, 1);
    let round = (0..HOSTS).fold(round, |round, host_idx| reported(&round, host_idx, 1));
    assert_eq!(round.phase, Phase::Installing);
    let lost = Problem::new(Reason::CheckpointNotFound, "neither staged nor local");
    let lost = Event::HostFailed { host_idx: 1, attempt: Attempt::FIRST, problem: lost, jitter: 0 };
    let incarnation = sample::incarnation(101);
    let ready = Event::HostReady { host_idx: 1, attempt: Attempt::FIRST, incarnation };
    let round = after(&after(&round, &lost).next, &ready).next;
    let second = Attempt::new(2).unwrap();
    assert!(effects(&round, sample::time(0)).contains(&Effect::Transfer { host_idx: 1, attempt: second }), "again");
    let round = after(&round, &source_retired(1, second, 1)).next;
    assert_eq!((round.phase, round.problem.unwrap().reason), (Phase::Failed, Reason::CheckpointNotFound));
}

#[test]
fn what_is_chosen_instead_may_be_on_every_disk_or_nothing_at_all() {
    let round = chosen(&pull(PullSelector::Latest), Source::ReadLocation, 1);
    let round = after(&round, &source_retired(1, Attempt::FIRST, 1)).next;
    let instead =
        |source| after(&round, &Event::Resolved { resolved: resolved(source), hosts: found(0), discard: false }).next;
    let local = instead(Source::Local);
    assert_eq!((local.phase, attempts(&local)), (Phase::Installing, vec![2, 2, 2]));
    let fresh = instead(Source::Fresh);
    assert_eq!((fresh.phase, &fresh.problem), (Phase::Fresh, &None));
}
