//! The second reader, on the crate `mysql_cdc`, behind the cargo feature `mysql-cdc`.
//!
//! The crate logs in, asks for the binlog and takes rows apart. It never sees the other events: raw
//! packets of its channel become events here, so what it can't read is still noticed, and packets of
//! 16 MiB and more, which come in parts, are joined. The position to start at is the relay's own
//! (the crate asks with a statement that MySQL 8.4 no longer has). It blocks, so it has a thread,
//! which ends with the first event that nobody takes: a heartbeat at the latest.

use std::collections::HashMap;
use std::io::Cursor;

use anyhow::{Context, anyhow, bail, ensure};
use futures::{StreamExt, stream};
use mysql_async::Value;
use mysql_async::binlog::events::{Event, FormatDescriptionEvent};
use mysql_async::binlog::{BinlogVersion, EventType};
use mysql_cdc::events::row_events::{mysql_value::MySqlValue as Cell, row_data::RowData};
use mysql_cdc::events::row_events::{update_rows_event as update, write_rows_event as write};
use mysql_cdc::events::table_map_event::TableMapEvent;
use mysql_cdc::{binlog_client::BinlogClient, binlog_events::BinlogEvents, errors::Error};
use mysql_cdc::{binlog_options::BinlogOptions, replica_options::ReplicaOptions};
use secrecy::ExposeSecret;
use svc_kit::database::DatabaseUrl;
use tokio::sync::mpsc;

use super::connection::{HEARTBEAT, PACKET_MAX};
use super::library::{Events, Image, Layout, Library, Show, ShowChange};
use super::position::Position;
use crate::leadership::server_identity::ServerId;

/// A packet of as many bytes goes on in the next.
const PART_MAX: usize = 0xff_ffff;
/// Events between the thread and the reading task; few, since each may be as large as a payload.
const AHEAD: usize = 4;
/// Column types as a table map has them. A SET is handed over as it is, up to eight bytes.
const DATETIME2: u8 = 18;
const SET: u8 = 248;
const BLOBS: [u8; 6] = [245, 249, 250, 251, 252, 255];

/// A compressed transaction stays one event that nobody can look into.
pub(super) const LIBRARY: Library = Library {
    layout,
    expands: false,
};

/// Starts the thread. That the server can't be reached, or refuses, is the stream's first item.
pub(super) fn open(
    url: &DatabaseUrl,
    from: &Position,
    server: Option<ServerId>,
) -> anyhow::Result<Events> {
    let host = url.host();
    let hostname = host.contains(':').then(|| format!("[{host}]"));
    let hostname = hostname.unwrap_or_else(|| host.to_owned());
    let offset = u32::try_from(from.offset)
        .with_context(|| format!("mysql_cdc can't start beyond 4 GiB of a file: {from}"))?;
    let options = ReplicaOptions {
        hostname,
        port: url.port(),
        username: url.user().into(),
        password: url.password().map_or("", |p| p.expose_secret()).into(),
        // Random in the high range: see `connect`.
        server_id: rand::random::<u32>() | 0x8000_0000,
        heartbeat_interval: HEARTBEAT,
        binlog: BinlogOptions::from_position(from.file.to_string(), offset),
        ..ReplicaOptions::default()
    };
    let (events_in, mut events) = mpsc::channel(AHEAD);
    // Not a blocking task of the runtime: that would wait for it at its end.
    let thread = std::thread::Builder::new().name("mysql_cdc".into());
    thread.spawn(move || {
        if let Err(err) = read(options, server, &events_in) {
            drop(events_in.blocking_send(Err(err)));
        }
    })?;
    Ok(stream::poll_fn(move |context| events.poll_recv(context)).boxed())
}

