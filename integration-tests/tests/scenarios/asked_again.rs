//! Upkeep that is asked for once more with the same request id, as a caller does whose answer was lost: the same answer, also when what it was about is gone.

use lockstep_client::{ClientError, v1};
use lockstep_integration_tests::cluster::{Cluster, Options, PIPELINE};
use uuid::Uuid;

/// No grace, nothing by itself: a collection does all it may, when the test says so.
const AT_ONCE: [&str; 4] = ["--gc-grace", "0s", "--gc-interval", "0s"];

async fn pushed(cluster: &Cluster, step: u64) -> String {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("host {} at step {step}", host.idx).as_bytes())]);
    }
    cluster.pushed().await.id
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

async fn collect(cluster: &Cluster) {
    let request = v1::CollectGarbageRequest { pipeline: PIPELINE.to_owned(), ..v1::CollectGarbageRequest::default() };
    let collection = cluster.client.collect_garbage(request).await.unwrap().collection.unwrap();
    assert_eq!(collection.phase, "done", "{collection:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pin_unpin_and_delete_asked_again_give_the_same_answer_also_when_pin_and_checkpoint_are_gone() {
    let options = Options { hosts: 2, coordinator_flags: AT_ONCE.to_vec(), ..Options::default() };
    let cluster = Cluster::with(options).await;
    let (old, _, _) = (pushed(&cluster, 10).await, pushed(&cluster, 20).await, pushed(&cluster, 30).await);
    let pipeline = || PIPELINE.to_owned();

    let pin = v1::PinCheckpointRequest {
        pipeline: pipeline(),
        checkpoint: "10".to_owned(),
        name: "audit".to_owned(),
        request_id: new_id(),
    };
    let pinned = cluster.client.pin_checkpoint(pin.clone()).await.unwrap();
    let unpin = v1::UnpinCheckpointRequest { pipeline: pipeline(), pin: "audit".to_owned(), request_id: new_id() };
    let unpinned = cluster.client.unpin_checkpoint(unpin.clone()).await.unwrap();
    assert_eq!(unpinned.pins, std::slice::from_ref(&pinned));
    assert_eq!(cluster.client.unpin_checkpoint(unpin.clone()).await.unwrap(), unpinned);
    let another = v1::UnpinCheckpointRequest { request_id: new_id(), ..unpin.clone() };
    assert_eq!(reason(&cluster.client.unpin_checkpoint(another).await.unwrap_err()), "CHECKPOINT_NOT_FOUND");

    let delete = v1::DeleteCheckpointRequest {
        pipeline: pipeline(),
        checkpoint: "10".to_owned(),
        request_id: new_id(),
        validate_only: false,
    };
    let deleted = cluster.client.delete_checkpoint(delete.clone()).await.unwrap();
    assert_eq!(deleted.checkpoint.as_ref().unwrap().id, old);
    let again = cluster.client.delete_checkpoint(delete.clone()).await.unwrap();
    assert_eq!(again, deleted, "it is retired, its bytes are there");
    assert_eq!(cluster.client.pin_checkpoint(pin.clone()).await.unwrap(), pinned, "that was done in its time");
    collect(&cluster).await;
    let swept = cluster.client.delete_checkpoint(delete.clone()).await.unwrap().checkpoint.unwrap();
    assert_eq!((&swept.id, &swept.commit), (&old, &deleted.checkpoint.unwrap().commit), "which one it was");
    let another = v1::DeleteCheckpointRequest { request_id: new_id(), ..delete.clone() };
    assert_eq!(reason(&cluster.client.delete_checkpoint(another).await.unwrap_err()), "CHECKPOINT_NOT_FOUND");

    // An id is of one request.
    let other = v1::UnpinCheckpointRequest { request_id: delete.request_id, ..unpin };
    assert_eq!(reason(&cluster.client.unpin_checkpoint(other).await.unwrap_err()), "REQUEST_ID_REUSED");
    assert_eq!(cluster.client.list_checkpoints(PIPELINE, 9).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_asked_again_names_the_same_owner_before_it() {
    let owner = Cluster::with(Options { hosts: 2, ..Options::default() }).await;
    pushed(&owner, 10).await;
    let taker = Cluster::with(Options { hosts: 2, create: false, ..Options::default() }).await;
    let spec = v1::PipelineSpec {
        initial: v1::Initial::Standby.into(),
        location: Some(owner.location(PIPELINE)),
        ..taker.spec("taker")
    };
    taker.client.create_pipeline(spec).await.unwrap();
    let request = v1::TakeOverRequest { pipeline: "taker".to_owned(), request_id: new_id(), validate_only: false };
    let first = taker.client.take_over(request.clone()).await.unwrap();
    let again = taker.client.take_over(request.clone()).await.unwrap();
    let said = |answer: &v1::TakeOverResponse| {
        let previous = (answer.previous_generation, answer.previous_owner_name.clone(), answer.previous_owner.clone());
        (answer.take_over.clone(), answer.generation, previous, answer.newest.clone())
    };
    assert_eq!((first.generation, first.previous_generation, first.previous_owner_name.as_str()), (2, 1, PIPELINE));
    assert_eq!(said(&again), said(&first));
    let another = taker.client.take_over(v1::TakeOverRequest { request_id: new_id(), ..request }).await.unwrap();
    assert_eq!((another.generation, another.previous_owner_name.as_str()), (3, "taker"), "a new one, after its own");
}

fn reason(error: &ClientError) -> &str {
    match error {
        ClientError::Problem(problem) => &problem.reason,
        other => panic!("{other}"),
    }
}
