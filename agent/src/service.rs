//! The gRPC service: converts, checks in the order the protocol names, and lets [`Core`] do the rest.

use std::sync::{Arc, PoisonError};

use lockstep_proto::v1::{self, agent_server::Agent};
use lockstep_protocol::{order::OrderHeader, problem::Problem};
use tonic::{Request, Response, Status};

use crate::{
    alone::refuse_multihost,
    convert,
    core::Core,
    register::{Family, View, ViewState},
    sync,
};

type Answer<T> = Result<Response<T>, Status>;

/// One agent, as the coordinator sees it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    core: Arc<Core>,
}

impl Service {
    pub(crate) const fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Parses the header and compares it with this agent before the rest of an order is looked at: a wrong host is told so, whatever else
    /// the order says.
    fn header(&self, raw: Option<v1::OrderHeader>) -> Result<OrderHeader, Problem> {
        let header = convert::header(raw, self.core.default_endpoint.as_deref())?;
        self.core.identify(&header, None)?;
        Ok(header)
    }

    fn push_status(&self, view: &View) -> v1::PushStatusResponse {
        use v1::push_status_response::State;
        let state = match &view.state {
            ViewState::InProgress(snapshot) => State::InProgress(convert::progress(snapshot)),
            ViewState::Pushed(done) => State::Done(convert::push_done(done)),
            ViewState::Failed(problem) => State::Failed(convert::problem(problem)),
            ViewState::NotRequested | ViewState::Pulled(_) => State::NotRequested(v1::NotRequested {}),
        };
        v1::PushStatusResponse {
            incarnation: self.core.identity.incarnation.to_string(),
            round: view.round.to_string(),
            attempt: view.attempt.get(),
            state: Some(state),
            throttled: view.state.throttled(),
        }
    }

    fn pull_status(&self, view: &View) -> v1::PullStatusResponse {
        use v1::pull_status_response::State;
        let state = match &view.state {
            ViewState::InProgress(snapshot) => State::InProgress(convert::progress(snapshot)),
            ViewState::Pulled(done) => State::Done(convert::pull_done(done)),
            ViewState::Failed(problem) => State::Failed(convert::problem(problem)),
            ViewState::NotRequested | ViewState::Pushed(_) => State::NotRequested(v1::NotRequested {}),
        };
        v1::PullStatusResponse {
            incarnation: self.core.identity.incarnation.to_string(),
            round: view.round.to_string(),
            attempt: view.attempt.get(),
            state: Some(state),
            throttled: view.state.throttled(),
        }
    }

    async fn describe(&self) -> v1::DescribeResponse {
        let core = &self.core;
        let store = Arc::clone(&core.store);
        let free = core.blocking(move || crate::space::free_bytes(&store.staging_root()?)).await;
        let free_bytes = free.unwrap_or_else(|problem| {
            // Describe has no effects and no checks: it answers, and the next pull tells what is wrong with the disk.
            tracing::warn!(reason = %problem.reason, "free space is unknown: {}", problem.message);
            0
        });
        v1::DescribeResponse {
            pipeline: core.identity.pipeline.to_string(),
            host_info: convert::host_info(core.identity.slot),
            incarnation: core.identity.incarnation.to_string(),
            allowed_locations: core.identity.allowed.iter().map(convert::location_out).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: core.store.kind().to_owned(),
            running: core.register.running().map(|running| v1::RunningTransfer {
                kind: running.activity.as_str().to_owned(),
                round: running.round.to_string(),
                attempt: running.attempt.get(),
                progress: Some(convert::progress(&running.progress)),
            }),
            highest: core.marks.lock().await.highest_of(&core.identity.pipeline).map(convert::mark),
            free_bytes,
            ready: core.words.lock().await.word().map(|word| {
                let problem = core.hook_problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
                convert::ready_word(&word, problem.filter(|(of, _)| *of == word).map(|(_, problem)| problem))
            }),
        }
    }
}

