//! Layers that make each call one span on either side, in one trace.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use opentelemetry::trace::TraceContextExt;
use tonic::body::Body;
use tonic::{Code, Status, TimeoutExpired};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::carrier;
use crate::error::RpcProblem;
use crate::observation::{KnownMethods, Observation, Rpc, Side};

type BoxFuture<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

/// Opens the span of a call with all fields that are known later left empty.
macro_rules! rpc_span {
    ($level:expr, $rpc:expr, $kind:literal, $peer:expr) => {
        tracing::span!(
            $level,
            "rpc",
            otel.name = %$rpc,
            otel.kind = $kind,
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = $rpc.service,
            rpc.method = $rpc.method,
            rpc.grpc.status_code = Empty,
            server.address = $peer,
            trace_id = Empty,
        )
    };
}

fn span_of(side: Side, rpc: &Rpc, server: Option<&str>) -> Span {
    match (side, rpc.is_probe()) {
        (Side::Server, false) => rpc_span!(tracing::Level::INFO, rpc, "server", server),
        (Side::Server, true) => rpc_span!(tracing::Level::DEBUG, rpc, "server", server),
        (Side::Client, false) => rpc_span!(tracing::Level::INFO, rpc, "client", server),
        (Side::Client, true) => rpc_span!(tracing::Level::DEBUG, rpc, "client", server),
    }
}

/// The id of the trace that `span` belongs to, if there is one.
pub(crate) fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Adds [`ServerTrace`] to a server; [`crate::GrpcServer`] does it by itself.
#[derive(Debug, Clone, Default)]
pub struct ServerTraceLayer {
    known: KnownMethods,
}

impl<S> Layer<S> for ServerTraceLayer {
    type Service = ServerTrace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ServerTrace { inner, known: self.known.clone() }
    }
}

/// Continues the caller's trace: one span and one count for each call that comes in. Log lines within carry
/// `trace_id`. Health checks and reflection are spans of level debug.
#[derive(Debug, Clone)]
pub struct ServerTrace<S> {
    inner: S,
    known: KnownMethods,
}

impl<S> Service<Request<Body>> for ServerTrace<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let rpc = Rpc::of_path(request.uri().path());
        let span = span_of(Side::Server, &rpc, None);
        let caller = carrier::extract(request.headers());
        if caller.span().span_context().is_valid() {
            // Refused only if the span is filtered out; there is nothing to connect then.
            let _ = span.set_parent(caller);
        }
        if let Some(trace_id) = trace_id(&span) {
            span.record("trace_id", trace_id);
        }
        let observation = Observation::server(rpc, span.clone(), self.known.clone());
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(observation.response(response)),
                Err(error) => {
                    observation.failed(Code::Internal);
                    Err(error)
                }
            }
        })
    }
}

/// A client's channel that sends the current trace along with each call, and makes of each a span and a count.
///
/// Its errors are statuses: a call that got no answer is `UNAVAILABLE` and says which server was called and what failed
/// on the way; one that ran out of time is `DEADLINE_EXCEEDED`. (tonic by itself says `CANCELLED` for most of these.)
#[derive(Debug, Clone)]
pub struct ClientTrace<S> {
    inner: S,
    server: Arc<str>,
}

impl<S> ClientTrace<S> {
    /// Wraps the channel to `server`, an address for people.
    pub fn new(inner: S, server: impl Into<Arc<str>>) -> Self {
        Self { inner, server: server.into() }
    }
}

impl<S> Service<Request<Body>> for ClientTrace<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<tonic::codegen::StdError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Status>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(|error| Status::from_error(error.into()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rpc = Rpc::of_path(request.uri().path());
        let span = span_of(Side::Client, &rpc, Some(&self.server));
        // A span that is filtered out has no context, but the caller's may have one.
        let caller = if span.is_disabled() { Span::current().context() } else { span.context() };
        carrier::inject(&caller, request.headers_mut());
        let observation = Observation::client(rpc.clone(), span.clone());
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(observation.response(response)),
                Err(error) => {
                    let status = lost(error.into(), &rpc, &server);
                    observation.failed(status.code());
                    Err(status)
                }
            }
        })
    }
}

/// The status of a call that has no answer.
fn lost(error: tonic::codegen::StdError, rpc: &Rpc, server: &str) -> Status {
    let mut causes: Vec<String> = Vec::new();
    let mut timed_out = false;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(cause) = next {
        timed_out |= cause.is::<TimeoutExpired>();
        let text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !causes.iter().any(|known| known.contains(&text)) {
            causes.push(text);
        }
        next = cause.source();
    }
    if timed_out {
        let message = format!("{server}: {rpc} was not answered within its deadline");
        return deadline_exceeded(message, rpc).with("server.address", server).into_status();
    }
    // tonic has several codes for a lost connection, by where it was lost; to the caller they are one.
    let code = match Status::from_error(error).code() {
        code @ (Code::ResourceExhausted | Code::PermissionDenied) => code,
        _ => Code::Unavailable,
    };
    let message = format!("{server}: {rpc} got no answer: {}", causes.join(": "));
    RpcProblem::new(code, crate::code_name(code), message).with("server.address", server).with("rpc", rpc).into_status()
}

/// A call that ran out of time, on either side.
pub(crate) fn deadline_exceeded(message: String, rpc: &Rpc) -> RpcProblem {
    RpcProblem::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message).with("rpc", rpc)
}
