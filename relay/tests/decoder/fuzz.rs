//! Events of real servers, mutated.
//!
//! The fixtures were captured by `relay/tests/reader/differential.rs`. A case is a stretch of one of
//! them with some events changed, moved, doubled or made up; its number is its seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::{Event, FormatDescriptionEvent};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use relay::source::binlog::library::Reader;
use relay::source::binlog::position::Position;
use relay::source::binlog::row_decoder::Columns;
use relay::source::binlog::transaction::{Group, Grouper};

pub(crate) const FIXTURES: [(&str, &[u8]); 2] = [
    ("mariadb", include_bytes!("../decoder/mariadb.events")),
    ("mysql", include_bytes!("../decoder/mysql.events")),
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
/// Bytes that are lengths, signs and edges somewhere.
const EDGES: [u8; 12] = [0, 1, 2, 16, 32, 127, 128, 250, 251, 252, 254, 255];

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

    fn grouper(&self, reader: Reader) -> Grouper {
        let columns = Columns::locate(&COLUMNS.map(str::to_owned)).unwrap();
        let names = (self.schema.as_str(), "outbox");
        let from = Position::new("binlog.000001", 4);
        Grouper::new(names, columns, reader.library(), 1 << 20, from)
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

    /// The groups as they were captured.
    pub(crate) fn tell(&self, reader: Reader) -> Vec<Group> {
        let mut grouper = self.grouper(reader);
        let event = |bytes: &Vec<u8>| Event::read(&self.format, bytes.as_slice()).unwrap();
        self.events
            .iter()
            .filter_map(|bytes| grouper.feed(&event(bytes)))
            .collect()
    }

    /// One case; returns the number of its groups.
    fn case(&self, reader: Reader, dice: &mut StdRng) -> usize {
        let mut grouper = self.grouper(reader);
        let (mut groups, mut fed) = (0, 0);
        let at = dice.random_range(0..self.events.len());
        let length = dice.random_range(1..60);
        let harm = dice.random_range(1..10);
        for number in at..(at + length).min(self.events.len()) {
            let mut bytes = self.events[number].clone();
            if dice.random_ratio(harm, 20) {
                self.mutate(&mut bytes, dice);
            }
            // The reader has checked this one: see `cdc`, and the driver panics in its own task.
            let size = u32::try_from(bytes.len()).unwrap();
            bytes[9..13].copy_from_slice(&size.to_le_bytes());
            fed += bytes.len();
            let event = Event::read(&self.format, bytes.as_slice()).unwrap();
            let before = grouper.position().clone();
            let Some(group) = grouper.feed(&event) else {
                continue;
            };
            groups += 1;
            let rows = group.rows.iter().map(|row| row.payload.len());
            assert!(rows.sum::<usize>() <= fed, "more than came");
            let after = grouper.position();
            assert!(after.file != before.file || after.offset >= before.offset);
        }
        groups
    }

    fn mutate(&self, bytes: &mut Vec<u8>, dice: &mut StdRng) {
        for _ in 0..dice.random_range(1..4) {
            // Most of what matters is near the beginning of an event.
            let end = if dice.random() {
                bytes.len()
            } else {
                bytes.len().min(90)
            };
            let at = if end > HEADER {
                dice.random_range(HEADER..end)
            } else {
                HEADER
            };
            match dice.random_range(0..10) {
                0 => bytes[4] = dice.random(),
                1 => bytes[4] = dice.random_range(15..44),
                2 => bytes[4] = dice.random_range(160..172),
                3 => bytes.truncate(at),
                4 => {
                    let mut more = vec![0; dice.random_range(1..300)];
                    dice.fill_bytes(&mut more);
                    bytes.extend(more);
                }
                5 => {
                    let other = &self.events[dice.random_range(0..self.events.len())];
                    let kind = bytes[4];
                    bytes.truncate(at);
                    bytes.extend(&other[HEADER.min(other.len())..]);
                    bytes[4] = if dice.random() { kind } else { other[4] };
                }
                6 => {
                    let length = dice.random_range(1..9);
                    let edge = EDGES[dice.random_range(0..EDGES.len())];
                    bytes
                        .iter_mut()
                        .skip(at)
                        .take(length)
                        .for_each(|byte| *byte = edge);
                }
                7 => {
                    let length = dice.random_range(0..200);
                    let mut made_up = vec![0; length];
                    dice.fill_bytes(&mut made_up);
                    bytes.truncate(HEADER);
                    bytes.extend(made_up);
                }
                // The position of the event's end, and its flags.
                8 => bytes[13 + dice.random_range(0..6)] = dice.random(),
                _ if at < bytes.len() => bytes[at] ^= 1 << dice.random_range(0..8),
                _ => {}
            }
        }
    }
}

/// A panic inside a library is the relay's to catch; one in its own code fails the case. Other
/// panics go the usual way.
fn watch(ours: &Arc<Mutex<Option<String>>>) {
    let (ours, usual) = (Arc::clone(ours), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |place| place.file());
        if file.contains("relay/src/") || file.starts_with("src/") {
            ours.lock().unwrap().get_or_insert(panic.to_string());
        }
        if !file.contains("/registry/") {
            usual(panic);
        }
    }));
}

