//! `relay check`: every condition the relay needs, with the fix of each that is not met. The same
//! list is gone through at start.

use std::time::Duration;

use svc_kit::backoff::Backoff;
use svc_kit::boot::ConfigError;
use svc_kit::database::{Fault, classify};
use tokio_util::sync::CancellationToken;

use super::condition::{Condition, State};
use super::preflight;
use crate::config::Config;
use crate::observe::canary::Nest;
use crate::publish::connection;

/// Everything, the broker included.
pub async fn all(config: &Config) -> Vec<Condition> {
    let mut conditions = match config.table.url.connect().await {
        Ok(mut connection) => {
            let mut found = vec![Condition::ok("database", config.table.url.to_string())];
            found.extend(preflight::database(&mut connection, config).await);
            found
        }
        Err(err) => vec![unreachable_database(&err)],
    };
    conditions.push(broker(config).await);
    conditions
}

async fn database(config: &Config) -> Vec<Condition> {
    match config.table.url.connect().await {
        Ok(mut connection) => preflight::database(&mut connection, config).await,
        Err(err) => vec![unreachable_database(&err)],
    }
}

fn silent_database() -> Condition {
    let detail = format!("no answer within {PREFLIGHT_TIMEOUT:?}");
    Condition::not(State::Wait, "database", detail, "see the server's log")
}

fn unreachable_database(err: &sqlx::Error) -> Condition {
    match classify(err) {
        Fault::Misconfigured(config) => {
            Condition::not(State::Wrong, "database", config.problem, config.fix)
        }
        _ => Condition::not(
            State::Wait,
            "database",
            err.to_string(),
            "start the server, or fix host and port in DATABASE_URL",
        ),
    }
}

async fn broker(config: &Config) -> Condition {
    let link = match connection::connect(&config.amqp, &config.name).await {
        Ok(link) => link,
        Err(err) => {
            return match svc_kit::amqp::classify(&err) {
                svc_kit::amqp::BrokerFault::Misconfigured(wrong) => {
                    Condition::not(State::Wrong, "broker", wrong.problem, wrong.fix)
                }
                svc_kit::amqp::BrokerFault::Away(why) => Condition::not(
                    State::Wait,
                    "broker",
                    why,
                    "start RabbitMQ, or fix host and port in AMQP_URL",
                ),
            };
        }
    };
    if !config.canary_interval.is_zero()
        && let Err(err) = Nest::build(link.connection.create_channel()).await
    {
        return Condition::not(
            State::Warning,
            "broker",
            format!("{err:#}: no canary comes back"),
            "grant these rights, or RELAY_CANARY_INTERVAL=0s",
        );
    }
    let Some(exchange) = &config.declare_exchange else {
        return Condition::ok("broker", format!("{}, no exchange to declare", config.amqp));
    };
    match connection::declare_exchange(&link.connection, exchange).await {
        Ok(Ok(())) => Condition::ok("broker", format!("{}, exchange {exchange}", config.amqp)),
        Ok(Err(why)) => Condition::not(
            State::Warning,
            "broker",
            why,
            format!("declare the exchange {exchange} by hand, or grant the right to configure it"),
        ),
        Err(err) => Condition::not(
            State::Wait,
            "broker",
            format!("{err:#}"),
            "see the broker's log",
        ),
    }
}

/// A database that accepts and then says nothing is queried again.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits at start until the database offers everything.
///
/// # Errors
/// What no waiting can fix, all of it in one message.
pub async fn settle_preflight(
    config: &Config,
    stop: &CancellationToken,
    tell: impl Fn(&str),
) -> Result<(), ConfigError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let wait = async {
        loop {
            let unmet = match tokio::time::timeout(PREFLIGHT_TIMEOUT, database(config)).await {
                Ok(found) => found,
                Err(_) => vec![silent_database()],
            };
            if let Some(wrong) = summary(&unmet, State::Wrong) {
                return Err(wrong);
            }
            for warning in unmet
                .iter()
                .filter(|condition| condition.state == State::Warning)
            {
                tracing::warn!(
                    condition = warning.name,
                    detail = warning.detail,
                    fix = warning.fix,
                    "this could be better"
                );
            }
            let Some(waiting) = summary(&unmet, State::Wait) else {
                return Ok(());
            };
            tell(&waiting.to_string());
            let retry_in = backoff.next();
            tracing::warn!(waiting_for = %waiting, ?retry_in, "the database is not ready for the relay");
            tokio::time::sleep(retry_in).await;
        }
    };
    stop.run_until_cancelled(wait).await.unwrap_or(Ok(()))
}

fn summary(conditions: &[Condition], state: State) -> Option<ConfigError> {
    let these: Vec<&Condition> = conditions.iter().filter(|c| c.state == state).collect();
    let first = these.first()?;
    let join = |part: fn(&Condition) -> String| {
        these
            .iter()
            .map(|condition| part(condition))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let problem = match these.len() {
        1 => first.detail.clone(),
        _ => join(|condition| format!("{}: {}", condition.name, condition.detail)),
    };
    Some(ConfigError::new(
        first.name,
        problem,
        join(|condition| condition.fix.clone()),
    ))
}
