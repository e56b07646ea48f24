//! Scenario 34: a commit that the bucket has lost is put back, or given up.

use std::collections::BTreeSet;

use lockstep_client::v1::{self, RoundPhase};
use lockstep_integration_tests::{
    cli::{Ran, lockstep},
    cluster::{BUCKET, Cluster, PIPELINE},
    wait,
};
use lockstep_protocol::{
    commit::AbortRecord,
    id::{Generation, Seq},
};
use sqlx::{Connection as _, PgConnection};

use crate::{
    garbage::{AT_ONCE, cluster, collect_as_foretold, keys, push_step},
    resync::{checkpoint_all, pushed},
};

const COMMIT: &str = "orders/commits/00000000000000000001-00000000000000000002.json";

fn commit_key(seq: usize) -> String {
    format!("orders/commits/00000000000000000001-{seq:020}.json")
}

/// What `Pipeline.lost` names, and how many are lost in all.
async fn named_as_lost(cluster: &Cluster) -> Option<(String, String, String)> {
    let lost = cluster.client.get_pipeline(PIPELINE).await.unwrap().lost?;
    Some((lost.metadata["checkpoint"].clone(), lost.metadata["lost"].clone(), lost.message))
}

/// The commit of the second push is removed, and a coordinator has noticed. What it was.
async fn loses_its_second_commit(cluster: &mut Cluster) -> Vec<u8> {
    let commit = cluster.s3.admin().read(BUCKET, COMMIT).unwrap();
    cluster.s3.admin().remove(BUCKET, COMMIT).unwrap();
    compared_again(cluster).await;
    assert!(cluster.client.get_pipeline(PIPELINE).await.unwrap().lost.is_some());
    commit
}

async fn compared_again(cluster: &mut Cluster) {
    cluster.terminate_coordinator().await;
    let compared = |log: String| log.matches("locations compared with the database").count();
    let before = compared(cluster.coordinator_log());
    cluster.start_coordinator().await;
    wait::until("the locations are compared", async || {
        if compared(cluster.coordinator_log()) > before { Ok(()) } else { Err("not yet") }
    })
    .await;
}

fn failed_with<'r>(ran: &'r Ran, reason: &str) -> &'r Ran {
    assert_ne!(ran.code, 0, "{ran:?}");
    // A call that is refused, or a collection that has ended.
    let (refused, ended) = (&ran.document["error"]["reason"], &ran.document["collection"]["problem"]["reason"]);
    assert_eq!(refused.as_str().or(ended.as_str()), Some(reason), "{ran:?}");
    ran
}

