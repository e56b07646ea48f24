//! The bytes of a part manifest, in and out.

use serde::{Deserialize, Serialize, Serializer};

use super::{Delta, FileEntry, Inherited, MAX_STORE_META_BYTES, ObjectEntry, PartManifest, RelativePath, check};
use crate::{
    digest::Digest,
    document::{self, FORMAT, MAX_DOCUMENT_BYTES, check_format, invalid, kind},
    host::Layout,
    id::{Attempt, Fingerprint, Generation, Incarnation, LocalCheckpointId, PipelineId, RoundId, Step},
    key::Key,
    problem::Problem,
};

kind!(PartKind, "part");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPart {
    format: u32,
    #[serde(rename = "kind")]
    _kind: PartKind,
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
    #[serde(default)]
    inherits: Option<Inherited>,
    objects: Vec<ObjectEntry>,
    files: Vec<FileEntry>,
    #[serde(default)]
    removed: Vec<RelativePath>,
}

/// As [`RawPart`], without a copy of what may be 100,000 files.
#[derive(Serialize)]
struct WrittenPart<'p, F: Serialize> {
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
    store_meta: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    inherits: Option<&'p Inherited>,
    objects: &'p [&'p ObjectEntry],
    files: F,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    removed: &'p [RelativePath],
}

/// A sequence that is made while it is written.
struct Sequence<F>(F);

impl<T: Serialize, I: Iterator<Item = T>, F: Fn() -> I> Serialize for Sequence<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

/// What stands at the key of a part manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartDocument {
    /// All there is to know.
    Full(PartManifest),
    /// To be resolved with the manifest that it inherits.
    Delta(DeltaManifest),
}

/// A part as a delta document tells it, checked as far as it can be without what it inherits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeltaManifest {
    /// Where it was read.
    pub(super) key: String,
    /// With the files and objects that the delta lists, sorted.
    pub(super) part: PartManifest,
    pub(super) inherits: Inherited,
    /// Sorted, each once.
    pub(super) removed: Vec<RelativePath>,
}

impl DeltaManifest {
    /// The full manifest that is needed to know the whole part.
    pub const fn inherits(&self) -> &Inherited {
        &self.inherits
    }
}

impl Inherited {
    /// Parses hostile bytes that were read at its key, if they are the very ones and a full manifest.
    pub fn parse(&self, bytes: &[u8]) -> Result<PartManifest, Problem> {
        let found = Digest::of(bytes);
        if u64::try_from(bytes.len()) != Ok(self.length) || found != self.blake3 {
            return Err(invalid(
                &self.key,
                format!(
                    "has {} bytes with digest {found}, what inherits it says {} with {}",
                    bytes.len(),
                    self.length,
                    self.blake3
                ),
            ));
        }
        PartManifest::parse(&self.key, bytes)
    }
}

impl PartDocument {
    /// Parses hostile bytes. `key` is where they were read; it must be the key of the attempt they name.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let mut raw: RawPart = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let slot = Layout::from_n_hosts(raw.n_hosts)
            .and_then(|layout| layout.slot(raw.host_idx))
            .map_err(|problem| invalid(key, problem.message))?;
        if raw.store_meta.len() > MAX_STORE_META_BYTES {
            return Err(invalid(key, format!("has a store_meta of {} bytes", raw.store_meta.len())));
        }
        check::objects(key, &raw.objects)?;
        check::each_file(key, &raw.objects, &raw.files)?;
        check::sort(key, &mut raw.files)?;
        let part = PartManifest {
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
            delta: None,
        };
        let own = part.attempt_path().manifest().to_string();
        if own != key {
            return Err(invalid(key, format!("names an attempt whose manifest is {own}")));
        }
        // Of a delta this is only a part of the truth, but what is wrong with a part of it is wrong with the whole.
        check::together(key, &part.files)?;
        let Some(inherits) = raw.inherits else {
            return match raw.removed.first() {
                None => Ok(Self::Full(part)),
                Some(path) => Err(invalid(key, format!("removes path {path:?} but inherits nothing"))),
            };
        };
        check_inherited(key, &part, &inherits)?;
        raw.removed.sort_unstable();
        if let Some(pair) = raw.removed.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(key, format!("removes path {:?} twice", pair[0])));
        }
        Ok(Self::Delta(DeltaManifest { key: key.to_owned(), part, inherits, removed: raw.removed }))
    }

    /// The full manifest that must be read too, if any.
    pub const fn inherits(&self) -> Option<&Inherited> {
        match self {
            Self::Full(_) => None,
            Self::Delta(delta) => Some(&delta.inherits),
        }
    }

    /// The whole part; `read` gives the bytes that stand at the key of what is inherited.
    pub fn resolve<B: AsRef<[u8]>>(
        self,
        read: impl FnOnce(&Inherited) -> Result<B, Problem>,
    ) -> Result<PartManifest, Problem> {
        match self {
            Self::Full(part) => Ok(part),
            Self::Delta(delta) => {
                let full = delta.inherits.parse(read(&delta.inherits)?.as_ref())?;
                delta.resolve(&full)
            }
        }
    }
}

