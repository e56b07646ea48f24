//! Trace ids, and W3C `traceparent` as text.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// Why a stored trace can't be continued. Never a reason to fail the work itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceparentError {
    /// The text is not a W3C `traceparent` of a valid trace.
    #[error("'{0}' is not a traceparent")]
    Malformed(String),
    /// The span can't take another parent: it was entered before, is filtered out, or no tracer is installed.
    #[error("the span cannot continue a stored trace: {0}")]
    Refused(String),
}

/// The id of the trace that the current span belongs to, 32 lower-case hex digits; `None` outside of any span or
/// before [`crate::init`].
pub fn current_trace_id() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// The current span as a W3C `traceparent` (`00-<trace>-<span>-<flags>`, 55 characters), to be stored and given to
/// [`resume_trace`] later, perhaps by another process.
pub fn traceparent() -> Option<String> {
    traceparent_of(&Span::current())
}

/// Like [`traceparent`], of a span that is not the current one.
pub fn traceparent_of(span: &Span) -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes `span` a child of the span that `traceparent` names. Only before the span is entered for the first time.
///
/// # Errors
///
/// A malformed text, or a span that can't take a parent any more.
pub fn resume_trace(span: &Span, traceparent: &str) -> Result<(), TraceparentError> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    if !context.span().span_context().is_valid() {
        return Err(TraceparentError::Malformed(traceparent.to_owned()));
    }
    span.set_parent(context).map_err(|error| TraceparentError::Refused(error.to_string()))
}

/// A new span called `name` in traces (`resumed` in logs) that continues the stored trace; if it can't be continued,
/// the span starts a trace of its own. For spans with fields of their own use [`resume_trace`].
pub fn span_from_traceparent(name: &str, traceparent: &str) -> Span {
    let span = tracing::info_span!("resumed", otel.name = name);
    if let Err(error) = resume_trace(&span, traceparent) {
        tracing::debug!(%error, name, "a stored trace is not continued");
    }
    span
}
