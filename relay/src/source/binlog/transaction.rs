//! From binlog events to transactions: the ids that each one has added to the outbox. No IO.
//!
//! The type and the table id of an event are looked at before anything is decoded, so changes of other
//! tables and the relay's own marks cost a few comparisons.
//!
//! Ids are all that is wanted: a row that is not in the table, since it was deleted or rolled back, does
//! no harm. What may have added rows without an id known is a [`Doubt`], and the table is scanned.

use std::collections::{HashMap, HashSet};

use mysql_async::binlog::events::{Event, QueryEvent, RotateEvent};
use mysql_async::binlog::{EventFlags, EventType};

use super::commit_clock::Committed;
use super::event::{Prepared, commit_time, names_table, prepared, table_id};
use super::row_decoder::{Columns, TableMap};
use super::statement::Statement;
use crate::engine::position::Position;

/// What one transaction did to the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was committed, and these rows were added or set back to pending, in this order.
    Added {
        /// `outbox.id` of each.
        ids: Vec<u64>,
        /// When it was committed.
        committed: Committed,
    },
    /// It may have added rows whose ids are not known.
    Doubt(Doubt),
}

/// Why the ids of added rows are not known. A scan of the table finds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// An XA commit or a statement: what was left in the table is known to the table alone.
    Unvouched(&'static str),
    /// Something that concerns, or may concern, the outbox and can't be decoded.
    Undecodable(String),
    /// More than [`IDS_MAX`] rows, or an event of more bytes than are read.
    TooLarge(&'static str),
}

/// Ids that a transaction may have.
pub const IDS_MAX: usize = 100_000;
/// Larger UPDATEs of the outbox are not looked into: mostly they are the relay's own marks of large rows,
/// which have each payload twice. What such an UPDATE set back by hand is found by the sweep.
const UPDATE_LOOK_MAX: usize = 1 << 20;
/// What has more XA transactions open than this is no application; the excess costs scans only.
const FOREIGN_XA_MAX: usize = 4096;

// Types that mysql_common has no name for.
const MYSQL_HEARTBEAT_V2: u8 = 41;
const MARIADB_GTID: u8 = 162;
const MARIADB_QUERY_COMPRESSED: u8 = 165;
const MARIADB_ROWS_COMPRESSED: std::ops::RangeInclusive<u8> = 166..=171;
/// Of the first version and of the second.
const MARIADB_INSERTS_COMPRESSED: [u8; 2] = [166, 169];
/// ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION: they change no table.
const MARIADB_HARMLESS: [u8; 4] = [160, 161, 163, 164];
/// `FL_STANDALONE`: the transaction is one statement, without COMMIT.
const MARIADB_STANDALONE: u8 = 1;

/// A transaction whose end has not come yet.
struct Open {
    committed: Committed,
    ids: Vec<u64>,
    /// Inside BEGIN … COMMIT; a QUERY event outside is a transaction of its own.
    begun: bool,
    doubt: Option<Doubt>,
}

impl Open {
    fn new(committed: Committed, begun: bool) -> Self {
        Self {
            committed,
            ids: Vec::new(),
            begun,
            doubt: None,
        }
    }

    fn concerns_the_outbox(&self) -> bool {
        !self.ids.is_empty() || self.doubt.is_some()
    }

    fn into_change(self) -> Option<Change> {
        match self.doubt {
            Some(doubt) => Some(Change::Doubt(doubt)),
            None if self.ids.is_empty() => None,
            None => Some(Change::Added {
                ids: self.ids,
                committed: self.committed,
            }),
        }
    }
}

/// The state between events.
pub struct Decoder {
    schema: Vec<u8>,
    table: Vec<u8>,
    columns: Columns,
    position: Position,
    rotated: bool,
    /// Table ids of this stream that are the outbox.
    outbox: HashMap<u64, TableMap>,
    open: Option<Open>,
    /// End of the compressed transaction at hand; 0 when there is none.
    payload_end: u64,
    /// XA transactions that wait for their commit and do not concern the outbox.
    foreign_xa: HashSet<Vec<u8>>,
}

impl Decoder {
    /// Starts at `position`, which must be between two transactions.
    pub fn new((schema, table): (&str, &str), columns: Columns, position: Position) -> Self {
        Self {
            schema: schema.as_bytes().to_vec(),
            table: table.as_bytes().to_vec(),
            columns,
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

    /// Takes the next event. A change comes out when it ends a transaction that concerns the outbox.
    pub fn feed(&mut self, event: &Event) -> Option<Change> {
        let header = event.header();
        if header.event_type_raw() == EventType::TRANSACTION_PAYLOAD_EVENT as u8 {
            self.payload(u64::from(header.log_pos()));
            return None;
        }
        let change = self.handle(event);
        if self.open.is_none() {
            let end = std::mem::take(&mut self.payload_end);
            self.position.offset = self.position.offset.max(end);
        }
        // Events inside a compressed transaction carry the outer offset or 0, never more.
        let end = u64::from(header.log_pos());
        let inside = self.payload_end != 0;
        if !inside && header.event_type_raw() != EventType::ROTATE_EVENT as u8 {
            self.position.offset = self.position.offset.max(end);
        }
        change
    }

    /// A compressed transaction that ends at `end`. Its events follow, decompressed. Should they not
    /// follow, the transaction must not look like a statement of its own.
    fn payload(&mut self, end: u64) {
        self.payload_end = end;
        if let Some(open) = &mut self.open {
            open.begun = true;
        }
    }

    fn handle(&mut self, event: &Event) -> Option<Change> {
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
            if MARIADB_INSERTS_COMPRESSED.contains(&raw) && self.map_of(event).is_some() {
                let what = "a compressed row event (log_bin_compress)";
                self.doubt(Doubt::Undecodable(what.into()));
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
            T::WRITE_ROWS_EVENT | T::WRITE_ROWS_EVENT_V1 => self.insert(event),
            T::UPDATE_ROWS_EVENT | T::UPDATE_ROWS_EVENT_V1 => self.update(event),
            T::INCIDENT_EVENT => return self.alone(Doubt::Undecodable("an INCIDENT event".into())),
            T::EXECUTE_LOAD_QUERY_EVENT | T::BEGIN_LOAD_QUERY_EVENT => {
                self.doubt(Doubt::Unvouched("LOAD DATA in STATEMENT format"));
            }
            known if adds_no_row(known) => {}
            _ => return self.unknown(event),
        }
        None
    }

    /// An event of a type that a later server may have brought: it may carry rows of the outbox,
    /// unless the server itself says that a reader may ignore it (`LOG_EVENT_IGNORABLE_F`).
    /// MariaDB 12.3 splits large row events into type 172, for instance (MDEV-32570).
    fn unknown(&mut self, event: &Event) -> Option<Change> {
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
        // The first one only repeats the file that was requested, and on MariaDB its name ends in
        // four bytes of checksum.
        if !std::mem::replace(&mut self.rotated, true) {
            return;
        }
        if let Ok(rotate) = event.read_event::<RotateEvent<'_>>() {
            let name = rotate.name();
            if *name != *self.position.file {
                self.position = Position::new(&*name, rotate.position());
            }
            self.outbox.clear();
        }
    }

    fn start(&mut self, committed: Committed, begun: bool) -> Option<Change> {
        // A transaction that never ended: its events were hidden (an undecodable compressed payload).
        let hidden = self.open.take();
        let hidden = hidden.filter(|open| open.begun || open.concerns_the_outbox());
        self.open = Some(Open::new(committed, begun));
        let what = || Doubt::Undecodable("a transaction without an end".into());
        hidden.map(|_| Change::Doubt(what()))
    }

    fn table_map(&mut self, event: &Event) {
        let Some(id) = table_id(event.data()) else {
            return;
        };
        self.outbox.remove(&id);
        if !names_table(event.data(), &self.schema, &self.table) {
            return;
        }
        match TableMap::parse(event.data(), self.columns) {
            Ok(map) => drop(self.outbox.insert(id, map)),
            Err(err) => self.doubt(Doubt::Undecodable(format!("a table map: {err}"))),
        }
    }

    /// The table map of a row event, if it is one of the outbox.
    fn map_of(&self, event: &Event) -> Option<&TableMap> {
        self.outbox.get(&table_id(event.data())?)
    }

    fn insert(&mut self, event: &Event) {
        let Some(map) = self.map_of(event) else {
            return;
        };
        let raw = event.header().event_type_raw();
        match map.inserted(raw, event.data()) {
            Ok(ids) => self.add(ids),
            Err(problem) => self.doubt(Doubt::Undecodable(problem)),
        }
    }

    /// A row that was set back by hand and can't be read here is found by a sweep as well.
    fn update(&mut self, event: &Event) {
        let Some(map) = self.map_of(event) else {
            return;
        };
        if event.data().len() > UPDATE_LOOK_MAX {
            return;
        }
        let raw = event.header().event_type_raw();
        let ids = map.set_pending(raw, event.data());
        self.add(ids.unwrap_or_default());
    }

    fn add(&mut self, ids: Vec<u64>) {
        if ids.is_empty() {
            return;
        }
        let open = self.opened();
        if open.doubt.is_some() {
            return;
        }
        open.ids.extend(ids);
        if open.ids.len() > IDS_MAX {
            self.doubt(Doubt::TooLarge("a transaction of more than 100,000 rows"));
        }
    }

    fn doubt(&mut self, doubt: Doubt) {
        let open = self.opened();
        open.ids = Vec::new();
        open.doubt.get_or_insert(doubt);
    }

    /// The transaction at hand. Where its start was not seen, its end or the next start hands it over.
    fn opened(&mut self) -> &mut Open {
        let unseen = || Open::new(Committed::Seconds(0), true);
        self.open.get_or_insert_with(unseen)
    }

    fn query_hidden(&mut self) -> Option<Change> {
        let doubt = Doubt::Undecodable("a compressed statement (log_bin_compress)".into());
        if self.open.as_ref().is_some_and(|open| open.begun) {
            self.doubt(doubt);
            return None;
        }
        self.alone(doubt)
    }

    fn query(&mut self, event: &Event) -> Option<Change> {
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
            // A ROLLBACK is in the binlog where a table without transactions was written to.
            Statement::Commit | Statement::Rollback => return self.end(),
            Statement::XaCommit(id) => {
                if self.foreign_xa.remove(&id.to_ascii_lowercase()) {
                    return self.end();
                }
                return self.alone(Doubt::Unvouched("XA COMMIT"));
            }
            Statement::XaRollback(id) => {
                self.foreign_xa.remove(&id.to_ascii_lowercase());
                return self.end();
            }
            // Outside a transaction it is a whole one.
            Statement::Foreign if self.open.as_ref().is_some_and(|open| !open.begun) => {
                return self.end();
            }
            Statement::Foreign => {}
            Statement::Other if self.open.as_ref().is_some_and(|open| open.begun) => {
                self.doubt(Doubt::Unvouched("a statement inside a transaction"));
            }
            Statement::Other => return self.alone(Doubt::Unvouched("a statement")),
        }
        None
    }

    fn xa_prepare(&mut self, event: &Event) -> Option<Change> {
        let id = match prepared(event.data()) {
            Prepared::OnePhase => return self.end(),
            Prepared::Waits(id) => id,
        };
        let open = self.open.take()?;
        match id {
            Some(id) if open.concerns_the_outbox() => {
                self.foreign_xa.remove(&id);
            }
            Some(id) if self.foreign_xa.len() < FOREIGN_XA_MAX => {
                self.foreign_xa.insert(id);
            }
            Some(_) | None => {}
        }
        None
    }

    fn end(&mut self) -> Option<Change> {
        self.open.take()?.into_change()
    }

    /// A transaction of its own that leaves only a doubt.
    fn alone(&mut self, doubt: Doubt) -> Option<Change> {
        if self.open.is_none() {
            self.open = Some(Open::new(Committed::Seconds(0), false));
        }
        self.doubt(doubt);
        self.end()
    }
}

/// Types that add no row. A partial UPDATE (binlog_row_value_options) is not looked into: what one set
/// back by hand is found by the sweep.
fn adds_no_row(event_type: EventType) -> bool {
    use EventType as T;
    matches!(
        event_type,
        T::PARTIAL_UPDATE_ROWS_EVENT
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

#[cfg(test)]
mod tests;
