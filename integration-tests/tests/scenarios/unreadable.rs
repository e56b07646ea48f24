//! A commit document that was edited, cut off or overwritten in the bucket: it hides no other checkpoint, is never passed over in silence, and can be given up (ADR 29).

use lockstep_client::v1::{self, start_pull_request::Selector};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, Cluster, PIPELINE},
};
use serde_json::Value;

use crate::garbage::{AT_ONCE, attempts_of, cluster, collect_as_foretold, every_checkpoint_verifies, keys, push_step};
use crate::pair::{HEIR, owner_and};

fn commit_key(seq: u64) -> String {
    format!("{PIPELINE}/commits/{:020}-{seq:020}.json", 1)
}

fn overwrite(cluster: &Cluster, seq: u64, bytes: &[u8]) -> Vec<u8> {
    let before = cluster.s3.admin().read(BUCKET, &commit_key(seq)).unwrap();
    cluster.s3.admin().put_raw(BUCKET, &commit_key(seq), bytes).unwrap();
    before
}

async fn pulled(cluster: &mut Cluster, selector: Selector) -> v1::Round {
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    cluster.pull(v1::StartPullRequest { selector: Some(selector), ..Cluster::pull_request() }).await
}

async fn refused(cluster: &Cluster, seq: u64) -> v1::Problem {
    let round = cluster.pull(Cluster::pull_request()).await;
    assert_eq!(round.phase(), v1::RoundPhase::Failed, "{round:?}");
    let problem = round.problem.unwrap();
    assert_eq!(problem.reason, "MANIFEST_INVALID", "{problem:?}");
    assert!(
        commit_key(seq).ends_with(&problem.metadata["key"]) || problem.metadata["key"] == commit_key(seq),
        "{problem:?}"
    );
    problem
}

