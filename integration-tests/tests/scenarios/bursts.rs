//! Bursts of 503 where a location changes hands and where it is cleared of garbage: all of it is tried again, nothing is given up half way, nothing is taken for absent.

use std::collections::BTreeSet;

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE},
    wait,
};

use crate::{
    pair::{HEIR, checkpoint_all, owner_and, push},
    standby::holds,
};

/// Four of each so many requests of a coordinator are refused, one after the other.
fn bursts(cluster: &Cluster, of: u64) -> Vec<u64> {
    let burst =
        |number: u64| FaultRule::new(FaultAction::SlowDown).access_key(COORDINATOR_KEY).skip(number * of).times(4);
    (0..12).map(|number| cluster.s3.faults().add(burst(number))).collect()
}

fn hits(cluster: &Cluster, rules: &[u64]) -> u64 {
    rules.iter().map(|rule| cluster.s3.faults().hits(*rule)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_bursts_of_503_during_an_activation_cost_time_and_nothing_else() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    checkpoint_all(&owner, 30);
    let newest = owner.pushed().await;
    let expected: Vec<_> = owner.hosts.iter().map(|host| host.state()).collect();
    // The owner is idle: it is the heir that is refused.
    let rules = bursts(&owner, 6);
    let asked = v1::ActivateRequest {
        pipeline: HEIR.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..v1::ActivateRequest::default()
    };
    let done = wait::until("the standby is activated", || heir.client.activate(asked.clone())).await;
    assert_eq!((done.generation, done.newest.map(|newest| newest.round)), (2, Some(newest.id)));
    wait::until("it is handed over", || async {
        let pipeline = heir.client.get_pipeline(HEIR).await.map_err(|error| error.to_string())?;
        if pipeline.standby.is_none() { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    assert!(hits(&owner, &rules) >= 8, "it was refused again and again: {}", hits(&owner, &rules));
    owner.s3.faults().clear();
    for (host, state) in heir.hosts.iter().zip(&expected) {
        let held = host.state();
        assert!(!held.is_empty() && held.iter().all(|(path, digest)| state.get(path) == Some(digest)), "{held:?}");
    }
    let fences = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
    assert_eq!(fences.len(), 3, "one fence and its base: {fences:?}");
    checkpoint_all(&heir, 40);
    let pushed = push(&heir, HEIR).await;
    assert_eq!((pushed.phase(), pushed.generation), (RoundPhase::Committed, 2), "{:?}", pushed.problem);
}

fn keys(cluster: &Cluster) -> BTreeSet<String> {
    cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/host")).unwrap().into_iter().collect()
}

/// Whether it is done by the time of the answer; the same id tells how it goes on.
async fn collected(cluster: &Cluster, id: &str) -> Result<v1::Collection, String> {
    let request =
        v1::CollectGarbageRequest { pipeline: PIPELINE.to_owned(), request_id: id.to_owned(), validate_only: false };
    let collection = cluster.client.collect_garbage(request).await.map_err(|error| error.to_string())?.collection;
    collection.filter(|collection| collection.phase != "waiting").ok_or_else(|| "it waits".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_retention_goes_on_through_bursts_of_503_and_an_outage_and_takes_nothing_that_lives() {
    let flags = vec!["--gc-grace", "0s", "--gc-interval", "0s"];
    let options = Options { create: false, coordinator_flags: flags, ..Options::default() };
    let cluster = Cluster::with(options).await;
    let retention = v1::Retention { min_count: 2, min_age: Some(prost_types::Duration { seconds: 0, nanos: 0 }) };
    let spec = v1::PipelineSpec { retention: Some(retention), ..cluster.spec(PIPELINE) };
    cluster.client.create_pipeline(spec).await.unwrap();
    for step in [10, 20, 30, 40, 50] {
        for host in &cluster.hosts {
            let (same, own) = (vec![1; 200_000], vec![u8::try_from(step).unwrap(); 200_000]);
            host.checkpoint(step, &[("same", &same), ("own", &own)]);
        }
        cluster.pushed().await;
    }
    // Nothing can be read: nothing is decided, and the collection is not over.
    let (before, id) = (keys(&cluster), uuid::Uuid::new_v4().to_string());
    let outage = FaultRule::new(FaultAction::SlowDown).access_key(COORDINATOR_KEY).operation("ListObjectsV2");
    let outage = cluster.s3.faults().add(outage);
    let asked = collected(&cluster, &id).await;
    assert!(asked.is_err() || asked.as_ref().is_ok_and(|ended| ended.phase == "failed"), "{asked:?}");
    assert_eq!(keys(&cluster), before, "what could not be listed was not taken for absent");
    cluster.s3.faults().remove(outage);

    // One that was refused too often ends; what it has done stays done, and the next one goes on.
    let rules = bursts(&cluster, 14);
    wait::until("it is collected", async || {
        let ended = collected(&cluster, &uuid::Uuid::new_v4().to_string()).await?;
        if ended.phase == "done" { Ok(()) } else { Err(format!("{ended:?}")) }
    })
    .await;
    assert!(hits(&cluster, &rules) >= 8, "it was refused again and again: {}", hits(&cluster, &rules));
    cluster.s3.faults().clear();
    // Whatever was put off goes with the next one.
    let id = uuid::Uuid::new_v4().to_string();
    let rest = wait::until("it is collected once more", || collected(&cluster, &id)).await;
    assert_eq!((rest.phase.as_str(), rest.put_off), ("done", 0), "{rest:?}");
    let listed = cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap();
    assert_eq!(listed.iter().map(|checkpoint| checkpoint.step).collect::<Vec<_>>(), [50, 40]);
    for checkpoint in &listed {
        assert_eq!(cluster.verify(&checkpoint.id).await.problems, []);
    }
    assert!(keys(&cluster).len() < before.len());
    let plan = v1::CollectGarbageRequest { pipeline: PIPELINE.to_owned(), validate_only: true, ..Default::default() };
    let plan = cluster.client.collect_garbage(plan).await.unwrap();
    assert_eq!(plan.object_count, 0, "{:?}", plan.objects);
}
