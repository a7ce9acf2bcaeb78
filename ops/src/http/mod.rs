//! The JSON API under `/ops/api`, and everything else below `/ops`.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;
use svc_kit::http::Problem;

use crate::console::Console;
use crate::page;

/// `/ops` and everything below it. Without anybody who has a token it is off.
pub fn router(console: &Console) -> Router {
    if console.tokens().is_empty() {
        return Router::new()
            .route("/ops", any(off))
            .route("/ops/{*rest}", any(off));
    }
    page::router(console)
}

async fn off() -> Problem {
    let status = StatusCode::NOT_FOUND;
    std::future::ready(Problem::new(
        status,
        "ops_off",
        "/ops is off; OPS_TOKENS turns it on",
    ))
    .await
}
