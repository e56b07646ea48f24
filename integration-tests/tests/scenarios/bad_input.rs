//! Bad input: each reason with its metadata; nothing is written.

use lockstep_client::v1;
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE},
    orders,
};

fn checkpoint_all(cluster: &Cluster) -> Vec<String> {
    cluster.hosts.iter().map(|host| host.checkpoint(10, &[("state.bin", b"some state")]).to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_specs_are_refused_and_nothing_is_written() {
    let cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    type Edit = fn(&mut v1::PipelineSpec);
    let cases: Vec<(&str, &str, Edit)> = vec![
        ("SPEC_INVALID", "name", |s| s.name = "Orders!".to_owned()),
        ("SPEC_INVALID", "agents", |s| {
            s.agents.pop();
        }),
        ("SPEC_INVALID", "bucket", |s| s.location.as_mut().unwrap().bucket = "acme/ckpt".to_owned()),
        ("SPEC_INVALID", "prefix", |s| s.location.as_mut().unwrap().prefix = "a/../b".to_owned()),
        ("SPEC_INVALID", "read_location", |s| s.read_location = s.location.clone()),
        ("SPEC_INVALID", "location", |s| s.location = None),
        ("SPEC_INVALID", "hosts", |s| s.hosts = 0),
        ("SPEC_INVALID", "hosts", |s| s.solo = true),
        ("HOST_INFO_INVALID", "n_hosts", |s| s.hosts = 100_000),
        ("SPEC_INVALID", "initial", |s| s.initial = 77),
    ];
    for (reason, value, edit) in cases {
        let mut spec = cluster.spec(PIPELINE);
        edit(&mut spec);
        let error = cluster.client.create_pipeline(spec).await.expect_err(value);
        assert_eq!(error.reason(), reason, "{error}");
        let problem = error.problem().unwrap();
        assert!(
            problem.metadata.contains_key(value) || problem.metadata.get("field").is_some_and(|f| f == value),
            "{value}: {problem:?}"
        );
    }
    assert!(cluster.s3.admin().keys(BUCKET, "").unwrap().is_empty());
    assert!(cluster.client.list_pipelines(10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_about_what_does_not_exist_or_was_said_wrong_are_refused() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    let push =
        |pipeline: &str| v1::StartPushRequest { pipeline: pipeline.to_owned(), ..v1::StartPushRequest::default() };
    assert_eq!(client.get_pipeline("nobody").await.unwrap_err().reason(), "PIPELINE_NOT_FOUND");
    assert_eq!(client.start_push(push("nobody")).await.unwrap_err().reason(), "PIPELINE_NOT_FOUND");
    let error = client.get_round(uuid::Uuid::new_v4().to_string()).await.unwrap_err();
    assert_eq!(error.reason(), "ROUND_NOT_FOUND");
    assert!(error.problem().unwrap().metadata.contains_key("round"));
    assert_eq!(client.get_round("not-a-uuid").await.unwrap_err().reason(), "SPEC_INVALID");
    let unset = v1::StartPullRequest { standby: None, ..Cluster::pull_request() };
    assert_eq!(client.start_pull(unset).await.unwrap_err().reason(), "STANDBY_UNSET");
    let bad_id = v1::StartPushRequest { request_id: "mine".to_owned(), ..push(PIPELINE) };
    assert_eq!(client.start_push(bad_id).await.unwrap_err().reason(), "SPEC_INVALID");
    let bad_deadline =
        v1::StartPushRequest { deadline: Some(prost_types::Duration { seconds: -1, nanos: 0 }), ..push(PIPELINE) };
    assert_eq!(client.start_push(bad_deadline).await.unwrap_err().reason(), "SPEC_INVALID");
    assert_eq!(client.get_checkpoint(PIPELINE, "latest").await.unwrap_err().reason(), "CHECKPOINT_NOT_FOUND");
    let again = client.create_pipeline(cluster.spec(PIPELINE)).await.unwrap_err();
    assert_eq!(again.reason(), "PIPELINE_EXISTS");
    let stale = v1::UpdatePipelineRequest {
        pipeline: PIPELINE.to_owned(),
        spec: Some(cluster.spec(PIPELINE)),
        etag: "old".to_owned(),
        ..v1::UpdatePipelineRequest::default()
    };
    let error = client.update_pipeline(stale).await.unwrap_err();
    assert_eq!(error.reason(), "ETAG_MISMATCH");
    assert_eq!(error.problem().unwrap().metadata["requested"], "old");
    let moved = v1::PipelineSpec { location: Some(cluster.location("elsewhere")), ..cluster.spec(PIPELINE) };
    let moved = v1::UpdatePipelineRequest { pipeline: PIPELINE.to_owned(), spec: Some(moved), ..Default::default() };
    assert_eq!(client.update_pipeline(moved).await.unwrap_err().reason(), "SPEC_INVALID");
    let standby = v1::PipelineSpec { initial: v1::Initial::Standby as i32, ..cluster.spec(PIPELINE) };
    let standby =
        v1::UpdatePipelineRequest { pipeline: PIPELINE.to_owned(), spec: Some(standby), ..Default::default() };
    assert_eq!(client.update_pipeline(standby).await.unwrap_err().reason(), "SPEC_INVALID");
}

/// A pull order of a part that lies in the bucket as `bytes`.
async fn pull_hostile(cluster: &Cluster, bytes: &[u8], round_no: u64, local_checkpoint: &str) -> v1::Problem {
    let part = part_ref(cluster, bytes);
    let mut header = orders::header(cluster, 0, round_no).await;
    header.attempt = 1;
    let order = v1::PullOrder {
        header: Some(header.clone()),
        source: Some(cluster.location(PIPELINE)),
        commit: Some(v1::CommitRef { generation: 1, seq: 1, round: PUSH_ROUND.to_owned(), digest: "0".repeat(64) }),
        part: Some(part),
        local_checkpoint: local_checkpoint.to_owned(),
        step: 10,
        fingerprint: String::new(),
        deadline: None,
        time_left: None,
        transfer: None,
    };
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    agent.pull(order).await.expect("the order itself is good");
    let wait = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    loop {
        let status = v1::StatusRequest { header: Some(header.clone()), wait };
        match agent.pull_status(status).await.unwrap().into_inner().state.unwrap() {
            v1::pull_status_response::State::Failed(problem) => return problem,
            v1::pull_status_response::State::InProgress(_) => {}
            other => panic!("a hostile part ended as {other:?}"),
        }
    }
}

const PUSH_ROUND: &str = "00000000-0000-0000-0000-000000000077";
const WRITER: &str = "00000000-0000-0000-0000-000000000088";

fn part_ref(cluster: &Cluster, bytes: &[u8]) -> v1::PartRef {
    let key = format!("host0/1/{PUSH_ROUND}/{WRITER}-1/part.json");
    cluster.s3.admin().put_raw(BUCKET, &format!("{PIPELINE}/{key}"), bytes).unwrap();
    v1::PartRef {
        host_idx: 0,
        key,
        length: bytes.len() as u64,
        blake3: lockstep_protocol::digest::Digest::of(bytes).to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_part_manifests_are_refused_and_leave_nothing_on_the_disk() {
    let cluster = Cluster::start().await;
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.unwrap().id;
    let id = uuid::Uuid::new_v4().to_string();
    let content = b"hello";
    let object = format!("host0/1/{PUSH_ROUND}/{WRITER}-1/data-0");
    cluster.s3.admin().put_raw(BUCKET, &format!("{PIPELINE}/{object}"), content).unwrap();
    let digest = |bytes: &[u8]| lockstep_protocol::digest::Digest::of(bytes).to_string();
    let part = |path: &str, second: &str, blake3: String| {
        let file = |path: &str, blake3: &str| serde_json::json!({"path": path, "size": 5, "blake3": blake3, "object": 0, "offset": 0, "length": 5});
        serde_json::json!({
            "format": 1, "kind": "part", "pipeline": pipeline, "host_idx": 0, "n_hosts": 3, "generation": 1, "round": PUSH_ROUND,
            "incarnation": WRITER, "attempt": 1, "local_checkpoint": id, "step": 10, "fingerprint": null, "processed_records": null,
            "store_meta": "", "objects": [{"key": object, "size": 5}],
            "files": [file(path, &blake3), file(second, &digest(content))],
        })
        .to_string()
    };
    let good = digest(content);
    let cases = [
        (part("../../escape", "b", good.clone()), "MANIFEST_INVALID", ".."),
        (part("/tmp/escape", "b", good.clone()), "MANIFEST_INVALID", "absolute"),
        (part("b", "b", good.clone()), "MANIFEST_INVALID", "twice"),
        (part("b/c", "b", good.clone()), "MANIFEST_INVALID", "file and a folder"),
        (part("a", "b", good.clone())[..200].to_owned(), "MANIFEST_INVALID", "not valid"),
        (part("a", "b", digest(b"other")), "INTEGRITY", "a"),
    ];
    for (round_no, (bytes, reason, shown)) in (10_u64..).zip(cases) {
        let problem = pull_hostile(&cluster, bytes.as_bytes(), round_no, &id).await;
        assert_eq!(problem.reason, reason, "{problem:?}");
        assert!(problem.message.contains(shown), "{shown:?}: {problem:?}");
        if reason == "INTEGRITY" {
            assert_eq!(problem.metadata["expected"], digest(b"other"), "{problem:?}");
            assert_eq!(problem.metadata["found"], good, "{problem:?}");
        }
        let host = &cluster.hosts[0];
        assert!(host.checkpoints().is_empty() && host.leftovers().is_empty(), "{reason}: {:?}", host.leftovers());
    }
    assert!(!std::path::Path::new("/tmp/escape").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_folder_that_is_a_symlink_is_not_followed() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    cluster.pushed().await;
    let outside = cluster.scratch().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let host = &cluster.hosts[0];
    std::fs::remove_dir_all(host.dir.join("checkpoints")).unwrap();
    let own = host.dir.join(".lockstep");
    let staging = own.join("staging");
    let _ = std::fs::remove_dir_all(&staging);
    std::fs::create_dir_all(&own).unwrap();
    std::os::unix::fs::symlink(&outside, &staging).unwrap();
    let round = cluster.pull(v1::StartPullRequest { standby: Some(true), ..Cluster::pull_request() }).await;
    assert_eq!(round.phase(), v1::RoundPhase::Failed, "{round:?}");
    assert!(std::fs::read_dir(&outside).unwrap().next().is_none(), "something was written through the link");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_fail_a_pull_by_name_and_install_nothing() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster);
    cluster.pushed().await;
    let key = cluster
        .s3
        .admin()
        .keys(BUCKET, "orders/host2/")
        .unwrap()
        .into_iter()
        .find(|key| key.contains("data-"))
        .unwrap();
    cluster.s3.admin().flip_byte(BUCKET, &key, 0).unwrap();
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let round = cluster.pull(Cluster::pull_request()).await;
    let problem = round.problem.clone().unwrap();
    assert_eq!((round.phase(), problem.reason.as_str()), (v1::RoundPhase::Failed, "INTEGRITY"), "{problem:?}");
    assert_eq!(problem.metadata["host_idx"], "2");
    cluster.s3.admin().remove(BUCKET, &key).unwrap();
    let round = cluster.pull(Cluster::pull_request()).await;
    assert_eq!(round.problem.unwrap().reason, "CHECKPOINT_DAMAGED");
    for host in &cluster.hosts {
        assert!(host.checkpoints().is_empty(), "host {}", host.idx);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_or_vanishes_while_it_is_read_fails_the_host_by_name() {
    let cluster = Cluster::start().await;
    let ids = checkpoint_all(&cluster);
    // The upload is held up, so that the file can change under it.
    for (n, change) in [(0_u64, "grow"), (1, "replace")] {
        let fault = FaultRule::new(FaultAction::Hang).access_key("agent-1").operation("PutObject");
        let fault = cluster.s3.faults().add(fault);
        cluster.s3.clear_requests();
        let request =
            v1::StartPushRequest { pipeline: PIPELINE.to_owned(), force: true, ..v1::StartPushRequest::default() };
        let round = cluster.client.start_push(request).await.unwrap();
        cluster
            .s3
            .log()
            .wait_for(1, |request| request.access_key.as_deref() == Some("agent-1") && request.operation == "PutObject")
            .await;
        let path = cluster.hosts[1].folder(ids[1].parse().unwrap()).join("state.bin");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, format!("{change} {n}").as_bytes()).unwrap();
        drop(file);
        cluster.s3.faults().remove(fault);
        let ended = cluster.client.wait_round(&round.id).await.unwrap();
        // Either the file was read before it changed and its part is what it was, or the attempt noticed; a retry then reads it as it is.
        if ended.phase() == v1::RoundPhase::Failed {
            let problem = ended.problem.unwrap();
            assert_eq!(problem.reason, "SOURCE_CHANGED", "{problem:?}");
            assert!(problem.message.contains("state.bin"), "{problem:?}");
        } else {
            let verified = cluster.verify(&ended.id).await;
            assert!(verified.problems.is_empty(), "a torn part was committed: {:?}", verified.problems);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_dependencies_at_start_are_said_clearly_and_end_with_a_status() {
    let run = |program: &str, args: &[&str], env: &[(&str, &str)]| {
        let output = std::process::Command::new(lockstep_integration_tests::process::binary(program))
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains("panicked"), "{text}");
        assert!(!text.contains("pa55word"), "{text}");
        (output.status.code(), text)
    };
    let (code, text) =
        run("lockstep-coordinator", &["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"], &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("DATABASE_URL") && text.contains("lockstep dev"), "{text}");
    let url = "postgres://lockstep:pa55word@127.0.0.1:9/lockstep";
    let (code, text) = run(
        "lockstep-coordinator",
        &["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"],
        &[("DATABASE_URL", url)],
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("127.0.0.1") && text.contains('9'), "names where: {text}");
    let (code, text) = run("lockstep-coordinator", &[], &[("DATABASE_URL", url)]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--insecure"), "{text}");
    let agent = [
        "--insecure",
        "--pipeline",
        "orders",
        "--solo",
        "--allow-location",
        "s3://acme-ckpt/orders",
        "--dir",
        "/no/such/folder",
    ];
    let (code, text) = run("lockstep-agent", &agent, &[]);
    assert!(code == Some(1) || code == Some(2), "{text}");
    assert!(text.contains("/no/such/folder"), "{text}");
    let agent = [
        "--insecure",
        "--pipeline",
        "orders",
        "--host-idx",
        "3",
        "--n-hosts",
        "3",
        "--allow-location",
        "s3://acme-ckpt/orders",
        "--dir",
        "/tmp",
    ];
    let (code, text) = run("lockstep-agent", &agent, &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("HOST_INFO_INVALID"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_s3_is_an_error_of_the_call_and_not_a_crash() {
    let cluster = Cluster::with(Options { create: false, ..Options::default() }).await;
    let mut spec = cluster.spec(PIPELINE);
    spec.location.as_mut().unwrap().endpoint = "http://127.0.0.1:9".to_owned();
    let error = cluster.client.create_pipeline(spec).await.expect_err("nobody listens there");
    assert_eq!(error.reason(), "STORE_UNAVAILABLE", "{error}");
    assert!(error.problem().unwrap().metadata.contains_key("bucket"), "{error}");
}
