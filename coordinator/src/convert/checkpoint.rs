//! Checkpoints, as commit documents describe them, to proto.

use lockstep_bucket::Entry;
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef},
    verification::Scope,
};

use super::{round, status, time};
use crate::store::Verification;

/// What stands at a place of the chain.
pub fn entry(entry: &Entry) -> v1::Checkpoint {
    match entry {
        Entry::Whole(one) => checkpoint(&one.commit, &one.document, one.damaged),
        Entry::Unreadable(one) => v1::Checkpoint {
            id: one.commit.round.to_string(),
            commit: Some(round::commit_ref(&one.commit)),
            damaged: one.damaged,
            unreadable: Some(status::problem(&one.problem)),
            ..v1::Checkpoint::default()
        },
    }
}

/// A counted commit with the digest of its exact bytes.
pub fn checkpoint(commit: &CommitRef, document: &CommitDocument, damaged: bool) -> v1::Checkpoint {
    v1::Checkpoint {
        id: document.round.to_string(),
        commit: Some(round::commit_ref(commit)),
        step: document.step.get(),
        fingerprint: document.fingerprint.map(|f| f.to_string()).unwrap_or_default(),
        n_hosts: document.layout.n_hosts(),
        create_time: Some(time::timestamp(document.created_at)),
        round_no: document.round_no.get(),
        parts: document.parts.iter().map(part).collect(),
        files: document.files(),
        bytes: document.bytes(),
        bytes_uploaded: document.bytes_uploaded(),
        processed_records: document.processed_records(),
        pipeline_id: document.pipeline.to_string(),
        pipeline_name: document.pipeline_name.to_string(),
        root_digest: document.root().to_string(),
        damaged,
        pins: Vec::new(),
        last_verification: None,
        unreadable: None,
    }
}

/// What one reading found.
pub fn verification(kept: &Verification) -> v1::Verification {
    v1::Verification {
        time: Some(time::timestamp(kept.ended_at)),
        structure_only: kept.finding.scope == Scope::Structure,
        intact: kept.finding.problems.is_empty(),
        bytes: kept.finding.bytes,
        problems: kept.finding.problems.iter().map(status::problem).collect(),
        mark_time: kept.marked_at.map(time::timestamp),
        actor: kept.actor.clone(),
    }
}

fn part(part: &CommitPart) -> v1::CheckpointPart {
    v1::CheckpointPart {
        host_idx: part.host_idx,
        local_checkpoint: part.local_checkpoint.to_string(),
        manifest: Some(v1::PartRef {
            host_idx: part.host_idx,
            key: part.manifest.clone(),
            length: part.manifest_length,
            blake3: part.manifest_blake3.to_string(),
        }),
        files: part.files,
        bytes: part.bytes,
        bytes_uploaded: part.bytes_uploaded,
    }
}
