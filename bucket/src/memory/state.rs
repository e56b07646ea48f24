//! What an object store in memory holds.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::store::{ListPage, Listed, MAX_PAGE, PartTag, UploadId};

/// A write, kept so that it can land later or twice. Keys are full.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create { bucket: String, key: String, body: Bytes },
    Put { bucket: String, key: String, body: Bytes },
    Delete { bucket: String, key: String },
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<u16, Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    buckets: BTreeMap<String, BTreeMap<String, Bytes>>,
    uploads: BTreeMap<String, Upload>,
    /// Id to bucket, full key and ETag of what it became.
    completed: BTreeMap<String, (String, String, String)>,
    /// Objects that a multipart upload made and nothing has replaced since: a single PUT of the same bytes has another ETag in S3.
    assembled: BTreeMap<(String, String), String>,
    next_upload: u64,
    /// Sent, but not landed yet.
    pub(super) late: Vec<Change>,
    /// For stale reads and listings.
    pub(super) fresh_to_read: BTreeSet<String>,
    fresh_to_list: BTreeSet<String>,
    /// Keys whose content was replaced by another.
    pub(super) overwritten: Vec<String>,
}

pub(super) fn etag(bytes: &Bytes) -> String {
    format!("\"{}\"", blake3::hash(bytes).to_hex())
}

impl State {
    pub(super) fn create_bucket(&mut self, bucket: &str) {
        self.buckets.entry(bucket.to_owned()).or_default();
    }

    pub(super) fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Option<&Bytes> {
        self.buckets.get(bucket)?.get(key)
    }

    pub(super) fn set(&mut self, bucket: &str, key: &str, bytes: Option<Bytes>) {
        let Some(objects) = self.buckets.get_mut(bucket) else { return };
        self.assembled.remove(&(bucket.to_owned(), key.to_owned()));
        match bytes {
            Some(bytes) => {
                self.fresh_to_read.insert(key.to_owned());
                self.fresh_to_list.insert(key.to_owned());
                if objects.get(key).is_some_and(|old| *old != bytes) {
                    self.overwritten.push(key.to_owned());
                }
                objects.insert(key.to_owned(), bytes);
            }
            None => {
                objects.remove(key);
            }
        }
    }

    /// False: a create found the key taken.
    pub(super) fn apply(&mut self, change: &Change, create_overwrites: bool) -> bool {
        match change {
            Change::Create { bucket, key, body } => {
                if self.get(bucket, key).is_some() && !create_overwrites {
                    return false;
                }
                self.set(bucket, key, Some(body.clone()));
            }
            Change::Put { bucket, key, body } => self.set(bucket, key, Some(body.clone())),
            Change::Delete { bucket, key } => self.set(bucket, key, None),
        }
        true
    }

    pub(super) fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.list(bucket, prefix, None).map(|(key, _)| key.clone()).collect()
    }

    fn list<'s>(
        &'s self,
        bucket: &str,
        prefix: &'s str,
        after: Option<&'s str>,
    ) -> impl Iterator<Item = (&'s String, &'s Bytes)> {
        self.buckets
            .get(bucket)
            .into_iter()
            .flat_map(move |objects| objects.range(prefix.to_owned()..))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter(move |(key, _)| after.is_none_or(|after| key.as_str() > after))
    }

    pub(super) fn page(&mut self, bucket: &str, prefix: &str, after: Option<&str>, max: u16, stale: bool) -> ListPage {
        let hidden = if stale { std::mem::take(&mut self.fresh_to_list) } else { BTreeSet::new() };
        let max = usize::from(max.clamp(1, MAX_PAGE));
        let mut objects: Vec<Listed> = self
            .list(bucket, prefix, after)
            .filter(|(key, _)| !hidden.contains(*key))
            .take(max + 1)
            .map(|(key, bytes)| Listed { key: key.clone(), size: u64::try_from(bytes.len()).unwrap_or(u64::MAX) })
            .collect();
        let more = objects.len() > max;
        objects.truncate(max);
        let next = if more { objects.last().map(|last| last.key.clone()) } else { None };
        ListPage { objects, next }
    }

    pub(super) fn create_upload(&mut self, bucket: &str, key: &str) -> UploadId {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        let upload = Upload { bucket: bucket.to_owned(), key: key.to_owned(), parts: BTreeMap::new() };
        self.uploads.insert(id.clone(), upload);
        UploadId(id)
    }

    pub(super) fn add_part(&mut self, key: &str, upload: &UploadId, number: u16, body: Bytes) -> bool {
        match self.uploads.get_mut(&upload.0).filter(|upload| upload.key == key) {
            Some(upload) => {
                upload.parts.insert(number, body);
                true
            }
            None => false,
        }
    }

    /// None: no such upload; `Some(None)`: the parts don't fit.
    pub(super) fn assemble(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> Option<Option<Bytes>> {
        let upload = self.uploads.get(&upload.0).filter(|upload| upload.key == key)?;
        let mut whole = Vec::new();
        let mut last = 0;
        for part in parts {
            match upload.parts.get(&part.number) {
                Some(bytes) if etag(bytes) == part.etag && part.number > last => whole.extend_from_slice(bytes),
                _ => return Some(None),
            }
            last = part.number;
        }
        Some((!parts.is_empty()).then(|| Bytes::from(whole)))
    }

    pub(super) fn complete(&mut self, bucket: &str, key: &str, upload: &UploadId, body: Bytes) {
        let etag = etag(&body);
        self.set(bucket, key, Some(body));
        self.assembled.insert((bucket.to_owned(), key.to_owned()), etag.clone());
        self.completed.insert(upload.0.clone(), (bucket.to_owned(), key.to_owned(), etag));
        self.drop_upload(upload);
    }

    /// Whether this upload became what stands at the key.
    pub(super) fn became(&self, bucket: &str, key: &str, upload: &UploadId) -> bool {
        let stands = self.assembled.get(&(bucket.to_owned(), key.to_owned()));
        self.completed.get(&upload.0).is_some_and(|(b, k, e)| b == bucket && k == key && Some(e) == stands)
    }

    pub(super) fn drop_upload(&mut self, upload: &UploadId) {
        self.uploads.remove(&upload.0);
    }

    pub(super) fn uploads(&self, bucket: &str, prefix: &str) -> Vec<(String, UploadId)> {
        self.uploads
            .iter()
            .filter(|(_, upload)| upload.bucket == bucket && upload.key.starts_with(prefix))
            .map(|(id, upload)| (upload.key.clone(), UploadId(id.clone())))
            .collect()
    }
}
