//! What a client gets when its request could not be carried out.

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use super::Problem;
use crate::database::{Fault, classify};
use crate::tasks;

/// A unit of database work that takes longer is answered without its outcome.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A handler is dropped when its client goes away; what it has begun in the database is not.
///
/// # Errors
/// 503 when the database did not answer in time, 500 when the work panicked.
pub async fn in_own_task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    in_own_task_within(DATABASE_TIMEOUT, work).await
}

/// As [`in_own_task`], for a service that sets the time.
///
/// # Errors
/// As [`in_own_task`].
pub async fn in_own_task_within<T: Send + 'static>(
    timeout: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::time::timeout(timeout, tasks::unit(work)).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(err)) => {
            tracing::error!(error = %err, "request could not be worked on");
            Err(internal())
        }
        Err(_elapsed) => {
            tracing::warn!(?timeout, "database did not answer in time");
            Err(unavailable())
        }
    }
}

/// 503 for what passes or an operator fixes, 500 for values that the database never takes.
#[must_use]
pub fn database_problem(err: &sqlx::Error) -> Problem {
    match classify(err) {
        Fault::Unavailable
        | Fault::ReadOnly
        | Fault::Busy
        | Fault::MissingTable
        | Fault::Misconfigured(_) => {
            tracing::warn!(error = %err, "database can't be used");
            unavailable()
        }
        Fault::Data => {
            tracing::error!(error = %err, "database refused the values of a statement");
            internal()
        }
    }
}

/// 503: the database can't be used.
#[must_use]
pub fn unavailable() -> Problem {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Problem::new(
        status,
        "database_unavailable",
        "The database can't be used at the moment",
    )
    .detail("try again; under the same Idempotency-Key or message_id nothing is done twice")
    .retry_after(RETRY_AFTER)
}

/// 500: the reason is in our log.
#[must_use]
pub fn internal() -> Problem {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(status, "internal", "Something went wrong on our side")
}

/// 413 for a body over 64 KiB, 400 for one that was cut off.
#[must_use]
pub fn unreadable(err: &BytesRejection) -> Problem {
    if err.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        return Problem::new(
            status,
            "body_too_large",
            "The body has more than 65536 bytes",
        );
    }
    Problem::new(
        StatusCode::BAD_REQUEST,
        "unreadable_body",
        "The body could not be read",
    )
}

/// 400 for a body that is no JSON; `detail` says where.
#[must_use]
pub fn malformed_json(detail: impl Into<String>) -> Problem {
    let title = "The body is not valid JSON";
    Problem::new(StatusCode::BAD_REQUEST, "malformed_json", title).detail(detail)
}

/// 415 for a body that is not said to be JSON.
#[must_use]
pub fn not_json() -> Problem {
    let title = "The body must be application/json";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", title)
}

/// 404: what a router falls back to.
pub async fn nothing_here() -> Problem {
    let title = "There is nothing at this path";
    std::future::ready(Problem::new(StatusCode::NOT_FOUND, "not_found", title)).await
}

/// 405: what a router falls back to where the path is known.
pub async fn method_not_allowed() -> Problem {
    let title = "The path does not take this method";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    std::future::ready(Problem::new(status, "method_not_allowed", title)).await
}
