//! Scenarios 31, 32 and 35: what a location keeps, and what goes.

use std::collections::BTreeSet;

use lockstep_client::v1::{self, ParticipantPhase, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE},
    wait,
};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

/// No grace, nothing by itself: a collection does all it may, when the test says so.
pub(crate) const AT_ONCE: [&str; 4] = ["--gc-grace", "0s", "--gc-interval", "0s"];

pub(crate) async fn cluster(flags: &[&'static str], retention: Option<(u32, u64)>) -> Cluster {
    let options = Options { create: false, coordinator_flags: flags.to_vec(), ..Options::default() };
    let cluster = Cluster::with(options).await;
    let spec = v1::PipelineSpec { retention: retention.map(keep), ..cluster.spec(PIPELINE) };
    let created = cluster.client.create_pipeline(spec).await.unwrap();
    assert!(created.warnings.is_empty(), "retention is obeyed: {:?}", created.warnings);
    cluster
}

fn keep((min_count, seconds): (u32, u64)) -> v1::Retention {
    let seconds = i64::try_from(seconds).unwrap();
    v1::Retention { min_count, min_age: Some(prost_types::Duration { seconds, nanos: 0 }) }
}

/// Large enough for an object of its own.
fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// `base` never changes, `recent` is of this step and the one before, `own` of this step only.
pub(crate) async fn push_step(cluster: &Cluster, step: u64) -> v1::Round {
    for host in &cluster.hosts {
        let seed = u64::from(host.idx) << 32;
        let own = content(seed + step, 200_000);
        let before = content(seed + step - 10, 200_000);
        let base = content(seed, 400_000);
        let note = format!("host {} at step {step}", host.idx);
        host.checkpoint(
            step,
            &[("base.bin", &base), ("own.bin", &own), ("before.bin", &before), ("note.txt", note.as_bytes())],
        );
    }
    cluster.pushed().await
}

/// Every key of the location but the hint, which is written some time after a round has ended.
pub(crate) fn keys(cluster: &Cluster) -> BTreeSet<String> {
    let prefix = format!("{PIPELINE}/");
    let all = cluster.s3.admin().keys(BUCKET, &prefix).unwrap();
    all.iter()
        .filter_map(|key| key.strip_prefix(&prefix))
        .filter(|key| *key != "head.json")
        .map(str::to_owned)
        .collect()
}

pub(crate) fn attempts_of(keys: &BTreeSet<String>, host: &str) -> BTreeSet<String> {
    keys.iter().filter(|key| key.starts_with(host)).cloned().collect()
}

pub(crate) fn steps(cluster: &Cluster) -> Vec<u64> {
    let shown = lockstep(cluster, &["checkpoint", "list", PIPELINE]);
    let listed = shown.document["checkpoints"].as_array().unwrap();
    listed.iter().map(|checkpoint| checkpoint["step"].as_u64().unwrap()).collect()
}

pub(crate) fn every_checkpoint_verifies(cluster: &Cluster) {
    for step in steps(cluster) {
        let verified = lockstep(cluster, &["checkpoint", "verify", PIPELINE, &step.to_string()]);
        assert_eq!((verified.code, &verified.document["intact"]), (0, &Value::Bool(true)), "step {step}: {verified:?}");
    }
}

fn texts(list: &Value, field: &str) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
}

