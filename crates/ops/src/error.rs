//! Why the console did not do what was requested.

use std::time::Duration;

use axum::http::StatusCode;
use svc_kit::database::{Fault, classify};
use svc_kit::http::{Problem, internal};

const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Nothing was done, or, with [`Error::Silent`] and [`Error::Panicked`], what was done is unknown.
/// That a row was in another state is not an error: see [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database said no.
    #[error("the database did not do it")]
    Database(#[from] sqlx::Error),
    /// The database said nothing in time.
    #[error("the database did not answer in time")]
    Silent,
    /// Our own mistake; it is in the log.
    #[error("the work panicked")]
    Panicked,
    /// A member of the request can't work.
    #[error("{field} {problem}")]
    Invalid {
        /// Its name in the API.
        field: &'static str,
        /// What is wrong, as the rest of a sentence that begins with the name.
        problem: String,
    },
    /// Editing is not enabled.
    #[error("editing is off; OPS_ALLOW_EDIT=true turns it on")]
    EditOff,
}

impl Error {
    /// A member that can't work.
    pub fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            problem: problem.into(),
        }
    }

    /// As HTTP clients see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Database(err) => match classify(err) {
                Fault::Data => {
                    tracing::error!(error = %err, "database refused values of the console");
                    internal()
                }
                Fault::MissingTable => {
                    tracing::warn!(error = %err, "a table of the console is missing");
                    unavailable("a table is missing: run the migrations")
                }
                Fault::Misconfigured(wrong) => {
                    tracing::warn!(error = %err, fix = wrong.fix, "a right is missing");
                    unavailable("the service's database account lacks a right; its log says which")
                }
                Fault::Unavailable | Fault::ReadOnly | Fault::Busy => {
                    tracing::warn!(error = %err, "database can't be used by the console");
                    unavailable("try again")
                }
            },
            Self::Silent => unavailable("no answer in time; look before you try again"),
            Self::Panicked => internal(),
            Self::Invalid { field, problem } => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_request",
                "The request is not valid",
            )
            .error(*field, problem),
            Self::EditOff => Problem::new(
                StatusCode::FORBIDDEN,
                "edit_off",
                "Editing is off; OPS_ALLOW_EDIT=true turns it on",
            ),
        }
    }
}

fn unavailable(detail: &str) -> Problem {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let title = "The database can't be used at the moment";
    Problem::new(status, "database_unavailable", title)
        .detail(detail)
        .retry_after(RETRY_AFTER)
}
