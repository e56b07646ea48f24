//! The pin that a standby's pull puts, when two replicas drive it one after the other and the first doesn't know yet.

use std::time::Duration;

use lockstep_coordinator::{
    dispatch::DispatchOptions,
    store::{Caller, NewPipeline, PipelineRow, RoundRecord},
};
use lockstep_devkit::{
    FaultAction, FaultRule,
    s3::{S3Options, S3Server},
};
use lockstep_protocol::{
    commit::CommitRef,
    id::Generation,
    pin::Pin,
    problem::Reason,
    round::{Kind, Phase, PullRequest},
    tombstone::Tombstone,
};

use crate::{
    agent::Play,
    rig::{Rig, latest},
};

fn alice() -> Caller {
    Caller { actor: "alice".to_owned(), ..Caller::default() }
}

const KEYS: [&str; 3] = ["lockstep", "first", "second"];

async fn server() -> S3Server {
    let credentials = KEYS.map(|key| (key.to_owned(), format!("{key}-secret")));
    let options =
        S3Options { buckets: vec!["acme".to_owned()], credentials: credentials.into(), ..S3Options::default() };
    S3Server::start(options).await.unwrap()
}

/// A location with so many checkpoints of an owner that this database has forgotten, and a standby on it that doesn't follow by itself. The newest comes last.
async fn standby(rig: &Rig, checkpoints: usize) -> (PipelineRow, Vec<CommitRef>) {
    let owner = rig.replica("owner");
    let orders = rig.pipeline("orders").await;
    let mut commits = Vec::new();
    while commits.len() < checkpoints {
        let pushed = rig.ended(rig.start_push(&orders).await).await;
        assert_eq!(pushed.round.problem, None);
        commits.push(rig.store.get_pipeline(&orders.id.into()).await.unwrap().last_commit.unwrap().commit);
    }
    rig.store.delete_pipeline(&orders.id.into(), None, &alice()).await.unwrap();
    owner.stop().await;
    let mut new = rig.new_pipeline("orders", &Rig::location());
    new.spec.initial = lockstep_protocol::spec::Initial::Standby;
    let heir = rig.store.create_pipeline(NewPipeline { fence_bytes: None, ..new }, &alice()).await.unwrap().into_row();
    rig.store.stop_standby(&heir.id.into(), &alice()).await.unwrap();
    (heir, commits)
}

fn tombstone(heir: &PipelineRow, commit: CommitRef) -> Tombstone {
    Tombstone { pipeline: heir.id, commit, retired_in: Generation::FIRST, retired_at: chrono::DateTime::UNIX_EPOCH }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_has_lost_a_pull_takes_no_pin_away_from_the_one_that_drives_it() {
    let server = server().await;
    let mut rig = Rig::on(&server, 2, 4).await;
    let (heir, commits) = standby(&rig, 1).await;
    let pins = || server.admin().keys("acme", "orders/pins/").unwrap();

    // The first has put its pin, and is kept from seeing whether the checkpoint was retired. It renews no lease, as a process that sleeps.
    let looks = FaultRule::new(FaultAction::Hang).access_key("first").operation("GetObject").key_contains("/retired/");
    let looks = server.faults().add(looks);
    rig.connect_as(&server, "first").await;
    let asleep = Duration::from_secs(3600);
    let _first = rig.replica_with(DispatchOptions { renew_every: asleep, poll_every: asleep, ..Rig::options("first") });
    let round = rig.start_pull(&heir, PullRequest { standby: true, ..latest() }).await;
    let term = rig.until(round, |record| record.lease_owner.as_deref() == Some("first")).await.round.term;
    server
        .log()
        .wait_for(1, |request| {
            request.access_key.as_deref() == Some("first") && request.method == "PUT" && request.finished
        })
        .await;

    // The second claims the pull, pins, sees no tombstone, and pulls.
    rig.agents[0].plays([Play::Hold]);
    rig.connect_as(&server, "second").await;
    let second = rig.replica("second");
    rig.agents[0].called("pull").await;
    let driven = rig.store.get_round(round).await.unwrap();
    assert!(driven.round.term > term && driven.lease_owner.as_deref() == Some("second"), "{driven:?}");

    // The owner, who had listed pins before there was one, retires the checkpoint. The first sees that, and takes its pin away.
    let tombstone = tombstone(&heir, commits[0]);
    server.admin().put_raw("acme", &format!("orders/{}", tombstone.key()), tombstone.encode()).unwrap();
    server.faults().remove(looks);
    server
        .log()
        .wait_for(1, |request| {
            request.access_key.as_deref() == Some("first") && request.method == "DELETE" && request.finished
        })
        .await;
    assert_eq!(pins().len(), 1, "what the second one pulls stays pinned, so that no sweep takes it away: {:?}", pins());

    // When it is over, both are gone.
    rig.cancel(round).await;
    assert_eq!(rig.ended(round).await.round.phase, Phase::Cancelled);
    server
        .log()
        .wait_for(1, |request| {
            request.access_key.as_deref() == Some("second") && request.method == "DELETE" && request.finished
        })
        .await;
    second.stop().await;
    assert_eq!(pins(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_has_not_kept_its_checkpoint_goes_when_another_one_is_chosen_and_that_one_is_pinned() {
    let server = server().await;
    let rig = Rig::on(&server, 2, 4).await;
    let (heir, commits) = standby(&rig, 2).await;
    let pinned = || -> Vec<CommitRef> {
        let keys = server.admin().keys("acme", "orders/pins/").unwrap();
        let read = |key: &String| server.admin().read("acme", key).unwrap();
        keys.iter().map(|key| Pin::parse(key.strip_prefix("orders/").unwrap(), &read(key)).unwrap().commit).collect()
    };
    let replica = rig.replica("one");
    // Host 0 misses an object once its checkpoint is retired; host 1 is held with what is chosen instead.
    rig.agents[0].plays([Play::Hold]);
    rig.agents[1].plays([Play::Well, Play::Hold]);
    let round = rig.start_pull(&heir, PullRequest { standby: true, ..latest() }).await;
    rig.agents[0].called("pull").await;
    assert_eq!(pinned(), [commits[1]]);
    let tombstone = tombstone(&heir, commits[1]);
    server.admin().put_raw("acme", &format!("orders/{}", tombstone.key()), tombstone.encode()).unwrap();
    rig.agents[0].fail(Reason::CheckpointDamaged);

    let anew = |record: &RoundRecord| {
        record.round.phase == Phase::Transferring && record.round.participants[1].attempt.get() == 2
    };
    let record = rig.until(round, anew).await;
    let Kind::Pull(pull) = &record.round.kind else { panic!("a push") };
    assert_eq!((pull.resolved.as_ref().unwrap().commit, &pull.retired), (Some(commits[0]), &vec![commits[1]]));
    assert_eq!(pinned(), [commits[0]], "the sweep may have the other one");
    rig.agents[1].called_in("pull", 2).await;
    rig.agents[1].release();
    let record = rig.ended(round).await;
    assert_eq!((record.round.phase, record.round.problem), (Phase::Installed, None));
    let causes = rig.causes(round).await;
    assert!(causes.iter().any(|cause| cause.contains("host 0, attempt 1: CHECKPOINT_NOT_FOUND")), "{causes:?}");
    // The round is over before its farewell is, which a replica that stops leaves to whoever comes next.
    let mut deletes = 0;
    while !pinned().is_empty() {
        deletes += 1;
        server.log().wait_for(deletes, |request| request.method == "DELETE" && request.finished).await;
    }
    replica.stop().await;
}
