//! The JSON API under `/ops/api`: Bearer tokens alone, so that no other site can act through a
//! browser. Viewers look, operators act; nothing is anonymous.

mod actions;
mod bulks;
mod request;
mod rows;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use svc_kit::http::openapi::{Bearer, Problems, document};
use svc_kit::http::{Problem, method_not_allowed, nothing_here};
use svc_kit::operators::{Person, Role};
use utoipa::{OpenApi, ToSchema};

use crate::audit::{By, Last};
use crate::console::Console;
use crate::error::Error;
use crate::page;
pub use request::BODY_MAX;

/// The longest body of an edit, in bytes.
pub const EDIT_BODY_MAX: usize = 1 << 20;

/// `/ops` and everything below it. Without anybody who has a token it is off.
pub fn router(console: &Console) -> Router {
    if console.tokens().is_empty() {
        return Router::new()
            .route("/ops", any(off))
            .route("/ops/{*rest}", any(off));
    }
    page::router(console).merge(api(console))
}

fn api(console: &Console) -> Router {
    Router::new()
        .route("/ops/openapi.json", get(document::<Contract>))
        .route("/ops/api/me", get(me))
        .route("/ops/api/rows", get(rows::list))
        .route("/ops/api/groups", get(rows::groups))
        .route("/ops/api/rows/{key}", get(rows::detail))
        .route("/ops/api/rows/{key}/retry", post(rows::retry_one))
        .route("/ops/api/rows/{key}/discard", post(rows::discard_one))
        .route("/ops/api/rows/{key}/restore", post(rows::restore_one))
        .route("/ops/api/rows/{key}/note", post(rows::note))
        .route("/ops/api/retry", post(rows::retry))
        .route("/ops/api/discard", post(rows::discard))
        .route("/ops/api/restore", post(rows::restore))
        .route("/ops/api/bulks", get(bulks::list).post(bulks::start))
        .route("/ops/api/bulks/{id}", get(bulks::show))
        .route("/ops/api/bulks/{id}/pause", post(bulks::pause))
        .route("/ops/api/bulks/{id}/resume", post(bulks::resume))
        .route("/ops/api/bulks/{id}/cancel", post(bulks::cancel))
        .route("/ops/api/actions", get(actions::list))
        .route("/ops/api/actions.csv", get(actions::csv))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .merge(
            Router::new()
                .route("/ops/api/rows/{key}/edit", post(rows::edit))
                .layer(DefaultBodyLimit::max(EDIT_BODY_MAX)),
        )
        .route("/ops/api", any(nothing_here))
        .route("/ops/api/{*rest}", any(nothing_here))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(console.clone(), admit))
        .with_state(console.clone())
}

const BEARER: Bearer = Bearer("token");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ops",
        description = "What an operator does with rows that need a person."
    ),
    paths(
        me,
        rows::list,
        rows::groups,
        rows::detail,
        rows::retry_one,
        rows::discard_one,
        rows::restore_one,
        rows::note,
        rows::edit,
        rows::retry,
        rows::discard,
        rows::restore,
        bulks::list,
        bulks::start,
        bulks::show,
        bulks::pause,
        bulks::resume,
        bulks::cancel,
        actions::list,
        actions::csv
    ),
    modifiers(&BEARER, &Problems)
)]
struct Contract;

/// Who may come in: whoever has a token may look, an operator may act.
async fn admit(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let looks = [Method::GET, Method::HEAD].contains(request.method());
    let least = if looks { Role::Viewer } else { Role::Operator };
    let person = match console.tokens().admit(&request, least) {
        Ok(person) => person.clone(),
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(person);
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// What was not done, and why.
#[derive(Debug)]
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Error> for Refusal {
    fn from(err: Error) -> Self {
        Self(err.problem())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Who calls.
#[derive(Debug, Serialize, ToSchema)]
struct Me {
    /// The name in the audit.
    name: String,
    /// `viewer` or `operator`.
    role: &'static str,
    /// Is edit-and-retry on?
    allows_edit: bool,
    /// `outbox` or `inbox`, or the name the outbox has here.
    table: String,
}

/// Whose the token is.
#[utoipa::path(get, path = "/ops/api/me", tag = "who",
    responses(
        (status = 200, description = "The person", body = Me),
        (status = "4XX", description = "No token (401)"),
    ), security(("token" = [])))]
async fn me(State(console): State<Console>, Extension(person): Extension<Person>) -> Json<Me> {
    std::future::ready(Json(Me {
        name: person.name,
        role: match person.role {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
        },
        allows_edit: console.allows_edit(),
        table: console.table().name().to_owned(),
    }))
    .await
}

fn by(person: &Person, reason: Option<String>) -> By {
    By {
        actor: person.name.clone(),
        reason,
    }
}

/// 409: what it is, and who acted on it last.
fn conflict(title: &'static str, now: &str, why: Option<&str>, last: Option<Last>) -> Problem {
    let mut detail = format!("it is {now}");
    if let Some(why) = why {
        detail.push_str(&format!(": {why}"));
    }
    let mut problem = Problem::new(StatusCode::CONFLICT, "conflict", title).error("state", now);
    if let Some(Last { actor, action, at }) = last {
        let at = at.unwrap_or_default();
        detail.push_str(&format!("; last {action:?} by {actor} at {at}"));
        problem = problem
            .error("actor", actor)
            .error("action", action)
            .error("at", at);
    }
    problem.detail(detail)
}

async fn off() -> Problem {
    let title = "/ops is off; OPS_TOKENS turns it on";
    std::future::ready(Problem::new(StatusCode::NOT_FOUND, "ops_off", title)).await
}
