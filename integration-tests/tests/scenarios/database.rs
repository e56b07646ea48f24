//! Real coordinators over a database that is not a plain one.

use lockstep_client::v1::RoundPhase;
use lockstep_integration_tests::{
    cluster::{COORDINATOR_KEY, Cluster, Options, client_of},
    host::Host,
};

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_behind_pgbouncer_push_restore_and_take_over_from_each_other() {
    let mut cluster = Cluster::with(Options { pooled: true, ..Options::default() }).await;
    assert!(cluster.coordinator_log().contains("a pooler stands before Postgres"), "{}", cluster.coordinator_log());
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", format!("{} of ten", host.idx).as_bytes())]);
    }
    cluster.pushed().await;

    // Killed in the middle: the other one finishes it, over other server connections.
    let newest = |host: &Host| host.checkpoint(11, &[("a", format!("{} of eleven", host.idx).as_bytes())]);
    let newest: Vec<_> = cluster.hosts.iter().map(newest).collect();
    let pushed: Vec<_> = cluster.hosts.iter().zip(&newest).map(|(host, id)| host.state_of(*id)).collect();
    let secret = format!("{COORDINATOR_KEY}-secret");
    let round = cluster.start_push().await;
    cluster.kill_coordinator();
    let (_process, address) = cluster.another_coordinator("second", "127.0.0.1:0", &secret).await;
    let second = client_of(&format!("http://{address}"));
    let round = second.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);

    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    let pulled = second.start_pull(Cluster::pull_request()).await.unwrap();
    let pulled = second.wait_round(&pulled.id).await.unwrap();
    assert_eq!(pulled.phase(), RoundPhase::Installed, "{:?}", pulled.problem);
    let pulled: Vec<_> = cluster.hosts.iter().zip(&newest).map(|(host, id)| host.state_of(*id)).collect();
    assert_eq!(pulled, pushed);
}
