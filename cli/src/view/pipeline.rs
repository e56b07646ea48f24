//! Pipelines.

use lockstep_client::v1;
use serde_json::Value;

use super::{outcome, problem_lines};
use crate::json;
use crate::json::phase_name;
use crate::text::{self, NONE, or_none};

fn name(pipeline: &v1::Pipeline) -> &str {
    pipeline.spec.as_ref().map_or(NONE, |spec| spec.name.as_str())
}

fn layout(spec: &v1::PipelineSpec) -> String {
    if spec.solo { "solo".to_owned() } else { spec.hosts.to_string() }
}

fn place(location: &v1::Location) -> String {
    let mut place = format!("s3://{}", location.bucket);
    if !location.prefix.is_empty() {
        place.push_str(&format!("/{}", location.prefix));
    }
    if !location.endpoint.is_empty() {
        place.push_str(&format!("?endpoint={}", location.endpoint));
    }
    place
}

/// What a pipeline is doing, in a word or two.
fn state(pipeline: &v1::Pipeline) -> String {
    match (&pipeline.fenced, &pipeline.active_round) {
        (Some(_), _) => "fenced".to_owned(),
        _ if pipeline.behind.is_some() => "behind".to_owned(),
        (None, Some(round)) => format!("{} {}", json::kind_name(round.kind()), phase_name(round.phase())),
        (None, None) => match &pipeline.standby {
            Some(standby) => format!("standby, {}", json::standby_state_name(standby.state())),
            None => "idle".to_owned(),
        },
    }
}

pub(crate) fn pipelines(pipelines: &[v1::Pipeline]) -> String {
    if pipelines.is_empty() {
        return "no pipelines; `lockstep pipeline apply -f SPEC.yaml` creates one".to_owned();
    }
    text::table(
        ["PIPELINE", "HOSTS", "STATE", "STEP", "LAST PUSH", "LAST PULL", "LOCATION"],
        pipelines.iter().map(|pipeline| {
            let spec = pipeline.spec.as_ref();
            let last = |round: Option<&v1::Round>| match round {
                Some(round) => {
                    let at = round.end_time.as_ref().or(round.create_time.as_ref());
                    format!("{} {}", phase_name(round.phase()), text::time(at))
                }
                None => NONE.to_owned(),
            };
            [
                name(pipeline).to_owned(),
                spec.map_or_else(|| NONE.to_owned(), layout),
                state(pipeline),
                pipeline.last_committed_step.map_or_else(|| NONE.to_owned(), |step| step.to_string()),
                last(pipeline.last_push.as_ref()),
                last(pipeline.last_pull.as_ref()),
                spec.and_then(|spec| spec.location.as_ref()).map_or_else(|| NONE.to_owned(), place),
            ]
        }),
    )
}

pub(crate) fn pipeline(pipeline: &v1::Pipeline) -> String {
    let mut rows = vec![
        ("pipeline", name(pipeline).to_owned()),
        ("id", or_none(&pipeline.id).to_owned()),
        ("state", state(pipeline)),
        ("generation", pipeline.generation.to_string()),
        ("step", pipeline.last_committed_step.map_or_else(|| NONE.to_owned(), |step| step.to_string())),
    ];
    let rounds = [
        ("active round", &pipeline.active_round),
        ("last push", &pipeline.last_push),
        ("last pull", &pipeline.last_pull),
    ];
    for (label, round) in rounds {
        if let Some(round) = round {
            rows.push((label, format!("{} (round {})", outcome(round), round.id)));
        }
    }
    if let Some(schedule) = &pipeline.push_schedule {
        rows.push(("next push", next_push(schedule)));
    }
    if let Some(collection) = &pipeline.last_collection {
        rows.push(("last collection", super::collection(collection)));
    }
    if let Some(standby) = &pipeline.standby {
        rows.extend(super::standby::rows(standby));
    }
    if let Some(ready) = &pipeline.ready {
        rows.push(("engines", engines(ready)));
    }
    rows.push(("created", text::time(pipeline.create_time.as_ref())));
    rows.push(("updated", text::time(pipeline.update_time.as_ref())));
    rows.push(("etag", or_none(&pipeline.etag).to_owned()));
    let mut shown = text::pairs(rows);
    for problem in pipeline.behind.iter().chain(&pipeline.lost) {
        shown.push_str(&format!("\n\n{}", problem_lines(problem)));
    }
    if let Some(fenced) = &pipeline.fenced {
        shown.push_str(&format!("\n\n{}", problem_lines(fenced)));
    }
    for host in pipeline.ready.iter().flat_map(|ready| &ready.not_told) {
        if let Some(problem) = &host.problem {
            shown.push_str(&format!("\n\nhost {} is not told yet:\n{}", host.host_idx, problem_lines(problem)));
        }
    }
    if let Some(problem) = pipeline.standby.as_ref().and_then(|standby| standby.problem.as_ref()) {
        shown.push_str(&format!("\n\nthe standby keeps what it has:\n{}", problem_lines(problem)));
    }
    if let Some(schedule) = &pipeline.push_schedule
        && let Some(problem) = &schedule.problem
    {
        let what = if schedule.failures == 0 { "nothing to push yet" } else { "the last periodic push failed" };
        shown.push_str(&format!("\n\n{what}:\n{}", problem_lines(problem)));
    }
    if let Some(spec) = &pipeline.spec {
        shown.push_str(&format!("\n\n{}", spec_lines(&json::spec(spec))));
    }
    shown
}

/// What they were told after the last pull.
fn engines(ready: &v1::Ready) -> String {
    let what = match ready.role() {
        v1::Role::Standby => "wait as standby",
        v1::Role::Active | v1::Role::Unspecified => "may start",
    };
    match ready.not_told.as_slice() {
        [] => format!("{what}, every host was told (round {})", ready.round),
        owed => {
            let hosts: Vec<_> = owed.iter().map(|host| host.host_idx.to_string()).collect();
            format!("{what}, not told yet: host {} (round {})", hosts.join(", "), ready.round)
        }
    }
}

fn next_push(schedule: &v1::PushSchedule) -> String {
    let next = match &schedule.next_time {
        Some(time) => format!("by itself {}", text::time(Some(time))),
        None => "by itself, after the one that runs".to_owned(),
    };
    match schedule.failures {
        0 => next,
        1 => format!("{next}, after a failure"),
        failures => format!("{next}, after {failures} failures in a row"),
    }
}

/// The spec field by field, each value on one line as YAML would take it; what is not set is left out.
pub(crate) fn spec_lines(spec: &Value) -> String {
    let fields = spec.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let lines: Vec<String> = fields.map(|(field, value)| format!("{field}: {}", plain(value))).collect();
    lines.join("\n")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
