//! The journal: one JSON document a line, appended before the entry takes effect, rewritten at each start.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Attributes, Checksums, StoreError};

/// One change of the index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    Bucket { name: String, created_ms: u64 },
    DropBucket { name: String },
    Put { bucket: String, key: String, object: ObjectEntry, completes: Option<String> },
    Delete { bucket: String, key: String },
    Upload { bucket: String, key: String, id: String, started_ms: u64, attributes: Attributes },
    Part { bucket: String, id: String, number: i32, part: PartEntry },
    EndUpload { bucket: String, id: String },
}

impl Entry {
    pub(super) fn bucket(&self) -> Option<&str> {
        match self {
            Self::Bucket { .. } | Self::DropBucket { .. } => None,
            Self::Put { bucket, .. }
            | Self::Delete { bucket, .. }
            | Self::Upload { bucket, .. }
            | Self::Part { bucket, .. }
            | Self::EndUpload { bucket, .. } => Some(bucket),
        }
    }
}

/// An object as the journal keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ObjectEntry {
    pub(super) blobs: Vec<(Uuid, u64)>,
    pub(super) etag: String,
    pub(super) modified_ms: u64,
    pub(super) attributes: Attributes,
    pub(super) checksums: Checksums,
}

/// A part as the journal keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PartEntry {
    pub(super) blob: Option<(Uuid, u64)>,
    pub(super) etag: String,
    pub(super) modified_ms: u64,
    pub(super) checksums: Checksums,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    sync: bool,
}

impl Journal {
    /// Replaces the journal by the shortest one that says the same.
    pub(super) fn rewrite(path: &Path, entries: impl Iterator<Item = Entry>, sync: bool) -> Result<Self, StoreError> {
        let temporary = path.with_extension("new");
        let mut writer = BufWriter::new(File::create(&temporary).map_err(StoreError::io(&temporary))?);
        for entry in entries {
            writer.write_all(&line(&entry).map_err(StoreError::io(&temporary))?).map_err(StoreError::io(&temporary))?;
        }
        let file = writer.into_inner().map_err(|error| StoreError::io(&temporary)(error.into_error()))?;
        if sync {
            file.sync_all().map_err(StoreError::io(&temporary))?;
        }
        std::fs::rename(&temporary, path).map_err(StoreError::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, sync })
    }

    /// One write a line: a process that is killed leaves whole lines.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let written = line(entry).and_then(|line| self.file.write_all(&line));
        written.map_err(StoreError::io(&self.path))?;
        if self.sync {
            self.file.sync_data().map_err(StoreError::io(&self.path))?;
        }
        Ok(())
    }
}

fn line(entry: &Entry) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

/// All entries up to the first one that is torn (a power cut may leave one, at the end).
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, StoreError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(path)(error)),
    };
    let mut entries = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                let path = path.display().to_string();
                tracing::warn!(path, line = number + 1, %error, "torn journal entry: what follows it is lost");
                break;
            }
        }
    }
    Ok(entries)
}
