//! Calls about what stays in a pipeline's location and what goes.

use lockstep_proto::v1::{
    CollectGarbageRequest, CollectGarbageResponse, DeleteCheckpointRequest, DeleteCheckpointResponse, Pin,
    PinCheckpointRequest, UnpinCheckpointRequest, UnpinCheckpointResponse,
};

use crate::client::{LockstepClient, fill_request_id};
use crate::error::ClientError;

impl LockstepClient {
    /// Keeps a checkpoint from retention. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND`, also if it is being retired; `NOT_OWNER`, `FENCED`, what the store says.
    pub async fn pin_checkpoint(&self, mut request: PinCheckpointRequest) -> Result<Pin, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.pin_checkpoint(r).await }).await
    }

    /// Takes away one pin by its UUID, or all that bear a name. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND` where there is no such pin; `NOT_OWNER`, `FENCED`, what the store says.
    pub async fn unpin_checkpoint(
        &self,
        mut request: UnpinCheckpointRequest,
    ) -> Result<UnpinCheckpointResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.unpin_checkpoint(r).await }).await
    }

    /// Retires a checkpoint now, past `min_age` and `min_count`. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_IN_USE` says why it stays; `CHECKPOINT_NOT_FOUND`, `NOT_OWNER`, `FENCED`, what the store says.
    pub async fn delete_checkpoint(
        &self,
        mut request: DeleteCheckpointRequest,
    ) -> Result<DeleteCheckpointResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.delete_checkpoint(r).await }).await
    }

    /// Collects garbage, or says what would go. An answer whose collection still waits is as far as it got: the same call with the same `request_id` tells more.
    /// An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `NOT_OWNER`, `FENCED`, `DATABASE_BEHIND`, what the store says.
    pub async fn collect_garbage(
        &self,
        mut request: CollectGarbageRequest,
    ) -> Result<CollectGarbageResponse, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.collect_garbage(r).await }).await
    }
}
