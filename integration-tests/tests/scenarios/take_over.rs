//! Scenarios 22 and 29: a location changes its owner while the old one is alive.

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE},
    wait,
};

use crate::pair::{HEIR, checkpoint_all, owner_and, push};

/// Neither its coordinator nor anybody else pulls for the heir while its location is taken over.
async fn owner_and_heir() -> (Cluster, Cluster) {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    heir.client.stop_standby(HEIR).await.unwrap();
    (owner, heir)
}

fn request(yes: bool) -> v1::TakeOverRequest {
    v1::TakeOverRequest { pipeline: HEIR.to_owned(), validate_only: !yes, ..Default::default() }
}

async fn pull_heir(heir: &Cluster) -> v1::Round {
    let request = v1::StartPullRequest { pipeline: HEIR.to_owned(), standby: Some(true), ..Default::default() };
    let round = heir.client.start_pull(request).await.unwrap();
    heir.client.wait_round(&round.id).await.unwrap()
}

/// Nothing that was acknowledged is lost, and the heir goes on from its newest.
async fn goes_on_from(heir: &Cluster, steps: &[u64]) {
    let mut listed: Vec<u64> =
        heir.client.list_checkpoints(HEIR, 10).await.unwrap().iter().map(|checkpoint| checkpoint.step).collect();
    listed.reverse();
    assert_eq!(listed, steps);
    let pulled = pull_heir(heir).await;
    assert_eq!((pulled.phase(), pulled.step), (RoundPhase::Installed, steps.last().copied()), "{:?}", pulled.problem);
    checkpoint_all(heir, 77);
    let pushed = push(heir, HEIR).await;
    assert_eq!(pushed.phase(), RoundPhase::Committed, "{:?}", pushed.problem);
    assert_eq!((pushed.generation, pushed.seq), (2, 1));
}

