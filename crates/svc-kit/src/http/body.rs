//! A request's body, whole or not at all.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};

use super::{Problem, unreadable};

/// Reads a request's body, within the router's `DefaultBodyLimit` and a time: a client that sends
/// byte after byte keeps a connection no longer than that.
///
/// # Errors
/// 408 when it takes longer, 413 when it is too long, 400 when it is cut off.
pub async fn whole_body(request: Request, within: Duration) -> Result<Bytes, Problem> {
    match tokio::time::timeout(within, Bytes::from_request(request, &())).await {
        Ok(read) => read.map_err(|err| unreadable(&err)),
        Err(_elapsed) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            "The body did not arrive in time",
        )
        .detail(format!("a body has {within:?} to arrive"))),
    }
}

/// What the body is said to be, in lower case and without parameters; empty when nothing is said.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = given.and_then(|value| value.split(';').next());
    essence.unwrap_or_default().trim().to_ascii_lowercase()
}
