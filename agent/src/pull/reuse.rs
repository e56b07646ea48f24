//! Files that this host has already: found by size, proven by digest, linked or copied into staging.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, PartManifest},
    problem::Problem,
};

use super::staging::Staging;
use crate::{
    durable::io_problem,
    store::CheckpointStore,
    work::{DISK_THREADS, Stop, Work},
};

const BUFFER: usize = 256 << 10;

/// A present file with known content.
#[derive(Clone, Debug)]
struct Known {
    on_disk: PathBuf,
    look: Look,
}

/// Tells whether a file is still the one that was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Look {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Puts all files into staging that need no download, the empty ones included; returns the others.
pub(super) async fn reuse(
    store: &Arc<dyn CheckpointStore>,
    staging: &Arc<Staging>,
    part: &Arc<PartManifest>,
    work: &Work,
) -> Result<Vec<FileEntry>, Problem> {
    let known = known(store, part, work).await?;
    let immutable = store.files_are_immutable();
    let outcomes: Vec<Option<FileEntry>> = stream::iter(part.files.clone())
        .map(|file| {
            let found = known.get(&(file.size, file.blake3)).cloned();
            let (staging, work) = (Arc::clone(staging), work.clone());
            async move {
                let size = file.size;
                if size > 0 && found.is_none() {
                    return Ok(Some(file));
                }
                let missing = work
                    .disk(move |stop| match found {
                        None => empty(&staging, &file).map(|()| None),
                        Some(found) => {
                            let there = if immutable {
                                link(&staging, &file, &found)?
                            } else {
                                copy(&staging, &file, &found, stop)?
                            };
                            Ok((!there).then_some(file))
                        }
                    })
                    .await?;
                if missing.is_none() {
                    work.progress.done(size);
                    work.progress.file_done();
                }
                Ok::<_, Problem>(missing)
            }
        })
        .buffer_unordered(DISK_THREADS)
        .try_collect()
        .await?;
    Ok(outcomes.into_iter().flatten().collect())
}

/// Digests of present files that have a wanted size; hard links of one file are read once.
async fn known(
    store: &Arc<dyn CheckpointStore>,
    part: &PartManifest,
    work: &Work,
) -> Result<HashMap<(u64, Digest), Known>, Problem> {
    let wanted: HashSet<u64> = part.files.iter().map(|file| file.size).filter(|size| *size > 0).collect();
    let candidates = {
        let store = Arc::clone(store);
        work.disk(move |_| store.reusable_files()).await?
    };
    let mut seen = HashSet::new();
    let mut distinct = Vec::new();
    for candidate in candidates.into_iter().filter(|file| wanted.contains(&file.size)) {
        // What can't be looked at is not reused; a download replaces it.
        if let Ok(metadata) = candidate.on_disk.symlink_metadata()
            && metadata.is_file()
            && metadata.len() == candidate.size
            && seen.insert(Look::of(&metadata))
        {
            distinct.push(candidate.on_disk);
        }
    }
    let hashed: Vec<Option<(Digest, Known)>> = stream::iter(distinct)
        .map(|on_disk| {
            let work = work.clone();
            async move {
                work.disk(move |stop| Ok(hash(&on_disk, stop)?.map(|(digest, look)| (digest, Known { on_disk, look }))))
                    .await
            }
        })
        .buffer_unordered(DISK_THREADS)
        .try_collect()
        .await?;
    Ok(hashed.into_iter().flatten().map(|(digest, known)| ((known.look.size, digest), known)).collect())
}

fn open(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}

/// None: it can't be read, so it is not reused.
fn hash(path: &Path, stop: &Stop) -> Result<Option<(Digest, Look)>, Problem> {
    let read = || -> std::io::Result<Option<(File, Look)>> {
        let file = open(path)?;
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then(|| (file, Look::of(&metadata))))
    };
    let Ok(Some((mut file, look))) = read() else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        stop.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some((Digest::from_hash(hasher.finalize()), look))),
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

fn empty(staging: &Staging, file: &FileEntry) -> Result<(), Problem> {
    let path = staging.path(&file.path);
    staging.create_file(&file.path)?.sync_all().map_err(|error| io_problem("sync", &path, &error))
}

/// A second name for the very file that was hashed. False: it is another one by now, or can't be linked.
fn link(staging: &Staging, file: &FileEntry, found: &Known) -> Result<bool, Problem> {
    let path = staging.path(&file.path);
    if fs::hard_link(&found.on_disk, &path).is_err() {
        return Ok(false);
    }
    let same = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && Look::of(&metadata) == found.look);
    if same {
        // It was not written by us: its content may not be on disk yet.
        open(&path).and_then(|file| file.sync_all()).map_err(|error| io_problem("sync", &path, &error))?;
        return Ok(true);
    }
    fs::remove_file(&path).map_err(|error| io_problem("remove", &path, &error))?;
    Ok(false)
}

/// A copy, hashed on the way: the engine may write to the original at any time. False: it is another content by now.
fn copy(staging: &Staging, file: &FileEntry, found: &Known, stop: &Stop) -> Result<bool, Problem> {
    let Ok(mut from) = open(&found.on_disk) else { return Ok(false) };
    let path = staging.path(&file.path);
    let failed = |action: &str, error: &std::io::Error| io_problem(action, &path, error);
    let mut to = staging.create_file(&file.path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut left = file.size;
    while left > 0 {
        stop.check()?;
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(room) = buffer.get_mut(..most) else { break };
        let Ok(count @ 1..) = from.read(room) else { break };
        let read = buffer.get(..count).unwrap_or_default();
        hasher.update(read);
        to.write_all(read).map_err(|error| failed("write", &error))?;
        left -= count as u64;
    }
    if left == 0 && Digest::from_hash(hasher.finalize()) == file.blake3 {
        to.sync_all().map_err(|error| failed("sync", &error))?;
        return Ok(true);
    }
    fs::remove_file(&path).map_err(|error| failed("remove", &error))?;
    Ok(false)
}
