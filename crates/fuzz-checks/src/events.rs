//! The input of the target `transaction`: a schema's name behind its length, then binlog events.

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::{Event, FormatDescriptionEvent};

/// Events as the fuzzer writes them: type (1), flags (2), end position (4), length (2), data. What is
/// missing at the end is cut short, so that every input is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The outbox's schema.
    pub schema: Vec<u8>,
    /// Head and data of each.
    pub list: Vec<(Head, Vec<u8>)>,
}

/// Type, flags and end position of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u16,
    /// The position behind it.
    pub end: u32,
}

/// Length of an event's head on the wire.
const WIRE_HEAD: usize = 19;

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn part<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length.min(bytes.len()));
    *bytes = rest;
    taken
}

impl Events {
    /// Reads an input.
    #[must_use]
    pub fn read(mut data: &[u8]) -> Self {
        let bytes = &mut data;
        let length = take(bytes).map_or(0, |[length]| usize::from(*length));
        let schema = part(bytes, length).to_vec();
        let mut list = Vec::new();
        while let Some(&[kind, f0, f1, e0, e1, e2, e3, l0, l1]) = take(bytes) {
            let head = Head {
                kind,
                flags: u16::from_le_bytes([f0, f1]),
                end: u32::from_le_bytes([e0, e1, e2, e3]),
            };
            let length = usize::from(u16::from_le_bytes([l0, l1]));
            list.push((head, part(bytes, length).to_vec()));
        }
        Self { schema, list }
    }

    /// Writes them as [`Events::read`] reads them.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut data = vec![u8::try_from(self.schema.len()).unwrap_or(u8::MAX)];
        data.extend(self.schema.iter().take(usize::from(u8::MAX)));
        for (head, event) in &self.list {
            let length = u16::try_from(event.len()).unwrap_or(u16::MAX);
            data.push(head.kind);
            data.extend(head.flags.to_le_bytes());
            data.extend(head.end.to_le_bytes());
            data.extend(length.to_le_bytes());
            data.extend(event.iter().take(usize::from(length)));
        }
        data
    }
}

/// The event that a library hands over, without a checksum.
pub(crate) fn event(head: Head, data: &[u8]) -> Event {
    let size = u32::try_from(WIRE_HEAD + data.len()).expect("an input is small");
    let mut bytes = Vec::with_capacity(WIRE_HEAD + data.len());
    // The time, which only says when.
    bytes.extend([0; 4]);
    bytes.push(head.kind);
    bytes.extend([0; 4]);
    bytes.extend(size.to_le_bytes());
    bytes.extend(head.end.to_le_bytes());
    bytes.extend(head.flags.to_le_bytes());
    bytes.extend(data);
    let format = FormatDescriptionEvent::new(BinlogVersion::Version4);
    Event::read(&format, bytes.as_slice()).expect("an event of its own length")
}
