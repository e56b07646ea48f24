//! One bucket: its objects by key, its open uploads by id.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::blob::{Blob, BlobDir};
use super::journal::{Entry, ObjectEntry, PartEntry};
use super::uploads::{Part, Upload};
use super::{Condition, Object, Store, StoreError, now_ms};

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) created_ms: u64,
    pub(super) objects: BTreeMap<String, Arc<Object>>,
    pub(super) uploads: BTreeMap<String, Upload>,
}

impl Bucket {
    pub(super) fn new(created_ms: u64) -> Self {
        Self { created_ms, objects: BTreeMap::new(), uploads: BTreeMap::new() }
    }

    /// What a conditional write or delete of `key` may do now.
    pub(super) fn check(&self, key: &str, condition: &Condition) -> Result<(), StoreError> {
        match (condition, self.objects.get(key)) {
            (Condition::Always, _) | (Condition::Absent, None) | (Condition::Matches(None), Some(_)) => Ok(()),
            (Condition::Matches(Some(etag)), Some(object)) if *etag == object.etag => Ok(()),
            (Condition::Matches(_), None) => Err(StoreError::NoSuchKey(key.to_owned())),
            _ => Err(StoreError::PreconditionFailed(key.to_owned())),
        }
    }

    pub(super) fn blob_ids(&self) -> impl Iterator<Item = Uuid> {
        let of_objects = self.objects.values().flat_map(|object| &object.blobs);
        let of_uploads =
            self.uploads.values().flat_map(|upload| upload.parts.values().filter_map(|part| part.blob.as_ref()));
        of_objects.chain(of_uploads).map(|blob| blob.id)
    }

    pub(super) fn entries(&self, name: &str) -> Vec<Entry> {
        let mut entries = vec![Entry::Bucket { name: name.to_owned(), created_ms: self.created_ms }];
        entries.extend(self.objects.iter().map(|(key, object)| Entry::Put {
            bucket: name.to_owned(),
            key: key.clone(),
            object: object.entry(),
            completes: None,
        }));
        for (id, upload) in &self.uploads {
            entries.push(Entry::Upload {
                bucket: name.to_owned(),
                key: upload.key.clone(),
                id: id.clone(),
                started_ms: upload.started_ms,
                attributes: upload.attributes.clone(),
            });
            entries.extend(upload.parts.iter().map(|(number, part)| Entry::Part {
                bucket: name.to_owned(),
                id: id.clone(),
                number: *number,
                part: part.entry(),
            }));
        }
        entries
    }

    pub(super) fn replay(&mut self, entry: Entry, blobs: &BlobDir) {
        match entry {
            Entry::Put { key, object, completes, .. } => {
                // The blobs of the completed upload's parts are the object's now: taken over, not opened twice.
                let parts: BTreeMap<Uuid, Arc<Blob>> = completes
                    .and_then(|id| self.uploads.remove(&id))
                    .into_iter()
                    .flat_map(|upload| upload.parts.into_values().filter_map(|part| part.blob))
                    .map(|blob| (blob.id, blob))
                    .collect();
                let opened: Option<Vec<Arc<Blob>>> = object
                    .blobs
                    .iter()
                    .map(|(id, len)| parts.get(id).cloned().or_else(|| blobs.existing(*id, *len).map(Arc::new)))
                    .collect();
                if let Some(opened) = opened {
                    self.objects.insert(key, Arc::new(Object::from_entry(object, opened)));
                }
            }
            Entry::Delete { key, .. } => drop(self.objects.remove(&key)),
            Entry::Upload { key, id, started_ms, attributes, .. } => {
                self.uploads.insert(id, Upload { key, started_ms, attributes, parts: BTreeMap::new() });
            }
            Entry::Part { id, number, part, .. } => {
                let Some(upload) = self.uploads.get_mut(&id) else { return };
                let blob = match part.blob {
                    Some((id, len)) => match blobs.existing(id, len) {
                        Some(blob) => Some(Arc::new(blob)),
                        None => return,
                    },
                    None => None,
                };
                upload.parts.insert(number, Part::from_entry(part, blob));
            }
            Entry::EndUpload { id, .. } => drop(self.uploads.remove(&id)),
            Entry::Bucket { .. } | Entry::DropBucket { .. } => {}
        }
    }
}

