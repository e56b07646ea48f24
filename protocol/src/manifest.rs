//! The part manifest: one host's share of a checkpoint, file by file. Its bytes may be hostile: everything is checked while it is parsed, and
//! what comes out can be used without further thought.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    document::{self, FORMAT, check_format, invalid, kind},
    host::Slot,
    id::{Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, RoundId, Step},
    key::{AttemptPath, Key},
    problem::{Problem, Reason},
};

kind!(PartKind, "part");

/// A path inside a checkpoint: relative, `/`-separated, no `.`, `..` or empty component, no NUL, components up to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

/// Longest path in bytes, as Linux' `PATH_MAX` less room for the staging folder's own path.
pub const MAX_PATH_BYTES: usize = 3072;

impl RelativePath {
    /// Checks the form.
    pub fn new(path: impl Into<String>) -> Result<Self, Problem> {
        let path = path.into();
        let why = if path.is_empty() {
            Some("is empty")
        } else if path.len() > MAX_PATH_BYTES {
            Some("is longer than 3072 bytes")
        } else if path.starts_with('/') {
            Some("is absolute")
        } else if path.contains('\0') {
            Some("contains NUL")
        } else if path.split('/').any(|c| c == "..") {
            Some("has a component ..")
        } else if path.split('/').any(|c| c.is_empty() || c == ".") {
            Some("has an empty component or .")
        } else if path.split('/').any(|c| c.len() > 255) {
            Some("has a component of more than 255 bytes")
        } else {
            None
        };
        match why {
            None => Ok(Self(path)),
            Some(why) => Err(Problem::new(Reason::ManifestInvalid, format!("path {path:?} {why}"))
                .with("path", path)
                .with("why", why)),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders above it, outermost first: `a/b/c` has `a` and `a/b`.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl std::fmt::Display for RelativePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RelativePath {
    type Error = Problem;
    fn try_from(value: String) -> Result<Self, Problem> {
        Self::new(value)
    }
}

impl From<RelativePath> for String {
    fn from(value: RelativePath) -> String {
        value.0
    }
}

/// A data object that files of this part lie in. It may have been written by an earlier round or another host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectEntry {
    /// Relative to the location's prefix; always a data key.
    pub key: String,
    /// Bytes of the whole object.
    pub size: u64,
}

/// One file of the part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it goes, below the local checkpoint's root.
    pub path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// Digest of its content.
    pub blake3: Digest,
    /// Index into `objects`; none exactly for an empty file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<u32>,
    /// First byte in that object.
    #[serde(default)]
    pub offset: u64,
    /// Bytes in that object; equals `size`.
    pub length: u64,
}

/// One host's share of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartManifest {
    /// The pipeline that wrote it.
    pub pipeline: PipelineId,
    /// Host and layout.
    pub slot: Slot,
    /// Of the location when the round was admitted.
    pub generation: Generation,
    /// The push round.
    pub round: RoundId,
    /// The agent process that wrote it.
    pub incarnation: Incarnation,
    /// Its try.
    pub attempt: Attempt,
    /// The local checkpoint it holds.
    pub local_checkpoint: LocalCheckpointId,
    /// Of that local checkpoint.
    pub step: Step,
    /// Of the program, if the engine has one.
    pub fingerprint: Option<Fingerprint>,
    /// Records this host has processed, if known.
    pub processed_records: Option<u64>,
    /// What the checkpoint store needs to restore beyond files, opaque to everyone else: at most [`MAX_STORE_META_BYTES`].
    pub store_meta: String,
    /// Objects that files lie in, each once.
    pub objects: Vec<ObjectEntry>,
    /// Files, sorted by path, each once.
    pub files: Vec<FileEntry>,
}

/// Longest opaque text of a checkpoint store.
pub const MAX_STORE_META_BYTES: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPart {
    format: u32,
    kind: PartKind,
    pipeline: PipelineId,
    host_idx: u32,
    n_hosts: u32,
    generation: Generation,
    round: RoundId,
    incarnation: Incarnation,
    attempt: Attempt,
    local_checkpoint: LocalCheckpointId,
    step: Step,
    fingerprint: Option<Fingerprint>,
    processed_records: Option<u64>,
    #[serde(default)]
    store_meta: String,
    objects: Vec<ObjectEntry>,
    files: Vec<FileEntry>,
}

