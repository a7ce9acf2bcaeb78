//! A bulk's own row: how it stands, and who may change that.

use sqlx::{MySql, QueryBuilder, Row as _, Transaction};

use super::BulkState;
use crate::row::text;
use crate::table::Table;

/// `stopped_by` and the audit's `reason`, in characters.
pub(super) const TEXT_MAX: usize = 1000;

/// A bulk that is locked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) state: BulkState,
    /// What it holds back is parked.
    pub(super) held: bool,
}

/// Whoever changes a bulk or its rows' times holds this lock; and takes it before those of rows.
pub(super) async fn lock(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<Option<Standing>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT state, held FROM `{}_bulks` WHERE id = ",
        table.name()
    ));
    query.push_bind(id).push(" FOR UPDATE");
    let found = query.build().fetch_optional(&mut **tx).await?;
    let standing = |row: sqlx::mysql::MySqlRow| {
        Ok(Standing {
            state: BulkState::parse(&text(&row, 0)?.unwrap_or_default())?,
            held: row.try_get::<u8, _>(1)? != 0,
        })
    };
    found.map(standing).transpose()
}

/// `UPDATE … SET changed_at = now, ` with what else is to be set, of one bulk.
pub(super) async fn set(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
    what: &str,
) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{}_bulks` SET changed_at = UTC_TIMESTAMP(6){what} WHERE id = ",
        table.name()
    ));
    query.push_bind(id);
    query.build().execute(&mut **tx).await?;
    Ok(())
}

/// Somebody is at work on it.
pub(super) async fn touch(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<(), sqlx::Error> {
    set(tx, table, id, "").await
}
