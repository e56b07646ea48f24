//! Scenarios 13 to 16: where a pull is served from, and what each source may be asked.

use chrono::DateTime;
use lockstep_client::v1::{self, PullSource, RoundPhase, start_pull_request::Selector};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key},
    orders, wait,
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, Seq},
    tombstone::Tombstone,
};

/// Another pipeline, whose location is the read location here.
const SEED: &str = "seed";

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("host {} at step {step}", host.idx).as_bytes())]);
    }
}

fn wipe_all(cluster: &Cluster) {
    cluster.hosts.iter().for_each(lockstep_integration_tests::host::Host::wipe);
}

fn states(cluster: &Cluster) -> Vec<lockstep_integration_tests::host::State> {
    cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect()
}

/// Restarts every agent on an empty disk for one pipeline; both locations are allowed.
async fn agents_of(cluster: &mut Cluster, pipeline: &str) {
    for idx in 0..cluster.hosts.len() {
        cluster.kill_agent(idx);
        cluster.hosts[idx].wipe();
        let identity: Vec<String> =
            ["--host-idx", &idx.to_string(), "--n-hosts", "3"].iter().map(|&arg| arg.to_owned()).collect();
        let seed = format!("s3://acme-ckpt/{SEED}?endpoint={}&path_style=true", cluster.endpoint());
        let flags = ["--pipeline", pipeline, "--allow-location", &seed].map(str::to_owned);
        cluster.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
    }
}

/// A pipeline `seed` has pushed step 5; `orders` has nothing and reads from there.
async fn seeded() -> (Cluster, v1::Round) {
    let mut cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    agents_of(&mut cluster, SEED).await;
    cluster.client.create_pipeline(cluster.spec(SEED)).await.unwrap();
    checkpoint_all(&cluster, 5);
    let request = v1::StartPushRequest { pipeline: SEED.to_owned(), ..Default::default() };
    let pushed = cluster.client.start_push(request).await.unwrap();
    let pushed = cluster.client.wait_round(&pushed.id).await.unwrap();
    assert_eq!(pushed.phase(), RoundPhase::Committed, "{:?}", pushed.problem);
    agents_of(&mut cluster, PIPELINE).await;
    let spec = v1::PipelineSpec { read_location: Some(cluster.location(SEED)), ..cluster.spec(PIPELINE) };
    cluster.client.create_pipeline(spec).await.unwrap();
    (cluster, pushed)
}

fn pull_of(checkpoint: &str) -> v1::StartPullRequest {
    v1::StartPullRequest { selector: Some(Selector::Checkpoint(checkpoint.to_owned())), ..Cluster::pull_request() }
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_own_location_before_read_location_and_local_before_both_also_by_uuid() {
    let (cluster, seed) = seeded().await;
    checkpoint_all(&cluster, 10);
    let own = cluster.pushed().await;
    // Latest: the hosts' own checkpoints, then the own location, though the read location has one too.
    let local = cluster.pulled().await;
    assert_eq!((local.source(), local.step), (PullSource::Local, Some(10)));
    let before = states(&cluster);
    wipe_all(&cluster);
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.source(), pulled.step), (PullSource::Location, Some(10)));
    assert_eq!(states(&cluster), before);
    // By UUID: what the hosts have already isn't fetched; what only the read location has comes from there.
    let by_uuid = cluster.pull(pull_of(&own.id)).await;
    assert_eq!((by_uuid.phase(), by_uuid.source()), (RoundPhase::Installed, PullSource::Local));
    let by_uuid = cluster.pull(pull_of(&seed.id)).await;
    assert_eq!(
        (by_uuid.phase(), by_uuid.source(), by_uuid.step),
        (RoundPhase::Installed, PullSource::ReadLocation, Some(5))
    );
    let by_uuid = cluster.pull(pull_of(&own.id)).await;
    assert_eq!(
        (by_uuid.phase(), by_uuid.source(), by_uuid.step),
        (RoundPhase::Installed, PullSource::Location, Some(10))
    );
    assert_eq!(states(&cluster), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_the_read_location_seeds_an_empty_pipeline_and_is_never_written() {
    let (cluster, seed) = seeded().await;
    cluster.s3.clear_requests();
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.source(), pulled.step), (PullSource::ReadLocation, Some(5)));
    assert_eq!(pulled.commit.as_ref().unwrap().round, seed.id);
    assert_eq!(pulled.source_location.as_ref().unwrap().prefix, SEED);
    for host in &cluster.hosts {
        let file = format!("host {} at step 5", host.idx);
        let folder = host.dir.join("checkpoints").join(&host.checkpoints()[0]);
        assert_eq!(std::fs::read_to_string(folder.join("state.bin")).unwrap(), file);
    }
    // From here on it lives on its own.
    checkpoint_all(&cluster, 6);
    let own = cluster.pushed().await;
    wipe_all(&cluster);
    assert_eq!(cluster.pulled().await.commit.unwrap().round, own.id);
    let seed_keys = |method: &str| {
        cluster.s3.log().count(|request| {
            request.method == method && request.key.as_deref().is_some_and(|key| key.starts_with("seed/"))
        })
    };
    assert!(seed_keys("GET") > 0, "the seed was read");
    for method in ["PUT", "POST", "DELETE"] {
        assert_eq!(seed_keys(method), 0, "{method} in the read location");
    }
}