/// Place, step (none: it can't be read) and mark of each.
fn list(cluster: &Cluster) -> Vec<(u64, Option<u64>, bool)> {
    let shown = lockstep(cluster, &["checkpoint", "list", PIPELINE]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let one = |shown: &Value| {
        let step = shown["step"].as_u64().filter(|_| shown["unreadable"].is_null());
        (shown["commit"]["seq"].as_u64().unwrap(), step, shown["damaged"].as_bool().unwrap())
    };
    shown.document["checkpoints"].as_array().unwrap().iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_newest_commit_that_cant_be_read_is_refused_by_name_and_hides_no_other() {
    let mut cluster = cluster(&AT_ONCE, None).await;
    let mut pushes = Vec::new();
    for step in [10, 20, 30] {
        pushes.push(push_step(&cluster, step).await);
    }
    let whole = cluster.s3.admin().read(BUCKET, &commit_key(3)).unwrap();
    let edited = String::from_utf8(whole.clone()).unwrap().replace("\"n_hosts\":3", "\"n_hosts\":2");
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    for bytes in [&b"\xff\x00 no commit"[..], b"", &whole[..whole.len() / 2], edited.as_bytes()] {
        overwrite(&cluster, 3, bytes);
        let problem = refused(&cluster, 3).await;
        for part in ["commits/", "checkpoint verify PIPELINE 1-3", "by its id or step"] {
            assert!(problem.message.contains(part), "{problem:?}");
        }
        assert!(cluster.hosts.iter().all(|host| host.checkpoints().is_empty()), "nothing older was installed");
        assert_eq!(list(&cluster), [(3, None, false), (2, Some(20), false), (1, Some(10), false)]);
        let shown = lockstep(&cluster, &["checkpoint", "show", PIPELINE, "1-3"]);
        assert_eq!(shown.document["unreadable"]["reason"], "MANIFEST_INVALID", "{shown:?}");
        assert_eq!(lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "20"]).code, 0);
    }
    let second = pulled(&mut cluster, Selector::Step(20)).await;
    assert_eq!((second.phase(), second.step), (v1::RoundPhase::Installed, Some(20)), "{second:?}");
    let first = pulled(&mut cluster, Selector::Checkpoint(pushes[0].id.clone())).await;
    assert_eq!((first.phase(), first.step), (v1::RoundPhase::Installed, Some(10)), "{first:?}");

    // Brought back, it is what it was.
    overwrite(&cluster, 3, &whole);
    let latest = pulled(&mut cluster, Selector::Latest(true)).await;
    assert_eq!((latest.phase(), latest.step), (v1::RoundPhase::Installed, Some(30)), "{latest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_commit_that_cant_be_read_is_given_up_by_name_and_its_place_is_never_given_again() {
    let mut cluster = cluster(&AT_ONCE, None).await;
    for step in [10, 20, 30] {
        push_step(&cluster, step).await;
    }
    overwrite(&cluster, 3, b"{}");
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    refused(&cluster, 3).await;
    let found = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "1-3"]);
    assert_eq!((found.code, found.document["checkpoint"]["damaged"].as_bool()), (1, Some(true)), "{found:?}");
    let mark = cluster.s3.admin().read(BUCKET, &commit_key(3).replace("/commits/", "/damaged/")).unwrap();
    assert!(String::from_utf8(mark).unwrap().contains("commits/"), "the mark says why");
    assert_eq!(list(&cluster), [(3, None, true), (2, Some(20), false), (1, Some(10), false)]);
    let latest = pulled(&mut cluster, Selector::Latest(true)).await;
    assert_eq!((latest.phase(), latest.step), (v1::RoundPhase::Installed, Some(20)), "{latest:?}");
    // The same cut again is no repeat of what is lost.
    let healed = push_step(&cluster, 30).await;
    assert_eq!(healed.commit.as_ref().unwrap().seq, 4, "{healed:?}");
    let latest = pulled(&mut cluster, Selector::Latest(true)).await;
    assert_eq!((latest.phase(), latest.step), (v1::RoundPhase::Installed, Some(30)), "{latest:?}");
    assert_eq!(cluster.verify("latest").await.problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_push_goes_on_after_a_commit_that_cant_be_read_and_heals() {
    let mut cluster = cluster(&AT_ONCE, None).await;
    for step in [10, 20] {
        push_step(&cluster, step).await;
    }
    overwrite(&cluster, 2, b"");
    // Another process knows nothing of what the first had read.
    cluster.terminate_coordinator().await;
    cluster.start_coordinator().await;
    let healed = push_step(&cluster, 30).await;
    assert_eq!(healed.commit.as_ref().unwrap().seq, 3, "{healed:?}");
    assert_eq!(list(&cluster), [(3, Some(30), false), (2, None, false), (1, Some(10), false)]);
    assert_eq!(cluster.verify("latest").await.problems, []);
    let latest = pulled(&mut cluster, Selector::Latest(true)).await;
    assert_eq!((latest.phase(), latest.step), (v1::RoundPhase::Installed, Some(30)), "{latest:?}");
    let older = pulled(&mut cluster, Selector::Step(10)).await;
    assert_eq!((older.phase(), older.step), (v1::RoundPhase::Installed, Some(10)), "{older:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_what_a_commit_that_cant_be_read_may_reach_stays_until_it_is_given_up() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    let mut rounds = Vec::new();
    for step in [10, 20, 30, 40] {
        rounds.push(push_step(&cluster, step).await);
    }
    overwrite(&cluster, 2, b"garbage");
    let of = |round: usize| format!("/{}/", rounds[round].id);
    let older = |key: &String| key.contains(&of(0)) || key.contains(&of(1));
    let before: Vec<String> = keys(&cluster).into_iter().filter(older).collect();

    let done = collect_as_foretold(&cluster);
    assert_eq!((&done["phase"], &done["problem"]["reason"]), (&"done".into(), &"CHECKPOINT_DAMAGED".into()), "{done}");
    let why = done["problem"]["message"].as_str().unwrap();
    assert!(why.contains("checkpoint verify PIPELINE 1-2"), "{why}");
    let left = keys(&cluster);
    assert_eq!(left.iter().filter(|&key| older(key)).cloned().collect::<Vec<_>>(), before);
    assert!(!left.iter().any(|key| key.contains(&of(2)) && key.ends_with("/part.json")), "{left:?}");
    let kept = lockstep(&cluster, &["checkpoint", "delete", PIPELINE, "1-2"]);
    assert!(kept.code != 0 && kept.stderr.contains("can't be read"), "{kept:?}");

    // Given up, it goes as any other that retention does not keep.
    assert_eq!(lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "1-2"]).code, 1);
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    let done = &done.document["collection"];
    assert_eq!((&done["phase"], &done["problem"]), (&"done".into(), &Value::Null), "{done}");
    assert_eq!(attempts_of(&keys(&cluster), "commits/").len(), 1);
    every_checkpoint_verifies(&cluster);
    assert_eq!(collect_as_foretold(&cluster)["objects"], 0);
    assert!(!keys(&cluster).iter().any(|key| key.contains(&of(1)) && key.ends_with("/part.json")));
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_location_whose_newest_commit_cant_be_read_is_taken_over_and_its_new_owner_gives_that_up() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    crate::standby::holds(&heir, 20).await;
    overwrite(&owner, 2, b"garbage");
    let done = lockstep(&heir, &["take-over", HEIR, "--yes"]);
    assert_eq!(done.code, 0, "{done:?}");
    let latest = lockstep(&heir, &["checkpoint", "show", HEIR, "latest"]);
    assert!(latest.code != 0 && latest.stderr.contains("checkpoint verify PIPELINE 1-2"), "{latest:?}");
    let found = lockstep(&heir, &["checkpoint", "verify", HEIR, "1-2"]);
    assert_eq!((found.code, found.document["checkpoint"]["damaged"].as_bool()), (1, Some(true)), "{found:?}");
    let latest = lockstep(&heir, &["checkpoint", "show", HEIR, "latest"]);
    assert_eq!(latest.document["step"].as_u64(), Some(10), "{latest:?}");
    let pushed = crate::pair::push(&heir, HEIR).await;
    assert_eq!((pushed.phase(), pushed.step), (v1::RoundPhase::Committed, Some(20)), "{pushed:?}");
    assert_eq!(lockstep(&heir, &["checkpoint", "verify", HEIR]).code, 0);
}
