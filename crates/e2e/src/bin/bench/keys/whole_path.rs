//! `whole_path`: orders over HTTP to payment rows, with customers, services, database and broker on
//! the same cores, against the smallest of the raw limits of its three legs.
//!
//! The rate counts from the first order sent to the last payment written.

use std::time::Instant;

use serde_json::json;

use crate::{
    figures::{Figures, number},
    keys::{
        order_http::{CLIENTS, WARM_UP},
        pay_consume::{PROCESSED, raw as raw_payments},
        relay_drain::as_f64,
    },
    ledger, order_load,
    queue::Kind,
    raw_orders, raw_publisher,
    relay::Relay,
    scene::Scene,
    service::Service,
    shop::{Books, ORDERS, PAYMENTS},
    statistics::median,
};

const RAW_SECONDS: f64 = 3.0;
const RAW_PAYMENTS: u64 = 6_000;
const RAW_PUBLISHED: u64 = 50_000;

/// Orders, messages and payments a second, each alone; and all of it.
struct Round {
    legs: [f64; 3],
    product: f64,
}

impl Round {
    fn raw(&self) -> f64 {
        self.legs.into_iter().fold(f64::INFINITY, f64::min)
    }
}

pub(crate) async fn whole(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let orders = scene.scale.pick(20_000, 10_000);
    let (placed, paid) = (
        Books::of_orders(scene).await?,
        Books::of_payments(scene).await?,
    );
    let mut rounds: Vec<Round> = Vec::new();
    for number in 1..=scene.scale.rounds {
        let legs = raw(scene, &placed, &paid).await?;
        let product = product(scene, (&placed, &paid), orders).await?;
        let round = Round { legs, product };
        scene.say(&format!(
            "round {number}/{}: raw orders {}/s, messages {}/s, payments {}/s; all of it {}/s; \
             ratio {:.2}",
            scene.scale.rounds,
            self::number(legs[0]),
            self::number(legs[1]),
            self::number(legs[2]),
            self::number(product),
            product / round.raw()
        ));
        rounds.push(round);
    }
    let leg = |leg: usize| median(rounds.iter().map(|round| round.legs[leg])).round();
    let each: Vec<_> = rounds
        .iter()
        .map(|r| json!({"raw": r.raw().round(), "product": r.product.round()}))
        .collect();
    Ok(Figures::new(
        median(rounds.iter().map(Round::raw)),
        median(rounds.iter().map(|round| round.product)),
    )
    .met(|figures| figures.ratio >= 0.8)
    .with("orders", orders)
    .with("clients", CLIENTS)
    .with("raw_orders", leg(0))
    .with("raw_messages", leg(1))
    .with("raw_payments", leg(2))
    .with("rounds", each))
}

async fn raw(scene: &Scene<'_>, placed: &Books, paid: &Books) -> anyhow::Result<[f64; 3]> {
    let orders = raw_orders::place(&placed.url, WARM_UP, RAW_SECONDS).await?;
    placed.check_orders(orders.placed).await?;
    placed.clear(&ORDERS).await?;
    let queue = scene.queue(Kind::Quorum).await?;
    let messages = raw_publisher::publish(&queue, RAW_PUBLISHED).await?;
    queue.remove(&scene.rabbit).await?;
    let (payments, _) = raw_payments(scene, paid, RAW_PAYMENTS).await?;
    let messages = as_f64(RAW_PUBLISHED) / messages.seconds;
    Ok([orders.rate, messages, payments])
}

async fn product(
    scene: &Scene<'_>,
    (placed, paid): (&Books, &Books),
    orders: u64,
) -> anyhow::Result<f64> {
    let queue = scene.queue(Kind::Quorum).await?;
    let amqp_url = queue.vhost.amqp_url.as_str();
    let order = Service::start("order-svc", &[("DATABASE_URL", &placed.url)]).await?;
    let pay_settings = [("DATABASE_URL", paid.url.as_str()), ("AMQP_URL", amqp_url)];
    let pay = Service::start("pay-svc", &pay_settings).await?;
    let relay = Relay::start(&placed.url, amqp_url, &[])?;
    relay.tails().await?;

    let begun = Instant::now();
    let count = orders.to_string();
    let load = order_load::start(order.addr, CLIENTS, &["--orders", &count])?;
    let (ended, _) = pay.until(PROCESSED, as_f64(orders)).await?;
    let load: order_load::Took = load.reported().await?;
    scene.say(&format!(
        "orders {}/s, p99 {:.1} ms; CPU s: load {:.1}, order-svc {:.1}, relay {:.1}, pay-svc {:.1}",
        number(load.rate),
        load.p99,
        load.cpu_seconds,
        order.cpu_seconds()?,
        relay.cpu_seconds()?,
        pay.cpu_seconds()?
    ));

    ledger::all_marked(&placed.pool).await?;
    for service in [order, pay] {
        service.stop().await?;
    }
    relay.stop().await?;
    placed.check_orders(orders).await?;
    paid.check_payments(orders).await?;
    placed.clear(&ORDERS).await?;
    paid.clear(&PAYMENTS).await?;
    queue.remove(&scene.rabbit).await?;
    Ok(as_f64(orders) / (ended - begun).as_secs_f64())
}
