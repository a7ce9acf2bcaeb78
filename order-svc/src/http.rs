//! The orders API. Handlers only translate: requests to orders, outcomes to answers.

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use sqlx::MySqlPool;
use svc_kit::http::openapi::{Problems, document};
use svc_kit::http::{
    Problem, database_problem, http_metrics, in_own_task_within, internal, malformed_json,
    media_type, method_not_allowed, not_json, nothing_here, unavailable, whole_body,
};
use time::OffsetDateTime;
use utoipa::OpenApi;
use uuid::Uuid;

use crate::batch::{Placed, Wanted};
use crate::commit::{NotPlaced, Orders};
use crate::idempotency::{BadKey, IdempotencyKey};
use crate::openapi;
use crate::order::{Order, Receipt};
use crate::place::{self, Found};
use crate::request::{OrderRequest, RequestError};
use crate::trace::{self, Trace};

/// The longest body, in bytes.
pub const BODY_MAX: usize = 64 * 1024;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A full queue is empty again within a second, unless the database is away.
const RETRY_AFTER_OVERLOAD: Duration = Duration::from_secs(1);

/// What the handlers need.
#[derive(Debug, Clone)]
pub struct Api {
    /// Connections to read orders with.
    pub pool: MySqlPool,
    /// Where new orders are handed in.
    pub orders: Orders,
    /// How long what a client waits for may take.
    pub times: Times,
}

/// How long what a client waits for, and what is waited for from a client, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The answer to a request, once its body is there.
    pub request: Duration,
    /// The arrival of a request's body.
    pub body: Duration,
}

/// The routes, with metrics for each.
///
/// # Panics
/// When `registry` has the HTTP metrics already.
pub fn router(api: Api, registry: &Registry) -> Router {
    let measured = http_metrics(registry).expect("each service registers the HTTP metrics once");
    Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(find_order))
        .route("/buy", post(buy))
        .route("/openapi.json", get(document::<Contract>))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(measured)
        .with_state(api)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "order-svc",
        description = "Takes orders. An order and the message that tells of it are one transaction."
    ),
    paths(place_order, find_order, buy),
    modifiers(&Problems)
)]
struct Contract;

/// Places an order.
#[utoipa::path(
    post,
    path = "/orders",
    tag = "http",
    params(openapi::PlaceHeaders),
    request_body = openapi::OrderRequest,
    responses(
        (status = 201, description = "Placed, or placed before with this key",
         body = openapi::Receipt, headers(("Location" = String))),
        openapi::PlaceRefusals,
    ),
)]
pub(crate) async fn place_order(
    State(api): State<Api>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let body = whole_body(request, api.times.body).await?;
    let request = read(&headers, &body)?;
    answer(api, &headers, request).await
}

/// Places an order, or a sample order for a client that sends no body.
#[utoipa::path(
    post,
    path = "/buy",
    tag = "http",
    params(openapi::PlaceHeaders),
    request_body = Option<openapi::OrderRequest>,
    responses(
        (status = 201, description = "Placed, or placed before with this key",
         body = openapi::Receipt, headers(("Location" = String))),
        openapi::PlaceRefusals,
    ),
)]
pub(crate) async fn buy(
    State(api): State<Api>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let body = whole_body(request, api.times.body).await?;
    let request = if body.is_empty() {
        OrderRequest::sample()
    } else {
        read(&headers, &body)?
    };
    answer(api, &headers, request).await
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<OrderRequest, Problem> {
    let media_type = media_type(headers);
    let is_json = media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"));
    if !is_json {
        return Err(not_json());
    }
    OrderRequest::parse(body).map_err(|err| match err {
        RequestError::Malformed(detail) => malformed_json(detail),
        RequestError::Invalid(errors) => errors.into_iter().fold(
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_order",
                "The order is not valid",
            ),
            |problem, error| problem.error(error.member, error.detail),
        ),
    })
}

