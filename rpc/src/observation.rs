//! One call as its span and its metrics see it, from the first byte to the last.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;

use crate::error::code_name;

/// Longest path shown in spans: a caller may send anything.
const PATH_LIMIT: usize = 128;

/// Which end of a call is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

impl Side {
    const fn metrics(self) -> (&'static str, &'static str) {
        match self {
            Self::Server => ("lockstep_rpc_server_requests_total", "lockstep_rpc_server_duration_seconds"),
            Self::Client => ("lockstep_rpc_client_requests_total", "lockstep_rpc_client_duration_seconds"),
        }
    }

    /// Whether the span is marked as failed. A server that refuses a wrong call has done its work; to the caller it is
    /// a failure (OpenTelemetry's conventions for gRPC).
    const fn is_failure(self, code: Code) -> bool {
        match self {
            Self::Client => !matches!(code, Code::Ok),
            Self::Server => matches!(
                code,
                Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::Unimplemented
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            ),
        }
    }
}

/// What is called: the two parts of a request's path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Rpc {
    pub(crate) service: String,
    pub(crate) method: String,
}

impl Rpc {
    pub(crate) fn of_path(path: &str) -> Self {
        let path = &path[..path.floor_char_boundary(PATH_LIMIT)];
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        Self { service: service.to_owned(), method: method.to_owned() }
    }

    fn unknown() -> Self {
        Self { service: "unknown".to_owned(), method: "unknown".to_owned() }
    }

    /// Calls that come all the time and say nothing: their spans have level debug.
    pub(crate) fn is_probe(&self) -> bool {
        self.service.starts_with("grpc.health.") || self.service.starts_with("grpc.reflection.")
    }
}

impl std::fmt::Display for Rpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.method)
    }
}

/// The methods that were ever answered as existing. Only these become metric labels on a server: otherwise whoever can
/// connect could fill its memory with made-up names.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownMethods(Arc<RwLock<HashSet<Rpc>>>);

impl KnownMethods {
    fn admit(&self, rpc: &Rpc, code: Code, answered: bool) -> bool {
        if self.0.read().unwrap_or_else(PoisonError::into_inner).contains(rpc) {
            return true;
        }
        let exists = answered && code != Code::Unimplemented;
        exists && self.0.write().unwrap_or_else(PoisonError::into_inner).insert(rpc.clone())
    }
}

/// A call under way. It ends with a code exactly once; if nobody says which, it was cancelled.
#[derive(Debug)]
pub(crate) struct Observation {
    side: Side,
    rpc: Rpc,
    span: Span,
    started: Instant,
    known: Option<KnownMethods>,
    /// Whether there is an answer, if only its head.
    answered: bool,
    ended: bool,
}

impl Observation {
    pub(crate) fn server(rpc: Rpc, span: Span, known: KnownMethods) -> Self {
        Self {
            side: Side::Server,
            rpc,
            span,
            started: Instant::now(),
            known: Some(known),
            answered: false,
            ended: false,
        }
    }

    pub(crate) fn client(rpc: Rpc, span: Span) -> Self {
        Self { side: Side::Client, rpc, span, started: Instant::now(), known: None, answered: false, ended: false }
    }

    /// Watches the answer to its end. An answer that is only headers ends here.
    pub(crate) fn response(mut self, response: http::Response<Body>) -> http::Response<Body> {
        self.answered = true;
        match code_in(response.headers()) {
            Some(code) => {
                self.end(code);
                response
            }
            None => response.map(|body| Body::new(ObservedBody { body, observation: self })),
        }
    }

    /// The call failed before there was an answer.
    pub(crate) fn failed(mut self, code: Code) {
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.span.record("rpc.grpc.status_code", code as i32);
        if self.side.is_failure(code) {
            self.span.record("otel.status_code", "ERROR");
        }
        let shown = self.known.as_ref().is_none_or(|known| known.admit(&self.rpc, code, self.answered));
        let Rpc { service, method } = if shown { self.rpc.clone() } else { Rpc::unknown() };
        let (requests, duration) = self.side.metrics();
        let labels = [("service", service), ("method", method), ("code", code_name(code).to_owned())];
        metrics::counter!(requests, &labels).increment(1);
        metrics::histogram!(duration, &labels).record(self.started.elapsed());
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// A response body that tells the observation how the call ended.
struct ObservedBody {
    body: Body,
    observation: Observation,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let frame = {
            let _inside = this.observation.span.enter();
            ready!(Pin::new(&mut this.body).poll_frame(context))
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.observation.end(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Some(Err(status)) => this.observation.end(status.code()),
            None => this.observation.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_into_service_and_method() {
        let rpc = Rpc::of_path("/lockstep.v1.Agent/StartPush");
        assert_eq!((rpc.service.as_str(), rpc.method.as_str()), ("lockstep.v1.Agent", "StartPush"));
        assert_eq!(rpc.to_string(), "lockstep.v1.Agent/StartPush");
    }

    #[test]
    fn a_senseless_path_is_shown_bounded() {
        assert_eq!(Rpc::of_path("nothing").service, "nothing");
        assert!(Rpc::of_path(&format!("/{}/é", "x".repeat(126))).to_string().len() <= PATH_LIMIT);
    }

    #[test]
    fn a_made_up_method_never_becomes_a_label() {
        let known = KnownMethods::default();
        let (real, fake) = (Rpc::of_path("/a.B/Real"), Rpc::of_path("/a.B/Fake"));
        assert!(!known.admit(&fake, Code::Unimplemented, true));
        assert!(!known.admit(&fake, Code::Cancelled, false), "cancelled before anything answered");
        assert!(known.admit(&real, Code::NotFound, true));
        assert!(known.admit(&real, Code::Cancelled, false), "answered before, so it exists");
    }
}
