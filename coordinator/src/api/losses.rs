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
    plan::{
        Right,
        losses::{self, Lost, Since},
        place::Place,
    },
    store::{AcceptLoss, Caller, PipelineRow, PipelineSelector},
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
        let row = self.store.get_pipeline(&ask.pipeline).await?;
        self.put_back(&row, &caller).await?;
        let accepted = self.store.accept_loss(ask, &caller).await?;
        let row = self.next_loss(self.store.get_pipeline(&accepted.pipeline.into()).await?, &caller).await?;
        Ok(v1::AcceptLossResponse {
            pipeline: Some(self.shown(&row).await?),
            commit: Some(convert::round::commit_ref(&accepted.loss.commit)),
            lost: Some(convert::status::problem(&accepted.loss.problem)),
            accept_time: Some(convert::time::timestamp(accepted.at)),
        })
    }

    /// What stands again is not given up, and what is lost besides comes to be noted. Where that can't be found out nothing is accepted.
    async fn put_back(&self, row: &PipelineRow, caller: &Caller) -> Result<(), Problem> {
        let Some(loss) = row.lost.as_ref().filter(|_| row.is_owner()) else { return Ok(()) };
        let place = Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?;
        if losses::since(place.look(), &loss.commit).await? == Since::Stands {
            self.store.found_again((row.id, row.generation), loss.commit, caller).await?;
            self.next_loss(self.store.get_pipeline(&row.id.into()).await?, caller).await?;
        }
        Ok(())
    }

    /// One loss is noted at a time, so the one after it is looked for at once. What was accepted is accepted: that the bucket can't be read is no failure, the next collection looks.
    async fn next_loss(&self, row: PipelineRow, caller: &Caller) -> Result<PipelineRow, Problem> {
        if row.lost.is_some() || !row.is_owner() {
            return Ok(row);
        }
        match self.lost(&row).await {
            Ok(lost) if lost.is_empty() => Ok(row),
            Ok(lost) => {
                losses::note(&self.store, &row, &lost, caller).await?;
                Ok(self.store.get_pipeline(&row.id.into()).await?)
            }
            Err(problem) => {
                tracing::warn!(pipeline.name = %row.spec.name, reason = %problem.reason, "whether more is lost was not found out: {}", problem.message);
                Ok(row)
            }
        }
    }

    /// Documents are read only where none is gone: they may have been written over.
    async fn lost(&self, row: &PipelineRow) -> Result<Vec<Lost>, Problem> {
        let place =
            Place::open(&self.context(self.options.preview), &row.spec.location, Right::Read).await?.impatient();
        let found = losses::compare(place.look(), &self.store, row).await?;
        if !found.lost.is_empty() {
            return Ok(found.lost);
        }
        let decisions = lockstep_bucket::garbage::read_decisions(place.bucket(), row.generation).await?;
        losses::missing(place.look(), &found.listed, &decisions).await
    }
}
