//! One request: its span, its metrics, and what its failure means.

use std::{
    error::Error,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextMut, dyn_dispatch_hint},
        orchestrator::HttpResponse,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;
use opentelemetry::propagation::Injector;
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::body::Upload;
use crate::error::{Operation, StoreError, StoreErrorKind};

/// Longest text of a server that gets into an error.
const MAX_TEXT: usize = 500;

/// How often an upload is looked at before a standstill is long enough to count: it is noticed within 1/8 more.
const LOOKS: u32 = 8;

/// Names one request for its span and its errors.
#[derive(Debug, Clone)]
pub(super) struct Request(Arc<Names>);

#[derive(Debug)]
struct Names {
    operation: Operation,
    bucket: String,
    key: String,
    stall: Duration,
}

impl Request {
    /// `key` is the full key, or the prefix of a listing; `stall` the longest silence.
    pub(super) fn new(operation: Operation, bucket: &str, key: String, stall: Duration) -> Self {
        Self(Arc::new(Names { operation, bucket: bucket.to_owned(), key, stall }))
    }

    pub(super) fn stall(&self) -> Duration {
        self.0.stall
    }

    pub(super) fn key(&self) -> &str {
        &self.0.key
    }

    pub(super) fn error(&self, kind: StoreErrorKind, message: impl Into<Box<str>>) -> StoreError {
        StoreError {
            operation: self.0.operation,
            bucket: self.0.bucket.clone(),
            key: self.0.key.clone(),
            http_status: None,
            s3_code: None,
            request_id: None,
            kind,
            message: message.into(),
        }
    }

    /// The store's answer contradicts the request or itself.
    pub(super) fn lied(&self, message: impl Into<Box<str>>) -> StoreError {
        StoreError { http_status: Some(200), ..self.error(StoreErrorKind::Integrity, message) }
    }

    /// Whether the checksum that a store tells, if it does, is that of what was sent.
    pub(super) fn stored(&self, sent: Option<&str>, told: Option<&str>) -> Result<(), StoreError> {
        match (sent, told) {
            (Some(sent), Some(told)) if sent != told => {
                Err(self.lied(format!("was sent bytes with CRC-32 {sent} and says it stored bytes with {told}")))
            }
            _ => Ok(()),
        }
    }

    /// Sends a request that is answered within `time` or not known to be.
    pub(super) fn send<T, E>(
        &self,
        time: Duration,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> impl Future<Output = Result<T, StoreError>>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        // The SDK's futures have tens of kilobytes.
        let answer = Box::pin(answer);
        self.observe(async move {
            match tokio::time::timeout(time, answer).await {
                Ok(answer) => answer.map_err(|error| self.failed(&error)),
                Err(_) => Err(self.error(StoreErrorKind::Unavailable, format!("not answered within {time:?}"))),
            }
        })
    }

    /// Sends data; given up once nothing has moved for too long, be it bytes or, after the last of them, the answer.
    pub(super) fn transfer<T, E>(
        &self,
        upload: &Upload,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> impl Future<Output = Result<T, StoreError>>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let mut answer = Box::pin(answer);
        self.observe(async move {
            let (mut taken, mut moved) = (0, Instant::now());
            let result = loop {
                match tokio::time::timeout(self.stall() / LOOKS, answer.as_mut()).await {
                    Ok(answer) => break answer.map_err(|error| self.failed(&error)),
                    Err(_) if upload.taken() > taken || upload.is_paced() => {
                        (taken, moved) = (upload.taken(), Instant::now());
                    }
                    Err(_) if moved.elapsed() >= self.stall() => {
                        let why = format!(
                            "stalled after {taken} of {} bytes: nothing moved for {:?}",
                            upload.length(),
                            self.stall()
                        );
                        break Err(self.error(StoreErrorKind::Unavailable, why));
                    }
                    Err(_) => {}
                }
            };
            metrics::counter!("lockstep_s3_bytes_total", "direction" => "sent").increment(upload.taken());
            result
        })
    }

