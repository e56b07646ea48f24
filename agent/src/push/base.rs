//! What the base of a push already holds: contents of its parts by size and digest. Only objects that the base reaches may be reused (push step 4).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    manifest::{ObjectEntry, PartManifest},
    problem::Problem,
};

use crate::{order::PartRef, remote::Remote};

/// Part manifests read at a time.
const PARALLEL: usize = 4;

/// Where content lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) object: Arc<ObjectEntry>,
    pub(super) offset: u64,
}

/// Contents that need not be sent again.
#[derive(Debug, Default)]
pub(super) struct Base {
    contents: HashMap<(u64, Digest), Content>,
    /// Heads of the contents of each size; None: short, or not known.
    heads: HashMap<u64, HashSet<Option<Digest>>>,
}

impl Base {
    /// Adds a part. What is there already stays: the own part comes first.
    pub(super) fn add(&mut self, part: &PartManifest) {
        self.add_if(part, |_| true);
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
        // One after the other: of many hosts' manifests only what may be used is kept.
        while let Some(part) = parts.try_next().await? {
            self.add_if(&part, |size| sizes.contains(&size));
        }
        Ok(())
    }

    fn add_if(&mut self, part: &PartManifest, wanted: impl Fn(u64) -> bool) {
        let objects: Vec<_> = part.objects.iter().map(|object| Arc::new(object.clone())).collect();
        for file in part.files.iter().filter(|file| wanted(file.size)) {
            let index = file.object.and_then(|index| usize::try_from(index).ok());
            if let Some(object) = index.and_then(|index| objects.get(index)) {
                self.heads.entry(file.size).or_default().insert(None);
                self.contents
                    .entry((file.size, file.blake3))
                    .or_insert_with(|| Content { object: Arc::clone(object), offset: file.offset });
            }
        }
    }

    /// Whether a file that begins like this may be held; without a head, whether any of the size is.
    pub(super) fn may_hold(&self, size: u64, head: Option<Digest>) -> bool {
        self.heads
            .get(&size)
            .is_some_and(|heads| head.is_none() || heads.contains(&head) || heads.contains(&None))
    }

    pub(super) fn find(&self, size: u64, digest: Digest) -> Option<Content> {
        self.contents.get(&(size, digest)).cloned()
    }

    /// Has nothing in these objects any more.
    pub(super) fn give_up(&mut self, objects: &HashSet<String>) {
        self.contents.retain(|_, content| !objects.contains(&content.object.key));
    }
}
