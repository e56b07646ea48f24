//! Verifying what a commit reaches: part manifests, those that they inherit, and every byte of their files.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart},
    digest::Digest,
    manifest::{FileEntry, ObjectEntry, PartManifest},
    problem::{Problem, Reason},
    verification::Position,
};

use crate::{
    error::{StoreError, StoreErrorKind},
    parts,
    store::{Lookup, ObjectStore},
};

/// Objects that are read at once; each holds one chunk in memory.
const PARALLEL: usize = 4;

/// Objects that are looked for at once.
const LOOKS: usize = 16;

/// Files of one object that lie this close together are read in one request.
const GAP: u64 = 256 << 10;

/// Reads a part manifest, and the one that it inherits, checks length, digest, every rule of its own, and that it is the part which the commit names.
/// An object that is proven missing is `CHECKPOINT_DAMAGED`; whoever reads a location that another one may sweep looks for the tombstone then (G5).
pub async fn fetch_part(store: &dyn ObjectStore, part: &CommitPart) -> Result<PartManifest, Problem> {
    let of_the_host = |problem: Problem| problem.with("host_idx", part.host_idx);
    let manifest =
        parts::read(store, &part.manifest, part.manifest_length, part.manifest_blake3).await.map_err(of_the_host)?;
    parts::compare(store.location(), part, &manifest)?;
    Ok(manifest)
}

/// Re-reads everything that a commit reaches and compares every digest. Returns what is broken, a problem for each file or manifest; an error
/// means that it could not be found out. `progress` is told the bytes of files that were read since it was last called. Memory stays
/// bounded, whatever the size of the files.
pub async fn verify_checkpoint(
    store: &dyn ObjectStore,
    commit: &CommitDocument,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Problem>, Problem> {
    let mut broken = Vec::new();
    for part in &commit.parts {
        match fetch_part(store, part).await {
            Ok(manifest) => broken.extend(verify_part(store, &manifest, progress).await?),
            Err(problem) if is_damage(&problem) => broken.push(problem),
            Err(problem) => return Err(problem),
        }
    }
    Ok(broken)
}

/// Looks only whether the documents of a commit are whole and every object they name is there and long enough: a request for each object, no byte of a file.
pub async fn verify_structure(store: &dyn ObjectStore, commit: &CommitDocument) -> Result<Vec<Problem>, Problem> {
    let mut broken = Vec::new();
    for part in &commit.parts {
        let manifest = match fetch_part(store, part).await {
            Ok(manifest) => manifest,
            Err(problem) if is_damage(&problem) => {
                broken.push(problem);
                continue;
            }
            Err(problem) => return Err(problem),
        };
        let looks: Vec<_> = objects(&manifest).into_iter().map(|run| look(store, part.host_idx, run)).collect();
        let found: Vec<Vec<Problem>> = futures::stream::iter(looks).buffered(LOOKS).try_collect().await?;
        broken.extend(found.into_iter().flatten());
    }
    Ok(broken)
}

/// What a step of a reading that stops and goes on has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// Where to go on; none: all was read.
    pub next: Option<Position>,
    /// Of files, that were read.
    pub bytes: u64,
    /// What is broken in what was read.
    pub broken: Vec<Problem>,
}

/// As [`verify_checkpoint`], from a position on, one request after the other, until so many bytes were read or more: files that lie together are read together.
pub async fn verify_some(
    store: &dyn ObjectStore,
    commit: &CommitDocument,
    from: Position,
    at_most: u64,
) -> Result<Read, Problem> {
    let mut read = Read { next: None, bytes: 0, broken: Vec::new() };
    let skipped = usize::try_from(from.part).unwrap_or(usize::MAX);
    for (number, part) in (0_u32..).zip(&commit.parts).skip(skipped) {
        let manifest = match fetch_part(store, part).await {
            Ok(manifest) => manifest,
            Err(problem) if is_damage(&problem) => {
                read.broken.push(problem);
                continue;
            }
            Err(problem) => return Err(problem),
        };
        let first = if number == from.part { from.run } else { 0 };
        if first == 0 {
            read.broken.extend(empty_files(&manifest));
        }
        for (run, files) in (0_u32..).zip(runs(&manifest)).skip(usize::try_from(first).unwrap_or(usize::MAX)) {
            if read.bytes >= at_most {
                read.next = Some(Position { part: number, run });
                return Ok(read);
            }
            let bytes = files.end() - files.start();
            read.broken.extend(verify_run(store, part.host_idx, files, &|_| ()).await?);
            read.bytes = read.bytes.saturating_add(bytes);
        }
    }
    Ok(read)
}