async fn answer(api: Api, headers: &HeaderMap, request: OrderRequest) -> Result<Response, Problem> {
    let key = idempotency_key(headers)?;
    let order = Order::new(Uuid::now_v7(), OffsetDateTime::now_utc(), request);
    let (trace, span) = Trace::of(headers);
    let commit = span.as_ref().map(trace::commit);
    let placed = api.orders.place(Wanted::new(order, key, trace)).await;
    if let Some(commit) = commit {
        commit.end();
    }
    let answer = respond(placed);
    if let Some(span) = span {
        trace::answered(
            span,
            answer
                .as_ref()
                .map_or_else(|no| no.status, Response::status),
        );
    }
    answer
}

fn respond(placed: Result<Placed, NotPlaced>) -> Result<Response, Problem> {
    match placed {
        Ok(Placed::New(receipt) | Placed::Again(receipt)) => Ok(created(receipt)),
        Ok(Placed::KeyReused) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "The Idempotency-Key belongs to another request",
        )),
        Err(NotPlaced::Overloaded) => Err(overloaded()),
        Err(NotPlaced::Unavailable) => Err(unavailable()),
        Err(NotPlaced::NoKeys) => Err(unavailable().detail(
            "the table idempotency_keys can't be used, see the log; nothing was done, and an order \
             without an Idempotency-Key is placed",
        )),
        Err(NotPlaced::Refused) => Err(internal()),
    }
}

fn overloaded() -> Problem {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Problem::new(
        status,
        "overloaded",
        "Too many orders are waiting; nothing was done",
    )
    .retry_after(RETRY_AFTER_OVERLOAD)
}

/// The receipt as it was stored, byte for byte, so that a repeated request has an equal answer.
fn created(receipt: String) -> Response {
    #[derive(Deserialize)]
    struct Head<'a> {
        order_id: &'a str,
    }
    let order_id = serde_json::from_str::<Head<'_>>(&receipt).map_or("", |head| head.order_id);
    // Relative, so that it is right behind a gateway that strips a prefix as well.
    let location = format!("orders/{order_id}");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (
            LOCATION,
            HeaderValue::try_from(location).unwrap_or_else(|_| HeaderValue::from_static("orders")),
        ),
    ];
    (StatusCode::CREATED, headers, receipt).into_response()
}

/// Shows an order and how far its message has come.
#[utoipa::path(
    get,
    path = "/orders/{id}",
    tag = "http",
    params(("id" = String, Path, format = "uuid")),
    responses(
        (status = 200, description = "The order", body = openapi::Order),
        openapi::FindRefusals,
    ),
)]
pub(crate) async fn find_order(
    State(api): State<Api>,
    order_id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let unknown = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_order",
            "There is no order with this id",
        )
    };
    // A path that is no UTF-8, and one that is no UUID, is nobody's.
    let Path(order_id) = order_id.map_err(|_| unknown())?;
    let order_id = Uuid::try_parse(&order_id).map_err(|_| unknown())?;
    let Api { pool, times, .. } = api;
    let work = async move { place::find(&pool, order_id).await };
    let found = in_own_task_within(times.request, work)
        .await?
        .map_err(|err| database_problem(&err))?;
    let Found { order, delivery } = found.ok_or_else(unknown)?;
    let view = View {
        receipt: order.receipt(),
        delivery: delivery.name(),
    };
    Ok(axum::Json(view).into_response())
}

/// The body of `GET /orders/{id}`.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    receipt: Receipt<'a>,
    delivery: &'static str,
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let key = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => IdempotencyKey::parse(value.as_bytes()),
        (Some(_), Some(_)) => Err(BadKey),
    };
    key.map(Some).map_err(|err| {
        let status = StatusCode::BAD_REQUEST;
        Problem::new(
            status,
            "bad_idempotency_key",
            "The Idempotency-Key can't be used",
        )
        .detail(err.to_string())
    })
}
