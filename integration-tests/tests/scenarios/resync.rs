//! Scenario 34: a database that was lost, restored from an old dump or replaced knows again what the bucket holds, and the reverse is said.

use std::fs;

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule, TestDatabase};
use lockstep_integration_tests::{
    cli::{Ran, lockstep},
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE},
    wait,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

pub(crate) fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("host {} at step {step}", host.idx).as_bytes())]);
    }
}

/// Pushes these steps; the ids of their checkpoints, newest first.
pub(crate) async fn pushed(cluster: &Cluster, steps: &[u64]) -> Vec<String> {
    let mut ids = Vec::new();
    for &step in steps {
        checkpoint_all(cluster, step);
        ids.insert(0, cluster.pushed().await.id);
    }
    ids
}

async fn listed(cluster: &Cluster) -> Vec<String> {
    cluster.client.list_checkpoints(PIPELINE, 100).await.unwrap().into_iter().map(|one| one.id).collect()
}

/// The spec as its owner keeps it.
fn spec_file(cluster: &Cluster) -> String {
    let agents: Vec<String> = cluster.agents.iter().map(|agent| format!("\"{}\"", agent.address)).collect();
    let spec = format!(
        "name: {PIPELINE}\nhosts: 3\nagents: [{}]\nlocation: {{bucket: {BUCKET}, prefix: {PIPELINE}, region: us-east-1, endpoint: \"{}\", force_path_style: true}}\n",
        agents.join(", "),
        cluster.endpoint()
    );
    let path = cluster.scratch().join("orders.yaml");
    fs::write(&path, spec).unwrap();
    path.display().to_string()
}

/// The cluster's database as it is now, under another name. Nobody may be connected to it.
async fn copy_of(cluster: &Cluster) -> TestDatabase {
    let copy = TestDatabase::create().await.unwrap();
    let (of, to) = (cluster.database.name(), copy.name());
    let server = copy.url().replace(to, "postgres");
    let run = async |statement: String| -> Result<(), sqlx::Error> {
        let mut admin = PgConnection::connect(&server).await?;
        admin.execute(AssertSqlSafe(statement)).await.map(|_| ())
    };
    run(format!("DROP DATABASE {to}")).await.unwrap();
    wait::until("nobody is connected to the database any more", || run(format!("CREATE DATABASE {to} TEMPLATE {of}")))
        .await;
    copy
}

/// A dump of the present state; the coordinator goes on with the original.
async fn dumped(cluster: &mut Cluster) -> TestDatabase {
    cluster.terminate_coordinator().await;
    let dump = copy_of(cluster).await;
    cluster.start_coordinator().await;
    dump
}

/// The coordinator's database is this one from now on.
async fn replaced_by(cluster: &mut Cluster, database: TestDatabase) -> TestDatabase {
    cluster.terminate_coordinator().await;
    let old = std::mem::replace(&mut cluster.database, database);
    cluster.start_coordinator().await;
    old
}

fn resync(cluster: &Cluster, more: &[&str]) -> Ran {
    lockstep(cluster, &[&["resync", PIPELINE], more].concat())
}

/// Every checkpoint is there still, a push and a pull work, and pulls get the newest.
async fn goes_on(cluster: &mut Cluster, known: &[String], step: u64) {
    assert_eq!(listed(cluster).await, known);
    for id in known {
        assert_eq!(cluster.verify(id).await.problems, []);
        // Known as rounds too.
        let round = cluster.client.get_round(id).await.unwrap();
        assert_eq!((round.phase(), round.participants.len()), (RoundPhase::Committed, 3));
    }
    let next = pushed(cluster, &[step]).await;
    assert_eq!(listed(cluster).await, [&next[..], known].concat());
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.phase(), pulled.step), (RoundPhase::Installed, Some(step)), "{:?}", pulled.problem);
}

