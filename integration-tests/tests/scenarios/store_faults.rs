//! Scenario 39: a store that throttles, loses answers, cuts bodies, is slow or flips a bit. All of it ends in identical files.

use std::time::Duration;

use lockstep_client::v1::{self, TransferOptions};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key},
    content::{Identity, differences, identity, noise, put},
};

const HOSTS: u32 = 2;

/// Pieces as small as S3 allows, so that a few MiB are several requests.
async fn cluster(flags: Vec<&'static str>) -> Cluster {
    let transfer = TransferOptions { part_size: 5 << 20, memory: 20 << 20, concurrency: 4, bandwidth_limit: 0 };
    Cluster::with(Options { hosts: HOSTS, transfer: Some(transfer), coordinator_flags: flags, ..Options::default() })
        .await
}

fn fill(cluster: &Cluster) {
    for host in &cluster.hosts {
        let seed = u64::from(host.idx);
        host.checkpoint_filled(1, |folder| {
            put(folder, "large", &noise(seed, "large", (12 << 20) + 345));
            put(folder, "middle", &noise(seed, "middle", 2 << 20));
            for n in 0..60 {
                put(folder, &format!("small/{n}"), &noise(seed, &n.to_string(), n * 100));
            }
        });
    }
}

fn identities(cluster: &Cluster) -> Vec<Identity> {
    cluster.hosts.iter().map(|host| identity(&host.dir.join("checkpoints"))).collect()
}

/// Adds the rules, one for each agent; their ids.
fn trouble(cluster: &Cluster, rules: impl Fn() -> Vec<FaultRule>) -> Vec<u64> {
    let rules = (0..HOSTS).flat_map(|idx| rules().into_iter().map(move |rule| rule.access_key(agent_key(idx))));
    rules.map(|rule| cluster.s3.faults().add(rule)).collect()
}

/// Each rule did something.
fn all_hit(cluster: &Cluster, ids: &[u64]) {
    for status in cluster.s3.faults().rules().iter().filter(|status| ids.contains(&status.id)) {
        assert!(status.hits > 0, "hit nothing: {:?}", status.rule);
    }
}

