use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, LocalCheckpointId, PipelineId, RoundId, Seq, Step},
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
    spec::PullSelector,
    standby::{FollowState, LastPull, Look, Point, PullEnd, Sighting, Standing, is_held, look},
};
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(10);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

const fn round(number: u128) -> RoundId {
    RoundId::new(Uuid::from_u128(number))
}

fn point(seq: u64, step: u64, second: i64) -> Point {
    let commit = CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(seq).unwrap(),
        round: round(u128::from(seq)),
        digest: Digest::of(&seq.to_be_bytes()),
    };
    Point { commit, step: Step::new(step).unwrap(), at: at(second) }
}

fn standing() -> Standing {
    Standing {
        pipeline: PipelineId::new(Uuid::from_u128(1)),
        standby: true,
        stopped: false,
        activation: None,
        pinned: None,
    }
}

fn ended(number: u128, second: i64, followed: bool, end: PullEnd) -> LastPull {
    LastPull { round: round(number), followed, end: Some((at(second), end)) }
}

fn failure() -> PullEnd {
    PullEnd::Failed(Problem::new(Reason::StoreDenied, "403"))
}

fn waits(looked: Look) -> FollowState {
    match looked {
        Look::Wait(state) => state,
        Look::Now(state) | Look::Lag(state) => panic!("looks: {state:?}"),
    }
}

fn looks(looked: Look) -> FollowState {
    match looked {
        Look::Now(state) => state,
        Look::Wait(state) | Look::Lag(state) => panic!("waits: {state:?}"),
    }
}

#[test]
fn only_a_standby_that_nobody_stopped_or_activates_may_follow() {
    assert!(standing().following().is_some());
    for not in [
        Standing { standby: false, ..standing() },
        Standing { stopped: true, ..standing() },
        Standing { activation: Some(Uuid::from_u128(7)), ..standing() },
    ] {
        assert_eq!(not.following(), None, "{not:?}");
    }
    let pinned = Standing { pinned: Some(round(3)), ..standing() };
    assert_eq!(pinned.following().unwrap().selector(), PullSelector::Checkpoint(round(3)));
    assert_eq!(standing().following().unwrap().selector(), PullSelector::Latest);
}

#[test]
fn it_looks_at_its_interval_and_again_at_once_when_a_pull_has_changed_what_the_hosts_hold() {
    let state = looks(look(FollowState::new(at(0)), None, INTERVAL, at(0), 0));
    let state = state.up_to_date(Sighting::default(), INTERVAL, at(0));
    assert_eq!(waits(look(state.clone(), None, INTERVAL, at(9), 0)).due_at, at(10));
    let seen = Sighting::default().next(None, None, 0, at(10));
    let state = looks(look(state, None, INTERVAL, at(10), 0)).pulling(seen, at(10));
    let running = LastPull { round: round(1), followed: true, end: None };
    assert_eq!(waits(look(state.clone(), Some(&running), INTERVAL, at(19), 0)).due_at, at(20), "one pull at a time");
    let watched = look(state.clone(), Some(&running), INTERVAL, at(20), 0);
    assert!(matches!(watched, Look::Lag(_)), "however long it takes, the lag is known: {watched:?}");
    let done = ended(1, 42, true, PullEnd::Installed);
    let state = looks(look(state, Some(&done), INTERVAL, at(42), 0)).up_to_date(Sighting::default(), INTERVAL, at(43));
    assert_eq!(waits(look(state, Some(&done), INTERVAL, at(44), 0)).due_at, at(53), "reckoned in once");
}

