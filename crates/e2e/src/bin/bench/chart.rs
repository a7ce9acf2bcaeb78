//! results.svg: one bar a key and server, as long as its ratio.

use std::{fs, path::Path};

use anyhow::Context as _;

use crate::{figures::number, results::Results};

const ROW: usize = 24;
const LEFT: f64 = 250.0;
/// Pixels of a ratio of 1; longer bars are cut at [`RATIO_MAX`].
const ONE: f64 = 150.0;
const RATIO_MAX: f64 = 4.0;

/// Draws all results there are.
pub(crate) fn draw(results: &Results, file: &Path) -> anyhow::Result<()> {
    let mut bars = String::new();
    let mut rows = 0;
    for (key, server, figures) in results.lines() {
        let value = |name: &str| figures[name].as_f64().unwrap_or_default();
        let top = 40 + rows * ROW;
        let width = value("ratio").clamp(0.0, RATIO_MAX) * ONE;
        let colour = match figures["met"].as_bool() {
            Some(true) => "#2e7d32",
            Some(false) => "#c62828",
            None => "#607d8b",
        };
        let text = format!(
            "{:.2}  ({} of {} {}; {})",
            value("ratio"),
            number(value("product")),
            number(value("raw")),
            key.unit,
            key.target
        );
        bars += &format!(
            "<text x=\"10\" y=\"{y}\">{} {server}</text>\
             <rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"16\" fill=\"{colour}\"/>\
             <text x=\"{x:.1}\" y=\"{y}\" class=\"s\">{text}</text>\n",
            key.name,
            y = top + 13,
            x = LEFT + width + 6.0,
        );
        rows += 1;
    }
    let height = 50 + rows * ROW;
    let one = LEFT + ONE;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1250\" height=\"{height}\">\n\
         <style>text{{font:13px sans-serif}} .s{{font-size:11px;fill:#444}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\">product ÷ raw limit (green: target met, red: missed)</text>\n\
         <line x1=\"{one}\" y1=\"30\" x2=\"{one}\" y2=\"{height}\" stroke=\"#999\" \
         stroke-dasharray=\"4\"/>\n{bars}</svg>\n"
    );
    fs::write(file, svg).with_context(|| format!("could not write {}", file.display()))
}
