//! What hosts are told after a pull.

use std::time::Duration;

use lockstep_coordinator::store::PipelineRow;
use lockstep_proto::v1;
use lockstep_protocol::{
    id::RoundId,
    problem::Reason,
    ready::{Role, Telling},
    round::{Phase, PullRequest},
};

use crate::{
    agent::Play,
    rig::{Rig, latest},
};

/// Until the word of the pipeline looks so.
async fn until_word(rig: &Rig, pipeline: &PipelineRow, done: impl Fn(&Telling) -> bool) -> Telling {
    let mut changes = rig.store.changes();
    let waiting = async {
        loop {
            if let Some(word) = rig.store.word_of(pipeline.id).await.unwrap().filter(&done) {
                return word;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), waiting).await {
        Ok(word) => word,
        Err(_) => panic!("still waiting: {:#?}", rig.store.word_of(pipeline.id).await),
    }
}

async fn installed(rig: &Rig, pipeline: &PipelineRow) -> RoundId {
    let round = rig.start_pull(pipeline, latest()).await;
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Installed, "{:?}", record.round.problem);
    round
}

const EVEN: [&[u64]; 3] = [&[4], &[4], &[4]];

#[tokio::test(flavor = "multi_thread")]
async fn every_host_is_told_once_all_have_installed_and_none_before() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let push = rig.start_push(&pipeline).await;
    assert_eq!(rig.ended(push).await.round.phase, Phase::Committed);
    assert_eq!(rig.store.word_of(pipeline.id).await.unwrap(), None, "a push starts no engine");
    for agent in &rig.agents {
        agent.wipe();
    }
    // One host is late.
    rig.agents[2].plays([Play::Hold]);
    let round = rig.start_pull(&pipeline, latest()).await;
    rig.until(round, |record| record.round.participants[0].phase.as_str() == "staged").await;
    assert!(rig.agents.iter().all(|agent| agent.told().is_empty()));
    rig.agents[2].release();
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Installed, "{:?}", record.round.problem);
    for agent in &rig.agents {
        let told = agent.until_told(|told| told.round == round.to_string()).await;
        assert_eq!((told.step, told.fresh, told.role), (4, false, v1::Role::Active));
        assert!(told.term > record.round.term.get(), "it fences those who drove the round");
    }
    let word = until_word(&rig, &pipeline, |word| word.told_at.is_some()).await;
    assert_eq!((word.round, word.role, word.owed().count()), (round, Role::Active, 0));
    assert!(rig.agents.iter().all(|agent| agent.calls("ready").len() == 1), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_is_told_when_it_is_back_and_shown_until_then() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[2].deaf(true);
    let round = installed(&rig, &pipeline).await;
    for agent in &rig.agents[..2] {
        agent.until_told(|told| told.round == round.to_string()).await;
    }
    let word = until_word(&rig, &pipeline, |word| word.tries >= 2).await;
    assert_eq!((word.owed().collect::<Vec<_>>(), word.told_at), (vec![2], None));
    let problem = word.hosts[2].problem.clone().unwrap();
    assert_eq!(problem.reason, Reason::AgentUnreachable);
    assert!(word.retry_at.is_some());
    // A push meanwhile changes nothing about it.
    assert_eq!(rig.ended(rig.start_push(&pipeline).await).await.round.phase, Phase::Committed);

    rig.agents[2].deaf(false);
    assert_eq!(rig.agents[2].until_told(|_| true).await.round, round.to_string());
    let word = until_word(&rig, &pipeline, |word| word.told_at.is_some()).await;
    assert!(word.hosts.iter().all(|host| host.told && host.problem.is_none()));
    assert_eq!(rig.agents[0].calls("ready").len(), 1, "who has answered is not told again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_a_killed_replica_owed_is_told_by_another() {
    let rig = Rig::new(EVEN).await;
    let first = rig.replica("first");
    let pipeline = rig.pipeline("orders").await;
    for agent in &rig.agents {
        agent.deaf(true);
    }
    let round = installed(&rig, &pipeline).await;
    // The row is there with the round's end; nobody has heard of it.
    let owed = rig.store.word_of(pipeline.id).await.unwrap().expect("it is stored with the end of the pull");
    drop(first);
    let _second = rig.replica("second");
    until_word(&rig, &pipeline, |word| word.term > owed.term).await;
    for agent in &rig.agents {
        assert_eq!(agent.told(), []);
        agent.deaf(false);
    }
    for agent in &rig.agents {
        // A call of the first one may be on its way still, and what it brings about is stored for nobody.
        let told = agent.until_told(|told| told.term > owed.term.get()).await;
        assert_eq!(told.round, round.to_string());
    }
    until_word(&rig, &pipeline, |word| word.told_at.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_pull_supersedes_what_a_host_was_not_told() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[2].deaf(true);
    let first = installed(&rig, &pipeline).await;
    rig.agents[0].until_told(|told| told.round == first.to_string()).await;
    let second = installed(&rig, &pipeline).await;
    rig.agents[0].until_told(|told| told.round == second.to_string()).await;
    rig.agents[2].deaf(false);
    rig.agents[2].until_told(|_| true).await;
    let rounds: Vec<_> = rig.agents[2].told().into_iter().map(|told| told.round).collect();
    assert_eq!(rounds, [second.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_start_is_told_too_and_a_pull_that_fails_is_not() {
    let rig = Rig::new([&[3], &[4], &[]]).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let fresh = PullRequest { fail_if_none: false, ..latest() };
    let failed = rig.ended(rig.start_pull(&pipeline, fresh).await).await;
    assert_eq!((failed.round.phase, rig.store.word_of(pipeline.id).await.unwrap()), (Phase::Failed, None));
    let discard = PullRequest { discard_local: true, ..fresh };
    let round = rig.start_pull(&pipeline, discard).await;
    assert_eq!(rig.ended(round).await.round.phase, Phase::Fresh);
    for agent in &rig.agents {
        let told = agent.until_told(|_| true).await;
        assert_eq!((told.round, told.fresh, told.role), (round.to_string(), true, v1::Role::Active));
    }
}
