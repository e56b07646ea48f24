//! Scenarios 1 to 4, 7 and 8.

use lockstep_client::v1::{self, RoundPhase, start_pull_request, start_push_request};
use lockstep_integration_tests::{
    cluster::{Cluster, PIPELINE, agent_key},
    host::State,
};

fn checkpoint_all(cluster: &Cluster, step: u64) -> Vec<lockstep_protocol::id::LocalCheckpointId> {
    cluster
        .hosts
        .iter()
        .map(|host| {
            let own = format!("state of host {} at step {step}", host.idx);
            host.checkpoint(step, &[("state.bin", own.as_bytes()), ("shared/always-the-same.bin", &[7; 100_000])])
        })
        .collect()
}

fn states(cluster: &Cluster) -> Vec<State> {
    cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_push_then_wipe_every_disk_then_pull_gives_the_same_state() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let before = states(&cluster);
    let pushed = cluster.pushed().await;
    assert_eq!(pushed.step, Some(10));
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
        assert!(cluster.hosts[idx].state().is_empty());
    }
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.step, pulled.source()), (Some(10), v1::PullSource::Location));
    assert_eq!(pulled.commit.as_ref().unwrap().round, pushed.id);
    assert_eq!(states(&cluster), before);
    for host in &cluster.hosts {
        assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_a_restart_without_wiping_uses_the_local_checkpoint_and_downloads_nothing() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    let before = states(&cluster);
    for idx in 0..3 {
        cluster.kill_agent(idx);
        cluster.start_agent(idx).await;
    }
    cluster.s3.clear_requests();
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.step, pulled.source()), (Some(10), v1::PullSource::Local));
    for idx in 0..3 {
        assert_eq!(cluster.requests_by(&agent_key(idx)), 0, "agent {idx} asked S3 for something");
    }
    assert_eq!(pulled.progress.unwrap_or_default().bytes_transferred, 0);
    assert_eq!(states(&cluster), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_the_local_source_leaves_only_the_chosen_checkpoint_behind() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    // A step that only some hosts have is a history that ends here.
    cluster.hosts[0].checkpoint(11, &[("state.bin", b"only here")]);
    let pulled = cluster.pulled().await;
    assert_eq!(pulled.step, Some(10));
    for host in &cluster.hosts {
        assert_eq!(host.checkpoints().len(), 1, "host {}", host.idx);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_a_checkpoint_is_pulled_by_step_by_uuid_and_by_time() {
    let mut cluster = Cluster::start().await;
    let mut pushes = Vec::new();
    let mut wanted = Vec::new();
    for step in [10, 20, 30] {
        let ids = checkpoint_all(&cluster, step);
        wanted.push(cluster.hosts.iter().zip(&ids).map(|(host, id)| host.state_of(*id)).collect::<Vec<_>>());
        pushes.push(cluster.pushed().await);
    }
    let listed = cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap();
    assert_eq!(listed.iter().map(|c| c.step).collect::<Vec<_>>(), [30, 20, 10], "newest first");
    let second = listed[1].create_time;
    for (selector, index) in [
        (start_pull_request::Selector::Step(10), 0),
        (start_pull_request::Selector::Checkpoint(pushes[1].id.clone()), 1),
        (start_pull_request::Selector::Time(second.unwrap()), 1),
        (start_pull_request::Selector::Latest(true), 2),
    ] {
        for idx in 0..3 {
            cluster.lose_disk(idx).await;
        }
        let pulled =
            cluster.pull(v1::StartPullRequest { selector: Some(selector.clone()), ..Cluster::pull_request() }).await;
        assert_eq!(pulled.phase(), RoundPhase::Installed, "{selector:?}: {:?}", pulled.problem);
        assert_eq!(pulled.commit.unwrap().round, pushes[index].id, "{selector:?}");
        assert_eq!(states(&cluster), wanted[index], "{selector:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_push_takes_the_newest_step_that_all_hosts_have() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    checkpoint_all(&cluster, 20);
    cluster.hosts[0].checkpoint(30, &[("state.bin", b"ahead")]);
    assert_eq!(cluster.pushed().await.step, Some(20));
    let exact = v1::StartPushRequest {
        pipeline: PIPELINE.to_owned(),
        selector: Some(start_push_request::Selector::Step(10)),
        ..v1::StartPushRequest::default()
    };
    let round = cluster.client.start_push(exact).await.unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!((round.phase(), round.step), (RoundPhase::Committed, Some(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_no_common_step_names_each_hosts_steps() {
    let cluster = Cluster::start().await;
    cluster.hosts[0].checkpoint(10, &[("a", b"1")]);
    cluster.hosts[1].checkpoint(11, &[("a", b"1")]);
    let round = cluster.push().await;
    assert_eq!(round.phase(), RoundPhase::Failed);
    let problem = round.problem.unwrap();
    assert_eq!(problem.reason, "NO_COMMON_CHECKPOINT");
    assert_eq!(problem.metadata["host0_steps"], "10");
    assert_eq!(problem.metadata["host1_steps"], "11");
    assert_eq!(problem.metadata["host2_steps"], "none");
    assert!(cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_a_second_push_sends_only_what_changed() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    let mut changed = 0;
    for host in &cluster.hosts {
        let new = format!("state of host {} at step 20, something else", host.idx);
        host.checkpoint(20, &[("state.bin", new.as_bytes()), ("shared/always-the-same.bin", &[7; 100_000])]);
        let id = host.checkpoints().last().unwrap().clone();
        changed += new.len() as u64
            + std::fs::metadata(host.dir.join("checkpoints").join(id).join("checkpoint.json")).unwrap().len();
    }
    let second = cluster.pushed().await;
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, &second.id).await.unwrap();
    assert_eq!(checkpoint.bytes_uploaded, changed, "bytes uploaded = bytes changed");
    assert!(checkpoint.bytes > 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_a_step_that_is_already_the_newest_commit_is_not_pushed_again_unless_forced() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let first = cluster.pushed().await;
    assert_eq!(cluster.pushed().await.id, first.id);
    let forced = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), force: true, ..v1::StartPushRequest::default() };
    let second = cluster.client.start_push(forced).await.unwrap();
    assert_ne!(second.id, first.id);
    let second = cluster.client.wait_round(&second.id).await.unwrap();
    assert_eq!(second.phase(), RoundPhase::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_an_unknown_checkpoint_is_an_error_or_with_fail_if_none_false_a_fresh_start() {
    let cluster = Cluster::start().await;
    let pull = |selector, fail_if_none| {
        cluster.pull(v1::StartPullRequest { selector, fail_if_none, ..Cluster::pull_request() })
    };
    let unknown = || Some(start_pull_request::Selector::Checkpoint(uuid::Uuid::new_v4().to_string()));
    // Nothing anywhere: latest starts fresh unless told otherwise, an explicit checkpoint never does unless told.
    assert_eq!(pull(None, None).await.phase(), RoundPhase::Fresh);
    assert_eq!(pull(unknown(), Some(false)).await.phase(), RoundPhase::Fresh);
    for (selector, fail_if_none) in [
        (None, Some(true)),
        (unknown(), None),
        (unknown(), Some(true)),
        (Some(start_pull_request::Selector::Step(99)), None),
    ] {
        let round = pull(selector.clone(), fail_if_none).await;
        assert_eq!(round.phase(), RoundPhase::Failed, "{selector:?} {fail_if_none:?}");
        let problem = round.problem.unwrap();
        assert_eq!(problem.reason, "CHECKPOINT_NOT_FOUND", "{problem:?}");
        assert!(problem.message.contains("acme-ckpt"), "names where it looked: {}", problem.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_hosts_with_local_checkpoints_never_start_fresh_unless_they_are_discarded() {
    let cluster = Cluster::start().await;
    cluster.hosts[1].checkpoint(5, &[("a", b"1")]);
    let round = cluster.pull(Cluster::pull_request()).await;
    assert_eq!((round.phase(), round.problem.unwrap().reason.as_str()), (RoundPhase::Failed, "NO_COMMON_CHECKPOINT"));
    assert_eq!(cluster.hosts[1].checkpoints().len(), 1, "nothing was removed");
    let round = cluster.pull(v1::StartPullRequest { discard_local: true, ..Cluster::pull_request() }).await;
    assert_eq!(round.phase(), RoundPhase::Fresh, "{:?}", round.problem);
    assert!(cluster.hosts[1].checkpoints().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solo_pipeline_is_pushed_and_pulled() {
    let options = lockstep_integration_tests::cluster::Options { hosts: 0, ..Default::default() };
    let mut cluster = Cluster::with(options).await;
    cluster.hosts[0].checkpoint(3, &[("state.bin", b"solo")]);
    let before = cluster.hosts[0].state();
    cluster.pushed().await;
    let keys = cluster.s3.admin().keys("acme-ckpt", "orders/solo/").unwrap();
    assert!(!keys.is_empty() && cluster.s3.admin().keys("acme-ckpt", "orders/host").unwrap().is_empty(), "{keys:?}");
    cluster.lose_disk(0).await;
    cluster.pulled().await;
    assert_eq!(cluster.hosts[0].state(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_happen_and_writes_nothing() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let keys = cluster.s3.admin().keys("acme-ckpt", "").unwrap();
    let push =
        v1::StartPushRequest { pipeline: PIPELINE.to_owned(), validate_only: true, ..v1::StartPushRequest::default() };
    let planned = cluster.client.start_push(push).await.unwrap();
    assert_eq!((planned.id.as_str(), planned.step, planned.participants.len()), ("", Some(10), 3));
    let pull = cluster
        .client
        .start_pull(v1::StartPullRequest { validate_only: true, ..Cluster::pull_request() })
        .await
        .unwrap();
    assert_eq!((pull.id.as_str(), pull.source()), ("", v1::PullSource::Local));
    assert_eq!(cluster.s3.admin().keys("acme-ckpt", "").unwrap(), keys);
    assert!(
        cluster
            .client
            .list_rounds(v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() }, 10)
            .await
            .unwrap()
            .is_empty()
    );
}
