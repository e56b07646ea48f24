//! The gRPC service `lockstep.v1.Coordinator`: checks what callers say, admits rounds, and answers from the database, the agents and the bucket.
//!
//! It drives nothing. What has an effect is a row that `dispatch` picks up; calls that answer when the effect is known only wait for that
//! row, so a caller that goes away changes nothing. Handlers return [`Problem`]s, and one function gives them their gRPC code.
//!
//! - `caller`, `request`: what all requests have in common
//! - `pipelines`, `losses`, `standby`, `take_over`, `rounds`, `checkpoints`, `upkeep`, `audit`: one subject each
//! - `watch`: waiting for rows to change, for watches and for calls that answer later

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use lockstep_bucket::Connector;
use lockstep_proto::v1::{self, coordinator_server::Coordinator};
use lockstep_protocol::{problem::Problem, round::RetryPolicy};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{agents::AgentReads, convert::status::status, plan::PlanOptions, store::Store};

mod audit;
mod caller;
mod checkpoints;
mod cursor;
mod losses;
mod pipelines;
mod preview;
mod request;
mod resync;
mod rounds;
mod standby;
mod take_over;
mod upkeep;
mod watch;

pub use caller::ACTOR_HEADER;

/// Methods that wait for something on purpose: they bound that themselves, so the server's default deadline does not.
pub const OWN_WAIT: [&str; 5] = [
    "/lockstep.v1.Coordinator/CreatePipeline",
    "/lockstep.v1.Coordinator/Resync",
    "/lockstep.v1.Coordinator/WatchRound",
    "/lockstep.v1.Coordinator/VerifyCheckpoint",
    // Its dry run reads what every checkpoint reaches.
    "/lockstep.v1.Coordinator/CollectGarbage",
];

/// Settings of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiOptions {
    /// Of a push whose caller gives none.
    pub push_deadline: Duration,
    /// Of a pull whose caller gives none.
    pub pull_deadline: Duration,
    /// Frozen in each round that is admitted.
    pub retry: RetryPolicy,
    /// How long CreatePipeline waits for the claim of its location.
    pub create_wait: Duration,
    /// How long CancelRound waits for the round to end.
    pub cancel_wait: Duration,
    /// How long StartPush asks agents whether there is anything to push; a longer answer is left to planning.
    pub look_wait: Duration,
    /// How long what is retired keeps its objects, as dispatch has it.
    pub gc_grace: Duration,
    /// How long `validate_only` insists on agents and buckets that don't answer; a round insists longer.
    pub preview: PlanOptions,
}

