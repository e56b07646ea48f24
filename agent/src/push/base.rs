//! What the base of a push already holds: its parts' contents by size and digest. Only objects that the base reaches may be reused (push step 4).

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{digest::Digest, manifest::ObjectEntry, problem::Problem};

use crate::{order::PartRef, remote::Remote};

/// Part manifests read at a time.
const PARALLEL: usize = 4;

/// Where content lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) object: ObjectEntry,
    pub(super) offset: u64,
}

/// Contents of all parts of the base.
#[derive(Debug, Default)]
pub(super) struct Base {
    contents: HashMap<(u64, Digest), Content>,
    sizes: HashSet<u64>,
}

impl Base {
    /// Reads the parts, each compared with the length and digest that the commit names.
    pub(super) async fn load(remote: &Remote, parts: &[PartRef]) -> Result<Self, Problem> {
        let manifests: Vec<_> = stream::iter(parts.to_vec())
            .map(|part| {
                let remote = remote.clone();
                async move { remote.part(&part).await }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut base = Self::default();
        for manifest in manifests {
            for file in &manifest.files {
                if let Some(object) = manifest.object_of(file) {
                    base.sizes.insert(file.size);
                    base.contents
                        .entry((file.size, file.blake3))
                        .or_insert_with(|| Content { object: object.clone(), offset: file.offset });
                }
            }
        }
        Ok(base)
    }

    /// Whether it is worth to know a file's digest before it is sent.
    pub(super) fn may_hold(&self, size: u64) -> bool {
        self.sizes.contains(&size)
    }

    pub(super) fn find(&self, size: u64, digest: Digest) -> Option<Content> {
        self.contents.get(&(size, digest)).cloned()
    }
}
