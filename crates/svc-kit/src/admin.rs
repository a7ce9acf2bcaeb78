//! The admin listener: `/livez`, `/readyz`, `/metrics`, and what a service adds.
//!
//! It has a thread and a runtime of its own, so that a probe is answered while the main runtime is
//! stuck: that is when the answer matters.

mod readiness;

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio_util::sync::CancellationToken;

pub use readiness::{ACTIVE, Readiness, STANDBY};

use crate::boot::ConfigError;
use crate::http;

/// How long a scrape in progress may go on once the listener is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// The listener; it serves until it is dropped.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Takes the address (port 0: any free one) and starts to serve. Registers the process's own
    /// metrics (CPU, memory, descriptors) in `registry`.
    ///
    /// # Errors
    /// The address can't be had.
    pub fn bind(
        addr: SocketAddr,
        readiness: Readiness,
        registry: Registry,
        extra: Router,
    ) -> Result<Self, ConfigError> {
        let cant = |err: std::io::Error| {
            let problem = format!("can't listen on {addr}: {err}");
            ConfigError::new(
                "ADMIN_ADDR",
                problem,
                "name an address and port that is free here",
            )
        };
        let listener = std::net::TcpListener::bind(addr).map_err(cant)?;
        listener.set_nonblocking(true).map_err(cant)?;
        let addr = listener.local_addr().map_err(cant)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cant)?;
        register_process_metrics(&registry);

        let stop = CancellationToken::new();
        let app = router(readiness, registry).merge(extra);
        let serve = serve(listener, app, stop.clone());
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || runtime.block_on(serve))
            .map_err(cant)?;
        tracing::info!(%addr, "admin listening");
        Ok(Self {
            addr,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Err(_panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("admin thread panicked");
        }
    }
}

async fn serve(listener: std::net::TcpListener, app: Router, stop: CancellationToken) {
    let outcome = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => http::serve(listener, app, stop, CLOSE_TIMEOUT).await,
        Err(err) => Err(err.into()),
    };
    if let Err(err) = outcome {
        tracing::warn!(error = %err, "admin listener ended early");
    }
}

fn router(readiness: Readiness, registry: Registry) -> Router {
    Router::new()
        .route("/livez", get("ok"))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(metrics).with_state(registry))
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (ready, report) = readiness.report();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report))
}

async fn metrics(State(registry): State<Registry>) -> impl IntoResponse {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, err.to_string()).into_response(),
    }
}

fn register_process_metrics(registry: &Registry) {
    #[cfg(target_os = "linux")]
    {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        if let Err(err) = registry.register(Box::new(process)) {
            tracing::debug!(error = %err, "process metrics are registered already");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _: &Registry = registry;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(readiness: &Readiness) -> Admin {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Admin::bind(any, readiness.clone(), Registry::new(), Router::new()).unwrap()
    }

    async fn fetch(admin: &Admin, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", admin.addr()))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn readiness_tells_every_condition_and_why() {
        let readiness = Readiness::new(&["database", "broker"]);
        let admin = admin(&readiness);
        assert_eq!(fetch(&admin, "/livez").await, (200, "ok".to_owned()));
        assert_eq!(fetch(&admin, "/readyz").await.0, 503);

        readiness.set("database", true, "connected");
        readiness.set("broker", false, "connection refused");
        let (status, body) = fetch(&admin, "/readyz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 503);
        assert_eq!(
            body,
            serde_json::json!({"ready": false, "conditions": {
                "database": {"ok": true, "detail": "connected"},
                "broker": {"ok": false, "detail": "connection refused"},
            }})
        );
        readiness.set("broker", true, "connected");
        assert_eq!(fetch(&admin, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn a_standby_is_ready_whatever_its_conditions() {
        let readiness = Readiness::new(&["lease"]);
        let admin = admin(&readiness);
        readiness.set_role(STANDBY);
        let (status, body) = fetch(&admin, "/readyz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status, &body["role"]),
            (200, &serde_json::json!("standby"))
        );
        readiness.set_role(ACTIVE);
        assert_eq!(fetch(&admin, "/readyz").await.0, 503);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn metrics_have_the_process_in_them() {
        let (status, text) = fetch(&admin(&Readiness::new(&[])), "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }

    /// Not a tokio test: the main runtime's only thread is held, as a stuck service would hold it.
    #[test]
    fn probes_answer_while_the_main_runtime_is_stuck() {
        use std::io::{Read as _, Write as _};

        let main = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        main.block_on(async {
            let admin = admin(&Readiness::new(&[]));
            // Blocking calls on the runtime's own thread: nothing on it can run meanwhile.
            let mut client = std::net::TcpStream::connect(admin.addr()).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            client
                .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        });
    }

    #[tokio::test]
    async fn a_dropped_listener_gives_its_port_back() {
        let first = admin(&Readiness::new(&[]));
        let addr = first.addr();
        let taken = Admin::bind(addr, Readiness::new(&[]), Registry::new(), Router::new());
        let err = taken.unwrap_err();
        assert_eq!(err.field, "ADMIN_ADDR");
        drop(first);
        Admin::bind(addr, Readiness::new(&[]), Registry::new(), Router::new()).unwrap();
    }
}
