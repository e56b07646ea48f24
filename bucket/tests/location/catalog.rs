use bytes::Bytes;
use lockstep_bucket::{
    Access, Checkpoint, Lookup, Operation, Selector, find, latest, list_checkpoints,
    memory::fault::{Fault, FaultRule},
};
use lockstep_protocol::{
    id::Step,
    key::Key,
    problem::{Problem, Reason},
};

use crate::sample::{Place, commit, commit_ref, generation, round, seq, time};

fn found(g: u64, s: u64) -> Lookup<Checkpoint, Problem> {
    Lookup::Found(Checkpoint { commit: commit_ref(g, s), document: commit(g, s), damaged: false })
}

fn reason<T: std::fmt::Debug>(lookup: Lookup<T, Problem>) -> Reason {
    match lookup {
        Lookup::Unknown(problem) => problem.reason,
        other => panic!("known: {other:?}"),
    }
}

async fn newest(place: &Place) -> Lookup<Checkpoint, Problem> {
    let read_only = latest(&place.store, Access::ReadOnly).await;
    assert_eq!(latest(&place.store, Access::Own).await, read_only);
    read_only
}

async fn all(place: &Place) -> Vec<(u64, u64)> {
    let list = list_checkpoints(&place.store, Access::ReadOnly, usize::MAX).await.unwrap();
    list.iter().map(|c| (c.commit().generation.get(), c.commit().seq.get())).collect()
}

/// Generations 1 to 3; of the first, commit 4 landed too late; the second committed nothing.
fn history() -> Place {
    let place = Place::new();
    place.fence(1);
    for s in 1..=4 {
        place.commit(1, s);
    }
    place.fence_with_base(2, Some(commit_ref(1, 3)));
    place.abort(2, 1);
    place.fence_with_base(3, Some(commit_ref(1, 3)));
    place
}

#[tokio::test]
async fn an_empty_location_is_proven_absent() {
    let place = Place::new();
    assert_eq!(newest(&place).await, Lookup::Absent);
    place.fence(1);
    assert_eq!(newest(&place).await, Lookup::Absent);
    place.abort(1, 1);
    assert_eq!(newest(&place).await, Lookup::Absent);
    assert_eq!(all(&place).await, []);
}

#[tokio::test]
async fn latest_is_the_greatest_commit_of_the_highest_generation() {
    let place = history();
    place.commit(3, 1);
    place.commit(3, 2);
    place.abort(3, 3);
    assert_eq!(newest(&place).await, found(3, 2));
    assert_eq!(all(&place).await, [(3, 2), (3, 1), (1, 3), (1, 2), (1, 1)]);
}

#[tokio::test]
async fn a_generation_without_commits_starts_at_its_base() {
    let place = history();
    assert_eq!(newest(&place).await, found(1, 3));
    assert_eq!(all(&place).await, [(1, 3), (1, 2), (1, 1)], "commit 4 landed after the base");
}

#[tokio::test]
async fn a_base_that_names_nothing_ends_what_counts() {
    let place = Place::new();
    place.fence(1);
    place.fence_with_base(2, None);
    place.commit(1, 1);
    assert_eq!(newest(&place).await, Lookup::Absent);
}

#[tokio::test]
async fn retired_and_damaged_commits_are_no_latest() {
    let place = history();
    place.mark_damaged(1, 3);
    assert_eq!(newest(&place).await, found(1, 2));
    place.retire(1, 2, 3);
    assert_eq!(newest(&place).await, found(1, 1));
    let list = list_checkpoints(&place.store, Access::ReadOnly, usize::MAX).await.unwrap();
    let list: Vec<_> = list.iter().map(|c| (c.commit().seq.get(), c.damaged())).collect();
    assert_eq!(list, [(3, true), (1, false)]);
}

#[tokio::test]
async fn a_late_tombstone_of_an_earlier_owner_does_not_count() {
    let place = history();
    place.retire(1, 3, 1);
    assert_eq!(newest(&place).await, found(1, 3));
}

#[tokio::test]
async fn an_open_take_over_is_finished_by_the_owner_and_unknown_to_a_reader() {
    let place = history();
    place.commit(3, 1);
    place.fence(4);
    let lookup = latest(&place.store, Access::ReadOnly).await;
    assert_eq!(reason(lookup), Reason::TakeOverInProgress, "never an older generation");
    assert_eq!(place.read(&Key::FenceBase(generation(4))), None, "a reader writes nothing");
    assert_eq!(latest(&place.store, Access::Own).await, found(3, 1));
    assert_eq!(latest(&place.store, Access::ReadOnly).await, found(3, 1));
}

