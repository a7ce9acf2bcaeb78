//! `order_http`: orders a second over HTTP, against one transaction per order without any HTTP.

use e2e::Flavor;
use serde_json::json;

use crate::{
    figures::{Figures, number},
    keys::relay_latency::rounded,
    order_load, process, raw_orders,
    scene::Scene,
    service::Service,
    shop::{Books, ORDERS},
    statistics::median,
};

/// HTTP clients, each with one order on its way.
pub(crate) const CLIENTS: u64 = 256;
/// Before what counts, in seconds.
pub(crate) const WARM_UP: f64 = 1.0;

/// One round.
struct Round {
    raw: raw_orders::Took,
    product: order_load::Took,
    /// Orders in a transaction.
    together: f64,
    /// CPU seconds of order-svc and of the database server while the product was measured.
    service_cpu: f64,
    database_cpu: f64,
}

pub(crate) async fn http(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let seconds = if scene.scale.quick { 4.0 } else { 6.0 };
    let books = Books::of_orders(scene).await?;
    let mut rounds = Vec::new();
    for number in 1..=scene.scale.rounds {
        let raw = raw_orders::place(&books.url, WARM_UP, seconds).await?;
        books.check_orders(raw.placed).await?;
        books.clear(&ORDERS).await?;
        let round = product(scene, &books, seconds, raw).await?;
        books.clear(&ORDERS).await?;
        scene.say(&format!(
            "round {number}/{}: raw {}/s, p99 {:.1} ms; product {}/s, p50 {:.1}, p99 {:.1} ms, \
             {:.1} together; CPU s: load {:.1}, order-svc {:.1}, database {:.1}; ratio {:.2}",
            scene.scale.rounds,
            self::number(raw.rate),
            raw.p99,
            self::number(round.product.rate),
            round.product.p50,
            round.product.p99,
            round.together,
            round.product.cpu_seconds,
            round.service_cpu,
            round.database_cpu,
            round.product.rate / raw.rate
        ));
        rounds.push(round);
    }
    Ok(figures(scene.flavor, &rounds))
}

async fn product(
    scene: &Scene<'_>,
    books: &Books,
    seconds: f64,
    raw: raw_orders::Took,
) -> anyhow::Result<Round> {
    let service = Service::start("order-svc", &[("DATABASE_URL", &books.url)]).await?;
    let database = scene.db.pid().unwrap_or_default();
    let (service_before, database_before) =
        (service.cpu_seconds()?, process::cpu_seconds(database)?);
    let (warm_up, seconds) = (WARM_UP.to_string(), seconds.to_string());
    let mut more = vec!["--warm-up", &warm_up, "--seconds", &seconds];
    // For experiments.
    more.extend(std::env::var("LOAD_KEYS").is_ok().then_some("--keys"));
    let product: order_load::Took = order_load::start(service.addr, CLIENTS, &more)?
        .reported()
        .await?;
    let service_cpu = service.cpu_seconds()? - service_before;
    let database_cpu = process::cpu_seconds(database)? - database_before;
    let orders = service.metric("orders_commit_batch_orders_sum").await?;
    let commits = service.metric("orders_commit_batch_orders_count").await?;
    service.stop().await?;
    books.check_orders(product.placed).await?;
    Ok(Round {
        raw,
        product,
        together: orders / commits.max(1.0),
        service_cpu,
        database_cpu,
    })
}

fn figures(flavor: Flavor, rounds: &[Round]) -> Figures {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let (raw_p99, p99) = (of(|r| r.raw.p99), of(|r| r.product.p99));
    let least = match flavor {
        Flavor::MySql => 3.0,
        Flavor::MariaDb => 1.5,
    };
    let each: Vec<_> = rounds
        .iter()
        .map(|r| json!({"raw": r.raw.rate.round(), "product": r.product.rate.round()}))
        .collect();
    Figures::new(of(|r| r.raw.rate), of(|r| r.product.rate))
        .met(|figures| figures.ratio >= least && p99 <= 4.0 * raw_p99)
        .with("clients", CLIENTS)
        .with("raw_p50_ms", rounded(of(|r| r.raw.p50)))
        .with("raw_p99_ms", rounded(raw_p99))
        .with("p50_ms", rounded(of(|r| r.product.p50)))
        .with("p99_ms", rounded(p99))
        .with("p99_ratio", rounded(p99 / raw_p99))
        .with("orders_together", rounded(of(|r| r.together)))
        .with("load_cpu_s", rounded(of(|r| r.product.cpu_seconds)))
        .with("order_svc_cpu_s", rounded(of(|r| r.service_cpu)))
        .with("database_cpu_s", rounded(of(|r| r.database_cpu)))
        .with("rounds", each)
}
