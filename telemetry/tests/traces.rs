//! Trace ids and stored traces, in a process whose logs are silenced.

#![expect(
    clippy::unwrap_used,
    reason = "what fails here is the test; clippy only knows that of functions marked as tests"
)]

use std::sync::LazyLock;

use lockstep_telemetry::{
    TelemetryGuard, TelemetryOptions, TraceparentError, current_trace_id, init, resume_trace, span_from_traceparent,
    traceparent, traceparent_of,
};
use tracing::info_span;

const STORED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

static TELEMETRY: LazyLock<TelemetryGuard> = LazyLock::new(|| {
    init(TelemetryOptions { log_filter: Some("off".to_owned()), ..TelemetryOptions::new("lockstep-test") }).unwrap()
});

#[test]
fn a_second_set_up_changes_nothing_and_shows_the_same_metrics() {
    assert!(TELEMETRY.owns_tracing());
    let second = init(TelemetryOptions::new("lockstep-other")).unwrap();
    assert!(!second.owns_tracing());
    metrics::counter!("lockstep_test_set_up_total").increment(1);
    assert!(second.prometheus().render().contains("lockstep_test_set_up_total 1"));
    second.shutdown();
    info_span!("work").in_scope(|| assert!(current_trace_id().is_some()));
}

#[test]
fn silent_logs_do_not_silence_traces() {
    assert!(TELEMETRY.owns_tracing());
    assert_eq!((current_trace_id(), traceparent()), (None, None));
    info_span!("work").in_scope(|| {
        let trace_id = current_trace_id().unwrap();
        assert!(trace_id.len() == 32 && trace_id.bytes().all(|digit| b"0123456789abcdef".contains(&digit)));
        let traceparent = traceparent().unwrap();
        assert!(traceparent.len() == 55 && traceparent.starts_with(&format!("00-{trace_id}-")), "{traceparent}");
    });
}

#[test]
fn a_stored_trace_is_continued() {
    assert!(TELEMETRY.owns_tracing());
    let stored = info_span!("admit round").in_scope(|| traceparent().unwrap());
    span_from_traceparent("drive round", &stored).in_scope(|| {
        assert_eq!(current_trace_id().unwrap(), stored[3..35]);
        assert_ne!(traceparent().unwrap(), stored, "a span of its own");
        info_span!("effect").in_scope(|| assert_eq!(current_trace_id().unwrap(), stored[3..35]));
    });
    let span = info_span!("drive round", round.id = 7);
    resume_trace(&span, STORED).unwrap();
    assert!(traceparent_of(&span).unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
}

#[test]
fn a_stored_trace_wins_over_the_span_it_is_resumed_in() {
    assert!(TELEMETRY.owns_tracing());
    info_span!("loop").in_scope(|| {
        span_from_traceparent("drive round", STORED)
            .in_scope(|| assert_eq!(current_trace_id().unwrap(), STORED[3..35]));
    });
}

#[test]
fn what_is_no_traceparent_starts_a_new_trace() {
    assert!(TELEMETRY.owns_tracing());
    for text in ["", "garbage", "00-00000000000000000000000000000000-b7ad6b7169203331-01", &STORED[..40]] {
        let refused = resume_trace(&info_span!("drive round"), text);
        assert_eq!(refused, Err(TraceparentError::Malformed(text.to_owned())));
        span_from_traceparent("drive round", text).in_scope(|| assert!(current_trace_id().is_some()));
    }
}

#[test]
fn a_span_that_has_begun_keeps_its_trace() {
    assert!(TELEMETRY.owns_tracing());
    let span = info_span!("work");
    span.in_scope(|| ());
    assert!(matches!(resume_trace(&span, STORED), Err(TraceparentError::Refused(_))));
}
