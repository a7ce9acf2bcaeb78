//! From binlog events to groups: the rows that one transaction added to the outbox. No IO.
//!
//! The type and the table id of an event are looked at before anything is decoded, so other
//! tables' changes and the relay's own marks cost a few comparisons.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mysql_async::binlog::events::{Event, QueryEvent, RotateEvent};
use mysql_async::binlog::{EventFlags, EventType};
use outbox::row::Row;

use super::event::{
    Prepared, commit_time, decode_rows, decode_set_back, names_table, prepared, table_id,
};
use super::library::{Layout, Library, guarded};
use super::open_transaction::{Open, memory_of};
use super::position::Position;
use super::row_decoder::Columns;
use super::statement::Statement;

/// What one committed transaction did to the outbox.
#[derive(Debug)]
pub struct Group {
    /// Rows the tail may send, in the order they were inserted.
    pub rows: Vec<Row>,
    /// Rows that the table serves: inserted with attempts or a `next_attempt_at`, or set back to
    /// pending.
    pub deferred: Vec<Row>,
    /// When it was committed.
    pub committed: Committed,
    /// Why `rows` is not the whole truth, if it is not.
    pub doubt: Option<Doubt>,
}

/// The commit time of a group as the binlog tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Microseconds since 1970 by the server's clock (MySQL).
    Micros(u64),
    /// Whole seconds since 1970 by the server's clock (MariaDB has no finer time).
    Seconds(u32),
}

/// Why a group can't be vouched for. A pass reads the table instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// An UPDATE or DELETE of the outbox beside an INSERT, a rollback, an XA commit, a statement:
    /// what the transaction left in the table is known to the table alone.
    Unvouched(&'static str),
    /// Something that touches, or may touch, the outbox and can't be decoded.
    Undecodable(String),
    /// The group's rows are over the byte budget.
    TooLarge,
}

/// Larger UPDATEs of the outbox are not looked into: the relay's own marks of large rows are such, with
/// the payload twice, and a copy of it would be made to read the status. What such an UPDATE set back by
/// hand is found by the sweep, and counts as missed.
const UPDATE_LOOK_MAX: usize = 1 << 20;
/// What may hold on to more XA ids than this is not an application; the excess costs passes only.
const FOREIGN_XA_MAX: usize = 4096;

// Types that mysql_common has no name for.
const MYSQL_HEARTBEAT_V2: u8 = 41;
const MARIADB_GTID: u8 = 162;
const MARIADB_QUERY_COMPRESSED: u8 = 165;
const MARIADB_ROWS_COMPRESSED: std::ops::RangeInclusive<u8> = 166..=171;
/// ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION: they change no table.
const MARIADB_HARMLESS: [u8; 4] = [160, 161, 163, 164];
/// `FL_STANDALONE`: the group is one statement, without COMMIT.
const MARIADB_STANDALONE: u8 = 1;

/// The state between events.
pub struct Grouper {
    schema: Vec<u8>,
    table: Vec<u8>,
    columns: Columns,
    library: Library,
    bytes_max: usize,
    position: Position,
    rotated: bool,
    /// Table ids of this stream that are the outbox.
    outbox: HashMap<u64, Box<dyn Layout>>,
    open: Option<Open>,
    /// End of the compressed transaction at hand; 0 when there is none.
    payload_end: u64,
    foreign_xa: HashSet<Vec<u8>>,
}

impl Grouper {
    /// Starts at `position`, which must be between two groups.
    pub fn new(
        (schema, table): (&str, &str),
        columns: Columns,
        library: Library,
        bytes_max: usize,
        position: Position,
    ) -> Self {
        Self {
            schema: schema.as_bytes().to_vec(),
            table: table.as_bytes().to_vec(),
            columns,
            library,
            bytes_max,
            position,
            rotated: false,
            outbox: HashMap::new(),
            open: None,
            payload_end: 0,
            foreign_xa: HashSet::new(),
        }
    }

