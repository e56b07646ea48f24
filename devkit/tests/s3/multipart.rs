//! Multipart uploads.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use crate::client::{BUCKET, checking_client, client, get, noise, put, refusal, server};

const MIB: usize = 1024 * 1024;

async fn begin(client: &Client, key: &str) -> String {
    let upload = client.create_multipart_upload().bucket(BUCKET).key(key).send().await.unwrap();
    upload.upload_id().unwrap().to_owned()
}

async fn part(client: &Client, key: &str, id: &str, number: i32, body: &[u8]) -> CompletedPart {
    let upload = client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number);
    let uploaded = upload.body(body.to_vec().into()).send().await.unwrap();
    CompletedPart::builder()
        .part_number(number)
        .e_tag(uploaded.e_tag().unwrap())
        .set_checksum_crc32(uploaded.checksum_crc32().map(str::to_owned))
        .build()
}

fn parts(parts: impl IntoIterator<Item = CompletedPart>) -> CompletedMultipartUpload {
    CompletedMultipartUpload::builder().set_parts(Some(parts.into_iter().collect())).build()
}

#[tokio::test]
async fn parts_make_one_object_in_order_whatever_order_they_came_in() {
    let server = server().await;
    for client in [client(&server), checking_client(&server)] {
        let body = noise(11 * MIB);
        let id = begin(&client, "k").await;
        let third = part(&client, "k", &id, 30, &body[10 * MIB..]).await;
        let first = part(&client, "k", &id, 1, &body[..5 * MIB]).await;
        let second = part(&client, "k", &id, 2, &body[5 * MIB..10 * MIB]).await;

        let listed = client.list_parts().bucket(BUCKET).key("k").upload_id(&id).max_parts(2).send().await.unwrap();
        let numbers: Vec<_> = listed.parts().iter().filter_map(|part| part.part_number()).collect();
        assert_eq!((numbers, listed.is_truncated()), (vec![1, 2], Some(true)));
        let rest = client.list_parts().bucket(BUCKET).key("k").upload_id(&id);
        let rest = rest.part_number_marker(listed.next_part_number_marker().unwrap()).send().await.unwrap();
        assert_eq!(rest.parts()[0].part_number(), Some(30));

        assert_eq!(refusal(client.head_object().bucket(BUCKET).key("k").send().await).0, 404);
        let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
        let completed = complete.multipart_upload(parts([first, second, third])).send().await.unwrap();
        assert!(completed.e_tag().unwrap().ends_with("-3\""), "{:?}", completed.e_tag());
        assert!(get(&client, "k").await == body);
        let across = client.get_object().bucket(BUCKET).key("k").range("bytes=5242870-10485770").send().await.unwrap();
        assert!(across.body.collect().await.unwrap().to_vec() == body[5_242_870..=10_485_770]);
        assert!(server.admin().open_uploads(BUCKET).unwrap().is_empty());
        server.admin().remove(BUCKET, "k").unwrap();
    }
}

#[tokio::test]
async fn wrong_parts_are_refused_and_the_upload_stays() {
    let server = server().await;
    let client = client(&server);
    let id = begin(&client, "k").await;
    let first = part(&client, "k", &id, 1, b"small").await;
    let second = part(&client, "k", &id, 2, b"also small").await;
    let complete = |named: Vec<CompletedPart>| {
        client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).multipart_upload(parts(named)).send()
    };
    let forged = CompletedPart::builder().part_number(1).e_tag("\"0123\"").build();
    let absent = CompletedPart::builder().part_number(3).e_tag(first.e_tag().unwrap()).build();
    assert_eq!(refusal(complete(vec![forged]).await), (400, "InvalidPart".to_owned()));
    assert_eq!(refusal(complete(vec![absent]).await), (400, "InvalidPart".to_owned()));
    let disordered = complete(vec![second.clone(), first.clone()]).await;
    assert_eq!(refusal(disordered), (400, "InvalidPartOrder".to_owned()));
    assert_eq!(refusal(complete(vec![first, second.clone()]).await), (400, "EntityTooSmall".to_owned()));
    assert_eq!(server.admin().open_uploads(BUCKET).unwrap(), [("k".to_owned(), id.clone())]);
    complete(vec![second]).await.unwrap();
    assert_eq!(get(&client, "k").await, b"also small");
}

#[tokio::test]
async fn part_with_a_wrong_checksum_is_not_kept() {
    let server = server().await;
    let client = client(&server);
    let id = begin(&client, "k").await;
    let upload = client.upload_part().bucket(BUCKET).key("k").upload_id(&id).part_number(1);
    let wrong = upload.checksum_crc32("AAAAAA==").body(b"x".to_vec().into()).send().await;
    assert_eq!(refusal(wrong), (400, "BadDigest".to_owned()));
    let listed = client.list_parts().bucket(BUCKET).key("k").upload_id(&id).send().await.unwrap();
    assert!(listed.parts().is_empty());
}

#[tokio::test]
async fn completion_honours_create_only() {
    let server = server().await;
    let client = client(&server);
    let id = begin(&client, "k").await;
    let only = part(&client, "k", &id, 1, b"multipart").await;
    put(&client, "k", b"first").await;
    let complete = || {
        let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
        complete.multipart_upload(parts([only.clone()])).if_none_match("*").send()
    };
    assert_eq!(refusal(complete().await), (412, "PreconditionFailed".to_owned()));
    assert_eq!(get(&client, "k").await, b"first");
    client.delete_object().bucket(BUCKET).key("k").send().await.unwrap();
    complete().await.unwrap();
    assert_eq!(get(&client, "k").await, b"multipart");
}

#[tokio::test]
async fn aborted_upload_is_gone() {
    let server = server().await;
    let client = client(&server);
    let id = begin(&client, "k").await;
    let only = part(&client, "k", &id, 1, b"x").await;
    client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).send().await.unwrap();
    let upload = client.upload_part().bucket(BUCKET).key("k").upload_id(&id).part_number(2);
    let late = upload.body(b"x".to_vec().into()).send().await;
    assert_eq!(refusal(late), (404, "NoSuchUpload".to_owned()));
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
    let complete = complete.multipart_upload(parts([only])).send().await;
    assert_eq!(refusal(complete), (404, "NoSuchUpload".to_owned()));
    let again = client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id(&id).send().await;
    assert_eq!(refusal(again), (404, "NoSuchUpload".to_owned()));
}

#[tokio::test]
async fn open_uploads_are_listed_by_key_and_page() {
    let server = server().await;
    let client = client(&server);
    let mut ids = Vec::new();
    for key in ["p/a", "p/a", "p/b", "q"] {
        ids.push(begin(&client, key).await);
    }
    let mut seen = Vec::new();
    let (mut key_marker, mut id_marker) = (None, None);
    loop {
        let request = client.list_multipart_uploads().bucket(BUCKET).prefix("p/").max_uploads(1);
        let page = request.set_key_marker(key_marker).set_upload_id_marker(id_marker).send().await.unwrap();
        seen.extend(page.uploads().iter().filter_map(|upload| upload.upload_id().map(str::to_owned)));
        if page.is_truncated() != Some(true) {
            break;
        }
        key_marker = page.next_key_marker().map(str::to_owned);
        id_marker = page.next_upload_id_marker().map(str::to_owned);
    }
    assert_eq!(seen, ids[..3]);
}
