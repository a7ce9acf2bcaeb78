//! Reading a definition from `information_schema`, which shows each account what it may see.

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Column, Definition};

/// Of the table that is bound as the first parameter.
const COLUMNS: &str = "SELECT CAST(COLUMN_NAME AS CHAR), LOWER(CAST(DATA_TYPE AS CHAR)), \
    CAST(COLUMN_TYPE AS CHAR), CAST(CHARACTER_SET_NAME AS CHAR), CAST(IS_NULLABLE AS CHAR), \
    CAST(COLUMN_DEFAULT AS CHAR), CAST(EXTRA AS CHAR), CAST(CHARACTER_MAXIMUM_LENGTH AS UNSIGNED) \
    FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? \
    ORDER BY ORDINAL_POSITION";
const INDEXES: &str = "SELECT CAST(INDEX_NAME AS CHAR), CAST(COLUMN_NAME AS CHAR) \
    FROM information_schema.STATISTICS \
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? AND NON_UNIQUE = 0 \
    ORDER BY INDEX_NAME, SEQ_IN_INDEX";
const TRIGGERS: &str = "SELECT CONCAT(TRIGGER_NAME, ' (', ACTION_TIMING, ' ', EVENT_MANIPULATION, ')'), '' \
    FROM information_schema.TRIGGERS \
    WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = ?";
const CHECKS: &str = "SELECT CAST(c.CONSTRAINT_NAME AS CHAR), CAST(c.CHECK_CLAUSE AS CHAR) \
    FROM information_schema.TABLE_CONSTRAINTS t JOIN information_schema.CHECK_CONSTRAINTS c \
    ON c.CONSTRAINT_SCHEMA = t.CONSTRAINT_SCHEMA AND c.CONSTRAINT_NAME = t.CONSTRAINT_NAME \
    WHERE t.TABLE_SCHEMA = DATABASE() AND t.TABLE_NAME = ? AND t.CONSTRAINT_TYPE = 'CHECK'";
const REFERRING: &str = "SELECT DISTINCT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME), '' \
    FROM information_schema.KEY_COLUMN_USAGE \
    WHERE REFERENCED_TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME = ?";

/// The definition of a table that is there.
///
/// # Errors
/// The database's.
pub(in crate::commands) async fn look(
    connection: &mut MySqlConnection,
    table: &str,
) -> Result<Definition, sqlx::Error> {
    let rows = of(connection, COLUMNS, table).await?;
    let columns: Result<Vec<Column>, sqlx::Error> = rows.iter().map(column).collect();
    let attempts = of(connection, COLUMNS, &format!("{table}_attempts")).await?;
    let attempts: Result<Vec<Column>, sqlx::Error> = attempts.iter().map(column).collect();
    let attempts = attempts?.into_iter().find(|column| column.is("message_id"));
    let mut definition = Definition {
        table: table.to_owned(),
        columns: columns?,
        triggers: firsts(connection, TRIGGERS, table).await?,
        referring: firsts(connection, REFERRING, table).await?,
        attempts_characters: attempts.and_then(|column| column.characters),
        ..Definition::default()
    };
    for row in of(connection, CHECKS, table).await? {
        let named = |column: &Column| column.name == row.get::<String, _>(0);
        // What MariaDB adds to a column that is called JSON.
        if !definition.columns.iter().any(named) {
            definition.checks.push((row.try_get(0)?, row.try_get(1)?));
        }
    }
    indexes(connection, &mut definition).await?;
    Ok(definition)
}

async fn of(
    connection: &mut MySqlConnection,
    statement: &'static str,
    table: &str,
) -> Result<Vec<MySqlRow>, sqlx::Error> {
    let query = sqlx::query(AssertSqlSafe(statement)).bind(table);
    query.fetch_all(connection).await
}

async fn firsts(
    connection: &mut MySqlConnection,
    statement: &'static str,
    table: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let rows = of(connection, statement, table).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn indexes(
    connection: &mut MySqlConnection,
    definition: &mut Definition,
) -> Result<(), sqlx::Error> {
    let mut last = String::new();
    for row in of(connection, INDEXES, &definition.table).await? {
        let index: String = row.try_get(0)?;
        // An expression is no column.
        let column: String = row.try_get::<Option<String>, _>(1)?.unwrap_or_default();
        if index == "PRIMARY" {
            definition.primary.push(column);
            continue;
        }
        if index != last {
            definition.unique.push(Vec::new());
        }
        if let Some(columns) = definition.unique.last_mut() {
            columns.push(column);
        }
        last = index;
    }
    Ok(())
}

fn column(row: &MySqlRow) -> Result<Column, sqlx::Error> {
    let nullable: String = row.try_get(4)?;
    Ok(Column {
        name: row.try_get(0)?,
        data_type: row.try_get(1)?,
        column_type: row.try_get(2)?,
        charset: row.try_get(3)?,
        nullable: nullable == "YES",
        default: row.try_get(5)?,
        extra: row.try_get::<Option<String>, _>(6)?.unwrap_or_default(),
        characters: row.try_get(7)?,
    })
}
