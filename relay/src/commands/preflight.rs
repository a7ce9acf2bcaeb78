//! What the database must offer, condition by condition.

use ::ops::bulk;
use mysql_async::DriverError;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use svc_kit::database::{Fault, classify};
use svc_kit::migrate::foreign;

use super::condition::{Condition, State, denied};
use super::{definition, rights};
use crate::config::{Config, RowImage};
use crate::database::wait_little_for_locks;
use crate::engine::Mode;
use crate::outbox_table::OutboxTable;
use crate::pause::{self, Pauses};
use crate::source::binlog::connection;
use crate::source::binlog::position::position_statement;
use crate::source::table::queries::Queries;

/// What the database must offer, for tables and, in cdc mode, for the binlog.
pub async fn database(connection: &mut MySqlConnection, config: &Config) -> Vec<Condition> {
    // What somebody has locked is a condition then, and not a silence.
    if let Err(err) = wait_little_for_locks(connection).await {
        return vec![denied("locks", &err, &config.table.name)];
    }
    let mut found = vec![tables(connection, &config.table).await];
    if found.iter().all(|condition| condition.state == State::Ok) {
        found.extend(definition(connection, config).await);
        if found
            .iter()
            .all(|condition| condition.state != State::Wrong)
        {
            found.push(rights::check(connection, &config.table).await);
        }
        found.push(index(connection, &config.table).await);
        found.push(pauses(connection, &config.table).await);
        found.push(bulks(connection, &config.table).await);
        if !config.canary_interval.is_zero() {
            found.push(canary(connection, &config.table).await);
        }
    }
    found.push(durability(connection).await);
    if config.row_image == RowImage::Minimal {
        found.push(minimal_marks(connection, &config.table).await);
    }
    if config.engine.mode == Mode::Cdc {
        found.extend(binlog(connection, &config.table).await);
        #[cfg(feature = "mysql-cdc")]
        if config.reader == crate::source::binlog::library::Reader::MysqlCdc {
            found.extend(super::reader::mysql_cdc(connection, &config.table).await);
        }
    }
    found
}

async fn definition(connection: &mut MySqlConnection, config: &Config) -> Vec<Condition> {
    match definition::look(connection, &config.table.name).await {
        Ok(found) => {
            let mut conditions = definition::judge(&found, config.engine.mode);
            if !config.canary_interval.is_zero() && found.has_integer_key() {
                let no_canary = "`aggregate_id` is an integer, and the canary's is a text";
                let off = "set RELAY_CANARY_INTERVAL=0s";
                conditions.push(Condition::not(State::Wrong, "canary", no_canary, off));
            }
            conditions
        }
        Err(err) => vec![denied("definition", &err, &config.table.name)],
    }
}

const MIGRATE: &str = "run `relay migrate`, or `relay migrate --print` and apply the SQL";

