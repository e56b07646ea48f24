//! Reads that are asked again: many requests come to an end where few of them fail, what is no passing failure is told at once, and writes are sent once.

use bytes::Bytes;
use lockstep_bucket::{
    Access, Connector as _, CreateOutcome, Insisting, Lookup, ObjectStore, StoreErrorKind, conformance,
    list_checkpoints,
    memory::fault::{Fault, FaultRule},
};

use crate::sample::Place;

const COMMITS: u64 = 80;

fn chain() -> Place {
    let place = Place::new();
    place.fence(1);
    for s in 1..=COMMITS {
        place.commit(1, s);
    }
    place
}

async fn insisting(place: &Place) -> std::sync::Arc<dyn ObjectStore> {
    Insisting(place.buckets.clone()).connect(place.store.location()).await.unwrap()
}

async fn lists(store: &dyn ObjectStore) -> bool {
    match list_checkpoints(store, Access::ReadOnly, usize::MAX).await {
        Ok(listed) => u64::try_from(listed.len()).unwrap() == COMMITS,
        Err(_) => false,
    }
}

#[tokio::test(start_paused = true)]
async fn eighty_commits_are_read_where_one_request_in_a_hundred_fails() {
    let (mut plain, mut insistent) = (0, 0);
    for seed in 0..5 {
        let place = chain();
        place.buckets.random_faults(seed, 0.01);
        plain += u32::from(lists(&place.store).await);
        insistent += u32::from(lists(insisting(&place).await.as_ref()).await);
    }
    assert_eq!(insistent, 5);
    assert!(plain < 5, "it never failed: nothing to insist on");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_after_four_tries_and_a_refusal_after_one() {
    for (fault, tries) in [(Fault::FailBefore, 4), (Fault::Throttle, 4), (Fault::LoseAnswer, 4), (Fault::Deny, 1)] {
        let place = chain();
        let store = insisting(&place).await;
        place.buckets.inject(FaultRule::new(fault));
        let Lookup::Unknown(error) = store.get("fences/00000000000000000001.json", 1 << 20).await else {
            panic!("known in an outage")
        };
        assert_eq!(error.kind == StoreErrorKind::Denied, fault == Fault::Deny, "{error}");
        assert_eq!(place.buckets.fault_counts(), [(fault, tries)]);
        store.list("commits/", None, 10).await.unwrap_err();
        assert!(matches!(store.head("commits/x").await, Lookup::Unknown(_)));
        store.list_multipart("").await.unwrap_err();
        assert_eq!(place.buckets.fault_counts(), [(fault, 4 * tries)]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_asked_for_once_and_a_write_whose_answer_was_lost_is_not_sent_again() {
    let place = chain();
    let store = insisting(&place).await;
    place.buckets.inject(FaultRule::new(Fault::FailBefore).key("absent").skip(1));
    assert!(matches!(store.get("absent", 1 << 20).await, Lookup::Absent));
    place.buckets.calm();
    place.buckets.inject(FaultRule::new(Fault::LoseAnswer));
    let outcome = store.create("a", Bytes::from_static(b"a")).await;
    assert!(matches!(outcome, CreateOutcome::Unknown(_)), "a second one would say that it exists: {outcome:?}");
    assert_eq!(place.buckets.fault_counts(), [(Fault::LoseAnswer, 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_insisting_store_behaves_as_the_one_behind_it() {
    let place = Place::new();
    let (connector, location) = (Insisting(place.buckets.clone()), place.store.location());
    let subject = conformance::Subject { connector: &connector, location, wrong_secret: None };
    assert_eq!(conformance::failures(&conformance::run(subject).await), Vec::<String>::new());
}