fn reason(ran: &Ran) -> Option<&str> {
    ran.document["error"]["reason"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_database_that_was_made_anew_knows_every_checkpoint_again_after_a_resync() {
    let mut cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10, 20]).await;
    let id = cluster.client.get_pipeline(PIPELINE).await.unwrap().id;
    let old = replaced_by(&mut cluster, TestDatabase::create().await.unwrap()).await;

    let spec = spec_file(&cluster);
    let push = lockstep(&cluster, &["push", PIPELINE]);
    assert_eq!((push.code, reason(&push)), (4, Some("PIPELINE_NOT_FOUND")), "{push:?}");
    // A pipeline of the same name with another UUID is another one, and the refusal says what to do.
    let applied = lockstep(&cluster, &["pipeline", "apply", "-f", &spec]);
    assert_eq!(reason(&applied), Some("LOCATION_OWNED"), "{applied:?}");
    assert!(applied.stderr.contains("lockstep resync orders"), "{}", applied.stderr);
    let without = resync(&cluster, &[]);
    assert_eq!(reason(&without), Some("PIPELINE_NOT_FOUND"));
    assert!(without.stderr.contains("lockstep resync orders -f"), "{}", without.stderr);

    let planned = resync(&cluster, &["-f", &spec, "--dry-run"]).document;
    assert_eq!((planned["created"].as_bool(), planned["generation"].as_u64()), (Some(true), Some(2)), "{planned}");
    assert_eq!((planned["checkpoints"].as_u64(), planned["newest"]["step"].as_u64()), (Some(2), Some(20)));
    assert_eq!(cluster.client.list_pipelines(10).await.unwrap().len(), 0, "a plan changes nothing");
    let done = resync(&cluster, &["-f", &spec]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.document["pipeline_id"].as_str(), Some(id.as_str()), "agents know it by its UUID");
    assert_eq!(done.document["learnt"].as_array().map(Vec::len), Some(2));
    let row = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    assert_eq!((row.id, row.generation, row.last_committed_step), (id, 2, Some(20)));
    goes_on(&mut cluster, &known, 30).await;

    // Whatever still writes for the old database is fenced.
    cluster.terminate_coordinator().await;
    cluster.database = old;
    cluster.start_coordinator().await;
    let refused = lockstep(&cluster, &["push", PIPELINE, "--wait"]);
    // At admission if the comparison at start was faster, else by the round's own planning.
    let found = reason(&refused).or(refused.document["problem"]["reason"].as_str());
    assert!(matches!(found, Some("FENCED" | "DATABASE_BEHIND")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_database_restored_from_an_old_dump_is_noticed_at_start_and_resynced() {
    let mut cluster = Cluster::start().await;
    let mut known = pushed(&cluster, &[10]).await;
    let dump = dumped(&mut cluster).await;
    known = [pushed(&cluster, &[20, 30]).await, known].concat();
    replaced_by(&mut cluster, dump).await;

    let client = cluster.client.clone();
    let behind = wait::until("the coordinator has compared the bucket with its database", async || {
        client.get_pipeline(PIPELINE).await.unwrap().behind.ok_or("it is not behind")
    })
    .await;
    assert_eq!(behind.reason, "DATABASE_BEHIND");
    for refused in [lockstep(&cluster, &["push", PIPELINE]), lockstep(&cluster, &["pull", PIPELINE, "--standby=true"])]
    {
        assert_eq!(reason(&refused), Some("DATABASE_BEHIND"), "{refused:?}");
        assert!(refused.stderr.contains("lockstep resync orders"), "{}", refused.stderr);
    }
    let planned = resync(&cluster, &["--dry-run"]).document;
    assert_eq!(planned["learnt"].as_array().unwrap().len(), 2, "{planned}");
    let done = resync(&cluster, &[]);
    assert_eq!((done.code, done.document["created"].as_bool()), (0, Some(false)), "{done:?}");
    assert_eq!(done.document["lost"].as_array().map(Vec::len), Some(0));
    let row = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    assert_eq!((row.behind, row.last_committed_step), (None, Some(30)));
    goes_on(&mut cluster, &known, 40).await;

    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    let count = |action: &str| trail.iter().filter(|event| event.action == action).count();
    assert_eq!((count("pipeline_behind"), count("round_learnt"), count("take_over_admitted")), (1, 2, 1));
}

/// A push, and a dump of the database from when it was committing; it is committed since.
async fn committing_in_a_dump(cluster: &mut Cluster) -> (v1::Round, TestDatabase) {
    pushed(cluster, &[10]).await;
    checkpoint_all(cluster, 20);
    // Its commit is answered late: the dump is made while the row is open, and then it lands.
    let key = "orders/commits/00000000000000000001-00000000000000000002.json";
    let held = cluster.s3.faults().add(FaultRule::new(FaultAction::ResetBeforeWrite).method("PUT").key_prefix(key));
    let open = cluster.start_push().await;
    cluster.round_when(&open.id, "it commits", |round| round.phase() == RoundPhase::Committing).await;
    cluster.kill_coordinator();
    let dump = copy_of(cluster).await;
    cluster.s3.faults().remove(held);
    cluster.start_coordinator().await;
    cluster.round_when(&open.id, "it is committed", |round| round.phase() == RoundPhase::Committed).await;
    (open, dump)
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_push_that_is_open_in_a_backup_is_nobodys_until_the_resync_has_settled_it() {
    let mut cluster = Cluster::start().await;
    let (open, dump) = committing_in_a_dump(&mut cluster).await;
    // As if its server were another one than that which wrote the rows.
    let mut sql = PgConnection::connect(dump.url()).await.unwrap();
    sql.execute("UPDATE pipelines SET system_identifier = '4711'").await.unwrap();
    sql.close().await.unwrap();
    let newer = pushed(&cluster, &[30]).await;
    replaced_by(&mut cluster, dump).await;
    let behind = cluster.client.get_pipeline(PIPELINE).await.unwrap().behind.expect("known at once");
    assert!(behind.reason == "DATABASE_BEHIND" && behind.message.contains("server 4711"), "{behind:?}");
    let cancelled = lockstep(&cluster, &["round", "cancel", &open.id]);
    assert_eq!(reason(&cancelled), Some("DATABASE_BEHIND"), "its commit counts: {cancelled:?}");
    assert!(cancelled.stderr.contains("lockstep resync orders"), "{}", cancelled.stderr);
    assert_eq!(cluster.client.get_round(&open.id).await.unwrap().phase(), RoundPhase::Committing);

    let done = resync(&cluster, &[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(cluster.client.get_round(&open.id).await.unwrap().phase(), RoundPhase::Committed);
    assert_eq!(listed(&cluster).await[..2], [newer[0].clone(), open.id.clone()]);
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    let claims = trail.iter().filter(|event| event.action == "round_claimed" && event.round == open.id);
    assert_eq!(claims.count(), 1, "by the database that was lost alone");
    pushed(&cluster, &[40]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_push_that_a_dump_on_the_same_server_holds_as_open_is_committed_if_the_bucket_says_so() {
    let mut cluster = Cluster::start().await;
    let (open, dump) = committing_in_a_dump(&mut cluster).await;
    let newer = pushed(&cluster, &[30]).await;
    // Nothing tells this database from the one that is lost, so a coordinator drives the open row to what stands; what came after it is unknown until the resync.
    replaced_by(&mut cluster, dump).await;
    let client = cluster.client.clone();
    wait::until("the database is found to be behind", async || {
        client.get_pipeline(PIPELINE).await.unwrap().behind.ok_or("it is not behind")
    })
    .await;
    let done = resync(&cluster, &[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(cluster.client.get_round(&open.id).await.unwrap().phase(), RoundPhase::Committed);
    assert_eq!(listed(&cluster).await[..2], [newer[0].clone(), open.id]);
    pushed(&cluster, &[40]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_what_the_database_knows_and_the_bucket_has_lost_is_said_and_the_next_push_is_whole() {
    let mut cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10, 20]).await;
    let key = "orders/commits/00000000000000000001-00000000000000000002.json";
    cluster.s3.admin().remove(BUCKET, key).unwrap();
    cluster.terminate_coordinator().await;
    cluster.start_coordinator().await;
    let client = cluster.client.clone();
    let lost = wait::until("the loss is found", async || {
        client.get_pipeline(PIPELINE).await.unwrap().lost.ok_or("nothing is lost")
    })
    .await;
    assert_eq!(
        (lost.metadata["checkpoint"].as_str(), lost.reason.as_str()),
        (known[0].as_str(), "CHECKPOINT_NOT_FOUND")
    );
    let planned = resync(&cluster, &["--dry-run"]).document;
    assert_eq!(planned["lost"][0].as_str(), Some(known[0].as_str()), "{planned}");
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    assert!(trail.iter().any(|event| event.action == "checkpoint_lost" && event.cause.contains(&known[0])));
    checkpoint_all(&cluster, 30);
    let next = cluster.pushed().await;
    assert_eq!(cluster.verify(&next.id).await.problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_an_outage_during_a_resync_is_an_error_and_changes_nothing() {
    let mut cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10]).await;
    replaced_by(&mut cluster, TestDatabase::create().await.unwrap()).await;
    let spec = spec_file(&cluster);
    for (action, expected) in
        [(FaultAction::SlowDown, "STORE_THROTTLED"), (FaultAction::ResetBeforeWrite, "STORE_UNAVAILABLE")]
    {
        let fault = cluster.s3.faults().add(FaultRule::new(action).access_key(COORDINATOR_KEY));
        let failed = resync(&cluster, &["-f", &spec]);
        assert_eq!(reason(&failed), Some(expected), "never \"nothing is there\": {failed:?}");
        cluster.s3.faults().remove(fault);
        assert_eq!(cluster.client.list_pipelines(10).await.unwrap().len(), 0);
    }
    assert_eq!(resync(&cluster, &["-f", &spec]).code, 0);
    goes_on(&mut cluster, &known, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_resync_that_dies_before_its_take_over_leaves_a_row_that_does_not_follow_and_ends_when_asked_again() {
    let mut cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10]).await;
    // Never pushed: a standby that follows would replace it by the location's newest.
    checkpoint_all(&cluster, 20);
    cluster.arm("create.stored=kill");
    replaced_by(&mut cluster, TestDatabase::create().await.unwrap()).await;
    let spec = spec_file(&cluster);
    let cut = resync(&cluster, &["-f", &spec]);
    assert_ne!(cut.code, 0, "{cut:?}");
    cluster.coordinator_killed().await;
    cluster.arm("");
    cluster.start_coordinator().await;

    let status = lockstep(&cluster, &["standby", "status", PIPELINE]);
    assert_eq!(status.document["standby"]["state"].as_str(), Some("stopped"), "{status:?}");
    let done = resync(&cluster, &["-f", &spec]);
    assert_eq!((done.code, done.document["created"].as_bool()), (0, Some(false)), "{done:?}");
    let next = cluster.pushed().await;
    assert_eq!(next.step, Some(20), "what was never pushed is there still");
    assert_eq!(listed(&cluster).await, [vec![next.id], known].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_pipeline_that_was_deleted_is_not_made_anew_and_the_refusal_names_the_way_back_to_its_checkpoints() {
    let cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10, 20]).await;
    let id = cluster.client.get_pipeline(PIPELINE).await.unwrap().id;
    let deleted = lockstep(&cluster, &["pipeline", "delete", PIPELINE]);
    assert_eq!(deleted.code, 0, "{deleted:?}");

    let spec = spec_file(&cluster);
    let by_id = lockstep(&cluster, &["resync", &id, "-f", &spec]);
    for refused in [resync(&cluster, &["-f", &spec]), resync(&cluster, &["-f", &spec, "--dry-run"]), by_id] {
        assert_eq!((refused.code, reason(&refused)), (4, Some("PIPELINE_NOT_FOUND")), "{refused:?}");
        for said in ["was deleted", id.as_str(), "initial: standby", "lockstep take-over orders"] {
            assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
        }
    }
    assert_eq!(cluster.client.list_pipelines(10).await.unwrap().len(), 0);
    assert_eq!(cluster.s3.admin().keys(BUCKET, "orders/fences/").unwrap().len(), 1, "its fence alone");

    // What it says is what helps.
    fs::write(&spec, fs::read_to_string(&spec).unwrap() + "initial: standby\n").unwrap();
    let applied = lockstep(&cluster, &["pipeline", "apply", "-f", &spec]);
    assert_eq!(applied.code, 0, "{applied:?}");
    let taken = lockstep(&cluster, &["take-over", PIPELINE, "--yes"]);
    assert_eq!((taken.code, taken.document["generation"].as_u64()), (0, Some(2)), "{taken:?}");
    assert_ne!(cluster.client.get_pipeline(PIPELINE).await.unwrap().id, id);
    assert_eq!(listed(&cluster).await, known);
    assert_eq!(cluster.pulled().await.step, Some(20));
    let next = pushed(&cluster, &[30]).await;
    assert_eq!(listed(&cluster).await, [&next[..], &known].concat());
}