async fn tables(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "tables";
    match foreign(connection, &[OutboxTable::set(&table.name)]).await {
        Ok(None) => {}
        Ok(Some(wrong)) => {
            return Condition::not(State::Wrong, name, wrong.problem, wrong.fix);
        }
        Err(err) => return denied(name, &err, &table.name),
    }
    for companion in [
        table.name.clone(),
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
                let missing = format!("there is no table {}.{companion}", table.url.database());
                return Condition::not(State::Wait, name, missing, MIGRATE);
            }
            Err(err) => return denied(name, &err, &companion),
        }
    }
    Condition::ok(
        name,
        format!("{}.{} and its companions", table.url.database(), table.name),
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

/// A table that came later: a relay on older tables, or with older rights, works without it.
async fn pauses(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "pauses";
    match Pauses::read(connection, &table.name).await {
        Ok(_) => Condition::ok(name, format!("{}_pauses", table.name)),
        Err(err) if pause::is_not_there(&err) => Condition::not(
            State::Warning,
            name,
            format!("{err}: nothing can be paused"),
            format!(
                "run `relay migrate`, then GRANT SELECT, INSERT, DELETE ON {}.{}_pauses TO {}",
                table.url.database(),
                table.name,
                table.url.user()
            ),
        ),
        Err(err) => denied(name, &err, &format!("{}_pauses", table.name)),
    }
}

/// As the pauses: without them a canary that fails does not hold back the rest of its bulk.
async fn bulks(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let (name, outbox) = ("bulks", &table.name);
    let (object, err) = match bulk::check(connection, &table.for_ops()).await {
        Ok(()) => return Condition::ok(name, format!("{outbox}_bulks and {outbox}_bulk_rows")),
        Err(missing) => missing,
    };
    match classify(&err) {
        Fault::MissingTable | Fault::Misconfigured(_) => Condition::not(
            State::Warning,
            name,
            format!("{err}: a canary that fails would not hold back the rest of its bulk"),
            format!(
                "run `relay migrate`, then GRANT SELECT, INSERT, UPDATE, DELETE ON {}.{object} TO {}",
                table.url.database(),
                table.url.user()
            ),
        ),
        _ => denied(name, &err, &object),
    }
}

/// The one thing that the relay inserts into the outbox.
async fn canary(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let (name, outbox) = ("canary", &table.name);
    let statement = format!(
        "INSERT INTO `{outbox}` (message_id, aggregate_type, aggregate_id, event_type, exchange, \
         routing_key, payload) SELECT '', '', '', '', '', '', '' FROM `{outbox}` WHERE id = 0"
    );
    let tried = connection.execute(sqlx::raw_sql(AssertSqlSafe(statement)));
    match tried.await {
        Ok(_) => Condition::ok(name, "INSERT on the outbox"),
        Err(err) if matches!(classify(&err), Fault::Misconfigured(_)) => Condition::not(
            State::Wrong,
            name,
            err.to_string(),
            format!(
                "GRANT INSERT ON {}.{outbox} TO {}, or RELAY_CANARY_INTERVAL=0s",
                table.url.database(),
                table.url.user()
            ),
        ),
        Err(err) => denied(name, &err, outbox),
    }
}

/// What a binlog that holds every id looks like.
async fn binlog(connection: &mut MySqlConnection, table: &OutboxTable) -> Vec<Condition> {
    let mut found = Vec::new();
    let wanted: [(&'static str, &[&str], &str); 3] = [
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
            "binlog_order_commits",
            &["1", "ON"],
            "SET GLOBAL binlog_order_commits = ON",
        ),
    ];
    for (name, good, fix) in wanted {
        match variable(connection, name).await {
            Ok(None) => {}
            Ok(Some(value)) if good.contains(&value.as_str()) => {
                found.push(Condition::ok(name, value));
            }
            Ok(Some(value)) => found.push(Condition::not(State::Wrong, name, value, fix)),
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
    found.extend(left_out(connection, table).await);
    found.push(replication(connection, table).await);
    found
}

/// Does the server leave the outbox's database out of its binlog?
async fn left_out(connection: &mut MySqlConnection, table: &OutboxTable) -> Option<Condition> {
    let version = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut *connection);
    let version: String = version.await.ok()?;
    let statement = sqlx::raw_sql(AssertSqlSafe(position_statement(&version)));
    // Whether this account may read it is the next condition.
    let row = connection.fetch_optional(statement).await.ok()??;
    let names = |column: usize| row.try_get::<String, _>(column).unwrap_or_default();
    let (only, but, database) = (names(2), names(3), table.url.database());
    let has = |list: &str| list.split(',').any(|name| name.trim() == database);
    let is_left_out = !only.is_empty() && !has(&only) || has(&but);
    is_left_out.then(|| {
        Condition::not(
            State::Wrong,
            "binlog filter",
            format!("the server's binlog leaves out the database {database}"),
            "take it out of binlog-ignore-db or into binlog-do-db, or set RELAY_MODE=poll",
        )
    })
}

/// What a committed transaction needs to outlive a loss of power: variable, good values, what another
/// one means.
const DURABLE: [(&str, &[&str], &str); 4] = [
    (
        "innodb_flush_log_at_trx_commit",
        &["1"],
        "up to a second of committed transactions is lost",
    ),
    (
        "sync_binlog",
        &["1"],
        "transactions that the binlog has not on disk are undone when the server starts again",
    ),
    (
        "innodb_doublewrite",
        &["ON", "1", "DETECT_AND_RECOVER"],
        "a page that is written half can't be repaired",
    ),
    (
        "debug_no_sync",
        &["OFF", "0"],
        "nothing is written through to the disk",
    ),
];

/// A message can't be called back: what is sent must not be lost by the database that it came from.
async fn durability(connection: &mut MySqlConnection) -> Condition {
    let name = "durability";
    let mut lost = Vec::new();
    let mut fixes = Vec::new();
    for (variable_name, good, meaning) in DURABLE {
        match variable(connection, variable_name).await {
            Ok(Some(value)) if !good.contains(&value.as_str()) => {
                lost.push(format!("{variable_name} is {value}: {meaning}"));
                fixes.push(format!("{variable_name} = {}", good[0]));
            }
            Ok(_) => {}
            Err(err) => return denied(name, &err, variable_name),
        }
    }
    if lost.is_empty() {
        return Condition::ok(name, "a committed row outlives a loss of power");
    }
    Condition::not(
        State::Warning,
        name,
        format!(
            "after a loss of power messages can be out whose rows and orders are gone ({})",
            lost.join("; ")
        ),
        format!("set {} in the server's option file", fixes.join(", ")),
    )
}

/// It is chosen, and may cost others their columns.
async fn minimal_marks(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "RELAY_BINLOG_ROW_IMAGE";
    let try_out = sqlx::raw_sql("SET SESSION binlog_row_image = 'MINIMAL'");
    if let Err(err) = connection.execute(try_out).await {
        let fix = format!(
            "GRANT SESSION_VARIABLES_ADMIN (MariaDB: BINLOG ADMIN) ON *.* TO {}, or leave the \
             setting at full",
            table.url.user()
        );
        return Condition::not(State::Warning, name, format!("minimal: {err}"), fix);
    }
    Condition::not(
        State::Warning,
        name,
        "minimal: marks have the key and what changes alone. Online schema changes by the binlog \
         (gh-ost) destroy pending rows, and CDC readers lose columns",
        "full, unless nothing else reads this table from the binlog",
    )
}

pub(super) async fn variable(
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
    let fix = format!(
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {}, or RELAY_MODE=poll",
        table.url.user()
    );
    let position = match Queries::discover(connection, table).await {
        Ok(queries) => queries.position(connection).await,
        Err(err) => Err(err),
    };
    let position = match position {
        Ok(position) => position,
        Err(err) => return Condition::not(state_of(&err), name, err.to_string(), fix),
    };
    match connection::try_out(&table.url, &position).await {
        Ok(()) => Condition::ok(
            name,
            format!(
                "the binlog can be read, it is at {position}; for an event over {} MiB, of any table, \
                 the outbox is scanned instead",
                connection::EVENT_MAX >> 20
            ),
        ),
        // The other driver may speak more of them.
        Err(mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name: plugin })) => {
            let problem = format!(
                "DATABASE_URL: the account logs in with the plugin {plugin}, which the reader of the \
                 binlog does not speak"
            );
            let fix = "give the account caching_sha2_password (MySQL: ALTER USER … IDENTIFIED WITH \
                       caching_sha2_password BY …) or mysql_native_password (MariaDB: ALTER USER … \
                       IDENTIFIED VIA mysql_native_password USING PASSWORD(…)), or set RELAY_MODE=poll";
            Condition::not(State::Wrong, name, problem, fix)
        }
        Err(err) => {
            // Access denied, in its kinds: to log in, to the database, to replicate.
            let denied = matches!(
                &err,
                mysql_async::Error::Server(err)
                    if matches!(err.code, 1044 | 1045 | 1142 | 1227 | 1698)
            );
            let state = if denied { State::Wrong } else { State::Wait };
            Condition::not(state, name, err.to_string(), fix)
        }
    }
}

fn state_of(err: &sqlx::Error) -> State {
    match classify(err) {
        Fault::Misconfigured(_) => State::Wrong,
        _ => State::Wait,
    }
}
