//! The part manifest: one host's share of a checkpoint, file by file. Its bytes may be hostile: everything is checked while it is parsed, and
//! what comes out can be used without further thought.
//!
//! A part is written **in full** or as a **delta**: a delta names one full part manifest of the same slot, which it inherits, and lists only what
//! differs from it. It never inherits another delta, so two reads give the whole part, whatever its age. Whoever reads:
//! [`PartDocument::parse`], then, for a delta, the bytes of what it [inherits](DeltaManifest::inherits) and [`DeltaManifest::resolve`]. Whoever writes:
//! [`PartManifest::relate`] to the base, then [`PartManifest::encode`].
//!
//! - [`path`]: paths inside a checkpoint
//! - [`delta`]: what a part inherits, made and resolved
//! - [`document`]: bytes in and out
//! - `check`, `closure`: what is refused

pub mod delta;
pub mod document;
pub mod path;

mod check;
mod closure;

use serde::{Deserialize, Serialize};

pub use self::{
    delta::{Delta, Inherited},
    document::{DeltaManifest, PartDocument},
    path::{MAX_PATH_BYTES, RelativePath},
};
use crate::{
    digest::Digest,
    host::Slot,
    id::{Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, RoundId, Step},
    key::AttemptPath,
};

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
    /// Digest of its first [`HEAD_BYTES`], only for files that are longer: one short read tells that another file is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Digest>,
    /// Index into `objects`; none exactly for an empty file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<u32>,
    /// First byte in that object.
    #[serde(default)]
    pub offset: u64,
    /// Bytes in that object; equals `size`.
    pub length: u64,
}

/// Bytes that [`FileEntry::head`] is the digest of.
pub const HEAD_BYTES: u64 = 1 << 20;

/// One host's share of a checkpoint, whole: what it inherits has been put in its place.
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
    /// How it differs from the full manifest that its document names; none: its document is a full one.
    pub delta: Option<Delta>,
}

/// Longest opaque text of a checkpoint store.
pub const MAX_STORE_META_BYTES: usize = 1 << 20;

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

    /// The full manifest that this part's document, named by `own`, is or inherits: the only one that a part of the next round may inherit.
    pub fn full_form(&self, own: Inherited) -> Inherited {
        self.delta.as_ref().map_or(own, |delta| delta.inherits().clone())
    }
}