/// Collects, and holds that exactly what the dry run had printed is gone.
pub(crate) fn collect_as_foretold(cluster: &Cluster) -> Value {
    let before = keys(cluster);
    let plan = lockstep(cluster, &["gc", PIPELINE, "--dry-run"]);
    assert_eq!(plan.code, 0, "{plan:?}");
    assert_eq!(keys(cluster), before, "a dry run changes nothing");
    let foretold = texts(&plan.document["objects"], "key");
    let sizes: u64 =
        foretold.iter().map(|key| cluster.s3.admin().size(BUCKET, &format!("{PIPELINE}/{key}")).unwrap()).sum();
    assert_eq!(plan.document["bytes"], sizes, "with its bytes");
    let done = lockstep(cluster, &["gc", PIPELINE]);
    assert_eq!(done.code, 0, "{done:?}");
    let collection = done.document["collection"].clone();
    let after = keys(cluster);
    let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
    assert_eq!(gone, foretold, "{collection}");
    assert!(after.difference(&before).all(|key| key.starts_with("retired/")), "only tombstones are new");
    assert_eq!(
        (&collection["objects"], &collection["bytes"]),
        (&plan.document["object_count"], &plan.document["bytes"])
    );
    collection
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_retention_keeps_min_count_and_pins_and_the_sweep_removes_exactly_what_nothing_live_reaches() {
    let cluster = cluster(&AT_ONCE, Some((2, 0))).await;
    for step in [10, 20, 30, 40, 50] {
        push_step(&cluster, step).await;
    }
    let pinned = lockstep(&cluster, &["checkpoint", "pin", PIPELINE, "10", "--name", "audit-2026"]);
    assert_eq!(pinned.code, 0, "{pinned:?}");
    let pin = pinned.document["id"].as_str().unwrap();
    assert!(keys(&cluster).contains(&format!("pins/audit-2026-{pin}.json")));
    let shown = lockstep(&cluster, &["checkpoint", "show", PIPELINE, "10"]);
    assert_eq!(texts(&shown.document["pins"], "name"), BTreeSet::from(["audit-2026".to_owned()]));

    let collection = collect_as_foretold(&cluster);
    assert_eq!((&collection["retired"], &collection["swept"]), (&Value::from(2), &Value::from(2)), "{collection}");
    assert_eq!(steps(&cluster), [50, 40, 10]);
    every_checkpoint_verifies(&cluster);
    let again = collect_as_foretold(&cluster);
    assert_eq!(again["objects"], 0, "nothing is left to do: {again}");

    let unpinned = lockstep(&cluster, &["checkpoint", "unpin", PIPELINE, "audit-2026"]);
    assert_eq!(unpinned.code, 0, "{unpinned:?}");
    cluster.s3.clear_requests();
    let one = collect_as_foretold(&cluster);
    assert_eq!(steps(&cluster), [50, 40]);
    // Data, manifests, the commit: one request a stage, not one a key.
    let log = cluster.s3.log();
    let requests = log.count_of("DeleteObjects") + log.count_of("DeleteObject");
    assert!(one["objects"].as_u64().unwrap() > 4 && requests <= 4, "{requests} requests for {one}");
    every_checkpoint_verifies(&cluster);
    // What is left is what the two that live reach, and can be restored.
    for host in &cluster.hosts {
        host.wipe();
    }
    cluster.pulled().await;
    let audit = lockstep(&cluster, &["audit", PIPELINE]);
    let events = texts(&audit.document["events"], "action");
    for event in ["upkeep_admitted", "upkeep_ended", "checkpoint_retired"] {
        assert!(events.contains(event), "{event} is in the audit: {events:?}");
    }
    let status = cluster.client.get_pipeline(PIPELINE).await.unwrap().last_collection.unwrap();
    assert_eq!((status.phase.as_str(), status.swept), ("done", 1), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_young_checkpoints_stay_and_a_deleted_one_goes_but_never_the_newest_or_a_pinned_one() {
    let cluster = cluster(&AT_ONCE, Some((1, 3600))).await;
    for step in [10, 20, 30] {
        push_step(&cluster, step).await;
    }
    let collection = collect_as_foretold(&cluster);
    assert_eq!(collection["retired"], 0, "all are younger than an hour: {collection}");
    let refused = |step: &str, why: &str| {
        for flags in [&["--dry-run"][..], &[]] {
            let ran = lockstep(&cluster, &[&["checkpoint", "delete", PIPELINE, step], flags].concat());
            assert_eq!(ran.code, 1, "{ran:?}");
            assert_eq!(ran.document["error"]["reason"], "CHECKPOINT_IN_USE", "{ran:?}");
            assert!(ran.document["error"]["message"].as_str().unwrap().contains(why), "{ran:?}");
        }
    };
    refused("30", "newest");
    assert_eq!(lockstep(&cluster, &["checkpoint", "pin", PIPELINE, "20"]).code, 0);
    refused("20", "pinned");
    let deleted = lockstep(&cluster, &["checkpoint", "delete", PIPELINE, "10"]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert_eq!(steps(&cluster), [30, 20], "nobody sees it any more");
    let gone = lockstep(&cluster, &["checkpoint", "pin", PIPELINE, "10"]);
    assert_eq!(gone.code, 4, "{gone:?}");
    let collection = collect_as_foretold(&cluster);
    assert_eq!(collection["swept"], 1, "{collection}");
    every_checkpoint_verifies(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_during_the_grace_period_nothing_of_a_retired_checkpoint_is_deleted() {
    let cluster = cluster(&["--gc-grace", "1h", "--gc-interval", "0s"], Some((1, 0))).await;
    for step in [10, 20] {
        push_step(&cluster, step).await;
    }
    let before = keys(&cluster);
    let collection = collect_as_foretold(&cluster);
    assert_eq!((&collection["retired"], &collection["objects"]), (&Value::from(1), &Value::from(0)), "{collection}");
    assert!(keys(&cluster).is_superset(&before));
    assert_eq!(steps(&cluster), [20], "it can't be pulled any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_a_pipeline_is_collected_by_itself_whichever_replica_looks() {
    let cluster = cluster(&["--gc-grace", "0s", "--gc-interval", "300ms"], Some((1, 0))).await;
    let (_second, _) = cluster.another_coordinator("second", "127.0.0.1:0", "coordinator-secret").await;
    for step in [10, 20, 30] {
        push_step(&cluster, step).await;
    }
    wait::until("only the newest is left", async || {
        let left = steps(&cluster);
        if left == [30] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    every_checkpoint_verifies(&cluster);
    let audit = lockstep(&cluster, &["audit", PIPELINE]);
    let by_itself = audit.document["events"]
        .as_array()
        .unwrap()
        .iter()
        .any(|event| event["action"] == "upkeep_admitted" && event["actor"] == "schedule");
    assert!(by_itself, "the audit says who asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn s32_orphans_of_killed_pushes_and_their_open_uploads_vanish_within_two_collections() {
    let mut cluster = cluster(&AT_ONCE, None).await;
    push_step(&cluster, 10).await;
    let attempts = |cluster: &Cluster| attempts_of(&keys(cluster), "host");
    let live = attempts(&cluster);
    // Two hosts die for good: one with a multipart upload under way, one with everything sent but its manifest.
    cluster.kill_agent(0);
    cluster.arm("push.before_complete=kill");
    cluster.start_agent(0).await;
    cluster.kill_agent(1);
    cluster.arm("push.before_manifest=kill");
    cluster.start_agent(1).await;
    cluster.arm("");
    for host in &cluster.hosts {
        let large = content(u64::from(host.idx) + 7, 40 << 20);
        let small = content(u64::from(host.idx) + 9, 300_000);
        host.checkpoint(20, &[("large.bin", &large), ("small.bin", &small)]);
    }
    let round = cluster.start_push().await;
    cluster.agent_killed(0).await;
    cluster.agent_killed(1).await;
    // The third host has sent all of its part: cancelled while it sends, it would still write beside the dry run.
    let sent = |p: &v1::Participant| p.host_idx == 2 && p.phase() == ParticipantPhase::Done;
    cluster.round_when(&round.id, "the third host is done", |round| round.participants.iter().any(sent)).await;
    cluster.client.cancel_round(&round.id, "gone for good").await.unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Cancelled);
    assert!(!cluster.s3.admin().open_uploads(BUCKET).unwrap().is_empty(), "an upload is open");
    assert!(attempts(&cluster).len() > live.len(), "there are orphans");

    let first = collect_as_foretold(&cluster);
    assert!(first["uploads"].as_u64().unwrap() > 0 && first["objects"].as_u64().unwrap() > 0, "{first}");
    collect_as_foretold(&cluster);
    assert_eq!(attempts(&cluster), live, "no orphan byte");
    assert_eq!(cluster.s3.admin().open_uploads(BUCKET).unwrap(), []);
    every_checkpoint_verifies(&cluster);
    for idx in [0, 1] {
        cluster.start_agent(idx).await;
    }
    cluster.pushed().await;
    every_checkpoint_verifies(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn s32_a_push_that_runs_keeps_what_it_has_sent() {
    let mut cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    push_step(&cluster, 10).await;
    push_step(&cluster, 20).await;
    let go = cluster.scratch().join("go");
    cluster.kill_agent(2);
    cluster.arm(format!("push.before_manifest=wait:{}", go.display()));
    cluster.start_agent(2).await;
    cluster.arm("");
    for host in &cluster.hosts {
        let seed = u64::from(host.idx) << 32;
        host.checkpoint(30, &[("base.bin", &content(seed, 400_000)), ("new.bin", &content(seed + 5, 300_000))]);
    }
    let round = cluster.start_push().await;
    wait::until("everything is sent but one manifest", async || {
        let mut sent = attempts_of(&keys(&cluster), "host");
        sent.retain(|key| key.contains(&round.id));
        let data = |host: &str| sent.iter().filter(|key| key.starts_with(host) && !key.ends_with("part.json")).count();
        let manifests = sent.iter().filter(|key| key.ends_with("part.json")).count();
        let all = manifests == 2 && data("host0/") > 0 && data("host0/") == data("host2/");
        if all { Ok(()) } else { Err(format!("{sent:?}")) }
    })
    .await;
    // Step 10 goes; step 20 is the base, and what the push has sent belongs to nobody yet.
    let collection = collect_as_foretold(&cluster);
    assert_eq!(collection["swept"], 1, "{collection}");
    std::fs::write(&go, "").unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);
    every_checkpoint_verifies(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn s35_a_smaller_layouts_vanished_hosts_are_swept_and_a_pull_of_another_layout_is_refused_before_any_download() {
    let mut cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    push_step(&cluster, 10).await;
    let mut spec = cluster.client.get_pipeline(PIPELINE).await.unwrap().spec.unwrap();
    spec.hosts = 2;
    spec.agents.truncate(2);
    let update = v1::UpdatePipelineRequest { pipeline: PIPELINE.to_owned(), spec: Some(spec), ..Default::default() };
    cluster.client.update_pipeline(update).await.unwrap();
    for idx in 0..3 {
        cluster.kill_agent(idx);
    }
    cluster.hosts.truncate(2);
    for host in &cluster.hosts {
        host.wipe();
    }
    for idx in 0..2 {
        let identity = ["--host-idx", &idx.to_string(), "--n-hosts", "2"].map(str::to_owned);
        cluster.start_agent_as(idx, &identity, &[], &format!("agent-{idx}-secret")).await;
    }
    let downloads = |cluster: &Cluster| {
        cluster
            .s3
            .log()
            .count(|request| request.operation == "GetObject" && request.access_key.as_deref() != Some(COORDINATOR_KEY))
    };
    let before = downloads(&cluster);
    let pull = cluster.pull(v1::StartPullRequest { fail_if_none: Some(true), ..Cluster::pull_request() }).await;
    assert_eq!(pull.phase(), RoundPhase::Failed);
    let problem = pull.problem.unwrap();
    assert_eq!(problem.reason, "LAYOUT_MISMATCH", "{problem:?}");
    assert_eq!(downloads(&cluster), before, "no agent has read anything");

    push_step(&cluster, 20).await;
    assert!(!attempts_of(&keys(&cluster), "host2/").is_empty());
    let collection = collect_as_foretold(&cluster);
    assert_eq!(collection["swept"], 1, "{collection}");
    assert_eq!(attempts_of(&keys(&cluster), "host2/"), BTreeSet::new(), "nothing of the third host is left");
    every_checkpoint_verifies(&cluster);
    for host in &cluster.hosts {
        host.wipe();
    }
    cluster.pulled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_a_database_that_lost_rows_stops_and_deletes_nothing() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    for step in [10, 20, 30] {
        push_step(&cluster, step).await;
    }
    // As if it were restored from a dump that is older than the last push.
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    sqlx::query("UPDATE pipelines SET next_seq = 3").execute(&mut database).await.unwrap();
    let before = keys(&cluster);
    for flags in [&["--dry-run"][..], &[]] {
        let ran = lockstep(&cluster, &[&["gc", PIPELINE], flags].concat());
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains("DATABASE_BEHIND") || ran.document.to_string().contains("DATABASE_BEHIND"),
            "{ran:?}"
        );
    }
    assert_eq!(keys(&cluster), before);
    let status = cluster.client.get_pipeline(PIPELINE).await.unwrap().last_collection.unwrap();
    assert_eq!((status.phase.as_str(), status.problem.unwrap().reason.as_str()), ("failed", "DATABASE_BEHIND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_tombstone_is_put_again_and_counts_once() {
    let cluster = cluster(&AT_ONCE, Some((1, 0))).await;
    for step in [10, 20] {
        push_step(&cluster, step).await;
    }
    for action in [FaultAction::ResetAfterWrite, FaultAction::InternalError] {
        cluster.s3.faults().add(FaultRule::new(action).method("PUT").key_contains("/retired/").times(1));
    }
    let done = lockstep(&cluster, &["gc", PIPELINE]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.document["collection"]["swept"], 1, "{done:?}");
    assert_eq!(steps(&cluster), [20]);
}
