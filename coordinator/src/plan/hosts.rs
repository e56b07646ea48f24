//! Who is there, and what is on their disks.

use futures::{StreamExt, stream::FuturesUnordered};
use lockstep_protocol::{
    id::{Fingerprint, Incarnation},
    problem::Problem,
    round::{Round, WantedCut},
    selection::{Cut, LocalCheckpoint, common_cut},
};
use tokio::time::Instant;

use super::{BackOff, PlanContext};
use crate::agents::{AgentAnswer, AgentReads, Described, Host, check_identity};

/// One host as its agent describes it, with its local checkpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundAgent {
    /// Which host.
    pub host: Host,
    /// Its agent.
    pub described: Described,
    /// Oldest first.
    pub checkpoints: Vec<LocalCheckpoint>,
}

impl FoundAgent {
    /// Of its present process.
    pub const fn incarnation(&self) -> Incarnation {
        self.described.incarnation
    }

    /// Of the newest local checkpoint that has one: the nearest there is to what the program's present one may be.
    pub fn newest_fingerprint(&self) -> Option<Fingerprint> {
        self.checkpoints.iter().max_by_key(|c| c.step).and_then(|newest| newest.fingerprint)
    }
}

/// The hosts of a round and where their agents are said to be.
pub fn hosts_of(round: &Round) -> impl Iterator<Item = Host> {
    round
        .layout
        .slots()
        .zip(&round.participants)
        .map(|(slot, participant)| Host { slot, address: participant.address.clone() })
}

/// What the hosts hold in common of what is wanted. `NO_COMMON_CHECKPOINT`.
pub fn common(agents: &[FoundAgent], wanted: WantedCut) -> Result<Cut, Problem> {
    let disks: Vec<_> = agents.iter().map(|agent| agent.checkpoints.clone()).collect();
    common_cut(&disks, wanted.into())
}

/// Asks every host at once. One that is somebody else ends it at once; one without an answer is asked again until it counts as unreachable.
pub async fn ask_all(context: &PlanContext, round: &Round) -> Result<Vec<FoundAgent>, Problem> {
    let mut asking: FuturesUnordered<_> = hosts_of(round).map(|host| ask(context, round, host)).collect();
    let mut found = Vec::with_capacity(round.participants.len());
    while let Some(answer) = asking.next().await {
        found.push(answer?);
    }
    found.sort_by_key(|agent| agent.host.slot.idx());
    Ok(found)
}

async fn ask(context: &PlanContext, round: &Round, host: Host) -> Result<FoundAgent, Problem> {
    let until = Instant::now() + context.options.unreachable_after;
    let mut back_off = BackOff::of_calls();
    loop {
        let lost = match ask_once(context.agents.as_ref(), round, &host).await {
            AgentAnswer::Answer(Some(agent)) => return Ok(agent),
            AgentAnswer::Refused(problem) => return Err(problem),
            // It restarted between the two questions.
            AgentAnswer::Answer(None) => None,
            AgentAnswer::Unknown(problem) => Some(problem),
        };
        if let Some(problem) = lost
            && Instant::now() >= until
        {
            let seconds = context.options.unreachable_after.as_secs_f64();
            return Err(problem.with("seconds", seconds));
        }
        back_off.pause().await;
    }
}

async fn ask_once(agents: &dyn AgentReads, round: &Round, host: &Host) -> AgentAnswer<Option<FoundAgent>> {
    // Both at once: the listing counts only if it is of the very process that described itself as ours.
    let (described, listing) = futures::join!(agents.describe(host), agents.list_checkpoints(host));
    let checked = described.and_then(|described| {
        check_identity(host, round.pipeline, &round.pipeline_name, &described)?;
        Ok(described)
    });
    let described = match checked {
        AgentAnswer::Answer(described) => described,
        AgentAnswer::Refused(problem) => return AgentAnswer::Refused(problem),
        AgentAnswer::Unknown(problem) => return AgentAnswer::Unknown(problem),
    };
    listing.and_then(|listing| {
        let same = listing.incarnation == described.incarnation;
        Ok(same.then(|| FoundAgent { host: host.clone(), described, checkpoints: listing.checkpoints }))
    })
}
