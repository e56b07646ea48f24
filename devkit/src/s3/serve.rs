//! Connections and requests: what stands between the socket and the S3 operations.
//!
//! Each connection is served by a future of ours, so a fault can end it: the handler cancels the connection's token and
//! never answers, and the future drops the socket. With lingering off, that sends RST instead of FIN, and the client sees
//! "connection reset" rather than an orderly end.

mod effects;

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::S3Service;
use s3s::{Body, HttpError, S3Error, S3ErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Denials;
use super::body::{Direction, Shaped, Shared};
use super::control;
use super::faults::{FaultAction, Faults};
use super::operation::Target;
use super::requests::{Exchange, RequestLog};
use super::service::WriteDelay;
use effects::{after, before, bend, other_range, shape_in, shape_out, write_delay};

/// What a client that was refused may still send before it has to listen.
const DRAINED: u64 = 256 * 1024 * 1024;

/// Large bodies come in fewer, larger pieces.
const BUFFER: usize = 1024 * 1024;

pub(crate) type Answer = Response<Either<Shaped<Body>, Full<Bytes>>>;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) service: S3Service,
    pub(crate) faults: Faults,
    pub(crate) denials: Denials,
    pub(crate) log: RequestLog,
    pub(crate) stopping: CancellationToken,
    pub(crate) connections: TaskTracker,
}

/// How the requests of a connection may end it.
#[derive(Debug, Clone, Default)]
struct Closing {
    now: CancellationToken,
    /// Once the answer under way is out.
    after_answer: CancellationToken,
}

impl Closing {
    async fn reset_now(&self) -> ! {
        self.now.cancel();
        // The connection's future drops this one.
        pending().await
    }
}

pub(crate) async fn accept(listener: TcpListener, context: Arc<Context>) {
    loop {
        let accepted = context.stopping.run_until_cancelled(listener.accept()).await;
        match accepted {
            None => return,
            Some(Ok((stream, peer))) => {
                let connection = connection(stream, peer, Arc::clone(&context));
                context.connections.spawn(connection);
            }
            Some(Err(error)) => {
                // Out of file descriptors, most likely: others may give some back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, context: Arc<Context>) {
    // Without it, small answers wait for the client's delayed ACK.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "could not set TCP_NODELAY");
    }
    let closing = Closing::default();
    let stopping = context.stopping.clone();
    let service = service_fn(|request| Box::pin(answer(request, peer, Arc::clone(&context), closing.clone())));
    let mut serving = http1::Builder::new().max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = closing.now.cancelled() => reset(serving.into_parts().io.into_inner(), peer),
        () = stopping.cancelled() => {}
        () = closing.after_answer.cancelled() => {
            // What hyper still holds goes out, and nothing is read any more.
            Pin::new(&mut serving).graceful_shutdown();
            let flushed = poll_fn(|cx| serving.poll_without_shutdown(cx));
            let _ = stopping.run_until_cancelled(flushed).await;
            reset(serving.into_parts().io.into_inner(), peer);
        }
        served = &mut serving => {
            if let Err(error) = served {
                tracing::debug!(%error, %peer, "connection ended");
            }
        }
    }
}

/// Drops a connection so that the client sees a reset.
fn reset(stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, %peer, "could not turn lingering off");
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    context: Arc<Context>,
    closing: Closing,
) -> Result<Answer, Infallible> {
    if request.uri().path().starts_with(control::PATH) {
        return Ok(control::answer(request, peer, &context).await.map(Either::Right));
    }
    let target = Target::of(request.method(), request.uri(), request.headers());
    let seq = context.log.next_seq();
    let hits = context.faults.hits_on(request.method().as_str(), &target);
    let rules = hits.iter().map(|hit| hit.rule).collect();
    let exchange = context.log.begin(seq, request.method().as_str(), target, request.headers(), rules);

    let expects = request.headers().contains_key(http::header::EXPECT);
    let (mut parts, incoming) = request.into_parts();
    let mut body = Shared::new(Shaped::new(incoming, shape_in(&hits), Arc::clone(&exchange), Direction::In));
    parts.extensions.insert(Arc::clone(&exchange));
    if let Some(delay) = write_delay(&hits) {
        parts.extensions.insert(WriteDelay(delay));
    }
    if let Some(other) = other_range(&hits) {
        parts.extensions.insert(other);
    }

    let refused = before(&hits, &closing).await;
    let was_refused = refused.is_some();
    let mut response = match refused {
        Some(error) => error_response(error, &exchange),
        None => match call(&context, Request::from_parts(parts, Body::http_body(body.clone()))).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(?error, "the S3 service failed");
                error_response(S3Error::new(S3ErrorCode::InternalError), &exchange)
            }
        },
    };
    if hits.iter().any(|hit| matches!(hit.action, FaultAction::ResetDuringBody { .. })) {
        // The body was cut (or was shorter than that): either way, the client gets no answer.
        closing.reset_now().await;
    }
    if !expects || body.begun() {
        drain(&mut body).await;
    }
    if !was_refused && let Some(error) = after(&hits, &closing).await {
        response = error_response(error, &exchange);
    }
    if let Ok(id) = exchange.request_id().parse() {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    bend(&hits, &mut response);
    exchange.answered(response.status().as_u16());
    Ok(response.map(|body| Either::Left(Shaped::new(body, shape_out(&hits, &closing), exchange, Direction::Out))))
}

/// A write that is to land late does so even if its client leaves the moment its body is in: it must not go with the connection.
async fn call(context: &Arc<Context>, request: Request<Body>) -> Result<Response<Body>, HttpError> {
    if request.extensions().get::<WriteDelay>().is_none() {
        return context.service.call(request).await;
    }
    let shared = Arc::clone(context);
    let landing = context.connections.spawn(async move { shared.service.call(request).await });
    landing.await.unwrap_or_else(|error| Err(HttpError::new(Box::new(error))))
}

fn error_response(mut error: S3Error, exchange: &Exchange) -> Response<Body> {
    error.set_request_id(exchange.request_id());
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Takes in what the client is still sending, within reason.
async fn drain(body: &mut Shared) {
    let mut drained = 0;
    while !body.is_end_stream() && drained < DRAINED {
        match body.frame().await {
            Some(Ok(frame)) => drained += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => return,
        }
    }
}
