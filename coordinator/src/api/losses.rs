//! Checkpoints that the bucket has lost, given up by an operator.

use lockstep_proto::v1;
use lockstep_protocol::{id::RoundId, problem::Problem};

use super::{
    Api,
    request::{self, required},
    rounds::cause_of,
};
use crate::{
    convert,
    plan::{Right, losses, place::Place},
    store::{AcceptLoss, Caller, ClaimState, PipelineRow, PipelineSelector},
};

impl Api {
    pub(super) async fn do_accept_loss(
        &self,
        caller: Caller,
        message: v1::AcceptLossRequest,
    ) -> Result<v1::AcceptLossResponse, Problem> {
        let pipeline: PipelineSelector = required("pipeline", &message.pipeline)?;
        let checkpoint =
            if message.checkpoint.is_empty() { None } else { Some(message.checkpoint.parse::<RoundId>()?) };
        let request_id = request::request_id(&message.request_id)?;
        let ask = AcceptLoss { pipeline, checkpoint, cause: cause_of(message.cause)?, request_id };
        let accepted = self.store.accept_loss(ask, &caller).await?;
        let row = self.next_loss(self.store.get_pipeline(&accepted.pipeline.into()).await?, &caller).await?;
        Ok(v1::AcceptLossResponse {
            pipeline: Some(self.shown(&row).await?),
            commit: Some(convert::round::commit_ref(&accepted.loss.commit)),
            lost: Some(convert::status::problem(&accepted.loss.problem)),
            accept_time: Some(convert::time::timestamp(accepted.at)),
        })
    }

    /// One loss is noted at a time, so the one after it is looked for at once. What was accepted is accepted: that the bucket can't be read is no failure, the next collection looks.
    async fn next_loss(&self, row: PipelineRow, caller: &Caller) -> Result<PipelineRow, Problem> {
        if row.lost.is_some() || row.claim != ClaimState::Owned || row.fenced.is_some() {
            return Ok(row);
        }
        let looked = async {
            let place = Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?;
            let committed = losses::committed(&self.store, &row).await?;
            let found = losses::losses(&place, &row, &committed).await?;
            losses::note(&self.store, &row, &found.lost, caller).await
        };
        match looked.await {
            Ok(None) => Ok(row),
            Ok(Some(_)) => Ok(self.store.get_pipeline(&row.id.into()).await?),
            Err(problem) => {
                tracing::warn!(pipeline.name = %row.spec.name, reason = %problem.reason, "whether more is lost was not found out: {}", problem.message);
                Ok(row)
            }
        }
    }
}
