//! Pipelines and their specs, the latter in the shape in which they are written.

use std::time::Duration;

use lockstep_client::v1;
use lockstep_protocol::unit;
use serde_json::{Value, json};

use super::{collection, location, maybe, optional, problem, round, standby, time};

pub(crate) fn pipeline(pipeline: &v1::Pipeline) -> Value {
    json!({
        "id": optional(&pipeline.id),
        "name": pipeline.spec.as_ref().map(|spec| spec.name.as_str()),
        "spec": maybe(pipeline.spec.as_ref(), spec),
        "etag": optional(&pipeline.etag),
        "generation": pipeline.generation,
        "fenced": maybe(pipeline.fenced.as_ref(), problem),
        "behind": maybe(pipeline.behind.as_ref(), problem),
        "lost": maybe(pipeline.lost.as_ref(), problem),
        "active_round": maybe(pipeline.active_round.as_ref(), round),
        "last_push": maybe(pipeline.last_push.as_ref(), round),
        "last_pull": maybe(pipeline.last_pull.as_ref(), round),
        "last_committed_step": pipeline.last_committed_step,
        "push_schedule": maybe(pipeline.push_schedule.as_ref(), |schedule| json!({
            "next_time": time(schedule.next_time.as_ref()),
            "failures": schedule.failures,
            "problem": maybe(schedule.problem.as_ref(), problem),
        })),
        "last_collection": maybe(pipeline.last_collection.as_ref(), collection),
        "standby": maybe(pipeline.standby.as_ref(), standby),
        "ready": maybe(pipeline.ready.as_ref(), ready),
        "create_time": time(pipeline.create_time.as_ref()),
        "update_time": time(pipeline.update_time.as_ref()),
        "warnings": pipeline.warnings,
    })
}

fn ready(ready: &v1::Ready) -> Value {
    json!({
        "round": optional(&ready.round),
        "role": role_name(ready.role()),
        "not_told": ready.not_told.iter().map(|host| json!({
            "host_idx": host.host_idx,
            "problem": maybe(host.problem.as_ref(), problem),
        })).collect::<Vec<_>>(),
        "next_time": time(ready.next_time.as_ref()),
        "told_time": time(ready.told_time.as_ref()),
    })
}

pub(crate) const fn role_name(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Active => "active",
        v1::Role::Standby => "standby",
        v1::Role::Unspecified => "unknown",
    }
}

/// A spec as `pipeline apply` reads it.
pub(crate) fn spec(spec: &v1::PipelineSpec) -> Value {
    let mut value = json!({
        "name": spec.name,
        "initial": match spec.initial() {
            v1::Initial::Standby => "standby",
            v1::Initial::Running | v1::Initial::Unspecified => "running",
        },
        "agents": match spec.agents.as_slice() {
            [one] if one.contains("{host}") => json!(one),
            list => json!(list),
        },
        "location": maybe(spec.location.as_ref(), location),
        "read_location": maybe(spec.read_location.as_ref(), location),
        "start": maybe(spec.start.as_ref(), start),
        "push_interval": interval(spec.push_interval.as_ref()),
        "pull_interval": interval(spec.pull_interval.as_ref()),
        "retention": maybe(spec.retention.as_ref(), |retention| json!({
            "min_count": retention.min_count,
            "min_age": interval(retention.min_age.as_ref()),
        })),
        "transfer": maybe(spec.transfer.as_ref(), |transfer| json!({
            "concurrency": transfer.concurrency,
            "part_size": unit::show_size(transfer.part_size),
            "memory": unit::show_size(transfer.memory),
            "bandwidth_limit": (transfer.bandwidth_limit > 0).then(|| unit::show_size(transfer.bandwidth_limit)),
        })),
    });
    if spec.solo {
        value["solo"] = json!(true);
    } else {
        value["hosts"] = json!(spec.hosts);
    }
    value
}

fn start(start: &v1::StartPolicy) -> Value {
    use v1::start_policy::From;
    let from = match &start.from {
        None | Some(From::Latest(_)) => json!("latest"),
        Some(From::Step(step)) => json!({"step": step}),
        Some(From::Checkpoint(id)) => json!({"checkpoint": id}),
        Some(From::Time(at)) => json!({"time": time(Some(at))}),
    };
    json!({"from": from, "fail_if_none": start.fail_if_none})
}

fn interval(interval: Option<&prost_types::Duration>) -> Value {
    interval
        .and_then(|interval| Duration::try_from(*interval).ok())
        .map_or(Value::Null, |interval| json!(unit::show_duration(interval)))
}