/// Whether a problem says that the checkpoint is broken, and not that nobody knows.
fn is_damage(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::CheckpointDamaged | Reason::ManifestInvalid)
}

/// Files of one object that one request reads: sorted by offset, none overlapping.
struct Run<'m> {
    object: &'m ObjectEntry,
    files: Vec<&'m FileEntry>,
}

impl Run<'_> {
    fn start(&self) -> u64 {
        self.files.first().map_or(0, |file| file.offset)
    }

    fn end(&self) -> u64 {
        self.files.last().map_or(0, |file| file.offset + file.length)
    }
}

/// As [`verify_checkpoint`], for one part.
pub async fn verify_part(
    store: &dyn ObjectStore,
    manifest: &PartManifest,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Problem>, Problem> {
    let host_idx = manifest.slot.idx();
    let mut broken = empty_files(manifest);
    // Collected first: a closure that lived across the await would keep callers from seeing that this future is Send.
    let reads: Vec<_> = runs(manifest).into_iter().map(|run| verify_run(store, host_idx, run, progress)).collect();
    let found: Vec<Vec<Problem>> = futures::stream::iter(reads).buffer_unordered(PARALLEL).try_collect().await?;
    broken.extend(found.into_iter().flatten());
    Ok(broken)
}

/// No bytes to read: the digest must be that of nothing.
fn empty_files(manifest: &PartManifest) -> Vec<Problem> {
    let nothing = Digest::of(&[]);
    let empty = manifest.files.iter().filter(|file| file.object.is_none() && file.blake3 != nothing);
    empty.map(|file| differs(manifest.slot.idx(), file, "", &nothing)).collect()
}

/// Each object once, with all files in it.
fn objects(manifest: &PartManifest) -> Vec<Run<'_>> {
    let mut objects: BTreeMap<&str, Run<'_>> = BTreeMap::new();
    for file in &manifest.files {
        if let Some(object) = manifest.object_of(file) {
            let run = objects.entry(&object.key).or_insert_with(|| Run { object, files: Vec::new() });
            run.files.push(file);
        }
    }
    objects.into_values().collect()
}

async fn look(store: &dyn ObjectStore, host_idx: u32, mut run: Run<'_>) -> Result<Vec<Problem>, Problem> {
    match store.head(&run.object.key).await.or_problem() {
        Lookup::Unknown(problem) => Err(problem),
        Lookup::Absent => Ok(broken(store, host_idx, &run, "is missing")),
        Lookup::Found(meta) => {
            run.files.retain(|file| file.offset + file.length > meta.size);
            let why = format!("has {} bytes instead of {}", meta.size, run.object.size);
            Ok(broken(store, host_idx, &run, &why))
        }
    }
}

fn runs(manifest: &PartManifest) -> Vec<Run<'_>> {
    let mut files: Vec<(u32, &FileEntry)> =
        manifest.files.iter().filter_map(|file| file.object.map(|object| (object, file))).collect();
    files.sort_by_key(|(object, file)| (*object, file.offset, file.length));
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (_, file) in files {
        let Some(object) = manifest.object_of(file) else { continue };
        match runs.last_mut() {
            Some(run) if run.object.key == object.key && file.offset >= run.end() && file.offset - run.end() <= GAP => {
                run.files.push(file);
            }
            // Files that share bytes are read twice: rare, and simpler than to split a run.
            _ => runs.push(Run { object, files: vec![file] }),
        }
    }
    runs
}

