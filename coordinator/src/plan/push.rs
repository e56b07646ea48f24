//! The cut to push, and whether the bucket agrees with the database (protocol.md, "Push" 2 and "Coordinators").

use std::sync::Arc;

use futures::try_join;
use lockstep_bucket::DecisionFound;
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    fence::Successor,
    id::{Generation, Seq},
    key::Key,
    problem::{Problem, Reason},
    round::{Event, FoundHost, Kind, PushState, Round},
    selection::Cut,
};

use super::{
    PlanContext, expected,
    hosts::{FoundAgent, ask_all, common},
    place::{Base, Place, other_owner},
};

/// What a push would send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushPlan {
    /// One local checkpoint a host, all of one step.
    pub cut: Cut,
    /// Every host's agent, by host index.
    pub agents: Vec<FoundAgent>,
    /// The newest commit that counts.
    pub parent: Option<CommitRef>,
    /// The base, if there is one whose objects can be reused.
    pub base: Option<Arc<CommitDocument>>,
    /// Why the base's objects can't be reused, so that everything is sent; none: they can, or there is no base.
    pub full_send: Option<Problem>,
}

impl PushPlan {
    /// What the round makes of it.
    pub fn into_event(self) -> Event {
        let hosts = self
            .agents
            .iter()
            .zip(&self.cut.checkpoints)
            .map(|(agent, checkpoint)| FoundHost {
                incarnation: agent.incarnation(),
                local_checkpoint: Some(checkpoint.id),
            })
            .collect();
        Event::Planned { hosts, step: self.cut.step, fingerprint: self.cut.fingerprint, parent: self.parent }
    }
}

/// Compares the bucket with the database and chooses the cut. No order is sent.
pub async fn plan_push(context: &PlanContext, round: &Round) -> Result<PushPlan, Problem> {
    let Kind::Push(push) = &round.kind else {
        return Err(Problem::new(Reason::SpecInvalid, format!("round {} is no push", round.id)).with("round", round.id));
    };
    let place = Place::open(context, &round.location, context.right).await?;
    let (bucket, agents) = try_join!(compare(&place, round, push), ask_all(context, round))?;
    let cut = common(&agents, push.wanted)?;
    Ok(PushPlan { cut, agents, parent: bucket.parent, base: bucket.base, full_send: bucket.full_send })
}

struct Compared {
    parent: Option<CommitRef>,
    base: Option<Arc<CommitDocument>>,
    full_send: Option<Problem>,
}

/// Before any order: nothing stands at this round's key, the location is still ours, and the base can be read. A restored or promoted database
/// that lost rows is found out here (R13).
async fn compare(place: &Place, round: &Round, push: &PushState) -> Result<Compared, Problem> {
    let generation = round.generation;
    if generation == Generation::NONE {
        return Err(Problem::new(
            Reason::NotOwner,
            format!("pipeline {} owns no location: activate it or take its location over first", round.pipeline_name),
        )
        .with("pipeline", &round.pipeline_name));
    }
    if let Some(commit) = push.base
        && let Some(document) = expected::base_is_newest(place, round, &commit, push.seq).await
    {
        return Ok(Compared { parent: Some(commit), base: Some(document), full_send: None });
    }
    let base = async {
        match &push.base {
            None => Ok((None, None)),
            Some(base) => place.base(base).await.map(|base| match base {
                Base::Usable(document) => (Some(document), None),
                Base::Unusable(problem) => (None, Some(problem)),
            }),
        }
    };
    let (fence, successor, decision, newest, (base, full_send)) = try_join!(
        place.fence(generation),
        place.successor(generation),
        place.decision(generation, push.seq),
        place.newest(),
        base
    )?;
    match fence {
        Some(fence) if fence.pipeline == round.pipeline && !fence.released => {
            place.known().learn_own_fence(&round.location, &fence);
        }
        Some(fence) => return Err(other_owner(round, &fence)),
        None => {
            return Err(Problem::new(
                Reason::StoreNotFound,
                format!(
                    "fence {generation} of {} is gone, by which pipeline {} owns it: the location was emptied or is another one; \
                     take it over again",
                    round.location, round.pipeline_name
                ),
            )
            .with("bucket", round.location.bucket())
            .with("key", round.location.full_key(&Key::Fence(generation).to_string()))
            .with("pipeline", &round.pipeline_name));
        }
    }
    match successor {
        Successor::Absent => {}
        Successor::FenceOnly => return Err(take_over_in_progress(round)),
        Successor::Base(base) => return Err(fenced(round, push.seq, base.generation)),
    }
    match decision {
        None => {}
        // Our own can only be an abort of a driver that was ahead of this one: the next guarded write tells.
        Some(DecisionFound::Decision(decision, _)) if decision.round() == round.id => {}
        Some(DecisionFound::Decision(decision, _)) => {
            let other = decision.round();
            return Err(behind(round, push.seq, &format!("{generation}-{} holds round {other}", push.seq))
                .with("other_round", other));
        }
        Some(DecisionFound::Unreadable(_, problem)) => {
            let why = format!("{generation}-{} holds what can't be read: {}", push.seq, problem.message);
            return Err(behind(round, push.seq, &why));
        }
        Some(DecisionFound::Retired) => {
            return Err(behind(
                round,
                push.seq,
                &format!("{generation}-{} was committed and retired before", push.seq),
            ));
        }
    }
    let greatest = newest.greatest;
    if let Some(newer) = greatest.filter(|c| c.generation == generation && c.seq >= push.seq && c.round != round.id) {
        return Err(behind(
            round,
            push.seq,
            &format!("{}-{} of round {} stands", newer.generation, newer.seq, newer.round),
        )
        .with("other_round", newer.round));
    }
    let parent = newest.whole.map(|newest| newest.commit);
    if parent != greatest
        && let Some(passed) = greatest
    {
        tracing::warn!(
            round.id = %round.id, generation = %passed.generation, seq = %passed.seq,
            "the newest checkpoint of {} is damaged or can't be read: the next one does not build on it", round.location
        );
    }
    if let Some(problem) = &full_send {
        tracing::warn!(
            round.id = %round.id, reason = %problem.reason,
            "the base can't be reused, everything is sent: {}", problem.message
        );
    }
    Ok(Compared { parent, base, full_send })
}

fn behind(round: &Round, seq: Seq, found: &str) -> Problem {
    Problem::new(
        Reason::DatabaseBehind,
        format!(
            "round {} of pipeline {} was given {}-{seq}, but in {} {found}: the database is behind the bucket; resync the pipeline",
            round.id, round.pipeline_name, round.generation, round.location
        ),
    )
    .with("round", round.id)
    .with("generation", round.generation)
    .with("seq", seq)
    .with("location", &round.location)
}

fn fenced(round: &Round, seq: Seq, newer: Generation) -> Problem {
    Problem::new(
        Reason::Fenced,
        format!(
            "generation {newer} took {} over from generation {} of pipeline {}: what this one pushes no longer counts",
            round.location, round.generation, round.pipeline_name
        ),
    )
    .with("round", round.id)
    .with("generation", round.generation)
    .with("seq", seq)
    .with("newer_generation", newer)
}

fn take_over_in_progress(round: &Round) -> Problem {
    Problem::new(
        Reason::TakeOverInProgress,
        format!(
            "generation {} of {} has a fence but no base yet: a take-over is under way",
            round.generation.next(),
            round.location
        ),
    )
    .with("generation", round.generation.next())
    .with("location", &round.location)
}
