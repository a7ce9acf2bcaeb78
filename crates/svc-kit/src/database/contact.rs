//! The first connection, which distinguishes a wrong setting from a server that is not up yet.

use std::time::Duration;

use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use super::{DatabaseUrl, Fault, classify};
use crate::backoff::Backoff;
use crate::boot::ConfigError;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Waits until the database answers, and says in the log what it waits for. Returns early, without
/// an error, when `stop` is cancelled.
///
/// # Errors
/// What no waiting can fix: access denied, unknown database and the like.
pub async fn first_contact(url: &DatabaseUrl, stop: &CancellationToken) -> Result<(), ConfigError> {
    first_contact_reporting(url, stop, |_| ()).await
}

/// As [`first_contact`]; also reports, at every try that fails, why.
///
/// # Errors
/// As [`first_contact`].
pub async fn first_contact_reporting(
    url: &DatabaseUrl,
    stop: &CancellationToken,
    report: impl Fn(&str),
) -> Result<(), ConfigError> {
    let contact = stop.run_until_cancelled(wait(url, report)).await;
    contact.unwrap_or(Ok(()))
}

async fn wait(url: &DatabaseUrl, report: impl Fn(&str)) -> Result<(), ConfigError> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let err = match url.connect().await {
            Ok(connection) => {
                if let Err(err) = connection.close().await {
                    tracing::debug!(error = %err, "could not say goodbye to the database");
                }
                return Ok(());
            }
            Err(err) => err,
        };
        if let Fault::Misconfigured(mut config) = classify(&err) {
            config.problem = format!("{url}: {}", config.problem);
            return Err(config);
        }
        let retry_in = backoff.next();
        tracing::warn!(database = %url, error = %err, ?retry_in, "waiting for the database");
        report(&format!("waiting for the database: {err}"));
        tokio::time::sleep(retry_in).await;
    }
}