    /// Everything up to here has been seen.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Takes the next event; a group comes out when it ends one that concerns the outbox.
    pub fn feed(&mut self, event: &Event) -> Option<Group> {
        let header = event.header();
        if header.event_type_raw() == EventType::TRANSACTION_PAYLOAD_EVENT as u8 {
            return self.payload(u64::from(header.log_pos()));
        }
        let group = self.handle(event);
        if self.open.is_none() {
            let end = std::mem::take(&mut self.payload_end);
            self.position.offset = self.position.offset.max(end);
        }
        // Events inside a compressed transaction carry the outer offset or 0, never more.
        let end = u64::from(header.log_pos());
        let inside = self.payload_end != 0;
        if !inside
            && end > self.position.offset
            && header.event_type_raw() != EventType::ROTATE_EVENT as u8
        {
            self.position.offset = end;
        }
        group
    }

    /// A compressed transaction that ends at `end`.
    fn payload(&mut self, end: u64) -> Option<Group> {
        if !self.library.expands {
            self.position.offset = self.position.offset.max(end);
            return self.alone(Doubt::Undecodable("a compressed transaction".into()));
        }
        // Its events follow decompressed. Should they not follow, the group must not look like a
        // statement of its own.
        self.payload_end = end;
        if let Some(open) = &mut self.open {
            open.begun = true;
        }
        None
    }

    fn handle(&mut self, event: &Event) -> Option<Group> {
        let raw = event.header().event_type_raw();
        if raw == MARIADB_GTID {
            let standalone = event
                .data()
                .get(12)
                .is_some_and(|f| f & MARIADB_STANDALONE != 0);
            return self.start(Committed::Seconds(event.header().timestamp()), !standalone);
        }
        if raw == MARIADB_QUERY_COMPRESSED {
            return self.query_hidden();
        }
        if MARIADB_ROWS_COMPRESSED.contains(&raw) {
            if self.is_outbox(event) {
                self.doubt(Doubt::Undecodable(
                    "a compressed row event (log_bin_compress)".into(),
                ));
            }
            return None;
        }
        use EventType as T;
        let Ok(event_type) = T::try_from(raw) else {
            return self.unknown(event);
        };
        match event_type {
            T::ROTATE_EVENT => self.rotate(event),
            T::GTID_EVENT | T::ANONYMOUS_GTID_EVENT | T::GTID_TAGGED_LOG_EVENT => {
                return self.start(commit_time(event), false);
            }
            T::TABLE_MAP_EVENT => self.table_map(event),
            T::QUERY_EVENT => return self.query(event),
            T::XID_EVENT => return self.end(),
            T::XA_PREPARE_LOG_EVENT => return self.xa_prepare(event),
            T::WRITE_ROWS_EVENT | T::WRITE_ROWS_EVENT_V1 if self.is_outbox(event) => {
                self.insert(event);
            }
            T::UPDATE_ROWS_EVENT | T::UPDATE_ROWS_EVENT_V1 if self.is_outbox(event) => {
                self.update(event);
            }
            T::PARTIAL_UPDATE_ROWS_EVENT | T::DELETE_ROWS_EVENT | T::DELETE_ROWS_EVENT_V1
                if self.is_outbox(event) =>
            {
                if let Some(open) = &mut self.open {
                    open.changed = true;
                }
            }
            T::INCIDENT_EVENT => return self.alone(Doubt::Undecodable("an INCIDENT event".into())),
            T::EXECUTE_LOAD_QUERY_EVENT | T::BEGIN_LOAD_QUERY_EVENT => {
                self.doubt(Doubt::Unvouched("LOAD DATA in STATEMENT format"));
            }
            known if leaves_the_outbox(known) => {}
            _ => return self.unknown(event),
        }
        None
    }

    /// An event of a type that a later server may have brought: it may carry rows of the outbox,
    /// unless the server itself says that a reader may ignore it (`LOG_EVENT_IGNORABLE_F`).
    /// MariaDB 12.3 splits large row events into type 172, for instance (MDEV-32570).
    fn unknown(&mut self, event: &Event) -> Option<Group> {
        let header = event.header();
        let raw = header.event_type_raw();
        let ignorable = header.flags().contains(EventFlags::LOG_EVENT_IGNORABLE_F);
        // HEARTBEAT_V2 of MySQL 8.0.26 and later has no name in mysql_common.
        if ignorable || raw == MYSQL_HEARTBEAT_V2 || MARIADB_HARMLESS.contains(&raw) {
            return None;
        }
        let doubt = Doubt::Undecodable(format!("an event of the unknown type {raw}"));
        if self.open.as_ref().is_some_and(|open| open.begun) {
            self.doubt(doubt);
            return None;
        }
        self.alone(doubt)
    }

