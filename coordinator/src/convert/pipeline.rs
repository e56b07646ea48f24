//! Pipeline specs from and to proto. Every field is checked here or by `PipelineSpec::check`; nothing is taken as a default but what the proto says
//! is one.

use lockstep_proto::v1;
use lockstep_protocol::{
    host::Layout,
    id::{PipelineName, Step},
    location::{Location, RawLocation},
    problem::{Problem, Reason},
    schedule::PushSchedule,
    spec::{
        AgentAddresses, Initial, PipelineSpec, PullSelector, Retention, StartPolicy, Transfer, standby_field_removed,
    },
    takeover::Chosen,
};

use super::time;

pub(super) fn refuse(field: &str, value: impl std::fmt::Display, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value}: {why}")).with("field", field).with("value", value)
}

pub(super) fn missing(field: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} is missing")).with("field", field)
}

/// Reads and checks the spec of a request.
pub fn spec_of(spec: Option<&v1::PipelineSpec>) -> Result<PipelineSpec, Problem> {
    let spec = spec.ok_or_else(|| missing("spec"))?;
    if let Some(standby) = spec.standby {
        return Err(standby_field_removed(standby));
    }
    let checked = PipelineSpec {
        name: PipelineName::new(spec.name.as_str())?,
        initial: initial_of(spec.initial)?,
        layout: layout_of(spec.hosts, spec.solo)?,
        agents: agents_of(&spec.agents)?,
        location: location_of(spec.location.as_ref().ok_or_else(|| missing("location"))?)?,
        read_location: spec.read_location.as_ref().map(location_of).transpose()?,
        start: spec.start.as_ref().map(start_of).transpose()?.unwrap_or_default(),
        push_interval: spec.push_interval.as_ref().map(|d| time::duration_of("push_interval", d)).transpose()?,
        pull_interval: spec.pull_interval.as_ref().map(|d| time::duration_of("pull_interval", d)).transpose()?,
        retention: spec.retention.as_ref().map(retention_of).transpose()?,
        transfer: spec.transfer.as_ref().map(transfer_of).transpose()?.unwrap_or_default(),
    };
    checked.check()?;
    Ok(checked)
}

fn initial_of(value: i32) -> Result<Initial, Problem> {
    match v1::Initial::try_from(value) {
        Ok(v1::Initial::Unspecified | v1::Initial::Running) => Ok(Initial::Running),
        Ok(v1::Initial::Standby) => Ok(Initial::Standby),
        Err(_) => Err(refuse("initial", value, "is neither running nor standby")),
    }
}

fn layout_of(hosts: u32, solo: bool) -> Result<Layout, Problem> {
    match (hosts, solo) {
        (0, true) => Ok(Layout::Solo),
        (0, false) => {
            Err(Problem::new(Reason::SpecInvalid, "the spec has neither hosts nor solo: true; give one of the two")
                .with("field", "hosts"))
        }
        (hosts, true) => Err(refuse("hosts", hosts, "stands beside solo: true; give one of the two")),
        (hosts, false) => Layout::hosts(hosts),
    }
}

fn agents_of(agents: &[String]) -> Result<AgentAddresses, Problem> {
    match agents {
        [] => Err(missing("agents")),
        [one] if one.contains("{host}") => Ok(AgentAddresses::Template(one.clone())),
        list => match list.iter().find(|address| address.contains("{host}")) {
            Some(template) => {
                Err(refuse("agents", template, "is a template in a list: give one template, or one address a host"))
            }
            None => Ok(AgentAddresses::List(list.to_vec())),
        },
    }
}

/// Reads and checks a location.
pub fn location_of(location: &v1::Location) -> Result<Location, Problem> {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    Location::try_from(RawLocation {
        bucket: location.bucket.clone(),
        prefix: location.prefix.clone(),
        region: given(&location.region),
        endpoint: given(&location.endpoint),
        force_path_style: location.force_path_style,
    })
}

fn start_of(start: &v1::StartPolicy) -> Result<StartPolicy, Problem> {
    use v1::start_policy::From;
    let from = match &start.from {
        None => PullSelector::Latest,
        Some(From::Latest(latest)) => latest_of("start.latest", *latest)?,
        Some(From::Step(step)) => PullSelector::Step(Step::new(*step)?),
        Some(From::Checkpoint(id)) => PullSelector::Checkpoint(id.parse()?),
        Some(From::Time(at)) => PullSelector::Time(time::time_of("start.time", at)?),
    };
    Ok(StartPolicy { from, fail_if_none: start.fail_if_none })
}

fn latest_of(field: &str, latest: bool) -> Result<PullSelector, Problem> {
    if latest {
        Ok(PullSelector::Latest)
    } else {
        Err(refuse(field, latest, "selects nothing: leave it out or set it to true"))
    }
}

/// The selector of a pull; none: the spec's start policy decides.
pub fn pull_selector_of(selector: Option<&v1::start_pull_request::Selector>) -> Result<Option<PullSelector>, Problem> {
    use v1::start_pull_request::Selector;
    Ok(Some(match selector {
        None => return Ok(None),
        Some(Selector::Latest(latest)) => latest_of("latest", *latest)?,
        Some(Selector::Step(step)) => PullSelector::Step(Step::new(*step)?),
        Some(Selector::Checkpoint(id)) => PullSelector::Checkpoint(id.parse()?),
        Some(Selector::Time(at)) => PullSelector::Time(time::time_of("time", at)?),
    }))
}

