//! `relay check`: every condition the relay needs, with the mend of each that is not met. The same
//! list is gone through at start.

use std::fmt;
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use svc_kit::admin::Readiness;
use svc_kit::backoff::Backoff;
use svc_kit::boot::ConfigError;
use svc_kit::database::{Fault, classify};
use tokio_util::sync::CancellationToken;

use crate::binlog::connect;
use crate::binlog::decode::Columns;
use crate::broker;
use crate::config::{Config, Mode, OutboxTable};
use crate::table::Queries;

/// How bad an unmet condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Met.
    Ok,
    /// Met, but slower or less visible than it could be.
    Warning,
    /// Not met, and may be by itself or by somebody else in a while: the relay waits.
    Wait,
    /// Not met, and no waiting helps.
    Wrong,
}

/// One condition.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What it is about.
    pub name: &'static str,
    /// Whether it is met.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty when it is met.
    pub mend: String,
}

impl Condition {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            detail: detail.into(),
            mend: String::new(),
        }
    }

    fn not(
        state: State,
        name: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state,
            detail: detail.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Wait => "WAIT",
            State::Wrong => "WRONG",
        };
        write!(f, "{word:<8} {:<22} {}", self.name, self.detail)?;
        if !self.mend.is_empty() {
            write!(f, "\n{:31} mend: {}", "", self.mend)?;
        }
        Ok(())
    }
}

/// Everything, the broker included.
pub async fn all(config: &Config) -> Vec<Condition> {
    let mut conditions = match config.table.url.connect().await {
        Ok(mut connection) => {
            let mut found = vec![Condition::ok("database", config.table.url.to_string())];
            found.extend(database(&mut connection, config).await);
            found
        }
        Err(err) => vec![unreachable_database(&err)],
    };
    conditions.push(broker(config).await);
    conditions
}

fn unreachable_database(err: &sqlx::Error) -> Condition {
    match classify(err) {
        Fault::Misconfigured(config) => {
            Condition::not(State::Wrong, "database", config.problem, config.mend)
        }
        _ => Condition::not(
            State::Wait,
            "database",
            err.to_string(),
            "start the server, or mend host and port in DATABASE_URL",
        ),
    }
}

async fn broker(config: &Config) -> Condition {
    let connection = match broker::connect(&config.amqp, &config.name).await {
        Ok(connection) => connection,
        Err(err) => {
            return match svc_kit::amqp::classify(&err) {
                svc_kit::amqp::BrokerFault::Misconfigured(wrong) => {
                    Condition::not(State::Wrong, "broker", wrong.problem, wrong.mend)
                }
                svc_kit::amqp::BrokerFault::Away(why) => Condition::not(
                    State::Wait,
                    "broker",
                    why,
                    "start RabbitMQ, or mend host and port in AMQP_URL",
                ),
            };
        }
    };
    let Some(exchange) = &config.declare_exchange else {
        return Condition::ok("broker", format!("{}, no exchange to declare", config.amqp));
    };
    match broker::declare_exchange(&connection, exchange).await {
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

/// What the database must offer, for tables and, in cdc mode, for the binlog.
pub async fn database(connection: &mut MySqlConnection, config: &Config) -> Vec<Condition> {
    let mut found = vec![tables(connection, &config.table).await];
    if found.iter().all(|condition| condition.state == State::Ok) {
        found.push(writable(connection, &config.table).await);
        found.push(index(connection, &config.table).await);
    }
    if config.mode == Mode::Cdc {
        found.extend(binlog(connection, &config.table).await);
    }
    found
}

const MIGRATE: &str = "run `relay migrate`, or `relay migrate --print` and apply the SQL";

async fn tables(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "tables";
    let columns: Result<Vec<String>, _> = sqlx::query_scalar(
        "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION",
    )
    .bind(&table.name)
    .fetch_all(&mut *connection)
    .await;
    let columns = match columns {
        Ok(columns) if columns.is_empty() => {
            let missing = format!("there is no table {}.{}", table.url.database(), table.name);
            return Condition::not(State::Wait, name, missing, MIGRATE);
        }
        Ok(columns) => columns,
        Err(err) => {
            return Condition::not(State::Wait, name, err.to_string(), "see the server's log");
        }
    };
    if let Err(problem) = Columns::locate(&columns) {
        return Condition::not(
            State::Wrong,
            name,
            problem,
            "add the column: see the table in README",
        );
    }
    for companion in [
        format!("{}_fence", table.name),
        format!("{}_attempts", table.name),
        "operator_actions".into(),
    ] {
        let look = format!("SELECT 1 FROM `{companion}` LIMIT 1");
        match connection
            .fetch_optional(sqlx::raw_sql(AssertSqlSafe(look)))
            .await
        {
            Ok(None) if companion.ends_with("_fence") => {
                return Condition::not(
                    State::Wait,
                    name,
                    format!("{companion} has no row"),
                    MIGRATE,
                );
            }
            Ok(_) => {}
            Err(err) if classify(&err) == Fault::MissingTable => {
                return Condition::not(
                    State::Wait,
                    name,
                    format!("there is no table {companion}"),
                    MIGRATE,
                );
            }
            Err(err) => return denied(name, &err, &companion),
        }
    }
    Condition::ok(
        name,
        format!("{}.{} and its companions", table.url.database(), table.name),
    )
}

fn denied(name: &'static str, err: &sqlx::Error, object: &str) -> Condition {
    match classify(err) {
        Fault::Misconfigured(_) => Condition::not(
            State::Wrong,
            name,
            err.to_string(),
            format!("GRANT what README lists for the relay on {object}"),
        ),
        Fault::ReadOnly => Condition::not(
            State::Wait,
            name,
            "the server is read-only",
            "point DATABASE_URL at the primary, or SET GLOBAL read_only = OFF there",
        ),
        _ => Condition::not(State::Wait, name, err.to_string(), "see the server's log"),
    }
}

/// Statements that need each right and change nothing.
async fn writable(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "rights";
    let outbox = &table.name;
    for statement in [
        format!("UPDATE `{outbox}` SET status = status WHERE id = 0"),
        format!("DELETE FROM `{outbox}` WHERE id = 0"),
        format!("UPDATE `{outbox}_fence` SET n = n WHERE n < 0"),
        format!(
            "INSERT INTO `{outbox}_attempts` (outbox_id, message_id, attempt, class, error) \
                 SELECT id, '', 0, '', '' FROM `{outbox}` WHERE id = 0"
        ),
        format!(
            "INSERT INTO operator_actions (actor, action, target) \
                 SELECT '', '', '' FROM `{outbox}` WHERE id = 0"
        ),
    ] {
        if let Err(err) = connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statement)))
            .await
        {
            return denied(name, &err, &format!("{}.*", table.url.database()));
        }
    }
    Condition::ok(
        name,
        "SELECT, UPDATE and DELETE on the outbox, INSERT on its companions",
    )
}

