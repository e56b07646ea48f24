//! Fail-back with one pipeline: an owner whose location was taken over restarts as a standby of it, follows, and is activated again.

use lockstep_client::v1::{self, Role, RoundKind, RoundPhase, StandbyState};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE},
    host::State,
    wait,
};

use crate::{
    activation::{request, states},
    pair::{HEIR, checkpoint_all, owner_and, push},
    standby::{holds, holds_as},
};

const SECOND: prost_types::Duration = prost_types::Duration { seconds: 1, nanos: 0 };

/// Looked at each second when it follows, and pushed by itself at this interval while it owns its location.
async fn every_second(owner: &Cluster, push_interval: Option<prost_types::Duration>) {
    let pipeline = owner.client.get_pipeline(PIPELINE).await.unwrap();
    let pull_interval = Some(SECOND);
    let spec = v1::PipelineSpec { pull_interval, push_interval, ..pipeline.spec.unwrap() };
    let request = v1::UpdatePipelineRequest {
        pipeline: PIPELINE.to_owned(),
        spec: Some(spec),
        etag: pipeline.etag,
        ..v1::UpdatePipelineRequest::default()
    };
    owner.client.update_pipeline(request).await.unwrap();
}

/// Pushes this step by the heir, with files that nobody else has; what every host then has.
async fn pushed_by_heir(heir: &Cluster, step: u64) -> Vec<State> {
    let make = |host: &lockstep_integration_tests::host::Host| {
        host.state_of(host.checkpoint(step, &[("state.bin", format!("heir {} at {step}", host.idx).as_bytes())]))
    };
    let states = heir.hosts.iter().map(make).collect();
    let round = push(heir, HEIR).await;
    assert_eq!((round.phase(), round.step), (RoundPhase::Committed, Some(step)), "{:?}", round.problem);
    states
}

async fn pushes(owner: &Cluster) -> usize {
    let filter = v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let rounds = owner.client.list_rounds(filter, 1000).await.unwrap();
    rounds.iter().filter(|round| round.kind() == RoundKind::Push).count()
}