fn differs(host_idx: u32, file: &FileEntry, object: &str, found: &Digest) -> Problem {
    Problem::new(
        Reason::Integrity,
        format!("host {host_idx}: file {} has digest {found}, its part manifest says {}", file.path, file.blake3),
    )
    .with("host_idx", host_idx)
    .with("file", &file.path)
    .with("key", object)
    .with("expected", file.blake3)
    .with("found", found)
}

async fn verify_run(
    store: &dyn ObjectStore,
    host_idx: u32,
    run: Run<'_>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Problem>, Problem> {
    let mut broken = Vec::new();
    match read_run(store, host_idx, &run, progress, &mut broken).await {
        Ok(()) => Ok(broken),
        Err(error) => match error.kind {
            StoreErrorKind::NotFound => missing(store, host_idx, &run, "is missing", &error).await,
            // Shorter than the manifest says: looked at once more, so that a passing fault is not taken for damage.
            StoreErrorKind::Integrity => match store.head(&run.object.key).await {
                Lookup::Found(meta) if meta.size < run.end() => {
                    let why = format!("has {} bytes instead of {}", meta.size, run.object.size);
                    missing(store, host_idx, &run, &why, &error).await
                }
                _ => Err(error.problem()),
            },
            _ => Err(error.problem()),
        },
    }
}

/// One problem for each file of a run whose object is missing or short.
async fn missing(
    store: &dyn ObjectStore,
    host_idx: u32,
    run: &Run<'_>,
    why: &str,
    error: &StoreError,
) -> Result<Vec<Problem>, Problem> {
    // Only a proven absence is damage: a missing bucket is not.
    if error.kind == StoreErrorKind::NotFound
        && !matches!(store.head(&run.object.key).await.or_problem(), Lookup::Absent)
    {
        return Err(error.problem());
    }
    Ok(broken(store, host_idx, run, why))
}

fn broken(store: &dyn ObjectStore, host_idx: u32, run: &Run<'_>, why: &str) -> Vec<Problem> {
    run.files
        .iter()
        .map(|file| {
            Problem::new(
                Reason::CheckpointDamaged,
                format!("host {host_idx}: file {} lies in object {}, which {why}", file.path, run.object.key),
            )
            .with("location", store.location())
            .with("host_idx", host_idx)
            .with("file", &file.path)
            .with("key", &run.object.key)
            .with("expected", run.object.size)
            .with("found", why)
        })
        .collect()
}

async fn read_run(
    store: &dyn ObjectStore,
    host_idx: u32,
    run: &Run<'_>,
    progress: &(dyn Fn(u64) + Send + Sync),
    broken: &mut Vec<Problem>,
) -> Result<(), StoreError> {
    let mut chunks = store.get_range(&run.object.key, run.start(), run.end() - run.start()).await?;
    let mut position = run.start();
    let mut files = run.files.iter();
    let mut current = files.next();
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = chunks.next().await {
        let mut chunk = chunk?;
        while let Some(file) = current {
            let skip = usize::try_from(file.offset.saturating_sub(position)).unwrap_or(usize::MAX).min(chunk.len());
            let _ = chunk.split_to(skip);
            position += u64::try_from(skip).unwrap_or(0);
            if chunk.is_empty() {
                break;
            }
            let left = usize::try_from(file.offset + file.length - position).unwrap_or(usize::MAX).min(chunk.len());
            let mine = chunk.split_to(left);
            hasher.update(&mine);
            position += u64::try_from(left).unwrap_or(0);
            progress(u64::try_from(left).unwrap_or(0));
            if position == file.offset + file.length {
                let found = Digest::from_hash(hasher.finalize());
                if found != file.blake3 {
                    broken.push(differs(host_idx, file, &run.object.key, &found));
                }
                hasher.reset();
                current = files.next();
            }
        }
    }
    Ok(())
}
