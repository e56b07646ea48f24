//! What an agent checks before it touches S3 or its disk (protocol.md, "Agent's rules"). Each mismatch has its own reason and shows both values.

use serde::{Deserialize, Serialize};

use crate::{
    host::Slot,
    id::{Attempt, Generation, Incarnation, PipelineId, PipelineName, RoundId, RoundNo, Term},
    location::Location,
    planted::{self, Bug},
    problem::{Problem, Reason},
};

/// What `--pipeline` was: a name or a UUID. Orders carry both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PipelineSelector {
    /// Compared with the order's name.
    Name(PipelineName),
    /// Compared with the order's id.
    Id(PipelineId),
}

impl std::str::FromStr for PipelineSelector {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => PipelineName::new(text).map(Self::Name),
        }
    }
}

impl std::fmt::Display for PipelineSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// What an agent was started with.
#[derive(Clone, Debug)]
pub struct AgentIdentity {
    /// Whose host it is.
    pub pipeline: PipelineSelector,
    /// Which host.
    pub slot: Slot,
    /// Drawn at process start.
    pub incarnation: Incarnation,
    /// Locations it may be sent to, endpoints filled in with the process' default.
    pub allowed: Vec<Location>,
}

/// Stands on every order; every call but Describe, ListCheckpoints and Sync carries it and passes the same checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderHeader {
    /// Immutable id.
    pub pipeline: PipelineId,
    /// Present name.
    pub pipeline_name: PipelineName,
    /// The host that is meant.
    pub slot: Slot,
    /// The agent process that is meant.
    pub incarnation: Incarnation,
    /// Of the pipeline's own location; 0 before it owns one.
    pub generation: Generation,
    /// Of the round.
    pub round_no: RoundNo,
    /// Of the replica that drives it.
    pub term: Term,
    /// The round.
    pub round: RoundId,
    /// The try.
    pub attempt: Attempt,
    /// The pipeline's own location, also when another one is the source.
    pub own_location: Location,
}

impl OrderHeader {
    /// What the agent persists of it.
    pub const fn mark(&self) -> OrderMark {
        OrderMark { generation: self.generation, round_no: self.round_no, term: self.term }
    }
}

/// Highest order an agent has accepted, compared in this order: generation, `round_no`, term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OrderMark {
    /// Of the pipeline's own location.
    pub generation: Generation,
    /// Of the round.
    pub round_no: RoundNo,
    /// Of the replica that drove it.
    pub term: Term,
}

/// Compares the order with what the agent was started with. `touches` are the locations that the order would make it use; they must
/// carry their endpoints already ([`Location::or_endpoint`]).
pub fn check_identity(header: &OrderHeader, identity: &AgentIdentity, touches: &[&Location]) -> Result<(), Problem> {
    let pipeline_fits = match &identity.pipeline {
        PipelineSelector::Name(name) => *name == header.pipeline_name,
        PipelineSelector::Id(id) => *id == header.pipeline,
    };
    if !pipeline_fits {
        return Err(Problem::new(
            Reason::PipelineMismatch,
            format!(
                "the order is for pipeline {} ({}), this agent runs for {}: check --pipeline of the pod or agents of the spec",
                header.pipeline_name, header.pipeline, identity.pipeline
            ),
        )
        .with("ordered_name", &header.pipeline_name)
        .with("ordered_id", header.pipeline)
        .with("own", &identity.pipeline));
    }
    if header.slot != identity.slot {
        let show =
            |slot: Slot| slot.host_info().map_or("solo".to_owned(), |i| format!("{}/{}", i.host_idx(), i.n_hosts()));
        return Err(Problem::new(
            Reason::HostInfoMismatch,
            format!(
                "the order is for {}, this agent runs as {}: check --host-idx and --n-hosts of the pod or agents of the spec",
                header.slot, identity.slot
            ),
        )
        .with("ordered", show(header.slot))
        .with("own", show(identity.slot)));
    }
    if header.incarnation != identity.incarnation && !planted::is(Bug::IncarnationNotCompared) {
        return Err(Problem::new(
            Reason::IncarnationMismatch,
            format!(
                "the order is for incarnation {}, this agent is {}: it restarted, describe it again",
                header.incarnation, identity.incarnation
            ),
        )
        .with("ordered", header.incarnation)
        .with("own", identity.incarnation));
    }
    for location in touches {
        if !identity.allowed.iter().any(|allowed| allowed.same_place(location)) {
            let own = identity.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Problem::new(
                Reason::LocationNotAllowed,
                format!(
                    "the order names {location}, this agent allows [{own}]: add --allow-location or correct the spec"
                ),
            )
            .with("ordered", location)
            .with("allowed", own));
        }
    }
    Ok(())
}

