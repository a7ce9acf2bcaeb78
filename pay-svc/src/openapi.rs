//! What `/openapi.json` says of requests.

use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};

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
