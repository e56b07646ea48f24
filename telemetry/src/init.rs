//! Installing logs, traces and metrics for the life of a process.

use std::io::IsTerminal;
use std::str::FromStr;

use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::otlp::Traces;
use crate::prometheus::{self, Upkeep};

/// Environment variables a log filter is read from, the first that is set and not empty.
const LOG_FILTER_VARIABLES: [&str; 2] = ["LOCKSTEP_LOG", "RUST_LOG"];

/// Crates whose spans say nothing about Lockstep; those of the exporter's own gRPC stack would also make each export
/// the cause of the next.
const UNTRACED: [&str; 7] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry_sdk", "opentelemetry_otlp"];

/// How log lines are written to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, with the fields of the event and of its spans.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::LogFormat(other.to_owned())),
        }
    }
}

/// What [`init`] needs to know; the rest comes from the environment.
#[derive(Debug, Clone)]
pub struct TelemetryOptions {
    /// `service.name` of all exported spans, such as `lockstep-agent`.
    pub service_name: &'static str,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Filter in `tracing-subscriber`'s syntax (`info,lockstep_agent=debug`). `None` takes `LOCKSTEP_LOG`, else
    /// `RUST_LOG`, else `info`.
    pub log_filter: Option<String>,
}

impl TelemetryOptions {
    /// Text logs, filter from the environment.
    pub fn new(service_name: &'static str) -> Self {
        Self { service_name, log_format: LogFormat::Text, log_filter: None }
    }
}

/// Why telemetry could not be set up. All of it is wrong configuration: a retry changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The name of a log format that does not exist.
    #[error("log format '{0}' is neither text nor json")]
    LogFormat(String),
    /// The log filter can't be parsed; `origin` is where it came from.
    #[error("log filter '{filter}' from {origin} is invalid: {reason}")]
    LogFilter {
        /// The text that was refused.
        filter: String,
        /// `--log` or the environment variable.
        origin: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// Spans can't be exported to the configured collector.
    #[error("cannot export traces to {endpoint}: {reason}")]
    Exporter {
        /// Value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A thread of ours could not be started.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// Name of the thread.
        name: &'static str,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// The Prometheus recorder could not be configured.
    #[error("cannot set up metrics: {0}")]
    Metrics(String),
}

/// Keeps telemetry running. Dropping it exports what is left, which blocks for at most five seconds: keep it in `main`
/// until everything else has ended.
#[must_use = "dropping the guard ends the export of traces"]
#[derive(Debug)]
pub struct TelemetryGuard {
    prometheus: PrometheusHandle,
    traces: Option<Traces>,
    _upkeep: Option<Upkeep>,
}

impl TelemetryGuard {
    /// Renders all metrics of this process; give it to [`crate::http_router`].
    pub fn prometheus(&self) -> PrometheusHandle {
        self.prometheus.clone()
    }

    /// Whether logs and traces of this process go where this guard's options said. False if an earlier call, or the
    /// program that embeds us, had installed a subscriber before.
    pub fn owns_tracing(&self) -> bool {
        self.traces.is_some()
    }

    /// Exports the spans that have ended so far and returns when the collector has them or the export failed; false in
    /// the second case. Blocks: call it outside of async code.
    pub fn flush(&self) -> bool {
        self.traces.as_ref().is_none_or(Traces::flush)
    }

    /// Exports what is left and stops. The same as dropping the guard, but visible where it happens.
    pub fn shutdown(self) {}
}

/// Sets up logs, traces and metrics for this process. Needs no tokio runtime.
///
/// A second call, or one in a process whose embedder has set up its own, changes nothing that is installed: it returns
/// a guard that [owns no tracing](TelemetryGuard::owns_tracing) and still renders this process's metrics.
///
/// # Errors
///
/// An invalid log filter or OTLP endpoint; nothing is installed then.
pub fn init(options: TelemetryOptions) -> Result<TelemetryGuard, TelemetryError> {
    let log_filter = log_filter(options.log_filter.as_deref(), |name| std::env::var(name).ok())?;
    let traces = Traces::from_environment(options.service_name)?;
    let (prometheus, upkeep) = prometheus::install()?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let tracer = traces.provider().tracer("lockstep");
    let mut traced = Targets::new().with_default(LevelFilter::INFO);
    for target in UNTRACED {
        traced = traced.with_target(target, LevelFilter::OFF);
    }
    // Threads and source lines would be more than half of each exported span.
    let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_threads(false).with_location(false);
    let subscriber = Registry::default()
        .with(spans.with_filter(traced))
        .with(log_layer(options.log_format, std::io::stderr).with_filter(log_filter));
    let traces = subscriber.try_init().is_ok().then_some(traces);
    Ok(TelemetryGuard { prometheus, traces, _upkeep: upkeep })
}

fn log_layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

fn log_filter(
    flag: Option<&str>,
    variable: impl Fn(&'static str) -> Option<String>,
) -> Result<EnvFilter, TelemetryError> {
    let from_environment = || {
        LOG_FILTER_VARIABLES.into_iter().find_map(|name| {
            let value = variable(name)?;
            (!value.trim().is_empty()).then_some((value, name))
        })
    };
    let (filter, origin) = match flag {
        Some(filter) => (filter.to_owned(), "the command line or configuration"),
        None => from_environment().unwrap_or_else(|| ("info".to_owned(), "the default")),
    };
    EnvFilter::try_new(&filter).map_err(|error| TelemetryError::LogFilter { filter, origin, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_lockstep_log_and_that_over_rust_log() {
        let both = |name: &'static str| Some(if name == "LOCKSTEP_LOG" { "warn" } else { "error" }.to_owned());
        assert_eq!(log_filter(Some("debug"), both).unwrap().to_string(), "debug");
        assert_eq!(log_filter(None, both).unwrap().to_string(), "warn");
        let rust_log = |name: &'static str| (name == "RUST_LOG").then(|| "error".to_owned());
        assert_eq!(log_filter(None, rust_log).unwrap().to_string(), "error");
        assert_eq!(log_filter(None, |_| None).unwrap().to_string(), "info");
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let empty = |name: &'static str| (name == "LOCKSTEP_LOG").then(|| " ".to_owned());
        assert_eq!(log_filter(None, empty).unwrap().to_string(), "info");
    }

    #[test]
    fn an_invalid_filter_names_itself_and_where_it_came_from() {
        let wrong = |name: &'static str| (name == "RUST_LOG").then(|| "lockstep=loudly".to_owned());
        let message = log_filter(None, wrong).unwrap_err().to_string();
        assert!(message.starts_with("log filter 'lockstep=loudly' from RUST_LOG is invalid: "), "{message}");
    }

    #[test]
    fn a_json_line_has_the_fields_of_the_event_and_of_its_span() {
        let (reader, writer) = std::io::pipe().unwrap();
        let subscriber = Registry::default().with(log_layer(LogFormat::Json, std::sync::Mutex::new(writer)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("rpc", trace_id = "abc").in_scope(|| tracing::info!(round.id = 7, "committed"));
        });
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(reader), &mut line).unwrap();
        for part in [r#""message":"committed""#, r#""round.id":7"#, r#""trace_id":"abc""#, r#""level":"INFO""#] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn log_formats_are_read_by_name() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert_eq!("text".parse::<LogFormat>().unwrap(), LogFormat::Text);
        assert_eq!("xml".parse::<LogFormat>().unwrap_err().to_string(), "log format 'xml' is neither text nor json");
    }
}
