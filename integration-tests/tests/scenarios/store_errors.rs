//! Scenarios 9 and 10: what S3 refuses or does not answer is an error, never "no checkpoint".

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE};

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("{} {step}", host.idx).as_bytes())]);
    }
}

fn assert_wrong_secret(round: &v1::Round) {
    assert_eq!(round.phase(), RoundPhase::Failed);
    let problem = round.problem.as_ref().unwrap();
    assert_eq!(problem.reason, "STORE_DENIED", "{problem:?}");
    assert_eq!(problem.metadata["s3_code"], "SignatureDoesNotMatch");
    assert_eq!(problem.metadata["http_status"], "403");
    assert_eq!(problem.metadata["bucket"], BUCKET);
    assert!(problem.metadata["key"].starts_with("orders/"), "{problem:?}");
    for value in ["SignatureDoesNotMatch", "403", BUCKET] {
        assert!(problem.message.contains(value), "{value} is not in {}", problem.message);
    }
    assert!(!format!("{round:?}").contains("-secret"), "a secret is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_a_wrong_secret_of_the_coordinator_fails_push_and_pull_and_never_starts_fresh() {
    let mut cluster = Cluster::start().await;
    cluster.kill_coordinator();
    cluster.start_coordinator_with_secret("not-the-secret").await;
    for fail_if_none in [Some(true), Some(false)] {
        let round = cluster.pull(v1::StartPullRequest { fail_if_none, ..Cluster::pull_request() }).await;
        assert_wrong_secret(&round);
    }
    checkpoint_all(&cluster, 10);
    assert_wrong_secret(&cluster.push().await);
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    assert_eq!(pipeline.last_committed_step, None, "the status never shows that push as done");
    assert_eq!(pipeline.last_push.unwrap().phase(), RoundPhase::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_a_wrong_secret_of_one_agent_fails_push_and_pull() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    cluster.kill_agent(1);
    let identity: Vec<String> = ["--host-idx", "1", "--n-hosts", "3"].iter().map(|&s| s.to_owned()).collect();
    cluster.start_agent_as(1, &identity, &[], "not-the-secret").await;
    checkpoint_all(&cluster, 20);
    let round = cluster.push().await;
    assert_wrong_secret(&round);
    assert_eq!(round.problem.unwrap().metadata["host_idx"], "1");
    for host in &cluster.hosts {
        host.wipe();
    }
    for fail_if_none in [Some(true), Some(false)] {
        let round = cluster.pull(v1::StartPullRequest { fail_if_none, ..Cluster::pull_request() }).await;
        assert_wrong_secret(&round);
        assert!(cluster.hosts.iter().all(|host| host.checkpoints().is_empty()), "no host shows a part of a torn set");
    }
    let checkpoints = cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap();
    assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_an_outage_during_the_lookup_is_an_error_and_never_no_checkpoint() {
    let cluster = Cluster::start().await;
    for action in [FaultAction::SlowDown, FaultAction::InternalError, FaultAction::ResetBeforeWrite] {
        let fault = cluster.s3.faults().add(FaultRule::new(action.clone()).access_key(COORDINATOR_KEY));
        for fail_if_none in [Some(true), Some(false)] {
            let round = cluster.pull(v1::StartPullRequest { fail_if_none, ..Cluster::pull_request() }).await;
            assert_eq!(round.phase(), RoundPhase::Failed, "{action:?}");
            let problem = round.problem.unwrap();
            assert!(
                ["STORE_UNAVAILABLE", "STORE_THROTTLED"].contains(&problem.reason.as_str()),
                "{action:?}: {problem:?}"
            );
            assert_eq!(problem.metadata["bucket"], BUCKET, "{problem:?}");
            assert!(problem.metadata.contains_key("operation"), "{problem:?}");
            assert_eq!(problem.retryable(), v1::Retryable::Yes);
        }
        assert!(cluster.s3.faults().remove(fault));
    }
    assert_eq!(
        cluster.pull(Cluster::pull_request()).await.phase(),
        RoundPhase::Fresh,
        "after the outage absence is proven"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_403_on_listing_is_no_empty_listing() {
    let cluster = Cluster::start().await;
    cluster.s3.denials().add(lockstep_devkit::DenyRule {
        access_key: Some(COORDINATOR_KEY.to_owned()),
        operation: Some("ListBucket".to_owned()),
        ..Default::default()
    });
    let round = cluster.pull(Cluster::pull_request()).await;
    assert_eq!((round.phase(), round.problem.unwrap().reason.as_str()), (RoundPhase::Failed, "STORE_DENIED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_missing_bucket_is_an_error_with_its_name() {
    let options = lockstep_integration_tests::cluster::Options { create: false, ..Default::default() };
    let cluster = Cluster::with(options).await;
    let mut spec = cluster.spec(PIPELINE);
    spec.location.as_mut().unwrap().bucket = "no-such-bucket".to_owned();
    let error = cluster.client.create_pipeline(spec).await.expect_err("no bucket");
    assert_eq!(error.reason(), "STORE_NOT_FOUND", "{error}");
    let problem = error.problem().unwrap();
    assert_eq!(problem.metadata["bucket"], "no-such-bucket");
    assert_eq!(problem.metadata["s3_code"], "NoSuchBucket");
    assert!(cluster.client.list_pipelines(10).await.unwrap().is_empty(), "nothing was left behind");
}

/// R1, R2: the write happened, its answer was lost. The same bytes are tried again, found, and the round commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_commit_put_ends_in_the_commit() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let fault = FaultRule::new(FaultAction::ResetAfterWrite).operation("PutObject").key_contains("/commits/").times(1);
    let fault = cluster.s3.faults().add(fault);
    cluster.pushed().await;
    assert_eq!(cluster.s3.faults().hits(fault), 1);
    assert_eq!(cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_503s_and_resets_on_data_and_documents_do_not_fail_a_round() {
    // A look-up is of several requests: with a quarter of them failing the default patience is needed, and more where the machine is slow.
    let options = lockstep_integration_tests::cluster::Options { store_patience: "30s", ..Default::default() };
    let mut cluster = Cluster::with(options).await;
    checkpoint_all(&cluster, 10);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.s3.faults().seed(7);
    let rules = [FaultAction::SlowDown, FaultAction::ResetAfterWrite, FaultAction::Truncate { after_bytes: 5 }];
    let faults: Vec<u64> = rules
        .into_iter()
        .map(|action| cluster.s3.faults().add(FaultRule::new(action).probability(0.1).times(6)))
        .collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    cluster.pulled().await;
    assert!(faults.iter().map(|&fault| cluster.s3.faults().hits(fault)).sum::<u64>() > 0, "no fault was hit");
    let after: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    assert_eq!(after, before);
}
