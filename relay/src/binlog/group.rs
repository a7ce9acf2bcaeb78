//! From binlog events to groups: the rows that one transaction added to the outbox. No IO.
//!
//! The type and the table id of an event are looked at before anything is decoded, so other
//! tables' changes and the relay's own marks cost a few comparisons.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mysql_async::binlog::EventType;
use mysql_async::binlog::events::{
    Event, EventData, QueryEvent, RotateEvent, RowsEventData, TableMapEvent,
};
use outbox::row::Row;

use super::decode::Columns;
use super::position::Position;

/// What one committed transaction did to the outbox.
#[derive(Debug)]
pub struct Group {
    /// Rows the tail may send, in the order they were inserted.
    pub rows: Vec<Row>,
    /// Rows that were inserted with attempts or a `next_attempt_at`: the table serves them.
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

/// What may hold on to more XA ids than this is not an application; the excess costs passes only.
const FOREIGN_XA_MAX: usize = 4096;

// Types that mysql_common has no name for: MariaDB's, and MySQL's second heartbeat.
const MARIADB_GTID: u8 = 162;
const MARIADB_QUERY_COMPRESSED: u8 = 165;
const MARIADB_ROWS_COMPRESSED: std::ops::RangeInclusive<u8> = 166..=171;
/// `FL_STANDALONE`: the group is one statement, without COMMIT.
const MARIADB_STANDALONE: u8 = 1;

struct Open {
    committed: Committed,
    rows: Vec<Row>,
    deferred: Vec<Row>,
    bytes: usize,
    inserted: bool,
    changed: bool,
    /// Inside BEGIN … COMMIT; a QUERY event outside is a group of its own.
    begun: bool,
    xa: Option<Vec<u8>>,
    doubt: Option<Doubt>,
}

/// The state between events.
pub struct Grouper {
    schema: Vec<u8>,
    table: Vec<u8>,
    columns: Columns,
    bytes_max: usize,
    position: Position,
    rotated: bool,
    /// Table ids of this stream that are the outbox.
    outbox: HashMap<u64, TableMapEvent<'static>>,
    open: Option<Open>,
    foreign_xa: HashSet<Vec<u8>>,
}

impl Grouper {
    /// Starts at `position`, which must be between two groups.
    pub fn new(
        (schema, table): (&str, &str),
        columns: Columns,
        bytes_max: usize,
        position: Position,
    ) -> Self {
        Self {
            schema: schema.as_bytes().to_vec(),
            table: table.as_bytes().to_vec(),
            columns,
            bytes_max,
            position,
            rotated: false,
            outbox: HashMap::new(),
            open: None,
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
        let group = self.handle(event);
        // Events inside a compressed transaction carry the outer offset or 0, never more.
        let end = u64::from(header.log_pos());
        if end > self.position.offset && header.event_type_raw() != EventType::ROTATE_EVENT as u8 {
            self.position.offset = end;
        }
        group
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
        match T::try_from(raw).unwrap_or(T::IGNORABLE_EVENT) {
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
            T::UPDATE_ROWS_EVENT
            | T::UPDATE_ROWS_EVENT_V1
            | T::PARTIAL_UPDATE_ROWS_EVENT
            | T::DELETE_ROWS_EVENT
            | T::DELETE_ROWS_EVENT_V1
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
            _ => {}
        }
        None
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
        if !names_table(event.data(), &self.schema, &self.table) {
            if let Some(id) = table_id(event.data()) {
                self.outbox.remove(&id);
            }
            return;
        }
        match event.read_event::<TableMapEvent<'_>>() {
            Ok(map) => {
                self.outbox.insert(map.table_id(), map.into_owned());
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
            .and_then(|map| decode_rows(event, map, &self.columns));
        match rows {
            Ok(rows) => {
                for (row, deferred) in rows {
                    open.bytes += row.payload.len() + ROW_OVERHEAD;
                    if deferred {
                        &mut open.deferred
                    } else {
                        &mut open.rows
                    }
                    .push(row);
                }
                if open.bytes > self.bytes_max {
                    self.doubt(Doubt::TooLarge);
                }
            }
            Err(problem) => self.doubt(Doubt::Undecodable(problem)),
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
        match Statement::of(text, &self.table) {
            Statement::Begin => {
                if let Some(open) = &mut self.open {
                    open.begun = true;
                }
            }
            Statement::XaStart(id) => {
                if let Some(open) = &mut self.open {
                    open.begun = true;
                    open.xa = Some(id.to_vec());
                }
            }
            Statement::Harmless => {}
            Statement::Commit => return self.end(),
            Statement::Rollback => {
                self.doubt(Doubt::Unvouched("ROLLBACK"));
                return self.end();
            }
            Statement::XaCommit(id) => {
                if self.foreign_xa.remove(id) {
                    self.open = None;
                    return None;
                }
                return self.alone(Doubt::Unvouched("XA COMMIT"));
            }
            Statement::XaRollback(id) => {
                self.foreign_xa.remove(id);
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
        // WL#6860: byte 0 is one_phase; 1 commits here and now.
        if event.data().first() == Some(&1) {
            return self.end();
        }
        let open = self.open.take()?;
        let concerns_us = open.inserted || open.changed || open.doubt.is_some();
        if let Some(id) = open.xa.filter(|_| !concerns_us)
            && self.foreign_xa.len() < FOREIGN_XA_MAX
        {
            self.foreign_xa.insert(id);
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

/// What a row costs in memory besides its payload, in bytes (measured, rounded up).
pub const ROW_OVERHEAD: usize = 512;

impl Open {
    fn new(committed: Committed, begun: bool) -> Self {
        Self {
            committed,
            rows: Vec::new(),
            deferred: Vec::new(),
            bytes: 0,
            inserted: false,
            changed: false,
            begun,
            xa: None,
            doubt: None,
        }
    }

    fn into_group(self) -> Option<Group> {
        let empty = self.rows.is_empty() && self.deferred.is_empty() && self.doubt.is_none();
        (!empty).then_some(Group {
            rows: self.rows,
            deferred: self.deferred,
            committed: self.committed,
            doubt: self.doubt,
        })
    }
}

/// What a QUERY event means for the outbox.
#[derive(Debug, PartialEq, Eq)]
enum Statement<'a> {
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, XA END.
    Harmless,
    XaStart(&'a [u8]),
    XaCommit(&'a [u8]),
    XaRollback(&'a [u8]),
    /// DDL that does not name the outbox: it can't add rows to it.
    Foreign,
    /// Anything else, `ROLLBACK TO` and DML in STATEMENT format among it.
    Other,
}

/// Statements that write rows of no table but the one they name. DML is not here: a trigger or a
/// stored function it calls may write any table.
const DDL: [&[u8]; 14] = [
    b"CREATE ",
    b"ALTER ",
    b"DROP ",
    b"TRUNCATE ",
    b"RENAME ",
    b"GRANT ",
    b"REVOKE ",
    b"FLUSH",
    b"ANALYZE ",
    b"OPTIMIZE ",
    b"REPAIR ",
    b"SET ",
    b"INSTALL ",
    b"UNINSTALL ",
];

impl<'a> Statement<'a> {
    fn of(text: &'a [u8], table: &[u8]) -> Self {
        let starts = |word: &[u8]| {
            text.get(..word.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(word))
        };
        let rest = |word: &[u8]| text[word.len()..].trim_ascii();
        if text.eq_ignore_ascii_case(b"BEGIN") || starts(b"START TRANSACTION") {
            Self::Begin
        } else if text.eq_ignore_ascii_case(b"COMMIT") {
            Self::Commit
        } else if text.eq_ignore_ascii_case(b"ROLLBACK") {
            Self::Rollback
        } else if starts(b"SAVEPOINT") || starts(b"RELEASE SAVEPOINT") || starts(b"XA END") {
            Self::Harmless
        } else if starts(b"XA START") {
            Self::XaStart(rest(b"XA START"))
        } else if starts(b"XA COMMIT") {
            Self::XaCommit(rest(b"XA COMMIT"))
        } else if starts(b"XA ROLLBACK") {
            Self::XaRollback(rest(b"XA ROLLBACK"))
        } else if DDL.iter().any(|word| starts(word)) && !contains(text, table) {
            Self::Foreign
        } else {
            Self::Other
        }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len())
        .any(|part| part.eq_ignore_ascii_case(word))
}

/// Table map and row events start with the table id in six bytes, low first.
fn table_id(data: &[u8]) -> Option<u64> {
    let bytes = data.get(..6)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |id, byte| (id << 8) | u64::from(*byte)),
    )
}

/// Looks at the names of a table map: after id (6) and flags (2), each a length, the text, a 0.
fn names_table(data: &[u8], schema: &[u8], table: &[u8]) -> bool {
    let name = |at: usize| -> Option<&[u8]> {
        let length = usize::from(*data.get(at)?);
        data.get(at + 1..at + 1 + length)
    };
    name(8) == Some(schema) && name(8 + 2 + schema.len()) == Some(table)
}

fn commit_time(event: &Event) -> Committed {
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

/// The pending rows of one INSERT event, each with whether the table must serve it.
fn decode_rows(
    event: &Event,
    map: &TableMapEvent<'static>,
    columns: &Columns,
) -> Result<Vec<(Row, bool)>, String> {
    let data = match event.read_data() {
        Ok(Some(EventData::RowsEvent(data))) => data,
        Ok(_) => return Err("a row event of an unknown kind".into()),
        Err(err) => return Err(format!("a row event: {err}")),
    };
    if map.columns_count() != columns.count() as u64 {
        return Err(format!(
            "the table map has {} columns, the table had {}",
            map.columns_count(),
            columns.count()
        ));
    }
    whole_image(&data)?;
    let mut rows = Vec::new();
    for image in data.rows(map) {
        let (_, after) = image.map_err(|err| format!("a row image: {err}"))?;
        let after = after.ok_or("an INSERT without an after-image")?;
        let inserted = columns.decode(after)?;
        if inserted.status == 1 {
            rows.push((inserted.row, inserted.deferred));
        }
    }
    Ok(rows)
}

fn whole_image(data: &RowsEventData<'_>) -> Result<(), String> {
    match data.columns_after_image() {
        Some(bitmap) if bitmap.all() => Ok(()),
        _ => Err("a row image without all columns (binlog_row_image is not FULL)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart_by_what_they_may_do_to_the_outbox() {
        let of = |text: &'static str| Statement::of(text.as_bytes(), b"outbox");
        assert_eq!(of("BEGIN"), Statement::Begin);
        assert_eq!(of("COMMIT"), Statement::Commit);
        assert_eq!(of("SAVEPOINT `a`"), Statement::Harmless);
        assert_eq!(of("ROLLBACK TO `a`"), Statement::Other);
        assert_eq!(
            of("XA START X'61',X'',1"),
            Statement::XaStart(b"X'61',X'',1")
        );
        assert_eq!(
            of("XA COMMIT X'61',X'',1"),
            Statement::XaCommit(b"X'61',X'',1")
        );
        assert_eq!(of("CREATE TABLE other (a INT)"), Statement::Foreign);
        assert_eq!(
            of("alter table `OutBox` add column b int"),
            Statement::Other
        );
        assert_eq!(of("DROP DATABASE other"), Statement::Foreign);
        assert_eq!(of("INSERT INTO other VALUES (1)"), Statement::Other);
    }

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
}