fn activate(pipeline: &str) -> v1::ActivateRequest {
    v1::ActivateRequest { pipeline: pipeline.to_owned(), ..request() }
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_who_was_taken_over_restarts_as_a_standby_follows_and_is_activated_back() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let refused = owner.client.start_standby(PIPELINE, "").await.unwrap_err();
    assert_eq!(refused.reason(), "LOCATION_OWNED");
    let problem = refused.problem().unwrap();
    assert!(problem.message.contains("orders is no standby: it owns s3://"), "{problem:?}");
    assert!(problem.message.contains("lockstep standby activate OTHER"), "{problem:?}");
    assert_eq!((problem.metadata["generation"].as_str(), problem.metadata["newest_fence"].as_str()), ("1", "1"));

    heir.client.activate(request()).await.unwrap();
    // A branch of its own: a step that was never acknowledged, and that the heir has made as well.
    checkpoint_all(&owner, 30);
    assert_eq!(push(&owner, PIPELINE).await.problem.unwrap().reason, "FENCED");
    every_second(&owner, Some(SECOND)).await;
    let expected = pushed_by_heir(&heir, 30).await;
    owner.s3.clear_requests();
    let before = pushes(&owner).await;
    let started = lockstep(&owner, &["standby", "start", PIPELINE]);
    assert_eq!(started.code, 0, "{started:?}");
    let pipeline = owner.client.get_pipeline(PIPELINE).await.unwrap();
    assert_eq!((pipeline.generation, &pipeline.fenced, &pipeline.push_schedule), (1, &None, &None));
    assert_eq!(pipeline.standby.unwrap().state(), StandbyState::Following);
    wait::until("nothing of the abandoned branch is left", || async {
        let states = states(&owner);
        if states == expected { Ok(()) } else { Err(format!("{states:?}")) }
    })
    .await;
    holds_as(&owner, PIPELINE, 30).await;
    let expected = pushed_by_heir(&heir, 40).await;
    holds_as(&owner, PIPELINE, 40).await;
    assert_eq!(states(&owner), expected);
    wait::until("its hosts are told to wait", || async {
        match owner.client.get_pipeline(PIPELINE).await.unwrap().ready {
            Some(ready) if ready.role() == Role::Standby && ready.not_told.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // It writes there what a standby writes, and nothing else.
    let early = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    assert_eq!(owner.client.start_push(early).await.unwrap_err().reason(), "NOT_OWNER");
    let dry = lockstep(&owner, &["push", PIPELINE, "--dry-run"]);
    assert!(dry.code != 0 && dry.stderr.contains("NOT_OWNER"), "{dry:?}");
    assert_eq!(pushes(&owner).await, before, "nothing is pushed by its schedule");
    let pinned = owner.s3.requests().into_iter().filter(|request| {
        let pin = request.key.as_deref().is_some_and(|key| key.starts_with("orders/pins/standby-"));
        pin && request.method == "PUT" && request.status == Some(200)
    });
    assert!(pinned.count() >= 2, "what it pulls is another's");
    wait::until("every pin is gone", || async {
        let pins = owner.s3.admin().keys(BUCKET, "orders/pins/").unwrap();
        if pins.is_empty() { Ok(()) } else { Err(format!("{pins:?}")) }
    })
    .await;

    let done = owner.client.activate(activate(PIPELINE)).await.unwrap();
    assert_eq!((done.generation, done.previous_owner_name.as_str()), (3, HEIR));
    assert_eq!(states(&owner), expected);
    checkpoint_all(&owner, 50);
    wait::until("it is pushed by itself again", || async {
        let pipeline = owner.client.get_pipeline(PIPELINE).await.unwrap();
        if pipeline.last_committed_step == Some(50) { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    let newest = owner.client.list_checkpoints(PIPELINE, 1).await.unwrap().remove(0);
    assert_eq!((newest.step, newest.commit.unwrap().generation), (50, 3));

    // And the other way round.
    checkpoint_all(&heir, 45);
    assert_eq!(push(&heir, HEIR).await.problem.unwrap().reason, "FENCED");
    heir.client.start_standby(HEIR, "").await.unwrap();
    holds(&heir, 50).await;
    wait::until("the heir has what the owner has, and nothing else", || async {
        let (mine, theirs) = (states(&heir), states(&owner));
        let same = mine.iter().zip(&theirs).all(|(mine, theirs)| mine.iter().all(|(k, v)| theirs.get(k) == Some(v)));
        if same && mine.iter().all(|state| !state.is_empty()) { Ok(()) } else { Err(format!("{mine:?} {theirs:?}")) }
    })
    .await;
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = owner.client.list_audit_events(filter, 1000).await.unwrap();
    let turned: Vec<_> = trail.iter().filter(|event| event.action == "pipeline_claim").collect();
    assert_eq!(turned.last().map(|event| event.to_phase.as_str()), Some("standby"), "{turned:?}");
    assert!(turned.last().unwrap().cause.contains("generation 2 took"), "it says what happened: {turned:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_an_owner_that_has_not_noticed_its_fence_asks_the_bucket_before_it_follows() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    every_second(&owner, None).await;
    // Its hosts hold the newest already, and newer ones beside it that nobody has.
    checkpoint_all(&owner, 30);
    // A fence without its base decides nothing.
    let base = "orders/fences/00000000000000000002.base.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(base).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let activating = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(request()).await }
    });
    wait::until("the fence stands", || async {
        let fences = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
        if fences.iter().any(|key| key.ends_with("2.json")) { Ok(()) } else { Err(format!("{fences:?}")) }
    })
    .await;
    let early = owner.client.start_standby(PIPELINE, "").await.unwrap_err();
    assert_eq!(early.reason(), "TAKE_OVER_IN_PROGRESS", "{early}");
    assert!(owner.s3.faults().remove(held));
    activating.await.unwrap().unwrap();
    assert_eq!(owner.client.get_pipeline(PIPELINE).await.unwrap().fenced, None, "nobody has told it");

    let started = owner.client.start_standby(PIPELINE, "").await.unwrap();
    assert_eq!((started.generation, started.fenced), (1, None));
    wait::until("only what counts is left", || async {
        let (mine, theirs) = (states(&owner), states(&heir));
        if mine == theirs { Ok(()) } else { Err(format!("{mine:?}, not {theirs:?}")) }
    })
    .await;
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = owner.client.list_audit_events(filter, 1000).await.unwrap();
    let of = |action: &str| trail.iter().filter(|event| event.action == action).count();
    assert_eq!((of("pipeline_fenced"), of("standby_started")), (1, 1), "{trail:#?}");
    // Activated at once, before anything new was pushed.
    let done = owner.client.activate(activate(PIPELINE)).await.unwrap();
    assert_eq!((done.generation, done.previous_generation), (3, 2));
    checkpoint_all(&owner, 40);
    owner.pushed().await;
}
