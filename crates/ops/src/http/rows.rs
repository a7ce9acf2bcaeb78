//! Rows: lists, groups, one of them, and what is done to them.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use svc_kit::http::Problem;
use svc_kit::http::openapi::Unavailable;
use svc_kit::operators::Person;
use utoipa::ToSchema;

use super::request::{self, Body, Part};
use super::{Refusal, by, conflict};
use crate::act::Outcome;
use crate::audit::By;
use crate::console::Console;
use crate::detail::Detail;
use crate::edit::{Edit, Edited};
use crate::filter::{Filter, PageRequest};
use crate::groups::Groups;
use crate::row::Page;

type Answer<T> = Result<Json<T>, Refusal>;

/// Why; to discard needs it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Why {
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// Rows, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Selected {
    #[schema(min_items = 1, max_items = 500)]
    keys: Vec<String>,
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// What became of each of several rows.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Outcomes {
    /// How many were done.
    done: usize,
    /// One for each key, in their order.
    outcomes: Vec<Outcome>,
}

/// An edit, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EditRequest {
    edit: Edit,
    #[schema(min_length = 1, max_length = 1000)]
    reason: Option<String>,
}

/// Lists rows.
#[utoipa::path(get, path = "/ops/api/rows", tag = "rows", params(Filter, PageRequest),
    responses(
        (status = 200, description = "A page", body = Page),
        (status = "4XX", description = "Invalid query (400, 422), no token (401)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn list(State(console): State<Console>, uri: Uri) -> Answer<Page> {
    let (filter, request) = request::list(&uri)?;
    Ok(Json(console.list(&filter, &request).await?))
}

/// Rows by class of their last failure.
#[utoipa::path(get, path = "/ops/api/groups", tag = "rows", params(Filter),
    responses(
        (status = 200, description = "The groups", body = Groups),
        (status = "4XX", description = "Invalid query (400, 422), no token (401)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn groups(State(console): State<Console>, uri: Uri) -> Answer<Groups> {
    let filter: Filter = request::query(&uri, |_| true)?;
    Ok(Json(console.groups(&filter).await?))
}

/// Shows one row, whole.
#[utoipa::path(get, path = "/ops/api/rows/{key}", tag = "rows",
    params(("key" = String, Path, description = "The row's `key`")),
    responses(
        (status = 200, description = "The row", body = Detail),
        (status = "4XX", description = "No token (401), no such row (404)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn detail(State(console): State<Console>, key: Part) -> Answer<Detail> {
    let detail = console.detail(&request::key(key)?).await?;
    Ok(Json(detail.ok_or_else(unknown_row)?))
}

fn unknown_row() -> Problem {
    let title = "There is no such row";
    Problem::new(StatusCode::NOT_FOUND, "unknown_row", title)
}

/// Done, or a problem: 409 with what the row is and who acted on it last.
fn single(outcome: Outcome) -> Answer<Outcome> {
    match outcome {
        done @ Outcome::Done { .. } => Ok(Json(done)),
        Outcome::Missing { .. } => Err(unknown_row().into()),
        Outcome::Conflict { now, why, last, .. } => {
            let title = "The row is in another state";
            Err(conflict(title, now.name(), Some(&why), last).into())
        }
    }
}

fn several(outcomes: Vec<Outcome>) -> Json<Outcomes> {
    let is_done = |outcome: &&Outcome| matches!(outcome, Outcome::Done { .. });
    Json(Outcomes {
        done: outcomes.iter().filter(is_done).count(),
        outcomes,
    })
}

fn one(mut outcomes: Vec<Outcome>) -> Answer<Outcome> {
    single(outcomes.pop().expect("one outcome for one key"))
}

struct Requested {
    key: String,
    by: By,
}

fn requested(
    person: &Person,
    key: Part,
    headers: &HeaderMap,
    body: Body,
) -> Result<Requested, Problem> {
    let why: Why = request::json(headers, body)?;
    Ok(Requested {
        key: request::key(key)?,
        by: by(person, why.reason),
    })
}

/// A handler that acts on one row, with its path in the document.
macro_rules! on_one_row {
    ($name:ident, $path:literal, $method:ident, $reported:literal) => {
        #[doc = $reported]
        #[utoipa::path(post, path = $path, tag = "rows",
            params(("key" = String, Path, description = "The row's `key`")), request_body = Option<Why>,
            responses(
                (status = 200, description = "Done", body = Outcome),
                (status = "4XX", description = "Malformed (400), no token (401), not an \
                 operator's (403), no such row (404), in another state (409), too long (413), not \
                 JSON (415), invalid (422)"),
                Unavailable,
            ), security(("token" = [])))]
        pub(super) async fn $name(
            State(console): State<Console>,
            Extension(person): Extension<Person>,
            key: Part,
            headers: HeaderMap,
            body: Body,
        ) -> Answer<Outcome> {
            let Requested { key, by } = requested(&person, key, &headers, body)?;
            one(console.$method(&[key], &by).await?)
        }
    };
}

/// A handler that acts on several rows, with its path in the document.
macro_rules! on_several_rows {
    ($name:ident, $path:literal, $reported:literal) => {
        #[doc = $reported]
        #[utoipa::path(post, path = $path, tag = "rows", request_body = Selected,
                    responses(
                        (status = 200, description = "What became of each", body = Outcomes),
                        (status = "4XX", description = "Malformed (400), no token (401), not an \
                 operator's (403), too long (413), not JSON (415), invalid (422)"),
                        Unavailable,
                    ), security(("token" = [])))]
        pub(super) async fn $name(
            State(console): State<Console>,
            Extension(person): Extension<Person>,
            headers: HeaderMap,
            body: Body,
        ) -> Answer<Outcomes> {
            let Selected { keys, reason } = request::json(&headers, body)?;
            Ok(several(console.$name(&keys, &by(&person, reason)).await?))
        }
    };
}