/// Runs cases until the time is over.
pub(crate) fn run(readers: &[Reader], time: Duration) {
    let corpora = FIXTURES.map(|(_, bytes)| Corpus::read(bytes));
    let fixed = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let first: u64 = fixed.unwrap_or_else(rand::random);
    eprintln!("seeds from {first} on; SEED=… runs one case");
    let ours = Arc::default();
    watch(&ours);
    let began = Instant::now();
    let (mut seed, mut groups) = (first, 0);
    while began.elapsed() < time {
        let mut dice = StdRng::seed_from_u64(seed);
        let corpus = &corpora[dice.random_range(0..corpora.len())];
        let reader = readers[dice.random_range(0..readers.len())];
        let done = catch_unwind(AssertUnwindSafe(|| corpus.case(reader, &mut dice)));
        groups += done.unwrap_or_else(|_| panic!("SEED={seed} {reader:?}"));
        if let Some(panic) = ours.lock().unwrap().take() {
            panic!("SEED={seed} {reader:?}: {panic}");
        }
        seed = seed.wrapping_add(1);
        if fixed.is_some() {
            break;
        }
    }
    let cases = seed.wrapping_sub(first);
    eprintln!("{cases} cases, {groups} groups");
    assert!(
        fixed.is_some() || groups > 1000,
        "the cases no longer hold transactions"
    );
}

#[test]
fn an_event_of_an_unknown_type_is_a_doubt_unless_the_server_lets_readers_ignore_it() {
    for (name, bytes) in FIXTURES {
        let corpus = Corpus::read(bytes);
        let doubts = |kind: u8, flags: u16| {
            let groups = corpus
                .with_event_before_each_end(kind, flags)
                .tell(Reader::MysqlAsync);
            groups.iter().filter(|group| group.doubt.is_some()).count()
        };
        let without = doubts(IGNORABLE, LOG_EVENT_IGNORABLE_F);
        assert!(without > 9, "{name}: the corpus has doubts of its own");
        for kind in HARMLESS {
            assert_eq!(
                doubts(kind, 0),
                without,
                "{name}: type {kind} changes no table"
            );
        }
        for kind in [PARTIAL_ROW_DATA, 43, 99, 200] {
            assert!(doubts(kind, 0) > without + 9, "{name}: type {kind}");
            assert_eq!(
                doubts(kind, LOG_EVENT_IGNORABLE_F),
                without,
                "{name}: {kind}"
            );
        }
    }
}

const IGNORABLE: u8 = 28;
/// MariaDB 12.3 splits row events over 1 GiB into these (MDEV-32570).
const PARTIAL_ROW_DATA: u8 = 172;
/// INTVAR, USER_VAR, HEARTBEAT_V2, ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION.
const HARMLESS: [u8; 7] = [5, 14, 41, 160, 161, 163, 164];
const LOG_EVENT_IGNORABLE_F: u16 = 0x80;
