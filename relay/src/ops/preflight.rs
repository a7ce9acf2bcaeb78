//! What the database must offer, condition by condition.

use ::ops::bulk;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use svc_kit::database::{Fault, classify};

use super::check::{Condition, State};
use crate::binlog::connect;
use crate::binlog::decode::Columns;
use crate::config::{Config, Mode, OutboxTable, RowImage};
use crate::pauses::{self, Pauses};
use crate::table::Queries;

/// What the database must offer, for tables and, in cdc mode, for the binlog.
pub async fn database(connection: &mut MySqlConnection, config: &Config) -> Vec<Condition> {
    let mut found = vec![tables(connection, &config.table).await];
    if found.iter().all(|condition| condition.state == State::Ok) {
        found.push(writable(connection, &config.table).await);
        found.push(index(connection, &config.table).await);
        found.push(pauses(connection, &config.table).await);
        found.push(bulks(connection, &config.table).await);
        if !config.canary_interval.is_zero() {
            found.push(canary(connection, &config.table).await);
        }
    }
    if config.row_image == RowImage::Minimal {
        found.push(minimal_marks(connection, &config.table).await);
    }
    if config.mode == Mode::Cdc {
        found.extend(binlog(connection, &config.table).await);
        #[cfg(feature = "mysql-cdc")]
        if config.reader == crate::binlog::reader::Reader::MysqlCdc {
            found.extend(super::reader::mysql_cdc(connection, &config.table).await);
        }
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
            "add the column: `relay migrate --print` shows the table",
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

/// A table that came later: a relay on older tables, or with older rights, works without it.
async fn pauses(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "pauses";
    match Pauses::read(connection, &table.name).await {
        Ok(_) => Condition::ok(name, format!("{}_pauses", table.name)),
        Err(err) if pauses::is_not_there(&err) => Condition::not(
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

/// It is chosen, and may cost others their columns.
async fn minimal_marks(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let name = "RELAY_BINLOG_ROW_IMAGE";
    let try_out = sqlx::raw_sql("SET SESSION binlog_row_image = 'MINIMAL'");
    if let Err(err) = connection.execute(try_out).await {
        let mend = format!(
            "GRANT SESSION_VARIABLES_ADMIN (MariaDB: BINLOG ADMIN) ON *.* TO {}, or leave the \
             setting at full",
            table.url.user()
        );
        return Condition::not(State::Warning, name, format!("minimal: {err}"), mend);
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
            // Access denied, in its kinds: to log in, to the database, to replicate.
            let denied = matches!(
                &err,
                mysql_async::Error::Server(err)
                    if matches!(err.code, 1044 | 1045 | 1142 | 1227 | 1698)
            );
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
