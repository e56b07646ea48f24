//! Files that this host has already: found by what they look like or by digest, linked or copied into staging.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, PartManifest},
    problem::{Problem, Reason},
};

use super::place::Places;
use crate::{
    digests::Digests,
    durable::io_problem,
    store::{CheckpointStore, Look},
    work::{DISK_THREADS, Stop, Work},
};

const BUFFER: usize = 256 << 10;

/// Links that one call to a disk thread makes.
const AT_ONCE: usize = 256;

/// A present file with known content.
#[derive(Clone, Debug)]
struct Present {
    on_disk: PathBuf,
    look: Look,
}

/// Present files by size and digest.
#[derive(Debug)]
pub(super) struct Known {
    files: HashMap<(u64, Digest), Present>,
    /// The engine never writes to them again, so they can be linked.
    immutable: bool,
}

impl Known {
    /// Whether a file comes from this disk and takes room on it.
    pub(super) fn is_copied(&self, file: &FileEntry) -> bool {
        !self.immutable && self.has(file)
    }

    fn has(&self, file: &FileEntry) -> bool {
        self.files.contains_key(&(file.size, file.blake3))
    }

    pub(super) fn is_downloaded(&self, file: &FileEntry) -> bool {
        file.size > 0 && !self.has(file)
    }
}

/// Finds present files with a wanted content. Those that were hashed before and look the same since are not read, and others only if they have the size of a file
/// that is still wanted then; hard links of one file are one.
pub(super) async fn find(
    store: &Arc<dyn CheckpointStore>,
    digests: &Arc<Digests>,
    part: &Arc<PartManifest>,
    work: &Work,
) -> Result<Known, Problem> {
    let candidates = {
        let (store, part) = (Arc::clone(store), Arc::clone(part));
        work.disk(move |stop| candidates(store.as_ref(), &part, stop)).await?
    };
    let mut files = HashMap::new();
    let mut unread = Vec::new();
    for present in candidates {
        match digests.get(&present.look) {
            Some(digest) => {
                files.insert((present.look.size, digest), present);
            }
            None => unread.push(present),
        }
    }
    let wanted: HashSet<u64> = part
        .files
        .iter()
        .filter(|file| file.size > 0 && !files.contains_key(&(file.size, file.blake3)))
        .map(|file| file.size)
        .collect();
    let hashed: Vec<Option<(Digest, Present)>> =
        stream::iter(unread.into_iter().filter(|present| wanted.contains(&present.look.size)))
            .map(|present| {
                let digests = Arc::clone(digests);
                work.disk(move |stop| {
                    let digest = hash(&present, stop)?;
                    if let Some(digest) = digest {
                        digests.learn(&present.look, digest);
                    }
                    Ok(digest.map(|digest| (digest, present)))
                })
            })
            .buffer_unordered(DISK_THREADS)
            .try_collect()
            .await?;
    files.extend(hashed.into_iter().flatten().map(|(digest, present)| ((present.look.size, digest), present)));
    Ok(Known { files, immutable: store.files_are_immutable() })
}

/// Distinct present files that have a wanted size. What can't be looked at is not reused; a download replaces it.
fn candidates(store: &dyn CheckpointStore, part: &PartManifest, stop: &Stop) -> Result<Vec<Present>, Problem> {
    let wanted: HashSet<u64> = part.files.iter().map(|file| file.size).filter(|size| *size > 0).collect();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for file in store.reusable_files()? {
        stop.check()?;
        if !wanted.contains(&file.size) {
            continue;
        }
        let look = file.look.or_else(|| look(&file.on_disk));
        if let Some(look) = look.filter(|look| look.size == file.size && seen.insert(*look)) {
            found.push(Present { on_disk: file.on_disk, look });
        }
    }
    Ok(found)
}

/// None: it is no regular file, or can't be looked at.
fn look(path: &Path) -> Option<Look> {
    path.symlink_metadata().ok().filter(fs::Metadata::is_file).map(|metadata| Look::of(&metadata))
}

fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)
}

/// None: it can't be read, or is another one by now, so it is not reused.
fn hash(present: &Present, stop: &Stop) -> Result<Option<Digest>, Problem> {
    let is_same =
        |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file() && Look::of(&metadata) == present.look);
    let Some(mut file) = open(&present.on_disk).ok().filter(is_same) else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        stop.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(is_same(&file).then(|| Digest::from_hash(hasher.finalize()))),
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

