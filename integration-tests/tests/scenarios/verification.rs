//! Scenario 33, what a verification tells its caller.

use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, Cluster, PIPELINE},
    content::{noise, put},
};

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

    // One byte of one file: whatever the layout of objects is, it is found by its content.
    let content = noise(1, "7", 5000);
    let admin = cluster.s3.admin();
    let (key, at) = admin
        .keys(BUCKET, "orders/host1/")
        .unwrap()
        .into_iter()
        .find_map(|key| {
            let bytes = admin.read(BUCKET, &key).unwrap();
            bytes.windows(content.len()).position(|window| window == content).map(|at| (key, at as u64))
        })
        .expect("the file is somewhere");
    admin.flip_byte(BUCKET, &key, at + 2500).unwrap();

    let bad = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, &pushed.id]);
    assert_eq!((bad.code, bad.document["intact"].as_bool()), (1, Some(false)), "{bad:?}");
    let problems = bad.document["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "one file is broken, the others are not: {problems:?}");
    let metadata = &problems[0]["metadata"];
    assert_eq!((metadata["file"].as_str(), metadata["host_idx"].as_str()), (Some("some/7.bin"), Some("1")), "{bad:?}");
    assert!(bad.stderr.contains("some/7.bin") && bad.stderr.contains("host 1"), "{}", bad.stderr);

    // The damage is one byte: flipped back, it is intact again.
    admin.flip_byte(BUCKET, &key, at + 2500).unwrap();
    assert_eq!(lockstep(&cluster, &["checkpoint", "verify", PIPELINE]).code, 0);
    let unknown = lockstep(&cluster, &["checkpoint", "verify", PIPELINE, "11"]);
    assert_eq!((unknown.code, unknown.document["error"]["reason"].as_str()), (4, Some("CHECKPOINT_NOT_FOUND")));
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_damaged_manifest_and_a_missing_object_are_found_by_verify() {
    let cluster = Cluster::start().await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", &noise(u64::from(host.idx), "a", 5000))]);
    }
    cluster.pushed().await;
    let admin = cluster.s3.admin();
    let keys = admin.keys(BUCKET, "orders/host2/").unwrap();
    let manifest = keys.iter().find(|key| key.ends_with("part.json")).unwrap();
    let bytes = admin.read(BUCKET, manifest).unwrap();
    admin.flip_byte(BUCKET, manifest, 20).unwrap();
    let bad = lockstep(&cluster, &["checkpoint", "verify", PIPELINE]);
    assert_eq!((bad.code, bad.document["problems"][0]["metadata"]["host_idx"].as_str()), (1, Some("2")), "{bad:?}");
    admin.put_raw(BUCKET, manifest, bytes).unwrap();
    let object = keys.iter().find(|key| key.contains("data-")).unwrap();
    admin.remove(BUCKET, object).unwrap();
    let gone = lockstep(&cluster, &["checkpoint", "verify", PIPELINE]);
    let metadata = &gone.document["problems"][0]["metadata"];
    assert_eq!((gone.code, metadata["host_idx"].as_str()), (1, Some("2")), "{gone:?}");
    assert!(metadata["file"].is_string() && gone.stderr.contains("is missing"), "{gone:?}");
}
