//! The pipeline spec (interfaces.md): parsed strictly, so that a typo is an error and never a default.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    host::Layout,
    id::{PipelineName, RoundId, Step},
    location::{Location, RawLocation},
    problem::{Problem, Reason},
    unit,
};

/// How a pipeline begins its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Initial {
    /// Owns its location.
    #[default]
    Running,
    /// Follows its location, owns nothing until it is activated.
    Standby,
}

/// Where the agents are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentAddresses {
    /// One text with `{host}` in the place of the host's index.
    Template(String),
    /// One a host, by index.
    List(Vec<String>),
}

impl AgentAddresses {
    /// Address of one host.
    pub fn of(&self, host_idx: u32) -> String {
        match self {
            Self::Template(template) => template.replace("{host}", &host_idx.to_string()),
            // The list was checked to have one a host.
            Self::List(list) => usize::try_from(host_idx).ok().and_then(|i| list.get(i)).cloned().unwrap_or_default(),
        }
    }
}

/// Which checkpoint a pull wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PullSelector {
    /// The newest that counts.
    #[default]
    Latest,
    /// The newest commit of this step.
    Step(Step),
    /// The checkpoint that this push round made.
    Checkpoint(RoundId),
    /// The newest commit made at or before this time.
    Time(DateTime<Utc>),
}

impl std::fmt::Display for PullSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Step(step) => write!(f, "step {step}"),
            Self::Checkpoint(id) => write!(f, "checkpoint {id}"),
            Self::Time(time) => write!(f, "time {}", time.to_rfc3339()),
        }
    }
}

/// What an engine start pulls when nobody says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StartPolicy {
    /// Which checkpoint.
    pub from: PullSelector,
    /// Fail where otherwise the engine would start fresh.
    pub fail_if_none: bool,
}

/// How long checkpoints are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The newest this many that are not damaged are kept.
    pub min_count: u32,
    /// Younger ones are kept.
    pub min_age: Duration,
}

/// Limits of an agent's transfers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Requests in flight, 1 to 256; yields to memory.
    pub concurrency: u32,
    /// Bytes of one multipart part or ranged read, 5 MiB to 1 GiB.
    pub part_size: u64,
    /// Bytes of buffers, at least `part_size`.
    pub memory: u64,
    /// Bytes a second.
    pub bandwidth_limit: Option<u64>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self { concurrency: 16, part_size: 16 << 20, memory: 64 << 20, bandwidth_limit: None }
    }
}