/// Puts all files into staging that need no download, the empty ones included; returns the numbers of the others, in the order of the part.
pub(super) async fn place(places: &Arc<Places>, known: Known, work: &Work) -> Result<Vec<usize>, Problem> {
    let known = Arc::new(known);
    let numbers: Vec<usize> = (0..places.part.files.len()).collect();
    let mut missing: Vec<usize> = stream::iter(numbers.chunks(AT_ONCE).map(<[usize]>::to_vec))
        .map(|some| {
            let (places, known) = (Arc::clone(places), Arc::clone(&known));
            work.disk(move |stop| {
                let mut missing = Vec::new();
                for number in some {
                    stop.check()?;
                    if !place_one(&places, &known, number, stop)? {
                        missing.push(number);
                    }
                }
                Ok(missing)
            })
        })
        .buffer_unordered(DISK_THREADS)
        .try_collect::<Vec<_>>()
        .await?
        .into_iter()
        .flatten()
        .collect();
    missing.sort_unstable();
    Ok(missing)
}

/// False: it is not here, or not any more.
fn place_one(places: &Places, known: &Known, number: usize, stop: &Stop) -> Result<bool, Problem> {
    let file = places.entry(number)?;
    if file.size == 0 {
        places.arrived(file, Arc::new(places.staging.create_file(&file.path)?))?;
        return Ok(true);
    }
    let Some(present) = known.files.get(&(file.size, file.blake3)) else { return Ok(false) };
    if known.immutable {
        if link(places, file, present)? {
            return Ok(true);
        }
        // It was not expected to take room.
        places.claim.add(file.size);
        return Ok(false);
    }
    copy(places, file, &present.on_disk, stop)
}

/// Puts files into staging whose content is there already under another name. `pairs` are numbers of files: of the one that is missing, and of the one that is there.
pub(super) async fn place_twins(
    places: &Arc<Places>,
    pairs: Vec<(usize, usize)>,
    immutable: bool,
    work: &Work,
) -> Result<(), Problem> {
    stream::iter(pairs.chunks(AT_ONCE).map(<[(usize, usize)]>::to_vec))
        .map(|some| {
            let places = Arc::clone(places);
            work.disk(move |stop| {
                some.into_iter().try_for_each(|(missing, there)| {
                    stop.check()?;
                    place_twin(&places, missing, there, immutable, stop)
                })
            })
        })
        .buffer_unordered(DISK_THREADS)
        .try_collect()
        .await
}

fn place_twin(places: &Places, missing: usize, there: usize, immutable: bool, stop: &Stop) -> Result<(), Problem> {
    let file = places.entry(missing)?;
    let on_disk = places.staging.path(&places.entry(there)?.path);
    let linked = match look(&on_disk) {
        // A file has only so many names: 65,000 on ext4.
        Some(look) if immutable => link(places, file, &Present { on_disk: on_disk.clone(), look })?,
        _ => false,
    };
    if linked || copy(places, file, &on_disk, stop)? {
        return Ok(());
    }
    Err(Problem::new(
        Reason::LocalIo,
        format!("{} was changed in staging by somebody else while it was copied", on_disk.display()),
    )
    .with("path", on_disk.display()))
}

/// A second name for the very file whose content is known. False: it is another one by now, or can't be linked.
fn link(places: &Places, file: &FileEntry, present: &Present) -> Result<bool, Problem> {
    let path = places.staging.path(&file.path);
    if fs::hard_link(&present.on_disk, &path).is_err() {
        return Ok(false);
    }
    if look(&path) == Some(present.look) {
        places.linked(file, &path)?;
        return Ok(true);
    }
    fs::remove_file(&path).map_err(|error| io_problem("remove", &path, &error))?;
    Ok(false)
}

/// A copy, hashed on the way: the engine may write to the original at any time. False: it is another content by now.
fn copy(places: &Places, file: &FileEntry, on_disk: &Path, stop: &Stop) -> Result<bool, Problem> {
    let Ok(mut from) = open(on_disk) else { return Ok(false) };
    let path = places.staging.path(&file.path);
    let failed = |action: &str, error: &io::Error| io_problem(action, &path, error);
    let mut to = places.staging.create_file(&file.path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut left = file.size;
    while left > 0 {
        stop.check()?;
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(room) = buffer.get_mut(..most) else { break };
        let count = match from.read(room) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
        };
        let read = buffer.get(..count).unwrap_or_default();
        hasher.update(read);
        to.write_all(read).map_err(|error| failed("write", &error))?;
        left -= count as u64;
    }
    if left == 0 && Digest::from_hash(hasher.finalize()) == file.blake3 {
        places.claim.took_file(file.size);
        places.reused(file);
        places.arrived(file, Arc::new(to))?;
        return Ok(true);
    }
    fs::remove_file(&path).map_err(|error| failed("remove", &error))?;
    Ok(false)
}
