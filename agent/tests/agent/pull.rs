//! What a pull stages, and what it refuses to.

use std::fs;

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1;
use lockstep_protocol::digest::Digest;

use crate::harness::{BUCKET, Files, Host, PREFIX, files, noise, object, read_tree, s3, until};

fn state() -> Files {
    files(&[
        ("a", noise("a", 100_000)),
        ("deep/er/b", noise("b", 1000)),
        ("empty", Vec::new()),
        ("large", noise("large", (11 << 20) + 5)),
    ])
}

/// A host whose checkpoint is in the location; the engine's state is `state()`.
async fn pushed(s3: &S3Server) -> (Host, v1::PushDone) {
    let host = Host::start(s3).await;
    let checkpoint = host.checkpoint(4, &state());
    let done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    (host, done)
}

fn key_of(s3: &S3Server, done: &v1::PushDone, path: &str) -> String {
    place_of(s3, done, path).0
}

/// The object a file lies in, and where its first byte is.
fn place_of(s3: &S3Server, done: &v1::PushDone, path: &str) -> (String, u64) {
    let key = &done.part.as_ref().unwrap().key;
    let part = lockstep_protocol::manifest::PartManifest::parse(key, &object(s3, key)).unwrap();
    let file = part.files.iter().find(|file| file.path.as_str() == path).unwrap();
    (format!("{PREFIX}/{}", part.object_of(file).unwrap().key), file.offset)
}

#[tokio::test]
async fn a_lost_disk_gets_back_the_very_same_files_and_shows_them_only_after_install() {
    let s3 = s3().await;
    let (lost, done) = pushed(&s3).await;
    let expected = read_tree(&lost.folder(&done.local_checkpoint));
    let host = Host::start(&s3).await;
    let mut order = host.pull_order(2, &done, 1);
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, memory: 6 << 20, ..Default::default() });
    let staged = host.pull(order).await.unwrap();
    assert_eq!(staged.reach(), v1::PullReach::Staged);
    assert_eq!(
        (staged.files, staged.bytes, staged.bytes_downloaded, staged.bytes_reused),
        (done.files, done.bytes, done.bytes, 0)
    );
    assert!(!host.folder(&done.local_checkpoint).exists(), "visible before install");

    let installed = host.install(host.install_order(2, &done.local_checkpoint, 4)).await.unwrap();
    assert_eq!(installed.reach(), v1::PullReach::Installed);
    assert_eq!(read_tree(&host.folder(&done.local_checkpoint)), expected);
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn files_that_the_disk_has_are_not_downloaded() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    // Another checkpoint with some of the same contents, one under another name, and one that only looks the same.
    let mut other = state();
    let b = other.remove("deep/er/b").unwrap();
    other.insert("elsewhere".to_owned(), b);
    other.insert("a".to_owned(), noise("other", 100_000));
    host.checkpoint(2, &other);
    s3.clear_requests();
    let staged = host.pull(host.pull_order(2, &done, 1)).await.unwrap();
    assert_eq!(staged.bytes_reused, 1000 + (11 << 20) + 5);
    assert_eq!(staged.bytes_downloaded, done.bytes - staged.bytes_reused);
    host.install(host.install_order(2, &done.local_checkpoint, 4)).await.unwrap();
    let mut installed = read_tree(&host.folder(&done.local_checkpoint));
    installed.remove("checkpoint.json").unwrap();
    assert_eq!(installed, state());
}

/// G5: the owner of the first has retired it meanwhile.
#[tokio::test]
async fn another_checkpoint_in_a_later_attempt_of_the_round_replaces_what_was_staged() {
    let s3 = s3().await;
    let (owner, first) = pushed(&s3).await;
    let newer = files(&[("a", noise("newer", 5000))]);
    let second = owner.push(owner.push_order(2, owner.checkpoint(5, &newer), 5)).await.unwrap();
    let host = Host::start(&s3).await;
    host.pull(host.pull_order(3, &first, 1)).await.unwrap();
    let of_first = host.stagings();
    let mut order = host.pull_order(3, &second, 2);
    order.header.as_mut().unwrap().attempt = 2;
    let staged = host.pull(order).await.unwrap();
    assert_eq!((staged.local_checkpoint, staged.bytes), (second.local_checkpoint.clone(), second.bytes));
    let stagings = host.stagings();
    assert!(stagings.len() == 1 && stagings != of_first, "{stagings:?} after {of_first:?}");
    let install = |checkpoint: &str, step| {
        let mut order = host.install_order(3, checkpoint, step);
        order.header.as_mut().unwrap().attempt = 2;
        host.install(order)
    };
    assert_eq!(install(&first.local_checkpoint, 4).await.unwrap_err().reason, "CHECKPOINT_NOT_FOUND");
    install(&second.local_checkpoint, 5).await.unwrap();
    let mut installed = read_tree(&host.folder(&second.local_checkpoint));
    installed.remove("checkpoint.json").unwrap();
    assert_eq!(installed, newer);
}

