//! From a row image of the binlog to an outbox row. No IO.

use mysql_async::Value;
use outbox::row::Row;
use time::{Date, Month, PrimitiveDateTime, Time};

use super::reader::Image;

/// Which column of the table is at which place of a row image.
///
/// The binlog names no columns unless `binlog_row_metadata=FULL`, so they are read from
/// `information_schema` when the stream is opened; an `ALTER TABLE` ends the stream.
#[derive(Clone, Debug)]
pub struct Columns {
    count: usize,
    id: usize,
    message_id: usize,
    aggregate_type: usize,
    aggregate_id: usize,
    event_type: usize,
    exchange: usize,
    routing_key: usize,
    content_type: usize,
    headers: usize,
    payload: usize,
    status: usize,
    attempts: usize,
    next_attempt_at: usize,
    created_at: usize,
}

/// An inserted row and what decides whether the tail may send it.
#[derive(Debug)]
pub struct Inserted {
    /// The row.
    pub row: Row,
    /// `status` as inserted: 1 is pending.
    pub status: u64,
    /// True when it has attempts or a `next_attempt_at`: the table serves it, not the tail.
    pub deferred: bool,
}

impl Columns {
    /// Finds the contract's columns among `names`, the table's columns in their order.
    ///
    /// # Errors
    /// The name of the first column that the table does not have.
    pub fn locate(names: &[String]) -> Result<Self, String> {
        let at = |name: &str| {
            names
                .iter()
                .position(|column| column.eq_ignore_ascii_case(name))
                .ok_or_else(|| format!("the table has no column `{name}`"))
        };
        // Not decoded, but the table's side needs them.
        at("sent_at")?;
        at("last_error")?;
        Ok(Self {
            count: names.len(),
            id: at("id")?,
            message_id: at("message_id")?,
            aggregate_type: at("aggregate_type")?,
            aggregate_id: at("aggregate_id")?,
            event_type: at("event_type")?,
            exchange: at("exchange")?,
            routing_key: at("routing_key")?,
            content_type: at("content_type")?,
            headers: at("headers")?,
            payload: at("payload")?,
            status: at("status")?,
            attempts: at("attempts")?,
            next_attempt_at: at("next_attempt_at")?,
            created_at: at("created_at")?,
        })
    }

    /// Columns of the table when the names were read.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The status in an image.
    ///
    /// # Errors
    /// It is not there.
    pub fn status(&self, image: &mut dyn Image) -> Result<u64, String> {
        Ok(Values(image).unsigned(self.status)? & 0xff)
    }

    /// Decodes one after-image of an INSERT.
    ///
    /// # Errors
    /// What is wrong with the image: another number of columns or a value of another type than the
    /// contract's. The row is then left to a pass.
    pub fn decode(&self, image: &mut dyn Image) -> Result<Inserted, String> {
        if image.columns() != self.count {
            return Err(format!(
                "{} columns where the table had {}",
                image.columns(),
                self.count
            ));
        }
        let mut image = Values(image);
        let row = Row {
            id: image.unsigned(self.id)?,
            message_id: image.text(self.message_id)?,
            aggregate_type: image.bytes(self.aggregate_type)?,
            aggregate_id: image.bytes(self.aggregate_id)?,
            event_type: image.bytes(self.event_type)?,
            exchange: image.bytes(self.exchange)?,
            routing_key: image.bytes(self.routing_key)?,
            content_type: image.bytes(self.content_type)?,
            headers: image.nullable_bytes(self.headers)?,
            payload: image.bytes(self.payload)?,
            created_at: image.datetime(self.created_at)?,
        };
        let attempts = image.unsigned(self.attempts)? & u64::from(u32::MAX);
        let deferred = attempts != 0 || image.0.take(self.next_attempt_at)? != Value::NULL;
        Ok(Inserted {
            row,
            status: image.unsigned(self.status)? & 0xff,
            deferred,
        })
    }
}

struct Values<'a>(&'a mut dyn Image);

impl Values<'_> {
    /// Signedness is not in MariaDB's table maps: a BIGINT UNSIGNED arrives as the same 64 bits
    /// signed, and a smaller unsigned one sign-extended (the caller masks it).
    fn unsigned(&mut self, index: usize) -> Result<u64, String> {
        match self.0.take(index)? {
            Value::UInt(value) => Ok(value),
            Value::Int(value) => Ok(value.cast_unsigned()),
            other => Err(format!(
                "column {index} is not an integer: {}",
                kind(&other)
            )),
        }
    }

    fn bytes(&mut self, index: usize) -> Result<Vec<u8>, String> {
        self.nullable_bytes(index)?
            .ok_or_else(|| format!("column {index} is NULL"))
    }

    fn nullable_bytes(&mut self, index: usize) -> Result<Option<Vec<u8>>, String> {
        match self.0.take(index)? {
            Value::Bytes(bytes) => Ok(Some(bytes)),
            Value::NULL => Ok(None),
            other => Err(format!(
                "column {index} is not text or bytes: {}",
                kind(&other)
            )),
        }
    }

    fn text(&mut self, index: usize) -> Result<String, String> {
        String::from_utf8(self.bytes(index)?).map_err(|_| format!("column {index} is not UTF-8"))
    }

    /// `None` is a zero date, which encoding refuses for this row alone.
    fn datetime(&mut self, index: usize) -> Result<Option<PrimitiveDateTime>, String> {
        match self.0.take(index)? {
            Value::Date(year, month, day, hour, minute, second, micros) => {
                let date = Month::try_from(month)
                    .ok()
                    .and_then(|month| Date::from_calendar_date(i32::from(year), month, day).ok());
                let time = Time::from_hms_micro(hour, minute, second, micros).ok();
                Ok(date
                    .zip(time)
                    .map(|(date, time)| PrimitiveDateTime::new(date, time)))
            }
            other => Err(format!(
                "column {index} is not a DATETIME: {}",
                kind(&other)
            )),
        }
    }
}

/// The type alone: a payload must never get into a log line.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::NULL => "NULL",
        Value::Bytes(_) => "bytes",
        Value::Int(_) | Value::UInt(_) => "an integer",
        Value::Float(_) | Value::Double(_) => "a float",
        Value::Date(..) => "a date",
        Value::Time(..) => "a time",
    }
}
