//! Scenario 33: what a verification tells its caller, and what becomes of a damaged checkpoint.

use lockstep_client::v1;
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, Cluster, PIPELINE},
    content::{noise, put},
    wait,
};
use serde_json::Value;

/// One file of a checkpoint in the bucket: whatever the layout of objects is, it is found by its content.
fn find_in(cluster: &Cluster, host: u32, content: &[u8]) -> (String, u64) {
    let admin = cluster.s3.admin();
    let keys = admin.keys(BUCKET, &format!("orders/host{host}/")).unwrap();
    keys.into_iter()
        .find_map(|key| {
            let bytes = admin.read(BUCKET, &key).unwrap();
            bytes.windows(content.len()).position(|window| window == content).map(|at| (key, at as u64))
        })
        .expect("the file is somewhere")
}

/// A new step on every host: one large file that stays as it is, and one that changes.
fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        let idx = u64::from(host.idx);
        let (kept, changed) = (noise(idx, "kept", 300_000), noise(idx, &step.to_string(), 5000));
        host.checkpoint(step, &[("kept", &kept), ("changed", &changed)]);
    }
}

async fn restored_step(cluster: &mut Cluster) -> Option<u64> {
    for idx in 0..cluster.hosts.len() {
        cluster.lose_disk(idx).await;
    }
    cluster.pulled().await.step
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_damaged_checkpoint_is_passed_over_by_latest_and_the_next_push_heals() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    checkpoint_all(&cluster, 20);
    let damaged = cluster.pushed().await;
    let (key, at) = find_in(&cluster, 2, &noise(2, "20", 5000));
    cluster.s3.admin().flip_byte(BUCKET, &key, at + 17).unwrap();

    // The flipped byte changes no length, so the structure alone says nothing about it.
    let structure = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "latest", "--structure-only"]);
    assert_eq!((structure.code, structure.document["intact"].as_bool()), (0, Some(true)), "{structure:?}");
    let found = lockstep(&cluster, &["checkpoint", "verify", PIPELINE]);
    assert_eq!((found.code, found.document["checkpoint"]["damaged"].as_bool()), (1, Some(true)), "{found:?}");
    // By the time of the answer the mark stands, and everybody who reads the bucket passes the checkpoint over.
    let mark = "orders/damaged/00000000000000000001-00000000000000000002.json";
    let marked: Value = serde_json::from_slice(&cluster.s3.admin().read(BUCKET, mark).unwrap()).unwrap();
    assert_eq!(marked["commit"]["round"].as_str(), Some(damaged.id.as_str()));
    assert!(marked["places"][0].as_str().unwrap().contains("host 2: file changed"), "{marked}");

    let listed = lockstep(&cluster, &["checkpoint", "list", PIPELINE]).document;
    let shown = |n: usize| (listed["checkpoints"][n]["step"].as_u64(), listed["checkpoints"][n]["damaged"].as_bool());
    assert_eq!((shown(0), shown(1)), ((Some(20), Some(true)), (Some(10), Some(false))));
    let kept = &listed["checkpoints"][0]["last_verification"];
    assert_eq!((kept["intact"].as_bool(), kept["structure_only"].as_bool()), (Some(false), Some(false)), "{kept}");
    assert!(kept["mark_time"].is_string() && kept["problems"][0]["metadata"]["host_idx"] == "2", "{kept}");
    let trail = cluster.client.list_audit_events(of_pipeline(), 1000).await.unwrap();
    let events: Vec<_> = trail.iter().map(|event| (event.action.as_str(), event.to_phase.as_str())).collect();
    assert!(events.contains(&("checkpoint_verified", "damaged")), "{events:?}");
    assert!(events.contains(&("checkpoint_marked", "damaged")), "{events:?}");

    // The same step again is no repeat of what is broken, and nothing of it is reused.
    let healed = cluster.pushed().await;
    assert_ne!(healed.id, damaged.id);
    let pushed: u64 = cluster.client.get_checkpoint(PIPELINE, &healed.id).await.unwrap().bytes_uploaded;
    assert!(pushed >= 3 * 305_000, "all of it was sent again, not {pushed} bytes");
    assert_eq!(cluster.verify("latest").await.problems, []);
    assert_eq!(restored_step(&mut cluster).await, Some(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_latest_is_the_checkpoint_before_while_the_newest_is_damaged() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    checkpoint_all(&cluster, 20);
    cluster.pushed().await;
    let (key, _) = find_in(&cluster, 0, &noise(0, "20", 5000));
    cluster.s3.admin().remove(BUCKET, &key).unwrap();
    // What is missing is found without reading a file.
    let found = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "latest", "--structure-only"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert_eq!(found.document["problems"][0]["metadata"]["host_idx"].as_str(), Some("0"), "{found:?}");
    assert!(found.stderr.contains("file changed") && found.stderr.contains("is missing"), "{}", found.stderr);
    assert_eq!(restored_step(&mut cluster).await, Some(10));
    checkpoint_all(&cluster, 30);
    cluster.pushed().await;
    assert_eq!(restored_step(&mut cluster).await, Some(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_flipped_byte_is_found_within_the_daily_budget_without_anybody_asking() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let intact = cluster.pushed().await;
    checkpoint_all(&cluster, 20);
    let damaged = cluster.pushed().await;
    let (key, at) = find_in(&cluster, 2, &noise(2, "20", 5000));
    cluster.s3.admin().flip_byte(BUCKET, &key, at + 17).unwrap();
    cluster.terminate_coordinator().await;
    cluster.set_coordinator_flags(vec!["--verify-bytes-per-day", "100GB"]);
    cluster.start_coordinator().await;

    // Each is read once, and by then also those that came first.
    let client = cluster.client.clone();
    let verified = |id: &str| {
        let (client, id) = (client.clone(), id.to_owned());
        async move {
            let shown = client.get_checkpoint(PIPELINE, &id).await.map_err(|error| error.to_string())?;
            let last = shown.last_verification.clone().ok_or("not read yet")?;
            let marked = shown.damaged && last.mark_time.is_some();
            if !last.intact && !marked {
                return Err("not marked yet".to_owned());
            }
            Ok((shown.damaged, last))
        }
    };
    let (is_damaged, found) = wait::until("the damaged checkpoint is found", || verified(&damaged.id)).await;
    assert!(is_damaged && !found.intact, "{found:?}");
    let problem = found.problems.first().expect("what is broken");
    assert_eq!(problem.metadata["host_idx"], "2", "{problem:?}");
    let (is_damaged, found) = wait::until("the other one is read too", || verified(&intact.id)).await;
    assert!(!is_damaged && found.intact, "{found:?}");
    let latest = cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
    assert_eq!(latest.step, 10);
    let trail = cluster.client.list_audit_events(of_pipeline(), 1000).await.unwrap();
    let by = |event: &&v1::AuditEvent| event.action == "checkpoint_verified" && event.actor.starts_with("replica ");
    assert_eq!(trail.iter().filter(by).count(), 1, "what is intact fills no trail: {trail:?}");
}

fn of_pipeline() -> v1::ListAuditEventsRequest {
    v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_flipped_byte_is_found_by_verify_which_names_file_and_host_and_exits_with_1() {
    let cluster = Cluster::start().await;
    for host in &cluster.hosts {
        host.checkpoint_filled(10, |folder| {
            for n in 0..20 {
                put(folder, &format!("some/{n}.bin"), &noise(u64::from(host.idx), &n.to_string(), 5000));
            }
        });
    }
    let pushed = cluster.pushed().await;
    for named in ["latest", "10", &pushed.id] {
        let good = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, named]);
        assert_eq!((good.code, good.document["intact"].as_bool()), (0, Some(true)), "{named}: {good:?}");
    }

    let (key, at) = find_in(&cluster, 1, &noise(1, "7", 5000));
    let admin = cluster.s3.admin();
    admin.flip_byte(BUCKET, &key, at + 2500).unwrap();

    let bad = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, &pushed.id]);
    assert_eq!((bad.code, bad.document["intact"].as_bool()), (1, Some(false)), "{bad:?}");
    let problems = bad.document["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "one file is broken, the others are not: {problems:?}");
    let metadata = &problems[0]["metadata"];
    assert_eq!((metadata["file"].as_str(), metadata["host_idx"].as_str()), (Some("some/7.bin"), Some("1")), "{bad:?}");
    assert!(bad.stderr.contains("some/7.bin") && bad.stderr.contains("host 1"), "{}", bad.stderr);

    // Found once, it stays marked, also when somebody sets the byte right: the next push makes a good one.
    admin.flip_byte(BUCKET, &key, at + 2500).unwrap();
    let latest = lockstep(&cluster, &["checkpoint", "verify", PIPELINE]);
    assert_eq!((latest.code, latest.document["error"]["reason"].as_str()), (1, Some("CHECKPOINT_DAMAGED")));
    let unknown = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "11"]);
    assert_eq!((unknown.code, unknown.document["error"]["reason"].as_str()), (4, Some("CHECKPOINT_NOT_FOUND")));
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_damaged_manifest_and_a_missing_object_are_found_by_verify() {
    let cluster = Cluster::start().await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", &noise(u64::from(host.idx), "a", 5000))]);
    }
    let pushed = cluster.pushed().await;
    let admin = cluster.s3.admin();
    let keys = admin.keys(BUCKET, "orders/host2/").unwrap();
    let manifest = keys.iter().find(|key| key.ends_with("part.json")).unwrap();
    let bytes = admin.read(BUCKET, manifest).unwrap();
    admin.flip_byte(BUCKET, manifest, 20).unwrap();
    let bad = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, &pushed.id]);
    assert_eq!((bad.code, bad.document["problems"][0]["metadata"]["host_idx"].as_str()), (1, Some("2")), "{bad:?}");
    admin.put_raw(BUCKET, manifest, bytes).unwrap();
    let object = keys.iter().find(|key| key.contains("data-")).unwrap();
    admin.remove(BUCKET, object).unwrap();
    let gone = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, &pushed.id]);
    let metadata = &gone.document["problems"][0]["metadata"];
    assert_eq!((gone.code, metadata["host_idx"].as_str()), (1, Some("2")), "{gone:?}");
    assert!(metadata["file"].is_string() && gone.stderr.contains("is missing"), "{gone:?}");
}
