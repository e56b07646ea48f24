//! What the base of a push already holds: contents of its parts by size and digest. Only objects that the base reaches may be reused (push step 4).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, ObjectEntry, PartManifest},
    problem::Problem,
    reuse::{ObjectId, Reuse},
};

use super::ledger::{Content, Entry};
use crate::{order::PartRef, remote::Remote};

/// Part manifests read at a time.
const PARALLEL: usize = 4;

/// Contents that are remembered of other hosts' parts. What is not remembered is sent: memory is bounded, however many hosts there are.
const MOST_OF_OTHERS: usize = 200_000;

/// The own part, found by content: an order of its files, no copy of them.
#[derive(Debug)]
struct OwnPart {
    part: Arc<PartManifest>,
    objects: Vec<Arc<ObjectEntry>>,
    /// Places of files that are not empty, by size and digest.
    by_content: Vec<u32>,
}

impl OwnPart {
    fn new(part: Arc<PartManifest>) -> Self {
        let objects = part.objects.iter().map(|object| Arc::new(object.clone())).collect();
        // No manifest that can be read has 2^32 files.
        let places = part.files.iter().zip(0_u32..);
        let mut by_content: Vec<u32> = places.filter(|(file, _)| file.object.is_some()).map(|(_, at)| at).collect();
        by_content.sort_unstable_by_key(|&at| Self::content(&part, at));
        Self { part, objects, by_content }
    }

    fn file(part: &PartManifest, at: u32) -> Option<&FileEntry> {
        part.files.get(usize::try_from(at).ok()?)
    }

    fn content(part: &PartManifest, at: u32) -> Option<(u64, Digest)> {
        Self::file(part, at).map(|file| (file.size, file.blake3))
    }

    fn find(&self, size: u64, digest: Digest) -> Option<Entry> {
        let wanted = Some((size, digest));
        let at = self.by_content.partition_point(|&at| Self::content(&self.part, at) < wanted);
        let found = self.by_content.get(at).filter(|&&at| Self::content(&self.part, at) == wanted)?;
        let file = Self::file(&self.part, *found)?;
        Some(entry(file, Arc::clone(self.objects.get(index(file)?)?)))
    }
}

/// Contents that need not be sent again.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    own_part: Option<Arc<OwnPart>>,
    /// Objects of the own part that are not worth being kept.
    given_up: HashSet<String>,
    /// Of other hosts' parts.
    contents: HashMap<(u64, Digest), Entry>,
    /// Heads of the contents of each size; None: short, or not known.
    heads: HashMap<u64, HashSet<Option<Digest>>>,
    /// Objects of the own part.
    own: HashMap<String, ObjectId>,
    /// With their uses by other hosts.
    reuse: Reuse,
}

impl Base {
    /// Adds the own part, before any other.
    pub(super) fn add_own(&mut self, part: &Arc<PartManifest>) {
        for object in &part.objects {
            let id = self.reuse.object(&object.key, object.size);
            self.own.insert(object.key.clone(), id);
        }
        for file in part.files.iter().filter(|file| file.object.is_some()) {
            self.heads.entry(file.size).or_default().insert(file.head);
        }
        self.own_part = Some(Arc::new(OwnPart::new(Arc::clone(part))));
    }

    /// Adds what other hosts' parts, each compared with the length and digest that the commit names, hold of these sizes.
    pub(super) async fn add_others(
        &mut self,
        remote: &Remote,
        parts: &[PartRef],
        sizes: &HashSet<u64>,
    ) -> Result<(), Problem> {
        let mut parts = stream::iter(parts.to_vec())
            .map(|part| {
                let remote = remote.clone();
                async move { remote.part(&part).await }
            })
            .buffered(PARALLEL);
        let most = self.contents.len() + MOST_OF_OTHERS;
        // One after the other: of many hosts' manifests only what may be used is kept.
        while let Some(part) = parts.try_next().await? {
            let own: Vec<_> = part.objects.iter().map(|object| self.own.get(&object.key).copied()).collect();
            for file in &part.files {
                if let Some(Some(Some(id))) = index(file).map(|index| own.get(index)) {
                    self.reuse.others_use(*id, file.offset, file.length);
                }
            }
            if self.contents.len() < most {
                self.add(&part, |size| sizes.contains(&size));
            }
        }
        Ok(())
    }

    /// What is there already stays.
    fn add(&mut self, part: &PartManifest, wanted: impl Fn(u64) -> bool) {
        let objects: Vec<_> = part.objects.iter().map(|object| Arc::new(object.clone())).collect();
        for file in part.files.iter().filter(|file| wanted(file.size)) {
            if let Some(object) = index(file).and_then(|index| objects.get(index)) {
                self.heads.entry(file.size).or_default().insert(file.head);
                self.contents.entry((file.size, file.blake3)).or_insert_with(|| entry(file, Arc::clone(object)));
            }
        }
    }

    /// Whether a file that begins like this may be held; without a head, whether any of the size is.
    pub(super) fn may_hold(&self, size: u64, head: Option<Digest>) -> bool {
        self.heads.get(&size).is_some_and(|heads| head.is_none() || heads.contains(&head) || heads.contains(&None))
    }

    pub(super) fn find(&self, size: u64, digest: Digest) -> Option<Entry> {
        let own = self.own_part.as_ref().and_then(|own| own.find(size, digest));
        own.filter(|entry| !entry.lies_in(&self.given_up)).or_else(|| self.contents.get(&(size, digest)).cloned())
    }

    /// Objects of the own part that are not worth being kept for these files alone, see [`lockstep_protocol::reuse`].
    pub(super) fn mostly_dead<'e>(&self, used: impl Iterator<Item = (u64, &'e Content)>) -> HashSet<String> {
        let mut reuse = self.reuse.clone();
        for (size, content) in used {
            if let Some(id) = self.own.get(&content.object.key) {
                reuse.wants(*id, content.offset, size);
            }
        }
        let given_up: HashSet<_> = reuse.decide().given_up().iter().map(|given_up| given_up.object).collect();
        let of_key = |(key, id): (&String, &ObjectId)| given_up.contains(id).then(|| key.clone());
        self.own.iter().filter_map(of_key).collect()
    }

    /// Has nothing in these objects any more.
    pub(super) fn give_up(&mut self, objects: &HashSet<String>) {
        self.contents.retain(|_, entry| !entry.lies_in(objects));
        self.given_up.extend(objects.iter().cloned());
    }
}

fn index(file: &FileEntry) -> Option<usize> {
    file.object.and_then(|index| usize::try_from(index).ok())
}

fn entry(file: &FileEntry, object: Arc<ObjectEntry>) -> Entry {
    Entry { blake3: file.blake3, head: file.head, content: Some(Content { object, offset: file.offset }) }
}
