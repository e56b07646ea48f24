//! Where the objects are: an index in memory, bodies in files, and a journal that rebuilds the index.
//!
//! ```text
//! <root>/lock            held while a server runs on this root
//! <root>/journal.jsonl   what was published, in order; only kept if the caller named the root
//! <root>/data/<uuid>     one file a body; a completed multipart object is a list of them, so completing copies nothing
//! ```
//!
//! A body is received into a file of its own and verified while nobody can see it. Publishing is then one step under
//! the index lock: check the condition, append to the journal, swap the entry. That makes create-only atomic against every
//! other writer, and makes listings strong. Keys are only ever strings here: `a` and `a/b` can't get in each other's way.

mod blob;
mod bucket;
mod journal;
mod listing;
mod uploads;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub(crate) use blob::{Blob, BlobDir};
pub(crate) use listing::{After, Page};
pub(crate) use uploads::{CompletedPart, Part};

use bucket::Bucket;
use journal::{Entry, Journal};

/// Checksums that a client sent and we verified, in base64 as S3 shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Checksums {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crc64nvme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

/// What a client says about an object besides its bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) content_type: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A published object. Immutable: an overwrite publishes another one, and readers finish with the one they began with.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) blobs: Vec<Arc<Blob>>,
    pub(crate) size: u64,
    /// Without quotes: the MD5 in hex, for multipart the MD5 of the parts' MD5s and their number.
    pub(crate) etag: String,
    pub(crate) modified_ms: u64,
    pub(crate) attributes: Attributes,
    pub(crate) checksums: Checksums,
}

/// When a write may take effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: "etag"`, or `*` for any object.
    Matches(Option<String>),
}

/// What the store refuses, in S3's terms.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the bucket {0} does not exist")]
    NoSuchBucket(String),
    #[error("the bucket {0} exists already and is yours")]
    BucketExists(String),
    #[error("the bucket {0} is not empty")]
    BucketNotEmpty(String),
    #[error("the key {0} does not exist")]
    NoSuchKey(String),
    #[error("the upload {0} does not exist: it was aborted or completed")]
    NoSuchUpload(String),
    #[error("part {0} was not uploaded, or its ETag or checksum differs")]
    InvalidPart(i32),
    #[error("parts are not in ascending order at part {0}")]
    InvalidPartOrder(i32),
    #[error("part {number} has {size} bytes; every part but the last needs at least 5 MiB")]
    PartTooSmall { number: i32, size: u64 },
    #[error("the condition does not hold for {0}")]
    PreconditionFailed(String),
    #[error("the checksum of the whole object differs: expected {expected}, found {found}")]
    BadDigest { expected: String, found: String },
    #[error("the server is stopping")]
    Stopping,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// All buckets of one server.
#[derive(Debug)]
pub(crate) struct Store {
    index: Mutex<Index>,
    blobs: BlobDir,
    /// Locked until the store goes.
    _lock: File,
    /// Removed with the store, if nobody named a root.
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
struct Index {
    buckets: BTreeMap<String, Bucket>,
    journal: Option<Journal>,
}

impl Index {
    fn bucket(&self, name: &str) -> Result<&Bucket, StoreError> {
        self.buckets.get(name).ok_or_else(|| StoreError::NoSuchBucket(name.to_owned()))
    }

    fn bucket_mut(&mut self, name: &str) -> Result<(&mut Bucket, Option<&mut Journal>), StoreError> {
        let bucket = self.buckets.get_mut(name).ok_or_else(|| StoreError::NoSuchBucket(name.to_owned()))?;
        Ok((bucket, self.journal.as_mut()))
    }
}

impl Store {
    /// Opens `root`, or a temporary directory. `sync` makes bodies and journal survive a power cut, at its price.
    pub(crate) fn open(root: Option<&Path>, sync: bool, md5_etags: bool) -> Result<Self, StoreError> {
        let (path, temporary) = match root {
            Some(root) => (root.to_path_buf(), None),
            None => {
                let base = std::env::temp_dir();
                let directory =
                    tempfile::Builder::new().prefix("lockstep-s3-").tempdir_in(&base).map_err(StoreError::io(&base))?;
                (directory.path().to_path_buf(), Some(directory))
            }
        };
        let data = path.join("data");
        std::fs::create_dir_all(&data).map_err(StoreError::io(&data))?;
        let lock = lock(&path.join("lock"))?;
        let blobs = BlobDir::new(data, sync, md5_etags);
        let mut index = Index { buckets: BTreeMap::new(), journal: None };
        if temporary.is_none() {
            let journal_path = path.join("journal.jsonl");
            for entry in journal::read(&journal_path)? {
                index.replay(entry, &blobs);
            }
            index.journal = Some(Journal::rewrite(&journal_path, index.entries(), sync)?);
            let alive: std::collections::HashSet<uuid::Uuid> =
                index.buckets.values().flat_map(Bucket::blob_ids).collect();
            blobs.sweep(&alive)?;
        }
        blobs.begin();
        Ok(Self { index: Mutex::new(index), blobs, _lock: lock, _temporary: temporary })
    }

    pub(crate) fn blobs(&self) -> &BlobDir {
        &self.blobs
    }

    /// Nothing panics while it holds the lock; were it so, every entry is still whole, so the poison is ignored.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // From here on a body that goes out of memory stays on disk.
        self.blobs.close();
    }
}

impl Index {
    /// The shortest journal that leads here.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.buckets.iter().flat_map(|(name, bucket)| bucket.entries(name))
    }

    /// Entries that refer to what is not there (a lost body, a removed bucket) have no effect: after a power cut the
    /// journal may be ahead of the files.
    fn replay(&mut self, entry: Entry, blobs: &BlobDir) {
        match entry {
            Entry::Bucket { name, created_ms } => {
                self.buckets.insert(name, Bucket::new(created_ms));
            }
            Entry::DropBucket { name } => {
                self.buckets.remove(&name);
            }
            entry => {
                if let Some(bucket) = entry.bucket().and_then(|name| self.buckets.get_mut(name)) {
                    bucket.replay(entry, blobs);
                }
            }
        }
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = File::create(path).map_err(StoreError::io(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let busy =
                std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another S3 server runs on this directory");
            Err(StoreError::io(path)(busy))
        }
        Err(TryLockError::Error(error)) => Err(StoreError::io(path)(error)),
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