/// What an activation goes on from; none: exactly the base.
pub fn chosen_of(selector: Option<&v1::activate_request::Selector>) -> Result<Option<Chosen>, Problem> {
    use v1::activate_request::Selector;
    Ok(Some(match selector {
        None => return Ok(None),
        Some(Selector::Step(step)) => Chosen::Step(Step::new(*step)?),
        Some(Selector::Checkpoint(id)) => Chosen::Checkpoint(id.parse()?),
    }))
}

fn retention_of(retention: &v1::Retention) -> Result<Retention, Problem> {
    let min_age = retention.min_age.as_ref().ok_or_else(|| missing("retention.min_age"))?;
    Ok(Retention { min_count: retention.min_count, min_age: time::duration_of("retention.min_age", min_age)? })
}

/// Zero or absent: the default of `Transfer`.
fn transfer_of(options: &v1::TransferOptions) -> Result<Transfer, Problem> {
    let default = Transfer::default();
    let size = |field: &str, value: u64, default: u64| match value {
        0 => Ok(default),
        value if value <= lockstep_protocol::id::MAX_NUMBER => Ok(value),
        value => Err(refuse(field, value, "is above the greatest number allowed")),
    };
    Ok(Transfer {
        concurrency: if options.concurrency == 0 { default.concurrency } else { options.concurrency },
        part_size: size("transfer.part_size", options.part_size, default.part_size)?,
        memory: size("transfer.memory", options.memory, default.memory)?,
        bandwidth_limit: match size("transfer.bandwidth_limit", options.bandwidth_limit, 0)? {
            0 => None,
            limit => Some(limit),
        },
    })
}

/// As messages carry it.
pub fn location(location: &Location) -> v1::Location {
    v1::Location {
        bucket: location.bucket().to_owned(),
        prefix: location.prefix().to_owned(),
        region: location.region().unwrap_or_default().to_owned(),
        endpoint: location.endpoint().unwrap_or_default().to_owned(),
        force_path_style: location.force_path_style(),
    }
}

/// As messages carry it.
pub fn transfer(transfer: &Transfer) -> v1::TransferOptions {
    v1::TransferOptions {
        concurrency: transfer.concurrency,
        part_size: transfer.part_size,
        memory: transfer.memory,
        bandwidth_limit: transfer.bandwidth_limit.unwrap_or(0),
    }
}

/// As messages carry it; [`spec_of`] reads it back.
pub fn spec(spec: &PipelineSpec) -> v1::PipelineSpec {
    use v1::start_policy::From;
    v1::PipelineSpec {
        name: spec.name.to_string(),
        initial: match spec.initial {
            Initial::Running => v1::Initial::Running,
            Initial::Standby => v1::Initial::Standby,
        }
        .into(),
        hosts: spec.layout.n_hosts(),
        solo: spec.layout == Layout::Solo,
        agents: match &spec.agents {
            AgentAddresses::Template(template) => vec![template.clone()],
            AgentAddresses::List(list) => list.clone(),
        },
        location: Some(location(&spec.location)),
        read_location: spec.read_location.as_ref().map(location),
        start: Some(v1::StartPolicy {
            from: Some(match spec.start.from {
                PullSelector::Latest => From::Latest(true),
                PullSelector::Step(step) => From::Step(step.get()),
                PullSelector::Checkpoint(id) => From::Checkpoint(id.to_string()),
                PullSelector::Time(at) => From::Time(time::timestamp(at)),
            }),
            fail_if_none: spec.start.fail_if_none,
        }),
        push_interval: spec.push_interval.map(time::duration),
        pull_interval: spec.pull_interval.map(time::duration),
        retention: spec
            .retention
            .map(|r| v1::Retention { min_count: r.min_count, min_age: Some(time::duration(r.min_age)) }),
        transfer: Some(transfer(&spec.transfer)),
        standby: None,
    }
}

/// As messages carry it. While a push is active its end, and so the next time, is not known.
pub fn push_schedule(schedule: &PushSchedule, push_active: bool) -> v1::PushSchedule {
    v1::PushSchedule {
        next_time: (!push_active).then(|| time::timestamp(schedule.due_at)),
        failures: schedule.failures,
        problem: schedule.problem.as_ref().map(super::status::problem),
    }
}

