//! A solo pipeline without any coordinator: its agent pushes by `Sync`, and brings its disk to where the engine shall start before it starts.

use std::fs;

use lockstep_client::v1;
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE},
    feldera,
    host::State,
    http, orders, wait,
};
use lockstep_protocol::id::LocalCheckpointId;
use uuid::Uuid;

const SECRET: &str = "agent-0-secret";

/// One agent with its disk and a location; no coordinator runs.
struct Alone {
    cluster: Cluster,
    pipeline: String,
}

impl Alone {
    /// With nothing anywhere; the agent doesn't run.
    async fn new() -> Self {
        Self::with_store("directory").await
    }

    async fn with_store(store: &'static str) -> Self {
        let mut cluster = Cluster::with(Options { hosts: 0, create: false, store, ..Options::default() }).await;
        cluster.kill_coordinator();
        cluster.kill_agent(0);
        Self { cluster, pipeline: Uuid::new_v4().to_string() }
    }

    /// Starts the agent with these flags. False: it ended before the engine might have started.
    async fn start_with(&mut self, flags: &[&str], secret: &str) -> bool {
        let identity =
            ["--pipeline", &self.pipeline].iter().chain(flags).map(|&flag| flag.to_owned()).collect::<Vec<_>>();
        self.cluster.try_start_agent_as(0, &["--solo".to_owned()], &identity, secret).await
    }

    async fn start(&mut self, flags: &[&str]) {
        assert!(self.start_with(flags, SECRET).await, "{}", self.cluster.agent_log(0));
    }

    /// Starts it where that must fail with this reason; the disk stays as it is.
    async fn refused(&mut self, flags: &[&str], reason: &str) {
        self.refused_with(flags, SECRET, reason).await;
    }

    async fn refused_with(&mut self, flags: &[&str], secret: &str, reason: &str) {
        let before = self.state();
        assert!(!self.start_with(flags, secret).await, "{flags:?}: the engine would have started");
        let log = self.cluster.agent_log(0);
        assert!(log.contains(reason), "{flags:?}: no {reason} in {log}");
        assert_eq!(self.state(), before, "{flags:?}: the disk has changed");
    }

    async fn restart(&mut self, flags: &[&str]) {
        self.cluster.kill_agent(0);
        self.start(flags).await;
    }

    fn checkpoint(&self, step: u64) -> LocalCheckpointId {
        self.cluster.hosts[0]
            .checkpoint(step, &[("state.bin", format!("at step {step}").as_bytes()), ("same.bin", &[7; 9_000])])
    }

    fn state(&self) -> State {
        self.cluster.hosts[0].state()
    }

    fn lose_checkpoints(&self) {
        fs::remove_dir_all(self.cluster.hosts[0].dir.join("checkpoints")).unwrap();
    }

    async fn try_sync(&self) -> Result<v1::CommitRef, tonic::Status> {
        let mut agent = orders::agent(&self.cluster.agents[0].address).await;
        let request = v1::SyncRequest { location: Some(self.cluster.location(PIPELINE)) };
        agent.sync(request).await.map(|answer| answer.into_inner().commit.unwrap())
    }

    async fn sync(&self) -> v1::CommitRef {
        self.try_sync().await.unwrap()
    }

    fn commits(&self) -> usize {
        self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/commits/")).unwrap().len()
    }

    fn downloads(&self) -> usize {
        self.cluster.s3.log().count(|request| {
            request.operation == "GetObject" && request.key.as_ref().is_some_and(|key| key.contains("/solo/"))
        })
    }
}

