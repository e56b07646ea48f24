//! Real DBSP storage directories from three hosts.

use std::fs;

use lockstep_client::v1::{self, RoundPhase, start_pull_request};
use lockstep_integration_tests::{
    cluster::{Cluster, Options, PIPELINE},
    feldera,
};

async fn cluster() -> Cluster {
    let cluster = Cluster::with(Options { store: "feldera", ..Options::default() }).await;
    for host in &cluster.hosts {
        feldera::copy_host(host.idx, &host.dir);
    }
    cluster
}

async fn lose_all(cluster: &mut Cluster) {
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_dbsp_directories_are_pushed_wiped_and_pulled_as_expected_json_says() {
    let mut cluster = cluster().await;
    let round = cluster.pushed().await;
    assert_eq!(round.step, Some(12));
    let records: u64 = (0..3).map(|host| feldera::expected(host, 12)["processed_records"].as_u64().unwrap()).sum();
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, &round.id).await.unwrap();
    assert_eq!(checkpoint.processed_records, Some(records), "s12: the sum over hosts");
    lose_all(&mut cluster).await;
    cluster.pulled().await;
    for host in &cluster.hosts {
        feldera::assert_restored(host, 12);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_an_older_dbsp_checkpoint_is_restored_over_newer_ones() {
    let mut cluster = cluster().await;
    for step in [4, 8, 12] {
        let push = v1::StartPushRequest {
            pipeline: PIPELINE.to_owned(),
            selector: Some(v1::start_push_request::Selector::Step(step)),
            ..v1::StartPushRequest::default()
        };
        let round = cluster.client.start_push(push).await.unwrap();
        let round = cluster.client.wait_round(&round.id).await.unwrap();
        assert_eq!(round.phase(), RoundPhase::Committed, "step {step}: {:?}", round.problem);
    }
    let by_step = |step, standby| v1::StartPullRequest {
        selector: Some(start_pull_request::Selector::Step(step)),
        standby: Some(standby),
        ..Cluster::pull_request()
    };
    // From the bucket, with the newer local checkpoints in the way.
    let round = cluster.pull(by_step(8, true)).await;
    assert_eq!(
        (round.phase(), round.source()),
        (RoundPhase::Installed, v1::PullSource::Location),
        "{:?}",
        round.problem
    );
    for host in &cluster.hosts {
        feldera::assert_restored(host, 8);
    }
    lose_all(&mut cluster).await;
    let round = cluster.pull(by_step(4, false)).await;
    assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
    for host in &cluster.hosts {
        feldera::assert_restored(host, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_local_dbsp_checkpoints_are_used_and_newer_ones_removed() {
    let cluster = cluster().await;
    let pull =
        v1::StartPullRequest { selector: Some(start_pull_request::Selector::Step(8)), ..Cluster::pull_request() };
    let round = cluster.pull(pull).await;
    assert_eq!((round.phase(), round.source()), (RoundPhase::Installed, v1::PullSource::Local), "{:?}", round.problem);
    for host in &cluster.hosts {
        feldera::assert_restored(host, 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_batches_that_the_base_has_are_not_sent_again() {
    let cluster = cluster().await;
    let mut sent = Vec::new();
    for step in [8, 12] {
        let push = v1::StartPushRequest {
            pipeline: PIPELINE.to_owned(),
            selector: Some(v1::start_push_request::Selector::Step(step)),
            ..v1::StartPushRequest::default()
        };
        let round = cluster.client.start_push(push).await.unwrap();
        let round = cluster.client.wait_round(&round.id).await.unwrap();
        sent.push(cluster.client.get_checkpoint(PIPELINE, &round.id).await.unwrap());
    }
    let shared: u64 =
        (0..3).map(|host| feldera::expected(host, 12)["bytes_shared_with_previous"].as_u64().unwrap()).sum();
    assert!(shared > 0, "the fixture shares batches");
    assert!(sent[1].bytes_uploaded <= sent[1].bytes - shared, "{} of {}", sent[1].bytes_uploaded, sent[1].bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_or_edited_catalog_is_an_error_and_changes_nothing() {
    let cluster = cluster().await;
    let catalog = cluster.hosts[1].dir.join("checkpoints.feldera");
    let good = fs::read_to_string(&catalog).unwrap();
    for bad in [&good[..good.len() / 2], "", "{}", &good.replace("\"steps\":12", "\"steps\":18446744073709551615")] {
        fs::write(&catalog, bad).unwrap();
        let round = cluster.push().await;
        assert_eq!(round.phase(), RoundPhase::Failed, "{bad:.40}");
        let problem = round.problem.unwrap();
        assert_eq!(problem.reason, "MANIFEST_INVALID", "{bad:.40}: {problem:?}");
        assert!(problem.message.contains("checkpoints.feldera"), "{problem:?}");
        let round = cluster.pull(Cluster::pull_request()).await;
        assert_eq!(round.phase(), RoundPhase::Failed, "never a fresh start after an error: {bad:.40}");
        assert_eq!(fs::read_to_string(&catalog).unwrap(), bad, "untouched");
    }
    fs::write(&catalog, good).unwrap();
    cluster.pushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_engine_is_not_restored_over() {
    let mut cluster = cluster().await;
    cluster.pushed().await;
    lose_all(&mut cluster).await;
    let lock = cluster.hosts[2].dir.join("feldera.pidlock");
    let mut engine = std::process::Command::new(env!("CARGO_BIN_EXE_engine_lock"))
        .arg(&lock)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(engine.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "held");
    let round = cluster.pull(Cluster::pull_request()).await;
    let problem = round.problem.unwrap();
    assert_eq!((round.phase, problem.reason.as_str()), (RoundPhase::Failed as i32, "ENGINE_RUNNING"), "{problem:?}");
    assert_eq!(problem.metadata["host_idx"], "2");
    for host in &cluster.hosts {
        assert!(!host.dir.join("checkpoints.feldera").exists(), "host {}: nothing was installed", host.idx);
    }
    engine.kill().unwrap();
    engine.wait().unwrap();
    cluster.pulled().await;
    for host in &cluster.hosts {
        feldera::assert_restored(host, 12);
    }
}
