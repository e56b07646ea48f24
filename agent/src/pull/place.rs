//! Where the files of one pull go: made, given their space, verified and remembered.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, PartManifest},
    problem::{Problem, Reason},
};
use nix::{errno::Errno, fcntl::FallocateFlags};

use super::{
    segment::{Slice, is_cut},
    staging::Staging,
    sync::Unsynced,
};
use crate::{
    digests::Digests,
    durable::io_problem,
    progress::Progress,
    space::Claim,
    store::Look,
    tree::{Piece, PieceHasher, TreeDigest},
    work::{Stop, Work},
};

/// Space that is asked for in one call, which nothing interrupts: where it takes long, as on tmpfs, a cancelled pull waits for no more than this.
const RESERVED_AT_ONCE: u64 = 256 << 20;

/// One pull's files on their way into staging.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) part: Arc<PartManifest>,
    pub(super) staging: Staging,
    pub(super) unsynced: Arc<Unsynced>,
    pub(super) claim: Claim,
    digests: Arc<Digests>,
    progress: Arc<Progress>,
    stop: Arc<Stop>,
    /// Files that may come in several segments at once, by their number in the part.
    large: Mutex<HashMap<usize, Arc<Large>>>,
    /// Files that came with a wrong digest once.
    again: Mutex<HashSet<usize>>,
}

/// A file that came whole, with another digest than the manifest says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wrong {
    pub(super) file: usize,
    pub(super) found: Digest,
}

#[derive(Debug)]
struct Large {
    open: Mutex<Option<Opened>>,
    state: Mutex<Filled>,
}

#[derive(Clone, Debug)]
struct Opened {
    file: Arc<File>,
    /// Its space is taken already.
    reserved: bool,
}

#[derive(Debug)]
struct Filled {
    digest: TreeDigest,
    left: u64,
}

/// A slice of a file on its way to the disk.
#[derive(Debug)]
pub(super) struct Filling {
    file: Target,
    /// It was written before, so that nothing may be taken for zeros.
    again: bool,
}

#[derive(Debug)]
enum Target {
    Small { file: File, hasher: Box<blake3::Hasher> },
    Large { place: Arc<Large>, open: Opened, hasher: Box<PieceHasher> },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    pub(super) fn new(
        part: Arc<PartManifest>,
        staging: Staging,
        claim: Claim,
        digests: Arc<Digests>,
        work: &Work,
    ) -> Result<Self, Problem> {
        let unsynced = Arc::new(Unsynced::on(staging.folder())?);
        Ok(Self {
            part,
            staging,
            unsynced,
            claim,
            digests,
            progress: Arc::clone(&work.progress),
            stop: Arc::clone(&work.stop),
            large: Mutex::default(),
            again: Mutex::default(),
        })
    }

    /// By its number in the part. An unknown number is a mistake in this crate.
    pub(super) fn entry(&self, file: usize) -> Result<&FileEntry, Problem> {
        self.part.files.get(file).ok_or_else(|| {
            Problem::new(Reason::AgentPanic, format!("file {file} of a part of {} files", self.part.files.len()))
        })
    }

    fn large(&self, file: usize, size: u64) -> Arc<Large> {
        let new = || {
            Arc::new(Large {
                open: Mutex::new(None),
                state: Mutex::new(Filled { digest: TreeDigest::new(size), left: size }),
            })
        };
        Arc::clone(lock(&self.large).entry(file).or_insert_with(new))
    }

    fn is_again(&self, file: usize) -> bool {
        lock(&self.again).contains(&file)
    }

    /// Whether [`Places::prepare`] has something to do that may take a while, or somebody is at it.
    pub(super) fn needs_preparation(&self, slices: &[Slice]) -> bool {
        slices.iter().any(|slice| {
            self.part.files.get(slice.file).is_some_and(|entry| {
                let is_open = |place: &Large| place.open.try_lock().is_ok_and(|open| open.is_some());
                is_cut(entry) && !is_open(&self.large(slice.file, entry.size))
            })
        })
    }

    /// Makes the large ones of these files and gives them their space. Blocks.
    pub(super) fn prepare(&self, slices: &[Slice]) -> Result<(), Problem> {
        for slice in slices {
            let entry = self.entry(slice.file)?;
            if is_cut(entry) {
                self.open(&self.large(slice.file, entry.size), slice.file, entry)?;
            }
        }
        Ok(())
    }

    fn open(&self, place: &Large, number: usize, entry: &FileEntry) -> Result<Opened, Problem> {
        let mut open = lock(&place.open);
        if let Some(opened) = &*open {
            return Ok(opened.clone());
        }
        let opened = if self.is_again(number) {
            Opened { file: Arc::new(self.staging.open_file(&entry.path)?), reserved: true }
        } else {
            let file = self.staging.create_file(&entry.path)?;
            let reserved = self.reserve(&file, entry)?;
            if reserved {
                self.claim.took_file(entry.size);
            }
            Opened { file: Arc::new(file), reserved }
        };
        *open = Some(opened.clone());
        Ok(opened)
    }