async fn running(agent: &str) -> Option<v1::RunningTransfer> {
    orders::agent(agent).await.describe(v1::DescribeRequest {}).await.unwrap().into_inner().running
}

/// Pulls while the seed's data can't be read yet; by the time it can be, `meanwhile` has happened.
async fn pull_while(cluster: &Cluster, fail_if_none: bool, meanwhile: impl FnOnce()) -> v1::Round {
    let held = FaultRule::new(FaultAction::Hang).operation("GetObject").key_contains("/data-");
    let held = cluster.s3.faults().add(held);
    let request = v1::StartPullRequest { fail_if_none: Some(fail_if_none), ..Cluster::pull_request() };
    let round = cluster.client.start_pull(request).await.unwrap();
    for agent in &cluster.agents {
        wait::until("the host pulls", || async {
            let running = running(&agent.address).await;
            if running.as_ref().is_some_and(|running| running.round == round.id) {
                return Ok(());
            }
            Err(format!("{running:?}"))
        })
        .await;
    }
    meanwhile();
    cluster.s3.faults().remove(held);
    cluster.client.wait_round(&round.id).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_what_is_missing_in_a_read_location_was_retired_by_its_owner_if_its_tombstone_says_so_and_else_is_damaged()
{
    let (cluster, seed) = seeded().await;
    let admin = cluster.s3.admin();
    let failed = pull_while(&cluster, true, || {
        for key in admin.keys(BUCKET, "seed/host").unwrap().into_iter().filter(|key| key.contains("/data-")) {
            admin.remove(BUCKET, &key).unwrap();
        }
    })
    .await;
    let problem = failed.problem.unwrap();
    assert_eq!(problem.reason, "CHECKPOINT_DAMAGED", "{problem:?}");

    let commit = CommitRef {
        generation: Generation::FIRST,
        seq: Seq::FIRST,
        round: seed.id.parse().unwrap(),
        digest: Digest::of(&admin.read(BUCKET, "seed/commits/00000000000000000001-00000000000000000001.json").unwrap()),
    };
    let owner = cluster.client.get_pipeline(SEED).await.unwrap().id.parse().unwrap();
    let tombstone =
        Tombstone { pipeline: owner, commit, retired_in: Generation::FIRST, retired_at: DateTime::UNIX_EPOCH };
    let key = format!("seed/{}", tombstone.key());
    let retired = || admin.put_raw(BUCKET, &key, tombstone.encode()).unwrap();
    // There is no other one to choose instead.
    let failed = pull_while(&cluster, true, retired).await;
    let problem = failed.problem.unwrap();
    assert_eq!((failed.phase, problem.reason.as_str()), (RoundPhase::Failed.into(), "CHECKPOINT_NOT_FOUND"));
    assert!(problem.message.contains("was retired by its owner while it was pulled"), "{problem:?}");
    assert_eq!(problem.metadata["retired"], seed.id, "{problem:?}");
    // Where a missing checkpoint is no error, the engines start from nothing; no transfer of what was retired goes on.
    admin.remove(BUCKET, &key).unwrap();
    let stands = FaultRule::new(FaultAction::Hang).access_key(agent_key(0)).operation("GetObject");
    cluster.s3.faults().add(stands.key_contains("/data-"));
    let fresh = pull_while(&cluster, false, retired).await;
    assert_eq!((fresh.phase(), &fresh.problem), (RoundPhase::Fresh, &None));
    wait::until("host 0 was told to stop", || async {
        running(&cluster.agents[0].address).await.map_or(Ok(()), |running| Err(format!("{running:?}")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_a_read_location_of_another_layout_is_refused_before_any_download() {
    let (mut cluster, _) = seeded().await;
    cluster.client.delete_pipeline(PIPELINE, String::new()).await.unwrap();
    let two = v1::PipelineSpec {
        name: "pair".to_owned(),
        hosts: 2,
        agents: cluster.agents[..2].iter().map(|agent| agent.address.clone()).collect(),
        location: Some(cluster.location(PIPELINE).clone()),
        read_location: Some(cluster.location(SEED)),
        ..Default::default()
    };
    let two = v1::PipelineSpec { location: Some(cluster.location("orders/pair")), ..two };
    for idx in 0..2_usize {
        cluster.kill_agent(idx);
        let identity: Vec<String> =
            ["--host-idx", &idx.to_string(), "--n-hosts", "2"].iter().map(|&arg| arg.to_owned()).collect();
        let endpoint = cluster.endpoint();
        let allow = |prefix: &str| format!("s3://acme-ckpt/{prefix}?endpoint={endpoint}&path_style=true");
        let (own, seed) = (allow("orders/pair"), allow(SEED));
        let flags = ["--pipeline", "pair", "--allow-location", &own, "--allow-location", &seed].map(str::to_owned);
        cluster.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
    }
    cluster.client.create_pipeline(two).await.unwrap();
    cluster.s3.clear_requests();
    let request = v1::StartPullRequest { pipeline: "pair".to_owned(), ..Cluster::pull_request() };
    let pulled = cluster.pull(request).await;
    let problem = pulled.problem.unwrap();
    assert_eq!((pulled.phase, problem.reason.as_str()), (RoundPhase::Failed.into(), "LAYOUT_MISMATCH"));
    assert_eq!((problem.metadata["checkpoint_n_hosts"].as_str(), problem.metadata["n_hosts"].as_str()), ("3", "2"));
    assert_eq!(cluster.requests_by(&agent_key(0)) + cluster.requests_by(&agent_key(1)), 0, "nothing was downloaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_an_own_location_that_can_not_be_read_is_never_passed_over_for_the_read_location() {
    let (cluster, _) = seeded().await;
    for action in [FaultAction::SlowDown, FaultAction::InternalError, FaultAction::ResetBeforeWrite] {
        let rule = FaultRule::new(action.clone()).access_key(COORDINATOR_KEY).key_prefix("orders/");
        let fault = cluster.s3.faults().add(rule);
        for fail_if_none in [Some(true), Some(false)] {
            let pulled = cluster.pull(v1::StartPullRequest { fail_if_none, ..Cluster::pull_request() }).await;
            let problem = pulled.problem.unwrap_or_default();
            assert_eq!(pulled.phase, i32::from(RoundPhase::Failed), "{action:?}: {problem:?}");
            assert!(["STORE_UNAVAILABLE", "STORE_THROTTLED"].contains(&problem.reason.as_str()), "{problem:?}");
        }
        assert!(cluster.s3.faults().remove(fault));
    }
    assert!(cluster.hosts.iter().all(|host| host.checkpoints().is_empty()));
    assert_eq!(cluster.pulled().await.source(), PullSource::ReadLocation);
}

#[tokio::test(flavor = "multi_thread")]
async fn s15_nothing_anywhere_fails_and_names_every_place_that_was_looked_in() {
    let mut cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    agents_of(&mut cluster, PIPELINE).await;
    let spec = v1::PipelineSpec { read_location: Some(cluster.location(SEED)), ..cluster.spec(PIPELINE) };
    cluster.client.create_pipeline(spec).await.unwrap();
    let pulled = cluster.pull(v1::StartPullRequest { fail_if_none: Some(true), ..Cluster::pull_request() }).await;
    let problem = pulled.problem.unwrap();
    assert_eq!((pulled.phase, problem.reason.as_str()), (RoundPhase::Failed.into(), "CHECKPOINT_NOT_FOUND"));
    for place in ["the disks of 3 hosts", "location s3://acme-ckpt/orders", "read location s3://acme-ckpt/seed"] {
        assert!(problem.message.contains(place), "{place} is not in {}", problem.message);
    }
    // Without that wish it is a fresh start, proven.
    let fresh = cluster.pull(v1::StartPullRequest { fail_if_none: Some(false), ..Cluster::pull_request() }).await;
    assert_eq!((fresh.phase(), fresh.source()), (RoundPhase::Fresh, PullSource::Fresh));
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_the_same_or_a_nested_location_given_twice_is_refused() {
    let cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    for read in ["orders", "orders/", "orders/deep", ""] {
        let spec = v1::PipelineSpec { read_location: Some(cluster.location(read)), ..cluster.spec(PIPELINE) };
        let refused = cluster.client.create_pipeline(spec).await.unwrap_err();
        let problem = refused.problem().unwrap();
        assert_eq!(problem.reason, "SPEC_INVALID", "{read:?}: {problem:?}");
        assert!(["read_location", "prefix"].contains(&problem.metadata["field"].as_str()), "{read:?}: {problem:?}");
    }
    // A name that only begins alike is another place.
    let spec = v1::PipelineSpec { read_location: Some(cluster.location("orders2")), ..cluster.spec(PIPELINE) };
    cluster.client.create_pipeline(spec).await.unwrap();
}
