//! Any number of coordinators over one Postgres: whoever is asked answers, whoever dies is replaced.

use std::time::{Duration, Instant};

use lockstep_client::{
    LockstepClient,
    v1::{self, RoundPhase},
};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{COORDINATOR_KEY, Cluster, Options, PIPELINE, Pooled, agent_key, client_of},
    host::Host,
    process::Process,
    wait,
};
use sqlx::{Connection as _, PgConnection};
use tokio_stream::StreamExt as _;

/// Lease of every coordinator of a cluster.
const LEASE: Duration = Duration::from_secs(2);

/// What the defaults promise beyond the lease.
const BEYOND: Duration = Duration::from_secs(1);

/// What a busy machine may add.
const BUSY: Duration = Duration::from_secs(10);

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("a", format!("{} {step}", host.idx).as_bytes())]);
    }
}

/// One replica beside the others.
struct Replica {
    name: &'static str,
    process: Option<Process>,
    client: LockstepClient,
}

impl Replica {
    async fn start(cluster: &Cluster, name: &'static str) -> Self {
        let (process, address) = cluster.another_coordinator(name, "127.0.0.1:0", "coordinator-secret").await;
        Self { name, process: Some(process), client: client_of(&format!("http://{address}")) }
    }
}

/// A cluster whose only coordinators are these two.
async fn two(cluster: &mut Cluster) -> [Replica; 2] {
    let replicas = [Replica::start(cluster, "first").await, Replica::start(cluster, "second").await];
    assert!(cluster.terminate_coordinator().await.success());
    replicas
}

fn push() -> v1::StartPushRequest {
    v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() }
}

/// Who drives a round, and under which term.
async fn driver(database: &mut PgConnection, round: &str) -> (Option<String>, i64) {
    sqlx::query_as("SELECT lease_owner, term FROM rounds WHERE id = $1::uuid")
        .bind(round)
        .fetch_one(database)
        .await
        .unwrap()
}

/// Until somebody drives it whose name is not this.
async fn driven_by_other(database: &mut PgConnection, round: &str, but: &str) -> (String, i64) {
    let until = Instant::now() + wait::PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    loop {
        looks.tick().await;
        match driver(database, round).await {
            (Some(owner), term) if owner != but => return (owner, term),
            last => assert!(Instant::now() < until, "round {round} is driven by {last:?}"),
        }
    }
}

