//! Behind the server's back: what a test does to the objects themselves.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::checksum::Hashers;
use super::store::{After, Attributes, Condition, Object, Store, StoreError, now_ms};

/// Direct access to the objects, past signatures, faults and the request log. Every call does file I/O in place.
#[derive(Debug, Clone)]
pub struct S3Admin {
    pub(crate) store: Arc<Store>,
}

impl S3Admin {
    /// Makes a bucket.
    pub fn create_bucket(&self, bucket: &str) -> Result<(), StoreError> {
        self.store.create_bucket(bucket)
    }

    /// All keys with this prefix, in order.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, StoreError> {
        let page = self.store.list(bucket, prefix, None, &After::Start, usize::MAX)?;
        Ok(page.objects.into_iter().map(|(key, _)| key).collect())
    }

    /// An object's bytes, all in memory.
    pub fn read(&self, bucket: &str, key: &str) -> Result<Vec<u8>, StoreError> {
        let object = self.store.object(bucket, key)?;
        let mut bytes = Vec::new();
        for blob in &object.blobs {
            bytes.extend(std::fs::read(blob.path()).map_err(StoreError::io(blob.path()))?);
        }
        Ok(bytes)
    }

    /// An object's size in bytes.
    pub fn size(&self, bucket: &str, key: &str) -> Result<u64, StoreError> {
        Ok(self.store.object(bucket, key)?.size)
    }

    /// Writes an object, whether or not there is one.
    pub fn put_raw(&self, bucket: &str, key: &str, bytes: impl AsRef<[u8]>) -> Result<(), StoreError> {
        let bytes = bytes.as_ref();
        let mut hashers = Hashers::new(true, []);
        hashers.update(bytes);
        let mut blobs = Vec::new();
        if !bytes.is_empty() {
            let (mut blob, mut file) = self.store.blobs().create().map_err(StoreError::io("data".as_ref()))?;
            file.write_all(bytes).map_err(StoreError::io(blob.path()))?;
            blob.len = bytes.len() as u64;
            blobs.push(Arc::new(blob));
        }
        let object = Object {
            blobs,
            size: bytes.len() as u64,
            etag: hashers.finish().etag(),
            modified_ms: now_ms(),
            attributes: Attributes::default(),
            checksums: Default::default(),
        };
        self.store.publish(bucket, key, object, &Condition::Always).map(|_| ())
    }

    /// Flips every bit of one byte, silently: size, ETag and checksums stay what they were. For an offset beyond the end,
    /// an error.
    pub fn flip_byte(&self, bucket: &str, key: &str, offset: u64) -> Result<(), StoreError> {
        let object = self.store.object(bucket, key)?;
        let mut begin = 0;
        for blob in &object.blobs {
            if offset < begin + blob.len {
                let path = blob.path();
                let file = OpenOptions::new().read(true).write(true).open(path).map_err(StoreError::io(path))?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset - begin).map_err(StoreError::io(path))?;
                return file.write_all_at(&[!byte[0]], offset - begin).map_err(StoreError::io(path));
            }
            begin += blob.len;
        }
        let beyond = std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{offset} is beyond {begin} bytes"));
        Err(StoreError::io(key.as_ref())(beyond))
    }

    /// Removes an object; `false` if there was none.
    pub fn remove(&self, bucket: &str, key: &str) -> Result<bool, StoreError> {
        self.store.delete(bucket, key, &Condition::Always)
    }

    /// Multipart uploads that are neither completed nor aborted: (key, upload id), by key.
    pub fn open_uploads(&self, bucket: &str) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.store.uploads(bucket, "")?.into_iter().map(|upload| (upload.key, upload.id)).collect())
    }
}
