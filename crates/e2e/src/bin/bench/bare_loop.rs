//! The raw limit of latency: binlog event → publish → confirm and nothing else, in a process of its
//! own. No table, no lanes, no marks, no lease; it publishes each row as soon as it is read and awaits
//! the confirms beside.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use e2e::{product::Process, wait};
use futures::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use mysql_async::{
    BinlogStreamRequest, Conn, OptsBuilder, Value,
    binlog::{
        EventType,
        events::{Event, EventData, RowsEventData, TableMapEvent},
        row::BinlogRow,
        value::BinlogValue,
    },
    prelude::Queryable,
};
use outbox::{message::encode, row::Row};
use time::{Date, Month, PrimitiveDateTime, Time};
use tokio::sync::mpsc;

const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};
const SOON: Duration = Duration::from_secs(30);
const READY: &str = "reading the binlog";

/// Of the hidden command.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    database: String,
    #[arg(long)]
    amqp: String,
}

/// Starts the loop on a database's outbox and waits until it reads.
pub(crate) async fn start(database_url: &str, amqp_url: &str) -> anyhow::Result<Process> {
    let program = std::env::current_exe().context("this process has no program file")?;
    let args = ["bare-loop", "--database", database_url, "--amqp", amqp_url];
    let process = Process::spawn(&program, &args, &[])?;
    wait::try_until("the bare loop to read", SOON, async || {
        process.log().contains(READY)
    })
    .await
    .with_context(|| process.log())?;
    Ok(process)
}

/// The hidden command itself.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let connection = Connection::connect(&args.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions { nowait: false })
        .await?;
    let (rows, mut read) = mpsc::channel(1024);
    let reading = tail(&args.database, rows);
    let publishing = async {
        let mut confirms = FuturesUnordered::new();
        loop {
            tokio::select! {
                row = read.recv() => {
                    let row: Row = row.context("the binlog has ended")?;
                    confirms.push(publish(&channel, &row).await?);
                }
                Some(confirmed) = confirms.next() => match confirmed? {
                    Confirmation::Ack(None) => {}
                    other => bail!("not confirmed: {other:?}"),
                },
            }
        }
    };
    let (read, published): (anyhow::Result<()>, anyhow::Result<()>) =
        futures::join!(reading, publishing);
    read.and(published)
}

async fn publish(channel: &Channel, row: &Row) -> anyhow::Result<lapin::PublisherConfirm> {
    let message = encode(row)?;
    let published = channel.basic_publish(
        message.exchange,
        message.routing_key,
        MANDATORY,
        &row.payload,
        message.properties,
    );
    Ok(published.await?)
}

async fn tail(database_url: &str, rows: mpsc::Sender<Row>) -> anyhow::Result<()> {
    let opts = mysql_async::Opts::from_url(database_url)?;
    let schema = opts
        .db_name()
        .context("a URL without a database")?
        .to_owned();
    let opts = OptsBuilder::from_opts(opts).prefer_socket(false);
    let mut connection = Conn::new(opts).await?;
    let version: Option<String> = connection.query_first("SELECT VERSION()").await?;
    let mariadb = version.is_some_and(|version| version.contains("MariaDB"));
    if mariadb {
        connection
            .query_drop("SET @mariadb_slave_capability = 4")
            .await?;
    }
    let names: Vec<String> = connection
        .query(
            "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
             WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'outbox' ORDER BY ORDINAL_POSITION",
        )
        .await?;
    let status = if mariadb {
        "SHOW MASTER STATUS"
    } else {
        "SHOW BINARY LOG STATUS"
    };
    let status: mysql_async::Row = connection
        .query_first(status)
        .await?
        .context("the server writes no binlog")?;
    let file: String = status.get(0).context("no file")?;
    let position: u64 = status.get(1).context("no position")?;
    let request = BinlogStreamRequest::new(0xbe9c_0000 | std::process::id() & 0xffff)
        .with_filename(file.as_bytes())
        .with_pos(position);
    let mut stream = connection.get_binlog_stream(request).await?;
    println!("{READY}");
    let mut map: Option<TableMapEvent<'static>> = None;
    while let Some(event) = stream.next().await {
        let event = event?;
        match event.header().event_type() {
            Ok(EventType::TABLE_MAP_EVENT) => {
                let named: TableMapEvent<'_> = event.read_event()?;
                let ours = named.table_name() == "outbox" && named.database_name() == schema;
                map = ours.then(|| named.into_owned());
            }
            Ok(EventType::WRITE_ROWS_EVENT | EventType::WRITE_ROWS_EVENT_V1) => {
                let Some(map) = &map else { continue };
                for row in decode(&event, map, &names)? {
                    rows.send(row).await.ok().context("nobody publishes")?;
                }
            }
            _ => {}
        }
    }
    bail!("the server ended the stream")
}

fn decode(
    event: &Event,
    map: &TableMapEvent<'static>,
    names: &[String],
) -> anyhow::Result<Vec<Row>> {
    let Some(EventData::RowsEvent(data)) = event.read_data()? else {
        bail!("a row event of an unknown kind");
    };
    let data: RowsEventData<'_> = data;
    data.rows(map)
        .map(|image| {
            let (_, after) = image?;
            row(after.context("no after-image")?, names)
        })
        .collect()
}

fn row(mut image: BinlogRow, names: &[String]) -> anyhow::Result<Row> {
    let mut take = |name: &str| -> anyhow::Result<Value> {
        let at = names.iter().position(|column| column == name);
        match image.take(at.context("a column is missing")?) {
            Some(BinlogValue::Value(value)) => Ok(value),
            _ => bail!("{name} is no plain value"),
        }
    };
    let mut bytes = |name: &str| -> anyhow::Result<Vec<u8>> {
        match take(name)? {
            Value::Bytes(bytes) => Ok(bytes),
            other => bail!("{name} is {other:?}"),
        }
    };
    let row = Row {
        id: 0,
        message_id: String::from_utf8(bytes("message_id")?)?,
        aggregate_type: bytes("aggregate_type")?,
        aggregate_id: bytes("aggregate_id")?,
        event_type: bytes("event_type")?,
        exchange: bytes("exchange")?,
        routing_key: bytes("routing_key")?,
        content_type: bytes("content_type")?,
        headers: None,
        payload: bytes("payload")?,
        created_at: None,
    };
    let created_at = match take("created_at")? {
        Value::Date(year, month, day, hour, minute, second, micros) => PrimitiveDateTime::new(
            Date::from_calendar_date(i32::from(year), Month::try_from(month)?, day)?,
            Time::from_hms_micro(hour, minute, second, micros)?,
        ),
        other => bail!("created_at is {other:?}"),
    };
    ensure!(row.payload.len() < 1 << 20, "not a benchmark's row");
    Ok(Row {
        created_at: Some(created_at),
        ..row
    })
}