#[test]
fn failures_back_off_with_their_cause_to_a_minute_at_most_until_a_pull_succeeds() {
    let mut state = FollowState::new(at(0));
    let mut delays = Vec::new();
    for number in 1..=7 {
        state = waits(look(state, Some(&ended(number, 1000, true, failure())), INTERVAL, at(1000), 1000));
        delays.push((state.due_at - at(1000)).num_seconds());
        assert_eq!((u128::from(state.failures), state.problem.as_ref().unwrap().reason), (number, Reason::StoreDenied));
    }
    assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60]);
    let jittered = waits(look(state.clone(), Some(&ended(8, 1000, true, failure())), INTERVAL, at(1000), 0));
    assert_eq!(jittered.due_at, at(1030));
    let state = looks(look(state, Some(&ended(8, 2000, false, PullEnd::Installed)), INTERVAL, at(2000), 0));
    assert_eq!((state.failures, state.problem), (0, None), "by hand as well");
}

#[test]
fn a_pull_that_was_cancelled_is_not_back_at_once_and_one_by_hand_that_failed_changes_nothing() {
    let cancelled = ended(1, 100, true, PullEnd::GivenUp);
    assert_eq!(waits(look(FollowState::new(at(0)), Some(&cancelled), INTERVAL, at(100), 0)).due_at, at(110));
    let by_hand = ended(2, 100, false, failure());
    let state = looks(look(FollowState::new(at(0)), Some(&by_hand), INTERVAL, at(100), 0));
    assert_eq!((state.failures, state.seen), (0, Some(round(2))));
}

#[test]
fn the_lag_counts_from_the_first_checkpoint_that_the_hosts_lack() {
    let (one, two, three) = (point(1, 10, 0), point(2, 20, 60), point(3, 35, 120));
    let even = Sighting::default().next(Some(one), Some(one), 0, at(1));
    assert_eq!((even.lag, even.seconds(at(500))), (None, 0));
    let behind = even.next(Some(two), Some(one), 700, at(61));
    assert_eq!((behind.lag.unwrap().steps, behind.lag.unwrap().bytes, behind.seconds(at(61))), (10, 700, 1));
    let further = behind.next(Some(three), Some(one), 900, at(121));
    assert_eq!((further.lag.unwrap().steps, further.seconds(at(121))), (25, 61));
    // It caught up with the second, but the third stands already.
    let closer = further.next(Some(three), Some(two), 200, at(130));
    assert_eq!((closer.lag.unwrap().steps, closer.seconds(at(130))), (15, 10));
    assert_eq!(closer.next(Some(three), Some(three), 0, at(131)).lag, None);
    let empty = Sighting::default().next(None, None, 0, at(1));
    assert_eq!((empty.lag, empty.at), (None, Some(at(1))), "nothing was ever pushed");
    let nothing = Sighting::default().next(Some(two), None, 5, at(61));
    assert_eq!(nothing.lag.unwrap().steps, 20, "the hosts hold nothing at all");
}

#[test]
fn a_writer_whose_clock_is_ahead_makes_no_lag_in_the_future() {
    let ahead = point(1, 10, 86_400);
    let seen = Sighting::default().next(Some(ahead), None, 0, at(0));
    assert_eq!((seen.seconds(at(0)), seen.seconds(at(5))), (0, 5));
    assert_eq!(seen.seconds(at(0) - TimeDelta::days(1)), 0);
}

#[test]
fn a_checkpoint_is_held_if_every_host_has_its_own_part() {
    let id = |number| LocalCheckpointId::new(Uuid::from_u128(number));
    let disk = |numbers: &[u128]| -> Vec<LocalCheckpoint> {
        let local = |&number| LocalCheckpoint {
            id: id(number),
            step: Step::new(1).unwrap(),
            fingerprint: None,
            processed_records: None,
            bytes: 0,
            files: 0,
            created_at: None,
        };
        numbers.iter().map(local).collect()
    };
    assert!(is_held([id(1), id(2)], &[disk(&[9, 1]), disk(&[2])]));
    assert!(!is_held([id(1), id(2)], &[disk(&[1]), disk(&[])]));
    assert!(!is_held([id(1), id(2)], &[disk(&[2]), disk(&[1])]), "swapped");
    assert!(!is_held([id(1), id(2)], &[disk(&[1])]), "fewer hosts than parts");
    assert!(!is_held([id(1)], &[disk(&[1]), disk(&[1])]), "more hosts than parts");
}
