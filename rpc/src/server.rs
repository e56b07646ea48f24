//! The stack under every gRPC server of ours.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::{Service, ServiceBuilder};

use crate::connections;
use crate::deadline::DeadlineLayer;
use crate::panics::CatchPanicLayer;
use crate::trace::ServerTraceLayer;

/// Largest header list accepted from a caller; ours are a few hundred bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Limits of a server. The defaults hold for coordinators and agents alike.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections at a time; more are closed at once. 4096.
    pub max_connections: usize,
    /// Calls at a time on one connection; HTTP/2 clients hold back the rest. Long polls and watches count. 256.
    pub max_concurrent_streams: u32,
    /// Time to say the HTTP/2 preface after connecting. 10 s.
    pub greeting_timeout: Duration,
    /// A ping goes out after this much silence. 15 s.
    pub keepalive_interval: Duration,
    /// A connection is closed if a ping stays unanswered for this long. 10 s.
    pub keepalive_timeout: Duration,
    /// Deadline of calls whose caller set none; see [`GrpcServer::bounds_its_own_wait`]. 60 s.
    pub default_deadline: Duration,
    /// After the shutdown signal, calls under way get this long before their connections are closed. 10 s.
    pub shutdown_grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_concurrent_streams: 256,
            greeting_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
            default_deadline: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can't be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: String,
        /// Why the system refused it.
        source: std::io::Error,
    },
    /// The descriptors given for reflection are not a `FileDescriptorSet`.
    #[error("invalid descriptors for gRPC reflection: {0}")]
    Reflection(String),
    /// The server ended by itself.
    #[error("serving gRPC on {addr} failed: {reason}")]
    Serve {
        /// The address served on.
        addr: String,
        /// The whole chain of causes.
        reason: String,
    },
}

/// Listens on `addr` (port 0 for any), with an error that names it.
///
/// # Errors
///
/// The address can't be listened on.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(addr).await.map_err(|source| ServeError::Listen { addr: addr.to_string(), source })
}

/// A gRPC server: services, `grpc.health.v1` beside them, and the limits of [`ServerOptions`] around all.
///
/// From outside to inside, a call passes: connection limit, stream limit, span and metrics, deadline, panic catcher.
pub struct GrpcServer {
    options: ServerOptions,
    routes: RoutesBuilder,
    services: Vec<&'static str>,
    own_wait: HashSet<String>,
    health: HealthReporter,
}

impl fmt::Debug for GrpcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcServer").field("options", &self.options).field("services", &self.services).finish()
    }
}

impl GrpcServer {
    /// A server that knows only `grpc.health.v1.Health`, which says `SERVING` for the whole and for each service.
    pub fn new(options: ServerOptions) -> Self {
        let health = HealthReporter::new();
        let mut routes = Routes::builder();
        routes.add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())));
        Self { options, routes, services: Vec::new(), own_wait: HashSet::new(), health }
    }

    /// Adds a generated service. Give it [`crate::MAX_MESSAGE_BYTES`] in both directions before.
    #[must_use]
    pub fn add_service<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        self.routes.add_service(service);
        self.services.push(S::NAME);
        self
    }

    /// Serves reflection (v1) of an encoded `FileDescriptorSet`, as `lockstep-proto` has one.
    ///
    /// # Errors
    ///
    /// Bytes that are no such set.
    pub fn with_reflection(mut self, descriptors: &'static [u8]) -> Result<Self, ServeError> {
        let service = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| ServeError::Reflection(error.to_string()))?;
        self.routes.add_service(service);
        Ok(self)
    }

    /// Spares a method (`/package.Service/Method`) the default deadline: a long poll, whose request says how long it
    /// waits. Its caller's deadline still counts.
    #[must_use]
    pub fn bounds_its_own_wait(mut self, path: impl Into<String>) -> Self {
        self.own_wait.insert(path.into());
        self
    }

    /// Changes what health checks say, before and while serving.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Serves on `listener` until `shutdown` resolves. Then it accepts nothing more, health says `NOT_SERVING`, calls
    /// under way get [`ServerOptions::shutdown_grace`], and when it returns all connections are closed.
    ///
    /// # Errors
    ///
    /// The server ended by itself.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let addr = listener.local_addr().map_or_else(|_| "an unknown address".to_owned(), |addr| addr.to_string());
        let Self { options, routes, services, own_wait, mut health } = self;
        for service in &services {
            health.set_service_status(service, ServingStatus::Serving).await;
        }

        let hang_up = CancellationToken::new();
        let incoming =
            connections::accept(listener, options.max_connections, options.greeting_timeout, hang_up.clone());
        let layers = ServiceBuilder::new()
            .layer(ServerTraceLayer::default())
            .layer(DeadlineLayer::new(options.default_deadline, own_wait))
            .layer(CatchPanicLayer)
            .into_inner();

        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let signal = async move {
            shutdown.await;
            // Watchers hear NOT_SERVING and then the end of their stream, which would otherwise hold its connection.
            for service in services.into_iter().chain([""]) {
                health.set_service_status(service, ServingStatus::NotServing).await;
                health.clear_service_status(service).await;
            }
            drop(stopping);
        };
        let served = Server::builder()
            .max_concurrent_streams(options.max_concurrent_streams)
            // The client may take the stream limit for advice; this is the server's word on it.
            .concurrency_limit_per_connection(options.max_concurrent_streams as usize)
            .http2_keepalive_interval(Some(options.keepalive_interval))
            .http2_keepalive_timeout(Some(options.keepalive_timeout))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .layer(layers)
            .add_routes(routes.routes())
            .serve_with_incoming_shutdown(incoming, signal);
        let overdue = async {
            let _ = stopped.await;
            tokio::time::sleep(options.shutdown_grace).await;
            hang_up.cancel();
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            outcome = served => outcome.map_err(|error| ServeError::Serve { addr, reason: chain(&error) }),
            never = overdue => match never {},
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