fn read(
    options: ReplicaOptions,
    mut server: Option<ServerId>,
    events_in: &mpsc::Sender<anyhow::Result<Event>>,
) -> anyhow::Result<()> {
    let mut binlog = BinlogClient::new(options).replicate().map_err(told)?;
    let mut format = FormatDescriptionEvent::new(BinlogVersion::Version4);
    loop {
        let event = next(&mut binlog, &format)?;
        if let Some(server) = server.take() {
            server.must_have(event.header().server_id(), "binlog")?;
        }
        if event.header().event_type_raw() == EventType::FORMAT_DESCRIPTION_EVENT as u8 {
            let read = event.read_event::<FormatDescriptionEvent<'_>>()?;
            format = read.into_owned().with_footer(event.footer());
        }
        if events_in.blocking_send(Ok(event)).is_err() {
            return Ok(());
        }
    }
}

fn next(binlog: &mut BinlogEvents, format: &FormatDescriptionEvent<'_>) -> anyhow::Result<Event> {
    let (mut packet, _) = binlog.channel.read_packet()?;
    let mut part = packet.len();
    while part == PART_MAX {
        let (more, _) = binlog.channel.read_packet()?;
        part = more.len();
        packet.extend(more);
        ensure!(packet.len() <= PACKET_MAX, "a packet over 1 GiB");
    }
    match packet.split_first() {
        Some((0, event)) => {
            // mysql_common trusts the length in an event's header.
            let length = u32::try_from(event.len())?.to_le_bytes();
            ensure!(event.get(9..13) == Some(&length), "a false length");
            Ok(Event::read(format, event)?)
        }
        Some((0xff, _)) => binlog
            .read_error(&packet)
            .map_err(told)
            .and(Err(anyhow!("an error"))),
        _ => bail!("the server ended the stream"),
    }
}

/// The crate's errors are no `std::error::Error`.
fn told(err: Error) -> anyhow::Error {
    match err {
        Error::IoError(err) => err.into(),
        Error::String(text) => anyhow!(text),
        other => anyhow!("{other:?}"),
    }
}

fn text(err: Error) -> String {
    format!("mysql_cdc: {:#}", told(err))
}

struct Map {
    /// The one map, under its id, as the crate wants it.
    maps: HashMap<u64, TableMapEvent>,
    /// Per column the bytes of a DATETIME's fraction.
    fractions: Vec<Option<u16>>,
}

fn layout(event: &Event) -> Result<Box<dyn Layout>, String> {
    let essential = essential(event.data()).ok_or("a table map that is cut short")?;
    let mut map = TableMapEvent::parse(&mut Cursor::new(essential)).map_err(text)?;
    // The crate cuts microseconds to milliseconds: it is shown another type and hands over the bytes.
    let mut fractions = vec![None; map.column_types.len()];
    for (column, kind) in map.column_types.iter_mut().enumerate() {
        let digits = &mut map.column_metadata[column];
        if *kind == DATETIME2 && *digits <= 6 {
            *kind = SET;
            fractions[column] = Some(digits.div_ceil(2));
            *digits = 5 + digits.div_ceil(2);
        } else if BLOBS.contains(kind) && *digits > 4 {
            // It would ask for as much memory as a longer number says.
            return Err("a BLOB with a length of its own".into());
        }
    }
    let maps = HashMap::from([(map.table_id, map)]);
    Ok(Box::new(Map { maps, fractions }))
}

/// The part of a table map that row images need. What may follow is metadata of further kinds, and
/// the crate refuses those it does not know.
fn essential(data: &[u8]) -> Option<&[u8]> {
    let byte = |at: usize| data.get(at).copied().map(usize::from);
    // Id and flags; schema and table, each with its length before and a 0 behind it.
    let table = 8 + byte(8)? + 2;
    let count = table + byte(table)? + 2;
    // From 251 on it would be a longer number. No outbox has so many columns.
    let columns = byte(count).filter(|columns| *columns < 251)?;
    let metadata = count + 1 + columns;
    let bytes = byte(metadata).filter(|bytes| *bytes < 251)?;
    data.get(..metadata + 1 + bytes + columns.div_ceil(8))
}

impl Layout for Map {
    fn columns(&self) -> usize {
        self.fractions.len()
    }

