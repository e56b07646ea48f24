//! Deadlines on the server: the caller's, or a default for callers that set none.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::observation::Rpc;
use crate::trace::deadline_exceeded;

/// Header of the caller's deadline, relative to the arrival of the call.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Ends calls whose head is not answered in time with `DEADLINE_EXCEEDED`. tonic's own timeout says `CANCELLED`; it runs
/// outside of this one and starts later, so this one is first.
///
/// The body of a stream is not limited: a watch lasts as long as its caller listens.
#[derive(Debug, Clone)]
pub(crate) struct DeadlineLayer {
    default: Duration,
    without_default: Arc<HashSet<String>>,
}

impl DeadlineLayer {
    /// `without_default`: paths (`/package.Service/Method`) that bound their own waiting.
    pub(crate) fn new(default: Duration, without_default: HashSet<String>) -> Self {
        Self { default, without_default: Arc::new(without_default) }
    }

    /// How long the call may take, and whether its caller said so.
    fn of(&self, request: &Request<Body>) -> Option<(Duration, &'static str)> {
        match callers_timeout(request.headers()) {
            Some(timeout) => Some((timeout, "its caller's deadline")),
            None if self.without_default.contains(request.uri().path()) => None,
            None => Some((self.default, "the server's default deadline")),
        }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, limits: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Deadline<S> {
    inner: S,
    limits: DeadlineLayer,
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The timer starts here and not at the first poll: it must be ahead of tonic's.
        let limit = self.limits.of(&request).map(|(limit, whose)| (limit, whose, tokio::time::sleep(limit)));
        let rpc = Rpc::of_path(request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some((limit, whose, expired)) = limit else {
                return answer.await;
            };
            tokio::select! {
                biased;
                response = answer => response,
                () = expired => {
                    let message = format!("{rpc} was not answered within {whose} of {limit:?}");
                    Ok(deadline_exceeded(message, &rpc).into_status().into_http())
                }
            }
        })
    }
}

/// The caller's timeout. A malformed header counts as none, as in tonic.
fn callers_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The specification's limit, which also keeps the products below from overflowing.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    fn timeout(text: &'static str) -> Option<Duration> {
        callers_timeout(&HeaderMap::from_iter([(
            http::HeaderName::from_static(GRPC_TIMEOUT),
            http::HeaderValue::from_static(text),
        )]))
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("2M"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("2m"), Some(Duration::from_millis(2)));
        assert_eq!(timeout("2u"), Some(Duration::from_micros(2)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
    }

    #[test]
    fn a_malformed_timeout_counts_as_none() {
        for text in ["", "S", "5", "5x", "-5S", "+5S", "123456789S", "1.5S"] {
            assert_eq!(timeout(text), None, "{text}");
        }
        assert_eq!(callers_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn the_default_spares_long_polls_and_yields_to_the_caller() {
        let path = "/lockstep.v1.Agent/PushStatus";
        let layer = DeadlineLayer::new(Duration::from_secs(60), HashSet::from([path.to_owned()]));
        let request = |path: &str, timeout: Option<&str>| {
            let mut request = Request::builder().uri(path);
            if let Some(timeout) = timeout {
                request = request.header(GRPC_TIMEOUT, timeout);
            }
            layer.of(&request.body(Body::empty()).unwrap()).map(|(limit, _)| limit)
        };
        assert_eq!(request(path, None), None);
        assert_eq!(request(path, Some("1S")), Some(Duration::from_secs(1)));
        assert_eq!(request("/lockstep.v1.Agent/Describe", None), Some(Duration::from_secs(60)));
        assert_eq!(request("/lockstep.v1.Agent/Describe", Some("2M")), Some(Duration::from_secs(120)));
    }

    #[tokio::test]
    async fn an_answer_that_is_late_becomes_deadline_exceeded() {
        let never = tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
        let layer = DeadlineLayer::new(Duration::from_secs(3600), HashSet::new());
        let request = Request::builder().uri("/lockstep.v1.Agent/Describe").header(GRPC_TIMEOUT, "10m");
        let response = layer.layer(never).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("within its caller's deadline of 10ms"), "{status:?}");
    }
}
