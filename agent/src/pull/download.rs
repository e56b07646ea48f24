//! One file of a pull: ranged reads in bounded memory, written in order, hashed as it is written, compared, synced.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, PartManifest},
    problem::{Problem, Reason},
};

use super::staging::Staging;
use crate::{durable::io_problem, remote::Remote, work::Work};

/// A file on its way in.
struct Sink {
    file: File,
    hasher: blake3::Hasher,
    written: u64,
}

/// Downloads, verifies and syncs one file.
pub(super) async fn file(
    remote: &Remote,
    staging: &Arc<Staging>,
    part: &PartManifest,
    entry: &FileEntry,
) -> Result<(), Problem> {
    let Some(object) = part.object_of(entry) else {
        // A parsed manifest names an object for every file that is not empty, and empty ones are not downloaded.
        return Ok(());
    };
    let work = remote.work();
    let step = work.limits.part_size;
    let ranges = (0..entry.length.div_ceil(step)).map(|n| (n * step, step.min(entry.length - n * step)));
    let key = object.key.as_str();
    let pieces = stream::iter(ranges)
        // In order: a piece gets its memory only after those before it, so the one that is written next always comes.
        .then(|(at, length)| {
            let work = work.clone();
            async move { Ok::<_, Problem>((work.memory(length).await?, at, length)) }
        })
        .map(|piece| {
            let (remote, key, offset) = (remote.clone(), key.to_owned(), entry.offset);
            async move {
                let (room, at, length) = piece?;
                Ok::<_, Problem>((remote.range(&key, offset + at, length).await?, room))
            }
        })
        .buffered(work.limits.concurrency);
    let mut pieces = std::pin::pin!(pieces);

    let mut sink = {
        let (staging, path) = (Arc::clone(staging), entry.path.clone());
        work.disk(move |_| Ok(Sink { file: staging.create_file(&path)?, hasher: blake3::Hasher::new(), written: 0 }))
            .await?
    };
    while let Some((bytes, room)) = pieces.try_next().await? {
        let length = bytes.len() as u64;
        sink = write(work, staging, entry, sink, bytes).await?;
        drop(room);
        work.progress.done(length);
    }
    finish(work, staging, entry, key, sink).await
}

async fn write(
    work: &Work,
    staging: &Arc<Staging>,
    entry: &FileEntry,
    mut sink: Sink,
    bytes: Bytes,
) -> Result<Sink, Problem> {
    let path = staging.path(&entry.path);
    work.disk(move |_| {
        sink.file.write_all_at(&bytes, sink.written).map_err(|error| io_problem("write", &path, &error))?;
        sink.hasher.update(&bytes);
        sink.written += bytes.len() as u64;
        Ok(sink)
    })
    .await
}

async fn finish(work: &Work, staging: &Arc<Staging>, entry: &FileEntry, key: &str, sink: Sink) -> Result<(), Problem> {
    let path = staging.path(&entry.path);
    let (entry, key) = (entry.clone(), key.to_owned());
    work.disk(move |_| {
        let found = Digest::from_hash(sink.hasher.finalize());
        if found != entry.blake3 {
            return Err(Problem::new(
                Reason::Integrity,
                format!("{} has digest {found} in object {key}, its manifest says {}", entry.path, entry.blake3),
            )
            .with("file", &entry.path)
            .with("key", &key)
            .with("expected", entry.blake3)
            .with("found", found));
        }
        sink.file.sync_all().map_err(|error| io_problem("sync", &path, &error))
    })
    .await
}
