//! Statements that are put together: conditions and lists of keys.

use sqlx::{MySql, MySqlConnection, QueryBuilder};

use crate::filter::{Filter, State};
use crate::table::{Key, NO_CANARY, Table};

/// Appends a key as a parameter.
pub(crate) fn push_key(query: &mut QueryBuilder<MySql>, key: &Key) {
    match key {
        Key::Id(id) => query.push_bind(*id),
        Key::Message(id) => query.push_bind(id.clone()),
    };
}

/// `?, ?, …`, padded to a power of two with the last key: one prepared statement per power.
pub(crate) fn push_keys(query: &mut QueryBuilder<MySql>, keys: &[Key]) {
    let padded = keys.len().max(1).next_power_of_two();
    for index in 0..padded {
        if index > 0 {
            query.push(", ");
        }
        match keys.get(index).or(keys.last()) {
            Some(key) => push_key(query, key),
            None => drop(query.push("NULL")),
        }
    }
}

/// ` AND …` for everything a filter requests beyond the state, of the table under the alias `t`.
pub(crate) fn push_filter(query: &mut QueryBuilder<MySql>, table: &Table, filter: &Filter) {
    // Nobody parks or discards a canary: the index alone still has these states.
    if matches!(table, Table::Outbox { .. }) && matches!(filter.state, State::Waiting | State::Done)
    {
        query.push(format!(" AND t.{NO_CANARY}"));
    }
    for (column, text) in [
        ("t.event_type", &filter.event_type),
        ("t.exchange", &filter.exchange),
        ("t.routing_key", &filter.routing_key),
        ("t.aggregate_id", &filter.aggregate_id),
    ] {
        if let Some(text) = text {
            // Compared as bytes: a text that an ASCII column can't hold is an error otherwise.
            query.push(format!(" AND CAST({column} AS BINARY) = CAST("));
            query.push_bind(text.clone()).push(" AS BINARY)");
        }
    }
    if let Some(class) = &filter.class {
        query.push(format!(" AND CAST({} AS BINARY) = CAST(", Table::CLASS));
        query.push_bind(class.clone()).push(" AS BINARY)");
    }
    let created = table.created_column();
    if let Some(age) = filter.older_than {
        query.push(format!(" AND t.{created} <= UTC_TIMESTAMP(6) - INTERVAL "));
        query.push_bind(age).push(" SECOND");
    }
    if let Some(age) = filter.newer_than {
        query.push(format!(" AND t.{created} > UTC_TIMESTAMP(6) - INTERVAL "));
        query.push_bind(age).push(" SECOND");
    }
    if let Some(text) = &filter.text {
        query.push(" AND LOCATE(");
        query.push_bind(text.to_lowercase());
        query.push(
            ", LOWER(CONCAT_WS(' ', CONVERT(t.message_id USING utf8mb4), t.aggregate_id, \
             t.event_type, t.routing_key, t.last_error))) > 0",
        );
    }
}

/// How a table's rows of one state are read in order.
#[derive(Clone, Debug)]
pub(crate) struct Index(String);

impl Index {
    /// Finds the index that begins with `status` and the columns of the order.
    pub(crate) async fn discover(
        connection: &mut MySqlConnection,
        table: &Table,
    ) -> Result<Self, sqlx::Error> {
        let second = table.order_columns()[0];
        let name: Option<String> = sqlx::query_scalar(
            "SELECT CAST(a.INDEX_NAME AS CHAR) FROM information_schema.STATISTICS a \
             JOIN information_schema.STATISTICS b USING (TABLE_SCHEMA, TABLE_NAME, INDEX_NAME) \
             WHERE a.TABLE_SCHEMA = DATABASE() AND a.TABLE_NAME = ? \
             AND a.SEQ_IN_INDEX = 1 AND a.COLUMN_NAME = 'status' \
             AND b.SEQ_IN_INDEX = 2 AND b.COLUMN_NAME = ? LIMIT 1",
        )
        .bind(table.name())
        .bind(second)
        .fetch_optional(connection)
        .await?;
        Ok(Self(name.map_or_else(String::new, |name| {
            format!("FORCE INDEX (`{name}`)")
        })))
    }

    /// `FORCE INDEX (…)`, or nothing where there is none: a stale statistic must not make a list scan
    /// the whole table.
    pub(crate) fn force(&self) -> &str {
        &self.0
    }
}
