//! The export: OpenTelemetry's SDK, in batches from a thread of its own, over HTTP.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::{Kind, TraceParent};

/// Naming one of these turns the export on.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// For the last batch, when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

static EXPORT: OnceLock<Export> = OnceLock::new();

/// A span that is exported when it is dropped.
#[derive(Debug)]
pub(super) struct Exported(Span);

impl Exported {
    pub(super) fn set_attribute(&mut self, name: &'static str, value: String) {
        opentelemetry::trace::Span::set_attribute(&mut self.0, KeyValue::new(name, value));
    }

    pub(super) fn fail(&mut self, why: String) {
        opentelemetry::trace::Span::set_status(&mut self.0, Status::error(why));
    }
}

pub(super) fn exports() -> bool {
    EXPORT.get().is_some()
}

pub(super) fn init() {
    if exports()
        || ENDPOINTS
            .iter()
            .all(|name| std::env::var_os(name).is_none())
    {
        return;
    }
    let exporter = match SpanExporter::builder().with_http().build() {
        Ok(exporter) => exporter,
        Err(err) => {
            // Orders are more than their traces.
            tracing::warn!(error = %err, "traces are not exported");
            return;
        }
    };
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(program());
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    let tracer = provider.tracer("outbox-relay");
    // An error says that another thread was first, with the same.
    _ = EXPORT.set(Export { provider, tracer });
}

fn program() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "unknown".to_owned())
}

pub(super) fn start(
    name: &'static str,
    kind: Kind,
    parent: Option<TraceParent>,
) -> Option<(TraceParent, Exported)> {
    let Export { tracer, .. } = EXPORT.get()?;
    let above = parent.map_or_else(Context::new, |parent| {
        let remote = true;
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from(parent.trace_id),
            SpanId::from(parent.span_id),
            TraceFlags::new(parent.flags),
            remote,
            TraceState::default(),
        ))
    });
    let span = tracer
        .span_builder(name)
        .with_kind(match kind {
            Kind::Server => SpanKind::Server,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        })
        .start_with_context(tracer, &above);
    let context = opentelemetry::trace::Span::span_context(&span);
    let place = TraceParent {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        flags: context.trace_flags().to_u8(),
    };
    Some((place, Exported(span)))
}

pub(super) fn flush() {
    let Some(Export { provider, .. }) = EXPORT.get() else {
        return;
    };
    if let Err(err) = provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
        tracing::warn!(error = %err, "the last traces were not exported");
    }
}
