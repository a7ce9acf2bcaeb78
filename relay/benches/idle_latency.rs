//! Idle latency of the relay against the least that could do its work, in one run.
//!
//! Both ways start when COMMIT has returned and end when the message arrives at a consumer of a
//! quorum queue of their own. The arrival stands for the confirm, which nobody outside the relay
//! sees: the broker sends both when the queue has taken the message.
//!
//! The bare loop reads the binlog of its own database with the same decoder, publishes `mandatory`
//! and persistent on one channel, awaits the confirm, and knows nothing else: no table, lanes,
//! marks, lease. One commit at a time, of both ways in turn, so that what else happens on the
//! machine happens to both; and the next one when the last message has arrived and is marked, so
//! that every commit meets an idle relay, an idle broker and an idle disk.
//!
//! `cargo bench -p relay --bench idle_latency`; it fails when the ratio is over [`RATIO_MAX`].

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::product::Process;
use e2e::{Db, Flavor, Rabbit, RabbitOptions, TestDatabase, Vhost};
use futures::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use outbox::Event;
use outbox::message::encode;
use relay::binlog::decode::Columns;
use relay::binlog::group::Grouper;
use relay::binlog::reader::Reader;
use relay::config::OutboxTable;
use relay::table::Queries;
use sqlx::MySqlPool;
use svc_kit::database::DatabaseUrl;
use uuid::Uuid;

const RATIO_MAX: f64 = 1.5;
const COMMITS: usize = 200;
/// Before what counts: connections, statements and caches warm up.
const WARM_UP: usize = 20;
const PRODUCT: &str = "order-exchange";
const BARE: &str = "bare-exchange";
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    svc_kit::boot::install_crypto();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let rabbit = Rabbit::start(RabbitOptions::default()).await?;
        let mut worst = 0.0_f64;
        for flavor in [Flavor::MariaDb, Flavor::MySql] {
            if flavor == Flavor::MySql && e2e::cache::mysql_root().is_err() {
                continue;
            }
            worst = worst.max(compare(flavor, &rabbit).await?);
        }
        ensure!(
            worst <= RATIO_MAX,
            "the relay's median is {worst:.2} times the bare loop's"
        );
        Ok(())
    })
}

/// One way from a commit to a consumer.
struct Way {
    pool: MySqlPool,
    exchange: &'static str,
    consumer: Consumer,
    took: Vec<Duration>,
}

async fn compare(flavor: Flavor, rabbit: &Rabbit) -> anyhow::Result<f64> {
    let db = Db::start(flavor, e2e::DbOptions::default()).await?;
    let vhost = rabbit.create_vhost().await?;
    let connection = Connection::connect(&vhost.amqp_url, ConnectionProperties::default()).await?;
    let mut ways = Vec::new();
    let mut databases = Vec::new();
    for exchange in [PRODUCT, BARE] {
        let database = db.create_database().await?;
        command(&["migrate"], &database, &vhost)?
            .wait_exit(PATIENCE)
            .await?;
        ways.push(Way {
            pool: database.pool()?,
            exchange,
            consumer: consume(&connection, exchange).await?,
            took: Vec::new(),
        });
        databases.push(database);
    }
    let relay = command(&["run"], &databases[0], &vhost)?;
    let bare = svc_kit::tasks::unit(bare_loop(
        DatabaseUrl::parse(&databases[1].url)?,
        connection.create_channel().await?,
    ));
    e2e::wait::try_until("the relay to tail", PATIENCE, async || {
        relay.log().contains("tailing the binlog")
    })
    .await?;
    for _ in 0..WARM_UP + COMMITS {
        for way in &mut ways {
            way.commit().await.with_context(|| relay.log())?;
        }
    }
    bare.abort();
    relay.terminate()?;
    relay.wait_exit(PATIENCE).await?;
    report(flavor, &mut ways)
}

fn command(args: &[&str], database: &TestDatabase, vhost: &Vhost) -> anyhow::Result<Process> {
    let env = [
        ("DATABASE_URL", database.url.as_str()),
        ("AMQP_URL", vhost.amqp_url.as_str()),
        ("ADMIN_ADDR", &format!("127.0.0.1:{}", e2e::port::free()?)),
    ];
    Process::spawn(Path::new(env!("CARGO_BIN_EXE_relay")), args, &env)
}