on_one_row!(
    retry_one,
    "/ops/api/rows/{key}/retry",
    retry,
    "Tries a parked row again from the start, or a waiting one now."
);
on_one_row!(
    discard_one,
    "/ops/api/rows/{key}/discard",
    discard,
    "Decides against a parked row; needs a reason."
);
on_one_row!(
    restore_one,
    "/ops/api/rows/{key}/restore",
    restore,
    "Makes a discarded row parked again."
);
on_several_rows!(
    retry,
    "/ops/api/retry",
    "Tries parked rows again from the start, or waiting ones now."
);
on_several_rows!(
    discard,
    "/ops/api/discard",
    "Decides against parked rows; needs a reason."
);
on_several_rows!(
    restore,
    "/ops/api/restore",
    "Makes discarded rows parked again."
);

/// Writes a note on a row into the audit; the reason is the note.
#[utoipa::path(post, path = "/ops/api/rows/{key}/note", tag = "rows",
    params(("key" = String, Path, description = "The row's `key`")), request_body = Why,
    responses(
        (status = 200, description = "Written", body = Outcome),
        (status = "4XX", description = "Malformed (400), no token (401), not an operator's (403), \
         no such row (404), too long (413), not JSON (415), invalid (422)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn note(
    State(console): State<Console>,
    Extension(person): Extension<Person>,
    key: Part,
    headers: HeaderMap,
    body: Body,
) -> Answer<Outcome> {
    let Requested { key, by } = requested(&person, key, &headers, body)?;
    single(console.note(&key, &by).await?)
}

/// Writes a new message from a parked row and discards the original; needs a reason.
#[utoipa::path(post, path = "/ops/api/rows/{key}/edit", tag = "rows",
    params(("key" = String, Path, description = "The row's `key`")), request_body = EditRequest,
    responses(
        (status = 200, description = "Written", body = Edited),
        (status = "4XX", description = "Malformed (400), no token (401), not an operator's or \
         editing is off (403), no such row (404), in another state (409), too long (413), not JSON \
         (415), invalid (422)"),
        Unavailable,
    ), security(("token" = [])))]
pub(super) async fn edit(
    State(console): State<Console>,
    Extension(person): Extension<Person>,
    key: Part,
    headers: HeaderMap,
    body: Body,
) -> Answer<Edited> {
    let EditRequest { edit, reason } = request::json(&headers, body)?;
    let key = request::key(key)?;
    let edited = console.edit(&key, &edit, &by(&person, reason)).await?;
    match edited.key {
        Some(_) => Ok(Json(edited)),
        None => match single(edited.original) {
            Err(refusal) => Err(refusal),
            Ok(_) => Err(svc_kit::http::internal().into()),
        },
    }
}
