//! Bodies: one file each, gone from the disk when the last one who can read it is done.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::StoreError;

/// The directory of all bodies.
#[derive(Debug, Clone)]
pub(crate) struct BlobDir {
    path: PathBuf,
    keeping: Arc<AtomicBool>,
    sync: bool,
    md5_etags: bool,
}

impl BlobDir {
    /// Until [`BlobDir::begin`], no file is removed: a store that fails to open must not take its bodies with it.
    pub(super) fn new(path: PathBuf, sync: bool, md5_etags: bool) -> Self {
        Self { path, keeping: Arc::new(AtomicBool::new(true)), sync, md5_etags }
    }

    pub(super) fn begin(&self) {
        self.keeping.store(false, Ordering::Release);
    }

    /// A new empty file, which goes again unless the blob is published.
    pub(crate) fn create(&self) -> std::io::Result<(Blob, File)> {
        let blob = self.at(Uuid::new_v4(), 0);
        let file = File::create_new(&blob.path)?;
        Ok((blob, file))
    }

    /// Whether bodies are to be on the disk before they are published.
    pub(crate) fn sync(&self) -> bool {
        self.sync
    }

    /// Whether the ETag of a body is its MD5 even if nobody asked for that.
    pub(crate) fn md5_etags(&self) -> bool {
        self.md5_etags
    }

    /// A body that the journal speaks of, if it is there in full.
    pub(super) fn existing(&self, id: Uuid, len: u64) -> Option<Blob> {
        let path = self.path.join(id.simple().to_string());
        // Looked at before the blob exists: dropping a blob removes its file.
        std::fs::metadata(&path).is_ok_and(|meta| meta.len() == len).then(|| self.at(id, len))
    }

    /// Removes every file that no entry refers to: bodies that were being received when the process ended.
    pub(super) fn sweep(&self, alive: &HashSet<Uuid>) -> Result<(), StoreError> {
        for entry in std::fs::read_dir(&self.path).map_err(StoreError::io(&self.path))? {
            let path = entry.map_err(StoreError::io(&self.path))?.path();
            let id = path.file_name().and_then(|name| Uuid::try_parse(name.to_str()?).ok());
            if id.is_some_and(|id| !alive.contains(&id)) {
                std::fs::remove_file(&path).map_err(StoreError::io(&path))?;
            }
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        self.keeping.store(true, Ordering::Release);
    }

    fn at(&self, id: Uuid, len: u64) -> Blob {
        Blob { id, len, path: self.path.join(id.simple().to_string()), keeping: Arc::clone(&self.keeping) }
    }
}

/// One body.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) id: Uuid,
    pub(crate) len: u64,
    path: PathBuf,
    keeping: Arc<AtomicBool>,
}

impl Blob {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if !self.keeping.load(Ordering::Acquire) {
            // A file that can't be removed is swept by the next start on this root.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
