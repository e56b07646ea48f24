//! Update masks: which fields of a spec an update replaces.

use lockstep_proto::v1;
use lockstep_protocol::{
    problem::Problem,
    spec::{PipelineSpec, standby_field_removed},
};

use super::pipeline::{missing, refuse, spec, spec_of};

/// Fields of `PipelineSpec` that an update mask may name.
const MASKABLE: [&str; 12] = [
    "name",
    "initial",
    "hosts",
    "solo",
    "agents",
    "location",
    "read_location",
    "start",
    "push_interval",
    "pull_interval",
    "retention",
    "transfer",
];

/// Applies the fields that the mask names to `current`. An empty mask or `*` means all of them.
pub fn masked(
    current: &PipelineSpec,
    update: Option<&v1::PipelineSpec>,
    mask: Option<&prost_types::FieldMask>,
) -> Result<PipelineSpec, Problem> {
    let update = update.ok_or_else(|| missing("spec"))?;
    if let Some(standby) = update.standby {
        return Err(standby_field_removed(standby));
    }
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() || paths == ["*"] {
        return spec_of(Some(update));
    }
    let mut next = spec(current);
    for path in paths {
        match path.as_str() {
            "name" => next.name.clone_from(&update.name),
            "initial" => next.initial = update.initial,
            "hosts" => next.hosts = update.hosts,
            "solo" => next.solo = update.solo,
            "agents" => next.agents.clone_from(&update.agents),
            "location" => next.location.clone_from(&update.location),
            "read_location" => next.read_location.clone_from(&update.read_location),
            "start" => next.start.clone_from(&update.start),
            "push_interval" => next.push_interval = update.push_interval,
            "pull_interval" => next.pull_interval = update.pull_interval,
            "retention" => next.retention = update.retention,
            "transfer" => next.transfer = update.transfer,
            unknown => {
                return Err(refuse(
                    "update_mask",
                    format!("{unknown:?}"),
                    &format!("is no field of the spec; known are {}", MASKABLE.join(", ")),
                ));
            }
        }
    }
    spec_of(Some(&next))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockstep_protocol::problem::Reason;

    use super::*;
    use crate::convert::pipeline::tests::orders;

    #[test]
    fn a_mask_changes_what_it_names_and_nothing_else() {
        let current = spec_of(Some(&orders())).unwrap();
        let update = v1::PipelineSpec {
            name: "orders-2".to_owned(),
            push_interval: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            ..Default::default()
        };
        let mask = |paths: &[&str]| prost_types::FieldMask { paths: paths.iter().map(|&p| p.to_owned()).collect() };
        let next = masked(&current, Some(&update), Some(&mask(&["push_interval"]))).unwrap();
        assert_eq!(next, PipelineSpec { push_interval: Some(Duration::from_secs(60)), ..current.clone() });
        let next = masked(&current, Some(&update), Some(&mask(&["name", "push_interval"]))).unwrap();
        assert_eq!(next.name.as_str(), "orders-2");

        let unknown = masked(&current, Some(&update), Some(&mask(&["transfer.concurrency"]))).unwrap_err();
        assert_eq!(unknown.reason, Reason::SpecInvalid);
        assert_eq!(unknown.metadata["field"], "update_mask");
        // An empty mask replaces everything, so what is missing is missing.
        assert_eq!(masked(&current, Some(&update), None).unwrap_err().metadata["field"], "hosts");
        let removed = v1::PipelineSpec { standby: Some(false), ..Default::default() };
        assert_eq!(
            masked(&current, Some(&removed), Some(&mask(&["name"]))).unwrap_err().reason,
            Reason::StandbyFieldRemoved
        );
    }
}
