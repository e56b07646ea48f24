//! From a spec file to the protocol's message.

use std::path::Path;
use std::time::Duration;

use lockstep_client::v1;
use lockstep_protocol::host::Layout;
use lockstep_protocol::location::Location;
use lockstep_protocol::spec::{AgentAddresses, Initial, PipelineSpec, PullSelector, StartPolicy, Transfer};
use serde_json::Value;

use crate::failure::Failure;

/// A file larger than this is no spec.
const LARGEST_FILE: u64 = 1 << 20;

/// Reads and checks a spec; `-` is stdin.
pub(crate) fn read(path: &Path) -> Result<v1::PipelineSpec, Failure> {
    parse(&text(path)?, &path.display().to_string())
}

/// Reads any YAML or JSON document; `-` is stdin.
pub(crate) fn document(path: &Path) -> Result<Value, Failure> {
    value(&text(path)?, &path.display().to_string())
}

fn text(path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;

    let unreadable = |error: std::io::Error| {
        Failure::local("FILE_UNREADABLE", format!("can't read {}: {error}", path.display()))
            .with("file", path.display())
    };
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(LARGEST_FILE).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(LARGEST_FILE).read_to_string(&mut text))
            .map_err(unreadable)?;
    }
    Ok(text)
}

fn parse(text: &str, file: &str) -> Result<v1::PipelineSpec, Failure> {
    let value = value(text, file)?;
    if !value.is_object() {
        return Err(
            Failure::local("SPEC_INVALID", format!("{file} holds no mapping of fields to values")).with("file", file)
        );
    }
    let spec = PipelineSpec::from_value(value).map_err(|problem| Failure::from(problem).with("file", file))?;
    Ok(message(&spec))
}

fn value(text: &str, file: &str) -> Result<Value, Failure> {
    serde_saphyr::from_str(text).map_err(|error| {
        Failure::local("SPEC_INVALID", format!("{file} is not valid YAML: {error}")).with("file", file)
    })
}

fn message(spec: &PipelineSpec) -> v1::PipelineSpec {
    let (hosts, solo) = match spec.layout {
        Layout::Solo => (0, true),
        Layout::Hosts(count) => (count.into(), false),
    };
    v1::PipelineSpec {
        name: spec.name.to_string(),
        initial: match spec.initial {
            Initial::Running => v1::Initial::Running,
            Initial::Standby => v1::Initial::Standby,
        }
        .into(),
        hosts,
        solo,
        agents: match &spec.agents {
            AgentAddresses::Template(template) => vec![template.clone()],
            AgentAddresses::List(list) => list.clone(),
        },
        location: Some(location(&spec.location)),
        read_location: spec.read_location.as_ref().map(location),
        start: Some(start(&spec.start)),
        push_interval: spec.push_interval.map(duration),
        pull_interval: spec.pull_interval.map(duration),
        retention: spec.retention.map(|retention| v1::Retention {
            min_count: retention.min_count,
            min_age: Some(duration(retention.min_age)),
        }),
        transfer: Some(transfer(&spec.transfer)),
        standby: None,
    }
}

/// Limits as the protocol carries them.
pub(crate) fn transfer(transfer: &Transfer) -> v1::TransferOptions {
    v1::TransferOptions {
        concurrency: transfer.concurrency,
        part_size: transfer.part_size,
        memory: transfer.memory,
        bandwidth_limit: transfer.bandwidth_limit.unwrap_or_default(),
    }
}

fn location(location: &Location) -> v1::Location {
    v1::Location {
        bucket: location.bucket().to_owned(),
        prefix: location.prefix().to_owned(),
        region: location.region().unwrap_or_default().to_owned(),
        endpoint: location.endpoint().unwrap_or_default().to_owned(),
        force_path_style: location.force_path_style(),
    }
}

fn start(start: &StartPolicy) -> v1::StartPolicy {
    use v1::start_policy::From;
    let from = match start.from {
        PullSelector::Latest => From::Latest(true),
        PullSelector::Step(step) => From::Step(step.into()),
        PullSelector::Checkpoint(id) => From::Checkpoint(id.to_string()),
        PullSelector::Time(time) => From::Time(timestamp(time)),
    };
    v1::StartPolicy { from: Some(from), fail_if_none: start.fail_if_none }
}

/// As the protocol carries a moment.
pub(crate) fn timestamp(time: chrono::DateTime<chrono::Utc>) -> prost_types::Timestamp {
    // Below 2e9, so it fits.
    prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 }
}

/// As the protocol carries a length of time; what does not fit is as long as can be.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    let longest = prost_types::Duration { seconds: 315_576_000_000, nanos: 0 };
    prost_types::Duration::try_from(duration).unwrap_or(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    /// The example of the documentation.
    const EXAMPLE: &str = r#"
name: orders
initial: running
hosts: 3
agents: "http://orders-{host}.orders.default.svc:7402"
location: {bucket: acme-ckpt, prefix: orders, region: eu-west-1, endpoint: null, force_path_style: false}
read_location: null
start: {from: latest, fail_if_none: false}
push_interval: 2m
pull_interval: 10s
retention: {min_count: 10, min_age: 30days}
transfer: {concurrency: 16, part_size: 16MiB, memory: 64MiB, bandwidth_limit: null}
"#;

    #[test]
    fn what_is_read_is_shown_as_it_was_written() {
        let message = parse(EXAMPLE, "orders.yaml").unwrap();
        assert_eq!((message.hosts, message.agents.len()), (3, 1));
        let written: Value = serde_saphyr::from_str(EXAMPLE).unwrap();
        let shown = json::spec(&message);
        for (field, value) in written.as_object().unwrap() {
            assert_eq!(&shown[field], value, "{field}");
        }
        let again = PipelineSpec::from_value(shown).unwrap();
        assert_eq!(super::message(&again), message);
    }

    #[test]
    fn every_way_to_start_survives() {
        for start in
            ["{step: 7}", "{checkpoint: 0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11}", r#"{time: "2026-11-23T04:00:00.250Z"}"#]
        {
            let text = format!(
                "{{name: a, solo: true, agents: ['http://a:1'], location: {{bucket: acme}}, start: {{from: {start}}}}}"
            );
            let message = parse(&text, "f").unwrap();
            assert!(message.solo);
            let again = PipelineSpec::from_value(json::spec(&message)).unwrap();
            assert_eq!(super::message(&again), message, "{start}");
        }
    }

    #[test]
    fn what_is_wrong_names_file_and_field() {
        for (text, reason, names) in [
            ("name: [", "SPEC_INVALID", "not valid YAML"),
            ("- a\n- b", "SPEC_INVALID", "no mapping"),
            ("", "SPEC_INVALID", "no mapping"),
            ("name: a\nhots: 3", "SPEC_INVALID", "hots"),
            ("standby: true", "STANDBY_FIELD_REMOVED", "initial: standby"),
        ] {
            let failure = parse(text, "bad.yaml").unwrap_err();
            assert_eq!(failure.reason, reason, "{text}");
            assert!(failure.message.contains(names), "{}", failure.message);
            assert_eq!(failure.metadata["file"], "bad.yaml");
        }
    }
}
