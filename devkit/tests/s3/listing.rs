//! Listings.

use aws_sdk_s3::types::EncodingType;

use crate::client::{BUCKET, client, put, refusal, server};

/// All keys and common prefixes of a listing, page by page.
async fn list(
    client: &aws_sdk_s3::Client,
    prefix: &str,
    delimiter: Option<&str>,
    page: i32,
) -> (Vec<String>, Vec<String>, usize) {
    let mut pages = 0;
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    let mut token = None;
    loop {
        let request =
            client.list_objects_v2().bucket(BUCKET).prefix(prefix).max_keys(page).set_continuation_token(token);
        let output = request.set_delimiter(delimiter.map(str::to_owned)).send().await.unwrap();
        pages += 1;
        let count = output.contents().len() + output.common_prefixes().len();
        assert_eq!(output.key_count(), Some(i32::try_from(count).unwrap()));
        assert!(count <= usize::try_from(page).unwrap());
        keys.extend(output.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        prefixes.extend(output.common_prefixes().iter().filter_map(|prefix| prefix.prefix().map(str::to_owned)));
        token = output.next_continuation_token().map(str::to_owned);
        assert_eq!(output.is_truncated(), Some(token.is_some()));
        if token.is_none() {
            return (keys, prefixes, pages);
        }
    }
}

#[tokio::test]
async fn every_page_size_gives_every_key_once_and_in_order() {
    let server = server().await;
    let client = client(&server);
    let mut keys: Vec<String> = (0..25).map(|n| format!("p/{n}")).collect();
    keys.sort();
    for key in keys.iter().map(String::as_str).chain(["o", "q", "p"]) {
        server.admin().put_raw(BUCKET, key, b"").unwrap();
    }
    for page in [1, 2, 7, 24, 25, 26, 1000] {
        let (listed, _, pages) = list(&client, "p/", None, page).await;
        assert_eq!(listed, keys, "pages of {page}");
        assert_eq!(pages, 25_usize.div_ceil(usize::try_from(page).unwrap()), "pages of {page}");
    }
}

#[tokio::test]
async fn a_thousand_keys_a_page_is_the_most() {
    let server = server().await;
    for n in 0..1001 {
        server.admin().put_raw(BUCKET, &format!("{n:04}"), b"").unwrap();
    }
    let output = client(&server).list_objects_v2().bucket(BUCKET).max_keys(5000).send().await.unwrap();
    assert_eq!((output.contents().len(), output.is_truncated()), (1000, Some(true)));
}

#[tokio::test]
async fn delimiter_folds_keys_into_common_prefixes_across_pages() {
    let server = server().await;
    let client = client(&server);
    for key in ["a", "a/1", "a/2", "a/b/3", "a0", "b/1", "c", "d/", "ü/1", "ü/2"] {
        server.admin().put_raw(BUCKET, key, b"").unwrap();
    }
    for page in [1, 2, 3, 1000] {
        let (keys, prefixes, _) = list(&client, "", Some("/"), page).await;
        assert_eq!(
            (keys, prefixes),
            (strings(&["a", "a0", "c"]), strings(&["a/", "b/", "d/", "ü/"])),
            "pages of {page}"
        );
        let (keys, prefixes, _) = list(&client, "a/", Some("/"), page).await;
        assert_eq!((keys, prefixes), (strings(&["a/1", "a/2"]), strings(&["a/b/"])), "pages of {page}");
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn start_after_is_exclusive_and_need_not_exist() {
    let server = server().await;
    for key in ["a", "b", "c"] {
        server.admin().put_raw(BUCKET, key, b"").unwrap();
    }
    for (after, first) in [("a", "b"), ("aa", "b"), ("", "a")] {
        let output = client(&server).list_objects_v2().bucket(BUCKET).start_after(after).send().await.unwrap();
        assert_eq!(output.contents()[0].key(), Some(first), "after {after:?}");
    }
}

#[tokio::test]
async fn a_listing_shows_what_was_just_written_and_deleted() {
    let server = server().await;
    let client = client(&server);
    for n in 0..50 {
        let key = format!("{n}");
        put(&client, &key, b"x").await;
        assert_eq!(list(&client, &key, None, 1000).await.0.last(), Some(&key));
        client.delete_object().bucket(BUCKET).key(&key).send().await.unwrap();
        assert!(list(&client, "", None, 1000).await.0.is_empty());
    }
}

#[tokio::test]
async fn foreign_token_is_refused_and_no_keys_is_an_empty_page() {
    let server = server().await;
    let client = client(&server);
    server.admin().put_raw(BUCKET, "a", b"").unwrap();
    let foreign = client.list_objects_v2().bucket(BUCKET).continuation_token("???").send().await;
    assert_eq!(refusal(foreign), (400, "InvalidArgument".to_owned()));
    let none = client.list_objects_v2().bucket(BUCKET).max_keys(0).send().await.unwrap();
    assert_eq!((none.contents().len(), none.is_truncated()), (0, Some(false)));
}

#[tokio::test]
async fn old_listing_pages_by_marker_and_encodes_on_request() {
    let server = server().await;
    let client = client(&server);
    for key in ["a b", "d/1", "d/2", "e"] {
        server.admin().put_raw(BUCKET, key, b"").unwrap();
    }
    let mut seen = Vec::new();
    let mut marker = None;
    loop {
        let page = client.list_objects().bucket(BUCKET).delimiter("/").max_keys(1).set_marker(marker);
        let page = page.send().await.unwrap();
        seen.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        seen.extend(page.common_prefixes().iter().filter_map(|prefix| prefix.prefix().map(str::to_owned)));
        marker = page.next_marker().map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a b", "d/", "e"]);
    let encoded = client.list_objects_v2().bucket(BUCKET).encoding_type(EncodingType::Url).send().await.unwrap();
    assert_eq!(encoded.contents()[0].key(), Some("a%20b"));
}
