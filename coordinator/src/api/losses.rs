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
    store::{AcceptLoss, Caller, PipelineSelector},
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
        let row = self.store.get_pipeline(&accepted.pipeline.into()).await?;
        Ok(v1::AcceptLossResponse {
            pipeline: Some(self.shown(&row).await?),
            commit: Some(convert::round::commit_ref(&accepted.loss.commit)),
            lost: Some(convert::status::problem(&accepted.loss.problem)),
            accept_time: Some(convert::time::timestamp(accepted.at)),
        })
    }
}