fn answer<T>(outcome: Result<T, Problem>) -> Answer<T> {
    outcome.map(Response::new).map_err(|problem| {
        tracing::info!(reason = %problem.reason, "refused: {}", problem.message);
        convert::status(&problem)
    })
}

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Answer<v1::DescribeResponse> {
        Ok(Response::new(self.describe().await))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Answer<v1::ListLocalCheckpointsResponse> {
        let store = Arc::clone(&self.core.store);
        let listed = self.core.blocking(move || store.list()).await;
        answer(listed.map(|checkpoints| v1::ListLocalCheckpointsResponse {
            incarnation: self.core.identity.incarnation.to_string(),
            checkpoints: checkpoints.iter().map(convert::local_checkpoint).collect(),
        }))
    }

    async fn push(&self, request: Request<v1::PushOrder>) -> Answer<v1::PushStatusResponse> {
        let order = async {
            let mut raw = request.into_inner();
            let header = self.header(raw.header.take())?;
            let order = convert::push(raw, header, self.core.limits)?;
            let view = Core::whole(Arc::clone(&self.core).push(order)).await?;
            Ok(self.push_status(&view))
        };
        answer(order.await)
    }

    async fn pull(&self, request: Request<v1::PullOrder>) -> Answer<v1::PullStatusResponse> {
        let order = async {
            let mut raw = request.into_inner();
            let header = self.header(raw.header.take())?;
            let order = convert::pull(raw, header, self.core.default_endpoint.as_deref(), self.core.limits)?;
            let view = Core::whole(Arc::clone(&self.core).pull(order)).await?;
            Ok(self.pull_status(&view))
        };
        answer(order.await)
    }

    async fn push_status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::PushStatusResponse> {
        let status = async {
            let raw = request.into_inner();
            let header = self.header(raw.header)?;
            let view = self.core.status(&header, Family::Push, convert::wait(raw.wait)?).await?;
            Ok(self.push_status(&view))
        };
        answer(status.await)
    }

    async fn pull_status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::PullStatusResponse> {
        let status = async {
            let raw = request.into_inner();
            let header = self.header(raw.header)?;
            let view = self.core.status(&header, Family::Pull, convert::wait(raw.wait)?).await?;
            Ok(self.pull_status(&view))
        };
        answer(status.await)
    }

    async fn install(&self, request: Request<v1::InstallOrder>) -> Answer<v1::PullStatusResponse> {
        let order = async {
            let mut raw = request.into_inner();
            let header = self.header(raw.header.take())?;
            let order = convert::install(&raw, header)?;
            let view = Core::whole(Arc::clone(&self.core).install(order)).await?;
            Ok(self.pull_status(&view))
        };
        answer(order.await)
    }

    async fn ready(&self, request: Request<v1::ReadyOrder>) -> Answer<v1::ReadyResponse> {
        let order = async {
            let mut raw = request.into_inner();
            let header = self.header(raw.header.take())?;
            let order = convert::ready(&raw, header)?;
            Core::whole(Arc::clone(&self.core).ready(order)).await?;
            Ok(v1::ReadyResponse { incarnation: self.core.identity.incarnation.to_string() })
        };
        answer(order.await)
    }

    async fn cancel(&self, request: Request<v1::CancelOrder>) -> Answer<v1::CancelResponse> {
        let order = async {
            let header = self.header(request.into_inner().header)?;
            let stopped = Core::whole(Arc::clone(&self.core).cancel(header)).await?;
            Ok(v1::CancelResponse { stopped })
        };
        answer(order.await)
    }

    async fn sync(&self, request: Request<v1::SyncRequest>) -> Answer<v1::SyncResponse> {
        let order = async {
            refuse_multihost(self.core.identity.slot)?;
            let location =
                convert::location("location", request.into_inner().location, self.core.default_endpoint.as_deref())?;
            let synced = Core::whole(sync::sync(Arc::clone(&self.core), location)).await?;
            Ok(v1::SyncResponse {
                commit: Some(convert::commit_ref_out(&synced.commit)),
                done: Some(convert::push_done(&synced.done)),
            })
        };
        answer(order.await)
    }
}
