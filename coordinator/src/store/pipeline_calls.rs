//! The store's methods for pipelines.

use std::time::Duration;

use lockstep_protocol::{
    id::{Generation, PipelineId, Term},
    problem::Problem,
    spec::PipelineSpec,
};

use super::{
    Caller, Change, ClaimOutcome, ClaimSettled, ClaimState, Created, Listed, NewPipeline, Page, PipelineRow,
    PipelineSelector, Store, StoreError, changes::Reach, claims, ownership, settle_twice,
};

impl Store {
    /// Writes a pipeline whose location is still to be claimed, with the exact bytes of its fence. `PIPELINE_EXISTS`, `REQUEST_ID_REUSED`;
    /// `LOCATION_OWNED` where another pipeline of this database has the same or an overlapping location; `PIPELINE_NOT_FOUND` where a row that shall be made anew was deleted.
    pub async fn create_pipeline(&self, new: NewPipeline, caller: &Caller) -> Result<Created, StoreError> {
        let id = new.id;
        let made = settle_twice(|| self.database.create_pipeline(new.clone(), caller.clone())).await?;
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
        Ok(made)
    }

    /// What [`Self::create_pipeline`] would refuse of a row that is made anew: `PIPELINE_NOT_FOUND` where it was deleted.
    pub async fn check_made_anew(&self, new: &NewPipeline) -> Result<(), StoreError> {
        match self.database.any_pipeline(new.id).await? {
            Some(known) => ownership::refuse_deleted(new, &known).map_err(StoreError::Problem),
            None => Ok(()),
        }
    }

    /// `PIPELINE_NOT_FOUND`. A pipeline that was refused its location is found by its id only.
    pub async fn get_pipeline(&self, selector: &PipelineSelector) -> Result<PipelineRow, StoreError> {
        self.database.get_pipeline(selector.clone()).await
    }

    /// By name.
    pub async fn list_pipelines(&self, page: Page) -> Result<Listed<PipelineRow>, StoreError> {
        self.database.list_pipelines(page).await
    }

    /// Replaces the spec. `ETAG_MISMATCH`; `ROUND_IN_PROGRESS` if layout, agents or location change while a round is active; `PIPELINE_EXISTS`;
    /// `SPEC_INVALID` for another place or another `initial`, which no update can bring about.
    pub async fn update_pipeline(
        &self,
        selector: &PipelineSelector,
        spec: PipelineSpec,
        etag: Option<&str>,
        caller: &Caller,
    ) -> Result<PipelineRow, StoreError> {
        let update = ownership::Update {
            selector: selector.clone(),
            spec,
            etag: etag.map(str::to_owned),
            caller: caller.clone(),
        };
        let row = settle_twice(|| self.database.update_pipeline(update.clone())).await?;
        self.hints.tell(Change::Pipeline(row.id), Reach::Everywhere);
        Ok(row)
    }

    /// Frees name and location in this database; the bucket is not touched. `ROUND_IN_PROGRESS`, `TAKE_OVER_IN_PROGRESS`, `ETAG_MISMATCH`.
    pub async fn delete_pipeline(
        &self,
        selector: &PipelineSelector,
        etag: Option<&str>,
        caller: &Caller,
    ) -> Result<(), StoreError> {
        let delete =
            ownership::Delete { selector: selector.clone(), etag: etag.map(str::to_owned), caller: caller.clone() };
        let id = self.database.delete_pipeline(delete).await?;
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        Ok(())
    }

    /// A newer generation was found to have taken the location over (F4): nothing is admitted in this one any more. False: that was known, or the pipeline is not in this
    /// generation any more.
    pub async fn fence_out(
        &self,
        id: PipelineId,
        generation: Generation,
        problem: Problem,
        caller: &Caller,
    ) -> Result<bool, StoreError> {
        let fence = claims::FenceOut { id, generation, problem, caller: caller.clone() };
        let fenced = settle_twice(|| self.database.fence_out(fence.clone())).await?;
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        Ok(fenced)
    }

    /// Takes over claims of locations that nobody drives. Each row comes with a new term.
    pub async fn claim_claiming(&self, replica: &str, lease: Duration) -> Result<Vec<PipelineRow>, StoreError> {
        self.database.claim_claiming(replica.to_owned(), lease).await
    }

    /// False: the term is not current any more, or the claim is settled.
    pub async fn renew_claim(&self, id: PipelineId, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.database.renew_claim(id, term, lease).await
    }

    /// Writes what a claim came to. Refused: the row is deleted, name and location are free again.
    pub async fn settle_claim(
        &self,
        id: PipelineId,
        version: u64,
        term: Term,
        outcome: ClaimOutcome,
        caller: &Caller,
    ) -> Result<ClaimSettled, StoreError> {
        let claim = match &outcome {
            ClaimOutcome::Owned(_) => ClaimState::Owned.as_str(),
            ClaimOutcome::Refused(problem) => ClaimState::Refused(problem.clone()).as_str(),
            ClaimOutcome::Again { .. } => ClaimState::Claiming.as_str(),
        };
        let settle = claims::Settle { id, version, term, outcome, caller: caller.clone() };
        let settled = match self.database.settle_claim(settle).await {
            Err(StoreError::UnknownOutcome(problem)) => {
                let Ok(found) = self.database.look_at_claim(id).await else {
                    return Err(StoreError::UnknownOutcome(problem));
                };
                // A change of the spec raises the version too.
                let written = found.version == version.saturating_add(1)
                    && found.claim_term == term
                    && found.claim.as_str() == claim;
                match (written, found.version == version) {
                    (true, _) => ClaimSettled::Stored(found),
                    (false, true) => return Err(StoreError::UnknownOutcome(problem)),
                    (false, false) => ClaimSettled::Moved,
                }
            }
            settled => settled?,
        };
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        Ok(settled)
    }
}
