//! `/ops/openapi.json`: the API as a document for programs.

use axum::Json;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use super::{actions, bulks, rows};

/// The document.
pub(super) async fn document() -> Json<Document> {
    std::future::ready(Json(Contract::openapi())).await
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ops",
        description = "What an operator does with rows that need a person."
    ),
    paths(
        super::me,
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
    components(schemas(Problem, FieldError)),
    modifiers(&Bearer)
)]
struct Contract;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        if let Some(components) = document.components.as_mut() {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
            components.add_security_scheme("token", SecurityScheme::Http(scheme));
        }
    }
}

/// RFC 9457; `code` is stable.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "a description for the document; svc_kit::http has the value"
)]
pub(super) struct Problem {
    title: String,
    status: u16,
    code: String,
    detail: Option<String>,
    errors: Option<Vec<FieldError>>,
}

/// One wrong member; of a conflict: the state, and who did what when.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "a description for the document; svc_kit::http has the value"
)]
pub(super) struct FieldError {
    field: String,
    detail: String,
}
