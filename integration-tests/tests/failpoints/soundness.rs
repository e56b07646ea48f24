//! The outside auditor after each case: bucket and database beside each other, every object of every commit, and that each round has an end.

use lockstep_integration_tests::{
    auditor::{
        audit,
        collect::{Sources, collect},
        history::History,
    },
    cluster::{BUCKET, COORDINATOR_KEY, Cluster},
    servers::Account,
};

/// Fails with what it finds. For clusters in memory.
pub(crate) async fn assert_sound(cluster: &Cluster) {
    let secret = format!("{COORDINATOR_KEY}-secret");
    let sources = Sources {
        endpoint: &cluster.endpoint(),
        account: Account { key: COORDINATOR_KEY, secret: &secret },
        bucket: BUCKET,
        journal_root: &cluster.scratch().join("s3"),
        database: cluster.database.url(),
    };
    let audit = audit(&collect(sources, History::default()).await);
    assert!(audit.findings.is_empty(), "{}", audit.listed());
}