async fn index(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "index";
    match Queries::discover(connection, table).await {
        Ok(queries) if queries.has_index() => Condition::ok(name, "(status, id)"),
        Ok(_) => Condition::not(
            State::Warning,
            name,
            "there is no index on (status, id): every sweep reads the whole table",
            format!(
                "ALTER TABLE {} ADD INDEX outbox_status_id (status, id)",
                table.name
            ),
        ),
        Err(err) => denied(name, &err, &table.name),
    }
}

/// What a binlog that tells everything looks like.
async fn binlog(connection: &mut MySqlConnection, table: &OutboxTable) -> Vec<Condition> {
    let mut found = Vec::new();
    let wanted: [(&'static str, &[&str], &str); 4] = [
        (
            "log_bin",
            &["1", "ON"],
            "start the server with log_bin, or the relay with RELAY_MODE=poll",
        ),
        (
            "binlog_format",
            &["ROW"],
            "SET GLOBAL binlog_format = 'ROW', and in the server's option file",
        ),
        (
            "binlog_row_image",
            &["FULL"],
            "SET GLOBAL binlog_row_image = 'FULL', and in the option file",
        ),
        (
            "binlog_order_commits",
            &["1", "ON"],
            "SET GLOBAL binlog_order_commits = ON",
        ),
    ];
    for (name, good, mend) in wanted {
        match variable(connection, name).await {
            Ok(None) => {}
            Ok(Some(value)) if good.contains(&value.as_str()) => {
                found.push(Condition::ok(name, value));
            }
            Ok(Some(value)) => found.push(Condition::not(State::Wrong, name, value, mend)),
            Err(err) => found.push(denied(name, &err, name)),
        }
        if found
            .last()
            .is_some_and(|last| last.name == "log_bin" && last.state == State::Wrong)
        {
            return found;
        }
    }
    if let Ok(Some(on)) = variable(connection, "log_bin_compress").await
        && (on == "1" || on == "ON")
    {
        found.push(Condition::not(
            State::Warning,
            "log_bin_compress",
            "ON: rows over log_bin_compress_min_len are hidden and found by passes, up to 1 s late",
            "SET GLOBAL log_bin_compress = OFF",
        ));
    }
    found.push(replication(connection, table).await);
    found
}

async fn variable(
    connection: &mut MySqlConnection,
    name: &'static str,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!("SHOW GLOBAL VARIABLES LIKE '{name}'");
    let row = connection
        .fetch_optional(sqlx::raw_sql(AssertSqlSafe(statement)))
        .await?;
    row.map(|row| row.try_get(1)).transpose()
}

/// The rights that reading the binlog needs, tried out.
async fn replication(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "replication rights";
    let mend = format!(
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {}, or RELAY_MODE=poll",
        table.url.user()
    );
    let position = match Queries::discover(connection, table).await {
        Ok(queries) => queries.position(connection).await,
        Err(err) => Err(err),
    };
    let position = match position {
        Ok(position) => position,
        Err(err) => return Condition::not(state_of(&err), name, err.to_string(), mend),
    };
    match connect::try_out(&table.url, &position).await {
        Ok(()) => Condition::ok(name, format!("the binlog can be read, it is at {position}")),
        Err(err) => {
            let denied =
                matches!(&err, mysql_async::Error::Server(err) if (1000..2000).contains(&err.code));
            let state = if denied { State::Wrong } else { State::Wait };
            Condition::not(state, name, err.to_string(), mend)
        }
    }
}

fn state_of(err: &sqlx::Error) -> State {
    match classify(err) {
        Fault::Misconfigured(_) => State::Wrong,
        _ => State::Wait,
    }
}

/// Waits at start until the database offers everything.
///
/// # Errors
/// What no waiting can mend, all of it in one message.
pub async fn settle_preflight(
    config: &Config,
    stop: &CancellationToken,
    readiness: &Readiness,
) -> Result<(), ConfigError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let wait = async {
        loop {
            let unmet = match config.table.url.connect().await {
                Ok(mut connection) => database(&mut connection, config).await,
                Err(err) => vec![unreachable_database(&err)],
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
                    mend = warning.mend,
                    "this could be better"
                );
            }
            let Some(waiting) = summary(&unmet, State::Wait) else {
                return Ok(());
            };
            readiness.set("database", false, waiting.to_string());
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
        join(|condition| condition.mend.clone()),
    ))
}
