//! A commit document that nobody can read: it hides no other checkpoint, and is never taken for absent (ADR 29).

use lockstep_bucket::{
    Access, Entry, Lookup, Selector, find,
    garbage::{reach, reach_of_retired, read_decisions},
    latest, list_checkpoints, look_up, newest,
};
use lockstep_protocol::{
    commit::CommitRef,
    id::Step,
    key::Key,
    problem::{Problem, Reason},
};

use crate::sample::{Place, commit, commit_bytes, commit_ref, generation, round, seq, time};

/// Commits 1 to `last` of one generation; step 10, 20 and so on.
fn chain(last: u64) -> Place {
    let place = Place::new();
    place.fence(1);
    for s in 1..=last {
        place.commit(1, s);
    }
    place
}

/// What somebody did by hand, disks did, or a newer version has written.
fn broken(s: u64) -> Vec<(&'static str, Vec<u8>)> {
    let whole = commit_bytes(1, s).to_vec();
    let text = String::from_utf8(whole.clone()).unwrap();
    vec![
        ("empty", Vec::new()),
        ("garbage", vec![0xff; 300]),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("another's place", commit_bytes(1, s + 1).to_vec()),
        ("edited", text.replace("\"files\":4", "\"files\":\"4\"").into_bytes()),
        ("of a newer version", text.replace("\"format\":1,", "\"format\":2,\"new\":true,").into_bytes()),
        ("too long", vec![b' '; (64 << 20) + 1]),
    ]
}

fn problem<T: std::fmt::Debug>(lookup: Lookup<T, Problem>) -> Problem {
    match lookup {
        Lookup::Unknown(problem) => problem,
        other => panic!("known: {other:?}"),
    }
}

async fn pick(place: &Place, selector: Selector) -> Lookup<u64, Problem> {
    find(&place.store, selector, Access::ReadOnly).await.map(|found| found.commit.seq.get())
}

fn step(step: u64) -> Selector {
    Selector::Step(Step::new(step).unwrap())
}

async fn listed(place: &Place) -> Vec<(u64, bool, bool)> {
    let list = list_checkpoints(&place.store, Access::ReadOnly, usize::MAX).await.unwrap();
    list.iter().map(|one| (one.commit().seq.get(), matches!(one, Entry::Whole(_)), one.damaged())).collect()
}

#[tokio::test]
async fn the_newest_that_cant_be_read_is_no_older_latest_and_hides_nothing() {
    for (what, bytes) in broken(3) {
        let place = chain(3);
        let key = Key::Commit(generation(1), seq(3));
        place.write(&key, bytes.clone());
        for access in [Access::Own, Access::ReadOnly] {
            let problem = problem(latest(&place.store, access).await);
            assert_eq!(problem.reason, Reason::ManifestInvalid, "{what}: {problem}");
            assert!(problem.metadata["key"].ends_with(&key.to_string()), "{what}: {problem:?}");
            assert!(problem.message.contains("checkpoint verify PIPELINE 1-3"), "{what}: {problem}");
        }
        assert_eq!(listed(&place).await, [(3, false, false), (2, true, false), (1, true, false)], "{what}");
        assert_eq!(pick(&place, step(20)).await, Lookup::Found(2), "{what}");
        assert_eq!(pick(&place, Selector::Round(round(1, 1))).await, Lookup::Found(1), "{what}");
        // What may be the broken one is not absent.
        for selector in [step(30), Selector::Round(round(1, 3)), Selector::Time(time(9000))] {
            assert_eq!(problem(pick(&place, selector).await).reason, Reason::ManifestInvalid, "{what} {selector:?}");
        }
        assert_eq!(pick(&place, Selector::Time(time(1001))).await, Lookup::Found(1), "{what}: commit 2 was later");
        let by_place = look_up(&place.store, Selector::Place(generation(1), seq(3)), Access::ReadOnly).await;
        let Lookup::Found(found @ Entry::Unreadable(_)) = by_place else { panic!("{what}: {by_place:?}") };
        let by_stand_in = look_up(&place.store, Selector::Round(found.commit().round), Access::ReadOnly).await;
        assert_eq!(by_stand_in, Lookup::Found(found.clone()), "{what}");

        // A push knows that the place is taken, and builds on the one before.
        let known = newest(&place.store, Access::Own).await.unwrap();
        assert_eq!((known.greatest, known.whole.map(|one| one.commit)), (Some(found.commit()), Some(commit_ref(1, 2))));

        // Once it is given up, the one before is the newest; and a mark hides nothing of it.
        place.mark_damaged(1, 3);
        assert_eq!(pick(&place, Selector::Latest).await, Lookup::Found(2), "{what}");
        assert_eq!(pick(&place, Selector::Time(time(9000))).await, Lookup::Found(2), "{what}");
        assert_eq!(listed(&place).await[0], (3, false, true), "{what}");
        assert_eq!(problem(pick(&place, step(30)).await).reason, Reason::CheckpointDamaged, "{what}");
    }
}