/// What of a spec this version stores without acting on it: nothing.
pub const fn warnings(_: &PipelineSpec) -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    pub(in crate::convert) fn orders() -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: "orders".to_owned(),
            hosts: 3,
            agents: vec!["http://orders-{host}.orders:7402".to_owned()],
            location: Some(v1::Location {
                bucket: "acme-ckpt".to_owned(),
                prefix: "orders".to_owned(),
                region: "eu-west-1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::PipelineSpec)) -> Problem {
        let mut spec = orders();
        change(&mut spec);
        spec_of(Some(&spec)).expect_err("the spec is not valid")
    }

    #[test]
    fn a_small_spec_gets_the_documented_defaults() {
        let spec = spec_of(Some(&orders())).unwrap();
        assert_eq!(spec.layout, Layout::hosts(3).unwrap());
        assert_eq!(spec.initial, Initial::Running);
        assert_eq!(spec.start, StartPolicy { from: PullSelector::Latest, fail_if_none: false });
        assert_eq!(spec.transfer, Transfer::default());
        assert_eq!((spec.push_interval, spec.pull_interval, spec.retention), (None, None, None));
        assert_eq!(spec.agents.of(2), "http://orders-2.orders:7402");
        assert_eq!(warnings(&spec), Vec::<String>::new());
    }

    #[test]
    fn a_full_spec_comes_back_as_it_went() {
        let full = v1::PipelineSpec {
            initial: v1::Initial::Running.into(),
            hosts: 2,
            agents: vec!["http://a:7402".to_owned(), "https://b:7402".to_owned()],
            read_location: Some(v1::Location {
                bucket: "acme-seed".to_owned(),
                endpoint: "http://127.0.0.1:9000".to_owned(),
                force_path_style: true,
                ..Default::default()
            }),
            start: Some(v1::StartPolicy {
                from: Some(v1::start_policy::From::Time(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 })),
                fail_if_none: true,
            }),
            push_interval: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
            pull_interval: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
            retention: Some(v1::Retention {
                min_count: 10,
                min_age: Some(prost_types::Duration { seconds: 2_592_000, nanos: 0 }),
            }),
            transfer: Some(v1::TransferOptions {
                concurrency: 8,
                part_size: 8 << 20,
                memory: 32 << 20,
                bandwidth_limit: 1 << 20,
            }),
            ..orders()
        };
        let domain = spec_of(Some(&full)).unwrap();
        assert_eq!(spec(&domain), full);
        assert_eq!(domain.push_interval, Some(Duration::from_secs(120)));
        assert!(warnings(&domain).is_empty(), "every field is obeyed");
    }

    #[test]
    fn the_old_standby_flag_is_refused_whatever_its_value() {
        for value in [true, false] {
            let problem = refused(|spec| spec.standby = Some(value));
            assert_eq!(problem.reason, Reason::StandbyFieldRemoved);
            assert_eq!(problem.metadata["value"], value.to_string());
            assert!(problem.message.contains("initial: standby"), "{problem}");
        }
    }

    #[test]
    fn each_wrong_field_is_refused_by_name() {
        type Case = (&'static str, fn(&mut v1::PipelineSpec));
        let cases: [Case; 22] = [
            ("name", |s| s.name = "Orders!".to_owned()),
            ("name", |s| s.name = String::new()),
            ("initial", |s| s.initial = 7),
            ("hosts", |s| s.hosts = 0),
            ("hosts", |s| s.solo = true),
            ("agents", |s| s.agents.clear()),
            ("agents", |s| s.agents = vec!["http://a:1".to_owned(), "http://b:1".to_owned()]),
            ("agents", |s| s.agents = vec!["http://a-{host}:1".to_owned(); 3]),
            ("agents", |s| s.agents = vec!["a:1".to_owned(); 3]),
            ("location", |s| s.location = None),
            ("bucket", |s| s.location.as_mut().unwrap().bucket = "acme/ckpt".to_owned()),
            ("prefix", |s| s.location.as_mut().unwrap().prefix = "a/../b".to_owned()),
            ("endpoint", |s| s.location.as_mut().unwrap().endpoint = "acme.example".to_owned()),
            ("region", |s| s.location.as_mut().unwrap().region = "eu west".to_owned()),
            ("read_location", |s| s.read_location.clone_from(&s.location)),
            ("start.latest", |s| {
                s.start =
                    Some(v1::StartPolicy { from: Some(v1::start_policy::From::Latest(false)), fail_if_none: false });
            }),
            ("step", |s| {
                s.start =
                    Some(v1::StartPolicy { from: Some(v1::start_policy::From::Step(u64::MAX)), fail_if_none: false });
            }),
            ("push_interval", |s| s.push_interval = Some(prost_types::Duration { seconds: 0, nanos: 5 })),
            ("pull_interval", |s| s.pull_interval = Some(prost_types::Duration { seconds: -5, nanos: 0 })),
            ("retention.min_age", |s| s.retention = Some(v1::Retention { min_count: 1, min_age: None })),
            ("transfer.concurrency", |s| {
                s.transfer = Some(v1::TransferOptions { concurrency: 257, ..Default::default() });
            }),
            ("transfer.part_size", |s| {
                s.transfer = Some(v1::TransferOptions { part_size: u64::MAX, ..Default::default() });
            }),
        ];
        for (field, change) in cases {
            let problem = refused(change);
            assert_eq!(problem.reason, Reason::SpecInvalid, "{problem}");
            assert_eq!(problem.metadata["field"], field, "{problem}");
        }
        assert_eq!(spec_of(None).unwrap_err().metadata["field"], "spec");
        assert_eq!(refused(|s| s.hosts = 5000).reason, Reason::HostInfoInvalid);
    }
}
