//! What planning a push finds out before any order is sent.

use std::sync::atomic::AtomicU32;

use lockstep_bucket::{
    MemoryBuckets,
    memory::fault::{Fault, FaultRule},
};
use lockstep_protocol::{
    commit::CommitRef,
    id::PipelineId,
    key::Key,
    problem::{Problem, Reason},
    round::{Event, Round, WantedCut},
};

use super::{PushPlan, Right, fixture::*, plan_push};

fn ours() -> MemoryBuckets {
    let buckets = buckets();
    fence(&buckets, &own(), 1, pipeline());
    buckets
}

fn even() -> FakeAgents {
    FakeAgents::holding([&[3, 4], &[4, 5], &[4]])
}

async fn plan(buckets: &MemoryBuckets, agents: FakeAgents, round: &Round) -> Result<PushPlan, Problem> {
    plan_push(&context(buckets, agents), round).await
}

#[tokio::test]
async fn the_newest_common_step_is_pushed_and_the_newest_commit_is_the_parent() {
    let buckets = ours();
    let parent = commit(&buckets, &own(), 1, 2);
    let plan = plan(&buckets, even(), &push(2, WantedCut::Newest, Some(parent))).await.unwrap();
    assert_eq!((plan.parent, &plan.full_send), (Some(parent), &None));
    let Event::Planned { hosts, step: planned, .. } = plan.into_event() else { panic!("not planned") };
    assert_eq!(planned, step(4));
    assert_eq!(
        hosts.iter().map(|host| host.local_checkpoint).collect::<Vec<_>>(),
        [0, 1, 2].map(|idx| Some(local_id(idx, 4)))
    );
}

#[tokio::test]
async fn hosts_without_a_common_step_are_told_apart() {
    let problem =
        plan(&ours(), FakeAgents::holding([&[3], &[4], &[]]), &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::NoCommonCheckpoint);
    assert_eq!(problem.metadata["host2_steps"], "none");
}

#[tokio::test]
async fn a_key_that_another_round_holds_means_that_the_database_is_behind() {
    let buckets = ours();
    commit(&buckets, &own(), 1, 2);
    let problem = plan(&buckets, even(), &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::DatabaseBehind);
    assert_eq!(problem.metadata["other_round"], round_of(1).to_string());
    // So does a later one, though this round's own key is free.
    buckets.tamper("acme", &own().full_key(&Key::Commit(generation(1), seq(1)).to_string()), None);
    commit(&buckets, &own(), 3, 2);
    let problem = plan(&buckets, even(), &push(2, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::DatabaseBehind);
}

#[tokio::test]
async fn an_emptied_or_foreign_location_is_no_place_to_push_to() {
    let empty = buckets();
    let problem = plan(&empty, even(), &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::StoreNotFound);
    assert!(problem.metadata["key"].starts_with("own/fences/"), "{problem:?}");
    fence(&empty, &own(), 1, PipelineId::new(uuid(99)));
    let problem = plan(&empty, even(), &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::LocationOwned);
    assert!(problem.message.contains("stranger") && problem.message.contains("orders"), "{}", problem.message);
}

#[tokio::test]
async fn a_taken_over_location_is_fenced_and_its_base_is_finished_only_by_who_may_write() {
    let buckets = ours();
    let last = commit(&buckets, &own(), 1, 2);
    fence(&buckets, &own(), 2, PipelineId::new(uuid(99)));
    let round = push(2, WantedCut::Newest, Some(last));
    let mut reading = context(&buckets, even());
    reading.right = Right::Read;
    let problem = plan_push(&reading, &round).await.unwrap_err();
    assert_eq!(problem.reason, Reason::TakeOverInProgress);
    assert!(!holds(&buckets, &own(), &Key::FenceBase(generation(2))));
    let problem = plan(&buckets, even(), &round).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Fenced);
    assert!(holds(&buckets, &own(), &Key::FenceBase(generation(2))));
}

#[tokio::test]
async fn trouble_with_the_store_is_told_and_nothing_is_planned() {
    for (fault, reason, status) in [
        (Fault::Deny, Reason::StoreDenied, Some("403")),
        (Fault::FailBefore, Reason::StoreUnavailable, Some("503")),
        (Fault::LandLate, Reason::StoreUnavailable, None),
    ] {
        let buckets = ours();
        buckets.inject(FaultRule::new(fault).key("own/commits"));
        let problem = plan(&buckets, even(), &push(1, WantedCut::Newest, None)).await.unwrap_err();
        assert_eq!((problem.reason, problem.metadata.get("http_status").map(String::as_str)), (reason, status));
        assert_eq!(problem.metadata["bucket"], "acme");
    }
}