/// From here on the owner is to be pushed by itself, in an hour.
async fn schedule(owner: &Cluster) {
    let hour = prost_types::Duration { seconds: 3600, nanos: 0 };
    let request = v1::UpdatePipelineRequest {
        pipeline: PIPELINE.to_owned(),
        spec: Some(v1::PipelineSpec { push_interval: Some(hour), ..owner.spec(PIPELINE) }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["push_interval".to_owned()] }),
        ..Default::default()
    };
    owner.client.update_pipeline(request).await.unwrap();
    wait::until("the first look found nothing new", || async {
        let pipeline = owner.client.get_pipeline(PIPELINE).await.unwrap();
        let next = pipeline.push_schedule.and_then(|schedule| schedule.next_time).map_or(0, |next| next.seconds);
        if next > chrono::Utc::now().timestamp() + 1800 { Ok(()) } else { Err("it is due") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_take_over_fences_the_living_owner_and_loses_nothing_it_acknowledged() {
    let (owner, heir) = owner_and_heir().await;
    schedule(&owner).await;
    // A standby follows and pushes nothing.
    let pulled = pull_heir(&heir).await;
    assert_eq!((pulled.phase(), pulled.step), (RoundPhase::Installed, Some(20)));
    let refused =
        heir.client.start_push(v1::StartPushRequest { pipeline: HEIR.to_owned(), ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().reason(), "NOT_OWNER");

    let asked = heir.client.take_over(request(false)).await.unwrap();
    assert_eq!((asked.previous_owner_name.as_str(), asked.previous_generation, asked.generation), (PIPELINE, 1, 2));
    assert_eq!(asked.take_over, "", "nothing was done");
    checkpoint_all(&owner, 25);
    let newest = owner.pushed().await;

    let taken = heir.client.take_over(request(true)).await.unwrap();
    assert_eq!((taken.generation, taken.previous_owner_name.as_str()), (2, PIPELINE));
    assert_eq!(taken.newest.unwrap().round, newest.id);
    assert_eq!(taken.pipeline.unwrap().generation, 2);

    checkpoint_all(&owner, 30);
    let fenced = push(&owner, PIPELINE).await;
    let problem = fenced.problem.unwrap();
    assert_eq!((fenced.phase, problem.reason.as_str()), (RoundPhase::Failed.into(), "FENCED"));
    let pipeline = owner.client.get_pipeline(PIPELINE).await.unwrap();
    assert!(pipeline.fenced.is_some());
    assert_eq!(pipeline.push_schedule, None, "nothing is pushed by itself any more");
    let again = owner.client.start_push(v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..Default::default() });
    assert_eq!(again.await.unwrap_err().reason(), "FENCED");

    goes_on_from(&heir, &[10, 20, 25]).await;
    // Who and why stand in the audit trail.
    let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let trail = heir.client.list_audit_events(filter, 1000).await.unwrap();
    let phases: Vec<&str> =
        trail.iter().filter(|event| event.action.contains("take_over")).map(|event| event.to_phase.as_str()).collect();
    assert_eq!(phases, ["preparing", "fencing", "basing", "adopting", "done"]);
    assert_eq!(trail.iter().find(|event| event.to_phase == "preparing").unwrap().actor, "scenario");
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_commit_that_landed_unheard_before_the_base_counts_for_both() {
    let (owner, heir) = owner_and_heir().await;
    checkpoint_all(&owner, 30);
    // The commit lands, but its answer is held back, as is every further request for its key.
    let key = "orders/commits/00000000000000000001-00000000000000000003.json";
    let held = owner.s3.faults().add(FaultRule::new(FaultAction::HangAfterWrite).method("PUT").key_prefix(key));
    let unheard = owner.start_push().await;
    wait::until("the commit has landed", || async {
        let keys = owner.s3.admin().keys(BUCKET, key).unwrap();
        if keys.is_empty() { Err("not yet") } else { Ok(()) }
    })
    .await;
    let taken = heir.client.take_over(request(true)).await.unwrap();
    assert_eq!(taken.newest.unwrap().round, unheard.id);
    assert!(owner.s3.faults().remove(held));
    let ended = owner.client.wait_round(&unheard.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Committed, "the base includes it: {:?}", ended.problem);
    goes_on_from(&heir, &[10, 20, 30]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_commit_that_lands_after_the_base_never_counts() {
    let (owner, heir) = owner_and_heir().await;
    checkpoint_all(&owner, 30);
    let key = "orders/commits/00000000000000000001-00000000000000000003.json";
    let held = owner.s3.faults().add(FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(key));
    let late = owner.start_push().await;
    owner.round_when(&late.id, "the commit is being put", |round| round.phase() == RoundPhase::Committing).await;
    let taken = heir.client.take_over(request(true)).await.unwrap();
    assert_ne!(taken.newest.unwrap().round, late.id);
    assert!(owner.s3.faults().remove(held));
    let ended = owner.client.wait_round(&late.id).await.unwrap();
    let reason = ended.problem.as_ref().map(|problem| problem.reason.as_str());
    assert_eq!((ended.phase(), reason), (RoundPhase::Failed, Some("FENCED")));
    goes_on_from(&heir, &[10, 20]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_coordinator_killed_between_fence_and_base_goes_on_with_the_same_fence() {
    let (owner, mut heir) = owner_and_heir().await;
    // The fence lands, its answer doesn't come.
    let key = "orders/fences/00000000000000000002.json";
    let held = owner
        .s3
        .faults()
        .add(FaultRule::new(FaultAction::HangAfterWrite).method("PUT").key_prefix(key).access_key(COORDINATOR_KEY));
    let mut asked = request(true);
    asked.request_id = "0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11".to_owned();
    let waiting = tokio::spawn({
        let (client, asked) = (heir.client.clone(), asked.clone());
        async move { client.take_over(asked).await }
    });
    wait::until("the fence stands", || async {
        let keys = owner.s3.admin().keys(BUCKET, key).unwrap();
        if keys.is_empty() { Err("not yet") } else { Ok(()) }
    })
    .await;
    heir.kill_coordinator();
    assert!(waiting.await.unwrap().is_err(), "whoever waited was not told");
    assert!(owner.s3.faults().remove(held));
    heir.start_coordinator().await;
    // The same call tells how it ended: the same take-over, the same generation.
    let taken = wait::until("the take-over has ended", || async {
        heir.client.take_over(asked.clone()).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(taken.generation, 2);
    let fences = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
    assert_eq!(fences.len(), 3, "{fences:?}");
    goes_on_from(&heir, &[10, 20]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_take_over_that_can_not_ask_the_location_says_so_and_writes_nothing() {
    let (owner, heir) = owner_and_heir().await;
    let fault = owner.s3.faults().add(FaultRule::new(FaultAction::SlowDown).access_key(COORDINATOR_KEY));
    let refused = heir.client.take_over(request(true)).await.unwrap_err();
    assert!(["STORE_THROTTLED", "STORE_UNAVAILABLE"].contains(&refused.reason()), "{refused}");
    assert!(owner.s3.faults().remove(fault));
    let fences = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
    assert_eq!(fences.len(), 1, "{fences:?}");
    checkpoint_all(&owner, 30);
    owner.pushed().await;
}
