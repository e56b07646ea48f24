//! A service whose method does what it is told, and a client for it. Messages are those of health checking, so that no
//! code needs to be generated; the path is its own, because the server under test has a health service already.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use lockstep_rpc::{
    ChannelOptions, GrpcServer, Retryable, RpcProblem, ServeError, ServerOptions, TracedChannel, connect_lazy, listen,
};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::server::NamedService;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tower::Service;

/// What panics say, and no caller may learn.
pub(crate) const SECRET: &str = "hunter2";

pub(crate) const CHECK: &str = "/lockstep.test.Probe/Check";
const WATCH: &str = "/lockstep.test.Probe/Watch";

/// Behaves as the request's `service` says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probe {
    /// Told when a handler that hangs is dropped.
    pub(crate) dropped: Arc<Notify>,
    /// Told when a handler waits.
    pub(crate) waiting: Arc<Notify>,
    /// Lets a handler go on that waits.
    pub(crate) go_on: Arc<Notify>,
}

struct TellWhenDropped(Arc<Notify>);

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn answer() -> HealthCheckResponse {
    HealthCheckResponse::default()
}

#[tonic::async_trait]
impl Health for Probe {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "answer" => Ok(Response::new(answer())),
            "fail" => Err(round_in_progress().into_status()),
            "fail at length" => Err(lengthy().into_status()),
            "panic" => panic!("{SECRET}"),
            "hang" => {
                let _tell = TellWhenDropped(Arc::clone(&self.dropped));
                std::future::pending().await
            }
            "wait" => {
                self.waiting.notify_one();
                self.go_on.notified().await;
                Ok(Response::new(answer()))
            }
            "tell trace" => {
                let mut response = Response::new(answer());
                let trace_id = lockstep_telemetry::current_trace_id().unwrap_or_default();
                response.metadata_mut().insert("trace-id", trace_id.parse().unwrap());
                Ok(response)
            }
            other => Err(Status::invalid_argument(other)),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let first = futures::stream::iter([Ok(answer())]);
        Ok(Response::new(match request.into_inner().service.as_str() {
            "stay" => first.chain(futures::stream::pending()).boxed(),
            "panic" => {
                let panic = async {
                    // Otherwise the first message would still wait to be sent.
                    tokio::task::yield_now().await;
                    panic!("{SECRET}")
                };
                first.chain(futures::stream::once(panic)).boxed()
            }
            other => return Err(Status::invalid_argument(other)),
        }))
    }
}

pub(crate) fn round_in_progress() -> RpcProblem {
    RpcProblem::new(Code::Aborted, "ROUND_IN_PROGRESS", "pipeline orders: round 7 is active, é")
        .with("pipeline.name", "orders")
        .with("round.no", 7)
        .retryable(Retryable::AfterFix)
}

pub(crate) fn lengthy() -> RpcProblem {
    RpcProblem::new(Code::DataLoss, "INTEGRITY", "漢".repeat(100_000)).with("file", "x".repeat(100_000))
}

/// The probe under a path of its own.
#[derive(Debug, Clone)]
struct Renamed(HealthServer<Probe>);

impl NamedService for Renamed {
    const NAME: &'static str = "lockstep.test.Probe";
}

impl Service<http::Request<Body>> for Renamed {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = <HealthServer<Probe> as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        *request.uri_mut() = match request.uri().path() {
            CHECK => http::Uri::from_static("/grpc.health.v1.Health/Check"),
            WATCH => http::Uri::from_static("/grpc.health.v1.Health/Watch"),
            _ => http::Uri::from_static("/grpc.health.v1.Health/None"),
        };
        self.0.call(request)
    }
}

/// A running server.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) served: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) fn client(&self) -> Client {
        self.client_with(&ChannelOptions::default())
    }

    pub(crate) fn client_with(&self, options: &ChannelOptions) -> Client {
        Client::new(connect_lazy(&self.address, options).unwrap())
    }
}

pub(crate) async fn start(options: ServerOptions) -> Running {
    start_with(options, Probe::default()).await
}

pub(crate) async fn start_with(options: ServerOptions, probe: Probe) -> Running {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = GrpcServer::new(options)
        .add_service(Renamed(HealthServer::new(probe)))
        .with_reflection(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .unwrap();
    let served = tokio::spawn(server.serve(listener, async move { drop(stopped.await) }));
    Running { address, stop, served }
}

/// What a generated client would be.
#[derive(Debug, Clone)]
pub(crate) struct Client<S = TracedChannel>(Grpc<S>);

impl<S> Client<S>
where
    S: tonic::client::GrpcService<Body, ResponseBody = Body>,
{
    pub(crate) fn new(channel: S) -> Self {
        Self(Grpc::new(channel))
    }

    pub(crate) async fn check(&mut self, what: &str) -> Result<Response<HealthCheckResponse>, Status> {
        self.send(Request::new(HealthCheckRequest { service: what.to_owned() }), CHECK).await
    }

    pub(crate) async fn check_within(
        &mut self,
        what: &str,
        deadline: Duration,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let request = HealthCheckRequest { service: what.to_owned() };
        self.send(lockstep_rpc::with_deadline(Request::new(request), deadline), CHECK).await
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<HealthCheckRequest>,
        path: &'static str,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.ready().await?;
        self.0.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await
    }

    /// The stream, after its first message.
    pub(crate) async fn watch(&mut self, what: &str) -> Result<Streaming<HealthCheckResponse>, Status> {
        self.ready().await?;
        let request = Request::new(HealthCheckRequest { service: what.to_owned() });
        let path = PathAndQuery::from_static(WATCH);
        let mut stream = self.0.server_streaming(request, path, ProstCodec::default()).await?.into_inner();
        stream.message().await?;
        Ok(stream)
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))
    }
}

/// The first item of a stream that ends a test, bounded so that a broken test fails and does not hang.
pub(crate) async fn next<T>(stream: impl Stream<Item = T>) -> Option<T> {
    within(std::pin::pin!(stream).next()).await
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing happened for 20 s")
}