async fn count(cluster: &Cluster, action: &str) -> usize {
    let filter = v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let trail = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    trail.iter().filter(|event| event.action == action).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_lost_commit_that_is_put_back_has_kept_its_objects_and_is_lost_no_more() {
    let mut cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    push_step(&cluster, 10).await;
    let lost = push_step(&cluster, 20).await;
    let commit = loses_its_second_commit(&mut cluster).await;
    push_step(&cluster, 30).await;
    let before = keys(&cluster);
    for gc in [&["gc", PIPELINE, "--dry-run"][..], &["gc", PIPELINE]] {
        let ran = lockstep(&cluster, gc);
        let refused = failed_with(&ran, "CHECKPOINT_NOT_FOUND");
        assert!(refused.stderr.contains("lockstep pipeline accept-loss orders"), "{}", refused.stderr);
        assert!(refused.stderr.contains(COMMIT.strip_prefix("orders/").unwrap()), "{}", refused.stderr);
    }
    assert_eq!(keys(&cluster), before);

    cluster.s3.admin().put_raw(BUCKET, COMMIT, commit).unwrap();
    assert_eq!(cluster.verify(&lost.id).await.problems, [], "nothing of it was collected");
    compared_again(&mut cluster).await;
    assert_eq!(cluster.client.get_pipeline(PIPELINE).await.unwrap().lost, None);
    assert_eq!((count(&cluster, "checkpoint_lost").await, count(&cluster, "checkpoint_found").await), (1, 1));
    collect_as_foretold(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_collection_notices_a_loss_before_it_deletes_anything_and_goes_on_once_the_commit_is_back() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    push_step(&cluster, 10).await;
    let lost = push_step(&cluster, 20).await;
    let commit = cluster.s3.admin().read(BUCKET, COMMIT).unwrap();
    cluster.s3.admin().remove(BUCKET, COMMIT).unwrap();
    let before = keys(&cluster);
    for _ in 0..2 {
        failed_with(&lockstep(&cluster, &["gc", PIPELINE]), "CHECKPOINT_NOT_FOUND");
    }
    assert_eq!(keys(&cluster), before);
    assert!(cluster.client.get_pipeline(PIPELINE).await.unwrap().lost.is_some());
    assert_eq!(count(&cluster, "checkpoint_lost").await, 1);

    cluster.s3.admin().put_raw(BUCKET, COMMIT, commit).unwrap();
    assert_eq!(lockstep(&cluster, &["gc", PIPELINE]).code, 0);
    assert_eq!(cluster.client.get_pipeline(PIPELINE).await.unwrap().lost, None);
    assert_eq!(count(&cluster, "checkpoint_found").await, 1);
    assert_ne!(keys(&cluster), before, "it has collected");
    assert_eq!(cluster.verify(&lost.id).await.problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_loss_that_is_accepted_is_pushed_again_collected_and_not_reported_again() {
    let mut cluster = Cluster::start().await;
    let known = pushed(&cluster, &[10, 20]).await;
    let accept = |cluster: &Cluster, more: &[&str]| {
        lockstep(cluster, &[&["pipeline", "accept-loss", PIPELINE, "--cause", "no versions are kept"], more].concat())
    };
    failed_with(&accept(&cluster, &[]), "CHECKPOINT_NOT_FOUND");
    loses_its_second_commit(&mut cluster).await;
    // The step that was lost is "pushed already".
    assert_eq!(cluster.pushed().await.id, known[0]);

    failed_with(&accept(&cluster, &["--checkpoint", &known[1]]), "CHECKPOINT_NOT_FOUND");
    let asked = ["--checkpoint", &known[0], "--request-id", "5f0c1a52-0000-4000-8000-000000000001"];
    let done = accept(&cluster, &asked);
    assert_eq!((done.code, done.document["checkpoint"].as_str()), (0, Some(known[0].as_str())), "{done:?}");
    assert_eq!(done.document["pipeline"]["lost"], serde_json::Value::Null);
    let again = accept(&cluster, &asked);
    assert_eq!((again.code, &again.document["accept_time"]), (0, &done.document["accept_time"]), "the same answer");
    failed_with(&accept(&cluster, &[]), "CHECKPOINT_NOT_FOUND");
    assert_eq!(count(&cluster, "loss_accepted").await, 1);

    let next = cluster.pushed().await;
    assert_eq!((next.phase(), next.step), (RoundPhase::Committed, Some(20)), "{:?}", next.problem);
    assert_ne!(next.id, known[0]);
    assert_eq!(cluster.verify(&next.id).await.problems, []);
    compared_again(&mut cluster).await;
    assert_eq!(cluster.client.get_pipeline(PIPELINE).await.unwrap().lost, None);
    let planned = lockstep(&cluster, &["resync", PIPELINE, "--dry-run"]);
    assert_eq!((planned.code, planned.document["lost"].as_array().map(Vec::len)), (0, Some(0)), "{planned:?}");
    assert_eq!(count(&cluster, "checkpoint_lost").await, 1);
    assert_eq!(lockstep(&cluster, &["gc", PIPELINE]).code, 0);
    checkpoint_all(&cluster, 30);
    assert_eq!(cluster.pushed().await.step, Some(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_lost_commits_that_are_not_the_newest_are_named_at_the_next_start_and_given_up_by_one_command() {
    let mut cluster = cluster(&AT_ONCE, Some((3, 3600))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30, 40] {
        rounds.push(push_step(&cluster, step).await.id);
    }
    // Retired and swept is not lost, though its commit is gone.
    let deleted = lockstep(&cluster, &["checkpoint", "delete", PIPELINE, "10"]);
    assert_eq!((deleted.code, lockstep(&cluster, &["gc", PIPELINE]).code), (0, 0), "{deleted:?}");
    assert!(!cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap().contains(&commit_key(1)));
    compared_again(&mut cluster).await;
    assert_eq!(named_as_lost(&cluster).await, None);
    // Nor is what another owner has retired, of which this database knows nothing: its tombstone says so.
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    sqlx::query("DELETE FROM retirements").execute(&mut database).await.unwrap();
    compared_again(&mut cluster).await;
    assert_eq!(named_as_lost(&cluster).await, None);
    assert_eq!(lockstep(&cluster, &["gc", PIPELINE]).code, 0);

    let before = keys(&cluster);
    for seq in [2, 3] {
        cluster.s3.admin().remove(BUCKET, &commit_key(seq)).unwrap();
    }
    // A dry run looks as a collection does, and notes nothing.
    failed_with(&lockstep(&cluster, &["gc", PIPELINE, "--dry-run"]), "CHECKPOINT_NOT_FOUND");
    assert_eq!(named_as_lost(&cluster).await, None);
    compared_again(&mut cluster).await;
    let (newest, lost, message) = named_as_lost(&cluster).await.unwrap();
    assert_eq!((&newest, lost.as_str()), (&rounds[2], "2"));
    assert!(
        message.contains(&format!("(`accept-loss orders --all` gives up every one): {} (", rounds[1])),
        "{message}"
    );
    let planned = lockstep(&cluster, &["resync", PIPELINE, "--dry-run"]).document;
    assert_eq!(planned["lost"], serde_json::json!([rounds[2], rounds[1]]));
    failed_with(&lockstep(&cluster, &["gc", PIPELINE]), "CHECKPOINT_NOT_FOUND");
    let objects =
        |keys: BTreeSet<String>| keys.into_iter().filter(|key| !key.starts_with("commits/")).collect::<Vec<_>>();
    assert_eq!(objects(keys(&cluster)), objects(before.clone()));
    // What stands is pulled and pushed all the same.
    cluster.pulled().await;
    push_step(&cluster, 50).await;

    let accept = |more: &[&str]| lockstep(&cluster, &[&["pipeline", "accept-loss", PIPELINE], more].concat());
    let refused = accept(&["--checkpoint", &rounds[1]]);
    assert!(failed_with(&refused, "CHECKPOINT_NOT_FOUND").stderr.contains("the newest first"), "{refused:?}");
    let one = accept(&["--checkpoint", &rounds[2]]);
    assert_eq!((one.code, one.document["checkpoint"].as_str()), (0, Some(rounds[2].as_str())), "{one:?}");
    assert!(one.stderr.contains("another one is lost"), "{}", one.stderr);
    let (next, lost, _) = named_as_lost(&cluster).await.unwrap();
    assert_eq!((&next, lost.as_str()), (&rounds[1], "1"));
    cluster.s3.admin().remove(BUCKET, &commit_key(4)).unwrap();
    compared_again(&mut cluster).await;
    let accept = |more: &[&str]| lockstep(&cluster, &[&["pipeline", "accept-loss", PIPELINE], more].concat());
    let all = accept(&["--all", "--cause", "emptied by hand"]);
    let given_up: Vec<&str> =
        all.document["accepted"].as_array().unwrap().iter().map(|one| one["checkpoint"].as_str().unwrap()).collect();
    assert_eq!((all.code, given_up), (0, vec![rounds[3].as_str(), &rounds[1]]), "{all:?}");
    assert_eq!((count(&cluster, "loss_accepted").await, named_as_lost(&cluster).await), (3, None));
    failed_with(&accept(&["--all"]), "CHECKPOINT_NOT_FOUND");
    compared_again(&mut cluster).await;
    assert_eq!(named_as_lost(&cluster).await, None);
    collect_as_foretold(&cluster);
    assert_ne!(keys(&cluster), before, "what nothing reaches any more has gone");
    assert_eq!(cluster.pulled().await.step, Some(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_commits_that_were_written_over_are_noticed_by_a_collection_and_what_is_put_back_is_not_given_up() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30] {
        rounds.push(push_step(&cluster, step).await.id);
    }
    let admin = cluster.s3.admin();
    let whole = [1, 2].map(|seq| admin.read(BUCKET, &commit_key(seq)).unwrap());
    for (seq, whole) in [1, 2].iter().zip(&whole) {
        let step = format!("\"step\":{}", seq * 10);
        let edited = String::from_utf8(whole.clone()).unwrap().replace(&step, &format!("{step}1"));
        assert_ne!(edited.as_bytes(), whole);
        admin.put_raw(BUCKET, &commit_key(*seq), edited.into_bytes()).unwrap();
    }
    let before = keys(&cluster);
    failed_with(&lockstep(&cluster, &["gc", PIPELINE, "--dry-run"]), "CHECKPOINT_NOT_FOUND");
    assert_eq!(named_as_lost(&cluster).await, None, "a dry run notes nothing");
    for _ in 0..2 {
        failed_with(&lockstep(&cluster, &["gc", PIPELINE]), "CHECKPOINT_NOT_FOUND");
    }
    assert_eq!(keys(&cluster), before, "nothing is retired, nothing deleted");
    let (newest, lost, message) = named_as_lost(&cluster).await.unwrap();
    assert_eq!((&newest, lost.as_str()), (&rounds[1], "2"));
    assert!(message.contains(&format!("{} holds other bytes", COMMIT.strip_prefix("orders/").unwrap())), "{message}");
    assert_eq!(count(&cluster, "checkpoint_lost").await, 1);
    let planned = lockstep(&cluster, &["resync", PIPELINE, "--dry-run"]).document;
    assert_eq!(planned["lost"], serde_json::json!([rounds[1], rounds[0]]));

    // The newer one is put back, and nobody has noticed when everything that is lost is given up.
    admin.put_raw(BUCKET, COMMIT, whole[1].clone()).unwrap();
    let all = lockstep(&cluster, &["pipeline", "accept-loss", PIPELINE, "--all"]);
    let given_up = &all.document["accepted"];
    assert_eq!((all.code, given_up.as_array().map(Vec::len)), (0, Some(1)), "{all:?}");
    assert_eq!(given_up[0]["checkpoint"].as_str(), Some(rounds[0].as_str()));
    assert_eq!((count(&cluster, "checkpoint_found").await, named_as_lost(&cluster).await), (1, None));
    assert_eq!(lockstep(&cluster, &["gc", PIPELINE]).code, 0);
    assert_ne!(keys(&cluster), before, "it has collected");
    assert_eq!(count(&cluster, "loss_accepted").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_an_abort_record_in_the_place_of_a_commit_is_a_loss_and_its_objects_stay() {
    let cluster = cluster(&AT_ONCE, None).await;
    let lost = push_step(&cluster, 10).await;
    push_step(&cluster, 20).await;
    let admin = cluster.s3.admin();
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    let record = AbortRecord {
        pipeline: pipeline.id.parse().unwrap(),
        round: lost.id.parse().unwrap(),
        generation: Generation::FIRST,
        seq: Seq::FIRST,
        aborted_by: "somebody".to_owned(),
        cause: "by hand".to_owned(),
        aborted_at: chrono::DateTime::UNIX_EPOCH,
    };
    admin.put_raw(BUCKET, &commit_key(1), record.encode()).unwrap();
    let before = keys(&cluster);
    failed_with(&lockstep(&cluster, &["gc", PIPELINE]), "CHECKPOINT_NOT_FOUND");
    assert_eq!(keys(&cluster), before);
    assert_eq!(named_as_lost(&cluster).await.unwrap().0, lost.id);
}
