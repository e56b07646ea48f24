//! What every Lockstep process tells about itself: logs, traces, metrics and whether it is healthy.
//!
//! A binary calls [`init`] once, first thing in `main`, and keeps the [`TelemetryGuard`] until it exits:
//!
//! - **Logs** go to stderr as text or JSON lines, filtered by `--log`, else `LOCKSTEP_LOG`, else `RUST_LOG`, else `info`.
//!   stdout belongs to the program's own output.
//! - **Traces** always exist: each span has a trace id and the W3C `traceparent` propagator is installed, so that one
//!   trace runs from the command line through coordinator and agents even where nobody collects it. They are exported
//!   over OTLP/gRPC only if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. The log filter does not silence traces: a process that
//!   logs at `warn` still passes its trace on.
//! - **Metrics** are recorded through the `metrics` macros, by any crate, and rendered by the guard's Prometheus handle.
//!
//! [`http_router`] serves `/healthz`, `/readyz` and `/metrics`. [`traceparent`] and [`resume_trace`] carry a trace across
//! what has no headers: a coordinator stores the first in Postgres with a round, and whoever drives that round later
//! continues the same trace with the second.
//!
//! Library crates (the embeddable agent among them) never call [`init`]: they only use `tracing`, `metrics` and the
//! global propagator, and so end up in the telemetry of the process that embeds them.
//!
//! Modules: `init` (options, guard), `otlp` (the exporter), `prometheus` (recorder and its upkeep), `http` (health and
//! metrics endpoints), `trace_context` (trace ids and `traceparent`).

mod http;
mod init;
mod otlp;
mod prometheus;
mod trace_context;

pub use http::{HttpError, http_router, serve_http, serve_http_on};
pub use init::{LogFormat, TelemetryError, TelemetryGuard, TelemetryOptions, init};
pub use metrics_exporter_prometheus::PrometheusHandle;
pub use trace_context::{
    TraceparentError, current_trace_id, resume_trace, span_from_traceparent, traceparent, traceparent_of,
};
