//! Scenario 27, where it is the bucket that fails the last pull: what the base names is damaged or gone. No try brings that back, so the activation ends and somebody
//! chooses.

use lockstep_client::v1::{self, RoundPhase, activate_request::Selector};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE},
    wait,
};

use crate::{
    activation::{pushed, request, start_engine, states},
    pair::{HEIR, checkpoint_all, owner_and, push},
    standby::{holds, standby},
};

/// The activation is under way, its fence is held back, and the owner pushes step 30 before it stands; `damage` gets the keys that this push has written. How the activation
/// ends.
async fn activated_over(
    owner: &Cluster,
    heir: &Cluster,
    damage: impl FnOnce(&[String]),
) -> (v1::Round, lockstep_client::ClientError) {
    let fence = "orders/fences/00000000000000000002.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(fence).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let waiting = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(request()).await }
    });
    wait::until("the fence is being put", || async {
        let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        let trail = heir.client.list_audit_events(filter, 1000).await.unwrap();
        if trail.iter().any(|event| event.to_phase == "fencing") { Ok(()) } else { Err(trail.len()) }
    })
    .await;
    let keys = || owner.s3.admin().keys(BUCKET, "orders/").unwrap();
    let before = keys();
    let (newest, _) = pushed(owner, 30).await;
    let written: Vec<String> = keys().into_iter().filter(|key| !before.contains(key)).collect();
    damage(&written);
    assert!(owner.s3.faults().remove(held));
    (newest, waiting.await.unwrap().unwrap_err())
}

fn choose(selector: Selector) -> v1::ActivateRequest {
    v1::ActivateRequest { selector: Some(selector), ..request() }
}

