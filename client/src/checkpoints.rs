//! Calls about what a pipeline's location holds.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use lockstep_proto::v1::{
    Checkpoint, GetCheckpointRequest, ListCheckpointsRequest, VerifyCheckpointRequest, VerifyCheckpointResponse,
};
use tonic::Streaming;

use crate::client::{LockstepClient, collect_pages};
use crate::error::ClientError;

impl LockstepClient {
    /// At most `limit` checkpoints, newest first, read from the bucket.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND`, what the store says.
    pub async fn list_checkpoints(
        &self,
        pipeline: impl Into<String>,
        limit: usize,
    ) -> Result<Vec<Checkpoint>, ClientError> {
        let pipeline = pipeline.into();
        collect_pages(limit, |page_size, page_token| {
            let request = ListCheckpointsRequest { pipeline: pipeline.clone(), page_size, page_token };
            async move {
                let page = self.call(request, |mut c, r| async move { c.list_checkpoints(r).await }).await?;
                Ok((page.checkpoints, page.next_page_token))
            }
        })
        .await
    }

    /// One checkpoint, by UUID (of the push round that made it), step in decimal, or `latest`.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND`, `PIPELINE_NOT_FOUND`, what the store says.
    pub async fn get_checkpoint(
        &self,
        pipeline: impl Into<String>,
        checkpoint: impl Into<String>,
    ) -> Result<Checkpoint, ClientError> {
        let request = GetCheckpointRequest { pipeline: pipeline.into(), checkpoint: checkpoint.into() };
        self.call(request, |mut c, r| async move { c.get_checkpoint(r).await }).await
    }

    /// Re-reads every object of a checkpoint and compares digests: a stream of progress that ends with one message with
    /// `done`, which lists what does not hold. A verification that loses its connection is an error; it is not resumed.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND`, `PIPELINE_NOT_FOUND`.
    pub async fn verify_checkpoint(
        &self,
        pipeline: impl Into<String>,
        checkpoint: impl Into<String>,
    ) -> Result<Verification, ClientError> {
        self.verify(VerifyCheckpointRequest {
            pipeline: pipeline.into(),
            checkpoint: checkpoint.into(),
            structure_only: false,
        })
        .await
    }

    /// As [`LockstepClient::verify_checkpoint`], by the whole request: also by structure only, which reads no file.
    ///
    /// # Errors
    ///
    /// `CHECKPOINT_NOT_FOUND`, `PIPELINE_NOT_FOUND`.
    pub async fn verify(&self, request: VerifyCheckpointRequest) -> Result<Verification, ClientError> {
        let stream = self.call(request, |mut c, r| async move { c.verify_checkpoint(r).await }).await?;
        Ok(Verification { stream, address: self.address().to_owned() })
    }
}

/// A verification under way. Dropping it ends it.
#[derive(Debug)]
pub struct Verification {
    stream: Streaming<VerifyCheckpointResponse>,
    address: String,
}

impl Stream for Verification {
    type Item = Result<VerifyCheckpointResponse, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = Pin::new(&mut self.stream).poll_next(context);
        item.map(|item| item.map(|item| item.map_err(|status| ClientError::from_status(&status, &self.address, 1))))
    }
}