/// Refuses an order that is lower than the highest persisted one.
pub fn check_mark(header: &OrderHeader, highest: Option<OrderMark>) -> Result<(), Problem> {
    let Some(highest) = highest else { return Ok(()) };
    let ordered = header.mark();
    if ordered >= highest || planted::is(Bug::OrderOfRoundsNotCompared) {
        return Ok(());
    }
    let (reason, what, low, high) = if ordered.generation < highest.generation {
        (Reason::StaleGeneration, "generation", ordered.generation.get(), highest.generation.get())
    } else if ordered.round_no < highest.round_no {
        (Reason::StaleRound, "round_no", ordered.round_no.get(), highest.round_no.get())
    } else {
        (Reason::StaleTerm, "term", ordered.term.get(), highest.term.get())
    };
    Err(Problem::new(reason, format!("the order has {what} {low}, this agent has accepted {what} {high}"))
        .with("ordered", low)
        .with("own", high)
        .with("round", header.round))
}

/// The same for a word about a pull that has ended. A push that was ordered since doesn't make it stale: it changes nothing about what an engine starts from.
/// So the round is compared with that of the newest install or word only, the generation with that of any order.
pub fn check_ready(
    header: &OrderHeader,
    highest: Option<OrderMark>,
    installed: Option<OrderMark>,
) -> Result<(), Problem> {
    check_mark(header, highest.filter(|highest| highest.generation > header.generation))?;
    check_mark(header, installed)
}

/// The transfer an agent knows of, running or finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownTransfer {
    /// Its round.
    pub round: RoundId,
    /// Its try.
    pub attempt: Attempt,
    /// Whether it still runs, its clean-up included.
    pub running: bool,
}

/// What to do with a transfer order that passed [`check_identity`] and [`check_mark`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Persist the mark, then start it.
    Start,
    /// The same (round, attempt): answer with the status of the one that is known.
    Known,
    /// Persist the mark, cancel what runs, answer this problem until it has stopped and its staging is gone.
    CancelRunning(Problem),
    /// Refused.
    Refuse(Problem),
}

/// One transfer at a time. The same (round, attempt) again: the running one's status. Same round and higher attempt, or a later round: the running one
/// is cancelled first. Lower attempt: `STALE_ATTEMPT`.
pub fn admit(header: &OrderHeader, known: Option<KnownTransfer>) -> Admission {
    let Some(known) = known else { return Admission::Start };
    if known.round == header.round {
        if known.attempt == header.attempt {
            return Admission::Known;
        }
        if header.attempt < known.attempt {
            return Admission::Refuse(
                Problem::new(
                    Reason::StaleAttempt,
                    format!(
                        "the order is attempt {} of round {}, this agent has attempt {}",
                        header.attempt, header.round, known.attempt
                    ),
                )
                .with("ordered", header.attempt)
                .with("own", known.attempt)
                .with("round", header.round),
            );
        }
    }
    if known.running {
        return Admission::CancelRunning(
            Problem::new(
                Reason::TransferInProgress,
                format!(
                    "round {} attempt {} still runs here and is being stopped; order again",
                    known.round, known.attempt
                ),
            )
            .with("round", known.round)
            .with("attempt", known.attempt),
        );
    }
    Admission::Start
}