const LATEST: &[&str] = &["--pull-at-start", "latest"];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_restored_at_start_and_a_kept_one_is_left_as_it_is() {
    let mut alone = Alone::new().await;
    alone.start(LATEST).await;
    assert!(alone.cluster.agent_log(0).contains("the engine may start fresh"), "{}", alone.cluster.agent_log(0));
    let first = alone.checkpoint(10);
    let (ten, first) = (alone.state(), (first, alone.sync().await));
    alone.checkpoint(20);
    assert_eq!(alone.sync().await.seq, 2);
    let keys = alone.cluster.s3.admin().keys(BUCKET, "").unwrap();
    assert!(keys.iter().any(|key| key.starts_with("orders/solo/")), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("/host")), "{keys:?}");

    // The pod comes back on its disk: nothing is downloaded, and only the newest is left, so that the engine can't choose an older one.
    let id = alone.cluster.hosts[0].checkpoints().pop().unwrap().parse().unwrap();
    let twenty = alone.cluster.hosts[0].state_of(id);
    alone.cluster.s3.clear_requests();
    alone.restart(LATEST).await;
    assert_eq!((alone.state(), alone.downloads()), (twenty.clone(), 0));

    // It comes back on another one.
    alone.cluster.kill_agent(0);
    alone.cluster.hosts[0].wipe();
    alone.start(LATEST).await;
    assert_eq!(alone.state(), twenty);
    assert!(alone.cluster.hosts[0].leftovers().is_empty(), "{:?}", alone.cluster.hosts[0].leftovers());
    alone.checkpoint(30);
    assert_eq!(alone.sync().await.seq, 3, "and it goes on from there");

    // An exact checkpoint by its step, by its id, and from a disk that still holds it.
    let round = first.1.round.clone();
    for which in ["10", round.as_str()] {
        alone.cluster.kill_agent(0);
        alone.lose_checkpoints();
        alone.start(&["--pull-at-start", which]).await;
        assert_eq!(alone.state(), ten, "{which}");
    }
    assert_eq!(alone.cluster.hosts[0].checkpoints(), [first.0.to_string()]);
    alone.cluster.s3.clear_requests();
    alone.restart(&["--pull-at-start", &round]).await;
    assert_eq!((alone.state(), alone.downloads()), (ten, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dbsp_directory_is_synced_lost_and_restored_at_start() {
    let mut alone = Alone::with_store("feldera").await;
    feldera::copy_host(0, &alone.cluster.hosts[0].dir);
    alone.start(LATEST).await;
    assert_eq!(alone.sync().await.seq, 1);
    alone.cluster.kill_agent(0);
    alone.cluster.hosts[0].wipe();
    alone.start(LATEST).await;
    feldera::assert_restored(&alone.cluster.hosts[0], 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_not_ready_and_takes_no_order_before_its_disk_is_what_the_engine_shall_start_from() {
    let mut alone = Alone::new().await;
    alone.start(LATEST).await;
    alone.checkpoint(10);
    alone.sync().await;
    alone.cluster.kill_agent(0);
    alone.cluster.hosts[0].wipe();
    let free = alone.cluster.free_address();
    let faults = alone.cluster.s3.faults().clone();
    let held = faults.add(FaultRule::new(FaultAction::Hang).operation("GetObject").key_contains("/solo/"));
    let grpc = alone.cluster.agents[0].address.clone();
    let during = async {
        wait::until("the start-up pull is under way", || async {
            if faults.hits(held) > 0 { Ok(()) } else { Err("no") }
        })
        .await;
        let answer = http::get(&free, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the engine must not start"), "{answer}");
        assert!(http::get(&free, "/healthz").await.starts_with("HTTP/1.1 200"), "it lives");
        let described = orders::agent(&grpc).await.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.running.unwrap().kind, "start-up pull");
        assert!(faults.remove(held));
    };
    let flags = ["--pull-at-start", "latest", "--http-listen", &free];
    tokio::join!(alone.start(&flags), during);
    assert!(http::get(&free, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(alone.cluster.hosts[0].checkpoints().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_comes_back_behind_the_location_is_brought_to_the_newest_checkpoint() {
    let mut alone = Alone::new().await;
    alone.start(LATEST).await;
    let old = alone.checkpoint(10);
    alone.sync().await;
    // Another volume, on which the pipeline goes on.
    let (folder, away) = (alone.cluster.hosts[0].folder(old), alone.cluster.scratch().join("away"));
    fs::rename(&folder, &away).unwrap();
    alone.restart(LATEST).await;
    alone.checkpoint(20);
    alone.sync().await;
    let newest = alone.cluster.hosts[0].checkpoints().pop().unwrap().parse().unwrap();
    let twenty = alone.cluster.hosts[0].state_of(newest);

    alone.cluster.kill_agent(0);
    alone.cluster.hosts[0].wipe();
    fs::create_dir(alone.cluster.hosts[0].dir.join("checkpoints")).unwrap();
    fs::rename(&away, &folder).unwrap();
    alone.start(LATEST).await;
    assert_eq!(alone.state(), twenty);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_between_journal_and_put_finishes_its_commit_before_the_engine_starts() {
    for point in ["sync.commit_stored", "sync.after_put"] {
        let mut alone = Alone::new().await;
        alone.start(LATEST).await;
        alone.checkpoint(10);
        alone.sync().await;
        alone.checkpoint(20);
        let id = alone.cluster.hosts[0].checkpoints().pop().unwrap().parse().unwrap();
        let twenty = alone.cluster.hosts[0].state_of(id);
        alone.cluster.arm(format!("{point}=kill"));
        alone.restart(&[]).await;
        alone.try_sync().await.unwrap_err();
        alone.cluster.agent_killed(0).await;
        alone.cluster.arm("");
        assert_eq!(alone.commits(), if point == "sync.commit_stored" { 1 } else { 2 });

        // The engine's checkpoints are lost, the agent's own state is not. Without its own commit it would start from step 10, and step 20 be the newest later.
        alone.lose_checkpoints();
        alone.start(LATEST).await;
        assert_eq!((alone.state(), alone.commits()), (twenty, 2), "{point}");
        assert_eq!(alone.sync().await.seq, 2, "{point}: it is committed once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_its_start_up_pull_begins_it_again() {
    let mut alone = Alone::new().await;
    alone.start(LATEST).await;
    alone.checkpoint(10);
    alone.sync().await;
    let ten = alone.state();
    alone.cluster.kill_agent(0);
    for point in ["pull.staging_created", "pull.before_sync", "pull.synced", "install.begun", "install.placed"] {
        alone.cluster.hosts[0].wipe();
        alone.cluster.arm(format!("{point}=kill"));
        assert!(!alone.start_with(LATEST, SECRET).await, "{point} was not reached");
        alone.cluster.arm("");
        alone.start(LATEST).await;
        assert_eq!(alone.state(), ten, "{point}");
        assert!(alone.cluster.hosts[0].leftovers().is_empty(), "{point}: {:?}", alone.cluster.hosts[0].leftovers());
        alone.cluster.kill_agent(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_or_does_not_answer_never_starts_an_engine() {
    let mut alone = Alone::new().await;
    // A failure that passes by itself is not the end of a start.
    let short = FaultRule::new(FaultAction::SlowDown).operation("ListObjectsV2").times(2);
    alone.cluster.s3.faults().add(short);
    alone.start(LATEST).await;
    alone.cluster.kill_agent(0);
    // An empty location that can't be seen, with and without leave to start fresh.
    for fail_if_none in ["--fail-if-none=true", "--fail-if-none=false"] {
        alone
            .refused_with(&["--pull-at-start", "latest", fail_if_none], "not-the-secret", "SignatureDoesNotMatch")
            .await;
        let down = alone.cluster.s3.faults().add(FaultRule::new(FaultAction::InternalError).operation("ListObjectsV2"));
        alone.refused(&["--pull-at-start", "latest", fail_if_none], "STORE_UNAVAILABLE").await;
        alone.cluster.s3.faults().remove(down);
    }
    // Nor where there is a local checkpoint, which may be behind, nor where there is one to download.
    alone.start(LATEST).await;
    alone.checkpoint(10);
    alone.sync().await;
    alone.cluster.kill_agent(0);
    alone.refused_with(LATEST, "not-the-secret", "STORE_DENIED").await;
    alone.lose_checkpoints();
    let cut = alone
        .cluster
        .s3
        .faults()
        .add(FaultRule::new(FaultAction::InternalError).operation("GetObject").key_contains("/commits/"));
    alone.refused(LATEST, "STORE_UNAVAILABLE").await;
    alone.cluster.s3.faults().remove(cut);
    alone.start(LATEST).await;
    assert_eq!(alone.cluster.hosts[0].checkpoints().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_location_starts_fresh_only_where_that_may_be() {
    let mut alone = Alone::new().await;
    alone.refused(&["--pull-at-start", "latest", "--fail-if-none"], "CHECKPOINT_NOT_FOUND").await;
    alone.refused(&["--pull-at-start", "7"], "CHECKPOINT_NOT_FOUND").await;
    alone.refused(&["--pull-at-start", &Uuid::new_v4().to_string()], "CHECKPOINT_NOT_FOUND").await;
    // It would abandon what the disk has.
    alone.checkpoint(3);
    alone.refused(&["--pull-at-start", "7", "--fail-if-none=false"], "NO_COMMON_CHECKPOINT").await;
    alone.start(&["--pull-at-start", "latest", "--fail-if-none"]).await;
    assert_eq!(alone.cluster.hosts[0].checkpoints().len(), 1, "the local one is the latest");
    alone.cluster.kill_agent(0);
    alone.lose_checkpoints();
    for flags in [LATEST, &["--pull-at-start", "7", "--fail-if-none=false"]] {
        alone.start(flags).await;
        assert!(alone.cluster.agent_log(0).contains("the engine may start fresh"), "{flags:?}");
        alone.cluster.kill_agent(0);
    }
    assert!(alone.cluster.s3.admin().keys(BUCKET, "").unwrap().is_empty(), "a start writes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_that_a_database_owns_is_neither_synced_to_nor_started_from() {
    let mut alone = Alone::new().await;
    alone.cluster.start_coordinator().await;
    alone.cluster.client.create_pipeline(alone.cluster.spec(PIPELINE)).await.unwrap();
    alone.refused(LATEST, "LOCATION_OWNED").await;
    alone.start(&[]).await;
    alone.checkpoint(10);
    let problem = lockstep_client::RpcProblem::from_status(&alone.try_sync().await.unwrap_err());
    assert_eq!((problem.reason.as_str(), problem.metadata["owner_name"].as_str()), ("LOCATION_OWNED", PIPELINE));
    alone.cluster.kill_agent(0);
    alone.refused(LATEST, "LOCATION_OWNED").await;
    assert_eq!(alone.commits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_takes_a_direct_location_over_loses_nothing_and_the_agent_writes_there_no_more() {
    let mut alone = Alone::new().await;
    alone.start(LATEST).await;
    alone.checkpoint(10);
    alone.sync().await;
    let ten = alone.state();
    alone.cluster.start_coordinator().await;
    let refused = alone.cluster.client.create_pipeline(alone.cluster.spec(PIPELINE)).await.unwrap_err();
    assert_eq!(refused.reason(), "LOCATION_OWNED");
    let spec = v1::PipelineSpec { initial: v1::Initial::Standby.into(), ..alone.cluster.spec(PIPELINE) };
    alone.cluster.client.create_pipeline(spec).await.unwrap();
    let taken = v1::TakeOverRequest { pipeline: PIPELINE.to_owned(), ..v1::TakeOverRequest::default() };
    let taken = alone.cluster.client.take_over(taken).await.unwrap();
    assert_eq!((taken.generation, taken.previous_owner.as_str()), (2, alone.pipeline.as_str()));

    // The old writer is alive, and has something new.
    alone.checkpoint(11);
    let problem = lockstep_client::RpcProblem::from_status(&alone.try_sync().await.unwrap_err());
    assert_eq!(problem.reason, "LOCATION_OWNED", "{problem:?}");
    alone.cluster.kill_agent(0);
    alone.refused(LATEST, "LOCATION_OWNED").await;

    // The same host under the coordinator: what the agent acknowledged is restored and built upon.
    alone.cluster.hosts[0].wipe();
    alone.cluster.start_agent(0).await;
    alone.cluster.pulled().await;
    assert_eq!(alone.state(), ten);
    alone.checkpoint(20);
    let pushed = alone.cluster.pushed().await;
    assert_eq!((pushed.generation, pushed.step), (2, Some(20)));
}
