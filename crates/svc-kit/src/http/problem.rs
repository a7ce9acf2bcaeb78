//! Errors as clients see them: RFC 9457, `application/problem+json`.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An error answer. Its text is for the client: nothing internal belongs into it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(
    feature = "openapi",
    schema(description = "RFC 9457; `code` is stable.")
)]
pub struct Problem {
    /// HTTP status.
    #[cfg_attr(feature = "openapi", schema(value_type = u16))]
    pub status: StatusCode,
    /// Stable name that programs decide by, e.g. `invalid_order`.
    pub code: &'static str,
    /// What this code means, the same every time.
    pub title: &'static str,
    /// What is wrong this time.
    pub detail: Option<String>,
    /// When to try again; whole seconds, rounded up.
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub retry_after: Option<Duration>,
    /// Members of the request that are wrong.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub errors: Vec<FieldError>,
}

/// One member of a request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// Its name, with dots between levels.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// A problem without details.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self {
            status,
            code,
            title,
            detail: None,
            retry_after: None,
            errors: Vec::new(),
        }
    }

    /// What is wrong this time.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// When to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// One more member of the request that is wrong.
    #[must_use]
    pub fn error(mut self, field: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldError {
            field: field.into(),
            detail: detail.into(),
        });
        self
    }
}

#[derive(Serialize)]
struct Body<'a> {
    title: &'a str,
    status: u16,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(Body {
            title: self.title,
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail.as_deref(),
            errors: &self.errors,
        });
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(problem: Problem) -> serde_json::Value {
        let body = problem.into_response().into_body();
        serde_json::from_slice(&axum::body::to_bytes(body, 10_000).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_is_json_with_a_stable_code() {
        let problem = Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_order",
            "Invalid order",
        )
        .detail("two members are wrong")
        .error("currency", "is not [A-Z]{3}")
        .error("amount_minor", "is below 1");
        assert_eq!(
            body(problem).await,
            serde_json::json!({
                "title": "Invalid order",
                "status": 422,
                "code": "invalid_order",
                "detail": "two members are wrong",
                "errors": [
                    {"field": "currency", "detail": "is not [A-Z]{3}"},
                    {"field": "amount_minor", "detail": "is below 1"},
                ],
            })
        );
    }

    #[tokio::test]
    async fn members_that_say_nothing_are_left_out() {
        let problem = Problem::new(StatusCode::NOT_FOUND, "unknown_order", "Unknown order");
        let expected =
            serde_json::json!({"title": "Unknown order", "status": 404, "code": "unknown_order"});
        assert_eq!(body(problem).await, expected);
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded");
        let after = |wait| {
            let response = problem.clone().retry_after(wait).into_response();
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(after(Duration::from_millis(1)), "1");
        assert_eq!(after(Duration::from_secs(2)), "2");
        assert_eq!(after(Duration::from_millis(2_500)), "3");
    }
}
