//! Checkpoints and what a verification found.

use lockstep_client::v1;
use serde_json::{Value, json};

use super::{commit, maybe, optional, problem, progress, time};

pub(crate) fn checkpoint(checkpoint: &v1::Checkpoint) -> Value {
    json!({
        "id": checkpoint.id,
        "commit": maybe(checkpoint.commit.as_ref(), commit),
        "step": checkpoint.step,
        "fingerprint": optional(&checkpoint.fingerprint),
        "n_hosts": checkpoint.n_hosts,
        "create_time": time(checkpoint.create_time.as_ref()),
        "round_no": checkpoint.round_no,
        "parts": checkpoint.parts.iter().map(part).collect::<Vec<_>>(),
        "files": checkpoint.files,
        "bytes": checkpoint.bytes,
        "bytes_uploaded": checkpoint.bytes_uploaded,
        "processed_records": checkpoint.processed_records,
        "pipeline": {"id": checkpoint.pipeline_id, "name": checkpoint.pipeline_name},
        "root_digest": optional(&checkpoint.root_digest),
        "damaged": checkpoint.damaged,
        "unreadable": maybe(checkpoint.unreadable.as_ref(), problem),
        "pins": checkpoint.pins.iter().map(pin).collect::<Vec<_>>(),
        "last_verification": maybe(checkpoint.last_verification.as_ref(), |last| json!({
            "time": time(last.time.as_ref()),
            "structure_only": last.structure_only,
            "intact": last.intact,
            "bytes": last.bytes,
            "problems": last.problems.iter().map(problem).collect::<Vec<_>>(),
            "mark_time": time(last.mark_time.as_ref()),
            "actor": last.actor,
        })),
    })
}

pub(crate) fn pin(pin: &v1::Pin) -> Value {
    json!({
        "id": pin.id,
        "name": pin.name,
        "key": pin.key,
        "checkpoint": pin.checkpoint,
        "pinned_by": pin.pinned_by,
        "pin_time": time(pin.pin_time.as_ref()),
    })
}

fn part(part: &v1::CheckpointPart) -> Value {
    json!({
        "host_idx": part.host_idx,
        "local_checkpoint": part.local_checkpoint,
        "manifest": maybe(part.manifest.as_ref(), |manifest| json!({
            "host_idx": manifest.host_idx,
            "key": manifest.key,
            "length": manifest.length,
            "blake3": manifest.blake3,
        })),
        "files": part.files,
        "bytes": part.bytes,
        "bytes_uploaded": part.bytes_uploaded,
    })
}

/// The last message of a verification.
pub(crate) fn verification(last: &v1::VerifyCheckpointResponse) -> Value {
    json!({
        "intact": last.problems.is_empty(),
        "checkpoint": maybe(last.checkpoint.as_ref(), checkpoint),
        "problems": last.problems.iter().map(problem).collect::<Vec<_>>(),
        "progress": maybe(last.progress.as_ref(), progress),
    })
}
