//! A good pipeline that goes on while others misbehave.

use std::{cell::Cell, time::Duration};

use lockstep_client::v1;
use lockstep_integration_tests::cluster::{Cluster, PIPELINE};

/// Longest that a good push may take meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// One good call and one whole round.
pub(crate) async fn round(cluster: &Cluster) {
    let good = async {
        cluster.client.get_pipeline(PIPELINE).await.expect("a good call is answered");
        let request =
            v1::StartPushRequest { pipeline: PIPELINE.to_owned(), force: true, ..v1::StartPushRequest::default() };
        let round = cluster.client.start_push(request).await.expect("a good push is admitted");
        cluster.client.wait_round(&round.id).await.expect("a good push can be waited for")
    };
    let round = tokio::time::timeout(PATIENCE, good).await.expect("a good push ends in time");
    assert_eq!(round.phase(), v1::RoundPhase::Committed, "{:?}", round.problem);
}

/// Rounds of the good pipeline while `abuse` goes on, and one afterwards. How many there were.
pub(crate) async fn rounds_during(cluster: &Cluster, abuse: impl Future<Output = ()>) -> u32 {
    let (over, mut rounds) = (Cell::new(false), 0);
    let abuse = async {
        abuse.await;
        over.set(true);
    };
    let good = async {
        while !over.get() {
            round(cluster).await;
            rounds += 1;
        }
        round(cluster).await;
    };
    tokio::join!(abuse, good);
    assert!(rounds > 0, "no round while it went on");
    rounds
}
