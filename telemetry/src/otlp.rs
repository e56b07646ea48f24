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
    pub(crate) fn from_environment(service_name: &'static str) -> Result<Self, TelemetryError> {
        Self::new(service_name, std::env::var(ENDPOINT_VARIABLE).ok().filter(|endpoint| !endpoint.trim().is_empty()))
    }

    fn new(service_name: &'static str, endpoint: Option<String>) -> Result<Self, TelemetryError> {
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use tokio::sync::mpsc;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Request, Response, Status};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.send(request.into_inner()).unwrap();
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    fn start_collector() -> (SocketAddr, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
        let (exported, received) = mpsc::unbounded_channel();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = incoming.local_addr().unwrap();
        let service = TraceServiceServer::new(Collector(exported));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (addr, received)
    }

    /// On one thread: the drop blocks it, and the exporter must get its spans out nevertheless. The collector runs on
    /// another.
    #[test]
    fn spans_reach_the_collector_when_the_guard_is_dropped_inside_of_a_single_threaded_runtime() {
        let outside = Runtime::new().unwrap();
        let (addr, mut received) = outside.block_on(async { start_collector() });
        let inside = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        inside.block_on(async {
            let traces = Traces::new("lockstep-test", Some(format!("http://{addr}"))).unwrap();
            let layer = tracing_opentelemetry::layer().with_tracer(traces.provider().tracer("test"));
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::info_span!("work", round.id = 7).in_scope(|| ());
            });
        });
        let export = received.blocking_recv().unwrap();
        let resource = &export.resource_spans[0];
        let service = resource.resource.as_ref().unwrap().attributes.iter().find(|pair| pair.key == "service.name");
        let service = service.unwrap().value.as_ref().unwrap().value.as_ref().unwrap();
        assert_eq!(*service, Value::StringValue("lockstep-test".to_owned()));
        let span = &resource.scope_spans[0].spans[0];
        assert_eq!(span.name, "work");
        assert!(span.attributes.iter().any(|pair| pair.key == "round.id"));
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_an_error_that_shows_it() {
        let error = Traces::new("lockstep-test", Some("not a url".to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("cannot export traces to not a url: "), "{error}");
    }

    #[test]
    fn without_an_endpoint_spans_still_have_ids() {
        let traces = Traces::new("lockstep-test", None).unwrap();
        let layer = tracing_opentelemetry::layer().with_tracer(traces.provider().tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info_span!("work").in_scope(|| assert!(crate::current_trace_id().is_some()));
        });
    }
}