impl Default for ApiOptions {
    fn default() -> Self {
        let deadline = Duration::from_secs(3600);
        Self {
            push_deadline: deadline,
            pull_deadline: deadline,
            retry: RetryPolicy::default(),
            // Below the 30 s that clients usually give a call, so that they get the cause and not a deadline.
            create_wait: Duration::from_secs(20),
            cancel_wait: Duration::from_secs(5),
            look_wait: Duration::from_secs(3),
            gc_grace: Duration::from_secs(24 * 3600),
            preview: PlanOptions { unreachable_after: Duration::from_secs(10), store_patience: Duration::from_secs(5) },
        }
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct Api {
    store: Store,
    agents: Arc<dyn AgentReads>,
    connector: Arc<dyn Connector>,
    options: ApiOptions,
    stopping: CancellationToken,
}

impl Api {
    /// `stopping` ends watches and waits when the process is about to.
    pub fn new(
        store: Store,
        agents: Arc<dyn AgentReads>,
        connector: Arc<dyn Connector>,
        options: ApiOptions,
        stopping: CancellationToken,
    ) -> Self {
        Self { store, agents, connector, options, stopping }
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What every call ends in.
fn answer<T>(outcome: Result<T, Problem>) -> Result<Response<T>, Status> {
    match outcome {
        Ok(message) => Ok(Response::new(message)),
        Err(problem) => {
            tracing::debug!(reason = %problem.reason, %problem, "refused");
            Err(status(problem))
        }
    }
}

#[tonic::async_trait]
impl Coordinator for Api {
    type WatchRoundStream = Messages<v1::Round>;
    type VerifyCheckpointStream = Messages<v1::VerifyCheckpointResponse>;

    async fn create_pipeline(
        &self,
        request: Request<v1::CreatePipelineRequest>,
    ) -> Result<Response<v1::Pipeline>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_create_pipeline(caller, request.into_inner())).await)
    }

    async fn get_pipeline(&self, request: Request<v1::GetPipelineRequest>) -> Result<Response<v1::Pipeline>, Status> {
        answer(self.do_get_pipeline(request.into_inner()).await)
    }

    async fn list_pipelines(
        &self,
        request: Request<v1::ListPipelinesRequest>,
    ) -> Result<Response<v1::ListPipelinesResponse>, Status> {
        answer(self.do_list_pipelines(request.into_inner()).await)
    }

    async fn update_pipeline(
        &self,
        request: Request<v1::UpdatePipelineRequest>,
    ) -> Result<Response<v1::Pipeline>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_update_pipeline(caller, request.into_inner())).await)
    }

    async fn delete_pipeline(
        &self,
        request: Request<v1::DeletePipelineRequest>,
    ) -> Result<Response<v1::DeletePipelineResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(self.do_delete_pipeline(caller, request.into_inner()).await)
    }

    async fn activate(&self, request: Request<v1::ActivateRequest>) -> Result<Response<v1::TakeOverResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_activate(caller, request.into_inner())).await)
    }

    async fn cancel_take_over(
        &self,
        request: Request<v1::CancelTakeOverRequest>,
    ) -> Result<Response<v1::CancelTakeOverResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(self.do_cancel_take_over(caller, request.into_inner()).await)
    }

    async fn accept_loss(
        &self,
        request: Request<v1::AcceptLossRequest>,
    ) -> Result<Response<v1::AcceptLossResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_accept_loss(caller, request.into_inner())).await)
    }

    async fn start_standby(&self, request: Request<v1::StartStandbyRequest>) -> Result<Response<v1::Pipeline>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_start_standby(caller, request.into_inner())).await)
    }

    async fn stop_standby(&self, request: Request<v1::StopStandbyRequest>) -> Result<Response<v1::Pipeline>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_stop_standby(caller, request.into_inner())).await)
    }

    async fn take_over(&self, request: Request<v1::TakeOverRequest>) -> Result<Response<v1::TakeOverResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_take_over(caller, request.into_inner())).await)
    }

    async fn resync(&self, request: Request<v1::ResyncRequest>) -> Result<Response<v1::ResyncResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_resync(caller, request.into_inner())).await)
    }

    async fn start_push(&self, request: Request<v1::StartPushRequest>) -> Result<Response<v1::Round>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_start_push(caller, request.into_inner())).await)
    }

    async fn start_pull(&self, request: Request<v1::StartPullRequest>) -> Result<Response<v1::Round>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_start_pull(caller, request.into_inner())).await)
    }

    async fn get_round(&self, request: Request<v1::GetRoundRequest>) -> Result<Response<v1::Round>, Status> {
        answer(self.do_get_round(&request.into_inner()).await)
    }

    async fn list_rounds(
        &self,
        request: Request<v1::ListRoundsRequest>,
    ) -> Result<Response<v1::ListRoundsResponse>, Status> {
        answer(self.do_list_rounds(request.into_inner()).await)
    }

    async fn cancel_round(&self, request: Request<v1::CancelRoundRequest>) -> Result<Response<v1::Round>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_cancel_round(caller, request.into_inner())).await)
    }

    async fn watch_round(
        &self,
        request: Request<v1::WatchRoundRequest>,
    ) -> Result<Response<Self::WatchRoundStream>, Status> {
        answer(self.do_watch_round(&request.into_inner()).await)
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        answer(Box::pin(self.do_list_checkpoints(request.into_inner())).await)
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        answer(Box::pin(self.do_get_checkpoint(request.into_inner())).await)
    }

    async fn verify_checkpoint(
        &self,
        request: Request<v1::VerifyCheckpointRequest>,
    ) -> Result<Response<Self::VerifyCheckpointStream>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_verify_checkpoint(caller, request.into_inner())).await)
    }

    async fn pin_checkpoint(&self, request: Request<v1::PinCheckpointRequest>) -> Result<Response<v1::Pin>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_pin_checkpoint(caller, request.into_inner())).await)
    }

    async fn unpin_checkpoint(
        &self,
        request: Request<v1::UnpinCheckpointRequest>,
    ) -> Result<Response<v1::UnpinCheckpointResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_unpin_checkpoint(caller, request.into_inner())).await)
    }

    async fn delete_checkpoint(
        &self,
        request: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<v1::DeleteCheckpointResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_delete_checkpoint(caller, request.into_inner())).await)
    }

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        let caller = caller::caller(&request).map_err(status)?;
        answer(Box::pin(self.do_collect_garbage(caller, request.into_inner())).await)
    }

    async fn list_audit_events(
        &self,
        request: Request<v1::ListAuditEventsRequest>,
    ) -> Result<Response<v1::ListAuditEventsResponse>, Status> {
        answer(self.do_list_audit_events(request.into_inner()).await)
    }
}
