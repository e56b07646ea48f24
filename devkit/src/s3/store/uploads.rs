//! Multipart uploads.

use std::collections::BTreeMap;
use std::sync::Arc;

use md5::{Digest as _, Md5};
use uuid::Uuid;

use super::blob::Blob;
use super::journal::Entry;
use super::{Attributes, Checksums, Condition, Object, Store, StoreError, now_ms};
use crate::s3::checksum;

/// What S3 asks of every part but the last.
const SMALLEST_PART: u64 = 5 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) started_ms: u64,
    pub(super) attributes: Attributes,
    pub(super) parts: BTreeMap<i32, Part>,
}

/// A part that was received and verified. An empty one has no blob.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) blob: Option<Arc<Blob>>,
    pub(crate) etag: String,
    pub(crate) modified_ms: u64,
    pub(crate) checksums: Checksums,
}

impl Part {
    pub(crate) fn size(&self) -> u64 {
        self.blob.as_ref().map_or(0, |blob| blob.len)
    }
}

/// A part as CompleteMultipartUpload names it.
#[derive(Debug, Clone)]
pub(crate) struct CompletedPart {
    pub(crate) number: i32,
    pub(crate) etag: Option<String>,
    pub(crate) checksums: Checksums,
}

/// An open upload as ListMultipartUploads shows it.
#[derive(Debug, Clone)]
pub(crate) struct OpenUpload {
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) started_ms: u64,
}

impl Store {
    pub(crate) fn start_upload(&self, bucket: &str, key: &str, attributes: Attributes) -> Result<String, StoreError> {
        let id = Uuid::now_v7().simple().to_string();
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        let upload = Upload { key: key.to_owned(), started_ms: now_ms(), attributes, parts: BTreeMap::new() };
        if let Some(journal) = journal {
            journal.append(&Entry::Upload {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                id: id.clone(),
                started_ms: upload.started_ms,
                attributes: upload.attributes.clone(),
            })?;
        }
        entries.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    /// Keeps a part; one uploaded before under this number is replaced.
    pub(crate) fn keep_part(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        number: i32,
        part: Part,
    ) -> Result<(), StoreError> {
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        let upload = entries.uploads.get_mut(id).filter(|upload| upload.key == key);
        let upload = upload.ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        if let Some(journal) = journal {
            let (bucket, id) = (bucket.to_owned(), id.to_owned());
            journal.append(&Entry::Part { bucket, id, number, part: part.entry() })?;
        }
        let replaced = upload.parts.insert(number, part);
        drop(index);
        drop(replaced);
        Ok(())
    }

    /// The parts so far, by number.
    pub(crate) fn parts(&self, bucket: &str, key: &str, id: &str) -> Result<BTreeMap<i32, Part>, StoreError> {
        let index = self.index();
        let upload = index.bucket(bucket)?.uploads.get(id).filter(|upload| upload.key == key);
        upload.map(|upload| upload.parts.clone()).ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))
    }

    /// Open uploads by key, then by age.
    pub(crate) fn uploads(&self, bucket: &str, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let index = self.index();
        let uploads = &index.bucket(bucket)?.uploads;
        let mut open: Vec<OpenUpload> = uploads
            .iter()
            .filter(|(_, upload)| upload.key.starts_with(prefix))
            .map(|(id, upload)| OpenUpload { key: upload.key.clone(), id: id.clone(), started_ms: upload.started_ms })
            .collect();
        // Ids are time-ordered, so equal keys come in the order of their start.
        open.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        Ok(open)
    }

    pub(crate) fn abort_upload(&self, bucket: &str, key: &str, id: &str) -> Result<(), StoreError> {
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        if entries.uploads.get(id).is_none_or(|upload| upload.key != key) {
            return Err(StoreError::NoSuchUpload(id.to_owned()));
        }
        if let Some(journal) = journal {
            journal.append(&Entry::EndUpload { bucket: bucket.to_owned(), id: id.to_owned() })?;
        }
        let removed = entries.uploads.remove(id);
        drop(index);
        drop(removed);
        Ok(())
    }

    /// Publishes the named parts as one object, if `condition` holds at this instant. `whole` is the checksum of the
    /// whole object (or of its parts' checksums), if the client sent one.
    pub(crate) fn complete_upload(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        named: &[CompletedPart],
        whole: &Checksums,
        condition: &Condition,
    ) -> Result<Arc<Object>, StoreError> {
        let mut index = self.index();
        let (entries, journal) = index.bucket_mut(bucket)?;
        let upload = entries.uploads.get(id).filter(|upload| upload.key == key);
        let upload = upload.ok_or_else(|| StoreError::NoSuchUpload(id.to_owned()))?;
        let parts = chosen_parts(upload, named)?;
        checksum::check_whole(&parts, whole)?;
        entries.check(key, condition)?;

        let blobs: Vec<Arc<Blob>> = parts.iter().filter_map(|part| part.blob.clone()).collect();
        let object = Arc::new(Object {
            size: blobs.iter().map(|blob| blob.len).sum(),
            blobs,
            etag: etag_of_parts(&parts),
            modified_ms: now_ms(),
            attributes: upload.attributes.clone(),
            checksums: Checksums::default(),
        });
        if let Some(journal) = journal {
            journal.append(&Entry::Put {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                object: object.entry(),
                completes: Some(id.to_owned()),
            })?;
        }
        let ended = entries.uploads.remove(id);
        let replaced = entries.objects.insert(key.to_owned(), Arc::clone(&object));
        drop(index);
        drop((ended, replaced));
        Ok(object)
    }
}

fn chosen_parts(upload: &Upload, named: &[CompletedPart]) -> Result<Vec<Part>, StoreError> {
    if let Some(pair) = named.windows(2).find(|pair| pair[0].number >= pair[1].number) {
        return Err(StoreError::InvalidPartOrder(pair[1].number));
    }
    let mut parts = Vec::with_capacity(named.len());
    for (position, named_part) in named.iter().enumerate() {
        let number = named_part.number;
        let part = upload.parts.get(&number).ok_or(StoreError::InvalidPart(number))?;
        if named_part.etag.as_ref() != Some(&part.etag) || !checksum::agree(&named_part.checksums, &part.checksums) {
            return Err(StoreError::InvalidPart(number));
        }
        if position + 1 < named.len() && part.size() < SMALLEST_PART {
            return Err(StoreError::PartTooSmall { number, size: part.size() });
        }
        parts.push(part.clone());
    }
    Ok(parts)
}

/// S3's rule: MD5 over the parts' binary MD5s, then their number.
fn etag_of_parts(parts: &[Part]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        // The ETag of a part is the hex of its MD5, written by us.
        let digits = part.etag.as_bytes().chunks_exact(2);
        md5.update(digits.map(|pair| (nibble(pair[0]) << 4) | nibble(pair[1])).collect::<Vec<u8>>());
    }
    format!("{}-{}", checksum::hex(&md5.finalize()), parts.len())
}

fn nibble(digit: u8) -> u8 {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()).unwrap_or(0)
}
