//! Looking into events: cheap peeks first, decoding only what is the outbox's. No IO.

use mysql_async::binlog::events::{Event, EventData, RowsEventData, TableMapEvent};
use outbox::row::Row;

use super::decode::Columns;
use super::group::Committed;

/// Table map and row events start with the table id in six bytes, low first.
pub(super) fn table_id(data: &[u8]) -> Option<u64> {
    let bytes = data.get(..6)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |id, byte| (id << 8) | u64::from(*byte)),
    )
}

/// Looks at the names of a table map: after id (6) and flags (2), each a length, the text, a 0.
pub(super) fn names_table(data: &[u8], schema: &[u8], table: &[u8]) -> bool {
    let name = |at: usize| -> Option<&[u8]> {
        let length = usize::from(*data.get(at)?);
        data.get(at + 1..at + 1 + length)
    };
    name(8) == Some(schema) && name(8 + 2 + schema.len()) == Some(table)
}

pub(super) fn commit_time(event: &Event) -> Committed {
    let micros = match event.read_data() {
        Ok(Some(EventData::GtidEvent(gtid))) => gtid.immediate_commit_timestamp(),
        Ok(Some(EventData::AnonymousGtidEvent(gtid))) => gtid.0.immediate_commit_timestamp(),
        _ => 0,
    };
    match micros {
        0 => Committed::Seconds(event.header().timestamp()),
        micros => Committed::Micros(micros),
    }
}

/// The pending rows of one INSERT event, each with whether the table must serve it.
pub(super) fn decode_rows(
    event: &Event,
    map: &TableMapEvent<'static>,
    columns: &Columns,
) -> Result<Vec<(Row, bool)>, String> {
    let data = match event.read_data() {
        Ok(Some(EventData::RowsEvent(data))) => data,
        Ok(_) => return Err("a row event of an unknown kind".into()),
        Err(err) => return Err(format!("a row event: {err}")),
    };
    if map.columns_count() != columns.count() as u64 {
        return Err(format!(
            "the table map has {} columns, the table had {}",
            map.columns_count(),
            columns.count()
        ));
    }
    whole_image(&data)?;
    let mut rows = Vec::new();
    for image in data.rows(map) {
        let (_, after) = image.map_err(|err| format!("a row image: {err}"))?;
        let after = after.ok_or("an INSERT without an after-image")?;
        let inserted = columns.decode(after)?;
        if inserted.status == 1 {
            rows.push((inserted.row, inserted.deferred));
        }
    }
    Ok(rows)
}

fn whole_image(data: &RowsEventData<'_>) -> Result<(), String> {
    match data.columns_after_image() {
        Some(bitmap) if bitmap.all() => Ok(()),
        _ => Err("a row image without all columns (binlog_row_image is not FULL)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_map_is_recognised_by_its_names() {
        let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0];
        for name in ["orders", "outbox"] {
            data.push(u8::try_from(name.len()).unwrap());
            data.extend_from_slice(name.as_bytes());
            data.push(0);
        }
        assert!(names_table(&data, b"orders", b"outbox"));
        assert!(!names_table(&data, b"orders", b"outbo"));
        assert!(!names_table(&data[..12], b"orders", b"outbox"));
        assert_eq!(table_id(&data), Some(7));
    }
}