    async fn observe<T>(&self, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let operation = self.0.operation.as_str();
        let span = tracing::info_span!(
            "s3.request",
            otel.name = format!("s3.{operation}"),
            otel.kind = "client",
            otel.status_code = Empty,
            s3.operation = operation,
            s3.bucket = self.0.bucket,
            s3.key = self.0.key,
            http.response.status_code = Empty,
            s3.code = Empty,
        );
        let started = Instant::now();
        let result = request.instrument(span.clone()).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => {
                if let Some(status) = error.http_status {
                    span.record("http.response.status_code", status);
                }
                if let Some(code) = &error.s3_code {
                    span.record("s3.code", code);
                }
                // 404 and 412 are answers, not failures, to most who ask.
                if !matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Precondition) {
                    span.record("otel.status_code", "ERROR");
                }
                error.kind.as_str()
            }
        };
        metrics::counter!("lockstep_s3_requests_total", "operation" => operation, "outcome" => outcome).increment(1);
        metrics::histogram!("lockstep_s3_request_duration_seconds", "operation" => operation).record(started.elapsed());
        result
    }

    fn failed<E>(&self, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let response = error.raw_response();
        let status = response.map(|response| response.status().as_u16());
        let request_id = response.and_then(|response| response.headers().get("x-amz-request-id")).map(text);
        let (code, message) = match error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                // A message that says nothing is worse than the SDK's own words.
                (meta.code().map(text), meta.message().map_or_else(|| chain(service.err()), text))
            }
            // Its own first words, "dispatch failure", say nothing.
            SdkError::DispatchFailure(failure) => {
                (None, failure.as_connector_error().map_or_else(|| chain(error), |connector| chain(connector)))
            }
            other => (None, chain(other)),
        };
        let kind = match (error, status) {
            (SdkError::ConstructionFailure(_), _) => StoreErrorKind::BadRequest,
            (SdkError::DispatchFailure(failure), None) if !failure.is_io() && lacks_credentials(&message) => {
                StoreErrorKind::Denied
            }
            // The head of an answer came, its body did not: what it said is not known, whatever its status.
            (SdkError::ResponseError(_), _) => StoreErrorKind::Unavailable,
            // A range that the object does not have: it is shorter than whoever asks was told.
            (_, Some(416)) => StoreErrorKind::Integrity,
            _ => StoreErrorKind::of(status, code.as_deref()),
        };
        StoreError { http_status: status, s3_code: code, request_id, ..self.error(kind, message) }
    }
}

/// Whether a request was never sent because nobody could sign it. The SDK has no public type for it; a chain that could not
/// *reach* its source of credentials is rather unavailable.
fn lacks_credentials(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    (message.contains("credential") || message.contains("auth scheme") || message.contains("identity"))
        && !message.contains("timed out")
        && !message.contains("dispatch failure")
}

/// An error with its causes, each once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !causes.iter().any(|known| known.contains(&cause_text)) {
            causes.push(cause_text);
        }
        next = cause.source();
    }
    text(&causes.join(": "))
}

/// A server's text, short and on one line.
pub(super) fn text(raw: &str) -> String {
    raw.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

pub(super) fn received(bytes: usize) {
    count("received", bytes);
}

pub(super) fn sent(bytes: usize) {
    count("sent", bytes);
}

fn count(direction: &'static str, bytes: usize) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    metrics::counter!("lockstep_s3_bytes_total", "direction" => direction).increment(bytes);
}

/// Sends the current trace along, after signing: what a proxy changes about it can't break the signature.
#[derive(Debug)]
pub(super) struct SendTrace;

#[dyn_dispatch_hint]
impl Intercept for SendTrace {
    fn name(&self) -> &'static str {
        "SendTrace"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        struct Headers<'a>(&'a mut aws_smithy_runtime_api::http::Headers);
        impl Injector for Headers<'_> {
            fn set(&mut self, key: &str, value: String) {
                if http::HeaderName::try_from(key).is_ok() && http::HeaderValue::try_from(&value).is_ok() {
                    self.0.insert(key.to_owned(), value);
                }
            }
        }
        let trace = Span::current().context();
        let mut headers = Headers(context.request_mut().headers_mut());
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&trace, &mut headers));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use aws_sdk_s3::operation::get_object::GetObjectError;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;

    /// An error with one cause.
    #[derive(Debug)]
    struct Chained(&'static str, Option<Box<Chained>>);

    impl fmt::Display for Chained {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Chained {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn kind(error: ConnectorError) -> StoreErrorKind {
        let request = Request::new(Operation::Get, "bucket", "key".to_owned(), Duration::from_secs(1));
        request.failed(&SdkError::<GetObjectError, HttpResponse>::dispatch_failure(error)).kind
    }

    fn other(text: &'static str, cause: Option<&'static str>) -> ConnectorError {
        ConnectorError::other(Box::new(Chained(text, cause.map(|cause| Box::new(Chained(cause, None))))), None)
    }

    #[test]
    fn missing_credentials_are_denied_and_unreachable_ones_are_not() {
        let missing = other("the credential provider was not enabled", Some("no credentials found in chain"));
        assert_eq!(kind(missing), StoreErrorKind::Denied);
        let unreachable = other("an error occurred while loading credentials", Some("dispatch failure"));
        assert_eq!(kind(unreachable), StoreErrorKind::Unavailable);
        let slow = other("credentials provider timed out", None);
        assert_eq!(kind(slow), StoreErrorKind::Unavailable);
    }

    #[test]
    fn a_broken_connection_is_unavailable_whatever_it_says() {
        let broken = ConnectorError::io(Box::new(Chained("connection to credential.example reset", None)));
        assert_eq!(kind(broken), StoreErrorKind::Unavailable);
    }

    #[test]
    fn texts_of_servers_are_short_and_on_one_line() {
        assert_eq!(text("a\nb"), "a b");
        assert_eq!(text(&"x".repeat(10_000)).len(), MAX_TEXT);
    }
}
