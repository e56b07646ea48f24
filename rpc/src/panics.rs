//! A panic in a handler is that call's `INTERNAL` error, and nobody else's.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Span;

use crate::error::RpcProblem;
use crate::observation::Rpc;
use crate::trace::trace_id;

/// Catches panics of the handler and of the stream it answers with. What was said goes to the log; the caller only
/// learns the trace under which to find it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CatchPanicLayer;

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic { inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct CatchPanic<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for CatchPanic<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let rpc = Rpc::of_path(request.uri().path());
        // Unwind safe: what panicked is never polled again, and its service is cloned for each connection.
        let mut answer = match catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
            Ok(answer) => Box::pin(answer),
            Err(panic) => {
                let response = problem(&rpc, &*panic).into_status().into_http();
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        Box::pin(std::future::poll_fn(move |context| {
            match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(context))) {
                Ok(polled) => polled.map_ok(|response| {
                    response.map(|body| Body::new(CatchPanicBody { body: Some(body), rpc: rpc.clone() }))
                }),
                Err(panic) => Poll::Ready(Ok(problem(&rpc, &*panic).into_status().into_http())),
            }
        }))
    }
}

fn problem(rpc: &Rpc, panic: &(dyn Any + Send)) -> RpcProblem {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("something that is no text");
    tracing::error!(%rpc, panic = said, "a handler panicked");
    let problem =
        RpcProblem::new(Code::Internal, "INTERNAL", format!("{rpc} failed inside the server; its log says why"));
    match trace_id(&Span::current()) {
        Some(trace_id) => problem.with("trace_id", trace_id),
        None => problem,
    }
}

/// A response body whose panic becomes the stream's last frame.
struct CatchPanicBody {
    /// Gone once it has panicked.
    body: Option<Body>,
    rpc: Rpc,
}

impl http_body::Body for CatchPanicBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context))) {
            Ok(polled) => polled,
            Err(panic) => {
                self.body = None;
                let status = problem(&self.rpc, &*panic).into_status();
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
