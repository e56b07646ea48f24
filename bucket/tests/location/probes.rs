use lockstep_bucket::{
    MemoryBuckets, Operation, conformance,
    memory::{
        Flaws,
        fault::{Fault, FaultRule},
    },
    probe,
};
use lockstep_protocol::{location::Location, problem::Reason};

fn location() -> Location {
    "s3://bucket/orders".parse().unwrap()
}

#[tokio::test]
async fn the_twin_in_memory_does_all_that_a_store_must() {
    let buckets = MemoryBuckets::new(["bucket"]);
    let results =
        conformance::run(conformance::Subject { connector: &buckets, location: &location(), wrong_secret: None }).await;
    assert_eq!(conformance::failures(&results), Vec::<String>::new());
}

#[tokio::test]
async fn each_flaw_makes_a_store_unsuitable_and_the_problem_says_what_it_did() {
    for (flaws, says) in [
        (Flaws { create_overwrites: true, ..Flaws::default() }, "answered with success, and the object is overwritten"),
        (Flaws { create_races: true, ..Flaws::default() }, "has 8 winners instead of one"),
        (Flaws { stale_listing: true, ..Flaws::default() }, "a listing right after writing"),
        (Flaws { stale_read: true, ..Flaws::default() }, "a read after a create finds nothing"),
    ] {
        let buckets = MemoryBuckets::new(["bucket"]).with_flaws(flaws);
        let problem = probe(&buckets.store(location())).await.unwrap_err();
        assert_eq!(problem.reason, Reason::LocationUnsuitable, "{problem}");
        assert!(problem.message.contains(says), "{problem}");
        assert_eq!(buckets.keys("bucket", ""), Vec::<String>::new(), "nothing is left");
    }
}

#[tokio::test]
async fn conformance_finds_the_same_flaws() {
    let buckets = MemoryBuckets::new(["bucket"]).with_flaws(Flaws { create_races: true, ..Flaws::default() });
    let subject = conformance::Subject { connector: &buckets, location: &location(), wrong_secret: None };
    let failures = conformance::failures(&conformance::run(subject).await);
    assert!(failures.iter().any(|failure| failure.starts_with("a_race_of_creates_has_one_winner")), "{failures:?}");
}

#[tokio::test]
async fn a_403_for_a_missing_key_is_denied_not_unsuitable() {
    let flaws = Flaws { missing_is_denied: true, ..Flaws::default() };
    let problem = probe(&MemoryBuckets::new(["bucket"]).with_flaws(flaws).store(location())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::StoreDenied);
    let buckets = MemoryBuckets::new(["bucket"]);
    buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::List));
    assert_eq!(probe(&buckets.store(location())).await.unwrap_err().reason, Reason::StoreDenied);
}

#[tokio::test]
async fn a_missing_bucket_is_not_found() {
    let problem = probe(&MemoryBuckets::default().store(location())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::StoreNotFound);
    assert_eq!(problem.metadata.get("s3_code").map(String::as_str), Some("NoSuchBucket"));
}
