//! Binlog events → ids and doubts.

use std::collections::{HashMap, HashSet};

use mysql_async::binlog::events::{Event, QueryEvent};
use relay::engine::position::Position;
use relay::source::binlog::row_decoder::{Columns, TableMap};
use relay::source::binlog::transaction::{Change, Decoder};

use crate::events::{Events, event};

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
const TABLE: &str = "outbox";

const QUERY: u8 = 2;
const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
const INSERTS: [u8; 2] = [23, 30];
const INSERTS_COMPRESSED: [u8; 2] = [166, 169];
const XA_PREPARE: u8 = 38;
/// GTID, ANONYMOUS_GTID, GTID_TAGGED, MariaDB's GTID.
const STARTS: [u8; 4] = [33, 34, 42, 162];

/// What came out of an input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Ids of added rows.
    pub ids: usize,
    /// Transactions that may have added rows without an id known.
    pub doubts: usize,
}

/// Whatever the events are: what an INSERT adds to the outbox comes out as an id or as a doubt before
/// the next transaction begins, the position never goes back within a file, and no event yields more
/// ids than it has bytes.
pub fn transaction(data: &[u8]) -> Found {
    let events = Events::read(data);
    let mut found = Found::default();
    let Ok(schema) = String::from_utf8(events.schema) else {
        return found;
    };
    let columns = columns();
    let mut decoder = Decoder::new((&schema, TABLE), columns, Position::new("binlog.000001", 4));
    let mut owed = Owed::new(&schema, columns);
    let mut bytes = 0;
    for (head, data) in &events.list {
        // The library takes it for itself, and it does not reach the decoder in another shape.
        if head.kind == FORMAT_DESCRIPTION {
            continue;
        }
        bytes += data.len();
        let event = event(*head, data);
        let before = decoder.position().clone();
        let change = decoder.feed(&event);
        let after = decoder.position();
        assert!(
            after.file != before.file || after.offset >= before.offset,
            "back from {before} to {after}"
        );
        owed.settle(&event, change.as_ref());
        match change {
            Some(Change::Added { ids, .. }) => found.ids += ids.len(),
            Some(Change::Doubt(_)) => found.doubts += 1,
            None => {}
        }
    }
    assert!(found.ids <= bytes);
    found
}

fn columns() -> Columns {
    Columns::locate(&COLUMNS.map(str::to_owned)).expect("both columns are there")
}

/// What the events so far have added to the outbox and the decoder has not handed over.
struct Owed {
    schema: Vec<u8>,
    columns: Columns,
    maps: HashMap<Vec<u8>, Option<TableMap>>,
    rotated: bool,
    ids: usize,
    doubt: bool,
    /// Prepared XA transactions that added rows, by the id with which a statement commits them.
    prepared: HashSet<String>,
}

impl Owed {
    fn new(schema: &str, columns: Columns) -> Self {
        Self {
            schema: schema.as_bytes().to_vec(),
            columns,
            maps: HashMap::new(),
            rotated: false,
            ids: 0,
            doubt: false,
            prepared: HashSet::new(),
        }
    }

    /// To be called after the decoder has taken the event.
    fn settle(&mut self, event: &Event, change: Option<&Change>) {
        let (kind, data) = (event.header().event_type_raw(), event.data());
        match kind {
            TABLE_MAP => self.table_map(data),
            // The first one repeats the file that was requested.
            ROTATE if data.len() >= 8 && std::mem::replace(&mut self.rotated, true) => {
                self.maps.clear();
            }
            ROTATE => self.rotated = true,
            XA_PREPARE if data.first() != Some(&1) => self.prepare(data),
            QUERY => self.query(event, change),
            _ => self.insert(kind, data),
        }
        match change {
            Some(Change::Added { ids, .. }) => {
                assert!(!self.doubt, "rows are hidden, and no doubt says so");
                assert!(ids.len() >= self.ids, "{} of {} ids", ids.len(), self.ids);
                (self.ids, self.doubt) = (0, false);
            }
            Some(Change::Doubt(_)) => (self.ids, self.doubt) = (0, false),
            None if kind == XID || STARTS.contains(&kind) => {
                assert!(self.ids == 0 && !self.doubt, "rows were added silently");
            }
            None => {}
        }
    }

    fn table_map(&mut self, data: &[u8]) {
        let Some(id) = data.get(..6) else { return };
        self.maps.remove(id);
        let schema = u8::try_from(self.schema.len()).expect("its length was in a byte");
        let table = u8::try_from(TABLE.len()).expect("it is short");
        let names = [
            &[schema],
            self.schema.as_slice(),
            &[0, table],
            TABLE.as_bytes(),
        ]
        .concat();
        let named = data.get(8..).unwrap_or_default();
        // The decoder does not look at the 0 between the names.
        let zero = 1 + self.schema.len();
        let ours = named.len() >= names.len()
            && (0..names.len()).all(|at| at == zero || named[at] == names[at]);
        if ours {
            let map = TableMap::parse(data, self.columns).ok();
            self.doubt |= map.is_none();
            self.maps.insert(id.to_vec(), map);
        }
    }

    fn insert(&mut self, kind: u8, data: &[u8]) {
        let map = data.get(..6).and_then(|id| self.maps.get(id));
        // Without a map that can be read the doubt is there already.
        let Some(Some(map)) = map else { return };
        if INSERTS.contains(&kind) {
            match map.inserted(kind, data) {
                Ok(ids) => self.ids += ids.len(),
                Err(_) => self.doubt = true,
            }
        }
        self.doubt |= INSERTS_COMPRESSED.contains(&kind);
    }

    fn prepare(&mut self, data: &[u8]) {
        let added = self.ids > 0 || self.doubt;
        (self.ids, self.doubt) = (0, false);
        let Some(id) = xa_id(data) else { return };
        if added {
            self.prepared.insert(id);
        } else {
            self.prepared.remove(&id);
        }
    }

    fn query(&mut self, event: &Event, change: Option<&Change>) {
        let Ok(query) = event.read_event::<QueryEvent<'_>>() else {
            return;
        };
        let text = query.query_raw().trim_ascii().to_ascii_lowercase();
        let text = String::from_utf8_lossy(&text);
        if let Some(id) = text.strip_prefix("xa commit") {
            let added = self.prepared.remove(id.trim_ascii());
            assert!(
                !added || change.is_some(),
                "rows of {id} were added silently"
            );
        } else if let Some(id) = text.strip_prefix("xa rollback") {
            self.prepared.remove(id.trim_ascii());
        }
    }
}

/// The id of an XA PREPARE event, as XA COMMIT spells it.
fn xa_id(data: &[u8]) -> Option<String> {
    let number = |at: usize| Some(i32::from_le_bytes(*data.get(at..)?.first_chunk()?));
    let length = |at| usize::try_from(number(at)?).ok();
    let (global, branch) = (length(5)?, length(9)?);
    let parts = data.get(13..)?;
    let (global, rest) = parts.split_at_checked(global)?;
    let branch = rest.get(..branch)?;
    let hex = |part: &[u8]| {
        part.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    Some(format!(
        "x'{}',x'{}',{}",
        hex(global),
        hex(branch),
        number(1)?
    ))
}