#[tokio::test]
async fn a_base_that_is_of_no_use_leads_to_a_full_push_and_not_to_an_error() {
    let buckets = ours();
    let base = commit(&buckets, &own(), 1, 2);
    let round = push(2, WantedCut::Newest, Some(base));
    put(&buckets, &own(), &Key::Damaged(generation(1), seq(1)), b"{}".to_vec());
    let damaged = plan(&buckets, even(), &round).await.unwrap();
    assert!(damaged.full_send.unwrap().message.contains("marked damaged"));
    assert_eq!(damaged.parent, None);
    buckets.tamper("acme", &own().full_key(&base.key().to_string()), None);
    let gone = plan(&buckets, even(), &round).await.unwrap();
    assert!(gone.full_send.unwrap().message.contains("is gone"));
}

#[tokio::test]
async fn a_replica_that_remembers_the_base_asks_less_and_finds_out_the_same() {
    type Happens = fn(&MemoryBuckets, &CommitRef);
    let remove = |buckets: &MemoryBuckets, key: &Key| {
        buckets.tamper("acme", &own().full_key(&key.to_string()), None);
    };
    let nothing: Happens = |_, _| {};
    let later: Vec<(&str, Happens)> = vec![
        ("nothing", nothing),
        ("another round took the seq", |buckets, _| _ = commit(buckets, &own(), 2, 4)),
        ("a later round committed", |buckets, _| _ = commit(buckets, &own(), 5, 4)),
        ("a stranger's fence", |buckets, _| fence(buckets, &own(), 2, PipelineId::new(uuid(99)))),
        ("a stranger's fence and base", |buckets, last| {
            fence(buckets, &own(), 2, PipelineId::new(uuid(99)));
            base(buckets, &own(), 2, Some(*last));
        }),
        ("the base was marked damaged", |buckets, last| {
            put(buckets, &own(), &Key::Damaged(last.generation, last.seq), b"{}".to_vec());
        }),
        ("the base was retired", |buckets, last| {
            put(buckets, &own(), &Key::Retired(last.generation, last.seq), b"{}".to_vec());
        }),
        ("the base has other bytes", |buckets, last| put(buckets, &own(), &last.key(), b"{}".to_vec())),
    ];
    for (what, happens) in later {
        let buckets = ours();
        let last = commit(&buckets, &own(), 1, 2);
        let round = push(2, WantedCut::Newest, Some(last));
        let warm = context(&buckets, even());
        let first = plan_push(&warm, &round).await.unwrap();
        assert!(first.base.is_some());
        happens(&buckets, &last);
        let again = plan_push(&warm, &round).await;
        assert_eq!(again, plan(&buckets, even(), &round).await, "{what}");
        assert_eq!(again == Ok(first), what == "nothing", "{what}: {again:?}");
    }
    for key in [Key::Fence(generation(1)), Key::Commit(generation(1), seq(1))] {
        let buckets = ours();
        let last = commit(&buckets, &own(), 1, 2);
        let round = push(2, WantedCut::Newest, Some(last));
        let warm = context(&buckets, even());
        plan_push(&warm, &round).await.unwrap();
        remove(&buckets, &key);
        assert_eq!(plan_push(&warm, &round).await, plan(&buckets, even(), &round).await, "{key} is gone");
    }
    // Four answers are enough when nothing happened: the fifth request would be refused.
    let buckets = ours();
    let last = commit(&buckets, &own(), 1, 2);
    let round = push(2, WantedCut::Newest, Some(last));
    let warm = context(&buckets, even());
    let first = plan_push(&warm, &round).await.unwrap();
    buckets.inject(FaultRule::new(Fault::Deny).skip(4));
    assert_eq!(plan_push(&warm, &round).await, Ok(first));
    assert_eq!(plan_push(&warm, &round).await.unwrap_err().reason, Reason::StoreDenied);
}

#[tokio::test]
async fn swapped_hosts_are_told_both_and_never_sorted_out() {
    let mut agents = even();
    let (first, second) = (agents.0[0].described.slot, agents.0[1].described.slot);
    (agents.0[0].described.slot, agents.0[1].described.slot) = (second, first);
    let problem = plan(&ours(), agents, &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::HostInfoMismatch);
    assert_ne!(problem.metadata["ordered"], problem.metadata["own"]);

    let mut agents = even();
    agents.0[2].described.pipeline = "payments".to_owned();
    let problem = plan(&ours(), agents, &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::PipelineMismatch);
    assert_eq!((problem.metadata["own"].as_str(), problem.metadata["host_idx"].as_str()), ("payments", "2"));
    // By its id it is just as well the right one.
    let mut agents = even();
    agents.0[2].described.pipeline = pipeline().to_string();
    assert!(plan(&ours(), agents, &push(1, WantedCut::Newest, None)).await.is_ok());
}

#[tokio::test]
async fn a_silent_agent_is_asked_again_and_at_last_named() {
    let mut agents = even();
    agents.0[1].silent = AtomicU32::new(1);
    assert!(plan(&ours(), agents, &push(1, WantedCut::Newest, None)).await.is_ok());
    let mut agents = even();
    agents.0[1].silent = AtomicU32::new(u32::MAX);
    let problem = plan(&ours(), agents, &push(1, WantedCut::Newest, None)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::AgentUnreachable);
    assert_eq!((problem.metadata["host_idx"].as_str(), problem.metadata["address"].as_str()), ("1", "http://orders-1"));
}
