//! The payments API: a payment by its order, and a way in by hand for when the broker is down.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use outbox::inbox::Claim;
use outbox::message::{MessageId, Received};
use outbox::row::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{FromRow, MySqlPool};
use svc_kit::http::openapi::{Bearer, Problems, Unavailable, document};
use svc_kit::http::{
    Problem, database_problem, in_own_task, malformed_json, media_type, method_not_allowed,
    not_json, nothing_here, unavailable, whole_body,
};
use svc_kit::operators::{Role, Tokens};
use time::PrimitiveDateTime;
use tokio::sync::Semaphore;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use crate::openapi;
use crate::store::{Operator, Store, StoreError};

/// The longest body, in bytes.
pub const BODY_MAX: usize = 64 * 1024;

/// Bodies in hand at once; further requests wait.
pub const BODIES_MAX: usize = 64;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest `inbox.event_type`, in characters.
const TYPE_MAX: usize = 255;

/// What the handlers need.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where messages go.
    pub store: Store,
    /// Who may put messages in by hand.
    pub tokens: Tokens,
    /// One for each body that is in hand.
    pub places: Arc<Semaphore>,
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/payments/{order_id}", get(find_payment))
        .route("/pay", post(put_in))
        .route("/openapi.json", get(document::<Contract>))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(api)
}

const BEARER: Bearer = Bearer("operator");

#[derive(OpenApi)]
#[openapi(
    info(title = "pay-svc", description = "Pays each placed order once."),
    paths(find_payment, put_in),
    modifiers(&BEARER, &Problems)
)]
struct Contract;

/// A payment.
#[derive(Debug, Serialize, ToSchema)]
pub struct Payment {
    /// UUID.
    pub payment_id: String,
    /// UUID.
    pub order_id: String,
    /// The message it was paid for.
    pub message_id: String,
    /// In the currency's minor unit.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// `captured` or `declined`.
    pub outcome: String,
    /// The provider's own name for it.
    pub provider_ref: Option<String>,
    /// RFC 3339.
    #[schema(format = "date-time")]
    pub created_at: String,
}

#[derive(FromRow)]
struct PaymentRow {
    payment_id: String,
    order_id: String,
    message_id: Vec<u8>,
    amount_minor: i64,
    currency: String,
    outcome: String,
    provider_ref: Option<String>,
    created_at: PrimitiveDateTime,
}

/// Shows the payment of an order.
#[utoipa::path(
    get,
    path = "/payments/{order_id}",
    tag = "http",
    params(("order_id" = String, Path, format = "uuid")),
    responses(
        (status = 200, description = "The payment", body = Payment),
        (status = 404, description = "The order is not paid (yet)"),
        (status = 500, description = "A fault of this program; its log has the error"),
        Unavailable,
    ),
)]
pub(crate) async fn find_payment(
    State(api): State<Api>,
    order_id: Result<Path<String>, PathRejection>,
) -> Result<Json<Payment>, Problem> {
    let unpaid = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "not_paid",
            "There is no payment of this order",
        )
    };
    // An id that is not even text is no order's either.
    let Path(order_id) = order_id.map_err(|_| unpaid())?;
    let order_id = Uuid::try_parse(&order_id).map_err(|_| unpaid())?;
    let pool = api.store.database.pool().clone();
    let work = async move { select_payment(&pool, order_id).await };
    let row = in_own_task(work)
        .await?
        .map_err(|err| database_problem(&err))?;
    let row = row.ok_or_else(unpaid)?;
    Ok(Json(Payment {
        payment_id: row.payment_id,
        order_id: row.order_id,
        message_id: String::from_utf8_lossy(&row.message_id).into_owned(),
        amount_minor: row.amount_minor,
        currency: row.currency,
        outcome: row.outcome,
        provider_ref: row.provider_ref,
        created_at: rfc3339(row.created_at),
    }))
}

async fn select_payment(
    pool: &MySqlPool,
    order_id: Uuid,
) -> Result<Option<PaymentRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT payment_id, order_id, message_id, amount_minor, currency, outcome, provider_ref, \
         created_at FROM payments WHERE order_id = ?",
    )
    .bind(order_id.to_string())
    .fetch_optional(pool)
    .await
}