fn fences(owner: &Cluster) -> usize {
    let keys = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
    keys.iter().filter(|key| !key.ends_with(".base.json")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_damaged_base_ends_the_activation_and_the_next_one_goes_on_from_the_checkpoint_that_is_chosen() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let before = states(&heir);
    let (newest, refused) = activated_over(&owner, &heir, |written| {
        let of_host: Vec<_> = written.iter().filter(|key| key.starts_with("orders/host1/")).collect();
        assert!(!of_host.is_empty(), "{written:?}");
        for key in of_host {
            assert!(owner.s3.admin().remove(BUCKET, key).unwrap());
        }
    })
    .await;
    // The cause, both names and the way out.
    assert_eq!(refused.reason(), "CHECKPOINT_DAMAGED", "{refused}");
    let said = refused.to_string();
    let command = format!("lockstep standby activate {HEIR} --checkpoint");
    for part in ["fenced for pipeline heir in generation 2", "which pipeline orders pushed", &newest.id, &command] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let metadata = refused.problem().unwrap().metadata.clone();
    let named = |key: &str| metadata.get(key).map_or("", String::as_str);
    assert_eq!((named("pipeline"), named("owner"), named("generation")), (HEIR, PIPELINE, "2"), "{metadata:?}");

    // Fenced, nothing started, nothing lost, and anybody who looks is told.
    let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
    let standing = pipeline.standby.unwrap();
    assert_eq!((pipeline.generation, standing.take_over.as_str()), (2, ""));
    assert_eq!(standing.activation_problem.unwrap().reason, "CHECKPOINT_DAMAGED");
    let early = v1::StartPushRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    assert_eq!(heir.client.start_push(early).await.unwrap_err().reason(), "NOT_OWNER");
    checkpoint_all(&owner, 40);
    assert_eq!(push(&owner, PIPELINE).await.problem.unwrap().reason, "FENCED");
    assert_eq!(states(&heir), before, "the hosts keep what they have");

    // The same again finds the same; an unknown choice is no choice, and writes no fence.
    assert_eq!(heir.client.activate(request()).await.unwrap_err().reason(), "CHECKPOINT_DAMAGED");
    let fenced = fences(&owner);
    let unknown = Selector::Checkpoint("0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11".to_owned());
    assert_eq!(heir.client.activate(choose(unknown)).await.unwrap_err().reason(), "CHECKPOINT_NOT_FOUND");
    assert_eq!(fences(&owner), fenced);

    let done = heir.client.activate(choose(Selector::Step(20))).await.unwrap();
    assert_eq!(done.newest.unwrap().round, newest.id, "the base names what counts, whatever is pulled");
    assert_eq!(done.pulled.map(|pulled| pulled.seq), Some(2));
    let pipeline = done.pipeline.unwrap();
    assert_eq!((pipeline.generation, pipeline.standby), (done.generation, None));
    assert_eq!(states(&heir), before);
    let started = start_engine(&heir).await;
    assert_eq!((started.phase(), started.step), (RoundPhase::Installed, Some(20)), "{:?}", started.problem);
    // Its first push is the newest from then on, and whole.
    checkpoint_all(&heir, 25);
    let first = push(&heir, HEIR).await;
    assert_eq!((first.phase(), first.generation, first.seq), (RoundPhase::Committed, done.generation, 1));
    let listed = heir.client.list_checkpoints(HEIR, 10).await.unwrap();
    assert_eq!(listed.iter().map(|checkpoint| checkpoint.step).collect::<Vec<_>>(), [25, 30, 20, 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_base_that_is_gone_ends_the_activation_and_once_it_is_restored_the_next_one_pulls_it() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    let (newest, expected) = pushed(&owner, 30).await;
    holds(&heir, 30).await;
    let base = "orders/fences/00000000000000000002.base.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(base).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let waiting = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(request()).await }
    });
    wait::until("the base is being put", || async {
        let put = |request: &lockstep_devkit::s3::RequestRecord| {
            request.method == "PUT" && request.key.as_deref() == Some(base)
        };
        if owner.s3.requests().iter().any(put) { Ok(()) } else { Err("not yet") }
    })
    .await;
    // It names this commit already.
    let key = "orders/commits/00000000000000000001-00000000000000000003.json";
    let bytes = owner.s3.admin().read(BUCKET, key).unwrap();
    assert!(owner.s3.admin().remove(BUCKET, key).unwrap());
    assert!(owner.s3.faults().remove(held));
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), "CHECKPOINT_NOT_FOUND", "{refused}");
    assert!(refused.to_string().contains(&newest.id), "{refused}");
    assert_eq!(standby(&heir).await.activation_problem.unwrap().reason, "CHECKPOINT_NOT_FOUND");

    owner.s3.admin().put_raw(BUCKET, key, bytes).unwrap();
    let done = heir.client.activate(request()).await.unwrap();
    let ids = [done.newest, done.pulled].map(|commit| commit.unwrap().round);
    assert_eq!(ids, [newest.id.clone(), newest.id.clone()]);
    assert_eq!(states(&heir), expected);
    assert_eq!(done.pipeline.unwrap().standby, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_newest_checkpoint_that_is_marked_damaged_is_refused_before_the_fence_and_the_owner_is_undisturbed() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    // Nobody follows meanwhile: what the hosts hold is what they are left with.
    heir.client.stop_standby(HEIR).await.unwrap();
    let keys = || owner.s3.admin().keys(BUCKET, "orders/host2/").unwrap();
    let before = keys();
    let (damaged, _) = pushed(&owner, 30).await;
    let key = keys().into_iter().find(|key| !before.contains(key)).unwrap();
    owner.s3.admin().flip_byte(BUCKET, &key, 0).unwrap();
    assert!(owner.verify("latest").await.checkpoint.unwrap().damaged);

    // A dry run says what the activation would, of the newest and of each choice.
    let foreseen = async |request: v1::ActivateRequest| {
        heir.client.activate(v1::ActivateRequest { validate_only: true, ..request }).await
    };
    for request in [request(), choose(Selector::Checkpoint(damaged.id.clone())), choose(Selector::Step(30))] {
        let refused = foreseen(request).await.unwrap_err();
        assert_eq!(refused.reason(), "CHECKPOINT_DAMAGED", "{refused}");
        let said = refused.to_string();
        for part in ["nothing fenced", &damaged.id, "activate heir --checkpoint"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let unknown = Selector::Checkpoint("0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11".to_owned());
    for selector in [unknown, Selector::Step(7)] {
        assert_eq!(foreseen(choose(selector)).await.unwrap_err().reason(), "CHECKPOINT_NOT_FOUND");
    }
    let foretold = foreseen(choose(Selector::Step(20))).await.unwrap();
    assert_eq!((foretold.take_over.as_str(), foretold.pulled.map(|pulled| pulled.seq)), ("", Some(2)));

    let refused = heir.client.activate(request()).await.unwrap_err();
    assert_eq!(refused.reason(), "CHECKPOINT_DAMAGED", "{refused}");
    let said = refused.to_string();
    for part in ["nothing was fenced", "which pipeline orders pushed", &damaged.id, "activate heir --checkpoint"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(fences(&owner), 1);
    let standing = standby(&heir).await;
    assert_eq!((standing.activation_problem, standing.take_over.as_str()), (None, ""));
    // The owner heals it by its next push, and then there is nothing to choose.
    let (healed, expected) = pushed(&owner, 35).await;
    assert_eq!(foreseen(request()).await.unwrap().pulled.unwrap().round, healed.id);
    assert_eq!(fences(&owner), 1, "a dry run changes nothing");
    let done = heir.client.activate(request()).await.unwrap();
    assert_eq!((done.generation, done.newest.unwrap().round), (2, healed.id));
    assert_eq!(states(&heir), expected);
    // An owner has nothing to choose.
    assert_eq!(foreseen(choose(Selector::Step(20))).await.unwrap_err().reason(), "LOCATION_OWNED");
}
