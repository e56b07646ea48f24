use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_protocol::{
    id::RoundId,
    problem::{Problem, Reason},
    schedule::{LastPush, Look, PushEnd, PushSchedule, look},
};
use proptest::prelude::*;
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(120);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn ended(round: u128, second: i64, periodic: bool, end: PushEnd) -> LastPush {
    LastPush { round: RoundId::new(Uuid::from_u128(round)), periodic, end: Some((at(second), end)) }
}

fn failed() -> PushEnd {
    PushEnd::Failed(Problem::new(Reason::StoreDenied, "403"))
}

fn waits(looked: Look) -> PushSchedule {
    match looked {
        Look::Wait(schedule) => schedule,
        Look::Push(schedule) => panic!("pushes: {schedule:?}"),
    }
}

fn pushes(looked: Look) -> PushSchedule {
    match looked {
        Look::Push(schedule) => schedule,
        Look::Wait(schedule) => panic!("waits: {schedule:?}"),
    }
}

#[test]
fn the_interval_counts_from_the_end_of_the_last_push_whoever_asked_for_it() {
    for periodic in [true, false] {
        let last = ended(1, 100, periodic, PushEnd::Committed);
        let schedule = waits(look(PushSchedule::new(at(0)), Some(&last), INTERVAL, at(101), 0));
        assert_eq!(schedule.due_at, at(220));
        let schedule = pushes(look(schedule, Some(&last), INTERVAL, at(220), 0));
        // What the hosts hold is the newest commit: the next look is an interval later, and the old push is not reckoned in again.
        let schedule = schedule.nothing_new(INTERVAL, at(221));
        assert_eq!(waits(look(schedule, Some(&last), INTERVAL, at(222), 0)).due_at, at(341));
    }
}

#[test]
fn a_push_that_runs_is_waited_for_and_never_joined_by_another() {
    let running = LastPush { round: RoundId::new(Uuid::from_u128(1)), periodic: false, end: None };
    let schedule = waits(look(PushSchedule::new(at(0)), Some(&running), INTERVAL, at(500), 0));
    assert_eq!(schedule.due_at, at(510));
}

#[test]
fn failures_of_periodic_pushes_back_off_and_keep_the_cause_until_one_succeeds() {
    let mut schedule = PushSchedule::new(at(0));
    let mut delays = Vec::new();
    for n in 1..=8 {
        let last = ended(n, 1000, true, failed());
        schedule = waits(look(schedule, Some(&last), INTERVAL, at(1000), 1000));
        delays.push((schedule.due_at - at(1000)).num_seconds());
        assert_eq!(
            (u128::from(schedule.failures), schedule.problem.as_ref().unwrap().reason),
            (n, Reason::StoreDenied)
        );
    }
    assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300]);
    let schedule = waits(look(schedule, Some(&ended(9, 2000, false, PushEnd::Committed)), INTERVAL, at(2000), 0));
    assert_eq!((schedule.failures, schedule.problem), (0, None));
}

#[test]
fn what_comes_of_a_push_by_hand_that_failed_changes_nothing_but_is_not_looked_at_twice() {
    let before = PushSchedule { due_at: at(50), ..PushSchedule::new(at(0)) };
    let schedule = waits(look(before.clone(), Some(&ended(1, 10, false, failed())), INTERVAL, at(11), 0));
    assert_eq!((schedule.due_at, schedule.failures), (at(50), 0));
    let schedule = waits(look(before, Some(&ended(1, 10, true, PushEnd::Cancelled)), INTERVAL, at(11), 0));
    assert_eq!((schedule.due_at, schedule.failures), (at(130), 0));
}

#[test]
fn hosts_between_two_checkpoints_are_asked_once_more_before_it_is_a_failure() {
    let apart = || Problem::new(Reason::NoCommonCheckpoint, "host 0: 10; host 1: none");
    let first = PushSchedule::new(at(0)).apart(apart(), INTERVAL, at(0), 1000);
    assert_eq!((first.due_at, first.failures, first.problem.clone()), (at(10), 0, Some(apart())), "soon, no failure");

    // The other host's checkpoint came: what was said of the look before is gone.
    let pushed = pushes(look(first.clone(), None, INTERVAL, at(10), 1000)).admitted(INTERVAL, at(10));
    assert_eq!((pushed.failures, pushed.problem), (0, None));

    // It did not come: failures with back-off, and no round for any of them.
    let second = pushes(look(first, None, INTERVAL, at(10), 1000)).apart(apart(), INTERVAL, at(10), 1000);
    assert_eq!((second.due_at, second.failures, second.problem.clone()), (at(15), 1, Some(apart())));
    let third = second.apart(apart(), INTERVAL, at(15), 1000);
    assert_eq!((third.due_at, third.failures), (at(25), 2));
    assert_eq!(third.nothing_new(INTERVAL, at(25)), PushSchedule { due_at: at(145), ..PushSchedule::new(at(0)) });
}

#[test]
fn a_look_between_two_checkpoints_keeps_what_failed_before() {
    let schedule = waits(look(PushSchedule::new(at(0)), Some(&ended(1, 0, true, failed())), INTERVAL, at(1), 1000));
    let schedule = schedule.apart(Problem::new(Reason::NoCommonCheckpoint, "apart"), INTERVAL, at(5), 1000);
    assert_eq!((schedule.due_at, schedule.failures), (at(15), 1), "not two failures");
}

proptest! {
    #[test]
    fn the_next_push_is_never_early_and_at_most_a_twentieth_late(interval in 1_u64..100_000, jitter in 0_u32..=1000) {
        let interval = Duration::from_secs(interval);
        let last = ended(1, 0, true, PushEnd::Committed);
        let schedule = waits(look(PushSchedule::new(at(-5)), Some(&last), interval, at(0), jitter));
        let after = schedule.due_at - at(0);
        prop_assert!(after >= TimeDelta::from_std(interval).unwrap());
        prop_assert!(after <= TimeDelta::from_std(interval + (interval / 20).min(Duration::from_secs(30))).unwrap());
    }
}
