//! Row images by mysql_common, the default reader's library. No IO.

use mysql_async::Value;
use mysql_async::binlog::events::{Event, EventData, RowsEventData, TableMapEvent};
use mysql_async::binlog::row::BinlogRow;
use mysql_async::binlog::value::BinlogValue;

use super::json;
use super::library::{Image, Layout, Library, Show, ShowChange};

/// mysql_async hands over a compressed transaction and then its events.
pub(super) const LIBRARY: Library = Library {
    layout,
    expands: true,
};

fn layout(event: &Event) -> Result<Box<dyn Layout>, String> {
    match event.read_event::<TableMapEvent<'_>>() {
        Ok(map) => Ok(Box::new(map.into_owned())),
        Err(err) => Err(err.to_string()),
    }
}

impl Layout for TableMapEvent<'static> {
    fn columns(&self) -> usize {
        usize::try_from(self.columns_count()).unwrap_or(usize::MAX)
    }

    fn images(&self, event: &Event, show: Show<'_>) -> Result<(), String> {
        let data = rows_of(event)?;
        whole(matches!(data.columns_after_image(), Some(all) if all.all()))?;
        for image in data.rows(self) {
            let (_, after) = image.map_err(|err| format!("a row image: {err}"))?;
            show(&mut after.ok_or("an INSERT without an after-image")?)?;
        }
        Ok(())
    }

    fn changes(&self, event: &Event, show: ShowChange<'_>) -> Result<(), String> {
        let data = rows_of(event)?;
        whole(matches!(data.columns_before_image(), Some(all) if all.all()))?;
        whole(matches!(data.columns_after_image(), Some(all) if all.all()))?;
        for images in data.rows(self) {
            let (before, after) = images.map_err(|err| format!("a row image: {err}"))?;
            let mut before = before.ok_or("an UPDATE without a before-image")?;
            show(
                &mut before,
                &mut after.ok_or("an UPDATE without an after-image")?,
            )?;
        }
        Ok(())
    }
}

fn rows_of(event: &Event) -> Result<RowsEventData<'_>, String> {
    match event.read_data() {
        Ok(Some(EventData::RowsEvent(data))) => Ok(data),
        Ok(_) => Err("a row event of an unknown kind".into()),
        Err(err) => Err(format!("a row event: {err}")),
    }
}

fn whole(all: bool) -> Result<(), String> {
    match all {
        true => Ok(()),
        false => Err("a row image without all columns (binlog_row_image is not FULL)".into()),
    }
}

impl Image for BinlogRow {
    fn columns(&self) -> usize {
        self.len()
    }

    fn take(&mut self, column: usize) -> Result<Value, String> {
        match BinlogRow::take(self, column) {
            Some(BinlogValue::Value(value)) => Ok(value),
            Some(BinlogValue::Jsonb(value)) => json::text(&value).map(Value::Bytes),
            Some(BinlogValue::JsonDiff(_)) => Err(format!("column {column} is a part of JSON")),
            None => Err(format!("column {column} is missing from the image")),
        }
    }
}
