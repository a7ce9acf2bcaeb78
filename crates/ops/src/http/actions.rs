//! The audit, as JSON and as a table for spreadsheets.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LINK};
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use svc_kit::http::openapi::Unavailable;

use super::Refusal;
use super::request;
use crate::audit::{ActionFilter, Actions};
use crate::console::Console;

/// The audit, the newest first.
#[utoipa::path(get, path = "/ops/api/actions", tag = "audit", params(ActionFilter),
    responses(
        (status = 200, description = "A page", body = Actions),
        (status = "4XX", description = "Invalid query (400, 422), no token (401)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn list(
    State(console): State<Console>,
    uri: Uri,
) -> Result<Json<Actions>, Refusal> {
    let filter: ActionFilter = request::query(&uri, |_| true)?;
    Ok(Json(console.actions(&filter).await?))
}

/// The audit as RFC 4180, the newest first. `Link` with `rel="next"` leads to the next page.
#[utoipa::path(get, path = "/ops/api/actions.csv", tag = "audit", params(ActionFilter),
    responses(
        (status = 200, description = "A page", body = String, content_type = "text/csv"),
        (status = "4XX", description = "Invalid query (400, 422), no token (401)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn csv(State(console): State<Console>, uri: Uri) -> Result<Response, Refusal> {
    let filter: ActionFilter = request::query(&uri, |_| true)?;
    let page = console.actions(&filter).await?;
    let mut answer = page.csv().into_response();
    let headers = answer.headers_mut();
    let csv = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
    headers.insert(CONTENT_TYPE, csv);
    let file = HeaderValue::from_static("attachment; filename=\"operator_actions.csv\"");
    headers.insert(CONTENT_DISPOSITION, file);
    if let Some(next) = page.next {
        let others = uri.query().unwrap_or_default().split('&');
        let mut pairs: Vec<&str> = others
            .filter(|pair| !pair.is_empty() && !pair.starts_with("before="))
            .collect();
        let before = format!("before={next}");
        pairs.push(&before);
        let link = format!("<{}?{}>; rel=\"next\"", uri.path(), pairs.join("&"));
        if let Ok(link) = HeaderValue::from_str(&link) {
            headers.insert(LINK, link);
        }
    }
    Ok(answer)
}
