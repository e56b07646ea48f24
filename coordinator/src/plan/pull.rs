//! The one source that serves all hosts of a pull (protocol.md, "Pull" 1 and 2).
//!
//! In this order: the hosts' own local checkpoints, the location, the read location, then a fresh start or an error. Unknown is never absent: a
//! lookup that could not be completed ends the search with its cause, whatever the policy says about a missing checkpoint (scenarios 9, 10).

use lockstep_bucket::Checkpoint;
use lockstep_protocol::{
    fence::Successor,
    id::{Fingerprint, Generation},
    location::Location,
    problem::{Problem, Reason},
    round::{Event, FoundHost, Kind, PullRequest, Resolved, Round, Source},
    selection::{Cut, LocalCheckpoint, Wanted, common_cut},
    spec::PullSelector,
};

use super::{
    PlanContext, Right,
    hosts::{FoundAgent, ask_all},
    place::Place,
};

/// What a pull would restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullPlan {
    /// The source, for all hosts.
    pub resolved: Resolved,
    /// Every host's agent, by host index.
    pub agents: Vec<FoundAgent>,
    /// Each host's share, by host index.
    pub hosts: Vec<FoundHost>,
    /// A fresh start that removes local checkpoints first.
    pub discard: bool,
}

impl PullPlan {
    /// What the round makes of it.
    pub fn into_event(self) -> Event {
        Event::Resolved { resolved: self.resolved, hosts: self.hosts, discard: self.discard }
    }
}

/// Chooses the source. No order is sent, nothing is written but the base of a fence in the own location where the context permits it.
pub async fn resolve_pull(
    context: &PlanContext,
    round: &Round,
    read_location: Option<&Location>,
) -> Result<PullPlan, Problem> {
    let Kind::Pull(pull) = &round.kind else {
        return Err(Problem::new(Reason::SpecInvalid, format!("round {} is no pull", round.id)).with("round", round.id));
    };
    let agents = ask_all(context, round).await?;
    let search = Search { context, round, request: &pull.request, agents: &agents, read_location };
    let chosen = search.run().await?;
    let plan = chosen.into_plan(agents);
    check_space(&plan)?;
    Ok(plan)
}

struct Search<'a> {
    context: &'a PlanContext,
    round: &'a Round,
    request: &'a PullRequest,
    agents: &'a [FoundAgent],
    read_location: Option<&'a Location>,
}

enum Chosen {
    Local(Cut, Option<(Checkpoint, Location)>),
    Remote(Source, Checkpoint, Location),
    Fresh { discard: bool },
}

