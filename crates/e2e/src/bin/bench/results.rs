//! results.json, and the table made of it.

use std::{fs, path::Path};

use anyhow::Context as _;
use e2e::Flavor;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    catalogue::{ALL, Key},
    figures::{Figures, number},
    scene::{Scale, server},
};

/// The run a figure comes from.
pub(crate) struct Run(Value);

impl Run {
    pub(crate) fn new(scale: Scale) -> Self {
        let at = OffsetDateTime::now_utc().format(&Rfc3339);
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self(json!({
            "at": at.unwrap_or_default(),
            "scale": if scale.quick { "quick" } else { "full" },
            "rounds": scale.rounds,
            "cores": cores,
            "release": !cfg!(debug_assertions),
        }))
    }
}

/// All keys measured so far, by this run and earlier ones.
pub(crate) struct Results(Map<String, Value>);

impl Results {
    /// What earlier runs have left in `dir`.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Self> {
        let Ok(text) = fs::read_to_string(dir.join("results.json")) else {
            return Ok(Self(Map::new()));
        };
        let results = serde_json::from_str(&text).context("results.json of an earlier run")?;
        Ok(Self(results))
    }

    /// Takes what was measured in place of an earlier figure for the same key and server.
    pub(crate) fn put(
        &mut self,
        key: &Key,
        flavor: Flavor,
        figures: Figures,
        run: &Run,
    ) -> &mut Self {
        let entry = self.0.entry(key.name).or_insert_with(|| json!({}));
        let mut by = entry["by"].as_object().cloned().unwrap_or_default();
        let mut one = Map::new();
        one.insert("raw".into(), json!(rounded(figures.raw)));
        one.insert("product".into(), json!(rounded(figures.product)));
        one.insert("ratio".into(), json!(rounded(figures.ratio)));
        one.insert("met".into(), json!(figures.met));
        one.insert("detail".into(), Value::Object(figures.detail));
        one.insert("run".into(), run.0.clone());
        by.insert(server(flavor).into(), Value::Object(one));
        let worse = worse(key, &by).unwrap_or(Value::Null);
        *entry = json!({
            "raw": worse["raw"],
            "product": worse["product"],
            "ratio": worse["ratio"],
            "unit": key.unit,
            "target": key.target,
            "met": worse["met"],
            "scale": worse["run"]["scale"],
            "by": by,
        });
        self
    }

    /// Writes results.json.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
        let text = serde_json::to_string_pretty(&self.0)?;
        // Never half-written for a reader.
        let new = dir.join("results.json.new");
        fs::write(&new, text + "\n")
            .and_then(|()| fs::rename(&new, dir.join("results.json")))
            .with_context(|| format!("could not write results.json in {}", dir.display()))
    }

    /// Key, server and figures of everything there is, in the order of the catalogue.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&'static Key, &str, &Value)> {
        ALL.iter().flat_map(|key| {
            let by = self
                .0
                .get(key.name)
                .and_then(|entry| entry["by"].as_object());
            by.into_iter()
                .flatten()
                .map(move |(server, figures)| (key, server.as_str(), figures))
        })
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "{:<20} {:<8} {:>10} {:>10} {:>6}  {:<26} {:<26} {}\n",
            "key", "server", "raw", "product", "ratio", "unit", "target", "from"
        );
        for (key, server, figures) in self.lines() {
            let value = |name: &str| figures[name].as_f64().unwrap_or_default();
            let met = match figures["met"].as_bool() {
                Some(true) => "met: ",
                Some(false) => "MISSED: ",
                None => "",
            };
            table += &format!(
                "{:<20} {server:<8} {:>10} {:>10} {:>6.2}  {:<26} {:<26} {} {}\n",
                key.name,
                number(value("raw")),
                number(value("product")),
                value("ratio"),
                key.unit,
                format!("{met}{}", key.target),
                figures["run"]["scale"].as_str().unwrap_or_default(),
                figures["run"]["at"].as_str().unwrap_or_default(),
            );
        }
        table
    }
}

/// The figures of the server that does worse.
fn worse(key: &Key, by: &Map<String, Value>) -> Option<Value> {
    let ratio = |figures: &&Value| figures["ratio"].as_f64().unwrap_or_default();
    let by_ratio = |a: &&Value, b: &&Value| ratio(a).total_cmp(&ratio(b));
    let worse = if key.more_is_better {
        by.values().min_by(by_ratio)
    } else {
        by.values().max_by(by_ratio)
    };
    worse.cloned()
}

/// Four digits after the point: more is noise.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
