//! Who may do what, and the request log.

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use lockstep_devkit::DenyRule;

use crate::client::{BUCKET, client, client_as, plain, put, refusal, server};

#[tokio::test]
async fn wrong_secret_is_signature_does_not_match_and_unknown_key_is_said_so() {
    let server = server().await;
    let wrong = client_as(&server, "lockstep", "guessed").list_objects_v2().bucket(BUCKET).send().await;
    assert_eq!(refusal(wrong), (403, "SignatureDoesNotMatch".to_owned()));
    let unknown =
        client_as(&server, "nobody", "x").put_object().bucket(BUCKET).key("k").body(vec![0; 3_000_000].into());
    assert_eq!(refusal(unknown.send().await), (403, "InvalidAccessKeyId".to_owned()));
    let (status, body) = plain(&server, "GET", "/bucket/k", "", "").await;
    assert_eq!(status, 403);
    assert!(body.contains("AccessDenied"), "{body}");
    let keys: Vec<_> = server.requests().into_iter().map(|request| request.access_key).collect();
    assert_eq!(keys, [Some("lockstep".to_owned()), Some("nobody".to_owned()), None]);
}

#[tokio::test]
async fn denial_holds_for_one_credential_and_prefix_until_cleared() {
    let server = server().await;
    let (client, other) = (client(&server), client_as(&server, "other", "other-secret"));
    let deny = |operation: &str, prefix: &str| {
        server.denials().add(DenyRule {
            access_key: Some("other".to_owned()),
            operation: Some(operation.to_owned()),
            key_prefix: Some(prefix.to_owned()),
            ..DenyRule::default()
        });
    };
    deny("PutObject", "p/");
    deny("ListBucket", "");
    let denied = (403, "AccessDenied".to_owned());
    let write = |key: &str| other.put_object().bucket(BUCKET).key(key).body(b"x".to_vec().into()).send();
    assert_eq!(refusal(write("p/k").await), denied);
    let multipart = other.create_multipart_upload().bucket(BUCKET).key("p/k").send().await;
    assert_eq!(refusal(multipart), denied);
    write("q/k").await.unwrap();
    assert_eq!(refusal(other.list_objects_v2().bucket(BUCKET).send().await), denied);
    // As on AWS: who may not list learns nothing about missing keys.
    assert_eq!(refusal(other.get_object().bucket(BUCKET).key("none").send().await), denied);
    put(&client, "p/k", b"x").await;
    assert_eq!(client.list_objects_v2().bucket(BUCKET).send().await.unwrap().contents().len(), 2);

    server.denials().clear();
    write("p/k").await.unwrap();
    assert_eq!(refusal(other.get_object().bucket(BUCKET).key("none").send().await), (404, "NoSuchKey".to_owned()));
}

#[tokio::test]
async fn batch_delete_is_denied_key_by_key() {
    let server = server().await;
    let client = client(&server);
    put(&client, "keep/k", b"x").await;
    put(&client, "drop/k", b"x").await;
    server.denials().add(DenyRule {
        operation: Some("DeleteObject".to_owned()),
        key_prefix: Some("keep/".to_owned()),
        ..DenyRule::default()
    });
    let object = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder().objects(object("keep/k")).objects(object("drop/k")).build().unwrap();
    let deleted = client.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert_eq!(deleted.errors()[0].code(), Some("AccessDenied"));
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), ["keep/k"]);
}

#[tokio::test]
async fn the_log_counts_every_request_exactly() {
    let server = server().await;
    let (client, other) = (client(&server), client_as(&server, "other", "other-secret"));
    let put = other.put_object().bucket(BUCKET).key("a/b").body(b"12345".to_vec().into()).customize();
    let put = put.mutate_request(|request| {
        request.headers_mut().insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    });
    put.send().await.unwrap();
    let get = client.get_object().bucket(BUCKET).key("a/b").range("bytes=1-2").send().await.unwrap();
    get.body.collect().await.unwrap();
    client.list_objects_v2().bucket(BUCKET).prefix("a/").send().await.unwrap();
    let missing = client.get_object().bucket(BUCKET).key("none").send().await.unwrap_err();
    let request_id = aws_sdk_s3::operation::RequestId::request_id(&missing).unwrap().to_owned();

    let all_finished = server.log().wait_for(4, |request| request.finished);
    let log = tokio::time::timeout(std::time::Duration::from_secs(20), all_finished).await.unwrap();
    let seen: Vec<_> = log
        .iter()
        .map(|request| {
            (request.operation.as_str(), request.key.as_deref(), request.access_key.as_deref(), request.status)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("PutObject", Some("a/b"), Some("other"), Some(200)),
            ("GetObject", Some("a/b"), Some("lockstep"), Some(206)),
            ("ListObjectsV2", Some("a/"), Some("lockstep"), Some(200)),
            ("GetObject", Some("none"), Some("lockstep"), Some(404)),
        ]
    );
    assert_eq!((log[0].bytes_in, log[1].bytes_out), (5, 2));
    assert!(log[0].traceparent.as_ref().unwrap().starts_with("00-0af7"));
    assert_eq!(log[1].range.as_deref(), Some("bytes=1-2"));
    assert!(request_id.ends_with(&format!("{:X}", log[3].seq)), "{request_id}");
    assert_eq!(server.log().count_of("GetObject"), 2);
    server.clear_requests();
    assert!(server.requests().is_empty());
}