    /// Gives a new file its length and, where the file system can, its space, so that it lies in one piece and the disk can't fill up under it. False: the length only.
    fn reserve(&self, file: &File, entry: &FileEntry) -> Result<bool, Problem> {
        let failed = |error: io::Error| io_problem("reserve the space of", &self.staging.path(&entry.path), &error);
        let mut at = 0;
        while at < entry.size {
            self.stop.check()?;
            let length = RESERVED_AT_ONCE.min(entry.size - at);
            // No file of a manifest is larger than a signed number says.
            let range = (at.cast_signed(), length.cast_signed());
            match nix::fcntl::fallocate(file, FallocateFlags::empty(), range.0, range.1) {
                Ok(()) => at += length,
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    return file.set_len(entry.size).map(|()| false).map_err(failed);
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(true)
    }

    /// Begins to fill a slice; a small file is made here. Blocks.
    pub(super) fn begin(&self, slice: Slice) -> Result<Filling, Problem> {
        let entry = self.entry(slice.file)?;
        let again = self.is_again(slice.file);
        let file = if is_cut(entry) {
            let place = self.large(slice.file, entry.size);
            let open = self.open(&place, slice.file, entry)?;
            Target::Large { place, open, hasher: Box::new(PieceHasher::new(entry.size, slice.start)) }
        } else {
            let file = if again {
                self.staging.open_file(&entry.path)?
            } else {
                self.claim.took_file(entry.size);
                self.staging.create_file(&entry.path)?
            };
            Target::Small { file, hasher: Box::default() }
        };
        Ok(Filling { file, again })
    }

    /// Hashes and writes what comes next of a slice. Blocks.
    pub(super) fn fill(&self, filling: &mut Filling, slice: Slice, done: u64, bytes: &[u8]) -> Result<(), Problem> {
        let written = match &mut filling.file {
            Target::Small { file, hasher } => {
                hasher.update(bytes);
                file.write_all_at(bytes, slice.start + done)
            }
            Target::Large { open, hasher, .. } => {
                hasher.update(bytes);
                if !filling.again && is_zero(bytes) {
                    // The file has its whole length and reads as zeros where nothing was written.
                    Ok(())
                } else {
                    if !open.reserved {
                        self.claim.took(bytes.len() as u64);
                    }
                    open.file.write_all_at(bytes, slice.start + done)
                }
            }
        };
        if let Err(error) = written {
            let path = self.staging.path(&self.entry(slice.file)?.path);
            return Err(io_problem("write", &path, &error));
        }
        if !filling.again {
            self.progress.done(bytes.len() as u64);
        }
        Ok(())
    }

    /// A slice is complete. Some: so is its file, and it is not what the manifest says. Blocks.
    pub(super) fn end(&self, filling: Filling, slice: Slice) -> Result<Option<Wrong>, Problem> {
        match filling.file {
            Target::Small { file, hasher } => {
                self.complete(slice.file, Digest::from_hash(hasher.finalize()), Arc::new(file))
            }
            Target::Large { place, open, hasher } => match place.add(hasher.finish(), slice.length) {
                None => Ok(None),
                Some(digest) => {
                    lock(&self.large).remove(&slice.file);
                    let found = digest.finish().ok_or_else(|| {
                        Problem::new(Reason::AgentPanic, format!("file {} came in pieces that don't fit", slice.file))
                    })?;
                    self.complete(slice.file, found, open.file)
                }
            },
        }
    }

    fn complete(&self, number: usize, found: Digest, file: Arc<File>) -> Result<Option<Wrong>, Problem> {
        let entry = self.entry(number)?;
        if found != entry.blake3 {
            return Ok(Some(Wrong { file: number, found }));
        }
        self.arrived(entry, file)?;
        Ok(None)
    }

    /// A file has its right content: it is remembered for the next push, and to be synced. Blocks.
    pub(super) fn arrived(&self, entry: &FileEntry, file: Arc<File>) -> Result<(), Problem> {
        let path = self.staging.path(&entry.path);
        let metadata = file.metadata().map_err(|error| io_problem("stat", &path, &error))?;
        if entry.size > 0 {
            self.digests.learn(&Look::of(&metadata), entry.blake3);
        }
        self.unsynced.add(&path, || Ok(file))?;
        self.progress.file_done();
        reached(Point::PullFilePlaced);
        Ok(())
    }

    /// Bytes of a file came from this disk.
    pub(super) fn reused(&self, entry: &FileEntry) {
        self.progress.done(entry.size);
    }

    /// A file got its name. It was not written by us: its content may not be on the disk yet. Blocks.
    pub(super) fn linked(&self, entry: &FileEntry, path: &Path) -> Result<(), Problem> {
        self.unsynced.add(path, || reopen(path))?;
        self.reused(entry);
        self.progress.file_done();
        Ok(())
    }

    /// Lets a file with a wrong digest be fetched once more: servers and proxies do flip bits. `INTEGRITY` if it is not the first time.
    pub(super) fn try_again(&self, wrong: Wrong) -> Result<(), Problem> {
        let entry = self.entry(wrong.file)?;
        let key = self.part.object_of(entry).map_or("", |object| object.key.as_str());
        let problem = Problem::new(
            Reason::Integrity,
            format!("{} has digest {} in object {key}, its manifest says {}", entry.path, wrong.found, entry.blake3),
        );
        if lock(&self.again).insert(wrong.file) {
            tracing::warn!(file = %entry.path, key, found = %wrong.found, "a file came with a wrong digest and is fetched once more");
            return Ok(());
        }
        Err(problem
            .with("file", &entry.path)
            .with("key", key)
            .with("expected", entry.blake3)
            .with("found", wrong.found))
    }
}

impl Large {
    /// Some: nothing is left to come.
    fn add(&self, piece: Piece, length: u64) -> Option<TreeDigest> {
        let mut state = lock(&self.state);
        state.digest.add(piece);
        state.left = state.left.saturating_sub(length);
        (state.left == 0).then(|| std::mem::replace(&mut state.digest, TreeDigest::new(0)))
    }
}

/// Ends at the first other byte, so that it costs nothing where there are no zeros.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

/// To be synced.
fn reopen(path: &Path) -> io::Result<Arc<File>> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path).map(Arc::new)
}