impl Way {
    async fn commit(&mut self) -> anyhow::Result<()> {
        let event = Event::new(
            "order",
            format!("k{}", self.took.len()),
            "order.placed.v1",
            "order.pay",
            vec![b'x'; 300],
        )
        .exchange(self.exchange);
        let mut tx = self.pool.begin().await?;
        let id = outbox::event::write(&mut tx, &event).await?;
        tx.commit().await?;
        let committed = Instant::now();
        tokio::time::timeout(PATIENCE, self.consumer.next())
            .await
            .with_context(|| format!("nothing arrived by {}", self.exchange))?
            .context("the consumer ended")??;
        self.took.push(committed.elapsed());
        while self.status(id).await? == 1 && self.exchange == PRODUCT {}
        Ok(())
    }

    async fn status(&self, message_id: Uuid) -> sqlx::Result<u8> {
        sqlx::query_scalar("SELECT status FROM outbox WHERE message_id = ?")
            .bind(message_id.to_string())
            .fetch_one(&self.pool)
            .await
    }
}

async fn consume(connection: &Connection, exchange: &str) -> anyhow::Result<Consumer> {
    let channel = connection.create_channel().await?;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(
            exchange.into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString(LongString::from("quorum")),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let queue = format!("{exchange}-queue");
    channel
        .queue_declare(queue.as_str().into(), durable, arguments)
        .await?;
    channel
        .queue_bind(
            queue.as_str().into(),
            exchange.into(),
            "order.*".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel
        .basic_consume(
            queue.as_str().into(),
            "bench".into(),
            no_ack,
            FieldTable::default(),
        )
        .await?;
    Ok(consumer)
}

async fn bare_loop(url: DatabaseUrl, channel: Channel) -> anyhow::Result<()> {
    channel
        .confirm_select(ConfirmSelectOptions { nowait: false })
        .await?;
    let table = OutboxTable {
        url,
        name: "outbox".into(),
    };
    let mut connection = table.url.connect().await?;
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'outbox' ORDER BY ORDINAL_POSITION",
    )
    .fetch_all(&mut connection)
    .await?;
    let columns = Columns::locate(&names).map_err(anyhow::Error::msg)?;
    let queries = Queries::discover(&mut connection, &table).await?;
    let from = queries.position(&mut connection).await?;
    let mut reading = Reader::MysqlAsync.open(&table.url, &from, None).await?;
    let names = (table.url.database(), table.name.as_str());
    let mut grouper = Grouper::new(names, columns, reading.library, 1 << 20, from);
    let mandatory = BasicPublishOptions {
        mandatory: true,
        immediate: false,
    };
    while let Some(event) = reading.events.next().await {
        for row in grouper
            .feed(&event?)
            .into_iter()
            .flat_map(|group| group.rows)
        {
            let message = encode(&row)?;
            let confirm = channel
                .basic_publish(
                    message.exchange,
                    message.routing_key,
                    mandatory,
                    &row.payload,
                    message.properties,
                )
                .await?
                .await?;
            ensure!(confirm.is_ack(), "not confirmed");
        }
    }
    Ok(())
}

fn report(flavor: Flavor, ways: &mut [Way]) -> anyhow::Result<f64> {
    let mut out = std::io::stdout().lock();
    let mut medians = Vec::new();
    for way in ways {
        way.took.drain(..WARM_UP);
        way.took.sort();
        let at = |percent: usize| way.took[way.took.len() * percent / 100];
        writeln!(
            out,
            "{flavor:?} {:14} {} commits: p50 {:?}, p90 {:?}, p99 {:?}",
            way.exchange,
            way.took.len(),
            at(50),
            at(90),
            at(99)
        )?;
        medians.push(at(50).as_secs_f64());
    }
    let ratio = medians[0] / medians[1];
    writeln!(
        out,
        "{flavor:?} the relay's median is {ratio:.2} times the bare loop's"
    )?;
    Ok(ratio)
}
