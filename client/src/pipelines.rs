//! Calls about pipelines. A pipeline is named by its name or UUID everywhere.

use lockstep_proto::v1::{
    AcceptLossRequest, AcceptLossResponse, ActivateRequest, CancelTakeOverRequest, CancelTakeOverResponse,
    CreatePipelineRequest, DeletePipelineRequest, GetPipelineRequest, ListPipelinesRequest, Pipeline, PipelineSpec,
    ResyncRequest, ResyncResponse, StartStandbyRequest, StopStandbyRequest, TakeOverRequest, TakeOverResponse,
    UpdatePipelineRequest,
};

use crate::client::{LockstepClient, collect_pages, fill_request_id};
use crate::error::ClientError;

impl LockstepClient {
    /// Takes the spec's empty location into ownership; pushes are admitted from then on.
    ///
    /// # Errors
    ///
    /// `PIPELINE_EXISTS`, `SPEC_INVALID`, `LOCATION_OWNED`, `LOCATION_UNSUITABLE`, what the store says, among others.
    pub async fn create_pipeline(&self, spec: PipelineSpec) -> Result<Pipeline, ClientError> {
        self.create_pipeline_with(CreatePipelineRequest { spec: Some(spec), ..Default::default() }).await
    }

    /// As [`Self::create_pipeline`], with a `request_id` of the caller's or as a dry run. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// As [`Self::create_pipeline`]; `REQUEST_ID_REUSED`.
    pub async fn create_pipeline_with(&self, mut request: CreatePipelineRequest) -> Result<Pipeline, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.create_pipeline(r).await }).await
    }

    /// The pipeline as it is now.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND`.
    pub async fn get_pipeline(&self, pipeline: impl Into<String>) -> Result<Pipeline, ClientError> {
        let request = GetPipelineRequest { pipeline: pipeline.into() };
        self.call(request, |mut c, r| async move { c.get_pipeline(r).await }).await
    }

    /// The standby becomes the writer of its location, and its hosts have the newest checkpoint that counts. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `TAKE_OVER_IN_PROGRESS`, with the phase in its metadata, while it takes longer than the call: it goes on, and the same call tells how it ends; without a phase
    /// somebody else's activation is under way. What ended the warm pull, with nothing changed.
    pub async fn activate(&self, mut request: ActivateRequest) -> Result<TakeOverResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.activate(r).await }).await
    }

    /// Stops the take-over or activation of a pipeline before its fence is put; an empty `take_over` means the one that is under way.
    ///
    /// # Errors
    ///
    /// `ROUND_NOT_CANCELLABLE` once its fence is stored or it has ended, `ROUND_NOT_FOUND` if there is none.
    pub async fn cancel_take_over(
        &self,
        pipeline: impl Into<String>,
        take_over: impl Into<String>,
        cause: impl Into<String>,
    ) -> Result<CancelTakeOverResponse, ClientError> {
        let request =
            CancelTakeOverRequest { pipeline: pipeline.into(), take_over: take_over.into(), cause: cause.into() };
        self.call(request, |mut c, r| async move { c.cancel_take_over(r).await }).await
    }

    /// Gives up the checkpoint that [`Pipeline::lost`] names: it counts as never committed, and what waited for it goes on. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND` if nothing is lost, or another checkpoint than the request means; `REQUEST_ID_REUSED`.
    pub async fn accept_loss(&self, mut request: AcceptLossRequest) -> Result<AcceptLossResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.accept_loss(r).await }).await
    }

    /// The standby follows its location: the newest checkpoint, or stays on the one with this UUID. How it goes stands in [`Pipeline::standby`]. An owner whose location was
    /// taken over by another pipeline becomes a standby by it.
    ///
    /// # Errors
    ///
    /// `LOCATION_OWNED` if it owns its location still, `TAKE_OVER_IN_PROGRESS` while it is activated or being taken over, `ROUND_IN_PROGRESS` while something is under way that
    /// was admitted to the owner.
    pub async fn start_standby(
        &self,
        pipeline: impl Into<String>,
        checkpoint: impl Into<String>,
    ) -> Result<Pipeline, ClientError> {
        let request = StartStandbyRequest { pipeline: pipeline.into(), checkpoint: checkpoint.into() };
        self.call(request, |mut c, r| async move { c.start_standby(r).await }).await
    }

    /// The standby follows no more; its hosts keep what they have.
    ///
    /// # Errors
    ///
    /// `LOCATION_OWNED` if it is no standby, `TAKE_OVER_IN_PROGRESS` while it is activated.
    pub async fn stop_standby(&self, pipeline: impl Into<String>) -> Result<Pipeline, ClientError> {
        let request = StopStandbyRequest { pipeline: pipeline.into() };
        self.call(request, |mut c, r| async move { c.stop_standby(r).await }).await
    }

    /// Makes the pipeline the writer of its location, whoever is now. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `TAKE_OVER_IN_PROGRESS` while it takes longer than the call: it goes on, and the same call tells how it ends. `LOCATION_OWNED` if another take-over was
    /// faster, what the store says, among others.
    pub async fn take_over(&self, mut request: TakeOverRequest) -> Result<TakeOverResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.take_over(r).await }).await
    }

    /// Makes the coordinator's database know again what the pipeline's location holds; or, with `validate_only`, says what it would do.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND` where the database doesn't know it and no spec is given, `LOCATION_OWNED`, `TAKE_OVER_IN_PROGRESS` while it takes longer than the call, what the
    /// store says.
    pub async fn resync(&self, mut request: ResyncRequest) -> Result<ResyncResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.resync(r).await }).await
    }

    /// At most `limit` pipelines.
    ///
    /// # Errors
    ///
    /// Those of any call.
    pub async fn list_pipelines(&self, limit: usize) -> Result<Vec<Pipeline>, ClientError> {
        collect_pages(limit, |page_size, page_token| async move {
            let request = ListPipelinesRequest { page_size, page_token };
            let page = self.call(request, |mut c, r| async move { c.list_pipelines(r).await }).await?;
            Ok((page.pipelines, page.next_page_token))
        })
        .await
    }

    /// Changes the fields in the mask (all, if it is empty) of a pipeline. With the `etag` that the pipeline was read
    /// with, nobody else's change is overwritten; if an answer was lost, the repeated call may then report the client's
    /// own change as `ETAG_MISMATCH`: read the pipeline again and look.
    ///
    /// # Errors
    ///
    /// `ETAG_MISMATCH`, `PIPELINE_NOT_FOUND`, `SPEC_INVALID`.
    pub async fn update_pipeline(&self, request: UpdatePipelineRequest) -> Result<Pipeline, ClientError> {
        self.call(request, |mut c, r| async move { c.update_pipeline(r).await }).await
    }

    /// Makes the coordinator forget a pipeline; the bucket is not touched. An empty `etag` deletes whatever is there.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND`, `ROUND_IN_PROGRESS`, `ETAG_MISMATCH`.
    pub async fn delete_pipeline(
        &self,
        pipeline: impl Into<String>,
        etag: impl Into<String>,
    ) -> Result<(), ClientError> {
        let request = DeletePipelineRequest { pipeline: pipeline.into(), etag: etag.into() };
        let (answer, lost) = self.call_noting_loss(request, |mut c, r| async move { c.delete_pipeline(r).await }).await;
        match answer {
            // The lost try was the one that deleted it.
            Err(error) if lost && error.reason() == "PIPELINE_NOT_FOUND" => Ok(()),
            other => other.map(drop),
        }
    }
}