    fn rotate(&mut self, event: &Event) {
        // The first one only repeats the file that was asked for, and on MariaDB its name ends in
        // four bytes of checksum.
        if !std::mem::replace(&mut self.rotated, true) {
            return;
        }
        if let Ok(rotate) = event.read_event::<RotateEvent<'_>>() {
            let file: Arc<str> = rotate.name().into();
            self.position = Position {
                file,
                offset: rotate.position(),
            };
            self.outbox.clear();
        }
    }

    fn start(&mut self, committed: Committed, begun: bool) -> Option<Group> {
        // A group that never ended: its events were hidden (an undecodable compressed payload).
        let hidden = self.open.take().filter(|open| open.begun || open.inserted);
        self.open = Some(Open::new(committed, begun));
        hidden.map(|open| Group {
            rows: Vec::new(),
            deferred: Vec::new(),
            committed: open.committed,
            doubt: Some(Doubt::Undecodable("a transaction without an end".into())),
        })
    }

    fn table_map(&mut self, event: &Event) {
        let Some(id) = table_id(event.data()) else {
            return;
        };
        if !names_table(event.data(), &self.schema, &self.table) {
            self.outbox.remove(&id);
            return;
        }
        match guarded(|| (self.library.layout)(event)) {
            Ok(map) => {
                self.outbox.insert(id, map);
            }
            Err(err) => self.doubt(Doubt::Undecodable(format!("a table map: {err}"))),
        }
    }

    fn is_outbox(&self, event: &Event) -> bool {
        table_id(event.data()).is_some_and(|id| self.outbox.contains_key(&id))
    }

    fn insert(&mut self, event: &Event) {
        let Some(open) = &mut self.open else { return };
        open.inserted = true;
        if open.doubt.is_some() {
            return;
        }
        let map = table_id(event.data()).and_then(|id| self.outbox.get(&id));
        let rows = map
            .ok_or_else(|| "rows without a table map".to_owned())
            .and_then(|map| guarded(|| decode_rows(event, map.as_ref(), &self.columns)));
        match rows {
            Ok(rows) => {
                for (mut row, deferred) in rows {
                    if deferred {
                        // The table serves it: its key and route are all that is wanted here.
                        (row.payload, row.headers) = (Vec::new(), None);
                    }
                    open.bytes += memory_of(&row);
                    let rows = match deferred {
                        true => &mut open.deferred,
                        false => &mut open.rows,
                    };
                    rows.push(row);
                }
                if open.bytes > self.bytes_max {
                    self.doubt(Doubt::TooLarge);
                }
            }
            Err(problem) => self.doubt(Doubt::Undecodable(problem)),
        }
    }

    /// A row that was set back by hand is no new one, and the table serves it. One that can't be read
    /// here is found by a sweep as well.
    fn update(&mut self, event: &Event) {
        let Some(open) = &mut self.open else { return };
        open.changed = true;
        if open.doubt.is_some() || event.data().len() > UPDATE_LOOK_MAX {
            return;
        }
        let map = table_id(event.data()).and_then(|id| self.outbox.get(&id));
        let rows = map.map(|map| {
            guarded(|| decode_set_back(event, map.as_ref(), &self.columns)).unwrap_or_default()
        });
        for row in rows.into_iter().flatten() {
            open.bytes += memory_of(&row);
            open.deferred.push(row);
        }
        if open.bytes > self.bytes_max {
            self.doubt(Doubt::TooLarge);
        }
    }

    fn doubt(&mut self, doubt: Doubt) {
        if let Some(open) = &mut self.open {
            // What is doubted is not sent from here: free it at once.
            open.rows = Vec::new();
            open.deferred = Vec::new();
            open.doubt.get_or_insert(doubt);
        }
    }

    fn query_hidden(&mut self) -> Option<Group> {
        let doubt = Doubt::Undecodable("a compressed statement (log_bin_compress)".into());
        if self.open.as_ref().is_some_and(|open| open.begun) {
            self.doubt(doubt);
            return None;
        }
        self.alone(doubt)
    }

    fn query(&mut self, event: &Event) -> Option<Group> {
        let Ok(query) = event.read_event::<QueryEvent<'_>>() else {
            return self.alone(Doubt::Undecodable("a QUERY event".into()));
        };
        let text = query.query_raw().trim_ascii();
        match Statement::of(text, query.schema_raw(), (&self.schema, &self.table)) {
            Statement::Begin => {
                if let Some(open) = &mut self.open {
                    open.begun = true;
                }
            }
            Statement::Harmless => {}
            Statement::Commit => return self.end(),
            Statement::Rollback => {
                self.doubt(Doubt::Unvouched("ROLLBACK"));
                return self.end();
            }
            Statement::XaCommit(id) => {
                if self.foreign_xa.remove(&id.to_ascii_lowercase()) {
                    self.open = None;
                    return None;
                }
                return self.alone(Doubt::Unvouched("XA COMMIT"));
            }
            Statement::XaRollback(id) => {
                self.foreign_xa.remove(&id.to_ascii_lowercase());
                self.open = None;
            }
            Statement::Foreign => self.leave_statement(),
            Statement::Other if self.open.as_ref().is_some_and(|open| open.begun) => {
                self.doubt(Doubt::Unvouched(
                    "a statement or a rollback inside a transaction",
                ));
            }
            Statement::Other => return self.alone(Doubt::Unvouched("a statement")),
        }
        None
    }

    /// A DDL statement of somebody else's table: outside a transaction it is a whole group.
    fn leave_statement(&mut self) {
        if self.open.as_ref().is_some_and(|open| !open.begun) {
            self.open = None;
        }
    }

    fn xa_prepare(&mut self, event: &Event) -> Option<Group> {
        let id = match prepared(event.data()) {
            Prepared::OnePhase => return self.end(),
            Prepared::Waits(id) => id,
        };
        let open = self.open.take()?;
        let concerns_us = open.inserted || open.changed || open.doubt.is_some();
        match id {
            Some(id) if concerns_us => {
                self.foreign_xa.remove(&id);
            }
            Some(id) if self.foreign_xa.len() < FOREIGN_XA_MAX => {
                self.foreign_xa.insert(id);
            }
            Some(_) | None => {}
        }
        None
    }

    fn end(&mut self) -> Option<Group> {
        let mut open = self.open.take()?;
        if open.inserted && open.changed {
            open.rows.clear();
            open.deferred.clear();
            open.doubt
                .get_or_insert(Doubt::Unvouched("an UPDATE or DELETE beside an INSERT"));
        }
        open.into_group()
    }

    /// A group of its own that leaves only a doubt.
    fn alone(&mut self, doubt: Doubt) -> Option<Group> {
        if self.open.is_none() {
            self.open = Some(Open::new(Committed::Seconds(0), false));
        }
        self.doubt(doubt);
        self.end()
    }
}

/// Types that change no table, and row events, which get here only when they are of another one.
fn leaves_the_outbox(event_type: EventType) -> bool {
    use EventType as T;
    matches!(
        event_type,
        T::WRITE_ROWS_EVENT
            | T::WRITE_ROWS_EVENT_V1
            | T::UPDATE_ROWS_EVENT
            | T::UPDATE_ROWS_EVENT_V1
            | T::PARTIAL_UPDATE_ROWS_EVENT
            | T::DELETE_ROWS_EVENT
            | T::DELETE_ROWS_EVENT_V1
            | T::STOP_EVENT
            | T::SLAVE_EVENT
            | T::INTVAR_EVENT
            | T::RAND_EVENT
            | T::USER_VAR_EVENT
            | T::FORMAT_DESCRIPTION_EVENT
            | T::HEARTBEAT_EVENT
            | T::IGNORABLE_EVENT
            | T::ROWS_QUERY_EVENT
            | T::PREVIOUS_GTIDS_EVENT
            | T::TRANSACTION_CONTEXT_EVENT
            | T::VIEW_CHANGE_EVENT
    )
}
