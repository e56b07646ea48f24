//! Scenario 31: what a collection has to leave for later, and that it leaves nothing else.

use lockstep_client::v1;
use lockstep_devkit::DenyRule;
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, Cluster, PIPELINE},
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, Seq},
    pin::Pin,
};
use serde_json::Value;

use crate::garbage::{
    AT_ONCE, attempts_of, cluster, collect_as_foretold, every_checkpoint_verifies, keys, push_step, steps,
};

#[tokio::test(flavor = "multi_thread")]
async fn s31_what_the_store_does_not_let_go_of_means_later() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    for step in [10, 20] {
        push_step(&cluster, step).await;
    }
    cluster.s3.denials().add(DenyRule {
        operation: Some("DeleteObject".to_owned()),
        key_prefix: Some(format!("{PIPELINE}/host1/")),
        ..DenyRule::default()
    });
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    assert_eq!(done.code, 0, "later is no failure: {done:?}");
    let collection = &done.document["collection"];
    assert_eq!((&collection["phase"], &collection["problem"]["reason"]), (&"done".into(), &"STORE_DENIED".into()));
    assert!(collection["put_off"].as_u64().unwrap() > 0, "{collection}");
    every_checkpoint_verifies(&cluster);
    cluster.s3.denials().clear();
    let done = collect_as_foretold(&cluster);
    assert_eq!((&done["swept"], &done["put_off"]), (&Value::from(1), &Value::from(0)), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_a_locked_object_holds_up_its_own_checkpoint_and_nothing_else() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30] {
        rounds.push(push_step(&cluster, step).await);
    }
    let commits = |cluster: &Cluster| attempts_of(&keys(cluster), "commits/").len();
    // A manifest of step 20 is locked. Step 10 shares objects with it, and these are not.
    let own = format!("/{}/", rounds[1].id);
    let locked = keys(&cluster).into_iter().find(|key| key.starts_with("host1/") && key.contains(&own)).unwrap();
    let locked = format!("{}/part.json", locked.rsplit_once('/').unwrap().0);
    cluster.s3.denials().add(DenyRule {
        operation: Some("DeleteObject".to_owned()),
        key_prefix: Some(format!("{PIPELINE}/{locked}")),
        ..DenyRule::default()
    });
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    assert_eq!(done.code, 0, "later is no failure: {done:?}");
    let collection = &done.document["collection"];
    assert_eq!((&collection["retired"], &collection["swept"]), (&2.into(), &1.into()), "{collection}");
    assert_eq!(collection["problem"]["reason"], "STORE_DENIED", "{collection}");
    let left = keys(&cluster);
    assert_eq!(commits(&cluster), 2, "the newest and the locked one: {left:?}");
    assert!(left.contains(&locked), "{left:?}");
    assert!(!left.iter().any(|key| key.starts_with("commits/") && key.ends_with("-00000000000000000001.json")));
    every_checkpoint_verifies(&cluster);
    cluster.s3.denials().clear();
    let done = collect_as_foretold(&cluster);
    assert_eq!((&done["swept"], &done["put_off"]), (&Value::from(1), &Value::from(0)), "{done}");
    assert_eq!(commits(&cluster), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_a_lost_manifest_keeps_what_its_checkpoint_may_reach_and_nothing_else() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30, 40] {
        rounds.push(push_step(&cluster, step).await);
    }
    assert_eq!(lockstep(&cluster, &["checkpoint", "pin", PIPELINE, "20", "--name", "audit"]).code, 0);
    let of = |round: usize| format!("/{}/", rounds[round].id);
    let lost = keys(&cluster)
        .into_iter()
        .find(|key| key.starts_with("host1/") && key.contains(&of(1)) && key.ends_with("/part.json"))
        .unwrap();
    assert!(cluster.s3.admin().remove(BUCKET, &format!("{PIPELINE}/{lost}")).unwrap());
    let older = |key: &String| key.contains(&of(0)) || key.contains(&of(1));
    let before: Vec<String> = keys(&cluster).into_iter().filter(older).collect();

    // Said before and after in the same words.
    let plan = lockstep(&cluster, &["gc", PIPELINE, "--dry-run"]).document;
    let foretold = plan["problem"]["message"].as_str().unwrap_or_default();
    assert!(
        foretold.contains(&lost)
            && foretold.contains(&rounds[1].id)
            && plan["problem"]["reason"] == "CHECKPOINT_DAMAGED",
        "{plan}"
    );
    // Step 10 is older than the broken one and waits, step 30 is newer and goes.
    let done = collect_as_foretold(&cluster);
    assert_eq!(done["problem"], plan["problem"]);
    assert_eq!((&done["retired"], &done["swept"]), (&Value::from(2), &Value::from(1)), "{done}");
    assert_eq!((&done["phase"], &done["problem"]["reason"]), (&"done".into(), &"CHECKPOINT_DAMAGED".into()), "{done}");
    let left = keys(&cluster);
    assert_eq!(left.iter().filter(|&key| older(key)).cloned().collect::<Vec<_>>(), before);
    assert!(!left.iter().any(|key| key.contains(&of(2)) && key.ends_with("/part.json")), "{left:?}");
    assert_eq!(steps(&cluster), [40, 20]);

    // Once nobody wants the broken one any more, everything goes that step 40 does not need.
    assert_eq!(lockstep(&cluster, &["checkpoint", "unpin", PIPELINE, "audit"]).code, 0);
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    let done = &done.document["collection"];
    assert_eq!((&done["swept"], &done["problem"]), (&Value::from(2), &Value::Null), "{done}");
    every_checkpoint_verifies(&cluster);
    assert_eq!(attempts_of(&keys(&cluster), "commits/").len(), 1);
    assert_eq!(collect_as_foretold(&cluster)["objects"], 0);
    assert_eq!(lockstep(&cluster, &["gc", PIPELINE, "--dry-run"]).document["problem"], Value::Null);
}