/// Only what an earlier round wrote for the same slot is inherited.
fn check_inherited(key: &str, part: &PartManifest, inherits: &Inherited) -> Result<(), Problem> {
    let own = part.attempt_path();
    let path = match Key::parse(&inherits.key) {
        Some(Key::PartManifest(path)) if path.host_idx == own.host_idx => path,
        _ => {
            return Err(invalid(
                key,
                format!("inherits {:?}, which is no part manifest of the same host", inherits.key),
            ));
        }
    };
    if path.round == own.round || path.generation > own.generation {
        return Err(invalid(key, format!("inherits {}, which is of no earlier round", inherits.key)));
    }
    if usize::try_from(inherits.length).is_ok_and(|length| length <= MAX_DOCUMENT_BYTES) {
        return Ok(());
    }
    Err(invalid(
        key,
        format!(
            "inherits {} of {} bytes, more than the greatest allowed, {MAX_DOCUMENT_BYTES}",
            inherits.key, inherits.length
        ),
    ))
}

impl PartManifest {
    /// The document's bytes: a delta if the part was [related](Self::relate) to one it differs little from. The same part gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        if let Some(delta) = &self.delta {
            return self.encode_delta(delta);
        }
        let objects: Vec<&ObjectEntry> = self.objects.iter().collect();
        if self.files.is_sorted_by(|a, b| a.path <= b.path) {
            return self.write(None, &objects, self.files.len(), || self.files.iter());
        }
        let mut files: Vec<&FileEntry> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        self.write(None, &objects, files.len(), || files.iter())
    }

    fn encode_delta(&self, delta: &Delta) -> Vec<u8> {
        let mut to = vec![None; self.objects.len()];
        let mut objects = Vec::new();
        for index in delta.listed(self).filter_map(|file| usize::try_from(file.object?).ok()) {
            if let (Some(to @ None), Some(object)) = (to.get_mut(index), self.objects.get(index)) {
                *to = u32::try_from(objects.len()).ok();
                objects.push(object);
            }
        }
        let files = || {
            delta.listed(self).map(|file| {
                let object = file.object.and_then(|index| to.get(usize::try_from(index).ok()?).copied().flatten());
                // The path's text is shared, so this copies a few words.
                FileEntry { object, ..file.clone() }
            })
        };
        self.write(Some(delta), &objects, delta.entries().0, files)
    }

    fn write<T: Serialize, I: Iterator<Item = T>>(
        &self,
        delta: Option<&Delta>,
        objects: &[&ObjectEntry],
        count: usize,
        files: impl Fn() -> I,
    ) -> Vec<u8> {
        // A guess that avoids most copies of a growing buffer.
        let room = 1024 + self.store_meta.len() + 200 * objects.len() + 224 * count;
        document::encode_into(
            Vec::with_capacity(room),
            &WrittenPart {
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
                store_meta: &self.store_meta,
                inherits: delta.map(Delta::inherits),
                objects,
                files: Sequence(files),
                removed: delta.map_or(&[], Delta::removed),
            },
        )
    }

    /// Parses hostile bytes of a full manifest. A delta is refused: it takes two reads to know the part, see [`PartDocument`].
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        match PartDocument::parse(key, bytes)? {
            PartDocument::Full(part) => Ok(part),
            PartDocument::Delta(delta) => {
                Err(invalid(key, format!("inherits {}, where only a full manifest may stand", delta.inherits.key)))
            }
        }
    }
}
