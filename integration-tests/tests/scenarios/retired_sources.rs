//! G5 and R8 with real processes: the owner of a location retires and sweeps what somebody else pulls, where no pin keeps it. The pull goes on with another checkpoint, in the same round and for
//! every host; what was asked for by its id is that or nothing.

use lockstep_client::v1::{self, ParticipantPhase, PullSource, RoundPhase, start_pull_request::Selector};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, Cluster, Options, PIPELINE, agent_key},
    wait,
};

use crate::{
    garbage::{AT_ONCE, cluster},
    pair::{HEIR, assert_same_state, beside, checkpoint_all},
    standby::{holds, rounds},
};

/// An owner that keeps its newest checkpoint only.
async fn owner() -> Cluster {
    let owner = cluster(&AT_ONCE, Some((1, 0))).await;
    push(&owner, 10).await;
    owner
}

async fn push(owner: &Cluster, step: u64) -> v1::Round {
    checkpoint_all(owner, step);
    owner.pushed().await
}

/// Half way through this pull, when all hosts but one have staged, the owner has pushed this step, retired whatever is older, and swept it.
async fn retired_half_way(owner: &Cluster, heir: &Cluster, pull: impl Future<Output = String>, step: u64) -> v1::Round {
    let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("GetObject");
    let held = owner.s3.faults().add(hang.key_contains("/data-"));
    let round = pull.await;
    heir.round_when(&round, "all but one have staged", |round| {
        let staged = |p: &&v1::Participant| p.phase() == ParticipantPhase::Staged;
        round.participants.iter().filter(staged).count() == 2
    })
    .await;
    push(owner, step).await;
    let collected = lockstep(owner, &["gc", PIPELINE]);
    assert_eq!(collected.code, 0, "{collected:?}");
    assert_ne!(collected.document["collection"]["swept"], 0, "{collected:?}");
    owner.s3.faults().remove(held);
    heir.client.wait_round(&round).await.unwrap()
}

/// Why the round went from one phase to another, once for each time.
async fn causes(heir: &Cluster, round: &v1::Round, from: &str, to: &str) -> Vec<String> {
    let trail = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let trail = heir.client.list_audit_events(trail, 1000).await.unwrap();
    let is_it = |event: &&v1::AuditEvent| {
        event.round == round.id && event.host_idx.is_none() && event.from_phase == from && event.to_phase == to
    };
    trail.iter().filter(is_it).map(|event| event.cause.clone()).collect()
}

fn attempts(round: &v1::Round) -> Vec<u32> {
    round.participants.iter().map(|p| p.attempt).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_what_its_owner_retires_while_it_is_pulled_from_a_read_location_is_chosen_anew_unless_it_was_named() {
    let owner = owner().await;
    let heir = beside(&owner, Options::default()).await;
    let spec = v1::PipelineSpec {
        location: Some(owner.location(HEIR)),
        read_location: Some(owner.location(PIPELINE)),
        ..heir.spec(HEIR)
    };
    heir.client.create_pipeline(spec).await.unwrap();
    let request =
        || v1::StartPullRequest { pipeline: HEIR.to_owned(), fail_if_none: Some(true), ..Cluster::pull_request() };
    let start = async |request| heir.client.start_pull(request).await.unwrap().id;

    let named = push(&owner, 20).await.id;
    let by_id = v1::StartPullRequest { selector: Some(Selector::Checkpoint(named.clone())), ..request() };
    let failed = retired_half_way(&owner, &heir, start(by_id), 30).await;
    let problem = failed.problem.clone().unwrap();
    assert_eq!((failed.phase(), problem.reason.as_str()), (RoundPhase::Failed, "CHECKPOINT_NOT_FOUND"));
    assert_eq!(problem.metadata["checkpoint"], named);
    assert!(problem.message.contains("was retired by its owner while it was pulled"), "{problem:?}");
    assert!(heir.hosts.iter().all(|host| host.checkpoints().is_empty()), "nothing was installed");

    let pulled = retired_half_way(&owner, &heir, start(request()), 40).await;
    assert_eq!(
        (pulled.phase(), pulled.source(), pulled.step),
        (RoundPhase::Installed, PullSource::ReadLocation, Some(40))
    );
    assert_eq!((attempts(&pulled), &pulled.problem), (vec![2, 2, 2], &None));
    assert_same_state(&heir, &owner);
    assert!(heir.hosts.iter().all(|host| host.checkpoints().len() == 1), "of the retired one nothing is left");
    let why = causes(&heir, &pulled, "transferring", "resolving").await;
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(why[0].contains("host 1, attempt 1: CHECKPOINT_NOT_FOUND: checkpoint"), "{why:?}");
    assert!(why[0].contains("was retired by its owner while it was pulled"), "{why:?}");
    let pins =
        owner.s3.requests().into_iter().filter(|request| {
            request.method == "PUT" && request.key.as_deref().is_some_and(|key| key.contains("/pins/"))
        });
    assert_eq!(pins.count(), 0, "a read location is never written");
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_a_standby_that_may_not_pin_goes_on_with_the_newer_checkpoint_in_the_same_pull() {
    let owner = owner().await;
    let denied = FaultRule::new(FaultAction::AccessDenied).method("PUT").key_contains("/pins/standby-");
    owner.s3.faults().add(denied);
    let heir = beside(&owner, Options::default()).await;
    let spec = v1::PipelineSpec {
        initial: v1::Initial::Standby.into(),
        location: Some(owner.location(PIPELINE)),
        pull_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..heir.spec(HEIR)
    };
    heir.client.create_pipeline(spec).await.unwrap();
    holds(&heir, 10).await;

    let by_itself = async {
        push(&owner, 20).await;
        wait::until("the standby pulls step 20", || async {
            let last = rounds(&heir).await.pop().ok_or("no pull")?;
            if last.step == Some(20) { Ok(last.id) } else { Err("another one") }
        })
        .await
    };
    let pulled = retired_half_way(&owner, &heir, by_itself, 30).await;
    assert_eq!((pulled.phase(), pulled.step, attempts(&pulled)), (RoundPhase::Installed, Some(30), vec![2, 2, 2]));
    assert_eq!(holds(&heir, 30).await.failures, 0);
    assert_same_state(&heir, &owner);
    let all = rounds(&heir).await;
    assert!(all.iter().all(|round| round.phase() == RoundPhase::Installed), "{all:?}");
    assert_eq!(causes(&heir, &pulled, "transferring", "resolving").await.len(), 1);
    assert_eq!(owner.s3.admin().keys(BUCKET, "orders/pins/").unwrap(), Vec::<String>::new());
}
