//! The tracer behind all spans, and its exporter if a collector is configured.

use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Runtime;

use crate::init::TelemetryError;

/// The variable that switches the export on. Headers, timeout and batching follow the other `OTEL_` variables.
const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The provider of all spans. Without a collector it still gives each span its ids, and drops it when it ends.
///
/// The exporter has a runtime of its own with one thread: its connection must move on while the process's runtime is
/// busy, and while a drop of the guard blocks one of that runtime's threads.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    runtime: Option<Runtime>,
}

impl Traces {
    pub(crate) fn new(service_name: &'static str) -> Result<Self, TelemetryError> {
        let endpoint = std::env::var(ENDPOINT_VARIABLE).ok().filter(|endpoint| !endpoint.trim().is_empty());
        let resource = Resource::builder().with_service_name(service_name).build();
        let builder = SdkTracerProvider::builder().with_resource(resource);
        let Some(endpoint) = endpoint else {
            return Ok(Self { provider: builder.build(), runtime: None });
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lockstep-otlp")
            .enable_all()
            .build()
            .map_err(|source| TelemetryError::Thread { name: "lockstep-otlp", source })?;
        let exporter = {
            let _inside = runtime.enter();
            SpanExporter::builder().with_tonic().with_endpoint(&endpoint).build()
        };
        match exporter {
            Ok(exporter) => {
                Ok(Self { provider: builder.with_batch_exporter(exporter).build(), runtime: Some(runtime) })
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(TelemetryError::Exporter { endpoint, reason: error.to_string() })
            }
        }
    }

    pub(crate) fn provider(&self) -> &SdkTracerProvider {
        &self.provider
    }

    pub(crate) fn flush(&self) -> bool {
        self.provider.force_flush().is_ok()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // What a collector did not take by now is lost; there is nowhere left to report it but stderr.
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans were not exported");
        }
        if let Some(runtime) = self.runtime.take() {
            // A plain drop panics inside of async code.
            runtime.shutdown_background();
        }
    }
}
