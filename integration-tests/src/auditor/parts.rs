//! What one host's part of a commit consists of, followed to the last byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use uuid::Uuid;

use super::{
    Evidence,
    location::{Commit, CommitPart},
};

#[derive(Debug, Deserialize)]
struct Inherited {
    key: String,
    length: u64,
    blake3: String,
}

#[derive(Debug, Deserialize)]
struct ObjectEntry {
    key: String,
    size: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct FileEntry {
    path: String,
    size: u64,
    blake3: String,
    #[serde(default)]
    object: Option<usize>,
    #[serde(default)]
    offset: u64,
    length: u64,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    host_idx: u32,
    n_hosts: u32,
    round: Uuid,
    local_checkpoint: Uuid,
    step: u64,
    fingerprint: Option<String>,
    #[serde(default)]
    inherits: Option<Inherited>,
    objects: Vec<ObjectEntry>,
    files: Vec<FileEntry>,
    #[serde(default)]
    removed: Vec<String>,
}

/// Where a file lies: object key, its size, offset; none for an empty file.
type Lies = Option<(String, u64, u64)>;

/// Follows parts, and remembers which bytes it has compared: commits share them.
#[derive(Debug, Default)]
pub(super) struct Follower {
    compared: HashMap<(String, u64, u64), String>,
    /// Keys that a commit reaches.
    pub(super) reached: BTreeSet<String>,
    pub(super) files: usize,
}

/// A part whose every byte is there.
#[derive(Debug)]
pub(super) struct Followed {
    /// Path to size and BLAKE3.
    pub(super) files: BTreeMap<String, (u64, String)>,
}

fn blake3(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

impl Follower {
    /// The exact document at a key.
    fn document<'e>(
        &mut self,
        evidence: &'e Evidence,
        full: String,
        length: u64,
        digest: &str,
    ) -> Result<&'e [u8], String> {
        let bytes = evidence.objects.get(&full).ok_or_else(|| format!("{full} is missing"))?;
        if bytes.len() as u64 != length || blake3(bytes) != digest {
            return Err(format!("{full} is not the {length} bytes with digest {digest}"));
        }
        self.reached.insert(full);
        Ok(bytes)
    }

    /// S1 and S9 of one part. The error names what is wrong, and which rule that breaks.
    pub(super) fn follow(
        &mut self,
        evidence: &Evidence,
        prefix: &str,
        commit: &Commit,
        part: &CommitPart,
    ) -> Result<Followed, (&'static str, String)> {
        let torn = |what: String| ("S1", what);
        let own = format!("{prefix}{}", part.manifest);
        let bytes = self.document(evidence, own.clone(), part.manifest_length, &part.manifest_blake3).map_err(torn)?;
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| torn(format!("{own}: {error}")))?;
        let cut = (manifest.step, &manifest.fingerprint) == (commit.step, &commit.fingerprint);
        if !cut {
            let found = format!("step {} and fingerprint {:?}", manifest.step, manifest.fingerprint);
            return Err((
                "S9",
                format!("{own} is of {found}, its commit of {} and {:?}", commit.step, commit.fingerprint),
            ));
        }
        if (manifest.host_idx, manifest.n_hosts, manifest.round, manifest.local_checkpoint)
            != (part.host_idx, commit.n_hosts, commit.round, part.local_checkpoint)
        {
            return Err(("S2", format!("{own} is another host's, round's or checkpoint's than the commit says")));
        }
        let mut files = BTreeMap::new();
        if let Some(inherits) = &manifest.inherits {
            let full = format!("{prefix}{}", inherits.key);
            let bytes = self.document(evidence, full.clone(), inherits.length, &inherits.blake3).map_err(torn)?;
            let older: Manifest = serde_json::from_slice(bytes).map_err(|error| torn(format!("{full}: {error}")))?;
            if older.inherits.is_some() {
                return Err(torn(format!("{full} is inherited and inherits itself")));
            }
            place(&older, &full, &mut files).map_err(torn)?;
            for path in &manifest.removed {
                files.remove(path);
            }
        }
        place(&manifest, &own, &mut files).map_err(torn)?;
        let total: u64 = files.values().map(|(file, _)| file.size).sum();
        if (files.len() as u64, total) != (part.files, part.bytes) {
            return Err(torn(format!("{own} has {} files of {total} bytes, its commit says otherwise", files.len())));
        }
        for (path, (file, lies)) in &files {
            self.compare(evidence, prefix, file, lies).map_err(|what| torn(format!("{own}, file {path:?}: {what}")))?;
        }
        self.files += files.len();
        let files = files.into_iter().map(|(path, (file, _))| (path, (file.size, file.blake3))).collect();
        Ok(Followed { files })
    }

    fn compare(&mut self, evidence: &Evidence, prefix: &str, file: &FileEntry, lies: &Lies) -> Result<(), String> {
        let Some((key, size, offset)) = lies else {
            let empty = file.size == 0 && file.blake3 == blake3(b"");
            return if empty { Ok(()) } else { Err("lies in no object and is not empty".to_owned()) };
        };
        let full = format!("{prefix}{key}");
        let object = evidence.objects.get(&full).ok_or_else(|| format!("{full} is missing"))?;
        if object.len() as u64 != *size || file.length != file.size {
            return Err(format!("{full} has {} bytes, not {size}", object.len()));
        }
        let range = (full.clone(), *offset, file.length);
        let found = match self.compared.get(&range) {
            Some(found) => found.clone(),
            None => {
                let end = offset.checked_add(file.length).filter(|end| end <= size);
                let end = end.ok_or_else(|| format!("lies beyond the end of {full}"))?;
                let index = |at: u64| usize::try_from(at).expect("an object in memory");
                let found = blake3(&object[index(*offset)..index(end)]);
                self.compared.insert(range, found.clone());
                found
            }
        };
        if found != file.blake3 {
            return Err(format!("its {} bytes at {offset} of {full} have another digest", file.length));
        }
        self.reached.insert(full);
        Ok(())
    }
}

/// Puts the files that a manifest lists in their place.
fn place(manifest: &Manifest, own: &str, files: &mut BTreeMap<String, (FileEntry, Lies)>) -> Result<(), String> {
    for file in &manifest.files {
        if file.path.is_empty() || file.path.starts_with('/') || file.path.split('/').any(|piece| piece == "..") {
            return Err(format!("{own} has a file {:?}", file.path));
        }
        let lies = match file.object {
            None => None,
            Some(index) => {
                let object = manifest.objects.get(index).ok_or_else(|| format!("{own} has no object {index}"))?;
                Some((object.key.clone(), object.size, file.offset))
            }
        };
        files.insert(file.path.clone(), (file.clone(), lies));
    }
    Ok(())
}