#[tokio::test]
async fn a_flipped_byte_is_an_integrity_failure_that_names_the_file_and_leaves_nothing() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let (key, offset) = place_of(&s3, &done, "deep/er/b");
    s3.admin().flip_byte(BUCKET, &key, offset + 500).unwrap();
    let host = Host::start(&s3).await;
    let problem = host.pull(host.pull_order(2, &done, 1)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["file"].as_str()), ("INTEGRITY", "deep/er/b"));
    assert_eq!(problem.metadata["expected"], Digest::of(&noise("b", 1000)).to_string());
    assert_ne!(problem.metadata["found"], problem.metadata["expected"]);
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_missing_object_is_damage_that_names_its_key() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let key = key_of(&s3, &done, "a");
    assert!(s3.admin().remove(BUCKET, &key).unwrap());
    let host = Host::start(&s3).await;
    let problem = host.pull(host.pull_order(2, &done, 1)).await.unwrap_err();
    assert_eq!(problem.reason, "CHECKPOINT_DAMAGED");
    assert!(key.ends_with(&problem.metadata["key"]), "{problem:?}");
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn truncated_bodies_are_read_again() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    let cut =
        s3.faults().add(FaultRule::new(FaultAction::Truncate { after_bytes: 77 }).operation("GetObject").times(3));
    host.pull(host.pull_order(2, &done, 1)).await.unwrap();
    assert_eq!(s3.faults().hits(cut), 3);
}

#[tokio::test]
async fn bodies_that_are_always_truncated_fail_the_pull_and_leave_nothing() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    s3.faults()
        .add(FaultRule::new(FaultAction::Truncate { after_bytes: 77 }).operation("GetObject").key_contains("data-"));
    let problem = host.pull(host.pull_order(2, &done, 1)).await.unwrap_err();
    assert!(["STORE_UNAVAILABLE", "INTEGRITY"].contains(&problem.reason.as_str()), "{problem:?}");
    assert_eq!(problem.retryable(), v1::Retryable::Yes);
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

/// Puts an edited manifest in place of the pushed one, with the length and digest it really has: only its content is wrong.
fn edit(s3: &S3Server, done: &v1::PushDone, change: impl FnOnce(String) -> String) -> v1::PushDone {
    let mut done = done.clone();
    let part = done.part.as_mut().unwrap();
    let bytes = change(String::from_utf8(object(s3, &part.key)).unwrap()).into_bytes();
    (part.length, part.blake3) = (bytes.len() as u64, Digest::of(&bytes).to_string());
    s3.admin().put_raw(BUCKET, &format!("{PREFIX}/{}", part.key), bytes).unwrap();
    done
}

#[tokio::test]
async fn a_hostile_manifest_is_refused_and_writes_nothing_anywhere() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    let outside = host.dir.path().join("outside");
    let key = &done.part.as_ref().unwrap().key;
    let original = object(&s3, key);
    let cases: [(&str, &str, String, &str); 5] = [
        ("parent", "\"deep/er/b\"", "\"../../outside\"".to_owned(), ".."),
        ("absolute", "\"deep/er/b\"", format!("\"{}\"", outside.display()), "absolute"),
        ("duplicate", "\"deep/er/b\"", "\"a\"".to_owned(), "twice"),
        ("file and folder", "\"deep/er/b\"", "\"a/b\"".to_owned(), "file and a folder"),
        ("foreign object", "data-", "../../../secret-".to_owned(), "data object"),
    ];
    for (round_no, (name, from, to, why)) in (2..).zip(cases) {
        let edited = edit(&s3, &done, |text| text.replacen(from, &to, 1));
        let problem = host.pull(host.pull_order(round_no, &edited, 1)).await.unwrap_err();
        assert_eq!(problem.reason, "MANIFEST_INVALID", "{name}: {problem:?}");
        assert!(problem.message.contains(why), "{name}: {}", problem.message);
        assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new(), "{name}");
        assert!(!outside.exists(), "{name}");
        s3.admin().put_raw(BUCKET, &format!("{PREFIX}/{key}"), &original).unwrap();
    }
}

