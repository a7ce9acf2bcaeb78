//! What the OpenAPI documents of all services have in common.

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr};
use utoipa::{IntoResponses, Modify, OpenApi, PartialSchema as _, ToSchema as _};

use super::{FieldError, Problem};

/// A handler that answers with the document of `Contract`.
pub async fn document<Contract: OpenApi>() -> Json<Document> {
    // A document is built from constants; there is nothing to wait for, but axum wants a future.
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

/// Makes each error answer that says nothing of its content a [`Problem`].
#[derive(Debug)]
pub struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut Document) {
        let items = document.paths.paths.values_mut();
        let operations = items.flat_map(|item| [&mut item.get, &mut item.post]);
        let answers = operations
            .flatten()
            .flat_map(|operation| &mut operation.responses.responses);
        for (status, answer) in answers {
            if let RefOr::T(answer) = answer
                && !status.starts_with('2')
                && answer.content.is_empty()
            {
                let problem = Content::new(Some(Ref::from_schema_name("Problem")));
                let media_type = "application/problem+json".to_owned();
                answer.content.insert(media_type, RefOr::T(problem));
            }
        }
        let components = document.components.get_or_insert_default();
        for (name, schema) in [
            (Problem::name(), Problem::schema()),
            (FieldError::name(), FieldError::schema()),
        ] {
            components.schemas.insert(name.into_owned(), schema);
        }
    }
}

/// The database can't be used; see Retry-After
#[derive(Debug, IntoResponses)]
#[response(status = 503)]
pub struct Unavailable;
