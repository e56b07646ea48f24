//! Collections, and what would go.

use lockstep_client::v1;
use serde_json::{Value, json};

use super::{commit, maybe, problem, time};

pub(crate) fn collection(collection: &v1::Collection) -> Value {
    json!({
        "id": collection.id,
        "phase": collection.phase,
        "retired": collection.retired,
        "swept": collection.swept,
        "objects": collection.objects,
        "bytes": collection.bytes,
        "uploads": collection.uploads,
        "put_off": collection.put_off,
        "problem": maybe(collection.problem.as_ref(), problem),
        "create_time": time(collection.create_time.as_ref()),
        "end_time": time(collection.end_time.as_ref()),
    })
}

/// The answer of a dry run.
pub(crate) fn would_go(answer: &v1::CollectGarbageResponse) -> Value {
    let object =
        |object: &v1::GarbageObject| json!({"key": object.key, "bytes": object.bytes, "orphan": object.orphan});
    let upload = |upload: &v1::GarbageUpload| json!({"key": upload.key, "upload": upload.upload});
    json!({
        "dry_run": true,
        "retire": answer.retire.iter().map(commit).collect::<Vec<_>>(),
        "sweep": answer.sweep.iter().map(commit).collect::<Vec<_>>(),
        "objects": answer.objects.iter().map(object).collect::<Vec<_>>(),
        "uploads": answer.uploads.iter().map(upload).collect::<Vec<_>>(),
        "object_count": answer.object_count,
        "bytes": answer.bytes,
        "problem": maybe(answer.problem.as_ref(), problem),
    })
}