#[tokio::test]
async fn an_older_one_that_cant_be_read_is_in_nobodys_way() {
    let place = chain(4);
    place.write(&Key::Commit(generation(1), seq(2)), "garbage");
    assert_eq!(pick(&place, Selector::Latest).await, Lookup::Found(4));
    for (selector, expected) in [(step(10), 1), (step(30), 3), (Selector::Round(round(1, 1)), 1)] {
        assert_eq!(pick(&place, selector).await, Lookup::Found(expected));
    }
    for (at, expected) in [(1004, 4), (1003, 3)] {
        assert_eq!(pick(&place, Selector::Time(time(at))).await, Lookup::Found(expected));
    }
    // It was made after commit 1 and before commit 3: whether before that time, nobody knows.
    assert_eq!(problem(pick(&place, Selector::Time(time(1002))).await).reason, Reason::ManifestInvalid);
    assert_eq!(problem(pick(&place, step(50)).await).reason, Reason::ManifestInvalid, "it may be that one");
    assert_eq!(listed(&place).await, [(4, true, false), (3, true, false), (2, false, false), (1, true, false)]);
}

#[tokio::test]
async fn nothing_but_what_cant_be_read_is_not_absent() {
    let place = chain(1);
    place.write(&Key::Commit(generation(1), seq(1)), "");
    for selector in [Selector::Latest, step(10), Selector::Time(time(0)), Selector::Round(round(1, 1))] {
        assert_eq!(problem(pick(&place, selector).await).reason, Reason::ManifestInvalid, "{selector:?}");
    }
    place.mark_damaged(1, 1);
    for selector in [Selector::Latest, step(10), Selector::Time(time(0)), Selector::Round(round(1, 1))] {
        assert_eq!(problem(pick(&place, selector).await).reason, Reason::CheckpointDamaged, "{selector:?}");
    }
    assert_eq!(newest(&place.store, Access::Own).await.unwrap().whole, None);
}

#[tokio::test]
async fn other_bytes_than_the_base_names_can_be_given_up_as_well() {
    let place = chain(3);
    place.fence_with_base(2, Some(commit_ref(1, 3)));
    let mut other = commit(1, 3);
    other.writer = "somebody else".to_owned();
    place.write(&Key::Commit(generation(1), seq(3)), other.encode());
    let refused = problem(latest(&place.store, Access::ReadOnly).await);
    assert_eq!(refused.reason, Reason::CheckpointDamaged, "{refused}");
    assert_eq!(pick(&place, step(20)).await, Lookup::Found(2));
    assert_eq!(problem(pick(&place, step(30)).await).reason, Reason::CheckpointDamaged);
    place.mark_damaged(1, 3);
    assert_eq!(pick(&place, Selector::Latest).await, Lookup::Found(2));
}

#[tokio::test]
async fn a_collector_keeps_what_it_may_reach_until_somebody_gave_it_up() {
    let place = Place::new();
    place.fence(1);
    for s in 1..=3 {
        place.whole_commit(1, s);
    }
    place.write(&Key::Commit(generation(1), seq(2)), "garbage");
    let decisions = read_decisions(&place.store, generation(1)).await.unwrap();
    let known: Vec<_> =
        decisions.known().iter().map(|one| (one.commit.seq.get(), one.unreadable, one.created_at)).collect();
    // Not made before the next newer one, as far as anybody knows.
    assert_eq!(known, [(3, false, time(1003)), (2, true, time(1003)), (1, false, time(1001))]);
    let counted = &decisions.counted[1];
    assert_eq!(counted.commit, CommitRef::unreadable(generation(1), seq(2), b"garbage"));
    let (reached, why) = reach(&place.store, counted).await.unwrap();
    let why = why.unwrap();
    assert!(!reached.whole && why.reason == Reason::CheckpointDamaged, "{why}");
    for part in [Key::Commit(generation(1), seq(2)).to_string().as_str(), "checkpoint verify PIPELINE 1-2"] {
        assert!(why.message.contains(part), "{why}");
    }

    // Retired when it was whole: its tombstone says what it was, whatever its key holds since.
    place.retire(1, 2, 1);
    let decisions = read_decisions(&place.store, generation(1)).await.unwrap();
    assert_eq!(decisions.known().len(), 2);
    assert_eq!(decisions.landed[0].commit(), commit_ref(1, 2));
    let counted = decisions.find(&commit_ref(1, 2)).unwrap();
    assert!(!reach_of_retired(&place.store, counted).await.unwrap().whole);
}