/// A checked pipeline spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PipelineSpec {
    /// May change.
    pub name: PipelineName,
    /// Running or standby.
    pub initial: Initial,
    /// Solo or a number of hosts.
    pub layout: Layout,
    /// One agent a host.
    pub agents: AgentAddresses,
    /// The own location.
    pub location: Location,
    /// Read-only fallback; never written.
    pub read_location: Option<Location>,
    /// Default of pulls.
    pub start: StartPolicy,
    /// From the end of one push to the start of the next.
    pub push_interval: Option<Duration>,
    /// Of a standby.
    pub pull_interval: Option<Duration>,
    /// What is kept.
    pub retention: Option<Retention>,
    /// Limits.
    pub transfer: Transfer,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawAgents {
    One(String),
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStart {
    #[serde(default)]
    from: Option<Value>,
    #[serde(default)]
    fail_if_none: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRetention {
    min_count: u32,
    min_age: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTransfer {
    concurrency: Option<u32>,
    part_size: Option<String>,
    memory: Option<String>,
    bandwidth_limit: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpec {
    name: String,
    initial: Option<String>,
    hosts: Option<u32>,
    solo: Option<bool>,
    agents: RawAgents,
    location: RawLocation,
    read_location: Option<RawLocation>,
    start: Option<RawStart>,
    push_interval: Option<String>,
    pull_interval: Option<String>,
    retention: Option<RawRetention>,
    transfer: Option<RawTransfer>,
}

fn refuse(field: &str, value: impl std::fmt::Display, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value}: {why}")).with("field", field).with("value", value)
}

/// The answer to the old `standby` flag, whatever its value.
pub fn standby_field_removed(value: impl std::fmt::Display) -> Problem {
    Problem::new(
        Reason::StandbyFieldRemoved,
        format!(
            "the spec has standby: {value}; this flag was removed: leave it out, and to start the pipeline as a standby write \
             initial: standby instead"
        ),
    )
    .with("field", "standby")
    .with("value", value)
}

impl PipelineSpec {
    /// Parses a spec as YAML or JSON gave it.
    pub fn from_value(value: Value) -> Result<Self, Problem> {
        if let Some(standby) = value.get("standby") {
            return Err(standby_field_removed(standby));
        }
        let raw: RawSpec = serde_json::from_value(value)
            .map_err(|e| Problem::new(Reason::SpecInvalid, format!("the spec is not valid: {e}")).with("why", e))?;
        let layout = layout(raw.hosts, raw.solo)?;
        let spec = Self {
            name: PipelineName::new(raw.name)?,
            initial: match raw.initial.as_deref() {
                None | Some("running") => Initial::Running,
                Some("standby") => Initial::Standby,
                Some(other) => return Err(refuse("initial", other, "is neither running nor standby")),
            },
            layout,
            agents: match raw.agents {
                RawAgents::One(one) => AgentAddresses::Template(one),
                RawAgents::List(list) => AgentAddresses::List(list),
            },
            location: Location::try_from(raw.location)?,
            read_location: raw.read_location.map(Location::try_from).transpose()?,
            start: raw.start.map(start).transpose()?.unwrap_or_default(),
            push_interval: raw.push_interval.map(|text| unit::duration("push_interval", &text)).transpose()?,
            pull_interval: raw.pull_interval.map(|text| unit::duration("pull_interval", &text)).transpose()?,
            retention: raw
                .retention
                .map(|raw| {
                    let min_age = unit::duration("retention.min_age", &raw.min_age)?;
                    Ok::<_, Problem>(Retention { min_count: raw.min_count, min_age })
                })
                .transpose()?,
            transfer: raw.transfer.map(transfer).transpose()?.unwrap_or_default(),
        };
        spec.check()?;
        Ok(spec)
    }

    /// Checks what fields say of each other; every constructor ends here.
    pub fn check(&self) -> Result<(), Problem> {
        self.check_agents()?;
        if let Some(read) = &self.read_location
            && read.overlaps(&self.location)
        {
            return Err(Problem::new(
                Reason::SpecInvalid,
                format!(
                    "read_location {read} and location {} are the same place or one lies in the other: choose another",
                    self.location
                ),
            )
            .with("field", "read_location")
            .with("location", &self.location)
            .with("read_location", read));
        }
        for (field, interval) in [("push_interval", self.push_interval), ("pull_interval", self.pull_interval)] {
            if interval.is_some_and(|interval| interval < Duration::from_secs(1)) {
                return Err(refuse(
                    field,
                    unit::show_duration(interval.unwrap_or_default()),
                    "is below the least allowed, 1s",
                ));
            }
        }
        let t = &self.transfer;
        if !(1..=256).contains(&t.concurrency) {
            return Err(refuse("transfer.concurrency", t.concurrency, "is not between 1 and 256"));
        }
        if !(5 << 20..=1 << 30).contains(&t.part_size) {
            return Err(refuse("transfer.part_size", unit::show_size(t.part_size), "is not between 5MiB and 1GiB"));
        }
        if t.memory < t.part_size {
            return Err(refuse("transfer.memory", unit::show_size(t.memory), "is below transfer.part_size"));
        }
        if t.bandwidth_limit == Some(0) {
            return Err(refuse("transfer.bandwidth_limit", 0, "would send nothing: leave it out for no limit"));
        }
        Ok(())
    }

    fn check_agents(&self) -> Result<(), Problem> {
        let hosts = self.layout.len();
        let addresses: Vec<&String> = match &self.agents {
            AgentAddresses::Template(template) => {
                if hosts > 1 && !template.contains("{host}") {
                    return Err(refuse("agents", template, "has no {host} in it, so all hosts would have one address"));
                }
                vec![template]
            }
            AgentAddresses::List(list) => {
                if list.len() != hosts as usize {
                    return Err(Problem::new(
                        Reason::SpecInvalid,
                        format!(
                            "agents has {} addresses, the layout has {}: give one a host, by host_idx",
                            list.len(),
                            self.layout
                        ),
                    )
                    .with("field", "agents")
                    .with("addresses", list.len())
                    .with("hosts", hosts));
                }
                list.iter().collect()
            }
        };
        for address in addresses {
            let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
            let good = rest.is_some_and(|rest| {
                let rest = rest.trim_end_matches('/');
                !rest.is_empty()
                    && !rest.contains(['/', '@', ' ', '?', '#'])
                    && rest.rsplit_once(':').is_some_and(|(host, port)| {
                        !host.is_empty() && (port.contains("{host}") || port.parse::<u16>().is_ok_and(|port| port > 0))
                    })
            });
            if !good {
                return Err(refuse("agents", address, "is not http://host:port"));
            }
        }
        Ok(())
    }

    /// The same spec in the shape it is written in; [`PipelineSpec::from_value`] reads it back.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "name": self.name,
            "initial": match self.initial { Initial::Running => "running", Initial::Standby => "standby" },
            "agents": match &self.agents {
                AgentAddresses::Template(template) => json!(template),
                AgentAddresses::List(list) => json!(list),
            },
            "location": RawLocation::from(self.location.clone()),
            "read_location": self.read_location.clone().map(RawLocation::from),
            "start": {
                "from": match self.start.from {
                    PullSelector::Latest => json!("latest"),
                    PullSelector::Step(step) => json!({"step": step}),
                    PullSelector::Checkpoint(id) => json!({"checkpoint": id}),
                    PullSelector::Time(time) => json!({"time": time}),
                },
                "fail_if_none": self.start.fail_if_none,
            },
            "push_interval": self.push_interval.map(unit::show_duration),
            "pull_interval": self.pull_interval.map(unit::show_duration),
            "retention": self.retention.map(|r| json!({"min_count": r.min_count, "min_age": unit::show_duration(r.min_age)})),
            "transfer": {
                "concurrency": self.transfer.concurrency,
                "part_size": unit::show_size(self.transfer.part_size),
                "memory": unit::show_size(self.transfer.memory),
                "bandwidth_limit": self.transfer.bandwidth_limit.map(unit::show_size),
            },
        });
        match self.layout {
            Layout::Solo => value["solo"] = json!(true),
            Layout::Hosts(count) => value["hosts"] = json!(u32::from(count)),
        }
        value
    }
}

