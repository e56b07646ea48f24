//! Checkpoints as objects of a location, laid out as a test wants them.

use lockstep_agent::Agent;
use lockstep_devkit::{RequestRecord, S3Server};
use lockstep_proto::v1;
use lockstep_protocol::{
    digest::Digest,
    id::{Attempt, Generation, Incarnation, LocalCheckpointId, Step},
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
};
use uuid::Uuid;

use crate::harness::{BUCKET, FINGERPRINT, Files, PIPELINE, PREFIX, files, round_id};

/// Puts the part of host 1 of 3, pushed in round 1 at step 4. Each object holds its files one after the other; empty files lie in none.
pub(crate) fn put(s3: &S3Server, objects: &[Files]) -> v1::PushDone {
    let mut part = PartManifest {
        pipeline: PIPELINE.parse().unwrap(),
        slot: Agent::slot(1, 3).unwrap(),
        generation: Generation::new(1).unwrap(),
        round: round_id(1).parse().unwrap(),
        incarnation: Incarnation::new(Uuid::new_v4()),
        attempt: Attempt::new(1).unwrap(),
        local_checkpoint: LocalCheckpointId::new(Uuid::new_v4()),
        step: Step::new(4).unwrap(),
        fingerprint: Some(FINGERPRINT.parse().unwrap()),
        processed_records: None,
        store_meta: String::new(),
        objects: Vec::new(),
        files: Vec::new(),
        delta: None,
    };
    for (number, files) in (0_u32..).zip(objects) {
        let mut object = Vec::new();
        for (path, content) in files {
            part.files.push(FileEntry {
                path: RelativePath::new(path).unwrap(),
                size: content.len() as u64,
                blake3: Digest::of(content),
                object: (!content.is_empty()).then_some(number),
                offset: if content.is_empty() { 0 } else { object.len() as u64 },
                length: content.len() as u64,
                head: None,
            });
            object.extend_from_slice(content);
        }
        let key = part.attempt_path().data(number).to_string();
        s3.admin().put_raw(BUCKET, &format!("{PREFIX}/{key}"), &object).unwrap();
        part.objects.push(ObjectEntry { key, size: object.len() as u64 });
    }
    put_part(s3, &part)
}

/// Puts a part manifest as it is.
pub(crate) fn put_part(s3: &S3Server, part: &PartManifest) -> v1::PushDone {
    let (key, bytes) = (part.attempt_path().manifest().to_string(), part.encode());
    s3.admin().put_raw(BUCKET, &format!("{PREFIX}/{key}"), &bytes).unwrap();
    v1::PushDone {
        part: Some(v1::PartRef {
            host_idx: 1,
            key,
            length: bytes.len() as u64,
            blake3: Digest::of(&bytes).to_string(),
        }),
        local_checkpoint: part.local_checkpoint.to_string(),
        step: part.step.get(),
        fingerprint: FINGERPRINT.to_owned(),
        files: part.files.len() as u64,
        bytes: part.bytes(),
        ..v1::PushDone::default()
    }
}

/// All files of all objects.
pub(crate) fn all(objects: &[Files]) -> Files {
    objects.iter().flatten().map(|(path, content)| (path.clone(), content.clone())).collect()
}

/// One object with one file.
pub(crate) fn single(path: &str, content: Vec<u8>) -> Vec<Files> {
    vec![files(&[(path, content)])]
}

/// Reads of data objects that were answered with bytes or cut off: key, first byte and number of bytes asked for.
pub(crate) fn reads(s3: &S3Server) -> Vec<(String, u64, u64)> {
    s3.requests().iter().filter(|request| is_read(request)).map(range).collect()
}

fn is_read(request: &RequestRecord) -> bool {
    request.operation == "GetObject" && request.key.as_deref().is_some_and(|key| key.contains("data-"))
}

fn range(request: &RequestRecord) -> (String, u64, u64) {
    let (first, last) = request.range.as_deref().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    (request.key.clone().unwrap(), first, last + 1 - first)
}