impl Object {
    pub(super) fn entry(&self) -> ObjectEntry {
        ObjectEntry {
            blobs: self.blobs.iter().map(|blob| (blob.id, blob.len)).collect(),
            etag: self.etag.clone(),
            modified_ms: self.modified_ms,
            attributes: self.attributes.clone(),
            checksums: self.checksums.clone(),
        }
    }

    fn from_entry(entry: ObjectEntry, blobs: Vec<Arc<Blob>>) -> Self {
        Self {
            size: blobs.iter().map(|blob| blob.len).sum(),
            blobs,
            etag: entry.etag,
            modified_ms: entry.modified_ms,
            attributes: entry.attributes,
            checksums: entry.checksums,
        }
    }
}

impl Part {
    pub(super) fn entry(&self) -> PartEntry {
        PartEntry {
            blob: self.blob.as_ref().map(|blob| (blob.id, blob.len)),
            etag: self.etag.clone(),
            modified_ms: self.modified_ms,
            checksums: self.checksums.clone(),
        }
    }

    fn from_entry(entry: PartEntry, blob: Option<Arc<Blob>>) -> Self {
        Self { blob, etag: entry.etag, modified_ms: entry.modified_ms, checksums: entry.checksums }
    }
}

impl Store {
    pub(crate) fn create_bucket(&self, name: &str) -> Result<(), StoreError> {
        let mut index = self.index();
        if index.buckets.contains_key(name) {
            return Err(StoreError::BucketExists(name.to_owned()));
        }
        let created_ms = now_ms();
        if let Some(journal) = &mut index.journal {
            journal.append(&Entry::Bucket { name: name.to_owned(), created_ms })?;
        }
        index.buckets.insert(name.to_owned(), Bucket::new(created_ms));
        Ok(())
    }

    /// Only an empty bucket goes. Open uploads go with it.
    pub(crate) fn delete_bucket(&self, name: &str) -> Result<(), StoreError> {
        let mut index = self.index();
        if !index.bucket(name)?.objects.is_empty() {
            return Err(StoreError::BucketNotEmpty(name.to_owned()));
        }
        if let Some(journal) = &mut index.journal {
            journal.append(&Entry::DropBucket { name: name.to_owned() })?;
        }
        index.buckets.remove(name);
        Ok(())
    }

    /// Names and times of creation.
    pub(crate) fn buckets(&self) -> Vec<(String, u64)> {
        self.index().buckets.iter().map(|(name, bucket)| (name.clone(), bucket.created_ms)).collect()
    }

    pub(crate) fn check_bucket(&self, name: &str) -> Result<(), StoreError> {
        self.index().bucket(name).map(|_| ())
    }

    pub(crate) fn object(&self, bucket: &str, key: &str) -> Result<Arc<Object>, StoreError> {
        let index = self.index();
        let object = index.bucket(bucket)?.objects.get(key);
        object.cloned().ok_or_else(|| StoreError::NoSuchKey(key.to_owned()))
    }

    /// The one step that makes an object visible, if `condition` holds at this instant.
    pub(crate) fn publish(
        &self,
        bucket: &str,
        key: &str,
        object: Object,
        condition: &Condition,
    ) -> Result<Arc<Object>, StoreError> {
        let object = Arc::new(object);
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        entries.check(key, condition)?;
        if let Some(journal) = journal {
            journal.append(&Entry::Put {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                object: object.entry(),
                completes: None,
            })?;
        }
        let replaced = entries.objects.insert(key.to_owned(), Arc::clone(&object));
        // The replaced body's file is removed without holding up everybody else.
        drop(index);
        drop(replaced);
        Ok(object)
    }

    /// Whether there was something to delete; without a condition a missing key is no error, as in S3.
    pub(crate) fn delete(&self, bucket: &str, key: &str, condition: &Condition) -> Result<bool, StoreError> {
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        entries.check(key, condition)?;
        if !entries.objects.contains_key(key) {
            return Ok(false);
        }
        if let Some(journal) = journal {
            journal.append(&Entry::Delete { bucket: bucket.to_owned(), key: key.to_owned() })?;
        }
        let removed = entries.objects.remove(key);
        drop(index);
        drop(removed);
        Ok(true)
    }
}