    fn images(&self, event: &Event, show: Show<'_>) -> Result<(), String> {
        let version = self.version_of_whole(event, 1)?;
        let data = &mut Cursor::new(event.data());
        let rows = write::WriteRowsEvent::parse(data, &self.maps, version);
        for row in rows.map_err(text)?.rows {
            show(&mut Cells(row.cells, &self.fractions))?;
        }
        Ok(())
    }

    fn changes(&self, event: &Event, show: ShowChange<'_>) -> Result<(), String> {
        let version = self.version_of_whole(event, 2)?;
        let data = &mut Cursor::new(event.data());
        let rows = update::UpdateRowsEvent::parse(data, &self.maps, version);
        for row in rows.map_err(text)?.rows {
            let cells = |row: RowData| Cells(row.cells, &self.fractions);
            show(&mut cells(row.before_update), &mut cells(row.after_update))?;
        }
        Ok(())
    }
}

impl Map {
    /// The version of a row event whose images, so many of each row, have all columns.
    fn version_of_whole(&self, event: &Event, images: usize) -> Result<u8, String> {
        let data = event.data();
        // Id and flags; in the second version so many bytes of the server's own.
        let (version, extra) = match (event.header().event_type_raw(), data.get(8..10)) {
            (30 | 31, Some(&[low, high])) => (2, usize::from(u16::from_le_bytes([low, high]))),
            _ => (1, 0),
        };
        let count = data.get(8 + extra).copied().map(usize::from);
        let bitmaps = data.get(9 + extra..).unwrap_or_default();
        let length = self.columns().div_ceil(8);
        let is_present = |(image, column): (usize, usize)| {
            bitmaps
                .get(image * length + column / 8)
                .is_some_and(|b| b >> (column % 8) & 1 == 1)
        };
        let mut all = (0..images).flat_map(|image| (0..self.columns()).map(move |c| (image, c)));
        // The crate goes round for ever on rows without columns.
        if count != Some(self.columns()) || !all.all(is_present) {
            return Err("a row image without all columns (binlog_row_image is not FULL)".into());
        }
        Ok(version)
    }
}

struct Cells<'a>(Vec<Option<Cell>>, &'a [Option<u16>]);

impl Image for Cells<'_> {
    fn columns(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self, column: usize) -> Result<Value, String> {
        let cell = self.0.get_mut(column).ok_or("a column is missing")?;
        Ok(match cell.take() {
            None => Value::NULL,
            Some(Cell::TinyInt(number)) => Value::UInt(number.into()),
            Some(Cell::Int(number)) => Value::UInt(number.into()),
            Some(Cell::BigInt(number)) => Value::UInt(number),
            Some(Cell::String(text)) => Value::Bytes(text.into_bytes()),
            Some(Cell::Blob(bytes)) => Value::Bytes(bytes),
            Some(Cell::Set(bytes)) if let Some(fraction) = self.1[column] => date(bytes, fraction),
            Some(_) => return Err(format!("column {column} is of another kind")),
        })
    }
}

/// A DATETIME's bytes, read as a number with the first one lowest: five of date and time, the first
/// bit a sign, then the fraction.
fn date(bytes: u64, fraction: u16) -> Value {
    let packed = bytes.swap_bytes() >> 24;
    let (unit, below) = [(0, 0), (10_000, 16), (100, 8), (1, 0)][usize::from(fraction)];
    let micros = u32::try_from((bytes.swap_bytes() & 0xff_ffff) >> below).unwrap_or(0) * unit;
    let part = |shift: u32, bits: u32| packed >> shift & ((1 << bits) - 1);
    let small = |part| u8::try_from(part).unwrap_or(0);
    let year = u16::try_from(part(22, 17) / 13).unwrap_or(0);
    let (month, day) = (small(part(22, 17) % 13), small(part(17, 5)));
    let (hour, minute, second) = (small(part(12, 5)), small(part(6, 6)), small(part(0, 6)));
    Value::Date(year, month, day, hour, minute, second, micros)
}
