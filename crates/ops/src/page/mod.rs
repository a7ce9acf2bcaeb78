//! The operators' page: plain forms over [`Console`], for people with a browser.
//!
//! It works without scripts and allows none. In the order of a request: `guard` (who calls, and from
//! where), then one module for each page; what they show is built in `view`, and the templates only
//! place it.

mod audit;
mod bulk;
mod form;
mod frame;
mod guard;
mod login;
mod notice;
mod origin;
mod overview;
mod row;
mod rows;
mod session;
mod show;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::map_response;
use axum::response::{Redirect, Response};
use axum::routing::{any, get, post};
use svc_kit::http::Problem;

use crate::console::Console;
use frame::Trouble;
use session::{Sessions, Visitor};

/// The longest form, in bytes: an edited payload of 64 KiB, each byte of it as `%XX`, and the rest.
const FORM_MAX: usize = 512 * 1024;

/// What a browser may do with these pages: show them with our own style sheet, and send our own
/// forms back. `Referrer-Policy` is not `no-referrer`, which would take `Origin` from the forms.
const HEADERS: &[(HeaderName, &str)] = &[
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'",
    ),
    (CACHE_CONTROL, "no-store"),
    (REFERRER_POLICY, "same-origin"),
    (X_FRAME_OPTIONS, "DENY"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// What the handlers share.
struct Desk {
    console: Console,
    sessions: Sessions,
    /// The cookie's name. Cookies know no ports, and the page of another service on this host has
    /// one of its own; the next process has another as well, which knows nothing of our sessions.
    cookie: String,
}

/// The page's routes, under `/ops`.
pub(crate) fn router(console: &Console) -> Router {
    let instance: u32 = rand::random();
    let desk = Desk {
        console: console.clone(),
        sessions: Sessions::default(),
        cookie: format!("ops-{}-{instance:08x}", console.table().name()),
    };
    Router::new()
        .route("/ops", get(overview::page))
        .route("/ops/login", get(login::page).post(login::login))
        .route("/ops/logout", post(login::logout))
        .route("/ops/rows", get(rows::page).post(rows::act))
        .route("/ops/row", get(row::page).post(row::act))
        .route("/ops/bulk", get(bulk::plan).post(bulk::start))
        .route("/ops/bulks", get(bulk::list))
        .route("/ops/bulks/{id}", get(bulk::page).post(bulk::act))
        .route("/ops/audit", get(audit::page))
        .route("/ops/audit.csv", get(audit::csv))
        .route("/ops/style.css", get(frame::style))
        .route("/ops/", get(async || Redirect::to("/ops")))
        .route("/ops/{*rest}", any(nothing))
        .method_not_allowed_fallback(async || {
            let title = "The page does not take this method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", title)
        })
        .layer(DefaultBodyLimit::max(FORM_MAX))
        .layer(map_response(harden))
        .with_state(Arc::new(desk))
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    std::future::ready(response).await
}

/// Says so to whoever is logged in.
async fn nothing(State(desk): State<Arc<Desk>>, visitor: Visitor) -> Response {
    let page = Trouble::missing("such page").page(&desk, Some(&visitor));
    std::future::ready(page).await
}
