//! What a push round has in the location so far: files of this round that stand there, and uploads under way. A later attempt of the same process goes on from
//! it, and whoever gives the round up knows what to abort.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lockstep_bucket::PartTag;
use lockstep_protocol::{
    digest::Digest,
    key::AttemptPath,
    manifest::{ObjectEntry, RelativePath},
};

use crate::{
    store::{HeldFile, Look},
    tree::TreeDigest,
};

/// Where content lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) object: Arc<ObjectEntry>,
    pub(super) offset: u64,
}

/// A file's content and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) blake3: Digest,
    /// Of the first MiB, if there is more.
    pub(super) head: Option<Digest>,
    /// None: empty.
    pub(super) content: Option<Content>,
}

impl Entry {
    pub(super) fn lies_in(&self, objects: &HashSet<String>) -> bool {
        self.content.as_ref().is_some_and(|content| objects.contains(&content.object.key))
    }
}

/// A multipart upload under way.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) id: String,
    /// Bytes of each piece but the last.
    pub(super) piece: u64,
    /// Pieces that the store has.
    pub(super) tags: BTreeMap<u16, PartTag>,
    /// Of just these.
    pub(super) digest: TreeDigest,
    pub(super) head: Option<Digest>,
    /// Begun by an earlier attempt: the store may have lost it since.
    pub(super) inherited: bool,
}

#[derive(Debug, Default)]
struct Books {
    /// Those of the attempt that runs or ran last.
    files: Vec<HeldFile>,
    /// What stands of them, by their place.
    sent: BTreeMap<usize, Entry>,
    uploads: HashMap<RelativePath, (Option<Look>, Upload)>,
    /// What keys of uploads that were asked for begin with: some may have been begun without our knowledge.
    asked: Option<String>,
    /// Given up: nothing may be begun any more.
    closed: bool,
}

/// Shared by all who work for one round; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger(Arc<Mutex<Books>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files that stand in the location now, all at once: of a pack all or none.
    pub(super) fn sent(&self, files: impl IntoIterator<Item = (usize, Entry)>) {
        let books = &mut *self.lock();
        for (index, entry) in files {
            if let Some(file) = books.files.get(index) {
                books.uploads.remove(&file.path);
                books.sent.insert(index, entry);
            }
        }
    }

    /// By its place among the held files.
    pub(super) fn find(&self, index: usize) -> Option<Entry> {
        self.lock().sent.get(&index).cloned()
    }

    /// Bytes of all files that were sent.
    pub(super) fn bytes(&self) -> u64 {
        let books = self.lock();
        books.sent.keys().filter_map(|&index| books.files.get(index)).map(|file| file.size).sum()
    }

    /// An upload is about to be asked for by an attempt.
    pub(super) fn asks(&self, path: &AttemptPath) {
        self.lock().asked = Some(path.all_of_process());
    }

    /// Enters an upload that has begun. False: too late, it is to be aborted.
    pub(super) fn opened(&self, file: &HeldFile, upload: Upload) -> bool {
        let mut books = self.lock();
        if !books.closed {
            books.uploads.insert(file.path.clone(), (file.look, upload));
        }
        !books.closed
    }

    /// Looks at or changes the upload of a file.
    pub(super) fn upload<T>(&self, file: &HeldFile, with: impl FnOnce(&mut Upload) -> T) -> Option<T> {
        self.lock().uploads.get_mut(&file.path).map(|(_, upload)| with(upload))
    }

    /// Gives an upload up; it is still to be aborted.
    pub(super) fn forget_upload(&self, file: &HeldFile) {
        self.lock().uploads.remove(&file.path);
    }

    /// At the beginning of an attempt: keeps what is still true of these files. What looks different, or can't be told, is forgotten; the uploads among it come
    /// back, to be aborted.
    pub(super) fn resume(&self, files: &[HeldFile]) -> Vec<(String, String)> {
        let books = &mut *self.lock();
        let (before, sent) = (std::mem::take(&mut books.files), std::mem::take(&mut books.sent));
        books.files = files.to_vec();
        if sent.is_empty() && books.uploads.is_empty() {
            return Vec::new();
        }
        let places: HashMap<_, _> =
            files.iter().zip(0..).filter_map(|(f, at)| Some((&f.path, (at, f.look?)))).collect();
        let place = |path: &RelativePath, look: Option<Look>| {
            places.get(path).filter(|(_, now)| look.as_ref() == Some(now)).map(|(at, _)| *at)
        };
        for (index, entry) in sent {
            if let Some(at) = before.get(index).and_then(|file| place(&file.path, file.look)) {
                books.sent.insert(at, entry);
            }
        }
        let (kept, lost) = std::mem::take(&mut books.uploads)
            .into_iter()
            .partition::<HashMap<_, _>, _>(|(path, (look, _))| place(path, *look).is_some());
        books.uploads = kept;
        for (_, upload) in books.uploads.values_mut() {
            upload.inherited = true;
        }
        lost.into_values().map(|(_, upload)| (upload.key, upload.id)).collect()
    }

    /// Every upload under way, by key and id.
    pub(super) fn uploads(&self) -> Vec<(String, String)> {
        self.lock().uploads.values().map(|(_, upload)| (upload.key.clone(), upload.id.clone())).collect()
    }

    /// Gives all up: the uploads under way, and what keys of others begin with that we may never have heard of.
    pub(super) fn close(&self) -> (Vec<(String, String)>, Option<String>) {
        let mut books = self.lock();
        books.closed = true;
        let uploads = std::mem::take(&mut books.uploads);
        (uploads.into_values().map(|(_, upload)| (upload.key, upload.id)).collect(), books.asked.clone())
    }
}
