//! Scenario 34, by fail-over: the primary dies, a replica of it is promoted, and the same coordinators go on with it by the same address.

use std::{fs, os::unix::fs::PermissionsExt as _};

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule, Postgres};
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE, agent_key},
    own_postgres::{OwnPostgres, Stop},
    wait,
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

/// A primary with a hot standby, and a cluster that knows one address for both.
struct Pair {
    postgres: OwnPostgres,
    standby: Postgres,
    cluster: Cluster,
    _data: TempDir,
}

async fn pair(flags: &[&'static str]) -> Pair {
    let data = tempfile::tempdir().unwrap();
    // Postgres runs as another user than root.
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let postgres = OwnPostgres::start(34).await;
    let standby = postgres.standby(&data.path().join("standby")).await;
    let options =
        Options { database_url: Some(postgres.url()), coordinator_flags: flags.to_vec(), ..Options::default() };
    let cluster = Cluster::with(options).await;
    let pair = Pair { postgres, standby, cluster, _data: data };
    pair.is_replayed().await;
    pair
}

impl Pair {
    async fn on_standby(&self) -> PgConnection {
        PgConnection::connect(&self.standby.url("lockstep")).await.unwrap()
    }

    /// Until the standby has all that the primary has.
    async fn is_replayed(&self) {
        let now: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text")
            .fetch_one(&mut self.postgres.connect().await)
            .await
            .unwrap();
        wait::until("the standby has it all", || async {
            let mut standby = self.on_standby().await;
            let replayed: bool = sqlx::query_scalar("SELECT coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)")
                .bind(&now)
                .fetch_one(&mut standby)
                .await
                .unwrap();
            if replayed { Ok(()) } else { Err("it lags") }
        })
        .await;
    }

    /// The primary is dead for good, and the address leads to what was its standby.
    async fn fail_over(mut self) -> (OwnPostgres, Cluster, TempDir) {
        self.postgres.stop(Stop::Crash).await;
        let mut standby = self.on_standby().await;
        assert!(sqlx::query_scalar::<_, bool>("SELECT pg_promote()").fetch_one(&mut standby).await.unwrap());
        self.postgres.fail_over(self.standby);
        (self.postgres, self.cluster, self._data)
    }
}

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("host {} at step {step}", host.idx).as_bytes())]);
    }
}

async fn pushed(cluster: &Cluster, step: u64) -> String {
    checkpoint_all(cluster, step);
    cluster.pushed().await.id
}

/// The pipeline, once its row was written by the promoted server.
async fn resynced(cluster: &Cluster) -> v1::Pipeline {
    wait::until("the pipeline is the promoted server's", || async {
        let row = cluster.client.get_pipeline(PIPELINE).await.map_err(|error| error.to_string())?;
        if row.generation == 2 && row.behind.is_none() { Ok(row) } else { Err(format!("{row:?}")) }
    })
    .await
}

async fn listed(cluster: &Cluster) -> Vec<String> {
    cluster.client.list_checkpoints(PIPELINE, 100).await.unwrap().into_iter().map(|one| one.id).collect()
}

/// Every acknowledged checkpoint is there, whole, and known as a round; a push and a pull work.
async fn nothing_is_lost(cluster: &mut Cluster, acknowledged: &[String], step: u64) {
    assert_eq!(listed(cluster).await, acknowledged);
    for id in acknowledged {
        assert_eq!(cluster.verify(id).await.problems, []);
        assert_eq!(cluster.client.get_round(id).await.unwrap().phase(), RoundPhase::Committed);
    }
    pushed(cluster, step).await;
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    let pulled = cluster.pulled().await;
    assert_eq!((pulled.phase(), pulled.step), (RoundPhase::Installed, Some(step)), "{:?}", pulled.problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_the_primary_dies_and_its_synchronous_replica_knows_every_round() {
    let pair = pair(&[]).await;
    pair.postgres.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    pair.postgres.execute("SELECT pg_reload_conf()").await;
    wait::until("the standby is synchronous", || async {
        let state = "SELECT coalesce(max(sync_state), 'none') FROM pg_stat_replication";
        let state: String = sqlx::query_scalar(state).fetch_one(&mut pair.postgres.connect().await).await.unwrap();
        if state == "sync" { Ok(()) } else { Err(state) }
    })
    .await;
    let mut acknowledged = vec![pushed(&pair.cluster, 10).await];
    acknowledged.insert(0, pushed(&pair.cluster, 20).await);
    // One is under way: it was admitted by the dead one, and the base of the resync settles it.
    checkpoint_all(&pair.cluster, 30);
    let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let hang = pair.cluster.s3.faults().add(hang);
    let open = pair.cluster.start_push().await;
    pair.cluster.round_when(&open.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;

    let (_postgres, mut cluster, _data) = pair.fail_over().await;
    let row = resynced(&cluster).await;
    assert_eq!(row.last_committed_step, Some(20));
    cluster.s3.faults().remove(hang);
    let settled = cluster.client.wait_round(&open.id).await.unwrap();
    assert_eq!(settled.phase(), RoundPhase::Failed, "{settled:?}");
    assert_eq!(settled.problem.unwrap().reason, "FENCED");
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    assert_eq!(trail.iter().filter(|event| event.action == "round_learnt").count(), 0, "it knew them all");
    nothing_is_lost(&mut cluster, &acknowledged, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_promoted_replica_that_lacks_the_tail_knows_it_again_and_collects_nothing_before() {
    // Everything would go at once: whatever a collector that is behind took for garbage.
    let pair = pair(&["--gc-grace", "0s", "--gc-interval", "1s"]).await;
    let mut acknowledged = vec![pushed(&pair.cluster, 10).await];
    pair.is_replayed().await;
    // The standby hears nothing any more.
    let mut standby = pair.on_standby().await;
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    standby.execute("SELECT pg_reload_conf()").await.unwrap();
    wait::until("nothing is replicated", || async {
        let count = "SELECT count(*) FROM pg_stat_replication";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut pair.postgres.connect().await).await.unwrap();
        if count == 0 { Ok(()) } else { Err(count) }
    })
    .await;
    for step in [20, 30] {
        acknowledged.insert(0, pushed(&pair.cluster, step).await);
    }
    let before = pair.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/host")).unwrap();

    let (_postgres, mut cluster, _data) = pair.fail_over().await;
    let row = resynced(&cluster).await;
    assert_eq!(row.last_committed_step, Some(30));
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    let count = |action: &str| trail.iter().filter(|event| event.action == action).count();
    assert_eq!((count("pipeline_behind"), count("round_learnt"), count("take_over_admitted")), (1, 2, 1), "{trail:#?}");
    let after = cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/host")).unwrap();
    assert_eq!(after, before, "no object of what it did not know was taken for garbage");
    nothing_is_lost(&mut cluster, &acknowledged, 40).await;
}
