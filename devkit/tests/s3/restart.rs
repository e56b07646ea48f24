//! What stays when the server goes.

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use lockstep_devkit::S3Server;

use crate::client::{BUCKET, client, get, is_unknown, noise, options, put, refusal};

#[tokio::test]
async fn everything_published_survives_a_restart_on_the_same_address() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options();
    options.root = Some(root.path().to_path_buf());
    let server = S3Server::start(options.clone()).await.unwrap();
    let first = client(&server);
    let large = noise(7_000_000);
    put(&first, "large", &large).await;
    put(&first, "empty", b"").await;
    put(&first, "twice", b"1").await;
    put(&first, "twice", b"2").await;
    put(&first, "deleted", b"x").await;
    first.delete_object().bucket(BUCKET).key("deleted").send().await.unwrap();
    first.create_bucket().bucket("second").send().await.unwrap();
    let upload = first.create_multipart_upload().bucket(BUCKET).key("parts").send().await.unwrap();
    let id = upload.upload_id().unwrap();
    let part = first.upload_part().bucket(BUCKET).key("parts").upload_id(id).part_number(1).body(large.clone().into());
    let part = part.send().await.unwrap();
    let etag = first.head_object().bucket(BUCKET).key("large").send().await.unwrap().e_tag().unwrap().to_owned();

    options.listen = server.addr();
    server.stop().await;
    assert!(is_unknown(&first.head_bucket().bucket(BUCKET).send().await));

    let server = S3Server::start(options.clone()).await.unwrap();
    let second = client(&server);
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), ["empty", "large", "twice"]);
    assert!(get(&second, "large").await == large);
    assert_eq!(get(&second, "twice").await, b"2");
    second.head_bucket().bucket("second").send().await.unwrap();
    let head = second.head_object().bucket(BUCKET).key("large").send().await.unwrap();
    assert_eq!(head.e_tag(), Some(etag.as_str()));

    let completed = CompletedPart::builder().part_number(1).e_tag(part.e_tag().unwrap()).build();
    let completed = CompletedMultipartUpload::builder().parts(completed).build();
    let complete = second.complete_multipart_upload().bucket(BUCKET).key("parts").upload_id(id);
    complete.multipart_upload(completed).send().await.unwrap();
    server.stop().await;

    let server = S3Server::start(options).await.unwrap();
    let third = client(&server);
    assert!(get(&third, "parts").await == large);
    assert!(server.admin().open_uploads(BUCKET).unwrap().is_empty());
    // One file each for large, twice and the part: what was replaced and deleted is gone.
    assert_eq!(std::fs::read_dir(root.path().join("data")).unwrap().count(), 3);
}

#[tokio::test]
async fn torn_journal_and_leftover_bodies_are_survived() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options();
    options.root = Some(root.path().to_path_buf());
    let server = S3Server::start(options.clone()).await.unwrap();
    put(&client(&server), "k", b"x").await;
    server.stop().await;
    let journal = root.path().join("journal.jsonl");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.extend_from_slice(br#"{"put":{"bucket":"bucket","key":"torn","obj"#);
    std::fs::write(&journal, bytes).unwrap();
    std::fs::write(root.path().join("data/00000000000000000000000000000000"), b"half a body").unwrap();

    let server = S3Server::start(options).await.unwrap();
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), ["k"]);
    assert_eq!(std::fs::read_dir(root.path().join("data")).unwrap().count(), 1);
}

#[tokio::test]
async fn two_servers_never_share_a_root() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options();
    options.root = Some(root.path().to_path_buf());
    let first = S3Server::start(options.clone()).await.unwrap();
    let error = S3Server::start(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("another S3 server"), "{error}");
    first.stop().await;
    S3Server::start(options).await.unwrap();
}

#[tokio::test]
async fn temporary_root_goes_with_the_server() {
    let server = S3Server::start(options()).await.unwrap();
    // Other tests' roots come and go meanwhile: ours is the one with this port in it.
    let mark = format!("mark of {}", server.addr());
    put(&client(&server), "k", mark.as_bytes()).await;
    let root = temporary_roots().into_iter().find(|root| holds(root, mark.as_bytes())).unwrap();
    server.stop().await;
    assert!(!root.exists(), "{} is still there", root.display());
}

fn temporary_roots() -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("lockstep-s3-")).collect()
}

fn holds(root: &std::path::Path, body: &[u8]) -> bool {
    let files = std::fs::read_dir(root.join("data")).into_iter().flatten().flatten();
    files.into_iter().any(|file| std::fs::read(file.path()).is_ok_and(|bytes| bytes == body))
}

#[tokio::test]
async fn address_in_use_and_bad_bucket_names_are_said() {
    let server = S3Server::start(options()).await.unwrap();
    let mut taken = options();
    taken.listen = server.addr();
    let error = S3Server::start(taken).await.unwrap_err().to_string();
    assert!(error.contains(&server.addr().to_string()), "{error}");
    let mut named = options();
    named.buckets = vec!["No/Bucket".to_owned()];
    let error = S3Server::start(named).await.unwrap_err().to_string();
    assert!(error.contains("No/Bucket"), "{error}");
    let client = client(&server);
    assert_eq!(refusal(client.create_bucket().bucket("Not_valid").send().await), (400, "InvalidBucketName".to_owned()));
}
