//! Looks into single events. No IO.

use mysql_async::binlog::events::{Event, EventData};

use super::commit_clock::Committed;

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

/// What an XA PREPARE event does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prepared {
    /// It commits here and now.
    OnePhase,
    /// It waits for the XA COMMIT or XA ROLLBACK of this id, in lower case as those spell it; `None`
    /// for an event that is cut short.
    Waits(Option<Vec<u8>>),
}

/// Reads an XA PREPARE event: one phase (1), format (4), the lengths of two parts (4 each), the
/// parts. The one place where both servers name the transaction: MariaDB logs no XA START.
pub(super) fn prepared(data: &[u8]) -> Prepared {
    if data.first() == Some(&1) {
        return Prepared::OnePhase;
    }
    let number = |at: usize| -> Option<u32> {
        let bytes = data.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let part = |at: usize, length: u32| data.get(at..at + usize::try_from(length).ok()?);
    let id = || {
        let (format, first, second) = (number(1)?, number(5)?, number(9)?);
        let global = part(13, first)?;
        let branch = part(13 + global.len(), second)?;
        let hex =
            |part: &[u8]| -> String { part.iter().map(|byte| format!("{byte:02x}")).collect() };
        let format = format.cast_signed();
        Some(format!("x'{}',x'{}',{format}", hex(global), hex(branch)).into_bytes())
    };
    Prepared::Waits(id())
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

    #[test]
    fn a_prepared_transaction_is_named_as_its_commit_names_it() {
        let mut data = vec![0];
        for number in [1_u32, 2, 1] {
            data.extend(number.to_le_bytes());
        }
        data.extend(b"ak\xff");
        let id = b"x'616b',x'ff',1".to_vec();
        assert_eq!(prepared(&data), Prepared::Waits(Some(id)));
        assert_eq!(prepared(&data[..14]), Prepared::Waits(None));
        data[0] = 1;
        assert_eq!(prepared(&data), Prepared::OnePhase);
    }
}
