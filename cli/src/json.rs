//! The protocol's messages as JSON, the one shape that `--output json` prints.
//!
//! Enumerations are lower case without their type's prefix (`transferring`), times are RFC 3339, durations are seconds,
//! sizes are bytes, absent values are `null`. Fingerprints are strings: 64 bits don't fit a JSON number everywhere.

mod checkpoint;
mod garbage;
mod pipeline;
mod round;
mod standby;

use lockstep_client::v1;
use prost_types::{Duration, Timestamp};
use serde_json::{Value, json};

use crate::failure::retryable_name;
use crate::text;

pub(crate) use checkpoint::{checkpoint, pin, verification};
pub(crate) use garbage::{collection, would_go};
pub(crate) use pipeline::{pipeline, spec};
pub(crate) use round::{audit_event, kind_name, participant_phase_name, phase_name, round, source_name};
pub(crate) use standby::{standby, state_name as standby_state_name};

/// `ROUND_PHASE_FAILED` without `ROUND_PHASE_`, in lower case.
fn enumeration(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

pub(crate) fn time(timestamp: Option<&Timestamp>) -> Value {
    timestamp.and_then(text::moment).map_or(Value::Null, |time| json!(time.to_rfc3339()))
}

fn seconds(duration: Option<&Duration>) -> Value {
    duration.map_or(Value::Null, |duration| json!(duration.seconds as f64 + f64::from(duration.nanos) / 1e9))
}

/// An empty text is an absent one.
pub(crate) fn optional(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

pub(crate) fn problem(problem: &v1::Problem) -> Value {
    json!({
        "reason": problem.reason,
        "message": problem.message,
        "metadata": problem.metadata,
        "retryable": retryable_name(problem.retryable()),
        "code": lockstep_rpc::code_name(tonic::Code::from(problem.code)),
    })
}

fn progress(progress: &v1::Progress) -> Value {
    json!({
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "files_done": progress.files_done,
        "files_total": progress.files_total,
        "bytes_transferred": progress.bytes_transferred,
        "bytes_per_second": progress.bytes_per_second,
        "elapsed_seconds": seconds(progress.elapsed.as_ref()),
    })
}

fn location(location: &v1::Location) -> Value {
    json!({
        "bucket": location.bucket,
        "prefix": location.prefix,
        "region": optional(&location.region),
        "endpoint": optional(&location.endpoint),
        "force_path_style": location.force_path_style,
    })
}

pub(crate) fn commit(commit: &v1::CommitRef) -> Value {
    json!({"generation": commit.generation, "seq": commit.seq, "round": commit.round, "digest": commit.digest})
}

/// The value of a message that may be absent.
fn maybe<T>(value: Option<&T>, convert: impl FnOnce(&T) -> Value) -> Value {
    value.map_or(Value::Null, convert)
}
