//! What a commit rests on: create-only, verify before publish, nothing half done.

use std::sync::Arc;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use lockstep_devkit::{S3Options, S3Server};
use tokio::io::AsyncReadExt as _;

use crate::client::{BUCKET, checking_client, client, get, noise, options, presigning, put, refusal, send_raw, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_race_of_create_only_writes_has_one_winner() {
    let server = server().await;
    for round in 0..20 {
        let key = format!("commit-{round}");
        let barrier = Arc::new(tokio::sync::Barrier::new(12));
        let writers: Vec<_> = (0..12)
            .map(|writer| {
                let (client, key, barrier) = (client(&server), key.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    let body = format!("writer {writer}").into_bytes();
                    barrier.wait().await;
                    let put = client.put_object().bucket(BUCKET).key(key).if_none_match("*").body(body.clone().into());
                    (put.send().await, body)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for writer in writers {
            let (result, body) = writer.await.unwrap();
            match result {
                Ok(_) => winners.push(body),
                refused => assert_eq!(refusal(refused), (412, "PreconditionFailed".to_owned())),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(server.admin().read(BUCKET, &key).unwrap(), winners[0]);
    }
}

#[tokio::test]
async fn create_only_on_an_existing_key_is_refused_and_changes_nothing() {
    let server = server().await;
    let client = client(&server);
    put(&client, "k", b"first").await;
    let again = client.put_object().bucket(BUCKET).key("k").if_none_match("*").body(b"second".to_vec().into());
    assert_eq!(refusal(again.send().await), (412, "PreconditionFailed".to_owned()));
    assert_eq!(get(&client, "k").await, b"first");
}

#[tokio::test]
async fn if_match_writes_only_over_the_object_it_names() {
    let server = server().await;
    let client = client(&server);
    let first = client.put_object().bucket(BUCKET).key("k").body(b"1".to_vec().into()).send().await.unwrap();
    let first = first.e_tag().unwrap();
    let put_over = |etag: &str, body: &[u8]| {
        client.put_object().bucket(BUCKET).key("k").if_match(etag).body(body.to_vec().into()).send()
    };
    put_over(first, b"2").await.unwrap();
    assert_eq!(refusal(put_over(first, b"3").await), (412, "PreconditionFailed".to_owned()));
    assert_eq!(get(&client, "k").await, b"2");
    let missing = client.put_object().bucket(BUCKET).key("none").if_match(first).body(b"x".to_vec().into());
    assert_eq!(refusal(missing.send().await), (404, "NoSuchKey".to_owned()));
}

#[tokio::test]
async fn wrong_checksum_leaves_nothing_visible_and_nothing_on_disk() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options();
    options.root = Some(root.path().to_path_buf());
    let server = S3Server::start(options).await.unwrap();
    let client = client(&server);
    let put = || client.put_object().bucket(BUCKET).key("k").body(noise(3_000_000).into());
    let wrong_md5 = put().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await;
    assert_eq!(refusal(wrong_md5), (400, "BadDigest".to_owned()));
    for (name, result) in [
        ("crc32", put().checksum_crc32("AAAAAA==").send().await),
        ("crc32c", put().checksum_crc32_c("AAAAAA==").send().await),
        ("crc64nvme", put().checksum_crc64_nvme("AAAAAAAAAAA=").send().await),
        ("sha1", put().checksum_sha1("AAAAAAAAAAAAAAAAAAAAAAAAAAA=").send().await),
        ("sha256", put().checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").send().await),
    ] {
        assert_eq!(refusal(result), (400, "BadDigest".to_owned()), "{name}");
    }
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("k").send().await).0, 404);
    assert_eq!(std::fs::read_dir(root.path().join("data")).unwrap().count(), 0);
}

#[tokio::test]
async fn every_algorithm_that_is_right_is_accepted_and_given_back() {
    let server = server().await;
    let client = client(&server);
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        let key = algorithm.as_str().to_owned();
        let body = noise(100_000);
        let put = client.put_object().bucket(BUCKET).key(&key).checksum_algorithm(algorithm).body(body.clone().into());
        put.send().await.unwrap();
        // With its mode on, which is the default, the SDK compares what comes back.
        assert_eq!(get(&client, &key).await, body, "{key}");
        let head = client.head_object().bucket(BUCKET).key(&key);
        let head = head.checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled).send().await.unwrap();
        let sums = [
            head.checksum_crc32(),
            head.checksum_crc32_c(),
            head.checksum_crc64_nvme(),
            head.checksum_sha1(),
            head.checksum_sha256(),
        ];
        assert_eq!(sums.iter().flatten().count(), 1, "{key}: {sums:?}");
    }
}

#[tokio::test]
async fn streamed_upload_with_a_trailing_checksum_is_stored_without_its_framing() {
    let server = server().await;
    let client = checking_client(&server);
    let file = tempfile::NamedTempFile::new().unwrap();
    let body = noise(5_000_001);
    std::fs::write(file.path(), &body).unwrap();
    let stream = ByteStream::from_path(file.path()).await.unwrap();
    client.put_object().bucket(BUCKET).key("k").body(stream).send().await.unwrap();
    assert_eq!(server.admin().read(BUCKET, "k").unwrap(), body);
    assert_eq!(get(&client, "k").await, body);
    let wire = server.requests().iter().find(|request| request.operation == "PutObject").unwrap().bytes_in;
    assert!(wire > body.len() as u64, "{wire} bytes came in: the upload was not framed, so this test shows nothing");
}

/// Changes the body after it was signed.
#[derive(Debug)]
struct SwapBody(&'static [u8]);

impl Intercept for SwapBody {
    fn name(&self) -> &'static str {
        "swap the body"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *context.request_mut().body_mut() = SdkBody::from(self.0);
        Ok(())
    }
}

#[tokio::test]
async fn body_that_differs_from_the_signed_one_is_refused() {
    let server = server().await;
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("k").body(b"signed".to_vec().into());
    let result = put.customize().interceptor(SwapBody(b"forged")).send().await;
    assert_eq!(refusal(result), (400, "XAmzContentSHA256Mismatch".to_owned()));
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn half_a_body_is_never_visible() {
    let server = server().await;
    let client = client(&server);
    put(&client, "k", b"before").await;
    let request = client.put_object().bucket(BUCKET).key("k").presigned(presigning()).await.unwrap();
    let body = noise(2_000_000);
    let mut sender = send_raw(&server, &request, "content-length: 2000000\r\n", &body[..1_500_000]).await;
    let arrived = server.log().wait_for(1, |request| request.bytes_in == 1_500_000);
    tokio::time::timeout(std::time::Duration::from_secs(20), arrived).await.unwrap();
    assert_eq!(get(&client, "k").await, b"before");

    tokio::io::AsyncWriteExt::shutdown(&mut sender).await.unwrap();
    let mut answer = Vec::new();
    // The server answers 400 or just closes; either way it has let go of the request then.
    let _ = sender.read_to_end(&mut answer).await;
    assert_eq!(get(&client, "k").await, b"before");
}

#[tokio::test]
async fn write_into_a_missing_bucket_is_refused_and_makes_none() {
    let server = server().await;
    let client = client(&server);
    let put = client.put_object().bucket("missing").key("k").body(noise(4_000_000).into());
    assert_eq!(refusal(put.send().await), (404, "NoSuchBucket".to_owned()));
    assert_eq!(refusal(client.head_bucket().bucket("missing").send().await).0, 404);
    let list = client.list_objects_v2().bucket("missing").send().await;
    assert_eq!(refusal(list), (404, "NoSuchBucket".to_owned()));
}

#[tokio::test]
async fn without_md5_etags_content_md5_is_still_verified_and_etags_differ_with_every_write() {
    let server = S3Server::start(S3Options { md5_etags: false, ..options() }).await.unwrap();
    let client = client(&server);
    let write = || client.put_object().bucket(BUCKET).key("k").body(b"x".to_vec().into());
    let (first, second) = (write().send().await.unwrap(), write().send().await.unwrap());
    assert_ne!(first.e_tag(), second.e_tag());
    assert!(first.e_tag().unwrap().ends_with("-0\""), "nobody takes it for an MD5: {first:?}");
    // The MD5 of x.
    let asked = write().content_md5("ndTkYSaMgDT1yFZOFVxnpg==").send().await.unwrap();
    assert_eq!(asked.e_tag(), Some("\"9dd4e461268c8034f5c8564e155c67a6\""));
    let wrong = write().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await;
    assert_eq!(refusal(wrong), (400, "BadDigest".to_owned()));
    let upload = client.create_multipart_upload().bucket(BUCKET).key("m").send().await.unwrap();
    let id = upload.upload_id().unwrap();
    let part = client.upload_part().bucket(BUCKET).key("m").upload_id(id).part_number(1).body(noise(1000).into());
    let part = part.send().await.unwrap();
    let parts = CompletedPart::builder().part_number(1).e_tag(part.e_tag().unwrap()).build();
    let parts = CompletedMultipartUpload::builder().parts(parts).build();
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("m").upload_id(id).multipart_upload(parts);
    complete.send().await.unwrap();
    assert!(get(&client, "m").await == noise(1000));
}
