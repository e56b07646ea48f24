//! Health and metrics, asked over HTTP.

#![expect(
    clippy::unwrap_used,
    reason = "what fails here is the test; clippy only knows that of functions marked as tests"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_telemetry::{TelemetryOptions, http_router, init, serve_http, serve_http_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served_until_shutdown() {
    let guard = init(TelemetryOptions::new("lockstep-test")).unwrap();
    let is_ready = Arc::new(AtomicBool::new(false));
    let readiness = {
        let is_ready = Arc::clone(&is_ready);
        move || {
            let is_ready = is_ready.load(Ordering::SeqCst);
            async move { if is_ready { Ok(()) } else { Err("the database is behind".to_owned()) } }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let router = http_router(guard.prometheus(), readiness);
    let served = tokio::spawn(serve_http_on(listener, router, async move { drop(stopped.await) }));

    assert_eq!(get(addr, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(addr, "/readyz").await, (503, "the database is behind\n".to_owned()));
    is_ready.store(true, Ordering::SeqCst);
    assert_eq!(get(addr, "/readyz").await, (200, "ready\n".to_owned()));

    metrics::counter!("lockstep_test_rounds_total", "phase" => "done").increment(3);
    metrics::histogram!("lockstep_test_round_duration_seconds").record(0.2);
    let (status, metrics) = get(addr, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains(r#"lockstep_test_rounds_total{phase="done"} 3"#), "{metrics}");
    assert!(metrics.contains(r#"lockstep_test_round_duration_seconds_bucket{le="0.25"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"lockstep_test_round_duration_seconds_bucket{le="0.1"} 0"#), "{metrics}");

    drop(stop);
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_readiness_check_that_panics_is_not_ready() {
    let guard = init(TelemetryOptions::new("lockstep-test")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = http_router(guard.prometheus(), || async { panic!("no database") });
    tokio::spawn(serve_http_on(listener, router, std::future::pending()));
    assert_eq!(get(addr, "/readyz").await, (503, "the readiness check panicked\n".to_owned()));
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let guard = init(TelemetryOptions::new("lockstep-test")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let router = http_router(guard.prometheus(), || async { Ok(()) });
    let error = serve_http(addr, router, std::future::pending()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot serve health and metrics on {addr}: ")), "{error}");
}
