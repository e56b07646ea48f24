//! What somebody asks for: a push, and upkeep.

use std::time::Duration;

use lockstep_coordinator::store::{Admission, AdmitPush, AdmitUpkeep, StoreError, Trigger};
use lockstep_protocol::{
    commit::CommitRef,
    round::{RetryPolicy, WantedCut},
    upkeep::{Phase, Upkeep, Work},
};
use tracing::info;

use super::{World, alice};

impl World {
    /// Of the newest step that every host has. Once the pipeline is there.
    pub(crate) async fn push(&self, force: bool) -> Result<Admission, StoreError> {
        let push = AdmitPush {
            pipeline: self.row().unwrap().id.into(),
            wanted: WantedCut::Newest,
            force,
            trigger: Trigger::Manual,
            found: None,
            request_id: None,
            deadline: Duration::from_secs(3_600),
            retry: RetryPolicy::default(),
        };
        self.store().admit_push(push, &alice()).await
    }

    /// Somebody asks for upkeep of the location. None: the pipeline isn't there.
    async fn admitted(&self, work: Work) -> Option<Result<Upkeep, StoreError>> {
        let pipeline = self.row()?.id.into();
        let ask = AdmitUpkeep { pipeline, work, request_id: None, at_least_apart: None, retry: RetryPolicy::default() };
        Some(self.store().admit_upkeep(ask, &alice()).await)
    }

    /// Whether or not it is admitted.
    pub(crate) async fn ask_for(&self, work: Work) {
        let what = work.as_str();
        let admitted = self.admitted(work).await.is_some_and(|answer| answer.is_ok());
        info!(what, admitted, pipeline = self.name, "asked for upkeep");
    }

    /// Somebody asks for one and waits until it has ended.
    pub(crate) async fn collect(&self) -> Result<(), String> {
        // One that is under way already would be the answer.
        self.until_collected().await?;
        let Some(asked) = self.admitted(Work::Collect).await else { return Ok(()) };
        let asked = asked.map_err(|error| format!("L3: {error}"))?;
        self.until_collected().await?;
        let ended = self.database.upkeep().into_iter().find(|upkeep| upkeep.id == asked.id);
        match ended {
            Some(ended) if ended.phase == Phase::Done && ended.problem.is_none() => Ok(()),
            other => Err(format!("L3: a collection after the last fault came to {other:?}")),
        }
    }

    /// Somebody asks to delete one checkpoint.
    pub(crate) async fn delete(&self, commit: CommitRef) {
        self.deleted.borrow_mut().insert((commit.generation, commit.seq));
        self.ask_for(Work::Retire { commit }).await;
    }

    async fn until_collected(&self) -> Result<(), String> {
        for _ in 0..600 {
            if self.database.upkeep().iter().all(|upkeep| upkeep.phase.is_terminal()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("L1: upkeep does not end: {:#?}", self.database.upkeep()))
    }
}
