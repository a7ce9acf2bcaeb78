//! Events of real servers, captured by `relay/tests/reader/differential.rs`.

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::{Event, FormatDescriptionEvent};
use relay::engine::position::Position;
use relay::source::binlog::row_decoder::Columns;
use relay::source::binlog::transaction::{Change, Decoder};

pub(crate) const FIXTURES: [(&str, &[u8]); 2] = [
    ("mariadb", include_bytes!("mariadb.events")),
    ("mysql", include_bytes!("mysql.events")),
];

const HEADER: usize = 19;
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
const FORMAT_DESCRIPTION: u8 = 15;
const COLUMNS: [&str; 16] = [
    "id",
    "message_id",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "exchange",
    "routing_key",
    "content_type",
    "headers",
    "payload",
    "status",
    "attempts",
    "next_attempt_at",
    "last_error",
    "created_at",
    "sent_at",
];

/// The events of one server.
pub(crate) struct Corpus {
    format: FormatDescriptionEvent<'static>,
    schema: String,
    events: Vec<Vec<u8>>,
}

impl Corpus {
    pub(crate) fn read(mut bytes: &[u8]) -> Self {
        let mut format = FormatDescriptionEvent::new(BinlogVersion::Version4);
        let mut schema = String::new();
        let mut events = Vec::new();
        while let Some(length) = bytes.get(9..13) {
            let length = u32::from_le_bytes(length.try_into().unwrap());
            let (event, rest) = bytes.split_at(usize::try_from(length).unwrap());
            bytes = rest;
            if event[4] == FORMAT_DESCRIPTION {
                let event = Event::read(&format, event).unwrap();
                let read = event.read_event::<FormatDescriptionEvent<'_>>().unwrap();
                format = read.into_owned().with_footer(event.footer());
                continue;
            }
            if event[4] == TABLE_MAP && event.windows(8).any(|part| part == b"\x06outbox\x00") {
                let name = &event[HEADER + 9..][..usize::from(event[HEADER + 8])];
                schema = String::from_utf8(name.to_vec()).unwrap();
            }
            events.push(event.to_vec());
        }
        Self {
            format,
            schema,
            events,
        }
    }

    /// A decoder that has seen nothing yet.
    pub(crate) fn decoder(&self) -> Decoder {
        let columns = Columns::locate(&COLUMNS.map(str::to_owned)).unwrap();
        let names = (self.schema.as_str(), "outbox");
        Decoder::new(names, columns, Position::new("binlog.000001", 4))
    }

    /// The bytes of each event.
    pub(crate) fn events(&self) -> &[Vec<u8>] {
        &self.events
    }

    /// The event in these bytes.
    pub(crate) fn event(&self, bytes: &[u8]) -> Event {
        let mut bytes = bytes.to_vec();
        // Both libraries have checked this length before.
        let size = u32::try_from(bytes.len()).unwrap();
        bytes[9..13].copy_from_slice(&size.to_le_bytes());
        Event::read(&self.format, bytes.as_slice()).unwrap()
    }

    /// The same events, with one of this type and these flags before each XID event.
    pub(crate) fn with_event_before_each_end(&self, kind: u8, flags: u16) -> Self {
        let mut events = Vec::with_capacity(2 * self.events.len());
        for event in &self.events {
            if event[4] == XID {
                let mut added = event.clone();
                added[4] = kind;
                added[17..19].copy_from_slice(&flags.to_le_bytes());
                events.push(added);
            }
            events.push(event.clone());
        }
        Self {
            format: self.format.clone(),
            schema: self.schema.clone(),
            events,
        }
    }

    /// What the captured events mean.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut decoder = self.decoder();
        let events = self.events.iter();
        events
            .filter_map(|bytes| decoder.feed(&self.event(bytes)))
            .collect()
    }
}