async fn in_phase(client: &LockstepClient, round: &str, phase: RoundPhase) {
    wait::until("the round is in its phase", || async {
        let round = client.get_round(round).await.map_err(|error| error.to_string())?;
        if round.phase() == phase { Ok(()) } else { Err(format!("{:?}: {:?}", round.phase(), round.problem)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_admits_shows_watches_and_cancels_a_round_that_another_one_drives() {
    let mut cluster = Cluster::start().await;
    let replicas = two(&mut cluster).await;
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    for (step, asked) in [(10, 0), (20, 1)] {
        checkpoint_all(&cluster, step);
        let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
        let fault = cluster.s3.faults().add(fault);
        let request = v1::StartPushRequest { request_id: uuid::Uuid::new_v4().to_string(), ..push() };
        let round = replicas[asked].client.start_push(request.clone()).await.unwrap();
        assert_eq!(replicas[1 - asked].client.start_push(request).await.unwrap().id, round.id, "one id, one round");
        let (owner, _) = driven_by_other(&mut database, &round.id, "").await;
        let stranger = replicas.iter().find(|replica| replica.name != owner).unwrap();
        let mut watch = stranger.client.watch_round(&round.id);
        loop {
            let seen = watch.next().await.expect("the watch goes on").unwrap();
            if seen.phase() == RoundPhase::Transferring {
                break;
            }
        }
        let cancelled = stranger.client.cancel_round(&round.id, "a better idea").await.unwrap();
        assert_eq!(cancelled.phase(), RoundPhase::Cancelled, "{:?}", cancelled.problem);
        let last = watch.filter_map(Result::ok).collect::<Vec<_>>().await.pop().expect("the watch shows the end");
        assert_eq!(last.phase(), RoundPhase::Cancelled);
        // The driver heard of it: nothing else ends a round whose transfer hangs.
        cluster.s3.faults().remove(fault);
    }
}

/// What holds a round where the driver shall die.
fn holding(phase: RoundPhase) -> FaultRule {
    match phase {
        RoundPhase::Planning => FaultRule::new(FaultAction::Hang).access_key(COORDINATOR_KEY).key_contains("orders/"),
        RoundPhase::Transferring => FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject"),
        _ => FaultRule::new(FaultAction::Hang)
            .access_key(COORDINATOR_KEY)
            .operation("PutObject")
            .key_contains("/commits/"),
    }
}

/// A push that one replica is asked for is committed although whoever drives it is killed in this phase; how long it was driven by nobody. The dead one is back
/// afterwards.
async fn the_driver_of_a_push_dies(
    cluster: &Cluster,
    replicas: &mut [Replica; 2],
    database: &mut PgConnection,
    asked: usize,
    phase: RoundPhase,
) -> Duration {
    let fault = cluster.s3.faults().add(holding(phase));
    let round = replicas[asked].client.start_push(push()).await.unwrap();
    let (owner, term) = driven_by_other(database, &round.id, "").await;
    in_phase(&replicas[asked].client, &round.id, phase).await;
    let dead = replicas.iter().position(|replica| replica.name == owner).unwrap();
    replicas[dead].process.take().expect("it runs").kill();
    let killed = Instant::now();
    let (other, next_term) = driven_by_other(database, &round.id, &owner).await;
    let took = killed.elapsed();
    assert!(other != owner && next_term > term, "{other} with term {next_term} after {owner} with {term}");
    cluster.s3.faults().remove(fault);
    let ended = replicas[1 - dead].client.wait_round(&round.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Committed, "{phase:?}: {:?}", ended.problem);
    assert!(ended.participants.iter().all(|host| host.attempt == 1), "nothing was sent twice: {ended:?}");
    replicas[dead] = Replica::start(cluster, replicas[dead].name).await;
    took
}

/// `LOCKSTEP_TAKE_OVERS` for more.
#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_a_killed_replica_are_driven_again_within_its_lease_and_a_second() {
    let kills = std::env::var("LOCKSTEP_TAKE_OVERS").ok().and_then(|number| number.parse().ok()).unwrap_or(21);
    let mut cluster = Cluster::with(Options { hosts: 2, ..Options::default() }).await;
    let mut replicas = two(&mut cluster).await;
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    let mut took = Vec::new();
    for kill in 0..kills {
        let phase = [RoundPhase::Planning, RoundPhase::Transferring, RoundPhase::Committing][kill % 3];
        checkpoint_all(&cluster, 10 + kill as u64);
        took.push((the_driver_of_a_push_dies(&cluster, &mut replicas, &mut database, kill % 2, phase).await, phase));
    }
    took.sort_unstable_by_key(|(took, _)| *took);
    let at = |share: f64| took[(share * (took.len() - 1) as f64).round() as usize].0;
    eprintln!(
        "{kills} kills, lease {LEASE:?}: driven again after p50 {:?}, p99 {:?}, most {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    // Most times; what a busy machine adds to the others is no part of the promise.
    assert!(at(0.5) <= LEASE + BEYOND && at(1.0) <= LEASE + BUSY, "{took:?}");
}

/// Push, restore and take-over of rounds, every statement of two real coordinators through Debian's PgBouncer.
async fn all_of_it_behind_pgbouncer(pooled: Pooled) {
    let mut cluster = Cluster::with(Options { hosts: 2, pooled: Some(pooled), ..Options::default() }).await;
    let log = cluster.coordinator_log();
    assert!(log.contains("a pooler stands before Postgres"), "{log}");
    let mut replicas = two(&mut cluster).await;
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    for (asked, phase) in
        [RoundPhase::Planning, RoundPhase::Transferring, RoundPhase::Committing].into_iter().enumerate()
    {
        checkpoint_all(&cluster, 10 + asked as u64);
        the_driver_of_a_push_dies(&cluster, &mut replicas, &mut database, asked % 2, phase).await;
    }
    // Their ids rise with time.
    let newest = |host: &Host| host.state_of(host.checkpoints().pop().unwrap().parse().unwrap());
    let pushed: Vec<_> = cluster.hosts.iter().map(newest).collect();

    // The same for a pull, on empty disks.
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    let held = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("GetObject");
    let held = cluster.s3.faults().add(held);
    let round = replicas[0].client.start_pull(Cluster::pull_request()).await.unwrap();
    let (owner, _) = driven_by_other(&mut database, &round.id, "").await;
    in_phase(&replicas[0].client, &round.id, RoundPhase::Transferring).await;
    let dead = replicas.iter().position(|replica| replica.name == owner).unwrap();
    replicas[dead].process.take().expect("it runs").kill();
    driven_by_other(&mut database, &round.id, &owner).await;
    cluster.s3.faults().remove(held);
    let ended = replicas[1 - dead].client.wait_round(&round.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Installed, "{:?}", ended.problem);
    let pulled: Vec<_> = cluster.hosts.iter().map(Host::state).collect();
    assert_eq!(pulled, pushed);

    // The location changes its generation, and the pipeline goes on there.
    let survivor = &replicas[1 - dead].client;
    let taken = v1::TakeOverRequest { pipeline: PIPELINE.to_owned(), ..v1::TakeOverRequest::default() };
    assert_eq!(survivor.take_over(taken).await.unwrap().generation, 2);
    checkpoint_all(&cluster, 20);
    let round = survivor.start_push(push()).await.unwrap();
    let round = survivor.wait_round(&round.id).await.unwrap();
    assert_eq!((round.phase(), round.generation), (RoundPhase::Committed, 2), "{:?}", round.problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_behind_pgbouncer_with_a_direct_url_push_restore_and_take_over_from_each_other() {
    all_of_it_behind_pgbouncer(Pooled::Around).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_behind_pgbouncer_alone_push_restore_and_take_over_from_each_other_by_polling() {
    all_of_it_behind_pgbouncer(Pooled::Alone).await;
}
