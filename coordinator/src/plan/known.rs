//! What this replica has read of locations and what can't have changed since: commits and part manifests by the digest of their bytes, and its own fences.
//!
//! A push reads none of it again: whether it still *stands* is what planning looks for, by listings. Nothing rests on this memory being there, and it has a
//! bound in bytes, so a coordinator of many pipelines forgets what it didn't need for long and reads it once more.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lockstep_bucket::parts;
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart},
    digest::Digest,
    fence::Fence,
    id::{Generation, PipelineId},
    location::Location,
    manifest::{FileEntry, Inherited, PartManifest},
};

/// Bytes of part manifests in full, which deltas are resolved with.
const FULL_BYTES: usize = 48 << 20;

/// Bytes of what parts reach.
const REACH_BYTES: usize = 16 << 20;

/// Bytes of commit documents.
const COMMIT_BYTES: usize = 16 << 20;

/// Bytes of what is known of fences: some thousands.
const FENCE_BYTES: usize = 2 << 20;

/// Shared by all rounds of a replica.
#[derive(Debug)]
pub struct Known(Mutex<Shelves>);

#[derive(Debug)]
struct Shelves {
    full: Shelf<Digest, PartManifest>,
    reach: Shelf<Digest, Reach>,
    commits: Shelf<Digest, KnownCommit>,
    fences: Shelf<(String, Generation, PipelineId), u64>,
}

/// What a part lets the parts of the next round use.
#[derive(Debug)]
pub struct Reach {
    /// Size of each object by its key.
    pub objects: HashMap<String, u64>,
    /// The full manifest that may be inherited.
    pub full: Inherited,
}

impl Reach {
    /// Of the part that a commit names.
    pub fn of(part: &CommitPart, manifest: &PartManifest) -> Self {
        Self {
            objects: manifest.objects.iter().map(|object| (object.key.clone(), object.size)).collect(),
            full: manifest.full_form(parts::named_by(part)),
        }
    }
}

#[derive(Debug)]
pub(super) struct KnownCommit {
    pub(super) document: Arc<CommitDocument>,
    /// Bytes of its object.
    pub(super) length: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self(Mutex::new(Shelves {
            full: Shelf::new(FULL_BYTES),
            reach: Shelf::new(REACH_BYTES),
            commits: Shelf::new(COMMIT_BYTES),
            fences: Shelf::new(FENCE_BYTES),
        }))
    }
}

impl Known {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn full(&self, digest: &Digest) -> Option<Arc<PartManifest>> {
        self.shelves().full.get(digest)
    }

    /// Remembers a part manifest in full.
    pub(super) fn learn_full(&self, digest: Digest, manifest: &Arc<PartManifest>) {
        self.shelves().full.put(digest, Arc::clone(manifest), weight(manifest));
    }

    pub(super) fn reach(&self, digest: &Digest) -> Option<Arc<Reach>> {
        self.shelves().reach.get(digest)
    }

    pub(super) fn learn_reach(&self, digest: Digest, reach: &Arc<Reach>) {
        let bytes = reach.objects.keys().map(|key| key.len() + 64).sum::<usize>() + 256;
        self.shelves().reach.put(digest, Arc::clone(reach), bytes);
    }

    pub(super) fn commit(&self, digest: &Digest) -> Option<Arc<KnownCommit>> {
        self.shelves().commits.get(digest)
    }

    /// Remembers a commit whose object has these bytes.
    pub fn learn_commit(&self, bytes: &[u8], document: Arc<CommitDocument>) {
        let known = KnownCommit { document, length: u64::try_from(bytes.len()).unwrap_or(u64::MAX) };
        // A document in memory is about as long as its text.
        self.shelves().commits.put(Digest::of(bytes), Arc::new(known), 2 * bytes.len());
    }

    /// Bytes of the fence by which a pipeline was seen to own a generation of a location.
    pub(super) fn own_fence(&self, location: &Location, generation: Generation, pipeline: PipelineId) -> Option<u64> {
        self.shelves().fences.get(&(location.to_string(), generation, pipeline)).map(|length| *length)
    }

    pub(super) fn learn_own_fence(&self, location: &Location, fence: &Fence) {
        let key = (location.to_string(), fence.generation, fence.pipeline);
        let (bytes, length) = (key.0.len() + 128, fence.encode().len());
        self.shelves().fences.put(key, Arc::new(u64::try_from(length).unwrap_or(u64::MAX)), bytes);
    }
}

/// About how much memory a manifest takes.
fn weight(manifest: &PartManifest) -> usize {
    let files = manifest.files.iter().map(|file| size_of::<FileEntry>() + file.path.as_str().len() + 16);
    let objects = manifest.objects.iter().map(|object| object.key.len() + 48);
    files.sum::<usize>() + objects.sum::<usize>() + manifest.store_meta.len() + 512
}

/// Keeps what was used last, within a number of bytes.
#[derive(Debug)]
struct Shelf<K, V> {
    items: HashMap<K, Item<V>>,
    /// Which was used when, oldest first.
    by_use: BTreeMap<u64, K>,
    uses: u64,
    bytes: usize,
    most: usize,
}

#[derive(Debug)]
struct Item<V> {
    value: Arc<V>,
    bytes: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Shelf<K, V> {
    fn new(most: usize) -> Self {
        Self { items: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, most }
    }

    fn get(&mut self, key: &K) -> Option<Arc<V>> {
        let item = self.items.get_mut(key)?;
        self.uses += 1;
        self.by_use.remove(&item.used);
        item.used = self.uses;
        self.by_use.insert(self.uses, key.clone());
        Some(Arc::clone(&item.value))
    }

    /// What is larger than the whole shelf is not kept.
    fn put(&mut self, key: K, value: Arc<V>, bytes: usize) {
        if let Some(old) = self.items.remove(&key) {
            self.by_use.remove(&old.used);
            self.bytes -= old.bytes;
        }
        if bytes > self.most {
            return;
        }
        self.uses += 1;
        self.bytes += bytes;
        self.by_use.insert(self.uses, key.clone());
        self.items.insert(key, Item { value, bytes, used: self.uses });
        while self.bytes > self.most {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            if let Some(item) = self.items.remove(&oldest) {
                self.bytes -= item.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_first_and_the_bound_holds() {
        let mut shelf = Shelf::new(100);
        shelf.put("a", Arc::new(1), 40);
        shelf.put("b", Arc::new(2), 40);
        assert_eq!(shelf.get(&"a").as_deref(), Some(&1));
        shelf.put("c", Arc::new(3), 40);
        assert_eq!((shelf.get(&"a").as_deref(), shelf.get(&"b"), shelf.bytes), (Some(&1), None, 80));
        shelf.put("a", Arc::new(4), 90);
        assert_eq!((shelf.get(&"a").as_deref(), shelf.get(&"c"), shelf.bytes), (Some(&4), None, 90));
        shelf.put("a", Arc::new(5), 101);
        assert_eq!((shelf.get(&"a"), shelf.bytes, shelf.by_use.len()), (None, 0, 0));
    }
}