impl PartManifest {
    /// Where the attempt that wrote it writes.
    pub const fn attempt_path(&self) -> AttemptPath {
        AttemptPath::new(self.slot, self.generation, self.round, self.incarnation, self.attempt)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The object a file lies in; none for an empty file.
    pub fn object_of(&self, file: &FileEntry) -> Option<&ObjectEntry> {
        file.object.and_then(|index| self.objects.get(usize::try_from(index).ok()?))
    }

    /// The document's bytes. Files are sorted, so the same part gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut files = self.files.clone();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        document::encode(&RawPart {
            format: FORMAT,
            kind: PartKind::Kind,
            pipeline: self.pipeline,
            host_idx: self.slot.idx(),
            n_hosts: self.slot.layout().n_hosts(),
            generation: self.generation,
            round: self.round,
            incarnation: self.incarnation,
            attempt: self.attempt,
            local_checkpoint: self.local_checkpoint,
            step: self.step,
            fingerprint: self.fingerprint,
            processed_records: self.processed_records,
            store_meta: self.store_meta.clone(),
            objects: self.objects.clone(),
            files,
        })
    }

    /// Parses hostile bytes. `key` is where they were read; it must be the key of the attempt they name.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawPart = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let slot = crate::host::Layout::from_n_hosts(raw.n_hosts)
            .and_then(|layout| layout.slot(raw.host_idx))
            .map_err(|problem| invalid(key, problem.message))?;
        if raw.store_meta.len() > MAX_STORE_META_BYTES {
            return Err(invalid(key, format!("has a store_meta of {} bytes", raw.store_meta.len())));
        }
        check_objects(key, &raw.objects)?;
        check_files(key, &raw.objects, &raw.files)?;
        let part = Self {
            pipeline: raw.pipeline,
            slot,
            generation: raw.generation,
            round: raw.round,
            incarnation: raw.incarnation,
            attempt: raw.attempt,
            local_checkpoint: raw.local_checkpoint,
            step: raw.step,
            fingerprint: raw.fingerprint,
            processed_records: raw.processed_records,
            store_meta: raw.store_meta,
            objects: raw.objects,
            files: raw.files,
        };
        let own = part.attempt_path().manifest().to_string();
        if own != key {
            return Err(invalid(key, format!("names an attempt whose manifest is {own}")));
        }
        Ok(part)
    }

    /// Refuses a part that points at objects which are neither its own attempt's nor in `base_objects`, the objects that the order's
    /// base reaches (push step 4), or that claims another size for one of them.
    pub fn check_closure(&self, base_objects: &BTreeMap<String, u64>) -> Result<(), Problem> {
        let own = self.attempt_path();
        for object in &self.objects {
            if matches!(Key::parse(&object.key), Some(Key::Data(path, _)) if path == own) {
                continue;
            }
            match base_objects.get(&object.key) {
                Some(size) if *size == object.size => {}
                Some(size) => {
                    return Err(invalid(
                        &own.manifest().to_string(),
                        format!("says object {} has {} bytes, the base says {size}", object.key, object.size),
                    ));
                }
                None => {
                    return Err(invalid(
                        &own.manifest().to_string(),
                        format!("uses object {}, which neither this attempt wrote nor the base reaches", object.key),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn check_objects(key: &str, objects: &[ObjectEntry]) -> Result<(), Problem> {
    let mut seen = BTreeSet::new();
    for object in objects {
        if !matches!(Key::parse(&object.key), Some(Key::Data(..))) {
            return Err(invalid(key, format!("uses object {:?}, which is no data object's key", object.key)));
        }
        if !seen.insert(object.key.as_str()) {
            return Err(invalid(key, format!("lists object {:?} twice", object.key)));
        }
    }
    Ok(())
}

fn check_files(key: &str, objects: &[ObjectEntry], files: &[FileEntry]) -> Result<(), Problem> {
    let mut total = 0_u64;
    let mut paths = BTreeSet::new();
    for file in files {
        let path = &file.path;
        if !paths.insert(path.as_str()) {
            return Err(invalid(key, format!("lists path {path:?} twice")));
        }
        total = total
            .checked_add(file.size)
            .filter(|&sum| sum <= crate::id::MAX_NUMBER)
            .ok_or_else(|| invalid(key, "has more bytes in all than a signed 64-bit number holds"))?;
        if file.length != file.size {
            return Err(invalid(key, format!("path {path:?} has size {} but length {}", file.size, file.length)));
        }
        match file.object {
            None if file.size == 0 => {}
            None => return Err(invalid(key, format!("path {path:?} of {} bytes names no object", file.size))),
            Some(_) if file.size == 0 => {
                return Err(invalid(key, format!("path {path:?} is empty but names an object")));
            }
            Some(index) => {
                let object = usize::try_from(index)
                    .ok()
                    .and_then(|index| objects.get(index))
                    .ok_or_else(|| invalid(key, format!("path {path:?} names object {index} of {}", objects.len())))?;
                if file.offset.checked_add(file.length).is_none_or(|end| end > object.size) {
                    return Err(invalid(
                        key,
                        format!(
                            "path {path:?} reaches to {}+{} in object {:?} of {} bytes",
                            file.offset, file.length, object.key, object.size
                        ),
                    ));
                }
            }
        }
    }
    for file in files {
        if let Some(folder) = file.path.ancestors().find(|folder| paths.contains(folder)) {
            return Err(invalid(key, format!("path {folder:?} is a file and a folder at once")));
        }
    }
    Ok(())
}