/// As a pull of this round pins a checkpoint, and leaves it if its replica dies before the farewell.
fn pin_of(cluster: &Cluster, round: &str, pinned: &v1::Round) -> String {
    let key = format!("{PIPELINE}/commits/{:020}-{:020}.json", 1, pinned.commit.as_ref().unwrap().seq);
    let commit = CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(pinned.commit.as_ref().unwrap().seq).unwrap(),
        round: pinned.id.parse().unwrap(),
        digest: Digest::of(&cluster.s3.admin().read(BUCKET, &key).unwrap()),
    };
    let pin = Pin {
        name: "standby".to_owned(),
        id: Digest::of(format!("{round} 1 {}", pinned.id).as_bytes()).to_uuid(),
        commit,
        pinned_by: format!("pull {round}, term 1, of pipeline {PIPELINE}"),
        pinned_at: chrono::DateTime::UNIX_EPOCH,
    };
    cluster.s3.admin().put_raw(BUCKET, &format!("{PIPELINE}/{}", pin.key()), pin.encode()).unwrap();
    pin.key().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_a_pin_that_an_ended_pull_has_left_keeps_its_checkpoint_for_one_collection_more() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30] {
        rounds.push(push_step(&cluster, step).await);
    }
    let pulled = cluster.pulled().await;
    let known = pin_of(&cluster, &pulled.id, &rounds[0]);
    let unknown = pin_of(&cluster, &uuid::Uuid::new_v4().to_string(), &rounds[1]);
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    assert_eq!((done.code, &done.document["collection"]["retired"]), (0, &Value::from(0)), "{done:?}");
    let pins = attempts_of(&keys(&cluster), "pins/");
    assert!(!pins.contains(&known), "of a round that this database knows to be over: {pins:?}");
    assert!(pins.contains(&unknown), "of whoever else, who may still pull: {pins:?}");
    let done = collect_as_foretold(&cluster);
    assert_eq!((&done["retired"], &done["swept"]), (&Value::from(1), &Value::from(1)), "{done}");
    assert_eq!(steps(&cluster), [30, 20]);
}
