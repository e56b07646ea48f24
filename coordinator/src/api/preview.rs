//! What a round would do, without one: `validate_only`, and whether there is anything to push.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    location::Location,
    problem::{Problem, Reason},
    round::{FoundHost, Kind, Phase, PullState, RetryPolicy, Round},
    spec::PullSelector,
};

use super::Api;
use crate::{
    convert,
    plan::{PlanContext, PlanOptions, PullPlan, PushPlan, Right, draft, hosts, plan_push, resolve_pull},
    store::{AdmitPull, AdmitPush, FoundCut, Page, PipelineRow, RoundFilter, check_pushes},
};

impl Api {
    pub(super) fn context(&self, options: PlanOptions) -> PlanContext {
        // Reads only: a base that is missing is finished by rounds, not by those who look.
        PlanContext {
            connector: self.connector.clone(),
            agents: self.agents.clone(),
            options,
            right: Right::Read,
            known: Arc::default(),
        }
    }

    async fn draft(
        &self,
        row: &PipelineRow,
        kind: Kind,
        deadline: Duration,
        retry: RetryPolicy,
    ) -> Result<Round, Problem> {
        Ok(draft::round(row, kind, self.store.now().await?, deadline, retry))
    }

    /// What admission would refuse.
    async fn check_admissible(&self, row: &PipelineRow, supersedes: fn(&Round) -> bool) -> Result<(), Problem> {
        if let Some(fenced) = &row.fenced {
            return Err(fenced.clone());
        }
        let filter = RoundFilter { pipeline: Some(row.id), active_only: true, ..RoundFilter::default() };
        let active = self.store.list_rounds(filter, Page { size: 1, token: None }).await?;
        match active.items.first().map(|record| &record.round).filter(|round| !supersedes(round)) {
            None => Ok(()),
            Some(round) => Err(Problem::new(
                Reason::RoundInProgress,
                format!("pipeline {}: round {} is {}: wait for it or cancel it", row.spec.name, round.id, round.phase),
            )
            .with("pipeline", &row.spec.name)
            .with("round", round.id)
            .with("phase", round.phase)),
        }
    }

    pub(super) async fn plan_push(&self, push: &AdmitPush) -> Result<v1::Round, Problem> {
        let row = self.store.get_pipeline(&push.pipeline).await?;
        self.check_admissible(&row, |_| false).await?;
        check_pushes(&row)?;
        let mut round = self.draft(&row, draft::push(&row, push.wanted, push.force), push.deadline, push.retry).await?;
        let plan = boxed_push(&self.context(self.options.preview), &round).await?;
        let hosts: Vec<FoundHost> = plan
            .agents
            .iter()
            .zip(&plan.cut.checkpoints)
            .map(|(agent, own)| FoundHost { incarnation: agent.incarnation(), local_checkpoint: Some(own.id) })
            .collect();
        if let Kind::Push(state) = &mut round.kind {
            state.step = Some(plan.cut.step);
            state.fingerprint = plan.cut.fingerprint;
            state.parent = plan.parent;
        }
        Ok(shown(round, &hosts))
    }

    pub(super) async fn plan_pull(&self, row: &PipelineRow, pull: &AdmitPull) -> Result<v1::Round, Problem> {
        self.check_admissible(row, |active| matches!(active.kind, Kind::Pull(_)) && active.phase == Phase::Installing)
            .await?;
        let kind = Kind::Pull(PullState::asked(pull.request));
        let mut round = self.draft(row, kind, pull.deadline, pull.retry).await?;
        let read_location = row.spec.read_location.as_ref();
        let plan = boxed_pull(&self.context(self.options.preview), &round, read_location).await?;
        if let Kind::Pull(state) = &mut round.kind {
            state.resolved = Some(plan.resolved);
        }
        Ok(shown(round, &plan.hosts))
    }

    /// The commit that a standby's pull would bring to the hosts.
    pub(super) async fn found_source(
        &self,
        row: &PipelineRow,
        selector: PullSelector,
    ) -> Result<Option<CommitRef>, Problem> {
        let kind = Kind::Pull(PullState::asked(draft::of_standby(selector)));
        let round = self.draft(row, kind, self.options.pull_deadline, self.options.retry).await?;
        let read_location = row.spec.read_location.as_ref();
        let plan = boxed_pull(&self.context(self.options.preview), &round, read_location).await?;
        Ok(plan.resolved.commit)
    }

    /// What the hosts would push, for admission to compare with the newest commit. None: that could not be found out quickly, and is left to
    /// the round's planning, which insists.
    pub(super) async fn found_cut(&self, push: &AdmitPush) -> Result<Option<FoundCut>, Problem> {
        let row = self.store.get_pipeline(&push.pipeline).await?;
        if push.force || row.last_commit.is_none() {
            return Ok(None);
        }
        // Hosts are asked whatever its deadline is, so the database's clock need not be read for it.
        let kind = draft::push(&row, push.wanted, push.force);
        let round = draft::round(&row, kind, row.updated_at, push.deadline, push.retry);
        let context = self.context(PlanOptions { unreachable_after: self.options.look_wait, ..self.options.preview });
        let asked = tokio::time::timeout(self.options.look_wait, boxed_ask(&context, &round));
        let Ok(Ok(agents)) = asked.await else { return Ok(None) };
        Ok(hosts::common(&agents, push.wanted).ok().map(FoundCut::from))
    }
}

// Boxed where their lifetimes are named: inside a handler's future the compiler forgets these and then can't see that they are Send.

fn boxed_push<'a>(context: &'a PlanContext, round: &'a Round) -> BoxFuture<'a, Result<PushPlan, Problem>> {
    Box::pin(plan_push(context, round))
}

fn boxed_pull<'a>(
    context: &'a PlanContext,
    round: &'a Round,
    read_location: Option<&'a Location>,
) -> BoxFuture<'a, Result<PullPlan, Problem>> {
    Box::pin(resolve_pull(context, round, read_location))
}

fn boxed_ask<'a>(context: &'a PlanContext, round: &'a Round) -> BoxFuture<'a, Result<Vec<hosts::FoundAgent>, Problem>> {
    Box::pin(hosts::ask_ahead(context, round))
}

fn shown(mut round: Round, hosts: &[FoundHost]) -> v1::Round {
    for (participant, host) in round.participants.iter_mut().zip(hosts) {
        participant.incarnation = Some(host.incarnation);
        participant.local_checkpoint = host.local_checkpoint;
    }
    // Nothing was admitted: there is no id to ask for.
    v1::Round { id: String::new(), ..convert::round::bare_round(&round, &[]) }
}