#[tokio::test]
async fn a_manifest_with_another_digest_or_cut_off_is_not_even_parsed() {
    let s3 = s3().await;
    let (_lost, mut done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    let right = done.part.as_ref().unwrap().blake3.clone();
    done.part.as_mut().unwrap().blake3 = "0".repeat(64);
    let problem = host.pull(host.pull_order(2, &done, 1)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["found"].as_str()), ("INTEGRITY", right.as_str()));

    done.part.as_mut().unwrap().blake3 = right;
    let key = format!("{PREFIX}/{}", done.part.as_ref().unwrap().key);
    let bytes = s3.admin().read(BUCKET, &key).unwrap();
    s3.admin().put_raw(BUCKET, &key, &bytes[..bytes.len() / 2]).unwrap();
    let problem = host.pull(host.pull_order(3, &done, 1)).await.unwrap_err();
    assert_eq!(
        (problem.reason.as_str(), problem.metadata["found"].clone()),
        ("INTEGRITY", (bytes.len() / 2).to_string())
    );

    assert!(s3.admin().remove(BUCKET, &key).unwrap());
    let problem = host.pull(host.pull_order(4, &done, 1)).await.unwrap_err();
    assert_eq!(problem.reason, "CHECKPOINT_DAMAGED");
}

#[tokio::test]
async fn a_part_of_another_layout_step_or_checkpoint_is_refused() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let dir = tempfile::tempdir().unwrap();
    let store = crate::harness::directory(dir.path());
    let larger = Host::with(&s3, dir, store, |start| start.slot = lockstep_agent::Agent::slot(1, 4).unwrap()).await;
    let problem = larger.pull(larger.pull_order(2, &done, 1)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["checkpoint"].as_str()), ("LAYOUT_MISMATCH", "3 hosts"));

    let host = Host::start(&s3).await;
    let mut order = host.pull_order(2, &done, 1);
    order.step = 5;
    let problem = host.pull(order).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["field"].as_str()), ("MANIFEST_INVALID", "step"));
    let problem = host.pull(host.pull_order(3, &done, 7)).await.unwrap_err();
    assert_eq!(problem.metadata["field"], "round");
}

#[tokio::test]
async fn a_checkpoint_larger_than_the_disk_is_refused_before_it_is_downloaded() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let edited = edit(&s3, &done, |text| {
        let mut part: serde_json::Value = serde_json::from_str(&text).unwrap();
        for object in part["objects"].as_array_mut().unwrap() {
            object["size"] = (1_u64 << 61).into();
        }
        let file = part["files"].as_array_mut().unwrap().iter_mut().find(|file| file["path"] == "deep/er/b").unwrap();
        (file["size"], file["length"]) = ((1_u64 << 60).into(), (1_u64 << 60).into());
        part.to_string()
    });
    let host = Host::start(&s3).await;
    s3.clear_requests();
    let problem = host.pull(host.pull_order(2, &edited, 1)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.code), ("NO_SPACE", tonic::Code::ResourceExhausted as i32));
    assert!(problem.metadata["needed"].parse::<u64>().unwrap() > 1 << 60);
    assert!(problem.metadata["free"].parse::<u64>().unwrap() > 0);
    assert!(fs::exists(&problem.metadata["path"]).unwrap());
    assert!(s3.requests().iter().all(|request| request.key.as_deref().unwrap().ends_with("part.json")));
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_cancelled_pull_leaves_no_staging_once_it_says_that_it_stopped() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("GetObject").key_contains("data-"));
    let order = host.pull_order(2, &done, 1);
    host.client.clone().pull(order.clone()).await.unwrap();
    until("a download to hang", async || s3.faults().hits(hang) > 0).await;
    assert_eq!(host.stagings().len(), 1);
    let header = order.header.unwrap();
    let cancelled = host.client.clone().cancel(v1::CancelOrder { header: Some(header.clone()) }).await.unwrap();
    assert!(cancelled.into_inner().stopped);
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
    let state = host.pull_state(header, 0).await;
    assert!(matches!(state, v1::pull_status_response::State::Failed(problem) if problem.reason == "CANCELLED"));
}

#[tokio::test]
async fn a_restart_forgets_and_removes_what_was_staged() {
    let s3 = s3().await;
    let (_lost, done) = pushed(&s3).await;
    let host = Host::start(&s3).await;
    host.pull(host.pull_order(2, &done, 1)).await.unwrap();
    assert_eq!(host.stagings().len(), 1);
    let host = host.restart(&s3).await;
    assert_eq!(host.stagings(), Vec::<std::path::PathBuf>::new());
    let state = host.pull_state(host.header(2), 0).await;
    assert!(matches!(state, v1::pull_status_response::State::NotRequested(_)), "{state:?}");
    let problem = host.install(host.install_order(2, &done.local_checkpoint, 4)).await.unwrap_err();
    assert_eq!(problem.reason, "CHECKPOINT_NOT_FOUND");
    // The next attempt pulls again.
    let mut order = host.pull_order(2, &done, 1);
    order.header.as_mut().unwrap().attempt = 2;
    host.pull(order).await.unwrap();
}