impl Search<'_> {
    async fn run(&self) -> Result<Chosen, Problem> {
        let own = Place::open(self.context, &self.round.location, self.context.right).await?;
        if let Some(cut) = self.local_cut()
            && self.local_satisfies(&own).await?
        {
            let commit = self.commit_of(&own, &cut).await;
            return Ok(Chosen::Local(cut, commit));
        }
        if let Some(found) = own.find(&self.request.selector).await? {
            return self.take(Source::Location, found, &self.round.location);
        }
        if let Some(location) = self.read_location {
            let place = Place::open(self.context, location, Right::Read).await?;
            if let Some(found) = place.find(&self.request.selector).await? {
                return self.take(Source::ReadLocation, found, location);
            }
        }
        self.nothing_found()
    }

    fn uses_local(&self) -> bool {
        !self.request.standby && !self.request.discard_local
    }

    /// A cut on the hosts' own disks that the selector may mean without a look at any commit.
    fn local_cut(&self) -> Option<Cut> {
        let wanted = match self.request.selector {
            PullSelector::Latest => Wanted::Newest,
            PullSelector::Step(step) => Wanted::Step(step),
            // These name a commit: which local checkpoints it is made of, only the commit tells.
            PullSelector::Checkpoint(_) | PullSelector::Time(_) => return None,
        };
        self.uses_local().then(|| common_cut(&self.disks(), wanted).ok()).flatten()
    }

    fn disks(&self) -> Vec<Vec<LocalCheckpoint>> {
        self.agents.iter().map(|agent| agent.checkpoints.clone()).collect()
    }

    /// Local is `latest` only while the location's highest generation is ours: else somebody may have gone on from there.
    async fn local_satisfies(&self, own: &Place) -> Result<bool, Problem> {
        if self.request.selector != PullSelector::Latest {
            return Ok(true);
        }
        let generation = self.round.generation;
        if generation == Generation::NONE {
            return Ok(false);
        }
        let ours = own.fence(generation).await?.is_some_and(|fence| fence.pipeline == self.round.pipeline);
        Ok(ours && matches!(own.successor(generation).await?, Successor::Absent))
    }

    /// The commit that was made of this very cut, so that a host that loses its disk before the install can pull its part. Best effort: the
    /// cut is complete without it.
    async fn commit_of(&self, own: &Place, cut: &Cut) -> Option<(Checkpoint, Location)> {
        match own.impatient().find(&PullSelector::Step(cut.step)).await {
            Ok(found) => found
                .filter(|found| is_made_of(found, cut) && !found.damaged)
                .map(|found| (found, self.round.location.clone())),
            Err(problem) => {
                tracing::info!(
                    round.id = %self.round.id, reason = %problem.reason,
                    "no commit is known for the local checkpoints of step {}: {}", cut.step, problem.message
                );
                None
            }
        }
    }

    /// A commit was found: refused early where it can't work, and served from the hosts' own disks where every host has exactly its part.
    fn take(&self, source: Source, found: Checkpoint, location: &Location) -> Result<Chosen, Problem> {
        if found.damaged {
            let what = "is marked damaged: choose another one or pull latest".to_owned();
            return Err(self.about(Reason::CheckpointDamaged, &found, location, what));
        }
        let document = &found.document;
        if document.layout != self.round.layout {
            return Err(self
                .about(
                    Reason::LayoutMismatch,
                    &found,
                    location,
                    format!(
                        "was made by {}, pipeline {} has {}: state is partitioned by host and can't be restored to another layout",
                        document.layout, self.round.pipeline_name, self.round.layout
                    ),
                )
                .with("checkpoint_n_hosts", document.layout.n_hosts())
                .with("n_hosts", self.round.layout.n_hosts()));
        }
        if !self.request.allow_fingerprint
            && let (Some(stored), Some((host_idx, own))) = (document.fingerprint, self.known_fingerprint())
            && stored != own
        {
            return Err(self
                .about(
                    Reason::FingerprintMismatch,
                    &found,
                    location,
                    format!(
                        "was made by a program with fingerprint {stored}, the newest local checkpoint of host {host_idx} by one with {own}: \
                         allow it explicitly if the programs are compatible"
                    ),
                )
                .with("checkpoint_fingerprint", stored)
                .with("fingerprint", own)
                .with("host_idx", host_idx));
        }
        if self.uses_local()
            && let Some(cut) = self.local_copy(&found)
        {
            return Ok(Chosen::Local(cut, Some((found, location.clone()))));
        }
        Ok(Chosen::Remote(source, found, location.clone()))
    }

    /// The program of this pipeline is known by what it wrote last; after all disks are lost it isn't, and any program is accepted.
    fn known_fingerprint(&self) -> Option<(u32, Fingerprint)> {
        self.agents
            .iter()
            .filter_map(|agent| Some((agent.checkpoints.iter().map(|c| c.step).max()?, agent)))
            .max_by_key(|(step, _)| *step)
            .and_then(|(_, agent)| Some((agent.host.slot.idx(), agent.newest_fingerprint()?)))
    }

    /// Every host's own copy of a commit's part, if every host has it.
    fn local_copy(&self, found: &Checkpoint) -> Option<Cut> {
        let document = &found.document;
        let checkpoints = self.agents.iter().zip(&document.parts).map(|(agent, part)| {
            agent
                .checkpoints
                .iter()
                .find(|local| {
                    local.id == part.local_checkpoint
                        && local.step == document.step
                        && local.fingerprint == document.fingerprint
                })
                .cloned()
        });
        let checkpoints = checkpoints.collect::<Option<Vec<_>>>()?;
        Some(Cut { step: document.step, fingerprint: document.fingerprint, checkpoints })
    }

    fn about(&self, reason: Reason, found: &Checkpoint, location: &Location, what: String) -> Problem {
        let document = &found.document;
        Problem::new(reason, format!("checkpoint {} of step {} in {location} {what}", document.round, document.step))
            .with("checkpoint", document.round)
            .with("step", document.step)
            .with("location", location)
            .with("pipeline", &self.round.pipeline_name)
    }

    /// Proven absent in every place.
    fn nothing_found(&self) -> Result<Chosen, Problem> {
        let disks = self.disks();
        let holds_local = disks.iter().any(|disk| !disk.is_empty());
        if !self.request.may_start_fresh() {
            return Err(self.not_found());
        }
        if holds_local && !self.request.discard_local {
            // A fresh start beside local checkpoints would abandon a history that somebody may still want.
            let mut problem = match common_cut(&disks, self.wanted()) {
                Err(problem) => problem,
                Ok(cut) => Problem::new(
                    Reason::NoCommonCheckpoint,
                    format!(
                        "step {} is on every host's disk, but the highest generation of {} is not this pipeline's, so it can't be taken \
                         for the latest",
                        cut.step, self.round.location
                    ),
                )
                .with("step", cut.step),
            };
            problem.message = format!(
                "no source has {}, and a fresh start would abandon local checkpoints (say so with discard_local): {}",
                self.request.selector, problem.message
            );
            return Err(problem.with("selector", self.request.selector));
        }
        Ok(Chosen::Fresh { discard: holds_local })
    }

    const fn wanted(&self) -> Wanted {
        match self.request.selector {
            PullSelector::Step(step) => Wanted::Step(step),
            PullSelector::Latest | PullSelector::Checkpoint(_) | PullSelector::Time(_) => Wanted::Newest,
        }
    }

    fn not_found(&self) -> Problem {
        let mut places = Vec::new();
        if self.uses_local() {
            places.push(format!("the disks of {}", self.round.layout));
        }
        places.push(format!("location {}", self.round.location));
        if let Some(read) = self.read_location {
            places.push(format!("read location {read}"));
        }
        let mut problem = Problem::new(
            Reason::CheckpointNotFound,
            format!(
                "pipeline {} has no checkpoint for {}; looked in {}",
                self.round.pipeline_name,
                self.request.selector,
                places.join(", ")
            ),
        )
        .with("selector", self.request.selector)
        .with("pipeline", &self.round.pipeline_name)
        .with("location", &self.round.location)
        .with("looked_in", places.join(", "));
        if let Some(read) = self.read_location {
            problem = problem.with("read_location", read);
        }
        problem
    }
}

