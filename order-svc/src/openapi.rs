//! What `/openapi.json` says of requests and answers.

#![expect(
    dead_code,
    reason = "descriptions for the document; the values are in other modules"
)]

use utoipa::{IntoParams, IntoResponses, ToSchema};

/// What a client requests.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderRequest {
    #[schema(min_length = 1, max_length = 64, example = "c-17")]
    customer_id: String,
    /// In the currency's minor unit.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_000i64, example = 1999)]
    amount_minor: i64,
    #[schema(pattern = "^[A-Z]{3}$", example = "EUR")]
    currency: String,
    #[schema(max_length = 1000)]
    description: Option<String>,
}

/// A placed order.
#[derive(ToSchema)]
pub(crate) struct Receipt {
    #[schema(format = "uuid")]
    order_id: String,
    /// The message that tells of the order.
    #[schema(format = "uuid")]
    message_id: String,
    customer_id: String,
    amount_minor: i64,
    currency: String,
    #[schema(nullable = false)]
    description: Option<String>,
    #[schema(format = "date-time")]
    placed_at: String,
}

/// A placed order, and how far its message has come.
#[derive(ToSchema)]
pub(crate) struct Order {
    #[schema(inline)]
    #[serde(flatten)]
    receipt: Receipt,
    delivery: Delivery,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Delivery {
    Pending,
    Sent,
    Parked,
    Discarded,
}

/// What the answer to an order may be instead of 201.
#[derive(IntoResponses)]
pub(crate) enum PlaceRefusals {
    /// The body is not JSON or was cut off, or the Idempotency-Key can't be used
    #[response(status = 400)]
    Malformed,
    /// Another method than the path takes
    #[response(status = 405)]
    Method,
    /// The body did not arrive in time
    #[response(status = 408)]
    Slow,
    /// The body is over 64 KiB
    #[response(status = 413)]
    Long,
    /// The body is not said to be JSON
    #[response(status = 415)]
    NotJson,
    /// The order is not valid, or the Idempotency-Key belongs to another request
    #[response(status = 422)]
    Invalid,
    /// The order was refused for a reason that is in the service's log
    #[response(status = 500)]
    Internal,
    /// The database can't be used, or too many orders are waiting
    #[response(status = 503,
               headers(("Retry-After" = u32, description = "Seconds")))]
    Unavailable,
}

/// What the answer to a question for an order may be instead of 200.
#[derive(IntoResponses)]
pub(crate) enum FindRefusals {
    /// There is no such order
    #[response(status = 404)]
    Unknown,
    /// Another method than the path takes
    #[response(status = 405)]
    Method,
    /// The reason is in the service's log
    #[response(status = 500)]
    Internal,
    /// The database can't be used
    #[response(status = 503,
               headers(("Retry-After" = u32, description = "Seconds")))]
    Unavailable,
}

/// What a client may say of an order in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(crate) struct PlaceHeaders {
    /// The same key and order get the same answer
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 128,
        pattern = "^[!-~]+$"
    )]
    idempotency_key: Option<String>,
    /// W3C Trace Context: carried on in the message; what is not valid is ignored
    traceparent: Option<String>,
    /// Carried on with it
    tracestate: Option<String>,
}