#[tokio::test]
async fn unknown_is_never_taken_for_absent() {
    for operation in [Operation::List, Operation::Get] {
        for fault in [Fault::Deny, Fault::FailBefore, Fault::Throttle, Fault::LandLate] {
            let place = history();
            place.buckets.inject(FaultRule::new(fault).operation(operation).times(1));
            assert!(
                matches!(latest(&place.store, Access::ReadOnly).await, Lookup::Unknown(_)),
                "{operation} {fault:?}"
            );
        }
    }
    let place = history();
    place.write(&Key::Commit(generation(1), seq(3)), "torn");
    assert_eq!(reason(latest(&place.store, Access::ReadOnly).await), Reason::ManifestInvalid);
}

#[tokio::test]
async fn a_commit_that_differs_from_what_the_base_names_is_damage() {
    let place = history();
    let mut other = commit(1, 3);
    other.writer = "somebody else".to_owned();
    place.write(&Key::Commit(generation(1), seq(3)), other.encode());
    assert_eq!(reason(latest(&place.store, Access::ReadOnly).await), Reason::CheckpointDamaged);
}

#[tokio::test]
async fn a_counted_commit_that_vanished_without_tombstone_is_no_older_latest() {
    let place = history();
    place.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Get).key("commits/").times(1));
    assert!(matches!(latest(&place.store, Access::Own).await, Lookup::Unknown(_)));
}

#[tokio::test]
async fn selectors_find_the_greatest_that_fits() {
    let place = history();
    place.commit(3, 1);
    // The same step again, in a later commit.
    let mut again = commit(3, 2);
    again.step = Step::new(20).unwrap();
    place.write(&again.key(), again.encode());
    let place = &place;
    let pick = |selector| async move {
        match find(&place.store, selector, Access::ReadOnly).await {
            Lookup::Found(c) => Some((c.commit.generation.get(), c.commit.seq.get())),
            Lookup::Absent => None,
            Lookup::Unknown(problem) => panic!("{problem}"),
        }
    };
    assert_eq!(pick(Selector::Step(Step::new(20).unwrap())).await, Some((3, 2)));
    assert_eq!(pick(Selector::Step(Step::new(30).unwrap())).await, Some((1, 3)));
    assert_eq!(pick(Selector::Step(Step::new(40).unwrap())).await, None, "commit 4 does not count");
    assert_eq!(pick(Selector::Round(round(1, 1))).await, Some((1, 1)));
    assert_eq!(pick(Selector::Round(round(1, 4))).await, None);
    assert_eq!(pick(Selector::Time(time(3002))).await, Some((3, 2)));
    assert_eq!(pick(Selector::Time(time(3000))).await, Some((1, 3)));
    assert_eq!(pick(Selector::Time(time(1000))).await, None);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_found_by_its_round_only_and_is_not_absent() {
    let place = Place::new();
    place.fence(1);
    place.commit(1, 1);
    place.mark_damaged(1, 1);
    let by_step = find(&place.store, Selector::Step(Step::new(10).unwrap()), Access::ReadOnly).await;
    assert_eq!(reason(by_step), Reason::CheckpointDamaged);
    assert_eq!(reason(latest(&place.store, Access::ReadOnly).await), Reason::CheckpointDamaged);
    match find(&place.store, Selector::Round(round(1, 1)), Access::ReadOnly).await {
        Lookup::Found(checkpoint) => assert!(checkpoint.damaged),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_limit_of_a_list_is_kept_and_thousands_are_paged() {
    let place = Place::new();
    place.fence(1);
    for s in 1..=1200 {
        place.write(&Key::Commit(generation(1), seq(s)), Bytes::from(commit(1, s).encode()));
    }
    assert_eq!(newest(&place).await, found(1, 1200));
    let some = list_checkpoints(&place.store, Access::ReadOnly, 3).await.unwrap();
    assert_eq!(some.iter().map(|c| c.commit().seq.get()).collect::<Vec<_>>(), [1200, 1199, 1198]);
    assert_eq!(all(&place).await.len(), 1200);
}
