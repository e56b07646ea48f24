//! Calls about rounds and the audit trail.

use futures::StreamExt as _;
use lockstep_proto::v1::{
    AuditEvent, CancelRoundRequest, GetRoundRequest, ListAuditEventsRequest, ListRoundsRequest, Round,
    StartPullRequest, StartPushRequest,
};
use lockstep_rpc::RpcProblem;
use tonic::Code;

use crate::client::{LockstepClient, collect_pages, fill_request_id};
use crate::error::ClientError;
use crate::watch::RoundWatch;

impl LockstepClient {
    /// Admits a push round and returns it at once. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `ROUND_IN_PROGRESS`, `NO_COMMON_CHECKPOINT`, `PIPELINE_NOT_FOUND`, `FENCED`, `REQUEST_ID_REUSED`, among others.
    pub async fn start_push(&self, mut request: StartPushRequest) -> Result<Round, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.start_push(r).await }).await
    }

    /// Admits a pull round and returns it at once. `standby` must be set. An empty `request_id` is drawn.
    ///
    /// # Errors
    ///
    /// `STANDBY_UNSET`, `ROUND_IN_PROGRESS`, `CHECKPOINT_NOT_FOUND`, `PIPELINE_NOT_FOUND`, among others.
    pub async fn start_pull(&self, mut request: StartPullRequest) -> Result<Round, ClientError> {
        fill_request_id(&mut request.request_id);
        self.call(request, |mut c, r| async move { c.start_pull(r).await }).await
    }

    /// The round as it is now, with all participants.
    ///
    /// # Errors
    ///
    /// `ROUND_NOT_FOUND`.
    pub async fn get_round(&self, round: impl Into<String>) -> Result<Round, ClientError> {
        let request = GetRoundRequest { round: round.into() };
        self.call(request, |mut c, r| async move { c.get_round(r).await }).await
    }

    /// At most `limit` rounds, newest first. Page size and token of `filter` are not used.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND`.
    pub async fn list_rounds(&self, filter: ListRoundsRequest, limit: usize) -> Result<Vec<Round>, ClientError> {
        collect_pages(limit, |page_size, page_token| {
            let request = ListRoundsRequest { page_size, page_token, ..filter.clone() };
            async move {
                let page = self.call(request, |mut c, r| async move { c.list_rounds(r).await }).await?;
                Ok((page.rounds, page.next_page_token))
            }
        })
        .await
    }

    /// Asks for the round to end; it has ended when its phase says so. `cause` stands in the audit trail.
    ///
    /// # Errors
    ///
    /// `ROUND_NOT_CANCELLABLE` when it is too late, `ROUND_NOT_FOUND`.
    pub async fn cancel_round(&self, round: impl Into<String>, cause: impl Into<String>) -> Result<Round, ClientError> {
        let request = CancelRoundRequest { round: round.into(), cause: cause.into() };
        self.call(request, |mut c, r| async move { c.cancel_round(r).await }).await
    }

    /// The round now, then each change, until it is terminal; see [`RoundWatch`].
    pub fn watch_round(&self, round: impl Into<String>) -> RoundWatch {
        RoundWatch::new(self.clone(), round.into())
    }

    /// Waits until the round is terminal. Also a failed or cancelled round is an answer and no error.
    ///
    /// # Errors
    ///
    /// `ROUND_NOT_FOUND`; unreachable for longer than the client's patience.
    pub async fn wait_round(&self, round: impl Into<String>) -> Result<Round, ClientError> {
        let round = round.into();
        let mut watch = self.watch_round(round.as_str());
        let mut last = None;
        while let Some(next) = watch.next().await {
            last = Some(next?);
        }
        // A watch ends after a terminal round or with an error: it has shown one or the other.
        last.ok_or_else(|| {
            let message = format!("the watch of round {round} ended without having shown it");
            RpcProblem::new(Code::Internal, "INTERNAL", message).with("round.id", round).into()
        })
    }

    /// At most `limit` events of the audit trail, oldest first. Page size and token of `filter` are not used.
    ///
    /// # Errors
    ///
    /// `PIPELINE_NOT_FOUND`, `ROUND_NOT_FOUND`.
    pub async fn list_audit_events(
        &self,
        filter: ListAuditEventsRequest,
        limit: usize,
    ) -> Result<Vec<AuditEvent>, ClientError> {
        collect_pages(limit, |page_size, page_token| {
            let request = ListAuditEventsRequest { page_size, page_token, ..filter.clone() };
            async move {
                let page = self.call(request, |mut c, r| async move { c.list_audit_events(r).await }).await?;
                Ok((page.events, page.next_page_token))
            }
        })
        .await
    }
}
