//! Scenarios 22 and 23: who owns a location, and the old standby flag.

use lockstep_client::v1;
use lockstep_integration_tests::cluster::{BUCKET, Cluster, Options, PIPELINE};

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("a", format!("{step}").as_bytes())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_second_pipeline_on_an_owned_location_is_refused_and_the_owner_is_undisturbed() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    // The hint is written some time after the round has ended.
    let keys = || {
        let mut keys = cluster.s3.admin().keys(BUCKET, "").unwrap();
        keys.retain(|key| !key.ends_with("/head.json"));
        keys
    };
    let before = keys();
    let owner = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    for prefix in ["orders", "orders/nested"] {
        let mut spec = cluster.spec("invoices");
        spec.location = Some(cluster.location(prefix));
        let error = cluster.client.create_pipeline(spec).await.expect_err("owned");
        assert_eq!(error.reason(), "LOCATION_OWNED", "{prefix}: {error}");
        let message = &error.problem().unwrap().message;
        assert!(message.contains("invoices") && message.contains(PIPELINE), "names both: {message}");
    }
    assert_eq!(keys(), before, "nothing was written");
    assert_eq!(cluster.client.get_pipeline(PIPELINE).await.unwrap().etag, owner.etag);
    checkpoint_all(&cluster, 20);
    cluster.pushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_another_database_is_refused_by_the_bucket_itself() {
    let owner = Cluster::start().await;
    // A second cluster with a database of its own, its pipeline on the first one's S3 server.
    let other = Cluster::with(Options { create: false, ..Options::default() }).await;
    let (_process, address) = owner.another_coordinator_over(&other, "stranger").await;
    let stranger = lockstep_integration_tests::cluster::client_of(&format!("http://{address}"));
    let mut spec = owner.spec("stranger");
    spec.location = Some(owner.location(PIPELINE));
    let error = stranger.create_pipeline(spec).await.expect_err("owned");
    assert_eq!(error.reason(), "LOCATION_OWNED", "{error}");
    let problem = error.problem().unwrap();
    assert!(problem.message.contains("stranger") && problem.message.contains(PIPELINE), "names both: {problem:?}");
    checkpoint_all(&owner, 10);
    owner.pushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_after_a_rename_the_same_pipeline_still_owns_its_location() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let first = cluster.pushed().await;
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    let mut spec = pipeline.spec.clone().unwrap();
    spec.name = "orders-renamed".to_owned();
    let request = v1::UpdatePipelineRequest {
        pipeline: PIPELINE.to_owned(),
        spec: Some(spec),
        etag: pipeline.etag.clone(),
        ..v1::UpdatePipelineRequest::default()
    };
    let renamed = cluster.client.update_pipeline(request.clone()).await.unwrap();
    assert_eq!(renamed.id, pipeline.id);
    let error = cluster.client.update_pipeline(request).await.expect_err("the old name is gone");
    assert_eq!(error.reason(), "PIPELINE_NOT_FOUND");
    // Agents were started for the name; by UUID they would not care.
    for idx in 0..3 {
        cluster.kill_agent(idx);
        let identity: Vec<String> =
            ["--host-idx", &idx.to_string(), "--n-hosts", "3"].iter().map(|&s| s.to_owned()).collect();
        let flags = ["--pipeline".to_owned(), pipeline.id.clone()];
        cluster.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
    }
    checkpoint_all(&cluster, 20);
    let push = v1::StartPushRequest { pipeline: pipeline.id.clone(), ..v1::StartPushRequest::default() };
    let second = cluster.client.start_push(push).await.unwrap();
    let second = cluster.client.wait_round(&second.id).await.unwrap();
    assert_eq!(second.phase(), v1::RoundPhase::Committed, "{:?}", second.problem);
    assert_eq!((second.generation, second.seq), (first.generation, first.seq + 1), "one chain");
    assert_eq!(second.base.unwrap().round, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn s23_the_old_standby_flag_is_refused_with_the_way_to_do_it_now() {
    let cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    for value in [true, false] {
        let mut spec = cluster.spec(PIPELINE);
        spec.standby = Some(value);
        let error = cluster.client.create_pipeline(spec).await.expect_err("removed");
        assert_eq!(error.reason(), "STANDBY_FIELD_REMOVED");
        let problem = error.problem().unwrap();
        assert!(problem.message.contains("initial: standby"), "{problem:?}");
        assert_eq!(problem.metadata["value"], value.to_string());
    }
    let changelog = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../CHANGELOG.md")).unwrap();
    let breaking = changelog.split("### Breaking").nth(1).expect("a section of breaking changes");
    assert!(breaking.contains("standby") && breaking.contains("STANDBY_FIELD_REMOVED"));
}
