//! An auditor that can't fail is worth nothing: a sound system, then the same with one thing broken at a time.
//!
//! - `sound`: the system that is audited
//! - `broken`: one thing broken, in the evidence
//! - here: a few things broken in the bucket and the database themselves, so that nothing is lost on the way into the evidence

mod broken;
mod sound;

use lockstep_integration_tests::{
    auditor::{Finding, audit},
    cluster::BUCKET,
};
use sound::Sound;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

fn rules(findings: &[Finding]) -> Vec<&'static str> {
    let mut rules: Vec<&str> = findings.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_in_a_sound_system_and_everything_that_is_broken_is() {
    let sound = Sound::make().await;
    let evidence = sound.collect().await;
    let clean = audit(&evidence);
    assert_eq!(clean.findings, Vec::new());
    assert!(clean.commits == 3 && clean.aborts == 1 && clean.installed == 1, "{clean:?}");
    assert!(clean.files > 300 && clean.events > 50 && clean.orphans > 0 && clean.orphan_bytes > 0, "{clean:?}");
    assert!(evidence.rows.rounds.values().any(|round| round.unknown_tries > 0), "a commit whose outcome was unknown");

    broken::each_is_found(&evidence);
    bucket_and_database(&sound).await;
}

/// Broken for real, cumulatively: each adds its finding.
async fn bucket_and_database(sound: &Sound) {
    let admin = sound.cluster.s3.admin();
    let keys = admin.keys(BUCKET, "orders/").unwrap();
    let of = |part: &str| keys.iter().find(|key| key.contains(part)).unwrap();
    admin.flip_byte(BUCKET, of("host1/"), 0).unwrap();
    let found = audit(&sound.collect().await);
    assert_eq!(rules(&found.findings), ["S1"], "a flipped bit: {}", found.listed());

    let commits: Vec<&String> = keys.iter().filter(|key| key.contains("/commits/")).collect();
    let commit = admin.read(BUCKET, commits[0]).unwrap();
    let changed = String::from_utf8(commit).unwrap().replace("\"writer\":\"", "\"writer\":\"not ");
    admin.put_raw(BUCKET, commits[0], &changed).unwrap();
    let found = audit(&sound.collect().await);
    assert_eq!(rules(&found.findings), ["S1", "S3", "S4", "S7"], "a commit written again: {}", found.listed());

    let mut database = PgConnection::connect(sound.cluster.database.url()).await.unwrap();
    // Triggers off, as only a superuser can.
    database.execute("SET session_replication_role = replica").await.unwrap();
    let cancelled = "UPDATE rounds SET phase = 'failed' WHERE phase = 'cancelled'";
    database.execute(AssertSqlSafe(cancelled)).await.unwrap();
    let found = audit(&sound.collect().await);
    assert_eq!(rules(&found.findings), ["S1", "S3", "S4", "S5", "S6", "S7"], "a round retold: {}", found.listed());
}
