//! `relay_latency_idle`: one commit at a time, each meets idle servers.

use serde_json::Value;

use crate::{
    arrivals::{Way, one_at_a_time},
    figures::Figures,
    scene::Scene,
    statistics::{median, percentile},
};

/// Before what counts: connections, statements and caches warm up.
const WARM_UP: usize = 20;

pub(crate) async fn idle(scene: &Scene<'_>) -> anyhow::Result<Figures> {
    let commits = scene.scale.pick(400, 200);
    let bare = Way::set_up(scene, false).await?;
    let product = Way::set_up(scene, true).await?;
    // (p50, p99) of each round.
    let mut figures: [Vec<(f64, f64)>; 2] = Default::default();
    for round in 1..=scene.scale.rounds {
        for (way, figures) in [&bare, &product].into_iter().zip(&mut figures) {
            let carrier = way.start().await?;
            let (took, arrived) = one_at_a_time(way, commits).await?;
            way.finish(carrier, (commits, &arrived)).await?;
            let took = &took[WARM_UP..];
            figures.push((percentile(took, 50), percentile(took, 99)));
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
    let p99_ratio = p99[1] / p99[0];
    Ok(Figures::new(p50[0], p50[1])
        .met(|figures| figures.ratio <= 1.4 && p99_ratio <= 2.0)
        .with("commits_per_round", commits)
        .with("raw_p99", rounded(p99[0]))
        .with("product_p99", rounded(p99[1]))
        .with("p99_ratio", rounded(p99_ratio)))
}

/// Microseconds of a millisecond figure.
pub(crate) fn rounded(ms: f64) -> Value {
    Value::from((ms * 1e3).round() / 1e3)
}
