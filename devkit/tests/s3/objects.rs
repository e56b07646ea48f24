//! Objects and buckets.

use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use crate::client::{BUCKET, checking_client, client, get, noise, put, refusal, server};

#[tokio::test]
async fn objects_of_any_size_come_back_as_they_went() {
    let server = server().await;
    for client in [client(&server), checking_client(&server)] {
        for size in [0, 1, 512 * 1024, 512 * 1024 + 1, 1024 * 1024, 3 * 1024 * 1024 + 17] {
            let body = noise(size);
            put(&client, "k", &body).await;
            assert!(get(&client, "k").await == body, "{size} bytes");
            let head = client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
            assert_eq!(head.content_length(), Some(i64::try_from(size).unwrap()));
        }
    }
}

#[tokio::test]
async fn etag_is_the_md5_and_attributes_come_back() {
    let server = server().await;
    let client = client(&server);
    let put = client.put_object().bucket(BUCKET).key("k").body(b"hello".to_vec().into());
    let put = put.content_type("text/plain").metadata("step", "7").send().await.unwrap();
    assert_eq!(put.e_tag(), Some("\"5d41402abc4b2a76b9719d911017c592\""));
    let head = client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(head.e_tag(), put.e_tag());
    assert_eq!(head.content_type(), Some("text/plain"));
    assert_eq!(head.metadata().unwrap()["step"], "7");
}

#[tokio::test]
async fn ranges_are_exact() {
    let server = server().await;
    let client = client(&server);
    let body = noise(2_000_000);
    put(&client, "k", &body).await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=500000-1700000", 500_000, 1_700_001),
        ("bytes=1999999-", 1_999_999, 2_000_000),
        ("bytes=-10", 1_999_990, 2_000_000),
        ("bytes=1999990-9999999", 1_999_990, 2_000_000),
    ] {
        let part = client.get_object().bucket(BUCKET).key("k").range(range).send().await.unwrap();
        assert_eq!(part.content_range(), Some(format!("bytes {from}-{}/2000000", to - 1).as_str()), "{range}");
        assert!(part.body.collect().await.unwrap().to_vec() == body[from..to], "{range}");
    }
    let beyond = client.get_object().bucket(BUCKET).key("k").range("bytes=2000000-").send().await;
    assert_eq!(refusal(beyond), (416, "InvalidRange".to_owned()));
    assert_eq!(server.requests().iter().filter(|request| request.status == Some(206)).count(), 6);
}

#[tokio::test]
async fn reads_are_conditional() {
    let server = server().await;
    let client = client(&server);
    put(&client, "k", b"hello").await;
    let etag = "\"5d41402abc4b2a76b9719d911017c592\"";
    let read = || client.get_object().bucket(BUCKET).key("k");
    read().if_match(etag).send().await.unwrap();
    assert_eq!(refusal(read().if_match("\"other\"").send().await), (412, "PreconditionFailed".to_owned()));
    assert_eq!(refusal(read().if_none_match(etag).send().await).0, 304);
    read().if_none_match("\"other\"").send().await.unwrap();
}

#[tokio::test]
async fn missing_objects_are_no_such_key() {
    let server = server().await;
    let client = client(&server);
    let get = client.get_object().bucket(BUCKET).key("none").send().await;
    assert_eq!(refusal(get), (404, "NoSuchKey".to_owned()));
    assert_eq!(refusal(client.head_object().bucket(BUCKET).key("none").send().await).0, 404);
}

#[tokio::test]
async fn a_key_stands_beside_keys_below_it_and_odd_keys_work() {
    let server = server().await;
    let client = client(&server);
    let keys = ["a", "a/b", "a/b/c", "ä ö/+%41&=?", "..", "x//y", "trailing/", &"long/".repeat(200)];
    for key in keys {
        put(&client, key, key.as_bytes()).await;
    }
    for key in keys {
        assert_eq!(get(&client, key).await, key.as_bytes(), "{key}");
    }
    let listed = client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(listed.contents().len(), keys.len());
}

#[tokio::test]
async fn deleted_objects_are_gone_and_deleting_again_is_fine() {
    let server = server().await;
    let client = client(&server);
    for key in ["a", "b", "c"] {
        put(&client, key, b"x").await;
    }
    client.delete_object().bucket(BUCKET).key("a").send().await.unwrap();
    client.delete_object().bucket(BUCKET).key("a").send().await.unwrap();
    let object = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder().objects(object("b")).objects(object("none")).build().unwrap();
    let deleted = client.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert_eq!((deleted.deleted().len(), deleted.errors().len()), (2, 0));
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), ["c"]);
}

#[tokio::test]
async fn a_reader_finishes_with_the_object_it_began_with() {
    let server = server().await;
    let client = client(&server);
    let body = noise(20_000_000);
    put(&client, "k", &body).await;
    let reading = client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
    put(&client, "k", b"other").await;
    client.delete_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert!(reading.body.collect().await.unwrap().to_vec() == body);
}

#[tokio::test]
async fn buckets_are_made_listed_and_removed() {
    let server = server().await;
    let client = client(&server);
    client.create_bucket().bucket("second").send().await.unwrap();
    let again = client.create_bucket().bucket("second").send().await;
    assert_eq!(refusal(again), (409, "BucketAlreadyOwnedByYou".to_owned()));
    let listed = client.list_buckets().send().await.unwrap();
    let names: Vec<_> = listed.buckets().iter().filter_map(|bucket| bucket.name()).collect();
    assert_eq!(names, [BUCKET, "second"]);
    client.put_object().bucket("second").key("k").body(b"x".to_vec().into()).send().await.unwrap();
    assert_eq!(refusal(client.delete_bucket().bucket("second").send().await), (409, "BucketNotEmpty".to_owned()));
    client.delete_object().bucket("second").key("k").send().await.unwrap();
    client.delete_bucket().bucket("second").send().await.unwrap();
    assert_eq!(refusal(client.head_bucket().bucket("second").send().await).0, 404);
}

#[tokio::test]
async fn a_flipped_byte_and_a_removed_object_show() {
    let server = server().await;
    let client = client(&server);
    put(&client, "k", b"hello").await;
    server.admin().flip_byte(BUCKET, "k", 1).unwrap();
    assert_eq!(get(&client, "k").await, [b'h', !b'e', b'l', b'l', b'o']);
    assert!(server.admin().flip_byte(BUCKET, "k", 5).is_err());
    server.admin().put_raw(BUCKET, "raw", b"raw").unwrap();
    assert_eq!(get(&client, "raw").await, b"raw");
    assert!(server.admin().remove(BUCKET, "k").unwrap());
    assert_eq!(server.admin().keys(BUCKET, "").unwrap(), ["raw"]);
}
