//! Bulks: start, look, pause, resume, cancel.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use svc_kit::http::Problem;
use svc_kit::http::openapi::Unavailable;
use svc_kit::operators::Person;
use svc_kit::tasks;
use utoipa::ToSchema;

use super::request::{self, Body, Part};
use super::{Refusal, by, conflict};
use crate::bulk::{Bulk, BulkAct, BulkOutcome, Plan};
use crate::console::Console;

type Answer<T> = Result<Json<T>, Refusal>;

/// A plan, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkRequest {
    // Never by default: that would be everything that is parked.
    plan: Plan,
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BulkWhy {
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// A bulk that was begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Begun {
    id: u64,
}

/// Begins a bulk; its rows are put in meanwhile.
#[utoipa::path(post, path = "/ops/api/bulks", tag = "bulks", request_body = BulkRequest,
    responses(
        (status = 202, description = "Begun", body = Begun),
        (status = "4XX", description = "Malformed (400), no token (401), not an operator's (403), \
         too long (413), not JSON (415), invalid (422)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn start(
    State(console): State<Console>,
    Extension(person): Extension<Person>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Begun>), Refusal> {
    let BulkRequest { plan, reason } = request::json(&headers, body)?;
    let id = console.bulk_start(&plan, &by(&person, reason)).await?;
    // Nobody waits for it: what becomes of it is in the table, and a failure in the log.
    drop(tasks::unit(async move { console.bulk_carry_out(id).await }));
    Ok((StatusCode::ACCEPTED, Json(Begun { id })))
}

/// The newest bulks, without progress.
#[utoipa::path(get, path = "/ops/api/bulks", tag = "bulks",
    responses(
        (status = 200, description = "The bulks", body = Vec<Bulk>),
        (status = "4XX", description = "No token (401)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn list(State(console): State<Console>) -> Answer<Vec<Bulk>> {
    Ok(Json(console.bulks().await?))
}

/// One bulk and how far it is.
#[utoipa::path(get, path = "/ops/api/bulks/{id}", tag = "bulks",
    params(("id" = u64, Path)),
    responses(
        (status = 200, description = "The bulk", body = Bulk),
        (status = "4XX", description = "No token (401), no such bulk (404)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn show(State(console): State<Console>, id: Part) -> Answer<Bulk> {
    let bulk = console.bulk(number(id)?).await?;
    Ok(Json(bulk.ok_or_else(unknown)?))
}

fn number(id: Part) -> Result<u64, Problem> {
    request::key(id)?.parse().map_err(|_| unknown())
}

fn unknown() -> Problem {
    let title = "There is no such bulk";
    Problem::new(StatusCode::NOT_FOUND, "unknown_bulk", title)
}

async fn act(
    console: &Console,
    act: BulkAct,
    requested: (&Person, Part),
    (headers, body): (HeaderMap, Body),
) -> Answer<BulkOutcome> {
    let BulkWhy { reason } = request::json(&headers, body)?;
    let (person, id) = (requested.0, number(requested.1)?);
    match console.bulk_turn(id, act, &by(person, reason)).await? {
        done @ BulkOutcome::Done { .. } => Ok(Json(done)),
        BulkOutcome::Missing { .. } => Err(unknown().into()),
        BulkOutcome::Early { now, .. } => {
            let title = "The rows of the bulk are still being held back";
            let problem = Problem::new(StatusCode::CONFLICT, "conflict", title);
            let detail = "try again when the bulk says followed: true";
            Err(problem.error("state", now.name()).detail(detail).into())
        }
        BulkOutcome::Conflict { now, last, .. } => {
            let title = "The bulk is in another state";
            Err(conflict(title, now.name(), None, last).into())
        }
    }
}

/// A handler that acts on a bulk, with its path in the document.
macro_rules! on_a_bulk {
    ($name:ident, $path:literal, $act:expr, $reported:literal) => {
        #[doc = $reported]
        #[utoipa::path(post, path = $path, tag = "bulks", params(("id" = u64, Path)),
            request_body = Option<BulkWhy>,
            responses(
                (status = 200, description = "Done; its rows follow", body = BulkOutcome),
                (status = "4XX", description = "Malformed (400), no token (401), not an \
                 operator's (403), no such bulk (404), in another state (409), too long (413), not \
                 JSON (415), invalid (422)"),
                Unavailable,
            ), security(("token" = [])))]
        pub(super) async fn $name(
            State(console): State<Console>,
            Extension(person): Extension<Person>,
            id: Part,
            headers: HeaderMap,
            body: Body,
        ) -> Answer<BulkOutcome> {
            act(&console, $act, (&person, id), (headers, body)).await
        }
    };
}

on_a_bulk!(
    pause,
    "/ops/api/bulks/{id}/pause",
    BulkAct::Pause,
    "Holds back what was not tried yet."
);
on_a_bulk!(
    resume,
    "/ops/api/bulks/{id}/resume",
    BulkAct::Resume,
    "Gives what is held back new times, canary first."
);
on_a_bulk!(
    cancel,
    "/ops/api/bulks/{id}/cancel",
    BulkAct::Cancel,
    "Ends a bulk; what was not tried is parked."
);
