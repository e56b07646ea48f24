//! Bucket and database beside each other, after a round: whatever one says of a decision the other says too (S2, S3, S4, S5).

use std::collections::BTreeMap;

use lockstep_integration_tests::cluster::{BUCKET, Cluster, PIPELINE};
use lockstep_protocol::{commit::DecisionObject, digest::Digest};
use sqlx::{Connection as _, PgConnection, Row as _};

/// Fails if they differ, or if a round has no end.
pub(crate) async fn assert_agree(cluster: &Cluster) {
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    let rows = sqlx::query(
        "SELECT id::text AS id, format('commits/%s-%s.json', lpad(generation::text, 20, '0'), lpad(seq::text, 20, '0')) AS key,
                phase, commit_digest, ended_at IS NULL AS active
         FROM rounds WHERE kind = 'push'",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    let admin = cluster.s3.admin();
    let prefix = format!("{PIPELINE}/");
    let mut objects: BTreeMap<String, Vec<u8>> = admin
        .keys(BUCKET, &format!("{prefix}commits/"))
        .unwrap()
        .into_iter()
        .map(|key| (key[prefix.len()..].to_owned(), admin.read(BUCKET, &key).unwrap()))
        .collect();
    for row in rows {
        let (id, key, phase): (String, String, String) = (row.get("id"), row.get("key"), row.get("phase"));
        assert!(!row.get::<bool, _>("active"), "round {id} is {phase} and has no end");
        let found = objects.remove(&key).map(|bytes| (DecisionObject::parse(&key, &bytes).unwrap(), bytes));
        match (phase.as_str(), found) {
            ("committed", Some((DecisionObject::Commit(commit), bytes))) => {
                let digest: String = row.get("commit_digest");
                assert_eq!((commit.round.to_string(), Digest::of(&bytes).to_string()), (id, digest), "{key}");
            }
            ("cancelled" | "failed", Some((DecisionObject::Abort(abort), _))) => {
                assert_eq!(abort.round.to_string(), id, "{key}");
            }
            ("cancelled" | "failed", None) => {}
            (_, found) => panic!("round {id} is {phase}, and {key} holds {:?}", found.map(|(decision, _)| decision)),
        }
    }
    assert!(objects.is_empty(), "decisions of no round: {:?}", objects.keys());
}