fn layout(hosts: Option<u32>, solo: Option<bool>) -> Result<Layout, Problem> {
    match (hosts, solo) {
        (Some(hosts), None | Some(false)) => Layout::hosts(hosts),
        (None, Some(true)) => Ok(Layout::Solo),
        (Some(hosts), Some(true)) => Err(refuse("hosts", hosts, "stands beside solo: true; give one of the two")),
        (None, _) => {
            Err(Problem::new(Reason::SpecInvalid, "the spec has neither hosts nor solo: true; give one of the two")
                .with("field", "hosts"))
        }
    }
}

fn start(raw: RawStart) -> Result<StartPolicy, Problem> {
    let from = match raw.from {
        None => PullSelector::Latest,
        Some(Value::String(text)) if text == "latest" => PullSelector::Latest,
        Some(Value::Object(map)) if map.len() == 1 => {
            let bad = |key: &str, value: &Value, why: &str| refuse(&format!("start.from.{key}"), value, why);
            match map.iter().next() {
                Some((key, value)) if key == "step" => {
                    let step = value.as_u64().ok_or_else(|| bad(key, value, "is not a whole number"))?;
                    PullSelector::Step(Step::new(step)?)
                }
                Some((key, Value::String(text))) if key == "checkpoint" => PullSelector::Checkpoint(text.parse()?),
                Some((key, value @ Value::String(text))) if key == "time" => PullSelector::Time(
                    DateTime::parse_from_rfc3339(text)
                        .map_err(|_| bad(key, value, "is no RFC 3339 time such as 2026-11-23T04:00:00Z"))?
                        .with_timezone(&Utc),
                ),
                Some((key, value)) => {
                    return Err(bad(
                        key,
                        value,
                        "is not known; write latest, {step: N}, {checkpoint: UUID} or {time: T}",
                    ));
                }
                None => PullSelector::Latest,
            }
        }
        Some(other) => {
            return Err(refuse("start.from", other, "is none of latest, {step: N}, {checkpoint: UUID} and {time: T}"));
        }
    };
    Ok(StartPolicy { from, fail_if_none: raw.fail_if_none })
}

fn transfer(raw: RawTransfer) -> Result<Transfer, Problem> {
    let default = Transfer::default();
    Ok(Transfer {
        concurrency: raw.concurrency.unwrap_or(default.concurrency),
        part_size: raw
            .part_size
            .map(|t| unit::size("transfer.part_size", &t))
            .transpose()?
            .unwrap_or(default.part_size),
        memory: raw.memory.map(|t| unit::size("transfer.memory", &t)).transpose()?.unwrap_or(default.memory),
        bandwidth_limit: raw.bandwidth_limit.map(|t| unit::size("transfer.bandwidth_limit", &t)).transpose()?,
    })
}
