//! `relay_steady`: 2,000 rows a second, from COMMIT to arrival.

use crate::{
    arrivals::{Way, steadily},
    figures::Figures,
    keys::{relay_drain::as_f64, relay_latency::rounded},
    scene::Scene,
    statistics::{median, percentile},
};

const PER_SECOND: u64 = 2000;
/// What the relay may add to the median, in ms.
const ADDED_MAX: f64 = 0.5;
/// Half a second of rows: a backlog that ends above it, and above where it was, grows.
const BACKLOG_MAX: f64 = 1000.0;

pub(crate) async fn steady(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    // Of a full run, 60 s of each in all.
    let seconds = scene.scale.pick(12, 5);
    let bare = Way::set_up(scene, false).await?;
    let product = Way::set_up(scene, true).await?;
    let mut figures: [Vec<(f64, f64)>; 2] = Default::default();
    let mut backlog_max = 0;
    let mut grows = false;
    for round in 1..=scene.scale.rounds {
        for (way, figures) in [&bare, &product].into_iter().zip(&mut figures) {
            let carrier = way.start().await?;
            let flow = steadily(way, PER_SECOND, seconds).await?;
            way.finish(carrier, (flow.placed, &flow.arrived)).await?;
            figures.push((percentile(&flow.took, 50), percentile(&flow.took, 99)));
            if way.product {
                backlog_max = backlog_max.max(flow.backlog.iter().copied().max().unwrap_or(0));
                grows |= has_grown(&flow.backlog);
            }
        }
        let [(raw, raw99), (own, own99)] = figures.each_ref().map(|f| f[round - 1]);
        scene.say(&format!(
            "round {round}/{}: raw p50 {raw:.2}, p99 {raw99:.2} ms; product p50 {own:.2}, p99 {own99:.2} ms",
            scene.scale.rounds
        ));
    }
    let p50 = figures
        .each_ref()
        .map(|f| median(f.iter().map(|each| each.0)));
    let p99 = figures
        .each_ref()
        .map(|f| median(f.iter().map(|each| each.1)));
    Ok(Figures::new(p50[0], p50[1])
        .met(|figures| figures.product <= figures.raw + ADDED_MAX && !grows)
        .with("rows_per_second", PER_SECOND)
        .with("seconds_per_round", seconds)
        .with("raw_p99", rounded(p99[0]))
        .with("product_p99", rounded(p99[1]))
        .with("backlog_max", backlog_max)
        .with("backlog_grows", grows))
}

/// The last quarter of the looks against the first.
fn has_grown(backlog: &[u64]) -> bool {
    let quarter = backlog.len() / 4;
    let of = |looks: &[u64]| median(looks.iter().map(|&rows| as_f64(rows)));
    let (first, last) = (
        of(&backlog[..quarter]),
        of(&backlog[backlog.len() - quarter..]),
    );
    last > first && last > BACKLOG_MAX
}

#[cfg(test)]
mod tests {
    use super::has_grown;

    #[test]
    fn a_backlog_grows_when_it_ends_high() {
        assert!(has_grown(&[0, 100, 900, 1500, 2000, 2500, 3000, 4000]));
        assert!(!has_grown(&[0, 30, 10, 0, 20, 30, 40, 5]));
        assert!(!has_grown(&[4000, 4000, 10, 0, 20, 30, 40, 5]));
    }
}
