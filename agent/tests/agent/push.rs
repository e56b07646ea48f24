//! What a push leaves in the location, and what it refuses to send.

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1;
use lockstep_protocol::{
    digest::Digest,
    id::LocalCheckpointId,
    manifest::{PartDocument, PartManifest},
};

use crate::harness::{BUCKET, FINGERPRINT, Files, Host, commit, directory, files, noise, object, s3};

/// As a reader with the bucket alone sees it.
pub(crate) fn part(s3: &S3Server, done: &v1::PushDone) -> PartManifest {
    let part = done.part.as_ref().unwrap();
    let bytes = object(s3, &part.key);
    assert_eq!((bytes.len() as u64, Digest::of(&bytes).to_string()), (part.length, part.blake3.clone()));
    PartDocument::parse(&part.key, &bytes).unwrap().resolve(|inherits| Ok(object(s3, &inherits.key))).unwrap()
}

pub(crate) fn content(s3: &S3Server, part: &PartManifest) -> Files {
    let read = |file: &lockstep_protocol::manifest::FileEntry| {
        let bytes = part.object_of(file).map(|entry| object(s3, &entry.key)).unwrap_or_default();
        let from = usize::try_from(file.offset).unwrap();
        let to = from + usize::try_from(file.length).unwrap();
        bytes.get(from..to).unwrap().to_vec()
    };
    part.files.iter().map(|file| (file.path.to_string(), read(file))).collect()
}

pub(crate) fn without_document(mut files: Files) -> Files {
    assert!(files.remove("checkpoint.json").is_some());
    files
}

#[tokio::test]
async fn a_pushed_part_holds_every_file_and_names_host_step_and_checkpoint() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let state = files(&[
        ("a", noise("a", 100_000)),
        ("empty", Vec::new()),
        ("deep/er/file with spaces.dat", noise("b", 10)),
        ("deep/ü.dat", noise("c", 5)),
        (".hidden", noise("d", 1)),
    ]);
    let checkpoint = host.checkpoint(4, &state);
    let done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();

    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state);
    assert_eq!((part.step.get(), part.local_checkpoint), (4, checkpoint));
    assert_eq!((part.slot, part.incarnation), (host.slot, host.agent.incarnation()));
    assert_eq!((part.fingerprint.unwrap().to_string().as_str(), part.processed_records), (FINGERPRINT, Some(1004)));
    assert_eq!((done.files, done.bytes), (6, part.bytes()));
    assert_eq!((done.bytes_uploaded, done.processed_records), (part.bytes(), Some(1004)));
    for file in &part.files {
        let expected = state.get(file.path.as_str()).map(|bytes| Digest::of(bytes));
        assert!(expected.is_none_or(|expected| expected == file.blake3), "{}", file.path);
        assert_eq!(file.object.is_none(), file.size == 0, "{}", file.path);
    }
    // The manifest came last: until it stands there is no part.
    let requests = s3.requests();
    assert_eq!(requests.last().unwrap().key.as_deref().unwrap().rsplit('/').next(), Some("part.json"));
    assert_eq!(requests.last().unwrap().if_none_match.as_deref(), Some("*"));
}

#[tokio::test]
async fn a_checkpoint_without_files_is_pushed() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &Files::new());
    let done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), Files::new());
}

#[tokio::test]
async fn a_second_push_sends_only_what_its_base_does_not_have() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let mut state = files(&[("a", noise("a", 300_000)), ("b", noise("b", 200_000)), ("c", noise("c", 70))]);
    let first = host.checkpoint(4, &state);
    let base = host.push(host.push_order(1, first, 4)).await.unwrap();

    // Same size, other content: only the digest tells.
    state.insert("b".to_owned(), noise("b2", 200_000));
    // Same content under another name.
    let c = state.remove("c").unwrap();
    state.insert("moved/c".to_owned(), c);
    let second = host.checkpoint(8, &state);
    let mut order = host.push_order(2, second, 8);
    order.base = Some(commit(1));
    order.base_parts = vec![base.part.clone().unwrap()];
    s3.clear_requests();
    let done = host.push(order).await.unwrap();

    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state);
    let document = part.files.iter().find(|file| file.path.as_str() == "checkpoint.json").unwrap().size;
    assert_eq!(done.bytes_uploaded, 200_000 + document);
    let puts = s3.requests().into_iter().filter(|request| request.operation == "PutObject").count();
    assert_eq!(puts, 2, "b with checkpoint.json, and the manifest");
    let of_base = part.objects.iter().filter(|object| object.key.contains("-000000000001/")).count();
    assert_eq!((of_base, part.objects.len()), (1, 2));
}

#[tokio::test]
async fn a_base_that_is_not_what_the_order_says_is_refused() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 100))]));
    let base = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    let mut order = host.push_order(2, checkpoint, 4);
    order.base = Some(commit(1));
    let mut wrong = base.part.unwrap();
    wrong.blake3 = "0".repeat(64);
    order.base_parts = vec![wrong];
    let problem = host.push(order).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["expected"].clone()), ("INTEGRITY", "0".repeat(64)));
}

