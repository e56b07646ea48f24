//! The end of a run, in calm weather: the location is its first owner's again, a new push succeeds first try, what it pushed comes back to every host, and nothing is left over.

use std::time::Duration;

use lockstep_coordinator::store::{Admission, AdmitPull, ClaimState, RoundRecord, StoreError};
use lockstep_protocol::{
    problem::Reason,
    round::{Phase, PullRequest, RetryPolicy},
    spec::PullSelector,
    takeover::Purpose,
};
use tokio::time::Instant;
use tracing::info;

use super::{L1, Story};
use crate::{
    check::no_orphans,
    fail_back::{self, Stands},
    world::alice,
};

impl Story {
    /// F4: whoever was taken over is told so, by the row or by what its next push finds. The first take-over in calm weather succeeds, as does the way back.
    pub(super) async fn owns_its_location(&self) -> Result<(), String> {
        let stands = || fail_back::stands(&self.world);
        if stands() == Stands::Owner {
            return Ok(());
        }
        if stands() == Stands::TakenOver && self.world.row().is_some_and(|row| row.claim == ClaimState::Owned) {
            self.is_fenced().await?;
        }
        if let Some(way_back) = &self.way_back
            && way_back.brings_home().await?
        {
            return way_back.other_follows().await;
        }
        info!("takes its location back");
        self.world.take_over(Purpose::TakeOver).await;
        self.until_idle(Instant::now() + L1, 50).await?;
        if stands() != Stands::Owner {
            return Err(format!("L2: a take-over after the last fault: {:#?}", self.world.database.take_overs()));
        }
        Ok(())
    }

    async fn is_fenced(&self) -> Result<(), String> {
        let fenced = || self.world.row().is_some_and(|row| row.fenced.is_some());
        if !fenced() {
            self.world.checkpoint();
            match self.world.push(false).await {
                // The schedule was faster.
                Err(StoreError::Problem(problem)) if self.world.push_interval.is_some() => {
                    info!(reason = %problem.reason, "not pushed by hand");
                }
                pushed => drop(pushed.map_err(|error| format!("L2: a push after the last fault: {error}"))?),
            }
            let pushed = self.ended().await?.round;
            if pushed.problem.as_ref().map(|problem| problem.reason) != Some(Reason::Fenced) {
                return Err(format!("F4: a push of an owner that was taken over: {pushed:#?}"));
            }
        }
        match self.world.push(false).await {
            Err(StoreError::Problem(problem)) if fenced() && problem.reason == Reason::Fenced => Ok(()),
            other => Err(format!("F4: a push of an owner that was taken over was admitted: {other:?}")),
        }
    }

    /// L2: a new push succeeds first try; and what it pushed comes back to every host.
    pub(super) async fn ends_well(&mut self) -> Result<(), String> {
        let step = self.world.checkpoint();
        self.push_until_known().await?;
        let pushed = self.ended().await?;
        let first_try = pushed.round.participants.iter().all(|participant| participant.attempt.get() == 1);
        if pushed.round.phase != Phase::Committed || !first_try {
            return Err(format!("L2: a push after the last fault: {:#?}", pushed.round));
        }
        self.world.agents.iter().for_each(|agent| {
            agent.crash();
            agent.lose_disk();
            agent.start();
        });
        let request = PullRequest {
            selector: PullSelector::Latest,
            standby: true,
            fail_if_none: true,
            allow_fingerprint: false,
            discard_local: false,
        };
        if let Some(rival) = &self.rival {
            let newest = pushed.round.participants.iter().filter_map(|part| part.local_checkpoint).collect::<Vec<_>>();
            rival.follows(&newest).await?;
        }
        self.start_pull(request).await?;
        let pulled = self.ended().await?;
        if pulled.round.phase != Phase::Installed {
            return Err(format!("L2: a pull after the last fault: {:#?}", pulled.round));
        }
        for (agent, part) in self.world.agents.iter().zip(&pushed.round.participants) {
            let disk: Vec<_> = agent.disk().into_iter().map(|local| (Some(local.id), local.step.get())).collect();
            if disk != [(part.local_checkpoint, step)] {
                return Err(format!("S12: a host that pulled step {step} has {disk:?}"));
            }
        }
        Ok(())
    }

    async fn start_pull(&mut self, request: PullRequest) -> Result<(), String> {
        let pull = AdmitPull {
            follows: None,
            pipeline: self.pipeline.id.into(),
            request,
            request_id: None,
            deadline: Duration::from_secs(3_600),
            retry: RetryPolicy::default(),
        };
        let admitted = self.world.store().admit_pull(pull, &alice()).await;
        admitted.map(|_| ()).map_err(|error| format!("L2: a pull after the last fault was not admitted: {error}"))
    }

    /// L3: what nothing needs is gone after two collections.
    pub(super) async fn leaves_no_orphans(&self) -> Result<(), String> {
        let Some(garbage) = &self.world.garbage else { return Ok(()) };
        tokio::time::sleep(garbage.min_age + Duration::from_secs(1)).await;
        self.world.collect().await?;
        tokio::time::sleep(garbage.grace + Duration::from_secs(1)).await;
        self.world.collect().await?;
        no_orphans(&self.world)
    }

    async fn push_until_known(&self) -> Result<(), String> {
        match self.world.push(false).await {
            Ok(Admission::New(_)) => Ok(()),
            other => Err(format!("L2: a push after the last fault was not admitted: {other:?}")),
        }
    }

    async fn ended(&self) -> Result<RoundRecord, String> {
        self.until_idle(Instant::now() + L1, 50).await?;
        self.world.database.rounds().pop().ok_or_else(|| "no round".to_owned())
    }
}
