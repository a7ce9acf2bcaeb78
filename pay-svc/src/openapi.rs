//! `/openapi.json`: the API as a document for programs.

use axum::Json;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::http;

/// The document.
pub async fn document() -> Json<Document> {
    // An OpenApi value is built from constants; there is nothing to wait for, but axum asks.
    std::future::ready(Json(Contract::openapi())).await
}

#[derive(OpenApi)]
#[openapi(
    info(title = "pay-svc", description = "Pays each placed order once."),
    paths(http::find_payment, http::put_in),
    components(schemas(http::Payment, http::Taken, PutIn, Problem, FieldError)),
    modifiers(&Bearer)
)]
struct Contract;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        if let Some(components) = document.components.as_mut() {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
            components.add_security_scheme("operator", SecurityScheme::Http(scheme));
        }
    }
}

/// A message, as it would have come from the queue.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "a description for the document; http has the value"
)]
pub(crate) struct PutIn {
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    message_id: String,
    #[schema(min_length = 1, max_length = 255, example = "order.placed.v1")]
    #[serde(rename = "type")]
    event_type: String,
    /// The body: an object as it is to be stored, or a string with it, byte for byte.
    #[schema(schema_with = object_or_string)]
    payload: serde_json::Value,
}

fn object_or_string() -> Schema {
    let either = OneOfBuilder::new()
        .item(ObjectBuilder::new().schema_type(Type::Object))
        .item(ObjectBuilder::new().schema_type(Type::String))
        .build();
    Schema::OneOf(either)
}

/// RFC 9457; `code` is stable.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "a description for the document; svc_kit::http has the value"
)]
pub(crate) struct Problem {
    title: String,
    status: u16,
    code: String,
    detail: Option<String>,
    errors: Option<Vec<FieldError>>,
}

/// One wrong member.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "a description for the document; svc_kit::http has the value"
)]
struct FieldError {
    field: String,
    detail: String,
}
