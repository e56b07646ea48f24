//! Gathering the evidence from running servers, past every proxy and fault.

use std::{collections::BTreeMap, fs, path::Path};

use aws_sdk_s3::Client;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use sqlx::{Connection as _, PgConnection};

use super::{Evidence, Written, database::Rows, history::History};
use crate::servers::{Account, client};

/// Where evidence is to be found.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'s> {
    /// `http://` and the address of the S3 server.
    pub endpoint: &'s str,
    /// Whoever may read all of it.
    pub account: Account<'s>,
    /// The bucket.
    pub bucket: &'s str,
    /// Root of the embedded S3 server, which keeps its journal there.
    pub journal_root: &'s Path,
    /// URL of the database.
    pub database: &'s str,
}

/// Objects that are fetched at a time.
const AT_A_TIME: usize = 16;

/// Reads all of it. Panics where something can't be read: there is no audit then.
pub async fn collect(sources: Sources<'_>, history: History) -> Evidence {
    let s3 = client(sources.endpoint, sources.account);
    let keys = keys(&s3, sources.bucket).await;
    let objects: BTreeMap<String, Vec<u8>> = stream::iter(keys)
        .map(|key| {
            let get = s3.get_object().bucket(sources.bucket).key(&key);
            async move {
                let body = get.send().await?.body.collect().await?;
                Ok::<_, Box<dyn std::error::Error>>((key, body.into_bytes().to_vec()))
            }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await
        .expect("every object can be read");
    let uploads = s3.list_multipart_uploads().bucket(sources.bucket).send().await.expect("uploads can be listed");
    let mut connection = PgConnection::connect(sources.database).await.expect("the database answers");
    let rows = Rows::read(&mut connection).await.expect("the database can be read");
    Evidence {
        objects,
        journal: journal(sources.journal_root, sources.bucket),
        open_uploads: uploads.uploads().len(),
        rows,
        history,
    }
}

async fn keys(s3: &Client, bucket: &str) -> Vec<String> {
    let mut pages = s3.list_objects_v2().bucket(bucket).into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.expect("the bucket can be listed");
        keys.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
    }
    keys
}

/// A line of the server's journal, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Put {
        bucket: String,
        key: String,
        object: Object,
    },
    Delete {
        bucket: String,
        key: String,
    },
    #[serde(untagged)]
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Object {
    etag: String,
}

/// Everything that was ever published in a bucket of this server.
pub fn journal(root: &Path, of: &str) -> Vec<Written> {
    let path = root.join("journal.jsonl");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line of the journal is JSON"));
    lines
        .filter_map(|line| match line {
            Line::Put { bucket, key, object } if bucket == of => Some(Written::Put { key, etag: object.etag }),
            Line::Delete { bucket, key } if bucket == of => Some(Written::Deleted { key }),
            Line::Put { .. } | Line::Delete { .. } | Line::Other(_) => None,
        })
        .collect()
}
