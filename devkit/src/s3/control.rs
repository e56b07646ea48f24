//! The same controls over HTTP, for tests of child processes: under `/_lockstep/`, which can't be a bucket's name.
//!
//! | request | does |
//! |---|---|
//! | `POST /_lockstep/faults` | adds a [`FaultRule`] or an array of them; answers `{"ids": [1]}` |
//! | `GET /_lockstep/faults` | the rules in force, with their hits |
//! | `DELETE /_lockstep/faults[/<id>]` | removes one or all; what hangs on them goes on |
//! | `POST /_lockstep/denials` | adds a [`DenyRule`] or an array of them |
//! | `GET`, `DELETE /_lockstep/denials` | shows, clears |
//! | `GET /_lockstep/requests[?since=<seq>]` | the request log |
//! | `DELETE /_lockstep/requests` | forgets it |
//! | `GET /_lockstep/totals` | the log in sums by access key and operation: cheap after any number of requests |
//!
//! No credentials: only loopback is answered, and no browser.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::access::DenyRule;
use super::faults::FaultRule;
use super::percent::query_value;
use super::serve::Context;

pub(crate) const PATH: &str = "/_lockstep/";

const LARGEST_BODY: usize = 1024 * 1024;

pub(crate) async fn answer(request: Request<Incoming>, peer: SocketAddr, context: &Context) -> Response<Full<Bytes>> {
    if !peer.ip().to_canonical().is_loopback() || request.headers().contains_key(http::header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "the controls are for programs on this machine");
    }
    let method = request.method().clone();
    let path = request.uri().path().strip_prefix(PATH).unwrap_or_default().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (method, path.as_str()) {
        (Method::GET, "faults") => show(&context.faults.rules()),
        (Method::POST, "faults") => match read::<FaultRule>(request).await {
            Ok(rules) => {
                let ids: Vec<u64> = rules.into_iter().map(|rule| context.faults.add(rule)).collect();
                show(&json!({ "ids": ids }))
            }
            Err(response) => response,
        },
        (Method::DELETE, "faults") => {
            context.faults.clear();
            show(&json!({}))
        }
        (Method::DELETE, path) if path.starts_with("faults/") => {
            let id = path.trim_start_matches("faults/").parse();
            match id.map(|id| context.faults.remove(id)) {
                Ok(true) => show(&json!({})),
                _ => refuse(StatusCode::NOT_FOUND, "there is no such rule"),
            }
        }
        (Method::GET, "denials") => show(&context.denials.rules()),
        (Method::POST, "denials") => match read::<DenyRule>(request).await {
            Ok(rules) => {
                rules.into_iter().for_each(|rule| context.denials.add(rule));
                show(&json!({}))
            }
            Err(response) => response,
        },
        (Method::DELETE, "denials") => {
            context.denials.clear();
            show(&json!({}))
        }
        (Method::GET, "requests") => {
            let since = query_value(&query, "since").and_then(|seq| seq.parse().ok()).unwrap_or(0);
            show(&context.log.since(since))
        }
        (Method::GET, "totals") => show(&context.log.totals()),
        (Method::DELETE, "requests") => {
            context.log.clear();
            show(&json!({}))
        }
        _ => refuse(StatusCode::NOT_FOUND, "there is no such control"),
    }
}

/// One or an array of them.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<Vec<T>, Response<Full<Bytes>>> {
    let body = Limited::new(request.into_body(), LARGEST_BODY).collect().await;
    let bytes = body.map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))?.to_bytes();
    let many = bytes.trim_ascii_start().starts_with(b"[");
    let read = if many { serde_json::from_slice(&bytes) } else { serde_json::from_slice(&bytes).map(|one| vec![one]) };
    read.map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn show(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(bytes) => respond(StatusCode::OK, bytes),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refuse(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    respond(status, json!({ "error": reason }).to_string().into_bytes())
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
