//! From a row image of the binlog to an outbox row. No IO.

use mysql_async::Value;
use outbox::row::Row;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

use super::library::Image;

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
    /// Of each column that is an integer; empty while the types are not known.
    integers: Vec<Option<Integer>>,
}

/// What the binlog may leave out about an integer: MariaDB's table maps do not say which are unsigned.
#[derive(Clone, Copy, Debug)]
struct Integer {
    bits: u32,
    unsigned: bool,
}

impl Integer {
    /// From a `COLUMN_TYPE` such as `int(10) unsigned`.
    fn parse(column_type: &str) -> Option<Self> {
        let word = column_type.split(['(', ' ']).next()?;
        let bits = match word {
            "tinyint" => 8,
            "smallint" => 16,
            "mediumint" => 24,
            "int" => 32,
            "bigint" => 64,
            _ => return None,
        };
        let unsigned = column_type.contains("unsigned");
        Some(Self { bits, unsigned })
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }
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
            integers: Vec::new(),
        })
    }

    /// With the `COLUMN_TYPE` of each column, in the same order.
    #[must_use]
    pub fn with_types(mut self, column_types: &[String]) -> Self {
        let integers = column_types.iter().map(|text| Integer::parse(text));
        self.integers = integers.collect();
        self
    }

    fn integer(&self, column: usize) -> Option<Integer> {
        self.integers.get(column).copied().flatten()
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
        Ok(Values(image, self).unsigned(self.status)? & 0xff)
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
        let mut image = Values(image, self);
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

struct Values<'a>(&'a mut dyn Image, &'a Columns);

impl Values<'_> {
    /// Signedness is not in MariaDB's table maps: a BIGINT UNSIGNED arrives as the same 64 bits
    /// signed, and a smaller unsigned one sign-extended.
    fn unsigned(&mut self, index: usize) -> Result<u64, String> {
        let mask = self.1.integer(index).map_or(u64::MAX, Integer::mask);
        match self.0.take(index)? {
            Value::UInt(value) => Ok(value & mask),
            Value::Int(value) => Ok(value.cast_unsigned() & mask),
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
            value => match self.decimal(index, &value) {
                Some(text) => Ok(Some(text.into_bytes())),
                None => Err(format!(
                    "column {index} is not text or bytes: {}",
                    kind(&value)
                )),
            },
        }
    }

    /// An integer as SQL makes a text of it. `None` where the column's type is not known to be one:
    /// an ENUM arrives as a number as well.
    fn decimal(&self, index: usize, value: &Value) -> Option<String> {
        let integer = self.1.integer(index)?;
        match *value {
            Value::UInt(value) => Some(value.to_string()),
            Value::Int(value) if integer.unsigned => {
                Some((value.cast_unsigned() & integer.mask()).to_string())
            }
            Value::Int(value) => Some(value.to_string()),
            _ => None,
        }
    }

    fn text(&mut self, index: usize) -> Result<String, String> {
        String::from_utf8(self.bytes(index)?).map_err(|_| format!("column {index} is not UTF-8"))
    }

    /// `None` is a zero date or NULL, which encoding refuses for this row alone.
    fn datetime(&mut self, index: usize) -> Result<Option<PrimitiveDateTime>, String> {
        match self.0.take(index)? {
            Value::NULL => Ok(None),
            // A TIMESTAMP: seconds since 1970, and perhaps a fraction; 0 is its zero date.
            Value::Bytes(text) => timestamp(&text)
                .ok_or_else(|| format!("column {index} is not a DATETIME or TIMESTAMP")),
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

/// The outer `None` is no timestamp at all.
fn timestamp(text: &[u8]) -> Option<Option<PrimitiveDateTime>> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, micros) = text.split_once('.').unwrap_or((text, "0"));
    let (seconds, micros): (i64, u32) = (seconds.parse().ok()?, micros.parse().ok()?);
    if (seconds, micros) == (0, 0) {
        return Some(None);
    }
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let at = at.replace_microsecond(micros).ok()?;
    Some(Some(PrimitiveDateTime::new(at.date(), at.time())))
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