/// Pushes and pulls with trouble in both, and compares.
async fn survives(mut cluster: Cluster, pushing: impl Fn() -> Vec<FaultRule>, pulling: impl Fn() -> Vec<FaultRule>) {
    fill(&cluster);
    let before = identities(&cluster);
    cluster.s3.faults().seed(39);
    let ids = trouble(&cluster, pushing);
    cluster.pushed().await;
    all_hit(&cluster, &ids);
    assert_eq!(cluster.s3.admin().open_uploads(BUCKET).unwrap(), Vec::new(), "uploads are left open");
    cluster.s3.faults().clear();
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    let ids = trouble(&cluster, pulling);
    cluster.pulled().await;
    all_hit(&cluster, &ids);
    for ((host, before), after) in cluster.hosts.iter().zip(&before).zip(&identities(&cluster)) {
        assert_eq!(differences(before, after), Vec::<String>::new(), "host {}", host.idx);
        assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_bursts_of_503_end_in_identical_files() {
    let bursts =
        || vec![FaultRule::new(FaultAction::SlowDown).times(8), FaultRule::new(FaultAction::SlowDown).skip(9).times(4)];
    survives(cluster(Vec::new()).await, bursts, bursts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_answers_lost_after_the_last_byte_end_in_identical_files() {
    let lost = |operation: &str, times| FaultRule::new(FaultAction::ResetAfterWrite).operation(operation).times(times);
    let pushing = || vec![lost("PutObject", 2), lost("UploadPart", 2), lost("CompleteMultipartUpload", 1)];
    let pulling = || vec![FaultRule::new(FaultAction::ResetBeforeWrite).operation("GetObject").times(2)];
    survives(cluster(Vec::new()).await, pushing, pulling).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_connections_reset_in_the_middle_of_a_body_end_in_identical_files() {
    let during = |operation: &str| {
        FaultRule::new(FaultAction::ResetDuringBody { after_bytes: 70_000 }).operation(operation).times(2)
    };
    let pushing = || vec![during("UploadPart"), during("PutObject").key_contains("/data-").times(1)];
    let cut = |at| FaultRule::new(FaultAction::Truncate { after_bytes: at }).operation("GetObject").times(2);
    let pulling = || vec![cut(0).key_contains("/data-"), cut(100_000).key_contains("/data-").skip(1), cut(50)];
    survives(cluster(Vec::new()).await, pushing, pulling).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_slow_bodies_end_in_identical_files() {
    let slow = |operation: &str| {
        let rule = FaultRule::new(FaultAction::Throttle { bytes_per_second: 2 << 20 });
        vec![rule.operation(operation).key_contains("/data-").times(2)]
    };
    survives(cluster(Vec::new()).await, || slow("UploadPart"), || slow("GetObject")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_a_bit_that_flips_on_the_wire_is_read_again() {
    let flips = || {
        vec![FaultRule::new(FaultAction::Corrupt { at: 1234 }).operation("GetObject").key_contains("/data-").times(1)]
    };
    survives(cluster(Vec::new()).await, Vec::new, flips).await;
}

/// A minute of throttling beside `--stall-after 60s`, both shorter: a store that asks for patience is no transfer that hangs. Not much shorter, as agents
/// wait up to 10 s between two tries.
const OUTAGE: Duration = Duration::from_secs(35);
const STALL_AFTER: &str = "25s";

/// The round's transfers go through an outage that begins when they are under way.
async fn throttled(cluster: &Cluster, ask: impl AsyncFn() -> v1::Round) {
    let ids = trouble(cluster, || vec![FaultRule::new(FaultAction::SlowDown).skip(2)]);
    let started = ask().await;
    // The length of the outage is what is tested.
    tokio::time::sleep(OUTAGE).await;
    all_hit(cluster, &ids);
    cluster.s3.faults().clear();
    let ended = cluster.client.wait_round(&started.id).await.unwrap();
    assert!(lockstep_client::succeeded(&ended), "{ended:?}");
    let attempts: Vec<u32> = ended.participants.iter().map(|participant| participant.attempt).collect();
    assert_eq!(attempts, [1; HOSTS as usize], "{:#?}", events(cluster, &ended).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_a_store_that_throttles_a_push_for_long_is_waited_for_and_not_taken_for_a_stall() {
    let cluster = cluster(vec!["--stall-after", STALL_AFTER]).await;
    fill(&cluster);
    throttled(&cluster, async || cluster.start_push().await).await;
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
    assert!(cluster.verify(&checkpoint.id).await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s39_a_store_that_throttles_a_pull_for_long_is_waited_for_and_not_taken_for_a_stall() {
    let mut cluster = cluster(vec!["--stall-after", STALL_AFTER]).await;
    fill(&cluster);
    let before = identities(&cluster);
    cluster.pushed().await;
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    throttled(&cluster, async || cluster.client.start_pull(Cluster::pull_request()).await.unwrap()).await;
    for (before, after) in before.iter().zip(&identities(&cluster)) {
        assert_eq!(differences(before, after), Vec::<String>::new());
    }
}

async fn events(cluster: &Cluster, round: &v1::Round) -> Vec<v1::AuditEvent> {
    let filter = v1::ListAuditEventsRequest {
        pipeline: PIPELINE.to_owned(),
        round: round.id.clone(),
        ..v1::ListAuditEventsRequest::default()
    };
    cluster.client.list_audit_events(filter, 100).await.unwrap()
}

/// The decision itself: whatever the store does to the coordinator's requests, each push is one commit and acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn s39_a_commit_that_is_throttled_unanswered_cut_or_late_stands_once_and_is_acknowledged() {
    let cluster = cluster(Vec::new()).await;
    fill(&cluster);
    let error = || FaultAction::ErrorAfterWrite { status: 503, code: "SlowDown".to_owned() };
    let troubles = [
        ("PutObject", FaultAction::SlowDown, 3),
        ("PutObject", FaultAction::ResetAfterWrite, 1),
        ("PutObject", error(), 1),
        ("PutObject", FaultAction::ResetDuringBody { after_bytes: 100 }, 2),
        ("PutObject", FaultAction::DelayWrite { ms: 1500 }, 1),
        ("GetObject", FaultAction::Truncate { after_bytes: 100 }, 2),
    ];
    for (pushed, (operation, action, times)) in (1..).zip(troubles) {
        // The answer to the PUT is lost first, so that there is something to read.
        let lost = FaultRule::new(FaultAction::ResetAfterWrite).operation("PutObject").times(1);
        let first = (operation == "GetObject").then_some(lost);
        let rule = FaultRule::new(action.clone()).operation(operation).times(times);
        let rules = first.into_iter().chain([rule]);
        let on_commits = |rule: FaultRule| rule.access_key(COORDINATOR_KEY).key_contains("/commits/");
        let ids: Vec<u64> = rules.map(|rule| cluster.s3.faults().add(on_commits(rule))).collect();
        let push =
            v1::StartPushRequest { pipeline: PIPELINE.to_owned(), force: true, ..v1::StartPushRequest::default() };
        let round = cluster.client.start_push(push).await.unwrap();
        let ended = cluster.client.wait_round(&round.id).await.unwrap();
        assert_eq!(ended.phase(), v1::RoundPhase::Committed, "{operation}, {action:?}: {:?}", ended.problem);
        all_hit(&cluster, &ids);
        assert_eq!(
            cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap().len(),
            pushed,
            "{operation}, {action:?}"
        );
        assert_eq!(
            cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap().id,
            round.id,
            "{operation}, {action:?}"
        );
        cluster.s3.faults().clear();
    }
}
