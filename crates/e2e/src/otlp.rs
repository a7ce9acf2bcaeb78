//! A receiver of traces: takes what the programs export by OTLP over HTTP, and keeps it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};

/// A span, as it was exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// `service.name` of its program.
    pub service: String,
    /// What was done.
    pub name: String,
    /// 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// Empty at the root.
    pub parent: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Texts alone.
    pub attributes: HashMap<String, String>,
}

/// Listens until it is dropped.
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Exported>>>,
    _tasks: JoinSet<()>,
}

impl Collector {
    /// Listens on a free port of 127.0.0.1, on the caller's runtime.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("listening")?;
        let url = format!("http://{}", listener.local_addr()?);
        let spans = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&spans)));
        Ok(Self {
            url,
            spans,
            _tasks: tasks,
        })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All spans of a trace so far, in the order of their ends.
    #[must_use]
    pub fn of_trace(&self, trace_id: &str) -> Vec<Exported> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let of_trace = spans.iter().filter(|span| span.trace_id == trace_id);
        of_trace.cloned().collect()
    }
}

async fn serve(listener: TcpListener, spans: Arc<Mutex<Vec<Exported>>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let spans = Arc::clone(&spans);
        let service = service_fn(move |request: Request<Incoming>| {
            let spans = Arc::clone(&spans);
            async move { Ok::<_, Infallible>(take(request, &spans).await) }
        });
        let talk = http1::Builder::new().serve_connection(TokioIo::new(client), service);
        // A program that goes away in the middle is no error here.
        connections.spawn(async move { drop(talk.await) });
    }
}

async fn take(request: Request<Incoming>, spans: &Mutex<Vec<Exported>>) -> Response<Empty<Bytes>> {
    let at_home = request.uri().path() == "/v1/traces";
    let body = request.into_body().collect().await;
    let export = body
        .ok()
        .and_then(|body| ExportTraceServiceRequest::decode(body.to_bytes()).ok());
    let mut answer = Response::new(Empty::new());
    match export {
        Some(export) if at_home => spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(read(export)),
        _ => *answer.status_mut() = hyper::StatusCode::BAD_REQUEST,
    }
    answer
}

fn read(export: ExportTraceServiceRequest) -> Vec<Exported> {
    let mut all = Vec::new();
    for of_program in export.resource_spans {
        let resource = of_program.resource.unwrap_or_default();
        let service = texts(resource.attributes).remove("service.name");
        let scopes = of_program.scope_spans.into_iter();
        all.extend(scopes.flat_map(|scope| scope.spans).map(|span| {
            Exported {
                service: service.clone().unwrap_or_default(),
                kind: span.kind,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                error: span
                    .status
                    .filter(|status| status.code == 2)
                    .map(|status| status.message),
                attributes: texts(span.attributes),
                name: span.name,
            }
        }));
    }
    all
}

fn texts(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let texts = attributes
        .into_iter()
        .filter_map(|pair| match pair.value?.value? {
            Value::StringValue(text) => Some((pair.key, text)),
            _ => None,
        });
    texts.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
