//! One file of a push: reused from the base, one PUT from memory, or a multipart upload in bounded memory; hashed while it is read.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lockstep_bucket::PartTag;
use lockstep_protocol::{
    digest::Digest,
    manifest::{ObjectEntry, RelativePath},
    problem::{Problem, Reason},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    base::{Base, Content},
    source::Source,
};
use crate::{
    remote::Remote,
    store::{HeldCheckpoint, HeldFile},
};

/// S3's greatest number of parts.
const MAX_PARTS: u64 = 10_000;

/// A file that is in the location, and where.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) path: RelativePath,
    pub(super) size: u64,
    pub(super) blake3: Digest,
    /// None: empty.
    pub(super) content: Option<Content>,
    /// 0 if it was there before.
    pub(super) bytes_uploaded: u64,
}

/// Sends one file to `key`, or finds it in the base.
pub(super) async fn file(
    remote: &Remote,
    held: &Arc<dyn HeldCheckpoint>,
    base: &Base,
    key: String,
    file: HeldFile,
) -> Result<Sent, Problem> {
    let HeldFile { path, size, .. } = file.clone();
    let work = remote.work();
    if size > work.limits.part_size {
        if base.may_hold(size) {
            let blake3 = hash(remote, held, &file).await?;
            if let Some(content) = base.find(size, blake3) {
                return Ok(Sent { path, size, blake3, content: Some(content), bytes_uploaded: 0 });
            }
        }
        let blake3 = multipart(remote, held, file, &key).await?;
        return Ok(Sent { path, size, blake3, content: Some(whole(key, size)), bytes_uploaded: size });
    }
    let room = work.memory(size).await?;
    let held = Arc::clone(held);
    let (bytes, blake3) = work
        .disk(move |_| {
            let mut source = Source::open(held.as_ref(), &file)?;
            let bytes = source.read(file.size)?;
            Ok((bytes, source.finish()?))
        })
        .await?;
    if size == 0 {
        return Ok(Sent { path, size, blake3, content: None, bytes_uploaded: 0 });
    }
    if let Some(content) = base.find(size, blake3) {
        return Ok(Sent { path, size, blake3, content: Some(content), bytes_uploaded: 0 });
    }
    remote.put(&key, bytes).await?;
    work.progress.done(size);
    drop(room);
    Ok(Sent { path, size, blake3, content: Some(whole(key, size)), bytes_uploaded: size })
}

fn whole(key: String, size: u64) -> Content {
    Content { object: ObjectEntry { key, size }, offset: 0 }
}

async fn hash(remote: &Remote, held: &Arc<dyn HeldCheckpoint>, file: &HeldFile) -> Result<Digest, Problem> {
    let (held, file) = (Arc::clone(held), file.clone());
    remote
        .work()
        .disk(move |stop| {
            let mut source = Source::open(held.as_ref(), &file)?;
            source.hash(stop)?;
            source.finish()
        })
        .await
}

/// One part of a multipart upload, read and waiting to be sent.
struct Piece {
    number: u16,
    bytes: Bytes,
    room: OwnedSemaphorePermit,
}

/// Reads front to back and sends as many parts at once as memory allows. The upload is remembered until it is completed, so that a failure
/// aborts it.
async fn multipart(
    remote: &Remote,
    held: &Arc<dyn HeldCheckpoint>,
    file: HeldFile,
    key: &str,
) -> Result<Digest, Problem> {
    let work = remote.work();
    let size = file.size;
    let part_size = work.limits.part_size.max(size.div_ceil(MAX_PARTS));
    let held = Arc::clone(held);
    let source = work.disk(move |_| Source::open(held.as_ref(), &file)).await?;
    let upload = remote.start_upload(key).await?;

    let digest = Arc::new(OnceLock::new());
    let pieces = stream::try_unfold((Some(source), 1_u16), |(source, number)| {
        let (work, digest) = (work.clone(), Arc::clone(&digest));
        async move {
            let Some(mut source) = source else { return Ok(None) };
            let room = work.memory(part_size).await?;
            let (bytes, rest) = work
                .disk(move |_| {
                    let bytes = source.read(part_size)?;
                    if !source.is_at_end() {
                        return Ok((bytes, Some(source)));
                    }
                    // Set once: nothing comes after the end.
                    let _ = digest.set(source.finish()?);
                    Ok((bytes, None))
                })
                .await?;
            Ok::<_, Problem>(Some((Piece { number, bytes, room }, (rest, number.saturating_add(1)))))
        }
    });
    let mut parts: Vec<PartTag> = pieces
        .map(|piece| {
            let (remote, upload, key) = (remote.clone(), upload.clone(), key.to_owned());
            async move {
                let Piece { number, bytes, room } = piece?;
                let length = bytes.len() as u64;
                let part = remote.upload_part(&key, &upload, number, bytes).await?;
                drop(room);
                remote.work().progress.done(length);
                Ok::<_, Problem>(part)
            }
        })
        .buffer_unordered(work.limits.concurrency)
        .try_collect()
        .await?;
    parts.sort_by_key(|part| part.number);
    let Some(digest) = digest.get().copied() else {
        // A stream of pieces ends without an error only after the piece that set it.
        return Err(Problem::new(Reason::LocalIo, "a file was not read to its end"));
    };
    remote.complete_upload(key, &upload, size, parts).await?;
    Ok(digest)
}
