//! What the OpenAPI documents of all services have in common.

use axum::Json;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::Problem;

/// A handler that answers with the document of `Contract`.
pub async fn document<Contract: OpenApi>() -> Json<Document> {
    // A document is built from constants; there is nothing to wait for, but axum asks.
    std::future::ready(Json(Contract::openapi())).await
}

/// Bearer tokens, under the name that the operations give to them.
#[derive(Debug)]
pub struct Bearer(pub &'static str);

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme(self.0, SecurityScheme::Http(scheme));
    }
}

/// The database can't be used; see Retry-After
#[derive(Debug, IntoResponses)]
#[response(status = 503, content_type = "application/problem+json")]
#[expect(dead_code, reason = "a description for documents")]
pub struct Unavailable(Problem);
