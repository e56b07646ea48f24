//! A coordinator that answers as scripted, over TCP, behind a proxy whose connections a test can cut.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use lockstep_client::{ACTOR_METADATA, v1};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use v1::coordinator_server::{Coordinator, CoordinatorServer};

/// What the server does with one call.
pub(crate) enum Answer<T> {
    Give(T),
    Refuse(Status),
    /// The call is received and never answered.
    Swallow,
}

#[derive(Default)]
struct Script {
    pushes: VecDeque<Answer<v1::Round>>,
    deletes: VecDeque<Answer<()>>,
    /// Each watch gives these, then ends; with `true` it stays open instead.
    watches: VecDeque<(Vec<Result<v1::Round, Status>>, bool)>,
    rounds: Vec<v1::Round>,
    page_sizes: Vec<i32>,
    seen: Vec<(String, Option<String>)>,
}

#[derive(Clone)]
pub(crate) struct Scripted {
    script: Arc<Mutex<Script>>,
    /// Calls and watches received so far.
    received: Arc<watch::Sender<usize>>,
    cut: Arc<watch::Sender<usize>>,
    pub(crate) address: String,
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        let (server, proxy) = (listener().await, listener().await);
        let (behind, front) = (server.local_addr().unwrap(), proxy.local_addr().unwrap());
        let scripted = Self {
            script: Arc::default(),
            received: Arc::new(watch::Sender::new(0)),
            cut: Arc::new(watch::Sender::new(0)),
            address: format!("http://{front}"),
        };
        let service = CoordinatorServer::new(scripted.clone());
        let incoming = TcpListenerStream::new(server);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        tokio::spawn(forward(proxy, behind, scripted.cut.subscribe()));
        scripted
    }

    pub(crate) fn on_push(&self, answers: impl IntoIterator<Item = Answer<v1::Round>>) {
        self.script.lock().unwrap().pushes.extend(answers);
    }

    pub(crate) fn on_delete(&self, answers: impl IntoIterator<Item = Answer<()>>) {
        self.script.lock().unwrap().deletes.extend(answers);
    }

    pub(crate) fn on_watch(&self, rounds: impl IntoIterator<Item = Result<v1::Round, Status>>, stays_open: bool) {
        self.script.lock().unwrap().watches.push_back((rounds.into_iter().collect(), stays_open));
    }

    pub(crate) fn hold_rounds(&self, rounds: Vec<v1::Round>) {
        self.script.lock().unwrap().rounds = rounds;
    }

    /// Request id and actor of each push received.
    pub(crate) fn seen(&self) -> Vec<(String, Option<String>)> {
        self.script.lock().unwrap().seen.clone()
    }

    pub(crate) fn page_sizes(&self) -> Vec<i32> {
        self.script.lock().unwrap().page_sizes.clone()
    }

    pub(crate) async fn until_received(&self, calls: usize) {
        self.received.subscribe().wait_for(|received| *received >= calls).await.unwrap();
    }

    pub(crate) fn cut_connections(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    async fn play<T>(&self, answer: Option<Answer<T>>) -> Result<Response<T>, Status> {
        self.received.send_modify(|received| *received += 1);
        match answer {
            Some(Answer::Give(value)) => Ok(Response::new(value)),
            Some(Answer::Refuse(status)) => Err(status),
            Some(Answer::Swallow) => std::future::pending().await,
            None => Err(Status::data_loss("the script has no further answer")),
        }
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn forward(listener: TcpListener, to: SocketAddr, mut cut: watch::Receiver<usize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut near, _) = accepted.unwrap();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
            _ = cut.changed() => connections.shutdown().await,
        }
    }
}

fn unscripted<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of any script"))
}

#[tonic::async_trait]
impl Coordinator for Scripted {
    type WatchRoundStream = BoxStream<'static, Result<v1::Round, Status>>;
    type VerifyCheckpointStream = BoxStream<'static, Result<v1::VerifyCheckpointResponse, Status>>;

    async fn start_push(&self, request: Request<v1::StartPushRequest>) -> Result<Response<v1::Round>, Status> {
        let actor = request.metadata().get(ACTOR_METADATA).map(|actor| actor.to_str().unwrap().to_owned());
        let answer = {
            let mut script = self.script.lock().unwrap();
            script.seen.push((request.into_inner().request_id, actor));
            script.pushes.pop_front()
        };
        self.play(answer).await
    }

    async fn delete_pipeline(
        &self,
        _: Request<v1::DeletePipelineRequest>,
    ) -> Result<Response<v1::DeletePipelineResponse>, Status> {
        let answer = self.script.lock().unwrap().deletes.pop_front();
        self.play(answer).await.map(|_| Response::new(v1::DeletePipelineResponse {}))
    }

