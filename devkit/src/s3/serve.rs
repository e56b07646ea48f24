//! Connections and requests: what stands between the socket and the S3 operations.
//!
//! Each connection is served by a future of ours, so a fault can end it: the handler cancels the connection's token and
//! never answers, and the future drops the socket. With lingering off, that sends RST instead of FIN, and the client sees
//! "connection reset" rather than an orderly end.

use std::convert::Infallible;
use std::future::pending;
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
use s3s::{Body, S3Error, S3ErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Denials;
use super::body::{Direction, Shape, Shaped, Shared};
use super::control;
use super::faults::{FaultAction, Faults, Hit};
use super::operation::Target;
use super::requests::{Exchange, RequestLog};
use super::service::WriteDelay;

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
    let reset = CancellationToken::new();
    let stopping = context.stopping.clone();
    let service = service_fn(|request| answer(request, peer, Arc::clone(&context), reset.clone()));
    let mut serving = http1::Builder::new().max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = reset.cancelled() => {
            let stream = serving.into_parts().io.into_inner();
            if let Err(error) = stream.set_zero_linger() {
                tracing::debug!(%error, %peer, "could not turn lingering off");
            }
        }
        () = stopping.cancelled() => {}
        served = &mut serving => {
            if let Err(error) = served {
                tracing::debug!(%error, %peer, "connection ended");
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    context: Arc<Context>,
    reset: CancellationToken,
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

    let refused = before(&hits, &reset).await;
    let was_refused = refused.is_some();
    let mut response = match refused {
        Some(error) => error_response(error, &exchange),
        None => match context.service.call(Request::from_parts(parts, Body::http_body(body.clone()))).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(?error, "the S3 service failed");
                error_response(S3Error::new(S3ErrorCode::InternalError), &exchange)
            }
        },
    };
    if hits.iter().any(|hit| matches!(hit.action, FaultAction::ResetDuringBody { .. })) {
        // The body was cut (or was shorter than that): either way, the client gets no answer.
        reset_connection(&reset).await;
    }
    if !expects || body.begun() {
        drain(&mut body).await;
    }
    if !was_refused && let Some(error) = after(&hits, &reset).await {
        response = error_response(error, &exchange);
    }
    if let Ok(id) = exchange.request_id().parse() {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    exchange.answered(response.status().as_u16());
    Ok(response.map(|body| Either::Left(Shaped::new(body, shape_out(&hits), exchange, Direction::Out))))
}

/// What the faults do before the operation: wait, or answer in its place.
async fn before(hits: &[Hit], reset: &CancellationToken) -> Option<S3Error> {
    for hit in hits {
        let (status, code) = match &hit.action {
            FaultAction::SlowDown => (503, "SlowDown"),
            FaultAction::InternalError => (500, "InternalError"),
            FaultAction::AccessDenied => (403, "AccessDenied"),
            FaultAction::Error { status, code } => (*status, code.as_str()),
            FaultAction::ResetBeforeWrite => reset_connection(reset).await,
            FaultAction::Delay { ms } => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                continue;
            }
            FaultAction::Hang => {
                hit.removed.cancelled().await;
                continue;
            }
            _ => continue,
        };
        return Some(fault_error(status, code));
    }
    None
}

/// What the faults do once the operation is done.
async fn after(hits: &[Hit], reset: &CancellationToken) -> Option<S3Error> {
    for hit in hits {
        match &hit.action {
            FaultAction::ErrorAfterWrite { status, code } => return Some(fault_error(*status, code)),
            FaultAction::ResetAfterWrite => reset_connection(reset).await,
            FaultAction::HangAfterWrite => hit.removed.cancelled().await,
            _ => {}
        }
    }
    None
}

async fn reset_connection(reset: &CancellationToken) -> ! {
    reset.cancel();
    // The connection's future drops this one.
    pending().await
}

fn shape_in(hits: &[Hit]) -> Shape {
    let mut shape = Shape::default();
    for hit in hits {
        match hit.action {
            FaultAction::Throttle { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
            FaultAction::ResetDuringBody { after_bytes } => shape.cut_after = Some(after_bytes),
            _ => {}
        }
    }
    shape
}

fn shape_out(hits: &[Hit]) -> Shape {
    let mut shape = Shape::default();
    for hit in hits {
        match hit.action {
            FaultAction::Throttle { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
            FaultAction::Truncate { after_bytes } => shape.cut_after = Some(after_bytes),
            FaultAction::Corrupt { at } => shape.corrupt_at = Some(at),
            _ => {}
        }
    }
    shape
}

fn write_delay(hits: &[Hit]) -> Option<Duration> {
    let delays = hits.iter().filter_map(|hit| match hit.action {
        FaultAction::DelayWrite { ms } => Some(Duration::from_millis(ms)),
        _ => None,
    });
    delays.reduce(|sum, delay| sum + delay)
}

fn fault_error(status: u16, code: &str) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, "a fault rule says so");
    error.set_status_code(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    error
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
