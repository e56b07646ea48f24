//! The part of one simulated host: one small file. It is written once and reused by every later push whose base reaches it, as files that don't change are.

use anyhow::{Context as _, Result};
use lockstep_devkit::S3Admin;
use lockstep_proto::v1;
use lockstep_protocol::digest::Digest;
use lockstep_protocol::host::Layout;
use lockstep_protocol::id::{Attempt, Generation, Step};
use lockstep_protocol::manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath};

/// Of the simulated program.
pub(super) const FINGERPRINT: &str = "7";

const CONTENT: &[u8] = b"state";

/// Of one host's checkpoint.
pub(super) const BYTES: u64 = CONTENT.len() as u64;

/// What the last push of a host has left in the bucket.
#[derive(Debug, Clone)]
pub(super) struct Written {
    manifest: String,
    object: ObjectEntry,
}

/// Writes what an agent would: the object, unless the base has it, and the part manifest last.
pub(super) fn write(
    admin: &S3Admin,
    bucket: &str,
    order: &v1::PushOrder,
    before: Option<&Written>,
) -> Result<(v1::PushDone, Written)> {
    let header = order.header.as_ref().context("no header")?;
    let own = header.own_location.as_ref().context("no location")?;
    let info = header.host_info.context("solo")?;
    let mut part = PartManifest {
        pipeline: header.pipeline_id.parse()?,
        slot: Layout::from_n_hosts(info.n_hosts)?.slot(info.host_idx)?,
        generation: Generation::new(header.generation)?,
        round: header.round.parse()?,
        incarnation: header.incarnation.parse()?,
        attempt: Attempt::new(header.attempt)?,
        local_checkpoint: order.local_checkpoint.parse()?,
        step: Step::new(order.step)?,
        fingerprint: Some(order.fingerprint.parse()?),
        processed_records: None,
        store_meta: String::new(),
        objects: Vec::new(),
        files: vec![FileEntry {
            path: RelativePath::new("state")?,
            size: BYTES,
            blake3: Digest::of(CONTENT),
            head: None,
            object: Some(0),
            offset: 0,
            length: BYTES,
        }],
        delta: None,
    };
    let full_key = |key: &str| format!("{}/{key}", own.prefix);
    let base = order.base_parts.iter().find(|base| base.host_idx == info.host_idx);
    let reused = before.filter(|before| base.is_some_and(|base| base.key == before.manifest));
    let object = match reused {
        Some(before) => before.object.clone(),
        None => {
            let key = part.attempt_path().data(0).to_string();
            admin.put_raw(bucket, &full_key(&key), CONTENT)?;
            ObjectEntry { key, size: BYTES }
        }
    };
    part.objects = vec![object.clone()];
    let (manifest, bytes) = (part.attempt_path().manifest().to_string(), part.encode());
    admin.put_raw(bucket, &full_key(&manifest), &bytes)?;
    let done = v1::PushDone {
        part: Some(v1::PartRef {
            host_idx: info.host_idx,
            key: manifest.clone(),
            length: bytes.len() as u64,
            blake3: Digest::of(&bytes).to_string(),
        }),
        local_checkpoint: order.local_checkpoint.clone(),
        step: order.step,
        fingerprint: order.fingerprint.clone(),
        files: 1,
        bytes: BYTES,
        bytes_uploaded: if reused.is_some() { 0 } else { BYTES },
        processed_records: None,
        elapsed: None,
    };
    Ok((done, Written { manifest, object }))
}