    async fn watch_round(&self, _: Request<v1::WatchRoundRequest>) -> Result<Response<Self::WatchRoundStream>, Status> {
        let watch = self.script.lock().unwrap().watches.pop_front();
        self.received.send_modify(|received| *received += 1);
        let (rounds, stays_open) = watch.ok_or_else(|| Status::data_loss("the script has no further watch"))?;
        let rounds = futures::stream::iter(rounds);
        Ok(Response::new(if stays_open { rounds.chain(futures::stream::pending()).boxed() } else { rounds.boxed() }))
    }

    async fn list_rounds(
        &self,
        request: Request<v1::ListRoundsRequest>,
    ) -> Result<Response<v1::ListRoundsResponse>, Status> {
        let request = request.into_inner();
        let mut script = self.script.lock().unwrap();
        script.page_sizes.push(request.page_size);
        let start: usize = request.page_token.parse().unwrap_or(0);
        // A server may give less than it was asked for.
        let end = (start + (request.page_size as usize).min(2)).min(script.rounds.len());
        let next_page_token = if end < script.rounds.len() { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListRoundsResponse { rounds: script.rounds[start..end].to_vec(), next_page_token }))
    }

    async fn create_pipeline(&self, _: Request<v1::CreatePipelineRequest>) -> Result<Response<v1::Pipeline>, Status> {
        unscripted()
    }
    async fn get_pipeline(&self, _: Request<v1::GetPipelineRequest>) -> Result<Response<v1::Pipeline>, Status> {
        unscripted()
    }
    async fn list_pipelines(
        &self,
        _: Request<v1::ListPipelinesRequest>,
    ) -> Result<Response<v1::ListPipelinesResponse>, Status> {
        unscripted()
    }
    async fn update_pipeline(&self, _: Request<v1::UpdatePipelineRequest>) -> Result<Response<v1::Pipeline>, Status> {
        unscripted()
    }
    async fn resync(&self, _: Request<v1::ResyncRequest>) -> Result<Response<v1::ResyncResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn pin_checkpoint(&self, _: Request<v1::PinCheckpointRequest>) -> Result<Response<v1::Pin>, Status> {
        unscripted()
    }
    async fn unpin_checkpoint(
        &self,
        _: Request<v1::UnpinCheckpointRequest>,
    ) -> Result<Response<v1::UnpinCheckpointResponse>, Status> {
        unscripted()
    }
    async fn delete_checkpoint(
        &self,
        _: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<v1::DeleteCheckpointResponse>, Status> {
        unscripted()
    }
    async fn collect_garbage(
        &self,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        unscripted()
    }
    async fn activate(&self, _: Request<v1::ActivateRequest>) -> Result<Response<v1::TakeOverResponse>, Status> {
        unscripted()
    }
    async fn start_standby(&self, _: Request<v1::StartStandbyRequest>) -> Result<Response<v1::Pipeline>, Status> {
        unscripted()
    }
    async fn stop_standby(&self, _: Request<v1::StopStandbyRequest>) -> Result<Response<v1::Pipeline>, Status> {
        unscripted()
    }
    async fn take_over(&self, _: Request<v1::TakeOverRequest>) -> Result<Response<v1::TakeOverResponse>, Status> {
        unscripted()
    }
    async fn accept_loss(&self, _: Request<v1::AcceptLossRequest>) -> Result<Response<v1::AcceptLossResponse>, Status> {
        unscripted()
    }
    async fn cancel_take_over(
        &self,
        _: Request<v1::CancelTakeOverRequest>,
    ) -> Result<Response<v1::CancelTakeOverResponse>, Status> {
        unscripted()
    }
    async fn start_pull(&self, _: Request<v1::StartPullRequest>) -> Result<Response<v1::Round>, Status> {
        unscripted()
    }
    async fn get_round(&self, _: Request<v1::GetRoundRequest>) -> Result<Response<v1::Round>, Status> {
        unscripted()
    }
    async fn cancel_round(&self, _: Request<v1::CancelRoundRequest>) -> Result<Response<v1::Round>, Status> {
        unscripted()
    }
    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        unscripted()
    }
    async fn get_checkpoint(&self, _: Request<v1::GetCheckpointRequest>) -> Result<Response<v1::Checkpoint>, Status> {
        unscripted()
    }
    async fn verify_checkpoint(
        &self,
        _: Request<v1::VerifyCheckpointRequest>,
    ) -> Result<Response<Self::VerifyCheckpointStream>, Status> {
        unscripted()
    }
    async fn list_audit_events(
        &self,
        _: Request<v1::ListAuditEventsRequest>,
    ) -> Result<Response<v1::ListAuditEventsResponse>, Status> {
        unscripted()
    }
}
