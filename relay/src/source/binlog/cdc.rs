//! The second reader, on the crate `mysql_cdc`, behind the cargo feature `mysql-cdc`.
//!
//! The crate logs in and requests the binlog. Raw packets of its channel become events here, and packets
//! of 16 MiB and more, which come in parts, are joined. The position to start at is the relay's own (the
//! crate finds one by a statement that MySQL 8.4 no longer has). The crate blocks, so it has a thread,
//! which ends with the first event that nobody takes: a heartbeat at the latest.

use anyhow::{Context, anyhow, bail, ensure};
use futures::{StreamExt, stream};
use mysql_async::binlog::events::{Event, FormatDescriptionEvent, TransactionPayloadEvent};
use mysql_async::binlog::{BinlogVersion, EventType};
use mysql_cdc::{binlog_client::BinlogClient, binlog_events::BinlogEvents, errors::Error};
use mysql_cdc::{binlog_options::BinlogOptions, replica_options::ReplicaOptions};
use secrecy::ExposeSecret;
use svc_kit::database::DatabaseUrl;
use tokio::sync::mpsc;

use super::Events;
use super::connection::{EVENT_MAX, HEARTBEAT, TOO_LARGE};
use crate::engine::position::Position;
use crate::leadership::server_identity::ServerId;

/// A packet of as many bytes goes on in the next.
const PART_MAX: usize = 0xff_ffff;
/// Events between the thread and the reading task; few, since each may be as large as a payload.
const AHEAD: usize = 4;

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
    let mut binlog = BinlogClient::new(options).replicate().map_err(own)?;
    let mut format = FormatDescriptionEvent::new(BinlogVersion::Version4);
    loop {
        let event = next(&mut binlog, &format)?;
        if let Some(server) = server.take() {
            server.must_have(event.header().server_id(), "binlog")?;
        }
        let raw = event.header().event_type_raw();
        if raw == EventType::FORMAT_DESCRIPTION_EVENT as u8 {
            let read = event.read_event::<FormatDescriptionEvent<'_>>()?;
            format = read.into_owned().with_footer(event.footer());
        }
        // One that can't be decompressed is followed by no events, and its transaction has no end.
        let inner = match raw == EventType::TRANSACTION_PAYLOAD_EVENT as u8 {
            true => event
                .read_event::<TransactionPayloadEvent<'_>>()
                .map(TransactionPayloadEvent::danger_decompress)
                .unwrap_or_default(),
            false => Vec::new(),
        };
        if events_in.blocking_send(Ok(event)).is_err() || !send_all(&inner, &format, events_in)? {
            return Ok(());
        }
    }
}

/// Sends the events of a decompressed transaction, which have no checksums. False when nobody takes them.
fn send_all(
    mut events: &[u8],
    format: &FormatDescriptionEvent<'_>,
    events_in: &mpsc::Sender<anyhow::Result<Event>>,
) -> anyhow::Result<bool> {
    let mut footer = format.footer();
    footer.set_checksum_enabled(false);
    let format = format.clone().with_footer(footer);
    while !events.is_empty() {
        let event = Event::read(&format, &mut events)?;
        if events_in.blocking_send(Ok(event)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn next(binlog: &mut BinlogEvents, format: &FormatDescriptionEvent<'_>) -> anyhow::Result<Event> {
    let (mut packet, _) = binlog.channel.read_packet()?;
    let mut part = packet.len();
    while part == PART_MAX {
        let (more, _) = binlog.channel.read_packet()?;
        part = more.len();
        packet.extend(more);
        ensure!(packet.len() <= EVENT_MAX, TOO_LARGE);
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
            .map_err(own)
            .and(Err(anyhow!("an error"))),
        _ => bail!("the server ended the stream"),
    }
}

/// The crate's errors are no `std::error::Error`.
fn own(err: Error) -> anyhow::Error {
    match err {
        Error::IoError(err) => err.into(),
        Error::String(text) => anyhow!(text),
        other => anyhow!("{other:?}"),
    }
}