/// A message, as it would have come from the queue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutIn<'a> {
    message_id: String,
    #[serde(rename = "type")]
    event_type: String,
    // Raw: the inbox compares bodies byte for byte with what the queue may bring later.
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// What became of a message that was put in by hand.
#[derive(Debug, Serialize, ToSchema)]
pub struct Taken {
    /// The id it is stored under.
    pub message_id: String,
    /// `received`, or `duplicate` when it was there before.
    pub status: &'static str,
}

/// Puts a message into the inbox by hand; it takes the same path as one from the queue.
#[utoipa::path(
    post,
    path = "/pay",
    tag = "http",
    request_body = openapi::PutIn,
    responses(
        (status = 202, description = "Stored, to be worked on", body = Taken),
        (status = 200, description = "Known already; counted", body = Taken),
        (status = "4XX", description = "Malformed (400), no token (401), not an operator's (403), \
         too slow (408), the id is known with another body, which is stored and parked (409), too \
         long (413), not JSON (415), invalid (422), too many wrong tokens (429)"),
        (status = 500, description = "A fault of this program; its log has the error"),
        Unavailable,
    ),
    security(("operator" = [])),
)]
pub(crate) async fn put_in(State(api): State<Api>, request: Request) -> Response {
    take_in(api, request).await.into_response()
}

async fn take_in(api: Api, request: Request) -> Result<Response, Problem> {
    // Before the body: nobody without a token keeps a connection busy with one.
    let operator = Operator(api.tokens.admit(&request, Role::Operator)?.name.clone());
    let _place = Arc::clone(&api.places).acquire_owned().await;
    let headers = request.headers().clone();
    let received = read(&headers, &whole_body(request, BODY_TIMEOUT).await?)?;
    let message_id = received.message_id.to_string();
    let work = async move { api.store.take_in_by_hand(received, operator).await };
    let claim = in_own_task(work).await?.map_err(|err| not_stored(&err))?;
    let (code, status) = match claim {
        Claim::First => (StatusCode::ACCEPTED, "received"),
        Claim::Duplicate => (StatusCode::OK, "duplicate"),
        Claim::Conflict => {
            let title = "The message_id is known with another body";
            return Err(Problem::new(StatusCode::CONFLICT, "id_conflict", title)
                .detail("this one is stored under the digest of its body, and parked"));
        }
    };
    Ok((code, Json(Taken { message_id, status })).into_response())
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<Received, Problem> {
    if media_type(headers) != "application/json" {
        return Err(not_json());
    }
    let invalid = || {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem::new(status, "invalid_message", "The message is not valid")
    };
    let message: PutIn<'_> = serde_json::from_slice(body).map_err(|err| {
        if err.is_data() {
            return invalid().detail(err.to_string());
        }
        malformed_json(err.to_string())
    })?;
    let message_id = MessageId::parse(message.message_id.as_bytes())
        .map_err(|err| invalid().error("message_id", err.to_string()))?;
    if !(1..=TYPE_MAX).contains(&message.event_type.chars().count()) {
        let detail = format!("must have 1 to {TYPE_MAX} characters");
        return Err(invalid().error("type", detail));
    }
    let payload = payload_bytes(message.payload).ok_or_else(|| {
        invalid().error(
            "payload",
            "must be an object, or a string with the body as it is",
        )
    })?;
    Ok(Received {
        message_id,
        event_type: Some(message.event_type),
        aggregate_id: None,
        exchange: String::new(),
        routing_key: String::new(),
        headers: serde_json::Value::Object(serde_json::Map::new()),
        payload,
        problem: None,
    })
}

/// The body the queue would have brought: an object as it was written, or the content of a string.
fn payload_bytes(payload: &RawValue) -> Option<Vec<u8>> {
    let raw = payload.get();
    match raw.as_bytes().first()? {
        b'{' => Some(raw.as_bytes().to_vec()),
        b'"' => serde_json::from_str::<String>(raw)
            .ok()
            .map(String::into_bytes),
        _ => None,
    }
}

fn not_stored(err: &StoreError) -> Problem {
    match err {
        StoreError::Database(err) => database_problem(err),
        StoreError::Silent => unavailable(),
    }
}