#[tokio::test]
async fn a_large_file_goes_in_parts_that_fit_into_the_memory() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let state = files(&[("large", noise("large", (12 << 20) + 17)), ("small", noise("s", 3))]);
    let checkpoint = host.checkpoint(4, &state);
    let mut order = host.push_order(1, checkpoint, 4);
    order.transfer =
        Some(v1::TransferOptions { part_size: 5 << 20, memory: 5 << 20, concurrency: 8, bandwidth_limit: 0 });
    let done = host.push(order).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state);
    let parts: Vec<_> = s3.requests().into_iter().filter(|request| request.operation == "UploadPart").collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(s3.admin().open_uploads(BUCKET).unwrap(), []);
}

#[tokio::test]
async fn a_failed_push_leaves_no_multipart_upload_open_and_no_manifest() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("large", noise("large", 11 << 20))]));
    let mut order = host.push_order(1, checkpoint, 4);
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() });
    s3.faults().add(FaultRule::new(FaultAction::AccessDenied).operation("UploadPart").skip(1));
    let problem = host.push(order).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["s3_code"].as_str()), ("STORE_DENIED", "AccessDenied"));
    assert_eq!(problem.metadata["bucket"], BUCKET);
    assert_eq!(s3.admin().open_uploads(BUCKET).unwrap(), []);
    let manifests = s3.admin().keys(BUCKET, "").unwrap().into_iter().filter(|key| key.ends_with("part.json")).count();
    assert_eq!(manifests, 0);
}

#[tokio::test]
async fn hiccups_of_the_store_are_retried_inside_the_attempt() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let state = files(&[("a", noise("a", 1000)), ("large", noise("large", 6 << 20))]);
    let checkpoint = host.checkpoint(4, &state);
    for (action, operation) in [
        (FaultAction::SlowDown, "PutObject"),
        (FaultAction::ResetAfterWrite, "UploadPart"),
        (FaultAction::ResetAfterWrite, "CompleteMultipartUpload"),
        (FaultAction::InternalError, "CreateMultipartUpload"),
    ] {
        s3.faults().add(FaultRule::new(action).operation(operation).times(2));
    }
    // The first try of the manifest lands, its answer is lost: what stands there is its own.
    s3.faults()
        .add(FaultRule::new(FaultAction::ResetAfterWrite).operation("PutObject").key_contains("part.json").times(1));
    let mut order = host.push_order(1, checkpoint, 4);
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() });
    let done = host.push(order).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state);
}

#[tokio::test]
async fn a_wrong_secret_fails_the_push_with_what_the_store_said() {
    let s3 = s3().await;
    let dir = tempfile::tempdir().unwrap();
    let store = directory(dir.path());
    let host = Host::with(&s3, dir, store, |start| start.secret = "wrong").await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let problem = host.push(host.push_order(1, checkpoint, 4)).await.unwrap_err();
    assert_eq!(problem.reason, "STORE_DENIED");
    assert_eq!(problem.metadata["s3_code"], "SignatureDoesNotMatch");
    assert_eq!((problem.metadata["http_status"].as_str(), problem.metadata["bucket"].as_str()), ("403", BUCKET));
    assert!(problem.metadata["key"].starts_with("ckpt/orders/host1/"));
}

#[tokio::test]
async fn a_checkpoint_that_is_gone_or_of_another_step_is_not_pushed() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let gone = host.push(host.push_order(1, LocalCheckpointId::new(uuid::Uuid::new_v4()), 4)).await.unwrap_err();
    assert_eq!(gone.reason, "CHECKPOINT_NOT_FOUND");
    let checkpoint = host.checkpoint(4, &Files::new());
    let other = host.push(host.push_order(2, checkpoint, 5)).await.unwrap_err();
    assert_eq!((other.metadata["found"].as_str(), other.metadata["ordered"].as_str()), ("4", "5"));
    assert_eq!(s3.requests(), []);
}

#[tokio::test]
async fn a_symlink_or_fifo_in_a_checkpoint_is_unsupported_and_named() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let with_link = host.checkpoint(4, &files(&[("a", noise("a", 10))]));
    std::os::unix::fs::symlink("/etc/passwd", host.folder(with_link).join("link")).unwrap();
    let problem = host.push(host.push_order(1, with_link, 4)).await.unwrap_err();
    assert_eq!(problem.reason, "SOURCE_UNSUPPORTED");
    assert!(problem.metadata["path"].contains("link"), "{problem:?}");

    let with_fifo = host.checkpoint(8, &files(&[("a", noise("a", 10))]));
    nix::unistd::mkfifo(&host.folder(with_fifo).join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let problem = host.push(host.push_order(2, with_fifo, 8)).await.unwrap_err();
    assert_eq!(problem.reason, "SOURCE_UNSUPPORTED");
    assert!(problem.metadata["path"].contains("fifo"), "{problem:?}");
}
