//! Health and metrics over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

/// A readiness check that takes longer than this counts as not ready.
const READINESS_TIMEOUT: Duration = Duration::from_secs(5);

/// After the shutdown signal, answers under way get this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Why health and metrics can't be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address can't be listened on.
    #[error("cannot serve health and metrics on {addr}: {source}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// Why the system refused it.
        source: std::io::Error,
    },
    /// The listener failed later.
    #[error("serving health and metrics failed: {0}")]
    Serve(#[source] std::io::Error),
}

/// The endpoints of every long-running process:
///
/// - `/healthz`: 200 as long as the process answers at all;
/// - `/readyz`: 200, or 503 with the reason as text, whatever `readiness` says (at most five seconds);
/// - `/metrics`: Prometheus text format.
///
/// `readiness` runs in a spawned future that is never dropped half-way, so it may ask the database.
pub fn http_router<F, R>(prometheus: PrometheusHandle, readiness: F) -> Router
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(move || ready(readiness())))
        .route("/metrics", get(move || std::future::ready(render(&prometheus))))
}

async fn ready(readiness: impl Future<Output = Result<(), String>> + Send + 'static) -> Response {
    let outcome = match tokio::time::timeout(READINESS_TIMEOUT, tokio::spawn(readiness)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("the readiness check panicked".to_owned()),
        Err(_) => Err(format!("the readiness check took longer than {} s", READINESS_TIMEOUT.as_secs())),
    };
    match outcome {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

fn render(prometheus: &PrometheusHandle) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], prometheus.render()).into_response()
}

/// Serves `router` on `addr` until `shutdown` resolves; answers under way get five more seconds.
///
/// # Errors
///
/// The address can't be listened on, or the listener fails.
pub async fn serve_http(
    addr: SocketAddr,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), HttpError> {
    let listener = TcpListener::bind(addr).await.map_err(|source| HttpError::Bind { addr, source })?;
    serve_http_on(listener, router, shutdown).await
}

/// Like [`serve_http`], on a listener the caller has bound: who listens on port 0 learns the port from it.
///
/// # Errors
///
/// The listener fails.
pub async fn serve_http_on(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), HttpError> {
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        drop(stopping);
    });
    let drained = async {
        let _ = stopped.await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        outcome = served => outcome.map_err(HttpError::Serve),
        () = drained => Ok(()),
    }
}