/// Whether each host's local checkpoint is the very one that its part of the commit holds.
fn is_made_of(found: &Checkpoint, cut: &Cut) -> bool {
    let document = &found.document;
    document.step == cut.step
        && document.fingerprint == cut.fingerprint
        && document.parts.len() == cut.checkpoints.len()
        && document.parts.iter().zip(&cut.checkpoints).all(|(part, local)| part.local_checkpoint == local.id)
}

impl Chosen {
    fn into_plan(self, agents: Vec<FoundAgent>) -> PullPlan {
        let hosts_with = |id: &dyn Fn(usize) -> Option<lockstep_protocol::id::LocalCheckpointId>| {
            agents
                .iter()
                .enumerate()
                .map(|(idx, agent)| FoundHost { incarnation: agent.incarnation(), local_checkpoint: id(idx) })
                .collect::<Vec<_>>()
        };
        let (resolved, hosts, discard) = match self {
            Self::Local(cut, commit) => {
                let hosts = hosts_with(&|idx| cut.checkpoints.get(idx).map(|local| local.id));
                let records = |sum: u64, local: &LocalCheckpoint| sum.checked_add(local.processed_records?);
                let processed_records = cut.checkpoints.iter().try_fold(0_u64, records);
                let (location, commit, parts) = match commit {
                    Some((found, location)) => (Some(location), Some(found.commit), found.document.parts),
                    None => (None, None, Vec::new()),
                };
                let resolved = Resolved {
                    source: Source::Local,
                    location,
                    commit,
                    step: Some(cut.step),
                    fingerprint: cut.fingerprint,
                    processed_records,
                    parts,
                };
                (resolved, hosts, false)
            }
            Self::Remote(source, found, location) => {
                let parts = &found.document.parts;
                let hosts = hosts_with(&|idx| parts.get(idx).map(|part| part.local_checkpoint));
                let resolved = Resolved {
                    source,
                    location: Some(location),
                    commit: Some(found.commit),
                    step: Some(found.document.step),
                    fingerprint: found.document.fingerprint,
                    processed_records: found.document.processed_records(),
                    parts: found.document.parts,
                };
                (resolved, hosts, false)
            }
            Self::Fresh { discard } => {
                let resolved = Resolved {
                    source: Source::Fresh,
                    location: None,
                    commit: None,
                    step: None,
                    fingerprint: None,
                    processed_records: None,
                    parts: Vec::new(),
                };
                (resolved, hosts_with(&|_| None), discard)
            }
        };
        PullPlan { resolved, agents, hosts, discard }
    }
}

/// Refuses what can't fit. Only where nothing local could be reused; an agent knows better and refuses by itself otherwise.
fn check_space(plan: &PullPlan) -> Result<(), Problem> {
    if !matches!(plan.resolved.source, Source::Location | Source::ReadLocation) {
        return Ok(());
    }
    for (agent, part) in plan.agents.iter().zip(&plan.resolved.parts) {
        if let Some(free) = agent.described.free_bytes
            && agent.checkpoints.is_empty()
            && free < part.bytes
        {
            let address = &agent.host.address;
            return Err(Problem::new(
                Reason::NoSpace,
                format!("{} at {address} has {free} bytes free, its part has {}", agent.host.slot, part.bytes),
            )
            .with("host_idx", agent.host.slot.idx())
            .with("address", address)
            .with("free_bytes", free)
            .with("needed_bytes", part.bytes));
        }
    }
    Ok(())
}
