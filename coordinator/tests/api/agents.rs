//! Agents that only say who they are and what they hold: enough for what the API asks. Every order is refused.

use lockstep_proto::v1::{self, agent_server::AgentServer};
use lockstep_rpc::{GrpcServer, ServerOptions};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use crate::harness::uuid;

/// One host's agent.
#[derive(Clone)]
struct Silent {
    pipeline: String,
    host_info: v1::HostInfo,
    incarnation: String,
    checkpoints: Vec<v1::LocalCheckpoint>,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this agent takes no orders"))
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Silent {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new(v1::DescribeResponse {
            pipeline: self.pipeline.clone(),
            host_info: Some(self.host_info),
            incarnation: self.incarnation.clone(),
            version: "test".to_owned(),
            store: "directory".to_owned(),
            ..v1::DescribeResponse::default()
        }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Result<Response<v1::ListLocalCheckpointsResponse>, Status> {
        Ok(Response::new(v1::ListLocalCheckpointsResponse {
            incarnation: self.incarnation.clone(),
            checkpoints: self.checkpoints.clone(),
        }))
    }

    async fn push(&self, _: Request<v1::PushOrder>) -> Result<Response<v1::PushStatusResponse>, Status> {
        not_here()
    }

    async fn pull(&self, _: Request<v1::PullOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        not_here()
    }

    async fn push_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::PushStatusResponse>, Status> {
        not_here()
    }

    async fn pull_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::PullStatusResponse>, Status> {
        not_here()
    }

    async fn install(&self, _: Request<v1::InstallOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        not_here()
    }

    async fn ready(&self, _: Request<v1::ReadyOrder>) -> Result<Response<v1::ReadyResponse>, Status> {
        not_here()
    }

    async fn cancel(&self, _: Request<v1::CancelOrder>) -> Result<Response<v1::CancelResponse>, Status> {
        not_here()
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        not_here()
    }
}

/// The agents of one pipeline; they end with the value.
pub(crate) struct Agents {
    pub(crate) addresses: Vec<String>,
    /// By host, then as given.
    pub(crate) checkpoints: Vec<Vec<v1::LocalCheckpoint>>,
    _stop: DropGuard,
}

impl Agents {
    /// One agent a host, holding local checkpoints of these steps.
    pub(crate) async fn start(pipeline: &str, steps: &[&[u64]]) -> Self {
        let stop = CancellationToken::new();
        let n_hosts = u32::try_from(steps.len()).unwrap();
        let (mut addresses, mut checkpoints) = (Vec::new(), Vec::new());
        for (host_idx, steps) in (0..).zip(steps) {
            let own: Vec<_> = steps
                .iter()
                .map(|&step| v1::LocalCheckpoint { uuid: uuid(), step, bytes: 10, files: 1, ..Default::default() })
                .collect();
            let agent = Silent {
                pipeline: pipeline.to_owned(),
                host_info: v1::HostInfo { host_idx, n_hosts },
                incarnation: uuid(),
                checkpoints: own.clone(),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(format!("http://{}", listener.local_addr().unwrap()));
            checkpoints.push(own);
            let server = GrpcServer::new(ServerOptions::default()).add_service(AgentServer::new(agent));
            let stopped = stop.clone();
            tokio::spawn(async move { server.serve(listener, stopped.cancelled_owned()).await.unwrap() });
        }
        Self { addresses, checkpoints, _stop: stop.drop_guard() }
    }
}
